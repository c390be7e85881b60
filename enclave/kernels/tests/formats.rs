//! Packed weights are those of the file, to the bit: against the dequantisation of the Python package gguf, which is llama.cpp's.
//! `fixtures/make_formats.py` made the vectors.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use kernels::{Format, LANES, Packed};

struct Vector {
    format: Format,
    inputs: usize,
    rows: Vec<Vec<u8>>,
    weights: Vec<Vec<u32>>,
}

fn vectors() -> Vec<Vector> {
    let mut rest: &[u8] = include_bytes!("fixtures/formats.bin");
    let mut vectors = Vec::new();
    while !rest.is_empty() {
        let mut take = |count: usize| rest.split_off(..count).unwrap();
        let name = take(8);
        let format = match name.split(|byte| *byte == 0).next().unwrap() {
            b"Q8_0" => Format::Q8_0,
            b"Q4_0" => Format::Q4_0,
            b"Q4_1" => Format::Q4_1,
            b"Q5_0" => Format::Q5_0,
            b"Q5_1" => Format::Q5_1,
            b"Q4_K" => Format::Q4K,
            b"Q5_K" => Format::Q5K,
            b"Q6_K" => Format::Q6K,
            other => panic!("{other:?}"),
        };
        let [inputs, count, row_bytes] =
            std::array::from_fn(|_| u32::from_le_bytes(take(4).try_into().unwrap()) as usize);
        let rows = (0..count).map(|_| take(row_bytes).to_vec()).collect();
        let words = |bytes: &[u8]| bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let weights = (0..count).map(|_| words(take(inputs * 4))).collect();
        vectors.push(Vector { format, inputs, rows, weights });
    }
    vectors
}

#[test]
fn packed_weights_are_those_that_gguf_says_in_every_lane() {
    let vectors = vectors();
    let quantised: Vec<Format> = Format::ALL.into_iter().filter(|format| format.is_quantised()).collect();
    assert!(
        quantised.iter().all(|format| vectors.iter().any(|vector| vector.format == *format)),
        "a format is missing"
    );
    for Vector { format, inputs, rows, weights } in vectors {
        // No divisor of 16, so that each row is in each lane once.
        assert_eq!(rows.len(), 5);
        let outputs = 5 * LANES;
        let bytes: Vec<u8> = (0..outputs).flat_map(|output| rows[output % 5].clone()).collect();
        let packed = Packed::pack(format, outputs, inputs, &bytes).unwrap();
        assert_eq!(packed.bytes(), format.packed_bytes(outputs, inputs));
        let mut out = vec![0.0; inputs];
        for output in 0..outputs {
            packed.row(output, &mut out);
            let found: Vec<u32> = out.iter().map(|weight| weight.to_bits()).collect();
            for (input, (found, expected)) in found.iter().zip(&weights[output % 5]).enumerate() {
                let (found, expected) = (f32::from_bits(*found), f32::from_bits(*expected));
                assert!(found.to_bits() == expected.to_bits(), "{format:?} {output} {input}: {found}, not {expected}");
            }
        }
    }
}

/// Resident memory is that of the file, but for what Q4_K, Q5_K and Q6_K spend on scales that are not squeezed.
#[test]
fn packed_weights_take_what_they_take_in_the_file() {
    for format in Format::ALL {
        let in_file = 512 / format.inputs_of_block() * format.bytes_of_block() * 256;
        let packed = format.packed_bytes(256, 512);
        let most = in_file * if format.inputs_of_block() == 256 { 1030 } else { 1002 } / 1000;
        assert!((in_file..=most).contains(&packed), "{format:?}: {packed} bytes, {in_file} in the file");
    }
}
