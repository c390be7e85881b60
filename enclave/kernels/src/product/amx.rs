//! Many rows times one or two tiles of weights with the tile registers of AMX, which multiply 16 rows with 16 outputs at once.
//!
//! Reading sums from those registers takes as long as computing them. So the whole numbers that the scales of Q4_K and Q6_K are become
//! part of the weights, in two planes of bytes: sums are then of all 256 inputs of a super-block, where others are of the 32 that share
//! a scale.

use std::arch::x86_64::*;

use super::block::{offset, six_bits};
use super::wide::{self, Area, Group, Multiply, SUPER_CODES, Scratch, Unpacked, unpack};
use super::{Job, Q4_1, Q4K, Q5_1, Q5K, Q6K, Q8_0};
use crate::amx::{Tiles, load, multiply, store, zero};
use crate::avx512::Avx512 as V;
use crate::format::{K_HEAD, Q6_HEAD};
use crate::vector::Vector;
use crate::{BLOCK_INPUTS, LANES, SUPER};

/// All rows of an area times `N` tiles.
///
/// # Safety
/// As [`wide::area`], on a processor with tile registers.
#[inline(always)]
pub(super) unsafe fn area<const FORMAT: u8, const N: usize>(job: &Job, area: Area, scratch: &mut Scratch) {
    // SAFETY: as the caller's.
    unsafe {
        // As many as the largest group has. Of a smaller one, the first row of the next group is computed, too, and not used.
        let rows = area.rows.div_ceil(area.rows.div_ceil(ROWS));
        let tiles = Tiles::new(rows as u8, inputs(FORMAT) as u8);
        wide::area::<Amx, FORMAT, N>(job, area, scratch);
        drop(tiles);
    }
}

/// With the registers in the shape of the area and the format.
struct Amx;

impl<const FORMAT: u8, const N: usize> Multiply<FORMAT, N> for Amx {
    type Lanes = V;
    const ROWS: usize = ROWS;

    #[inline(always)]
    unsafe fn unpack(tile: usize, weights: *const u8, count: usize, unpacked: &mut Unpacked) {
        // SAFETY: as the caller's.
        unsafe {
            let planes = &mut unpacked.codes[2 * tile..][..2];
            match FORMAT {
                Q4K => return unpack_q4(weights, planes),
                Q6K => return unpack_q6(weights, planes),
                _ => {}
            }
            let more = _mm512_set1_epi8(if FORMAT == Q8_0 { -128 } else { offset(FORMAT) as i8 });
            let meaning = |codes| _mm512_sub_epi8(codes, more);
            unpack::<V, FORMAT>(weights, count, &mut unpacked.codes[tile], &mut unpacked.scales[tile], meaning);
        }
    }

    #[inline(always)]
    unsafe fn multiply(group: &Group<N>, unpacked: &mut Unpacked) {
        // SAFETY: as the caller's.
        unsafe {
            let sums = unpacked.sums.as_mut_ptr().cast::<i32>();
            let codes: [*const u8; 4] = unpacked.codes.each_ref().map(|codes| codes.as_ptr());
            if has_planes(FORMAT) {
                sums_of_super(group, codes, sums);
            } else {
                sums_of_blocks::<FORMAT, N>(group, codes, sums);
            }
            // What comes next is asked for while the sums are read.
            let next = group.rows.codes(group.count);
            for line in 0..group.count * group.blocks * BLOCK_INPUTS / 64 {
                V::prefetch_near(next.wrapping_add(line * 64).cast());
            }
            for tile in 0..N {
                let scales = unpacked.scales[tile].as_ptr();
                let sums = sums.add(tile * if has_planes(FORMAT) { 2 } else { SUPER } * ROWS * LANES);
                if has_planes(FORMAT) {
                    scaled_super::<FORMAT, N>(group, tile, sums);
                } else if group.count > ROWS / 2 {
                    scaled_blocks::<FORMAT, ROWS, N>(group, tile, sums, scales);
                } else {
                    scaled_blocks::<FORMAT, { ROWS / 2 }, N>(group, tile, sums, scales);
                }
            }
        }
    }
}

