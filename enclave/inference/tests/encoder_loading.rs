//! Which encoders are loaded, which are refused, and what the refusal says.
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

use encoding::{Files, Tensor, fixture, with_header};
use inference::{Cancel, EmbedOptions, Encoder, EncoderFiles, EncoderPlan, LoadOptions, Vocabulary};
use proptest::prelude::*;
use serde_json::{Value, json};

const ONE: LoadOptions = LoadOptions { threads: 1 };

fn bits(encoder: &Encoder) -> Vec<u32> {
    let embedding = encoder.embed(&["chest pain"], &EmbedOptions::default(), &Cancel::new()).unwrap().remove(0);
    embedding.values().iter().map(|x| x.to_bits()).collect()
}

#[test]
fn an_encoder_says_what_it_is_and_the_plan_says_what_it_takes() {
    let files = Files::tiny();
    let encoder = files.load(1).unwrap();
    assert_eq!((encoder.width(), encoder.max_tokens(), encoder.threads()), (40, 96, 1));
    let header = &files.weights[..files.weights.len() - 160_000];
    let plan = EncoderPlan::from_header(header, &files.config).unwrap();
    assert_eq!((plan.width, plan.max_tokens, plan.file_bytes), (40, 96, files.weights.len()));
    // Every tensor is computed with, and each is of f32.
    let tensors = inference::safetensors::Header::parse(&files.weights).unwrap();
    assert_eq!(plan.parameters, (files.weights.len() - tensors.data_offset()) as u64 / 4);
    assert!(plan.computing_bytes(1, 96, 1) < plan.computing_bytes(2, 96, 1));
    assert!(plan.computing_bytes(1, 96, 1) < plan.computing_bytes(1, 96, 2));
    // More than the model takes is cut.
    assert_eq!(plan.computing_bytes(1, 96, 1), plan.computing_bytes(1, 9_600, 1));
}

/// Gives a few bytes at a time, as a network does.
struct Trickle<'a>(&'a [u8]);

impl std::io::Read for Trickle<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let count = into.len().min(self.0.len()).min(1021);
        let (now, later) = self.0.split_at(count);
        into[..count].copy_from_slice(now);
        self.0 = later;
        Ok(count)
    }
}

#[test]
fn a_file_that_comes_in_pieces_is_the_same_encoder_and_a_cut_one_is_none() {
    let files = Files::tiny();
    let whole = files.weights.len();
    let read = |bytes: &[u8], length| Encoder::read(&mut Trickle(bytes), length, &files.borrowed(), &ONE);
    assert_eq!(bits(&read(&files.weights, whole).unwrap()), bits(&files.load(1).unwrap()));
    for length in [0, 3, 8, 100, whole / 2, whole - 1] {
        assert!(read(&files.weights[..length], length).is_err(), "{length}");
        // Somebody says that it is longer than it turns out to be.
        assert!(read(&files.weights[..length], whole).is_err(), "{length}");
    }
    let mut longer = files.clone();
    longer.weights.push(0);
    assert_eq!(longer.refusal(), format!("the file of weights has {} bytes; its header says {whole}", whole + 1));
}

#[test]
fn another_architecture_is_named() {
    assert!(Files::config("model_type", json!("xlm-roberta")).refusal().contains("\"xlm-roberta\""));
    assert!(Files::config("model_type", Value::Null).refusal().contains("missing"));
    for (key, value) in [
        ("hidden_act", json!("gelu_new")),
        ("position_embedding_type", json!("relative_key")),
        ("is_decoder", json!(true)),
        ("add_cross_attention", json!(true)),
    ] {
        let refusal = Files::config(key, value.clone()).refusal();
        assert!(refusal.contains(&format!("{key:?} in config.json is {value}")), "{refusal}");
    }
}

