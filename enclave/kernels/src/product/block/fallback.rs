//! What llama.cpp falls back to where rows are no multiples of 256: nibbles with a scale for 32, and a fifth bit, a minimum, or both.

use super::{QuantisedRows, nibbles, offset, prefetch};
use crate::vector::Vector;
use crate::{BLOCK_INPUTS, LANES};

/// Q5_0 has fifth bits, Q4_1 minima, Q5_1 both.
#[inline(always)]
pub(super) unsafe fn small<V: Vector, const FIFTH: bool, const MINIMA: bool, const M: usize, const N: usize>(
    weights: [*const u8; N],
    rows: QuantisedRows,
    count: usize,
    ahead: Option<[*const u8; N]>,
    part: &mut [[V; N]; M],
) {
    let heads = if MINIMA { 2 * HALVES } else { HALVES };
    // SAFETY: offsets within a super-block of `count` blocks, see `Format`.
    unsafe {
        for index in 0..count {
            prefetch::<V, N>(ahead, index, heads + 256 + if FIFTH { 64 } else { 0 });
            let mut sums = [[V::splat_int(0); N]; M];
            if !MINIMA {
                // Codes are from 0 to 31, and stand for -16 to 15.
                for row in 0..M {
                    sums[row] = [V::splat_int(-16 * rows.sum32(row, index)); N];
                }
            }
            let fifth = if FIFTH { Some(offset(weights, count * (heads + 256) + index * 64)) } else { None };
            let codes = offset(weights, count * heads + index * 256);
            nibbles::<V, M, N>(codes, fifth, &rows, index * BLOCK_INPUTS, &mut sums);
            for tile in 0..N {
                let scale = V::load_f16(weights[tile].add(index * HALVES));
                for row in 0..M {
                    part[row][tile] = V::floats(sums[row][tile]).fma(scale, part[row][tile]);
                }
            }
            if MINIMA {
                for tile in 0..N {
                    let minimum = V::load_f16(weights[tile].add((count + index) * HALVES));
                    for row in 0..M {
                        let sum = V::splat(rows.sum32(row, index) as f32);
                        part[row][tile] = minimum.fma(sum, part[row][tile]);
                    }
                }
            }
        }
    }
}

/// Bytes of a half for each output.
const HALVES: usize = 2 * LANES;
