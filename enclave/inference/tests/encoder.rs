//! Embeddings: those of transformers, whatever is computed beside them, and refused in words where there are none.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "in a test, the first thing that is wrong ends it"
)]

#[path = "encoding/mod.rs"]
mod encoding;

use encoding::{Files, cases, fixture};
use inference::{
    Cancel, EmbedError, EmbedOptions, Embedding, Encoder, EncoderFiles, LoadOptions, MAX_TEXT_BYTES, MAX_TEXTS,
    Pooling, Vocabulary,
};

const RAW: EmbedOptions = EmbedOptions { pooling: None, normalise: false, truncate: true };

fn encoder() -> Encoder {
    Files::tiny().load(1).unwrap()
}

fn embed(encoder: &Encoder, texts: &[&str], options: &EmbedOptions) -> Vec<Embedding> {
    encoder.embed(texts, options, &Cancel::new()).unwrap()
}

fn bits(embedding: &Embedding) -> Vec<u32> {
    embedding.values().iter().map(|value| value.to_bits()).collect()
}

fn farthest(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn embeddings_are_those_of_transformers() {
    let encoder = encoder();
    for case in cases("encoder.json") {
        for (pooling, field) in [(Pooling::Mean, "mean"), (Pooling::Cls, "cls")] {
            let options = EmbedOptions { pooling: Some(pooling), ..RAW };
            let embedding = embed(&encoder, &[&case.text], &options).remove(0);
            let far = farthest(embedding.values(), &case.embedding(field));
            assert!(far <= 2e-5, "{:?}: {field} is {far} away", case.text);
            assert_eq!((embedding.tokens(), embedding.cut()), (case.tokens.len(), case.cut), "{:?}", case.text);
        }
    }
}

#[test]
fn tokens_are_those_of_transformers_by_either_file() {
    let files = Files::tiny();
    let list = fixture("encoder/vocab.txt");
    let vocabulary = Vocabulary::List { tokens: &list, lower_case: true };
    let by_list = EncoderFiles { vocabulary, ..files.borrowed() };
    let by_list = Encoder::load(&files.weights, &by_list, &LoadOptions { threads: 1 }).unwrap();
    for encoder in [&encoder(), &by_list] {
        for case in cases("encoder.json") {
            assert_eq!(*encoder.tokens_of(&case.text, true).unwrap(), case.tokens, "{:?}", case.text);
        }
    }
}

#[test]
fn each_of_several_texts_gets_what_it_gets_alone_on_any_number_of_threads() {
    let cases = cases("encoder.json");
    let texts: Vec<&str> = cases.iter().map(|case| case.text.as_str()).collect();
    let one = encoder();
    let alone: Vec<Vec<u32>> = texts.iter().map(|text| bits(&embed(&one, &[text], &RAW)[0])).collect();
    for threads in [1, 2, 5] {
        let encoder = Files::tiny().load(threads).unwrap();
        let together: Vec<Vec<u32>> = embed(&encoder, &texts, &RAW).iter().map(bits).collect();
        assert!(together == alone, "{threads} threads");
        let others: Vec<&str> = texts.iter().rev().copied().collect();
        let reversed: Vec<Vec<u32>> = embed(&encoder, &others, &RAW).iter().rev().map(bits).collect();
        assert!(reversed == alone, "{threads} threads, the other way round");
    }
}

#[test]
fn an_embedding_is_one_long_unless_it_is_asked_for_as_it_is() {
    let length = |options: EmbedOptions| {
        let embedding = embed(&encoder(), &["chest pain"], &options).remove(0);
        embedding.values().iter().map(|x| x * x).sum::<f32>().sqrt()
    };
    assert!((length(EmbedOptions::default()) - 1.0).abs() < 1e-6);
    assert!((length(RAW) - 1.0).abs() > 0.1);
}

#[test]
fn the_models_files_say_how_it_pools_and_where_it_cuts() {
    let mut files = Files::tiny();
    let text = "one two three four five six seven";
    assert_eq!(files.load(1).unwrap().pooling(), Pooling::Mean);
    let older =
        br#"{"word_embedding_dimension": 40, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#;
    for pooling in [older.to_vec(), br#"{"embedding_dimension": 40, "pooling_mode": "cls"}"#.to_vec()] {
        files.pooling = Some(pooling);
        let encoder = files.load(1).unwrap();
        let as_it_says = embed(&encoder, &[text], &RAW).remove(0);
        let cls = embed(&encoder, &[text], &EmbedOptions { pooling: Some(Pooling::Cls), ..RAW }).remove(0);
        assert_eq!(bits(&as_it_says), bits(&cls));
    }
    files.sentence = Some(br#"{"max_seq_length": 5, "do_lower_case": true}"#.to_vec());
    let encoder = files.load(1).unwrap();
    assert_eq!(encoder.max_tokens(), 5);
    let tokens = encoder.tokens_of(text, true).unwrap();
    let whole = self::encoder().tokens_of(text, true).unwrap();
    assert_eq!(tokens[..4], whole[..4]);
    assert_eq!((tokens.len(), tokens[4]), (5, whole[whole.len() - 1]));
}

#[test]
fn a_text_with_too_many_tokens_is_refused_with_the_numbers_unless_it_may_be_cut() {
    let encoder = encoder();
    let case = cases("encoder.json").into_iter().find(|case| case.cut > 0).unwrap();
    let refused = encoder.embed(&["short", &case.text], &EmbedOptions::default(), &Cancel::new()).err();
    let expected = EmbedError::TooManyTokens { text: 1, tokens: 96 + case.cut, limit: 96 };
    assert_eq!(refused, Some(expected));
    let said = expected.to_string();
    assert!(said.contains(&format!("{} tokens", 96 + case.cut)) && said.contains("takes 96"), "{said}");
    assert_eq!(embed(&encoder, &[&case.text], &RAW)[0].cut(), case.cut);
}

#[test]
fn too_much_is_refused_before_it_is_looked_at() {
    let encoder = encoder();
    let refusal = |texts: &[&str]| encoder.embed(texts, &RAW, &Cancel::new()).err();
    assert_eq!(refusal(&[]), Some(EmbedError::NoTexts));
    assert_eq!(refusal(&vec!["a"; MAX_TEXTS + 1]), Some(EmbedError::TooManyTexts(MAX_TEXTS + 1)));
    let long = "a".repeat(MAX_TEXT_BYTES + 1);
    assert_eq!(refusal(&["", &long]), Some(EmbedError::TooManyBytes { text: 1, bytes: long.len() }));
    assert_eq!(refusal(&[&long[1..]]), None);
}

#[test]
fn cancelled_embeddings_end() {
    let cancel = Cancel::new();
    cancel.cancel();
    assert_eq!(encoder().embed(&["a"], &RAW, &cancel).err(), Some(EmbedError::Cancelled));
}

#[test]
fn weights_of_16_bits_give_nearly_the_same() {
    let exact = encoder();
    let texts: Vec<String> = cases("encoder.json").into_iter().map(|case| case.text).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    type Rounding = fn(f32) -> [u8; 2];
    let roundings: [(&str, Rounding, f32); 2] = [
        ("F16", |x| half::f16::from_f32(x).to_le_bytes(), 0.01),
        ("BF16", |x| half::bf16::from_f32(x).to_le_bytes(), 0.1),
    ];
    for (dtype, round, bound) in roundings {
        let files = Files::tensors(|tensors| {
            for tensor in tensors {
                tensor.bytes = tensor.floats().into_iter().flat_map(round).collect();
                tensor.dtype = dtype;
            }
        });
        let rounded = files.load(1).unwrap();
        for (a, b) in embed(&exact, &texts, &RAW).iter().zip(embed(&rounded, &texts, &RAW)) {
            let far = farthest(a.values(), b.values());
            assert!(far > 0.0 && far < bound, "{dtype}: {far}");
        }
    }
}

#[test]
fn weights_that_give_no_numbers_are_said_to() {
    let files = Files::tensors(|tensors| {
        let norm = tensors.iter_mut().find(|tensor| tensor.name == "embeddings.LayerNorm.bias").unwrap();
        norm.bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let refused = files.load(1).unwrap().embed(&["a"], &RAW, &Cancel::new()).err();
    assert_eq!(refused, Some(EmbedError::NotANumber { text: 0 }));
}

#[test]
fn an_encoder_may_be_used_by_several_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Encoder>();
}