/// Whether scales are part of the weights.
const fn has_planes(format: u8) -> bool {
    format == Q4K || format == Q6K
}

/// Inputs that are multiplied at once.
const fn inputs(format: u8) -> usize {
    if has_planes(format) { 2 * BLOCK_INPUTS } else { BLOCK_INPUTS }
}

/// A super-block of Q4_K as codes that are multiplied with the lower three bits of their scales, and such with the upper three.
#[inline(always)]
unsafe fn unpack_q4(tile: *const u8, codes: &mut [[u8; SUPER_CODES]]) {
    // SAFETY: offsets within a super-block, see `Format`.
    unsafe {
        let (lower, upper) = (codes[0].as_mut_ptr(), codes[1].as_mut_ptr());
        for index in 0..SUPER {
            let scale = V::load_u8(tile.add(64 + index * LANES));
            // For the two pairs of inputs of an output.
            let scale = _mm512_or_si512(scale, _mm512_slli_epi32::<16>(scale));
            let (low, high) = (_mm512_and_si512(scale, _mm512_set1_epi16(7)), _mm512_srli_epi16::<3>(scale));
            let put = |group: usize, codes| {
                let at = (index * 8 + group) * 64;
                // Two codes of at most 15 times at most 7 are two bytes, and none spills into the other.
                V::store_bytes(_mm512_mullo_epi16(codes, low), lower.add(at));
                V::store_bytes(_mm512_mullo_epi16(codes, high), upper.add(at));
            };
            for group in 0..4 {
                let both = V::load_bytes(tile.add(K_HEAD + index * 256 + group * 64));
                put(group, V::low_nibbles(both));
                put(group + 4, V::high_nibbles(both));
            }
        }
    }
}

/// A super-block of Q6_K: codes times their scales, whose lower seven bits are one plane, and what is above them the other.
#[inline(always)]
unsafe fn unpack_q6(tile: *const u8, codes: &mut [[u8; SUPER_CODES]]) {
    // SAFETY: offsets within a super-block, see `Format`.
    unsafe {
        let planes = [codes[0].as_mut_ptr(), codes[1].as_mut_ptr()];
        for index in 0..SUPER {
            let scales = tile.add(64 + 2 * index * LANES);
            let (first, second) = (twice(scales), twice(scales.add(LANES)));
            let packed = tile.add(Q6_HEAD + index * (256 + 128));
            for group in 0..4 {
                let (low, high) = six_bits::<V>(packed, group);
                let at = (index * 8 + group) * 64;
                put_times(low, first, planes, at);
                put_times(high, second, planes, at + 4 * 64);
            }
        }
    }
}

/// Codes, which say 32 more than they mean, times a scale for each of their pairs: the planes of that.
#[inline(always)]
unsafe fn put_times(codes: __m512i, scale: __m512i, planes: [*mut u8; 2], at: usize) {
    // SAFETY: as the caller's.
    unsafe {
        let (low, more) = (_mm512_set1_epi16(0xFF), _mm512_slli_epi16::<5>(scale));
        let even = _mm512_sub_epi16(_mm512_mullo_epi16(_mm512_and_si512(codes, low), scale), more);
        let odd = _mm512_sub_epi16(_mm512_mullo_epi16(_mm512_srli_epi16::<8>(codes), scale), more);
        // (mask & a) | (!mask & b)
        let both = _mm512_ternarylogic_epi32::<0xCA>(low, even, _mm512_slli_epi16::<8>(odd));
        V::store_bytes(_mm512_and_si512(both, _mm512_set1_epi8(127)), planes[0].add(at));
        let (even, odd) = (_mm512_srli_epi16::<7>(even), _mm512_slli_epi16::<1>(odd));
        V::store_bytes(_mm512_ternarylogic_epi32::<0xCA>(low, even, odd), planes[1].add(at));
    }
}

/// Sixteen i8, each as two i16.
#[inline(always)]
unsafe fn twice(from: *const u8) -> __m512i {
    // SAFETY: as the caller's.
    unsafe {
        let ints = V::load_i8(from);
        _mm512_or_si512(_mm512_and_si512(ints, _mm512_set1_epi32(0xFFFF)), _mm512_slli_epi32::<16>(ints))
    }
}

