//! A few rows times the tiles of a band: what a step of a few answers spends its time in. Weights are read once, from memory, in the
//! order in which they lie.

use std::ops::Range;

use zeroize::Zeroize;

use super::rows::QuantisedRows;
use super::{BF16, F16, F32, Job, Place, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use crate::format::{Format, K_HEAD, Q6_HEAD};
use crate::layout::{BAND, SUPER_INPUTS};
use crate::vector::Vector;
use crate::{BLOCK_INPUTS, Family, LANES, SUPER};

/// `M` rows times some tiles of a band.
///
/// # Safety
/// `place` must be within `job`, with `M` rows, and within a band.
#[inline(always)]
pub(super) unsafe fn block<V: Vector, const FORMAT: u8, const M: usize>(job: &Job, place: Place) {
    // SAFETY: all offsets are those of the format, within tiles and rows that the job has.
    unsafe {
        let mut results = [[V::splat(0.0); M]; BAND];
        for index in 0..job.layout.supers() {
            let inputs = job.layout.inputs_of(index);
            let mut tile = job.weights.add(job.layout.offset(place.tile, index));
            for result in results.iter_mut().take(place.tiles) {
                if FORMAT <= BF16 {
                    let rows = job.floats.add(place.row * job.layout.inputs + index * SUPER_INPUTS);
                    floats::<V, FORMAT, M>(tile, rows, job.layout.inputs, inputs, place.ahead, result);
                } else {
                    let count = inputs / BLOCK_INPUTS;
                    let rows = QuantisedRows::of(job, index, count, place.row);
                    // Nearly always it is the same number: the compiler then knows how far apart rows lie.
                    let part = if is_whole(FORMAT) || count == SUPER {
                        quantised::<V, FORMAT, M>(tile, rows.with_blocks(SUPER), place.ahead)
                    } else {
                        quantised::<V, FORMAT, M>(tile, rows, place.ahead)
                    };
                    for row in 0..M {
                        result[row] = part[row].fma(V::splat(rows.scale(row)), result[row]);
                    }
                }
                tile = tile.add(job.layout.bytes_of(index));
            }
        }
        for (tile, result) in results.iter().take(place.tiles).enumerate() {
            let column = (place.tile + tile) * LANES;
            for row in 0..M {
                let out = job.out.add((place.row + row) * job.outputs + column);
                if column + LANES <= job.outputs {
                    result[row].store(out);
                } else {
                    let mut last = [0.0_f32; LANES];
                    result[row].store(last.as_mut_ptr());
                    std::ptr::copy_nonoverlapping(last.as_ptr(), out, job.outputs - column);
                    last.zeroize();
                }
            }
        }
        // Prompt and answer can be told from them.
        for result in results.iter_mut().take(place.tiles).flatten() {
            std::ptr::write_volatile(result, V::splat(0.0));
        }
    }
}

/// Whether all super-blocks have all their blocks.
pub(super) const fn is_whole(format: u8) -> bool {
    matches!(format, Q4K | Q5K | Q6K)
}

/// A super-block of as many blocks as the rows have.
#[inline(always)]
unsafe fn quantised<V: Vector, const FORMAT: u8, const M: usize>(
    tile: *const u8,
    rows: QuantisedRows,
    ahead: Ahead,
) -> [V; M] {
    // SAFETY: as the caller's.
    unsafe {
        match FORMAT {
            Q8_0 => q8_0::<V, M>(tile, rows, ahead),
            Q4_0 => small::<V, Q4_0, M>(tile, rows, ahead),
            Q4_1 => small::<V, Q4_1, M>(tile, rows, ahead),
            Q5_0 => small::<V, Q5_0, M>(tile, rows, ahead),
            Q5_1 => small::<V, Q5_1, M>(tile, rows, ahead),
            Q4K => k::<V, false, M>(tile, rows, ahead),
            Q5K => k::<V, true, M>(tile, rows, ahead),
            _ => q6::<V, M>(tile, rows, ahead),
        }
    }
}

#[inline(always)]
unsafe fn q8_0<V: Vector, const M: usize>(tile: *const u8, rows: QuantisedRows, ahead: Ahead) -> [V; M] {
    // SAFETY: offsets within a super-block of `count` blocks, see `Format`.
    unsafe {
        let (count, mut part) = (rows.blocks, [V::splat(0.0); M]);
        for index in 0..count {
            let codes = tile.add(count * 32 + index * 512);
            if ahead.page {
                V::prefetch(codes.wrapping_add(PAGE));
            }
            let mut sums = [V::splat_int(0); M];
            for row in 0..M {
                sums[row] = V::full_start(rows.sum32(row, index));
            }
            for group in 0..8 {
                let at = codes.add(group * 64);
                V::prefetch_near(at.wrapping_add(ahead.near));
                let bytes = V::load_bytes(at);
                for row in 0..M {
                    sums[row] = V::dot_full(sums[row], bytes, rows.four(row, index * BLOCK_INPUTS + group * 4));
                }
            }
            scaled(V::load_f16(tile.add(index * 32)), sums, &mut part);
        }
        part
    }
}

/// Nibbles with a scale for 32; in Q5_0 and Q5_1 with fifth bits, in Q4_1 and Q5_1 with minima.
#[inline(always)]
unsafe fn small<V: Vector, const FORMAT: u8, const M: usize>(
    tile: *const u8,
    rows: QuantisedRows,
    ahead: Ahead,
) -> [V; M] {
    // SAFETY: offsets within a super-block of `count` blocks, see `Format`.
    unsafe {
        let (has_fifth, has_minima) = (FORMAT == Q5_0 || FORMAT == Q5_1, FORMAT == Q4_1 || FORMAT == Q5_1);
        let count = rows.blocks;
        let (head, size) = (count * if has_minima { 64 } else { 32 }, if has_fifth { 256 + 64 } else { 256 });
        let mut part = [V::splat(0.0); M];
        for index in 0..count {
            let codes = tile.add(head + index * size);
            let mut sums = [V::splat_int(0); M];
            for row in 0..M {
                sums[row] = V::splat_int(-offset(FORMAT) * rows.sum32(row, index));
            }
            let fifth = if has_fifth { Some(codes.add(256)) } else { None };
            nibbles::<V, M>(codes, fifth, &rows, index * BLOCK_INPUTS, ahead, &mut sums);
            scaled(V::load_f16(tile.add(index * 32)), sums, &mut part);
            if has_minima {
                let minimum = V::load_f16(tile.add((count + index) * 32));
                for row in 0..M {
                    part[row] = minimum.fma(V::splat(rows.sum32(row, index) as f32), part[row]);
                }
            }
        }
        part
    }
}

/// What a code of nibbles, with or without a fifth bit, says more than it means.
pub(super) const fn offset(format: u8) -> i32 {
    match format {
        Q4_0 => 8,
        Q5_0 => 16,
        _ => 0,
    }
}

/// Q4_K, and Q5_K if there are fifth bits.
///
/// The sum of a super-block of Q4_K is a whole number that is rounded once: those of its halves are exact, as 4 x 32 x 15 x 127 x 63 is
/// less than 2^24. So it can be computed as a whole number, too.
#[inline(always)]
unsafe fn k<V: Vector, const FIFTH: bool, const M: usize>(
    tile: *const u8,
    rows: QuantisedRows,
    ahead: Ahead,
) -> [V; M] {
    // SAFETY: as `k_blocks`.
    unsafe {
        let mut part;
        if FIFTH {
            part = k_blocks::<V, FIFTH, M>(tile, &rows, 0..SUPER, ahead);
        } else {
            part = k_blocks::<V, FIFTH, M>(tile, &rows, 0..SUPER / 2, ahead);
            let second = k_blocks::<V, FIFTH, M>(tile, &rows, SUPER / 2..SUPER, ahead);
            for row in 0..M {
                part[row] = part[row].add(second[row]);
            }
        }
        minima(tile, &rows, &mut part);
        part
    }
}

#[inline(always)]
unsafe fn k_blocks<V: Vector, const FIFTH: bool, const M: usize>(
    tile: *const u8,
    rows: &QuantisedRows,
    blocks: Range<usize>,
    ahead: Ahead,
) -> [V; M] {
    // SAFETY: offsets within a super-block, see `Format`.
    unsafe {
        let size = if FIFTH { 256 + 64 } else { 256 };
        let mut part = [V::splat(0.0); M];
        for index in blocks {
            let codes = tile.add(K_HEAD + index * size);
            let mut sums = [V::splat_int(0); M];
            let fifth = if FIFTH { Some(codes.add(256)) } else { None };
            nibbles::<V, M>(codes, fifth, rows, index * BLOCK_INPUTS, ahead, &mut sums);
            scaled(V::floats(V::load_u8(tile.add(64 + index * LANES))), sums, &mut part);
        }
        part
    }
}

/// The sum of a super-block of Q6_K is a whole number that is rounded once, so that it can be computed in any order: it is at most
/// 256 x 32 x 127 x 128.
#[inline(always)]
unsafe fn q6<V: Vector, const M: usize>(tile: *const u8, rows: QuantisedRows, ahead: Ahead) -> [V; M] {
    // SAFETY: offsets within a super-block, see `Format`.
    unsafe {
        let mut whole = [V::splat_int(0); M];
        for index in 0..SUPER {
            let codes = tile.add(Q6_HEAD + index * (256 + 128));
            let (mut first, mut second) = ([V::splat_int(0); M], [V::splat_int(0); M]);
            for row in 0..M {
                first[row] = V::splat_int(rows.start16(row, 2 * index));
                second[row] = V::splat_int(rows.start16(row, 2 * index + 1));
            }
            let input = index * BLOCK_INPUTS;
            for group in 0..4 {
                q6_group::<V, M>(codes, group, &rows, input, ahead, &mut first, &mut second);
            }
            let scales = tile.add(64 + 2 * index * LANES);
            let (of_first, of_second) = (V::load_i8(scales), V::load_i8(scales.add(LANES)));
            for row in 0..M {
                whole[row] = V::plus_times(whole[row], first[row], of_first);
                whole[row] = V::plus_times(whole[row], second[row], of_second);
            }
        }
        let (scale, mut part) = (V::load_f16(tile), [V::splat(0.0); M]);
        for row in 0..M {
            part[row] = V::floats(whole[row]).mul(scale);
        }
        part
    }
}

#[inline(always)]
unsafe fn q6_group<V: Vector, const M: usize>(
    codes: *const u8,
    group: usize,
    rows: &QuantisedRows,
    input: usize,
    ahead: Ahead,
    first: &mut [V::Ints; M],
    second: &mut [V::Ints; M],
) {
    // SAFETY: a block has 384 bytes of codes.
    unsafe {
        V::prefetch_near(codes.wrapping_add(ahead.near + group * 64));
        if group % 2 == 1 {
            V::prefetch_near(codes.wrapping_add(ahead.near + 256 + group / 2 * 64));
        }
        let (low, high) = six_bits::<V>(codes, group);
        for row in 0..M {
            first[row] = V::dot(first[row], low, rows.four(row, input + group * 4));
            second[row] = V::dot(second[row], high, rows.four(row, input + 16 + group * 4));
        }
    }
}

/// The sums of one block of nibbles: the low ones are groups 0 to 3, the high ones 4 to 7.
#[inline(always)]
unsafe fn nibbles<V: Vector, const M: usize>(
    codes: *const u8,
    fifth: Option<*const u8>,
    rows: &QuantisedRows,
    input: usize,
    ahead: Ahead,
    sums: &mut [V::Ints; M],
) {
    // SAFETY: a block has 256 bytes of nibbles, and 64 of fifth bits.
    unsafe {
        for group in 0..4 {
            let at = codes.add(group * 64);
            V::prefetch_near(at.wrapping_add(ahead.near));
            let both = V::load_bytes(at);
            let (mut low, mut high) = (V::low_nibbles(both), V::high_nibbles(both));
            if let Some(fifth) = fifth {
                low = fifth_bits::<V>(low, fifth, group);
                high = fifth_bits::<V>(high, fifth, group + 4);
            }
            for row in 0..M {
                sums[row] = V::dot(sums[row], low, rows.four(row, input + group * 4));
                sums[row] = V::dot(sums[row], high, rows.four(row, input + 16 + group * 4));
            }
        }
    }
}

#[inline(always)]
unsafe fn scaled<V: Vector, const M: usize>(scale: V, sums: [V::Ints; M], part: &mut [V; M]) {
    for row in 0..M {
        // SAFETY: the family's instructions are enabled, as in all that calls this.
        part[row] = unsafe { V::floats(sums[row]).fma(scale, part[row]) };
    }
}

/// What is left to do with a super-block of Q4_K or Q5_K: its scale, and its minima times the sums of the activations.
#[inline(always)]
unsafe fn minima<V: Vector, const M: usize>(tile: *const u8, rows: &QuantisedRows, part: &mut [V; M]) {
    // SAFETY: offsets within a super-block, see `Format`.
    unsafe {
        let mut minima = [V::splat_int(0); M];
        for pair in 0..SUPER / 2 {
            let at = tile.add(64 + SUPER * LANES + pair * 2 * LANES);
            for row in 0..M {
                minima[row] = V::dot_pairs(minima[row], at, rows.sum_pair(row, 2 * pair));
            }
        }
        let (scale, minimum) = (V::load_f16(tile), V::load_f16(tile.add(32)));
        for row in 0..M {
            part[row] = V::floats(minima[row]).fnma(minimum, part[row].mul(scale));
        }
    }
}

/// Adds to the nibbles of a group the fifth bits, of a block that has 8 masks.
///
/// # Safety
/// `masks` must be those of a block.
#[inline(always)]
pub(super) unsafe fn fifth_bits<V: Vector>(nibbles: V::Bytes, masks: *const u8, group: usize) -> V::Bytes {
    // SAFETY: as the caller's.
    unsafe { V::fifth_bits(nibbles, masks.add(group * 8).cast::<u64>().read_unaligned()) }
}

/// The codes of groups `group`, of four, and `group + 4` of a block of Q6_K.
///
/// # Safety
/// `codes` must be the 384 bytes of the block.
#[inline(always)]
pub(super) unsafe fn six_bits<V: Vector>(codes: *const u8, group: usize) -> (V::Bytes, V::Bytes) {
    // SAFETY: as the caller's.
    unsafe {
        let both = V::load_bytes(codes.add(group * 64));
        let (first, second) = (V::low_nibbles(both), V::high_nibbles(both));
        let (of_first, of_second) = (V::load_bytes(codes.add(256)), V::load_bytes(codes.add(320)));
        match group {
            0 => (V::high_bits::<0>(first, of_first), V::high_bits::<0>(second, of_second)),
            1 => (V::high_bits::<1>(first, of_first), V::high_bits::<1>(second, of_second)),
            2 => (V::high_bits::<2>(first, of_first), V::high_bits::<2>(second, of_second)),
            _ => (V::high_bits::<3>(first, of_first), V::high_bits::<3>(second, of_second)),
        }
    }
}

#[inline(always)]
unsafe fn floats<V: Vector, const FORMAT: u8, const M: usize>(
    tile: *const u8,
    rows: *const f32,
    stride: usize,
    inputs: usize,
    ahead: Ahead,
    result: &mut [V; M],
) {
    // SAFETY: a super-block has 16 weights for each input, a row of activations one; rows are `stride` apart.
    unsafe {
        let mut sums = *result;
        let size = LANES * if FORMAT == F32 { 4 } else { 2 };
        for input in 0..inputs {
            let at = tile.add(input * size);
            if size == 64 || input % 2 == 0 {
                V::prefetch_near(at.wrapping_add(ahead.near));
            }
            let lanes = match FORMAT {
                F32 => V::load(at.cast()),
                F16 => V::load_f16(at),
                _ => V::load_bf16(at),
            };
            for row in 0..M {
                sums[row] = lanes.fma(V::splat(*rows.add(row * stride + input)), sums[row]);
            }
        }
        *result = sums;
    }
}

/// How far from the weights that are read others are asked for.
///
/// Few rows are as fast as memory, which is fastest where the processor's own prefetching follows a stream: it only has to be helped
/// over the ends of pages, and is disturbed by more. More rows leave it time to forget the stream. With codes of 8 bits memory is the
/// limit for more rows, too: there a line of each block is asked for a page ahead, which has the processor follow the stream of the
/// next page in time.
///
/// So it is on processors of AMD. Those of Intel, which are the ones with AMX, want to be asked far ahead always.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// Bytes to the line that is asked for with each that is read.
    near: usize,
    /// Whether one of each block is asked for a page ahead.
    page: bool,
}

impl Ahead {
    pub(super) fn of(family: Family, format: Format, rows: usize) -> Self {
        let is_intel = family == Family::Avx512Amx;
        let near = match rows {
            _ if is_intel => FAR,
            1 => 128,
            _ if rows <= FEW || format == Format::Q8_0 => 256,
            _ => FAR,
        };
        Self { near, page: !is_intel && rows > FEW && format == Format::Q8_0 }
    }
}

const FAR: usize = 3072;
/// Rows that are multiplied faster than memory gives weights.
const FEW: usize = 4;
/// Of memory: what the processor's own prefetching does not cross.
const PAGE: usize = 4096;
