//! A few rows times one or two tiles: what the processor spends its time in.

mod fallback;

use super::{BF16, F16, F32, Job, Place, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q8_0};
use crate::format::{Format, K_HEAD, Q6_HEAD};
use crate::vector::Vector;
use crate::{BLOCK_INPUTS, LANES, SUPER};

/// `M` rows times `N` tiles.
///
/// # Safety
/// `place` must be within `job`, with `M` rows and `N` tiles.
#[inline(always)]
pub(super) unsafe fn block<V: Vector, const FORMAT: u8, const M: usize, const N: usize>(job: &Job, place: Place) {
    // SAFETY: all offsets are those of the format, within tiles and rows that the job has.
    unsafe {
        let mut weights = [job.weights; N];
        for (index, weights) in weights.iter_mut().enumerate() {
            *weights = job.weights.add((place.tile + index) * job.tile_bytes);
        }
        let mut result = [[V::splat(0.0); N]; M];
        if FORMAT <= BF16 {
            floats::<V, FORMAT, M, N>(job, place, weights, &mut result);
        } else {
            let blocks = job.inputs / BLOCK_INPUTS;
            let supers = blocks.div_ceil(SUPER);
            let mut rows = QuantisedRows {
                codes: job.codes.add(place.row * job.inputs),
                codes_stride: job.inputs,
                sums16: job.sums16.add(place.row * blocks * 2),
                sums32: job.sums32.add(place.row * blocks),
                blocks,
            };
            let mut done = 0;
            for index in 0..supers {
                let count = SUPER.min(blocks - index * SUPER);
                let mut part = [[V::splat(0.0); N]; M];
                let ahead = ahead(job, place, weights, done);
                let size = match FORMAT {
                    Q8_0 => {
                        q8_0::<V, M, N>(weights, rows, count, ahead, &mut part);
                        Format::Q8_0.super_bytes(count)
                    }
                    Q4_0 => {
                        q4_0::<V, M, N>(weights, rows, count, ahead, &mut part);
                        Format::Q4_0.super_bytes(count)
                    }
                    Q4_1 => {
                        fallback::small::<V, false, true, M, N>(weights, rows, count, ahead, &mut part);
                        Format::Q4_1.super_bytes(count)
                    }
                    Q5_0 => {
                        fallback::small::<V, true, false, M, N>(weights, rows, count, ahead, &mut part);
                        Format::Q5_0.super_bytes(count)
                    }
                    Q5_1 => {
                        fallback::small::<V, true, true, M, N>(weights, rows, count, ahead, &mut part);
                        Format::Q5_1.super_bytes(count)
                    }
                    Q4K => {
                        k::<V, false, M, N>(weights, rows, ahead, &mut part);
                        Format::Q4K.super_bytes(SUPER)
                    }
                    Q5K => {
                        k::<V, true, M, N>(weights, rows, ahead, &mut part);
                        Format::Q5K.super_bytes(SUPER)
                    }
                    _ => {
                        q6::<V, M, N>(weights, rows, ahead, &mut part);
                        Format::Q6K.super_bytes(SUPER)
                    }
                };
                for row in 0..M {
                    let scale = V::splat(*job.scales.add((place.row + row) * supers + index));
                    for tile in 0..N {
                        result[row][tile] = part[row][tile].fma(scale, result[row][tile]);
                    }
                }
                for weights in &mut weights {
                    *weights = weights.add(size);
                }
                done += size;
                rows.codes = rows.codes.add(count * BLOCK_INPUTS);
                rows.sums16 = rows.sums16.add(count * 2);
                rows.sums32 = rows.sums32.add(count);
            }
        }
        for row in 0..M {
            for tile in 0..N {
                let column = (place.tile + tile) * LANES;
                let out = job.out.add((place.row + row) * job.outputs + column);
                if column + LANES <= job.outputs {
                    result[row][tile].store(out);
                } else {
                    let mut last = [0.0_f32; LANES];
                    result[row][tile].store(last.as_mut_ptr());
                    std::ptr::copy_nonoverlapping(last.as_ptr(), out, job.outputs - column);
                }
            }
        }
    }
}

/// The rows of a block at one super-block.
#[derive(Clone, Copy)]
struct QuantisedRows {
    codes: *const i8,
    codes_stride: usize,
    sums16: *const i16,
    sums32: *const i16,
    blocks: usize,
}