/// The sums of a super-block of two planes: of each tile those of the lower one, and those of the upper one.
#[inline(always)]
unsafe fn sums_of_super<const N: usize>(group: &Group<N>, codes: [*const u8; 4], sums: *mut i32) {
    // SAFETY: the registers have the shape of the group, and the codes are those of a whole super-block.
    unsafe {
        let inputs = 2 * BLOCK_INPUTS;
        let stride = SUPER * BLOCK_INPUTS;
        let rows = group.rows.codes(0).cast::<u8>();
        zero::<0>();
        zero::<1>();
        if N == 2 {
            zero::<2>();
            zero::<3>();
        }
        for step in 0..stride / inputs {
            let at = |plane: usize| codes[plane].add(step * inputs * LANES);
            load::<4>(rows.add(step * inputs), stride);
            load::<6>(at(0), 64);
            multiply::<0, 4, 6>();
            load::<7>(at(1), 64);
            multiply::<1, 4, 7>();
            if N == 2 {
                load::<6>(at(2), 64);
                multiply::<2, 4, 6>();
                load::<7>(at(3), 64);
                multiply::<3, 4, 7>();
            }
        }
        let to = |place: usize| sums.add(place * ROWS * LANES);
        store::<0>(to(0));
        store::<1>(to(1));
        if N == 2 {
            store::<2>(to(2));
            store::<3>(to(3));
        }
    }
}

/// The sums of the inputs that share a scale, in turns of two sets of registers: what is stored was not computed just now.
#[inline(always)]
unsafe fn sums_of_blocks<const FORMAT: u8, const N: usize>(group: &Group<N>, codes: [*const u8; 4], sums: *mut i32) {
    let rows = group.rows;
    // SAFETY: the registers have the shape of the group, and there are codes of as many blocks as it has.
    unsafe {
        let stride = group.blocks * BLOCK_INPUTS;
        let steps = Steps::<N> { rows: rows.codes(0).cast(), stride, inputs: inputs(FORMAT), codes, sums };
        let count = stride / steps.inputs;
        steps.compute::<0, 1, 4>(0);
        for step in (1..count).step_by(2) {
            steps.compute::<2, 3, 5>(step);
            steps.store::<0, 1>(step - 1);
            if step + 1 < count {
                steps.compute::<0, 1, 4>(step + 1);
            }
            steps.store::<2, 3>(step);
        }
        if count % 2 == 1 {
            steps.store::<0, 1>(count - 1);
        }
    }
}

/// Of a super-block: one for the inputs that share a scale.
struct Steps<const N: usize> {
    rows: *const u8,
    /// From a row to the next one.
    stride: usize,
    /// Of a step.
    inputs: usize,
    codes: [*const u8; 4],
    sums: *mut i32,
}

impl<const N: usize> Steps<N> {
    /// # Safety
    /// There must be such a step.
    #[inline(always)]
    unsafe fn compute<const FIRST: usize, const SECOND: usize, const ROWS: usize>(&self, step: usize) {
        // SAFETY: as the caller's.
        unsafe {
            load::<ROWS>(self.rows.add(step * self.inputs), self.stride);
            load::<6>(self.codes[0].add(step * self.inputs * LANES), 64);
            zero::<FIRST>();
            multiply::<FIRST, ROWS, 6>();
            if N == 2 {
                load::<7>(self.codes[1].add(step * self.inputs * LANES), 64);
                zero::<SECOND>();
                multiply::<SECOND, ROWS, 7>();
            }
        }
    }

    /// # Safety
    /// As [`compute`](Steps::compute).
    #[inline(always)]
    unsafe fn store<const FIRST: usize, const SECOND: usize>(&self, step: usize) {
        // SAFETY: as the caller's.
        unsafe {
            store::<FIRST>(self.sums.add(step * ROWS * LANES));
            if N == 2 {
                store::<SECOND>(self.sums.add((SUPER + step) * ROWS * LANES));
            }
        }
    }
}

