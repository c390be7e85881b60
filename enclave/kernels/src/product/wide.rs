//! Many rows times one or two tiles: weights are unpacked once for all rows, so that the multipliers have nothing to wait for.
//!
//! What a row gets is, bit for bit, what [`block`](super::block) computes for it.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use zeroize::{Zeroize, optimization_barrier};

use super::block::{fifth_bits, is_whole, offset, six_bits};
use super::rows::QuantisedRows;
use super::{Job, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, ROWS_IN_CACHE};
use crate::format::{Format, K_HEAD, Q6_HEAD};
use crate::layout::SUPER_INPUTS;
use crate::vector::Vector;
use crate::{BLOCK_INPUTS, LANES, SUPER};

/// Rows and tiles.
#[derive(Clone, Copy)]
pub(super) struct Area {
    pub(super) row: usize,
    /// At most [`ROWS_IN_CACHE`].
    pub(super) rows: usize,
    pub(super) tile: usize,
    /// Whether the tiles after these come next.
    pub(super) goes_on: bool,
}

/// What is at hand while an area is computed: with vectors it fits the first cache of a core, and with AMX nearly.
#[repr(C, align(64))]
pub(super) struct Scratch {
    unpacked: Unpacked,
    results: [[[f32; LANES]; 2]; ROWS_IN_CACHE],
}