impl QuantisedRows {
    /// Four activations.
    #[inline(always)]
    unsafe fn four(&self, row: usize, input: usize) -> i32 {
        // SAFETY: the caller's row has so many activations.
        unsafe { self.codes.add(row * self.codes_stride + input).cast::<i32>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn sum16(&self, row: usize, half: usize) -> i32 {
        // SAFETY: the caller's row has so many halves of blocks.
        i32::from(unsafe { *self.sums16.add(row * self.blocks * 2 + half) })
    }

    #[inline(always)]
    unsafe fn sum32(&self, row: usize, block: usize) -> i32 {
        // SAFETY: the caller's row has so many blocks.
        i32::from(unsafe { *self.sums32.add(row * self.blocks + block) })
    }

    /// The sums of two blocks, as two i16.
    #[inline(always)]
    unsafe fn sum_pair(&self, row: usize, block: usize) -> i32 {
        // SAFETY: the caller's row has so many blocks, and one more.
        unsafe { self.sums32.add(row * self.blocks + block).cast::<i32>().read_unaligned() }
    }
}

/// What will be read after the next [`AHEAD`] bytes, if it comes from memory. Behind the end of a tile lies the one beside it, which
/// is read at the same time: the next one in turn is `N` further.
#[inline(always)]
fn ahead<const N: usize>(job: &Job, place: Place, weights: [*const u8; N], done: usize) -> Option<[*const u8; N]> {
    if !place.prefetch {
        return None;
    }
    let skip = if done + AHEAD < job.tile_bytes { 0 } else { (N - 1) * job.tile_bytes };
    let mut ahead = weights;
    for at in &mut ahead {
        *at = at.wrapping_add(AHEAD + skip);
    }
    Some(ahead)
}

/// Asks for part `index` of what lies at each of the pointers; a part has `bytes`.
#[inline(always)]
unsafe fn prefetch<V: Vector, const N: usize>(ahead: Option<[*const u8; N]>, index: usize, bytes: usize) {
    let Some(ahead) = ahead else { return };
    for at in ahead {
        for line in (0..bytes).step_by(64) {
            // SAFETY: a prefetch may ask for any address.
            unsafe { V::prefetch(at.wrapping_add(index * bytes + line)) };
        }
    }
}

#[inline(always)]
unsafe fn q8_0<V: Vector, const M: usize, const N: usize>(
    weights: [*const u8; N],
    rows: QuantisedRows,
    count: usize,
    ahead: Option<[*const u8; N]>,
    part: &mut [[V; N]; M],
) {
    // SAFETY: offsets within a super-block of `count` blocks, see `Format`.
    unsafe {
        for index in 0..count {
            let codes = count * 32 + index * 512;
            prefetch::<V, N>(ahead, index, 32 + 512);
            let mut sums = [[V::splat_int(0); N]; M];
            for row in 0..M {
                sums[row] = [V::full_start(rows.sum32(row, index)); N];
            }
            for group in 0..8 {
                let mut bytes = [V::load_bytes(weights[0].add(codes + group * 64)); N];
                for tile in 1..N {
                    bytes[tile] = V::load_bytes(weights[tile].add(codes + group * 64));
                }
                for row in 0..M {
                    let four = rows.four(row, index * BLOCK_INPUTS + group * 4);
                    for tile in 0..N {
                        sums[row][tile] = V::dot_full(sums[row][tile], bytes[tile], four);
                    }
                }
            }
            for tile in 0..N {
                let scale = V::load_f16(weights[tile].add(index * 32));
                for row in 0..M {
                    part[row][tile] = V::floats(sums[row][tile]).fma(scale, part[row][tile]);
                }
            }
        }
    }
}

/// The sums of one block of nibbles: the low ones are groups 0 to 3, the high ones 4 to 7.
#[inline(always)]
unsafe fn nibbles<V: Vector, const M: usize, const N: usize>(
    codes: [*const u8; N],
    fifth: Option<[*const u8; N]>,
    rows: &QuantisedRows,
    input: usize,
    sums: &mut [[V::Ints; N]; M],
) {
    // SAFETY: a block has 256 bytes of nibbles, and 64 of fifth bits.
    unsafe {
        for group in 0..4 {
            let both = V::load_bytes(codes[0].add(group * 64));
            let (mut low, mut high) = ([V::low_nibbles(both); N], [V::high_nibbles(both); N]);
            for tile in 1..N {
                let both = V::load_bytes(codes[tile].add(group * 64));
                (low[tile], high[tile]) = (V::low_nibbles(both), V::high_nibbles(both));
            }
            if let Some(fifth) = fifth {
                for tile in 0..N {
                    let mask = |group: usize| fifth[tile].add(group * 8).cast::<u64>().read_unaligned();
                    low[tile] = V::fifth_bits(low[tile], mask(group));
                    high[tile] = V::fifth_bits(high[tile], mask(group + 4));
                }
            }
            for row in 0..M {
                let four = rows.four(row, input + group * 4);
                for tile in 0..N {
                    sums[row][tile] = V::dot(sums[row][tile], low[tile], four);
                }
                let four = rows.four(row, input + 16 + group * 4);
                for tile in 0..N {
                    sums[row][tile] = V::dot(sums[row][tile], high[tile], four);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn q4_0<V: Vector, const M: usize, const N: usize>(
    weights: [*const u8; N],
    rows: QuantisedRows,
    count: usize,
    ahead: Option<[*const u8; N]>,
    part: &mut [[V; N]; M],
) {
    // SAFETY: offsets within a super-block of `count` blocks, see `Format`.
    unsafe {
        for index in 0..count {
            let at = count * 32 + index * 256;
            prefetch::<V, N>(ahead, index, 32 + 256);
            let mut sums = [[V::splat_int(0); N]; M];
            for row in 0..M {
                sums[row] = [V::splat_int(-8 * rows.sum32(row, index)); N];
            }
            nibbles::<V, M, N>(offset(weights, at), None, &rows, index * BLOCK_INPUTS, &mut sums);
            for tile in 0..N {
                let scale = V::load_f16(weights[tile].add(index * 32));
                for row in 0..M {
                    part[row][tile] = V::floats(sums[row][tile]).fma(scale, part[row][tile]);
                }
            }
        }
    }
}

/// Q4_K, and Q5_K if there are fifth bits.
#[inline(always)]
unsafe fn k<V: Vector, const FIFTH: bool, const M: usize, const N: usize>(
    weights: [*const u8; N],
    rows: QuantisedRows,
    ahead: Option<[*const u8; N]>,
    part: &mut [[V; N]; M],
) {
    // SAFETY: offsets within a super-block, see `Format`.
    unsafe {
        let mut minima = [[V::splat_int(0); N]; M];
        for index in 0..SUPER {
            let at = K_HEAD + index * 256;
            prefetch::<V, N>(
                ahead,
                index,
                if FIFTH { Format::Q5K.super_bytes(SUPER) / SUPER } else { Format::Q4K.super_bytes(SUPER) / SUPER },
            );
            let mut sums = [[V::splat_int(0); N]; M];
            let fifth = if FIFTH { Some(offset(weights, K_HEAD + SUPER * 256 + index * 64)) } else { None };
            nibbles::<V, M, N>(offset(weights, at), fifth, &rows, index * BLOCK_INPUTS, &mut sums);
            for tile in 0..N {
                let scale = V::floats(V::load_u8(weights[tile].add(64 + index * LANES)));
                for row in 0..M {
                    part[row][tile] = V::floats(sums[row][tile]).fma(scale, part[row][tile]);
                }
            }
            if index % 2 == 0 {
                for row in 0..M {
                    let pair = rows.sum_pair(row, index);
                    for tile in 0..N {
                        let at = weights[tile].add(64 + SUPER * LANES + index * LANES);
                        minima[row][tile] = V::dot_pairs(minima[row][tile], at, pair);
                    }
                }
            }
        }
        for tile in 0..N {
            let (scale, minimum) = (V::load_f16(weights[tile]), V::load_f16(weights[tile].add(32)));
            for row in 0..M {
                part[row][tile] = V::floats(minima[row][tile]).fnma(minimum, part[row][tile].mul(scale));
            }
        }
    }
}

#[inline(always)]
unsafe fn q6<V: Vector, const M: usize, const N: usize>(
    weights: [*const u8; N],
    rows: QuantisedRows,
    ahead: Option<[*const u8; N]>,
    part: &mut [[V; N]; M],
) {
    // SAFETY: offsets within a super-block, see `Format`.
    unsafe {
        for index in 0..SUPER {
            let at = Q6_HEAD + index * 256;
            prefetch::<V, N>(ahead, index, Format::Q6K.super_bytes(SUPER) / SUPER);
            let (mut first, mut second) = ([[V::splat_int(0); N]; M], [[V::splat_int(0); N]; M]);
            for row in 0..M {
                first[row] = [V::splat_int(-32 * rows.sum16(row, 2 * index)); N];
                second[row] = [V::splat_int(-32 * rows.sum16(row, 2 * index + 1)); N];
            }
            let high = Q6_HEAD + SUPER * 256 + index * 128;
            let input = index * BLOCK_INPUTS;
            q6_group::<V, 0, M, N>(weights, at, high, &rows, input, &mut first, &mut second);
            q6_group::<V, 1, M, N>(weights, at, high, &rows, input, &mut first, &mut second);
            q6_group::<V, 2, M, N>(weights, at, high, &rows, input, &mut first, &mut second);
            q6_group::<V, 3, M, N>(weights, at, high, &rows, input, &mut first, &mut second);
            for tile in 0..N {
                let scale = V::floats(V::load_i8(weights[tile].add(64 + 2 * index * LANES)));
                for row in 0..M {
                    part[row][tile] = V::floats(first[row][tile]).fma(scale, part[row][tile]);
                }
                let scale = V::floats(V::load_i8(weights[tile].add(64 + (2 * index + 1) * LANES)));
                for row in 0..M {
                    part[row][tile] = V::floats(second[row][tile]).fma(scale, part[row][tile]);
                }
            }
        }
        for tile in 0..N {
            let scale = V::load_f16(weights[tile]);
            for row in 0..M {
                part[row][tile] = part[row][tile].mul(scale);
            }
        }
    }
}

#[inline(always)]
unsafe fn q6_group<V: Vector, const GROUP: u32, const M: usize, const N: usize>(
    weights: [*const u8; N],
    low: usize,
    high: usize,
    rows: &QuantisedRows,
    input: usize,
    first: &mut [[V::Ints; N]; M],
    second: &mut [[V::Ints; N]; M],
) {
    // SAFETY: a block has 256 bytes of nibbles and 128 of high bits.
    unsafe {
        let group = GROUP as usize;
        let mut low_codes = [V::load_bytes(weights[0]); N];
        let mut high_codes = low_codes;
        for tile in 0..N {
            let both = V::load_bytes(weights[tile].add(low + group * 64));
            let (bits, more) = (V::load_bytes(weights[tile].add(high)), V::load_bytes(weights[tile].add(high + 64)));
            low_codes[tile] = V::high_bits::<GROUP>(V::low_nibbles(both), bits);
            high_codes[tile] = V::high_bits::<GROUP>(V::high_nibbles(both), more);
        }
        for row in 0..M {
            let four = rows.four(row, input + group * 4);
            for tile in 0..N {
                first[row][tile] = V::dot(first[row][tile], low_codes[tile], four);
            }
            let four = rows.four(row, input + 16 + group * 4);
            for tile in 0..N {
                second[row][tile] = V::dot(second[row][tile], high_codes[tile], four);
            }
        }
    }
}

/// Each pointer, so many bytes further.
#[inline(always)]
unsafe fn offset<const N: usize>(mut pointers: [*const u8; N], bytes: usize) -> [*const u8; N] {
    for pointer in &mut pointers {
        // SAFETY: the caller stays within the tiles.
        *pointer = unsafe { pointer.add(bytes) };
    }
    pointers
}

#[inline(always)]
unsafe fn floats<V: Vector, const FORMAT: u8, const M: usize, const N: usize>(
    job: &Job,
    place: Place,
    weights: [*const u8; N],
    result: &mut [[V; N]; M],
) {
    // SAFETY: a tile has 16 weights for each input, a row of activations one.
    unsafe {
        let rows = job.floats.add(place.row * job.inputs);
        let size = LANES * if FORMAT == F32 { 4 } else { 2 };
        for input in 0..job.inputs {
            if input % 2 == 0 {
                let at = offset(weights, input * size);
                prefetch::<V, N>(ahead(job, place, at, input * size), 0, 2 * size);
            }
            let mut lanes = [V::splat(0.0); N];
            for tile in 0..N {
                let at = weights[tile].add(input * size);
                lanes[tile] = match FORMAT {
                    F32 => V::load(at.cast()),
                    F16 => V::load_f16(at),
                    _ => V::load_bf16(at),
                };
            }
            for row in 0..M {
                let activation = V::splat(*rows.add(row * job.inputs + input));
                for tile in 0..N {
                    result[row][tile] = lanes[tile].fma(activation, result[row][tile]);
                }
            }
        }
    }
}

/// Bytes from where a block is read to where it is asked for: further than memory is slow, nearer than the first cache is large.
const AHEAD: usize = 4096;
