//! What weights are multiplied with.

use zeroize::Zeroize;

use crate::dispatch::for_each_family;
use crate::layout::SUPER_INPUTS;
use crate::math::largest;
use crate::store::LINE;
use crate::team::for_each;
use crate::vector::Vector;
use crate::{BLOCK_INPUTS, Family, LANES, SUPER};

/// Rows of activations as f32 and, once they are quantised, as i8 with a scale for 256 of them.
///
/// Codes, scales and sums lie super-block by super-block, those of all rows together: so many rows times one super-block of weights
/// reads one piece of memory.
///
/// The buffers are kept from one use to the next, and wiped on drop.
#[derive(Default)]
pub struct Activations {
    rows: usize,
    inputs: usize,
    floats: Vec<f32>,
    /// From the first line of the cache on: what is read 64 at a time lies within lines.
    codes: Vec<i8>,
    scales: Vec<f32>,
    /// For each 16 codes, where a sum of products with codes of Q6_K begins, which say 32 more than they mean.
    starts16: Vec<i32>,
    /// Sums of 32 codes: what a weight's offset or minimum is multiplied with.
    sums32: Vec<i16>,
}

impl Activations {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Room for rows of f32, whose content is whatever was there before.
    pub fn rows_mut(&mut self, rows: usize, inputs: usize) -> &mut [f32] {
        assert!(rows.checked_mul(inputs).is_some(), "so many elements as memory can hold");
        // What was quantised before is not of these rows.
        self.codes.clear();
        self.scales.clear();
        self.starts16.clear();
        self.sums32.clear();
        resize(&mut self.floats, rows * inputs);
        (self.rows, self.inputs) = (rows, inputs);
        &mut self.floats
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// The rows as f32.
    #[must_use]
    pub fn floats(&self) -> &[f32] {
        &self.floats
    }

    /// Quantises the rows, for [`multiply`](crate::multiply) with quantised weights. A row with an element that is no finite number
    /// gives no number.
    pub fn quantise(&mut self, family: Family) {
        let (rows, inputs) = (self.rows, self.inputs);
        let blocks = inputs / BLOCK_INPUTS;
        if blocks == 0 {
            return;
        }
        resize(&mut self.codes, rows * blocks * BLOCK_INPUTS + LINE - 1);
        resize(&mut self.scales, rows * blocks.div_ceil(SUPER));
        resize(&mut self.starts16, rows * blocks * 2);
        resize(&mut self.sums32, rows * blocks);
        // Super-blocks of eight blocks, those of all rows one after the other; then the last ones, which may be shorter.
        let whole = blocks / SUPER;
        let start = self.codes.as_ptr().align_offset(LINE);
        let codes = &mut self.codes[start..][..rows * blocks * BLOCK_INPUTS];
        let (codes, codes_left) = codes.split_at_mut(rows * whole * SUPER_INPUTS);
        let (scales, scales_left) = self.scales.split_at_mut(rows * whole);
        let (starts16, starts16_left) = self.starts16.split_at_mut(rows * whole * 2 * SUPER);
        let (sums32, sums32_left) = self.sums32.split_at_mut(rows * whole * SUPER);
        let left = blocks % SUPER;
        let floats = &self.floats;
        let row_of = |index: usize, first: usize, count: usize| &floats[index * inputs + first..][..count];
        let parts = codes.chunks_mut(SUPERS_OF_A_TASK * SUPER_INPUTS).zip(scales.chunks_mut(SUPERS_OF_A_TASK));
        let sums = starts16.chunks_mut(SUPERS_OF_A_TASK * 2 * SUPER).zip(sums32.chunks_mut(SUPERS_OF_A_TASK * SUPER));
        let mut tasks: Vec<_> = parts.zip(sums).enumerate().collect();
        for_each(&mut tasks, |(task, ((codes, scales), (starts16, sums32)))| {
            let parts = codes.chunks_exact_mut(SUPER_INPUTS).zip(scales.iter_mut());
            let sums = starts16.chunks_exact_mut(2 * SUPER).zip(sums32.chunks_exact_mut(SUPER));
            for (index, ((codes, scale), (starts16, sums32))) in (*task * SUPERS_OF_A_TASK..).zip(parts.zip(sums)) {
                let floats = row_of(index % rows, index / rows * SUPER_INPUTS, SUPER_INPUTS);
                quantise_super(family, floats, inputs, codes, scale, starts16, sums32);
            }
        });
        if left > 0 {
            let parts = codes_left.chunks_exact_mut(left * BLOCK_INPUTS).zip(starts16_left.chunks_exact_mut(2 * left));
            let parts = parts.zip(sums32_left.chunks_exact_mut(left)).zip(scales_left).enumerate();
            for (row, (((codes, starts16), sums32), scale)) in parts {
                let floats = row_of(row, whole * SUPER_INPUTS, left * BLOCK_INPUTS);
                quantise_super(family, floats, inputs, codes, scale, starts16, sums32);
            }
        }
    }

    pub(crate) fn view(&self) -> View<'_> {
        let Self { rows, inputs, floats, codes, scales, starts16, sums32 } = self;
        let start = codes.as_ptr().align_offset(LINE).min(codes.len());
        let codes = &codes[start..][..codes.len().saturating_sub(LINE - 1)];
        View { rows: *rows, inputs: *inputs, floats, codes, scales, starts16, sums32 }
    }
}