#[test]
fn hyperparameters_that_cannot_be_are_named() {
    for key in [
        "vocab_size",
        "max_position_embeddings",
        "type_vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "intermediate_size",
        "num_attention_heads",
    ] {
        for value in [Value::Null, json!(0), json!(-1), json!(1.5), json!("40"), json!(u64::MAX), json!(1_u64 << 40)] {
            let refusal = Files::config(key, value).refusal();
            assert!(refusal.contains(&format!("{key:?} in config.json is")), "{refusal}");
        }
    }
    assert!(Files::config("num_attention_heads", json!(3)).refusal().contains("a divisor of 40"));
    assert!(Files::config("max_position_embeddings", json!(2)).refusal().contains("from 3 to"));
    assert!(Files::config("layer_norm_eps", json!(-1)).refusal().contains("layer_norm_eps"));
    assert_eq!(
        bits(&Files::config("layer_norm_eps", Value::Null).load(1).unwrap()),
        bits(&Files::tiny().load(1).unwrap())
    );
}

#[test]
fn a_tensor_that_is_missing_superfluous_or_different_is_named() {
    let refusal = |change: fn(&mut Vec<Tensor>)| Files::tensors(change).refusal();
    let value = "encoder.layer.1.attention.self.value.weight";
    assert_eq!(
        refusal(|tensors| tensors.retain(|tensor| !tensor.name.ends_with("layer.1.attention.self.value.weight"))),
        format!("tensor {value:?} is missing")
    );
    assert_eq!(
        refusal(|tensors| tensors.push(Tensor {
            name: "encoder.layer.2.output.dense.bias".to_owned(),
            dtype: "F32",
            shape: vec![40],
            bytes: vec![0; 160],
        })),
        "tensor \"encoder.layer.2.output.dense.bias\" has no place in this architecture"
    );
    let reshaped = refusal(|tensors| {
        tensors.iter_mut().filter(|tensor| tensor.shape == [72, 40]).for_each(|tensor| tensor.shape = vec![40, 72]);
    });
    assert!(reshaped.contains("has shape [40, 72]; [72, 40] is expected"), "{reshaped}");
    let integers = refusal(|tensors| {
        tensors
            .iter_mut()
            .filter(|tensor| tensor.name.contains("value.weight"))
            .for_each(|tensor| tensor.dtype = "I32");
    });
    assert!(integers.contains("value.weight\" is of type I32, which is not supported"), "{integers}");
}

#[test]
fn positions_own_numbers_and_the_pooler_are_left_out() {
    let files = Files::tensors(|tensors| {
        let of = |name: &str, dtype, shape: Vec<usize>, bytes| Tensor {
            name: name.to_owned(),
            dtype,
            shape,
            bytes: vec![1; bytes],
        };
        tensors.insert(0, of("embeddings.position_ids", "I64", vec![1, 96], 96 * 8));
        tensors.insert(9, of("pooler.dense.weight", "F32", vec![40, 40], 6_400));
        tensors.push(of("pooler.dense.bias", "F32", vec![40], 160));
    });
    assert_eq!(bits(&files.load(1).unwrap()), bits(&Files::tiny().load(1).unwrap()));
    let plan = |files: &Files| EncoderPlan::from_header(&files.weights, &files.config).unwrap();
    assert_eq!(plan(&files).weights_bytes, plan(&Files::tiny()).weights_bytes);
}

