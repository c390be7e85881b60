//! Malformed files are refused: without a panic, and without allocating what a header merely claims.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "in a test, the first thing that is wrong ends it"
)]

#[path = "making/mod.rs"]
mod making;

use inference::gguf::{GgufError, Header};
use inference::{LoadError, LoadOptions, Model, Plan};
use making::{Gguf, Meta, Random, Shape, random_model};
use proptest::prelude::*;

fn tiny() -> Gguf {
    random_model(&Shape::TINY, 1)
}

/// Small enough to be loaded many times.
fn smallest() -> Gguf {
    random_model(
        &Shape { width: 16, heads: 2, kv_heads: 1, feed_forward: 16, layers: 1, vocabulary: 264, ..Shape::TINY },
        1,
    )
}

fn load(bytes: &[u8]) -> Result<Model, LoadError> {
    Model::load(bytes, &LoadOptions { threads: 1 })
}

fn parse_error(bytes: &[u8]) -> GgufError {
    Header::parse(bytes).err().expect("refused")
}

/// The most address space that this process ever had, in kB.
fn address_space() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn start(tensors: u64, metadata: u64) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(metadata.to_le_bytes());
    bytes
}

fn key(bytes: &mut Vec<u8>, key: &str, kind: u32) {
    bytes.extend((key.len() as u64).to_le_bytes());
    bytes.extend(key.as_bytes());
    bytes.extend(kind.to_le_bytes());
}

#[test]
fn what_is_not_gguf_is_told_so() {
    assert_eq!(parse_error(b""), GgufError::NotGguf);
    assert_eq!(parse_error(b"PK\x03\x04 and more of a zip file"), GgufError::NotGguf);
    assert_eq!(parse_error(b"GGUF\x01\0\0\0"), GgufError::Version(1));
    // A big-endian file has its version the other way round.
    assert_eq!(parse_error(b"GGUF\0\0\0\x03"), GgufError::Version(0x0300_0000));
}

#[test]
fn claims_of_a_header_cost_no_memory() {
    let before = address_space();
    for claim in [1 << 20, 1 << 34, 1 << 62, u64::MAX] {
        assert!(Header::parse(&start(claim, 0)).is_err());
        assert!(Header::parse(&start(0, claim)).is_err());
        // A key, a text and an array of such a length.
        let mut bytes = start(0, 1);
        bytes.extend(claim.to_le_bytes());
        assert!(Header::parse(&bytes).is_err());
        let mut bytes = start(0, 1);
        key(&mut bytes, "general.name", 8);
        bytes.extend(claim.to_le_bytes());
        assert!(Header::parse(&bytes).is_err());
        for kind in 0..13_u32 {
            let mut bytes = start(0, 1);
            key(&mut bytes, "tokenizer.ggml.tokens", 9);
            bytes.extend(kind.to_le_bytes());
            bytes.extend(claim.to_le_bytes());
            bytes.extend([0; 64]);
            assert!(Header::parse(&bytes).is_err());
        }
        // A tensor with such a dimension.
        let mut bytes = start(1, 0);
        bytes.extend(1_u64.to_le_bytes());
        bytes.extend(b"t");
        bytes.extend(2_u32.to_le_bytes());
        bytes.extend(claim.to_le_bytes());
        bytes.extend(claim.to_le_bytes());
        bytes.extend(8_u32.to_le_bytes());
        bytes.extend(0_u64.to_le_bytes());
        let parsed = Header::parse(&bytes);
        if let Ok(header) = parsed {
            let (name, info) = header.tensors().next().unwrap();
            assert!(header.tensor(&bytes, name, info).is_err());
        }
    }
    assert!(address_space() - before < GIBIBYTE, "address space grew by more than threads take");
}

#[test]
fn a_model_that_claims_to_be_huge_is_refused_before_it_costs_memory() {
    let before = address_space();
    for (name, value) in [
        ("llama.context_length", u32::MAX),
        ("llama.embedding_length", 65_536),
        ("llama.block_count", 1_024),
        ("llama.feed_forward_length", 262_144),
        ("llama.attention.head_count", 1_024),
        ("llama.vocab_size", 2 << 20),
    ] {
        let mut file = smallest();
        file.set(name, Meta::Number(value));
        assert!(load(&file.to_bytes()).is_err(), "{name}");
    }
    assert!(address_space() - before < GIBIBYTE, "address space grew by more than threads take");
}

#[test]
fn a_file_cut_off_anywhere_is_refused() {
    let file = smallest();
    let (header, bytes) = (file.header().len(), file.to_bytes());
    let mut random = Random(4);
    let cuts = (0..600).map(|_| random.below(header as u64) as usize).chain((header..bytes.len()).step_by(97));
    for cut in cuts {
        assert!(load(&bytes[..cut]).is_err(), "cut at {cut} of {}", bytes.len());
    }
    assert!(Plan::from_header(&bytes[..header]).is_ok(), "the plan needs the header alone");
    assert!(load(&bytes).is_ok());
}

#[test]
fn text_that_is_not_utf_8_is_refused() {
    let mut bytes = tiny().to_bytes();
    let place = bytes.windows(6).position(|window| window == b"Random").unwrap();
    bytes[place] = 0xFF;
    assert_eq!(parse_error(&bytes), GgufError::NotUtf8 { at: place });
}

#[test]
fn keys_and_tensors_that_stand_twice_are_refused() {
    let mut file = tiny();
    file.metadata.push(("llama.block_count".to_owned(), Meta::Number(2)));
    assert_eq!(parse_error(&file.to_bytes()), GgufError::Duplicate("llama.block_count".to_owned()));
    let mut file = tiny();
    file.tensors.push(file.tensors[0].clone());
    assert_eq!(parse_error(&file.to_bytes()), GgufError::Duplicate("token_embd.weight".to_owned()));
}

#[test]
fn an_odd_alignment_is_refused() {
    for alignment in [0, 1, 12, 1 << 17] {
        let mut file = tiny();
        file.set("general.alignment", Meta::Number(alignment));
        assert_eq!(parse_error(&file.to_bytes()), GgufError::Alignment(u64::from(alignment)));
    }
}

#[test]
fn arrays_of_arrays_are_refused() {
    let mut bytes = start(0, 1);
    key(&mut bytes, "deep", 9);
    bytes.extend(9_u32.to_le_bytes());
    bytes.extend([0; 200]);
    assert!(matches!(parse_error(&bytes), GgufError::ValueType { kind: 9, .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Header::parse(&bytes);
        let _ = Header::parse(&[start(2, 2), bytes].concat());
    }

    #[test]
    fn a_changed_file_is_loaded_or_refused(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let file = smallest();
        let (header, mut bytes) = (file.header().len(), file.to_bytes());
        for (place, value) in changes {
            bytes[place.index(header)] = value;
        }
        if let Ok(model) = load(&bytes) {
            // What is loaded can be computed with.
            if let Ok(prompt) = model.prompt_of_tokens(&[0, 1, 2]) {
                let _ = model.logits(&prompt);
            }
        }
    }
}

/// In kB. Each thread of the test program may reserve 64 MiB for its heap; the claims are for 16 GiB and more.
const GIBIBYTE: u64 = 1 << 20;
