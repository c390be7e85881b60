//! From the rows of a GGUF file into a tile.

use half::f16;

use crate::format::{Format, K_HEAD, Q6_HEAD};
use crate::{BLOCK_INPUTS, LANES, SUPER};

/// Packs one row of a file, of `inputs` weights, as output `lane` of a tile.
///
/// `row` and `tile` have the lengths that the format says.
pub(crate) fn pack_row(format: Format, row: &[u8], inputs: usize, lane: usize, tile: &mut [u8]) {
    if !format.is_quantised() {
        let size = format.bytes_of_block();
        for (place, element) in tile.chunks_exact_mut(size * LANES).zip(row.chunks_exact(size)) {
            place[lane * size..][..size].copy_from_slice(element);
        }
        return;
    }
    let blocks = inputs / BLOCK_INPUTS;
    let (mut rest, mut place) = (row, tile);
    for first in (0..blocks).step_by(SUPER) {
        let count = SUPER.min(blocks - first);
        let in_file = count * BLOCK_INPUTS / format.inputs_of_block() * format.bytes_of_block();
        let (of_row, after) = rest.split_at(in_file);
        let (of_tile, after_tile) = place.split_at_mut(format.super_bytes(count));
        super_block(format, of_row, count, lane, of_tile);
        (rest, place) = (after, after_tile);
    }
}

fn super_block(format: Format, row: &[u8], count: usize, lane: usize, tile: &mut [u8]) {
    match format {
        Format::Q8_0 => {
            for (index, block) in row.chunks_exact(34).enumerate() {
                scale(tile, index * 32, lane, &block[..2]);
                for (input, code) in block[2..].iter().enumerate() {
                    let at = count * 32 + index * 512 + (input / 4 * LANES + lane) * 4 + input % 4;
                    // i8 plus 128, as u8.
                    tile[at] = code ^ 0x80;
                }
            }
        }
        Format::Q4_0 => {
            for (index, block) in row.chunks_exact(18).enumerate() {
                scale(tile, index * 32, lane, &block[..2]);
                // A file's byte holds inputs i and i + 16, which is groups g and g + 4.
                for (input, nibbles) in block[2..].iter().enumerate() {
                    tile[count * 32 + index * 256 + (input / 4 * LANES + lane) * 4 + input % 4] = *nibbles;
                }
            }
        }
        Format::Q4K | Format::Q5K => k_block(format, row, lane, tile),
        Format::Q6K => {
            scale(tile, 0, lane, &row[208..210]);
            for (part, scale) in row[192..208].iter().enumerate() {
                tile[64 + part * LANES + lane] = *scale;
            }
            for index in 0..SUPER {
                let codes = codes_q6(row, index);
                for (input, code) in codes.iter().enumerate() {
                    let block = &mut tile[Q6_HEAD + index * (256 + 128)..][..256 + 128];
                    nibble(&mut block[..256], input, lane, code & 15);
                    // Group g has its two bits in byte vector g / 4, at bit 2 (g % 4).
                    let (group, high) = (input / 4, code >> 4);
                    block[256 + group / 4 * 64 + lane * 4 + input % 4] |= high << (group % 4 * 2);
                }
            }
        }
        Format::F32 | Format::F16 | Format::Bf16 => {}
    }
}

fn k_block(format: Format, row: &[u8], lane: usize, tile: &mut [u8]) {
    scale(tile, 0, lane, &row[..2]);
    scale(tile, 32, lane, &row[2..4]);
    for index in 0..SUPER {
        let (factor, minimum) = k_scale(&row[4..16], index);
        tile[64 + index * LANES + lane] = factor;
        // Minima of two blocks side by side: they are multiplied in pairs.
        tile[64 + SUPER * LANES + (index / 2 * LANES + lane) * 2 + index % 2] = minimum;
        let (codes, size) =
            if format == Format::Q4K { (codes_q4(row, index), 256) } else { (codes_q5(row, index), 256 + 64) };
        let block = &mut tile[K_HEAD + index * size..][..size];
        for (input, code) in codes.iter().enumerate() {
            nibble(&mut block[..256], input, lane, code & 15);
            if code & 16 != 0 {
                let bit = lane * 4 + input % 4;
                block[256 + input / 4 * 8 + bit / 8] |= 1 << (bit % 8);
            }
        }
    }
}

fn scale(tile: &mut [u8], at: usize, lane: usize, half: &[u8]) {
    tile[at + lane * 2..][..2].copy_from_slice(half);
}

fn nibble(block: &mut [u8], input: usize, lane: usize, code: u8) {
    let group = input / 4;
    let place = &mut block[(group % 4 * LANES + lane) * 4 + input % 4];
    *place |= if group < 4 { code } else { code << 4 };
}

/// The 6-bit scale and minimum of a block (`get_scale_min_k4` of `ggml-quants.c`).
pub(crate) fn k_scale(packed: &[u8], index: usize) -> (u8, u8) {
    if index < 4 {
        (packed[index] & 63, packed[index + 4] & 63)
    } else {
        ((packed[index + 4] & 15) | (packed[index - 4] >> 6 << 4), (packed[index + 4] >> 4) | (packed[index] >> 6 << 4))
    }
}