#[test]
fn tokenizers_of_another_kind_are_named() {
    for (pointer, part) in [
        ("/model/type", "model"),
        ("/normalizer/type", "normalizer"),
        ("/pre_tokenizer/type", "pre-tokenizer"),
        ("/post_processor/type", "post-processor"),
    ] {
        let refusal = Files::tokenizer(pointer, json!("Other")).refusal();
        assert!(refusal.starts_with(&format!("{part} \"Other\"")), "{refusal}");
    }
    assert!(Files::tokenizer("/normalizer", Value::Null).refusal().starts_with("normalizer \"none\""));
    // Unigram has a list where WordPiece has a table.
    assert!(
        Files::tokenizer("/model", json!({"type": "Unigram", "vocab": []})).refusal().starts_with("model \"Unigram\"")
    );
    assert!(Files::tokenizer("/model", json!({"type": "WordPiece"})).refusal().contains("tokenizer.json"));
    let reversed = json!([{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]);
    assert!(Files::tokenizer("/post_processor/single", reversed).refusal().contains("one token before a text"));
    assert!(Files::tokenizer("/model/unk_token", json!("[NO]")).refusal().contains("\"[NO]\""));
    assert!(Files::tokenizer("/model/max_input_chars_per_word", json!(100_000)).refusal().contains("100000"));
    for member in ["continuing_subword_prefix", "unk_token"] {
        let refusal = Files::tokenizer(&format!("/model/{member}"), json!("#".repeat(1_000_000))).refusal();
        assert!(refusal.contains(member) && refusal.contains("1000000 bytes"), "{refusal}");
    }
    assert!(Files::tokenizer("/model/vocab/a", json!(100_000)).refusal().contains("token 100000"));
    assert!(Files::tokenizer("/added_tokens/0/lstrip", json!(true)).refusal().contains("takes white space"));
    assert!(Files::tokenizer("/added_tokens/0/id", json!(7)).refusal().contains("not where the file says"));
    let ids = json!({"[CLS]": {"ids": [3, 3]}, "[SEP]": {"ids": [4]}});
    assert!(Files::tokenizer("/post_processor/special_tokens", ids).refusal().contains("one token before a text"));
}

#[test]
fn a_list_without_the_tokens_that_stand_around_a_text_is_refused() {
    let files = Files::tiny();
    let list = String::from_utf8(fixture("encoder/vocab.txt")).unwrap();
    let refusal = |list: &[u8]| {
        let vocabulary = Vocabulary::List { tokens: list, lower_case: true };
        let files = EncoderFiles { vocabulary, ..files.borrowed() };
        Encoder::load(&[], &files, &ONE).err().unwrap().to_string()
    };
    for token in ["[UNK]", "[CLS]", "[SEP]"] {
        assert!(refusal(list.replace(token, "x").as_bytes()).contains(&format!("{token:?}")), "{token}");
    }
    assert!(refusal(b"[CLS]\xff").contains("UTF-8"));
    assert!(refusal((list + "one\nmore\n").as_bytes()).contains("the model has"));
}

#[test]
fn settings_that_are_not_computed_are_named() {
    let with = |change: fn(&mut Files)| {
        let mut files = Files::tiny();
        change(&mut files);
        files.refusal()
    };
    assert!(
        with(|files| files.pooling = Some(br#"{"pooling_mode_max_tokens": true}"#.to_vec())).contains("\"max_tokens\"")
    );
    assert!(
        with(|files| files.pooling = Some(br#"{"pooling_mode": ["cls", "mean"]}"#.to_vec()))
            .contains("\"cls and mean\"")
    );
    assert!(with(|files| files.pooling = Some(b"[]".to_vec())).contains("1_Pooling/config.json is not a JSON object"));
    let dense =
        br#"[{"type": "sentence_transformers.models.Transformer"}, {"type": "sentence_transformers.models.Dense"}]"#;
    let mut files = Files { modules: Some(dense.to_vec()), ..Files::tiny() };
    assert!(files.refusal().contains("\"Dense\""));
    files.modules = Some(String::from_utf8(dense.to_vec()).unwrap().replace("Dense", "Normalize").into_bytes());
    assert!(files.load(1).is_ok());
    assert!(with(|files| files.sentence = Some(br#"{"max_seq_length": 2}"#.to_vec())).contains("max_seq_length"));
    let mut files = Files::tokenizer("/normalizer/lowercase", json!(false));
    files.sentence = Some(br#"{"do_lower_case": true}"#.to_vec());
    assert!(files.refusal().contains("lower case"));
}

fn refusal_of(header: &str, data: &[u8]) -> String {
    Files { weights: with_header(header.as_bytes(), data), ..Files::tiny() }.refusal()
}

#[test]
fn headers_that_the_format_does_not_allow_are_refused() {
    let tensor = |from: u64, to: u64| format!(r#"{{"dtype": "F32", "shape": [1], "data_offsets": [{from}, {to}]}}"#);
    let (a, b) = (tensor(0, 4), tensor(4, 8));
    for (header, said) in [
        (String::new(), "line 1, column 0"),
        ("[]".to_owned(), "JSON object of tensors"),
        (format!(r#"{{"a": {a}}} x"#), "JSON object of tensors"),
        (format!(r#"{{"a": {a}, "a": {b}}}"#), "each once"),
        (r#"{"a": {"dtype": "F32", "shape": [1]}}"#.to_owned(), "data_offsets"),
        (r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "more": 1}}"#.to_owned(), "each once"),
        (r#"{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}"#.to_owned(), "JSON object of tensors"),
        (r#"{"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 4]}}"#.to_owned(), "not known"),
        (r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}"#.to_owned(), "do not take that many"),
        (r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}"#.to_owned(), "do not take that many"),
        (r#"{"a": {"dtype": "F32", "shape": [1,1,1,1,1,1,1,1,1], "data_offsets": [0, 4]}}"#.to_owned(), "9 dimensions"),
        (format!(r#"{{"a": {a}, "b": {}}}"#, tensor(8, 12)), "ends at 4"),
        (format!(r#"{{"a": {a}, "b": {}}}"#, tensor(0, 4)), "ends at 4"),
        (format!(r#"{{"{}": {a}}}"#, "n".repeat(257)), "257 bytes"),
        ("[".repeat(100_000), "JSON object of tensors"),
    ] {
        let found = refusal_of(&header, &[0; 12]);
        assert!(found.contains(said), "{said}: {found}");
    }
}

#[test]
fn what_a_header_claims_is_not_allocated() {
    // Sizes whose product wraps around, and ones that no machine has: refused as they stand.
    for (shape, end) in [("[4294967296, 4294967296]", 0_u64), ("[4611686018427387904, 4]", 0), ("[1]", u64::MAX)] {
        let header = format!(r#"{{"a": {{"dtype": "F32", "shape": {shape}, "data_offsets": [0, {end}]}}}}"#);
        assert!(refusal_of(&header, b"").contains("do not take that many"), "{shape}");
    }
    let huge = 1_u64 << 50;
    let header = format!(r#"{{"a": {{"dtype": "F32", "shape": [{}], "data_offsets": [0, {huge}]}}}}"#, huge / 4);
    assert!(refusal_of(&header, b"").contains("its header says 11258"));
    for length in [(4_u64 << 20) + 1, 1 << 40, u64::MAX] {
        let files = Files { weights: [&length.to_le_bytes()[..], b"{}"].concat(), ..Files::tiny() };
        assert!(files.refusal().contains(&format!("the header has {length} bytes")), "{length}");
    }
    let files = Files { weights: [&1_000_u64.to_le_bytes()[..], b"{}"].concat(), ..Files::tiny() };
    assert!(files.refusal().contains("ends after 10 bytes; its header ends at byte 1008"));
}

#[test]
fn files_longer_than_any_models_are_refused() {
    let blank = |bytes: usize| vec![b' '; bytes];
    let tiny = Files::tiny;
    assert!(Files { config: blank((1 << 20) + 1), ..tiny() }.refusal().contains("1048577 bytes"));
    assert!(Files { tokenizer: blank((16 << 20) + 1), ..tiny() }.refusal().contains("16777217 bytes"));
    for files in [
        Files { pooling: Some(blank((64 << 10) + 1)), ..tiny() },
        Files { sentence: Some(blank((64 << 10) + 1)), ..tiny() },
        Files { modules: Some(blank((64 << 10) + 1)), ..tiny() },
    ] {
        assert!(files.refusal().contains("65537 bytes"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Changed in any place, files are refused, or loaded and computed with.
    #[test]
    fn broken_files_end_in_words(which in 0..3_usize, at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<bool>()) {
        let mut files = Files::tiny();
        let header = 8 + u64::from_le_bytes(files.weights[..8].try_into().unwrap()) as usize;
        let (file, changed) = match which {
            0 => (&mut files.weights, header),
            1 => { let length = files.config.len(); (&mut files.config, length) }
            _ => { let length = files.tokenizer.len(); (&mut files.tokenizer, length) }
        };
        let at = at.index(changed);
        if cut { file.truncate(at) } else { file[at] = to }
        if let Ok(encoder) = files.load(1) {
            let _ = encoder.embed(&["chest pain [SEP] \u{301}"], &EmbedOptions { truncate: true, ..Default::default() }, &Cancel::new());
        }
    }
}
