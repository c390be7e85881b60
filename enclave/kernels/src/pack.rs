//! From the rows of a GGUF file into a tile.

use half::f16;

use crate::format::{Format, K_HEAD, Q6_HEAD};
use crate::layout::SUPER_INPUTS;
use crate::{BLOCK_INPUTS, LANES, SUPER};

/// Packs up to 16 rows of a file, of `inputs` weights each, as the outputs of a tile.
///
/// `rows` and the super-blocks of `tile` have the lengths that the format says; the tile holds zeros. One super-block after the other,
/// so that what is written stays in the first cache until all its rows are there.
pub(crate) fn pack_tile(format: Format, rows: &[u8], inputs: usize, tile: &mut [&mut [u8]]) {
    let in_file = |inputs: usize| inputs / format.inputs_of_block() * format.bytes_of_block();
    for (index, place) in tile.iter_mut().enumerate() {
        let first = index * SUPER_INPUTS;
        let count = SUPER_INPUTS.min(inputs - first);
        for (lane, row) in rows.chunks_exact(in_file(inputs)).enumerate() {
            super_block(format, &row[in_file(first)..][..in_file(count)], count / BLOCK_INPUTS, lane, place);
        }
    }
}

fn super_block(format: Format, row: &[u8], count: usize, lane: usize, tile: &mut [u8]) {
    match format {
        Format::F32 | Format::F16 | Format::Bf16 => {
            let size = format.bytes_of_block();
            for (place, element) in tile.chunks_exact_mut(size * LANES).zip(row.chunks_exact(size)) {
                place[lane * size..][..size].copy_from_slice(element);
            }
        }
        Format::Q8_0 => {
            for (index, block) in row.chunks_exact(34).enumerate() {
                scale(tile, index * 32, lane, &block[..2]);
                for (group, word) in words::<8>(&block[2..]).into_iter().enumerate() {
                    // i8 plus 128, as u8.
                    put(tile, count * 32 + index * 512 + group * VECTOR, lane, word ^ 0x8080_8080);
                }
            }
        }
        Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 => small_blocks(format, row, count, lane, tile),
        Format::Q4K | Format::Q5K => k_block(format, row, lane, tile),
        Format::Q6K => {
            scale(tile, 0, lane, &row[208..210]);
            for (part, scale) in row[192..208].iter().enumerate() {
                tile[64 + part * LANES + lane] = *scale;
            }
            for index in 0..SUPER {
                let (half, part) = (index / 4, index % 4);
                let codes = Q6_HEAD + index * (256 + 128);
                nibbles(tile, codes, lane, words(&row[half * 64 + part % 2 * 32..]), part >= 2);
                let high = words::<8>(&row[128 + half * 32..]).map(|word| word >> (2 * part) & 0x0303_0303);
                let (first, second) = high.split_at(4);
                for (place, groups) in [first, second].into_iter().enumerate() {
                    // Group g has its two bits in byte vector g / 4, at bit 2 (g % 4).
                    let word = groups.iter().rev().fold(0, |word, group| word << 2 | group);
                    put(tile, codes + 256 + place * VECTOR, lane, word);
                }
            }
        }
    }
}

/// Nibbles with a scale for 32, with or without a minimum and fifth bits.
fn small_blocks(format: Format, row: &[u8], count: usize, lane: usize, tile: &mut [u8]) {
    for (index, block) in row.chunks_exact(format.bytes_of_block()).enumerate() {
        let codes = format.head_bytes(count) + index * format.codes_bytes();
        let (head, bytes) = block.split_at(block.len() - 16);
        scale(tile, index * 32, lane, &head[..2]);
        if format.has_minima() {
            scale(tile, count * 32 + index * 32, lane, &head[2..4]);
        }
        // A file's byte holds inputs i and i + 16, which is groups g and g + 4.
        for (group, word) in words::<4>(bytes).into_iter().enumerate() {
            put(tile, codes + group * VECTOR, lane, word);
        }
        if format.has_fifth_bits() {
            let [bits] = words(&head[head.len() - 4..]);
            fifth(tile, codes + 256, lane, std::array::from_fn(|group| bits >> (4 * group)));
        }
    }
}

fn k_block(format: Format, row: &[u8], lane: usize, tile: &mut [u8]) {
    scale(tile, 0, lane, &row[..2]);
    scale(tile, 32, lane, &row[2..4]);
    let in_file = if format == Format::Q4K { 16 } else { 48 };
    for index in 0..SUPER {
        let codes = K_HEAD + index * format.codes_bytes();
        let (factor, minimum) = k_scale(&row[4..16], index);
        tile[64 + index * LANES + lane] = factor;
        // Minima of two blocks side by side: they are multiplied in pairs.
        tile[64 + SUPER * LANES + (index / 2 * LANES + lane) * 2 + index % 2] = minimum;
        nibbles(tile, codes, lane, words(&row[in_file + index / 2 * 32..]), index % 2 == 1);
        if format == Format::Q5K {
            // Bit 0 of each byte, next to each other: the product has them at bits 24 to 27, and no two others at the same place.
            let bits = words(&row[16..]).map(|word| (word >> index & 0x0101_0101).wrapping_mul(0x0102_0408) >> 24);
            fifth(tile, codes + 256, lane, bits);
        }
    }
}

