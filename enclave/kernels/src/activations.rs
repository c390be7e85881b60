//! What weights are multiplied with.

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use zeroize::Zeroize;

use crate::dispatch::for_each_family;
use crate::math::largest;
use crate::vector::Vector;
use crate::{BLOCK_INPUTS, Family, LANES, SUPER};

/// Rows of activations as f32 and, once they are quantised, as i8 with a scale for 256 of them.
///
/// The buffers are kept from one use to the next, and wiped on drop.
#[derive(Default)]
pub struct Activations {
    rows: usize,
    inputs: usize,
    floats: Vec<f32>,
    codes: Vec<i8>,
    scales: Vec<f32>,
    /// Sums of 16 codes, and of 32: what a weight's offset is multiplied with.
    sums16: Vec<i16>,
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
        (self.rows, self.inputs) = (rows, inputs);
        // What was quantised before is not of these rows.
        self.codes.clear();
        self.scales.clear();
        self.sums16.clear();
        self.sums32.clear();
        resize(&mut self.floats, rows * inputs);
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
        let supers = blocks.div_ceil(SUPER);
        if blocks == 0 {
            return;
        }
        resize(&mut self.codes, rows * inputs);
        resize(&mut self.scales, rows * supers);
        resize(&mut self.sums16, rows * blocks * 2);
        resize(&mut self.sums32, rows * blocks);
        let (codes, scales) = (self.codes.chunks_exact_mut(inputs), self.scales.chunks_exact_mut(supers));
        let (sums16, sums32) = (self.sums16.chunks_exact_mut(blocks * 2), self.sums32.chunks_exact_mut(blocks));
        let parts = codes.zip(scales).zip(sums16.zip(sums32));
        let work: Vec<Row<'_>> = self
            .floats
            .chunks_exact(inputs)
            .zip(parts)
            .map(|(floats, ((codes, scales), (sums16, sums32)))| Row { floats, codes, scales, sums16, sums32 })
            .collect();
        let one = |Row { floats, codes, scales, sums16, sums32 }: Row<'_>| {
            let whole = blocks * BLOCK_INPUTS;
            quantise_row(family, &floats[..whole], codes, scales, sums16, sums32);
        };
        if work.len() < ROWS_FOR_THREADS || rayon::current_num_threads() == 1 {
            work.into_iter().for_each(one);
        } else {
            work.into_par_iter().with_min_len(ROWS_FOR_THREADS / 2).for_each(one);
        }
    }

    pub(crate) fn view(&self) -> View<'_> {
        let Self { rows, inputs, floats, codes, scales, sums16, sums32 } = self;
        View { rows: *rows, inputs: *inputs, floats, codes, scales, sums16, sums32 }
    }
}

/// A row to quantise, and where to.
struct Row<'a> {
    floats: &'a [f32],
    codes: &'a mut [i8],
    scales: &'a mut [f32],
    sums16: &'a mut [i16],
    sums32: &'a mut [i16],
}

/// The parts, as the products read them.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) floats: &'a [f32],
    pub(crate) codes: &'a [i8],
    pub(crate) scales: &'a [f32],
    pub(crate) sums16: &'a [i16],
    pub(crate) sums32: &'a [i16],
}

for_each_family!(fn quantise_row = quantise_supers(
    floats: &[f32], codes: &mut [i8], scales: &mut [f32], sums16: &mut [i16], sums32: &mut [i16],
));

#[inline(always)]
unsafe fn quantise_supers<V: Vector>(
    floats: &[f32],
    codes: &mut [i8],
    scales: &mut [f32],
    sums16: &mut [i16],
    sums32: &mut [i16],
) {
    const ELEMENTS: usize = SUPER * BLOCK_INPUTS;
    for (index, (floats, scale)) in floats.chunks(ELEMENTS).zip(scales.iter_mut()).enumerate() {
        let (chunks, _) = floats.as_chunks::<LANES>();
        let codes = &mut codes[index * ELEMENTS..][..floats.len()];
        // SAFETY: chunks of 16 elements, and as many codes.
        unsafe {
            let zero = V::splat(0.0);
            let (mut most, mut odd) = (zero, zero);
            for chunk in chunks {
                let x = V::load(chunk.as_ptr());
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
                let mut whole = [0_i32; LANES];
                V::store_ints(rounded, whole.as_mut_ptr());
                let mut sum = 0;
                for code in whole {
                    sum += code;
                }
                let at = index * (2 * SUPER) + place;
                sums16[at] = sum as i16;
                if place % 2 == 0 {
                    sums32[at / 2] = sum as i16;
                } else {
                    sums32[at / 2] += sum as i16;
                }
            }
        }
    }
}

/// Makes a buffer longer or shorter; one that moves leaves nothing behind.
fn resize<T: Default + Copy + Zeroize>(buffer: &mut Vec<T>, length: usize) {
    if length > buffer.capacity() {
        let larger = Vec::with_capacity(length);
        buffer.zeroize();
        *buffer = larger;
    }
    buffer.resize(length, T::default());
}

impl Drop for Activations {
    fn drop(&mut self) {
        let Self { rows: _, inputs: _, floats, codes, scales, sums16, sums32 } = self;
        floats.zeroize();
        codes.zeroize();
        scales.zeroize();
        sums16.zeroize();
        sums32.zeroize();
    }
}

/// Rows from which handing some to other threads costs less than it saves.
const ROWS_FOR_THREADS: usize = 16;
/// Below this the factor to 127 is no finite number.
const SMALLEST: f32 = f32::MIN_POSITIVE * 256.0;
