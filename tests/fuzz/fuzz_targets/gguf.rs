//! A model's file as it streams into the enclave: read or refused, the same for any cut into pieces and whatever length is
//! announced, and what is loaded can be computed with.
#![no_main]

use std::io::Read;

use inference::{LoadError, LoadOptions, Model, Opened, Plan};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&[form, piece, announced], rest)) = data.split_first_chunk() else { return };
    // Bytes of the fuzzer's own seldom get past the header. A whole model with a few bytes changed gets to the weights.
    let file = if form.is_multiple_of(2) { rest.to_vec() } else { changed(rest) };
    let plan = Plan::from_header(&file);
    if let Ok(plan) = &plan {
        // What a plan adds up is a stranger's numbers.
        assert!(plan.activations.bytes(256, plan.context_length, 64) > 0);
    }
    let announced = match announced {
        0 => usize::MAX,
        other => (file.len() + usize::from(other)).saturating_sub(128),
    };
    let streamed = load(Pieces { rest: &file, most: usize::from(piece) * 16 + 1 }, announced);
    let at_once = load(file.as_slice(), file.len());
    assert!(streamed.is_ok() == at_once.is_ok() || announced < file.len(), "{:?} {:?}", streamed.err(), at_once.err());
    if let Ok(model) = at_once {
        assert!(plan.is_ok());
        if let Ok(prompt) = model.prompt_of_tokens(&[0]) {
            let _ = model.logits(&prompt);
        }
    }
});

/// As the enclave does it: the plan first.
fn load(file: impl Read + Send, announced: usize) -> Result<Model, Option<LoadError>> {
    let opened = Opened::read(file, announced).map_err(Some)?;
    let Plan { weights_bytes, loading_bytes, .. } = *opened.plan();
    if weights_bytes.saturating_add(loading_bytes) > ROOM {
        return Err(None);
    }
    opened.load(&LoadOptions { threads: 1 }).map_err(Some)
}

/// A good model, in which each four bytes of `changes` put one byte in a place, or cut it off there.
fn changed(changes: &[u8]) -> Vec<u8> {
    let mut file = include_bytes!("../../../enclave/inference/tests/fixtures/reference-scaled.gguf").to_vec();
    for [low, middle, high, value] in changes.as_chunks().0 {
        let place = usize::from_le_bytes([*low, *middle, high & 0x7F, 0, 0, 0, 0, 0]) % file.len().max(1);
        match file.get_mut(place) {
            Some(byte) if *high < 0x80 => *byte = *value,
            _ => file.truncate(place),
        }
    }
    file
}

/// Gives no more than a few bytes at a time.
struct Pieces<'a> {
    rest: &'a [u8],
    most: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let most = into.len().min(self.most);
        self.rest.read(&mut into[..most])
    }
}

const ROOM: usize = 64 << 20;