fn codes_q4(row: &[u8], index: usize) -> [u8; BLOCK_INPUTS] {
    let bytes = &row[16 + index / 2 * 32..][..32];
    std::array::from_fn(|input| if index.is_multiple_of(2) { bytes[input] & 15 } else { bytes[input] >> 4 })
}

fn codes_q5(row: &[u8], index: usize) -> [u8; BLOCK_INPUTS] {
    let bytes = &row[48 + index / 2 * 32..][..32];
    std::array::from_fn(|input| {
        let low = if index.is_multiple_of(2) { bytes[input] & 15 } else { bytes[input] >> 4 };
        low | (row[16 + input] >> index & 1) << 4
    })
}

fn codes_q6(row: &[u8], index: usize) -> [u8; BLOCK_INPUTS] {
    let (half, part) = (index / 4, index % 4);
    let low = &row[half * 64 + part % 2 * 32..][..32];
    let high = &row[128 + half * 32..][..32];
    std::array::from_fn(|input| {
        let nibble = if part < 2 { low[input] & 15 } else { low[input] >> 4 };
        nibble | (high[input] >> (2 * part) & 3) << 4
    })
}

/// The weights of output `lane` of a tile, as f32: what its format says, and nothing lost.
pub(crate) fn unpack_row(format: Format, tile: &[u8], inputs: usize, lane: usize, out: &mut [f32]) {
    let half = |at: usize| f16::from_le_bytes([tile[at], tile[at + 1]]).to_f32();
    match format {
        Format::F32 => {
            for (out, place) in out.iter_mut().zip(tile.as_chunks::<64>().0) {
                *out = f32::from_le_bytes(std::array::from_fn(|byte| place[lane * 4 + byte]));
            }
            return;
        }
        Format::F16 | Format::Bf16 => {
            for (out, place) in out.iter_mut().zip(tile.as_chunks::<32>().0) {
                let bytes = [place[lane * 2], place[lane * 2 + 1]];
                *out = match format {
                    Format::F16 => f16::from_le_bytes(bytes).to_f32(),
                    _ => half::bf16::from_le_bytes(bytes).to_f32(),
                };
            }
            return;
        }
        _ => {}
    }
    let blocks = inputs / BLOCK_INPUTS;
    let mut base = 0;
    for first in (0..blocks).step_by(SUPER) {
        let count = SUPER.min(blocks - first);
        for index in 0..count {
            let out = &mut out[(first + index) * BLOCK_INPUTS..][..BLOCK_INPUTS];
            let codes = codes(format, &tile[base..], count, index, lane);
            for (input, (out, code)) in out.iter_mut().zip(codes).enumerate() {
                let code = f32::from(code);
                *out = match format {
                    Format::Q8_0 => half(base + index * 32 + lane * 2) * (code - 128.0),
                    Format::Q4_0 => half(base + index * 32 + lane * 2) * (code - 8.0),
                    Format::Q6K => {
                        let factor = tile[base + 64 + (2 * index + input / 16) * LANES + lane].cast_signed();
                        half(base + lane * 2) * f32::from(factor) * (code - 32.0)
                    }
                    _ => {
                        let factor = f32::from(tile[base + 64 + index * LANES + lane]);
                        let minimum = tile[base + 64 + SUPER * LANES + (index / 2 * LANES + lane) * 2 + index % 2];
                        half(base + lane * 2) * factor * code - half(base + 32 + lane * 2) * f32::from(minimum)
                    }
                };
            }
        }
        base += format.super_bytes(count);
    }
}

/// The codes of one block of one output.
pub(crate) fn codes(format: Format, tile: &[u8], count: usize, index: usize, lane: usize) -> [u8; BLOCK_INPUTS] {
    let (head, size) = match format {
        Format::Q8_0 => (count * 32, 512),
        Format::Q4_0 => (count * 32, 256),
        Format::Q4K => (K_HEAD, 256),
        Format::Q5K => (K_HEAD, 256 + 64),
        Format::Q6K => (Q6_HEAD, 256 + 128),
        Format::F32 | Format::F16 | Format::Bf16 => return [0; BLOCK_INPUTS],
    };
    let block = &tile[head + index * size..][..size];
    std::array::from_fn(|input| {
        // Of four inputs and 16 outputs, and of which output and input in them.
        let (group, at) = (input / 4, lane * 4 + input % 4);
        if format == Format::Q8_0 {
            return block[group * 64 + at];
        }
        let byte = block[group % 4 * 64 + at];
        let nibble = if group < 4 { byte & 15 } else { byte >> 4 };
        match format {
            Format::Q5K => nibble | (block[256 + group * 8 + at / 8] >> (at % 8) & 1) << 4,
            Format::Q6K => nibble | (block[256 + group / 4 * 64 + at] >> (group % 4 * 2) & 3) << 4,
            _ => nibble,
        }
    })
}
