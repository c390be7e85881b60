//! What products leave behind: nothing of a row's sums may lie below the stack of who asked for them.
#![allow(clippy::unwrap_used, reason = "a test says what failed by panicking")]

use kernels::{Activations, Family, Format, Packed, Product, multiply};

/// Weights and activations for which the sum of each row over a super-block is a number that nothing else is.
#[test]
fn products_leave_no_sums_on_the_stack() {
    let (outputs, inputs) = (32, 256);
    for (format, weight) in [
        (Format::Q6K, 31 * 127),
        (Format::Q5K, 31 * 63),
        (Format::Q4K, 15 * 63),
        (Format::Q8_0, 127),
        (Format::Q5_1, 31),
        (Format::Q4_0, 7),
    ] {
        let mut bytes = vec![0xFF; outputs * inputs / format.inputs_of_block() * format.bytes_of_block()];
        for block in bytes.chunks_exact_mut(format.bytes_of_block()) {
            let scale = if format == Format::Q6K { 208..210 } else { 0..2 };
            block[scale].copy_from_slice(&half::f16::ONE.to_le_bytes());
            match format {
                Format::Q6K => block[192..208].fill(127),
                Format::Q5K | Format::Q4K | Format::Q5_1 => block[2..4].fill(0),
                Format::Q8_0 => block[2..].fill(127),
                _ => {}
            }
        }
        let packed = Packed::pack(format, outputs, inputs, &bytes).unwrap();
        for (&family, rows) in Family::all().iter().flat_map(|family| [1, 16].map(|rows| (family, rows))) {
            let mut activations = Activations::new();
            let all = activations.rows_mut(rows, inputs);
            all.fill(1.0);
            for (row, elements) in all.chunks_exact_mut(inputs).enumerate() {
                elements[0] = row as f32 / rows as f32;
            }
            activations.quantise(family);
            let mut out = vec![0.0; rows * outputs];
            multiply(family, &activations, &mut [Product { weights: &packed, out: &mut out }]);
            let left = below();
            for row in 0..rows {
                let codes = 127 * (inputs - 1) + (127.0 * row as f64 / rows as f64).round_ties_even() as usize;
                let sum = (codes * weight) as f32;
                assert!(!left.contains(&sum.to_bits()), "{format:?} {family:?} {row}");
            }
        }
    }
}

/// The words below the frame of the caller, where the functions that it called had theirs.
#[inline(never)]
fn below() -> Vec<u32> {
    static PLACE: std::sync::Mutex<[u32; WORDS]> = std::sync::Mutex::new([0; WORDS]);
    let mut place = PLACE.lock().unwrap();
    let here = std::hint::black_box((&raw const place).cast::<u32>());
    for (word, place) in place.iter_mut().enumerate() {
        // SAFETY: a test's thread has 2 MiB of stack, and nothing is written by reading.
        *place = unsafe { here.wrapping_sub(word + 16).read_volatile() };
    }
    place.to_vec()
}

const WORDS: usize = 30_000;