/// Adds the sums of a super-block of two planes to what the group has so far.
#[inline(always)]
unsafe fn scaled_super<const FORMAT: u8, const N: usize>(group: &Group<N>, tile: usize, sums: *const i32) {
    // SAFETY: there are two times the sums of 16 rows, of which the group has some.
    unsafe {
        let last = Last::<FORMAT>::of(group.weights[tile]);
        for row in 0..group.count {
            let lower = V::load_ints(sums.add(row * LANES));
            let upper = V::load_ints(sums.add((ROWS + row) * LANES));
            let upper = if FORMAT == Q4K { _mm512_slli_epi32::<3>(upper) } else { _mm512_slli_epi32::<7>(upper) };
            let part = V::floats(_mm512_add_epi32(lower, upper));
            last.add(group, tile, row, part);
        }
    }
}

/// The same for the sums of `M` rows, of which the group may have fewer, each for the inputs that share a scale.
#[inline(always)]
unsafe fn scaled_blocks<const FORMAT: u8, const M: usize, const N: usize>(
    group: &Group<N>,
    tile: usize,
    sums: *const i32,
    scales: *const f32,
) {
    // SAFETY: there are sums of 16 rows, and scales and minima of as many blocks as the group has.
    unsafe {
        let mut part = [V::splat(0.0); M];
        for step in 0..group.blocks * BLOCK_INPUTS / inputs(FORMAT) {
            let scale = V::load(scales.add(step * LANES));
            for row in 0..M {
                let sum = V::load_ints(sums.add((step * ROWS + row) * LANES));
                part[row] = V::floats(sum).fma(scale, part[row]);
            }
            if FORMAT == Q4_1 || FORMAT == Q5_1 {
                let minimum = V::load_f16(group.weights[tile].add((group.blocks + step) * 32));
                for row in 0..M {
                    if row < group.count {
                        let sum = V::splat(group.rows.sum32(row, step) as f32);
                        part[row] = minimum.fma(sum, part[row]);
                    }
                }
            }
        }
        let last = Last::<FORMAT>::of(group.weights[tile]);
        for row in 0..M {
            if row < group.count {
                last.add(group, tile, row, part[row]);
            }
        }
    }
}

/// What is the same for all blocks of a super-block of the K formats.
struct Last<const FORMAT: u8> {
    scale: V,
    minimum: V,
    /// Of two blocks each.
    minima: [__m512i; SUPER / 2],
}

impl<const FORMAT: u8> Last<FORMAT> {
    #[inline(always)]
    unsafe fn of(tile: *const u8) -> Self {
        // SAFETY: offsets within a super-block, see `Format`.
        unsafe {
            let (none, no_minima) = (V::splat(0.0), [V::splat_int(0); SUPER / 2]);
            match FORMAT {
                Q4K | Q5K => {
                    let pairs = |pair| tile.add(64 + SUPER * LANES + pair * 2 * LANES);
                    let minima =
                        std::array::from_fn(|pair| _mm512_cvtepu8_epi16(_mm256_loadu_si256(pairs(pair).cast())));
                    Self { scale: V::load_f16(tile), minimum: V::load_f16(tile.add(32)), minima }
                }
                Q6K => Self { scale: V::load_f16(tile), minimum: none, minima: no_minima },
                _ => Self { scale: none, minimum: none, minima: no_minima },
            }
        }
    }

    /// Adds what a row has of this super-block to what it has so far.
    #[inline(always)]
    unsafe fn add<const N: usize>(&self, group: &Group<N>, tile: usize, row: usize, mut part: V) {
        // SAFETY: the group has the row.
        unsafe {
            if FORMAT == Q4K || FORMAT == Q5K {
                let mut minima = V::splat_int(0);
                for pair in 0..SUPER / 2 {
                    minima = V::dot_words(minima, self.minima[pair], group.rows.sum_pair(row, 2 * pair));
                }
                part = V::floats(minima).fnma(self.minimum, part.mul(self.scale));
            } else if FORMAT == Q6K {
                part = part.mul(self.scale);
            }
            let before = V::load(group.so_far.add((2 * row + tile) * LANES));
            let scale = V::splat(group.rows.scale(row));
            part.fma(scale, before).store(group.to.add(row * group.stride + tile * LANES));
        }
    }
}

/// Rows of a tile register.
const ROWS: usize = 16;