fn scale(tile: &mut [u8], at: usize, lane: usize, half: &[u8]) {
    tile[at + lane * 2..][..2].copy_from_slice(half);
}

/// Four codes of one output.
fn put(tile: &mut [u8], vector: usize, lane: usize, word: u32) {
    tile.as_chunks_mut::<4>().0[vector / 4 + lane] = word.to_le_bytes();
}

/// The low or the high nibbles of 32 bytes: groups g and g + 4 share a vector.
fn nibbles(tile: &mut [u8], at: usize, lane: usize, words: [u32; 8], high: bool) {
    for group in 0..4 {
        let (low, high) = if high {
            (words[group] >> 4 & 0x0F0F_0F0F, words[group + 4] & 0xF0F0_F0F0)
        } else {
            (words[group] & 0x0F0F_0F0F, words[group + 4] << 4 & 0xF0F0_F0F0)
        };
        put(tile, at + group * VECTOR, lane, low | high);
    }
}

/// The fifth bits of a block: of each group the lowest four of a word. Masks of a group have a bit for each byte of its vector.
fn fifth(tile: &mut [u8], at: usize, lane: usize, groups: [u32; 8]) {
    for (group, bits) in groups.into_iter().enumerate() {
        tile[at + group * 8 + lane / 2] |= ((bits & 15) << (lane % 2 * 4)) as u8;
    }
}

fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let words = &bytes.as_chunks::<4>().0[..N];
    std::array::from_fn(|index| u32::from_le_bytes(words[index]))
}

/// The 6-bit scale and minimum of a block (`get_scale_min_k4` of `ggml-quants.c`).
pub(crate) fn k_scale(packed: &[u8], index: usize) -> (u8, u8) {
    if index < 4 {
        (packed[index] & 63, packed[index + 4] & 63)
    } else {
        ((packed[index + 4] & 15) | (packed[index - 4] >> 6 << 4), (packed[index + 4] >> 4) | (packed[index] >> 6 << 4))
    }
}

/// The weights of output `lane` of a super-block, as f32: what its format says, and nothing lost.
pub(crate) fn unpack_row(format: Format, tile: &[u8], lane: usize, out: &mut [f32]) {
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
    let count = out.len() / BLOCK_INPUTS;
    for (index, out) in out.chunks_exact_mut(BLOCK_INPUTS).enumerate() {
        let codes = codes(format, tile, count, index, lane);
        for (input, (out, code)) in out.iter_mut().zip(codes).enumerate() {
            let code = f32::from(code);
            *out = match format {
                Format::Q8_0 => half(index * 32 + lane * 2) * (code - 128.0),
                Format::Q4_0 => half(index * 32 + lane * 2) * (code - 8.0),
                Format::Q5_0 => half(index * 32 + lane * 2) * (code - 16.0),
                Format::Q4_1 | Format::Q5_1 => {
                    half(index * 32 + lane * 2) * code + half((count + index) * 32 + lane * 2)
                }
                Format::Q6K => {
                    let factor = tile[64 + (2 * index + input / 16) * LANES + lane].cast_signed();
                    half(lane * 2) * f32::from(factor) * (code - 32.0)
                }
                _ => {
                    let factor = f32::from(tile[64 + index * LANES + lane]);
                    let minimum = tile[64 + SUPER * LANES + (index / 2 * LANES + lane) * 2 + index % 2];
                    half(lane * 2) * factor * code - half(32 + lane * 2) * f32::from(minimum)
                }
            };
        }
    }
}

/// The codes of one block of one output.
pub(crate) fn codes(format: Format, tile: &[u8], count: usize, index: usize, lane: usize) -> [u8; BLOCK_INPUTS] {
    if !format.is_quantised() {
        return [0; BLOCK_INPUTS];
    }
    let block = &tile[format.head_bytes(count) + index * format.codes_bytes()..][..format.codes_bytes()];
    std::array::from_fn(|input| {
        // Of four inputs and 16 outputs, and of which output and input in them.
        let (group, at) = (input / 4, lane * 4 + input % 4);
        if format == Format::Q8_0 {
            return block[group * VECTOR + at];
        }
        let byte = block[group % 4 * VECTOR + at];
        let nibble = if group < 4 { byte & 15 } else { byte >> 4 };
        if format.has_fifth_bits() {
            nibble | (block[256 + group * 8 + at / 8] >> (at % 8) & 1) << 4
        } else if format == Format::Q6K {
            nibble | (block[256 + group / 4 * VECTOR + at] >> (group % 4 * 2) & 3) << 4
        } else {
            nibble
        }
    })
}

/// Bytes of a group: four codes of each output.
const VECTOR: usize = 4 * LANES;