/// The parts, as the products read them.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) floats: &'a [f32],
    pub(crate) codes: &'a [i8],
    pub(crate) scales: &'a [f32],
    pub(crate) starts16: &'a [i32],
    pub(crate) sums32: &'a [i16],
}

for_each_family!(fn quantise_super = quantise(
    floats: &[f32], to_next: usize, codes: &mut [i8], scale: &mut f32, starts16: &mut [i32], sums32: &mut [i16],
));

#[inline(always)]
unsafe fn quantise<V: Vector>(
    floats: &[f32],
    to_next: usize,
    codes: &mut [i8],
    scale: &mut f32,
    starts16: &mut [i32],
    sums32: &mut [i16],
) {
    let (chunks, _) = floats.as_chunks::<LANES>();
    assert!(codes.len() == chunks.len() * LANES && starts16.len() == chunks.len(), "room for every code");
    // SAFETY: chunks of 16 elements, and as many codes.
    unsafe {
        let zero = V::splat(0.0);
        let (mut most, mut odd) = (zero, zero);
        for chunk in chunks {
            let x = V::load(chunk.as_ptr());
            // Those of the next row, which lie too far apart for the processor to ask for them by itself.
            V::prefetch_near(chunk.as_ptr().wrapping_add(to_next).cast());
            most = x.abs().max(most);
            // Zero, unless x is infinite or no number.
            odd = x.fma(zero, odd);
        }
        let most = largest(most);
        let odd = crate::math::total(odd);
        let (by, unit) = match (odd.is_nan(), most < SMALLEST) {
            (true, _) => (0.0, f32::NAN),
            (false, true) => (0.0, 0.0),
            (false, false) => (127.0 / most, most / 127.0),
        };
        *scale = unit;
        let by = V::splat(by);
        for (place, chunk) in chunks.iter().enumerate() {
            let rounded = if odd.is_nan() { zero.ints() } else { V::load(chunk.as_ptr()).mul(by).round().ints() };
            V::store_i8(rounded, codes.as_mut_ptr().add(place * LANES));
        }
    }
    let halves = codes.as_chunks::<LANES>().0.as_chunks::<2>().0;
    for ((starts, sum32), halves) in starts16.as_chunks_mut::<2>().0.iter_mut().zip(sums32).zip(halves) {
        // In loops: what closures compute lies in functions of their own, which do not have the family's instructions.
        *sum32 = 0;
        for (start, codes) in starts.iter_mut().zip(halves) {
            let mut sum = 0;
            for code in codes {
                sum += i16::from(*code);
            }
            *start = -32 * i32::from(sum);
            *sum32 += sum;
        }
    }
}

/// Makes a buffer longer or shorter; one that moves leaves nothing behind.
fn resize<T: Default + Copy + Zeroize>(buffer: &mut Vec<T>, length: usize) {
    if length > buffer.capacity() {
        buffer.zeroize();
        // First gone, then anew: both at once are in nobody's plan.
        buffer.shrink_to_fit();
        buffer.reserve_exact(length);
    }
    buffer.resize(length, T::default());
}

impl Drop for Activations {
    fn drop(&mut self) {
        let Self { rows: _, inputs: _, floats, codes, scales, starts16, sums32 } = self;
        floats.zeroize();
        codes.zeroize();
        scales.zeroize();
        starts16.zeroize();
        sums32.zeroize();
    }
}

/// So many are quantised on one thread: less work is not worth handing over.
const SUPERS_OF_A_TASK: usize = 16;
/// Below this the factor to 127 is no finite number.
const SMALLEST: f32 = f32::MIN_POSITIVE * 256.0;