thread_local! {
    /// Made once for each thread: to make it anew for each task would take as long as wiping.
    pub(super) static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

impl Scratch {
    const fn new() -> Self {
        Self { unpacked: Unpacked::new(), results: [[[0.0; LANES]; 2]; ROWS_IN_CACHE] }
    }
}

impl Zeroize for Scratch {
    /// What comes of activations, at the speed of the cache: the library writes numbers one by one. Weights are nobody's secret here.
    fn zeroize(&mut self) {
        self.unpacked.sums.fill([0; LANES * LANES]);
        self.results.fill([[0.0; LANES]; 2]);
        optimization_barrier(self);
    }
}

/// A super-block of two tiles.
#[repr(C, align(64))]
pub(super) struct Unpacked {
    /// Codes of 8 bits; with AMX, of some formats, two for each.
    pub(super) codes: [[u8; SUPER_CODES]; 4],
    /// The scales that belong to them, for each block; of Q6_K none.
    pub(super) scales: [[f32; SUPER * LANES]; 2],
    /// With AMX: what 16 rows and as many outputs give in each step of the super-block.
    pub(super) sums: [[i32; LANES * LANES]; 2 * SUPER],
}

impl Unpacked {
    const fn new() -> Self {
        Self { codes: [[0; SUPER_CODES]; 4], scales: [[0.0; SUPER * LANES]; 2], sums: [[0; LANES * LANES]; 2 * SUPER] }
    }
}

/// How rows are multiplied with `N` tiles that are unpacked.
pub(super) trait Multiply<const FORMAT: u8, const N: usize> {
    type Lanes: Vector;
    /// At most so many rows at once.
    const ROWS: usize;

    /// Unpacks a super-block of `count` blocks, that of tile number `tile` of the area.
    ///
    /// # Safety
    /// The weights must be those of such a super-block.
    unsafe fn unpack(tile: usize, weights: *const u8, count: usize, unpacked: &mut Unpacked);

    /// # Safety
    /// The super-blocks of the group must be unpacked.
    unsafe fn multiply(group: &Group<N>, unpacked: &mut Unpacked);
}

/// Some rows and the super-block that they are multiplied with.
pub(super) struct Group<const N: usize> {
    pub(super) weights: [*const u8; N],
    /// Of the super-block.
    pub(super) blocks: usize,
    pub(super) rows: QuantisedRows,
    /// Of rows.
    pub(super) count: usize,
    /// Results of each row for two tiles, to which is added.
    pub(super) so_far: *const f32,
    pub(super) to: *mut f32,
    /// From a row of `to` to the next one.
    pub(super) stride: usize,
}

/// All rows of an area times `N` tiles.
///
/// # Safety
/// The area must be within `job`, with `N` tiles, and the format must be `FORMAT`, which is quantised.
#[inline(always)]
pub(super) unsafe fn area<W: Multiply<FORMAT, N>, const FORMAT: u8, const N: usize>(
    job: &Job,
    area: Area,
    scratch: &mut Scratch,
) {
    // SAFETY: offsets are those of the format, within tiles and rows that the job has.
    unsafe {
        let supers = job.layout.supers();
        // As even as it goes: the last ones have one more than the first.
        let groups = area.rows.div_ceil(W::ROWS);
        let (least, larger) = (area.rows / groups, area.rows % groups);
        scratch.results[..area.rows].fill([[0.0; LANES]; 2]);
        // The last tile of a matrix may have fewer columns than lanes.
        let is_whole = (area.tile + N) * LANES <= job.outputs;
        for index in 0..supers {
            let blocks = job.layout.inputs_of(index) / BLOCK_INPUTS;
            let bytes = job.layout.bytes_of(index);
            let mut weights = [job.weights; N];
            for tile in 0..N {
                weights[tile] = job.weights.add(job.layout.offset(area.tile + tile, index));
                W::unpack(tile, weights[tile], blocks, &mut scratch.unpacked);
            }
            // What comes next is asked for in time, a share of it with each group of rows.
            let share = if area.goes_on { bytes.div_ceil(groups).next_multiple_of(64) } else { 0 };
            let mut next = [job.weights; N];
            for tile in 0..N {
                if area.goes_on {
                    next[tile] = job.weights.add(job.layout.offset(area.tile + N + tile, index));
                }
            }
            let mut first = 0;
            for group in 0..groups {
                let count = least + usize::from(group >= groups - larger);
                for next in &mut next {
                    for line in (0..share).step_by(64) {
                        W::Lanes::prefetch(next.wrapping_add(line));
                    }
                    *next = next.wrapping_add(share);
                }
                if index + 1 == supers {
                    for row in area.row + first..area.row + first + count {
                        for tile in 0..N {
                            let out = job.out.wrapping_add(row * job.outputs + (area.tile + tile) * LANES);
                            W::Lanes::prefetch_near(out.cast());
                        }
                    }
                }
                let so_far = scratch.results.as_mut_ptr().add(first).cast::<f32>();
                let (to, stride) = if index + 1 == supers && is_whole {
                    (job.out.add((area.row + first) * job.outputs + area.tile * LANES), job.outputs)
                } else {
                    (so_far, 2 * LANES)
                };
                let rows = QuantisedRows::of(job, index, blocks, area.row + first);
                W::multiply(&Group { weights, blocks, rows, count, so_far, to, stride }, &mut scratch.unpacked);
                first += count;
            }
        }
        if is_whole {
            return;
        }
        for row in 0..area.rows {
            for tile in 0..N {
                let column = (area.tile + tile) * LANES;
                let out = job.out.add((area.row + row) * job.outputs + column);
                std::ptr::copy_nonoverlapping(
                    scratch.results[row][tile].as_ptr(),
                    out,
                    LANES.min(job.outputs - column),
                );
            }
        }
    }
}

/// With the products of vectors, at most `M` rows at a time.
pub(super) struct Vectors<V, const M: usize>(PhantomData<V>);

impl<V: Vector, const FORMAT: u8, const M: usize, const N: usize> Multiply<FORMAT, N> for Vectors<V, M> {
    type Lanes = V;
    const ROWS: usize = M;

    #[inline(always)]
    unsafe fn unpack(tile: usize, weights: *const u8, count: usize, unpacked: &mut Unpacked) {
        let (codes, scales) = (&mut unpacked.codes[tile], &mut unpacked.scales[tile]);
        // SAFETY: as the caller's.
        unsafe { unpack::<V, FORMAT>(weights, count, codes, scales, |codes| codes) };
    }

    #[inline(always)]
    unsafe fn multiply(group: &Group<N>, unpacked: &mut Unpacked) {
        macro_rules! with_rows {
            ($blocks:expr, $($rows:literal)*) => {
                match group.count {
                    // SAFETY: as the caller's.
                    $($rows if $rows <= M => unsafe { some::<V, FORMAT, $rows, N>(group, unpacked, $blocks) },)*
                    _ => {}
                }
            };
        }
        // As in `block`.
        if is_whole(FORMAT) || group.blocks == SUPER {
            with_rows!(SUPER, 1 2 3 4 5 6);
        } else {
            with_rows!(group.blocks, 1 2 3 4 5 6);
        }
    }
}

/// A super-block of `count` blocks as codes of 8 bits, group by group of four inputs, and scales as f32, but for Q6_K's, which stay
/// where they are. What `meaning` makes of codes is stored.
///
/// # Safety
/// `tile` must be such a super-block.
#[inline(always)]
pub(super) unsafe fn unpack<V: Vector, const FORMAT: u8>(
    tile: *const u8,
    count: usize,
    codes: &mut [u8; SUPER_CODES],
    scales: &mut [f32; SUPER * LANES],
    meaning: impl Fn(V::Bytes) -> V::Bytes,
) {
    // SAFETY: offsets within a super-block of `count` blocks, see `Format`.
    unsafe {
        let (codes, scales) = (codes.as_mut_ptr(), scales.as_mut_ptr());
        for index in 0..count {
            let put =
                |group: usize, bytes: V::Bytes| V::store_bytes(meaning(bytes), codes.add((index * 8 + group) * 64));
            let scale = scales.add(index * LANES);
            if FORMAT == Q8_0 {
                V::load_f16(tile.add(index * 32)).store(scale);
                for group in 0..8 {
                    put(group, V::load_bytes(tile.add(count * 32 + index * 512 + group * 64)));
                }
            } else if FORMAT == Q6K {
                let packed = tile.add(Q6_HEAD + index * (256 + 128));
                for group in 0..4 {
                    let (first, second) = six_bits::<V>(packed, group);
                    put(group, first);
                    put(group + 4, second);
                }
            } else {
                let has_fifth = FORMAT == Q5K || FORMAT == Q5_0 || FORMAT == Q5_1;
                let size = if has_fifth { 256 + 64 } else { 256 };
                let nibbles = if FORMAT == Q4K || FORMAT == Q5K {
                    V::floats(V::load_u8(tile.add(64 + index * LANES))).store(scale);
                    tile.add(K_HEAD + index * size)
                } else {
                    V::load_f16(tile.add(index * 32)).store(scale);
                    tile.add(count * if FORMAT == Q4_1 || FORMAT == Q5_1 { 64 } else { 32 } + index * size)
                };
                for group in 0..4 {
                    let both = V::load_bytes(nibbles.add(group * 64));
                    let (mut first, mut second) = (V::low_nibbles(both), V::high_nibbles(both));
                    if has_fifth {
                        first = fifth_bits::<V>(first, nibbles.add(256), group);
                        second = fifth_bits::<V>(second, nibbles.add(256), group + 4);
                    }
                    put(group, first);
                    put(group + 4, second);
                }
            }
        }
    }
}

/// `M` rows times the super-block that is unpacked.
#[inline(always)]
unsafe fn some<V: Vector, const FORMAT: u8, const M: usize, const N: usize>(
    group: &Group<N>,
    unpacked: &Unpacked,
    count: usize,
) {
    let Group { weights, so_far, to, stride, .. } = *group;
    let rows = group.rows.with_blocks(count);
    // SAFETY: a super-block has `count` blocks here and in the rows, and there are results of `M` rows, and room for them.
    unsafe {
        let mut part;
        if FORMAT == Q4K {
            // Halves of which each is exact: see `block`.
            part = scaled::<V, FORMAT, M, N>(weights, &rows, unpacked, 0..SUPER / 2);
            let second = scaled::<V, FORMAT, M, N>(weights, &rows, unpacked, SUPER / 2..SUPER);
            for row in 0..M {
                for tile in 0..N {
                    part[row][tile] = part[row][tile].add(second[row][tile]);
                }
            }
        } else if FORMAT == Q6K {
            part = whole::<V, M, N>(weights, &rows, unpacked);
        } else {
            part = scaled::<V, FORMAT, M, N>(weights, &rows, unpacked, 0..count);
        }
        if FORMAT == Q4K || FORMAT == Q5K {
            let mut minima = [[V::splat_int(0); N]; M];
            for pair in 0..SUPER / 2 {
                for row in 0..M {
                    let sums = rows.sum_pair(row, 2 * pair);
                    for tile in 0..N {
                        let at = weights[tile].add(64 + SUPER * LANES + pair * 2 * LANES);
                        minima[row][tile] = V::dot_pairs(minima[row][tile], at, sums);
                    }
                }
            }
            for tile in 0..N {
                let (scale, minimum) = (V::load_f16(weights[tile]), V::load_f16(weights[tile].add(32)));
                for row in 0..M {
                    part[row][tile] = V::floats(minima[row][tile]).fnma(minimum, part[row][tile].mul(scale));
                }
            }
        } else if FORMAT == Q6K {
            for tile in 0..N {
                let scale = V::load_f16(weights[tile]);
                for row in 0..M {
                    part[row][tile] = part[row][tile].mul(scale);
                }
            }
        }
        for row in 0..M {
            let scale = V::splat(rows.scale(row));
            for tile in 0..N {
                let before = V::load(so_far.add((2 * row + tile) * LANES));
                part[row][tile].fma(scale, before).store(to.add(row * stride + tile * LANES));
            }
        }
    }
}

/// What some blocks of a super-block, each with a scale, give.
#[inline(always)]
unsafe fn scaled<V: Vector, const FORMAT: u8, const M: usize, const N: usize>(
    weights: [*const u8; N],
    rows: &QuantisedRows,
    unpacked: &Unpacked,
    blocks: Range<usize>,
) -> [[V; N]; M] {
    // SAFETY: as the caller's.
    unsafe {
        let mut part = [[V::splat(0.0); N]; M];
        for index in blocks {
            let sums = sums::<V, FORMAT, M, N>(rows, unpacked, index);
            for tile in 0..N {
                let scale = V::load(unpacked.scales[tile].as_ptr().add(index * LANES));
                for row in 0..M {
                    part[row][tile] = V::floats(sums[row][tile]).fma(scale, part[row][tile]);
                }
                if FORMAT == Q4_1 || FORMAT == Q5_1 {
                    let minimum = V::load_f16(weights[tile].add((rows.blocks + index) * 32));
                    for row in 0..M {
                        let sum = V::splat(rows.sum32(row, index) as f32);
                        part[row][tile] = minimum.fma(sum, part[row][tile]);
                    }
                }
            }
        }
        part
    }
}

/// What a super-block of Q6_K gives, before its own scale.
#[inline(always)]
unsafe fn whole<V: Vector, const M: usize, const N: usize>(
    weights: [*const u8; N],
    rows: &QuantisedRows,
    unpacked: &Unpacked,
) -> [[V; N]; M] {
    // SAFETY: as the caller's.
    unsafe {
        let mut whole = [[V::splat_int(0); N]; M];
        for half in 0..2 * SUPER {
            let sums = sums::<V, Q6K, M, N>(rows, unpacked, half);
            for tile in 0..N {
                let scale = V::load_i8(weights[tile].add(64 + half * LANES));
                for row in 0..M {
                    whole[row][tile] = V::plus_times(whole[row][tile], sums[row][tile], scale);
                }
            }
        }
        let mut part = [[V::splat(0.0); N]; M];
        for row in 0..M {
            for tile in 0..N {
                part[row][tile] = V::floats(whole[row][tile]);
            }
        }
        part
    }
}

/// The sums of the inputs that share scale number `index` of a super-block.
#[inline(always)]
unsafe fn sums<V: Vector, const FORMAT: u8, const M: usize, const N: usize>(
    rows: &QuantisedRows,
    unpacked: &Unpacked,
    index: usize,
) -> [[V::Ints; N]; M] {
    let codes = &unpacked.codes;
    // SAFETY: as the caller's.
    unsafe {
        // Groups of four inputs that share a scale.
        let groups = if FORMAT == Q6K { 4 } else { 8 };
        let mut sums = [[V::splat_int(0); N]; M];
        for row in 0..M {
            let start = match FORMAT {
                Q8_0 => V::full_start(rows.sum32(row, index)),
                Q6K => V::splat_int(rows.start16(row, index)),
                Q4K | Q5K => V::splat_int(0),
                _ => V::splat_int(-offset(FORMAT) * rows.sum32(row, index)),
            };
            sums[row] = [start; N];
        }
        for group in index * groups..(index + 1) * groups {
            let mut bytes = [V::load_bytes(codes[0].as_ptr().add(group * 64)); N];
            for tile in 1..N {
                bytes[tile] = V::load_bytes(codes[tile].as_ptr().add(group * 64));
            }
            for row in 0..M {
                let four = rows.four(row, group * 4);
                for tile in 0..N {
                    let sum = sums[row][tile];
                    sums[row][tile] = if FORMAT == Q8_0 {
                        V::dot_full(sum, bytes[tile], four)
                    } else {
                        V::dot(sum, bytes[tile], four)
                    };
                }
            }
        }
        sums
    }
}

pub(super) const SUPER_CODES: usize = Format::Q8_0.super_bytes(SUPER_INPUTS) - SUPER * 32;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says what failed by panicking")]
mod tests {
    use super::*;
    use crate::{Activations, Family, Packed, Product, multiply};

    /// All bytes of what is at hand after products of rows of such elements.
    fn at_hand(family: Family, weights: &Packed, rows: usize, element: f32) -> Vec<u8> {
        let mut activations = Activations::new();
        let elements = activations.rows_mut(rows, weights.inputs()).iter_mut().enumerate();
        elements.for_each(|(index, x)| *x = element * (index % 7) as f32 - 1.0);
        activations.quantise(family);
        let mut out = vec![0.0; rows * weights.outputs()];
        multiply(family, &activations, &mut [Product { weights, out: &mut out }]);
        assert_ne!(out[0].to_bits(), 0);
        SCRATCH.with_borrow(|scratch| {
            let start = (&raw const *scratch).cast::<u8>();
            // SAFETY: bytes of a structure of numbers that has no gaps.
            unsafe { std::slice::from_raw_parts(start, size_of::<Scratch>()) }.to_vec()
        })
    }

    #[test]
    fn nothing_of_activations_stays_at_hand_after_products() {
        for format in Format::ALL.into_iter().filter(|format| format.is_quantised()) {
            let mut bytes = vec![0x5A; 40 * 256 / format.inputs_of_block() * format.bytes_of_block()];
            for block in bytes.chunks_exact_mut(format.bytes_of_block()) {
                let scale = if format == Format::Q6K { 208..210 } else { 0..2 };
                block[scale].copy_from_slice(&half::f16::ONE.to_le_bytes());
            }
            let weights = Packed::pack(format, 40, 256, &bytes).unwrap();
            for &family in Family::all() {
                for rows in [13, 40] {
                    let first = at_hand(family, &weights, rows, 0.75);
                    assert!(first == at_hand(family, &weights, rows, -0.5), "{format:?} {family:?} {rows}");
                }
            }
        }
    }
}
