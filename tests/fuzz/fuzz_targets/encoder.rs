//! An encoder's files: read or refused, and what is loaded can be computed with. The first byte says which of a model's files is
//! replaced as a whole, or that some of their bytes are: it takes a whole model to get far.
#![no_main]

use inference::{Cancel, EmbedOptions, Encoder, EncoderFiles, EncoderPlan, LoadOptions, Vocabulary};
use libfuzzer_sys::fuzz_target;

const WEIGHTS: &[u8] = include_bytes!("../../../enclave/inference/tests/fixtures/encoder/model.safetensors");
const CONFIG: &[u8] = include_bytes!("../../../enclave/inference/tests/fixtures/encoder/config.json");
const TOKENIZER: &[u8] = include_bytes!("../../../enclave/inference/tests/fixtures/encoder/tokenizer.json");

fuzz_target!(|data: &[u8]| {
    let Some((&which, data)) = data.split_first() else { return };
    let mut files = [WEIGHTS, CONFIG, TOKENIZER].map(<[u8]>::to_vec);
    let (mut list, mut pooling, mut sentence, mut modules) = (None, None, None, None);
    match which % 8 {
        file @ 0..3 => files[usize::from(file)] = data.to_vec(),
        3 => list = Some(data),
        4 => pooling = Some(data),
        5 => sentence = Some(data),
        6 => modules = Some(data),
        _ => {
            for edit in data.chunks_exact(4) {
                let file = &mut files[usize::from(edit[0] % 3)];
                // Of the weights, the header.
                let length = file.len().min(8 << 10);
                file[usize::from(u16::from_le_bytes([edit[1], edit[2]])) % length] = edit[3];
            }
        }
    }
    let [weights, config, tokenizer] = &files;
    let plan = EncoderPlan::from_header(weights, config);
    if let Ok(plan) = &plan {
        // What a plan adds up is a stranger's numbers.
        assert!(plan.computing_bytes(256, usize::MAX, 64) > 0);
    }
    let vocabulary = match list {
        Some(tokens) => Vocabulary::List { tokens, lower_case: true },
        None => Vocabulary::Tokenizer(tokenizer),
    };
    let files = EncoderFiles { config, vocabulary, pooling, sentence, modules };
    if let Ok(encoder) = Encoder::load(weights, &files, &LoadOptions { threads: 1 }) {
        let plan = plan.expect("what is loaded can be planned");
        assert_eq!((plan.width, plan.file_bytes), (encoder.width(), weights.len()));
        let options = EmbedOptions { truncate: true, ..EmbedOptions::default() };
        let _ = encoder.embed(&["chest pain, \u{dc}belkeit", "[SEP] \u{60a3}\u{8005}"], &options, &Cancel::new());
    }
});
