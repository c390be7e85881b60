//! Products of activations with packed weights.

mod block;

use block::block;
use rayon::iter::{IndexedParallelIterator, IntoParallelRefIterator, ParallelIterator};

use crate::Family;
use crate::activations::{Activations, View};
use crate::format::Format;
use crate::packed::Packed;

/// One matrix, and where its results go: rows of as many elements as the matrix has outputs.
pub struct Product<'a> {
    /// What to multiply with.
    pub weights: &'a Packed,
    /// Row by row.
    pub out: &'a mut [f32],
}

/// Multiplies the same activations with several matrices, divided among the threads of the current rayon pool.
///
/// Each element of a result is computed in one order that only the format decides: it does not depend on the family, on the number
/// of rows or on the threads. Activations must be [quantised](Activations::quantise) if any of the formats is.
///
/// # Panics
/// When the lengths do not go together.
pub fn multiply(family: Family, activations: &Activations, products: &mut [Product<'_>]) {
    assert!(Family::all().contains(&family), "a family that this processor has");
    let view = activations.view();
    let mut work = 0;
    let jobs: Vec<Job> = products
        .iter_mut()
        .map(|Product { weights, out }| {
            assert_eq!(weights.inputs(), view.inputs, "as many activations as the matrix has inputs");
            assert_eq!(out.len(), view.rows * weights.outputs(), "room for every result");
            if weights.format().is_quantised() {
                assert_eq!(view.codes.len(), view.rows * view.inputs, "quantised activations");
            }
            work += weights.outputs() * weights.inputs();
            Job::new(&view, weights, out)
        })
        .collect();
    let threads = rayon::current_num_threads();
    if threads == 1 || work * view.rows < WORK_FOR_THREADS {
        for job in &jobs {
            job.run(family, 0, job.tiles);
        }
        return;
    }
    let tiles: usize = jobs.iter().map(|job| job.tiles).sum();
    let together = tiles.div_ceil(threads * TASKS_OF_A_THREAD).next_multiple_of(2);
    let tasks: Vec<(&Job, usize)> =
        jobs.iter().flat_map(|job| (0..job.tiles).step_by(together).map(move |first| (job, first))).collect();
    tasks.par_iter().with_max_len(1).for_each(|(job, first)| job.run(family, *first, job.tiles.min(first + together)));
}

/// A matrix and what it is multiplied with, as the kernels read them.
struct Job {
    format: Format,
    weights: *const u8,
    tile_bytes: usize,
    tiles: usize,
    inputs: usize,
    rows: usize,
    floats: *const f32,
    codes: *const i8,
    scales: *const f32,
    sums16: *const i16,
    sums32: *const i16,
    out: *mut f32,
    outputs: usize,
}

// SAFETY: the pointers come from borrows that `multiply` holds until every task has ended; what they point to is read only, but for
// `out`, of which each task writes the columns of its own tiles.
unsafe impl Sync for Job {}
// SAFETY: as above.
unsafe impl Send for Job {}

impl Job {
    fn new(view: &View<'_>, weights: &Packed, out: &mut [f32]) -> Self {
        Self {
            format: weights.format(),
            weights: weights.tiles_start(),
            tile_bytes: weights.tile_bytes(),
            tiles: weights.tiles(),
            inputs: view.inputs,
            rows: view.rows,
            floats: view.floats.as_ptr(),
            codes: view.codes.as_ptr(),
            scales: view.scales.as_ptr(),
            sums16: view.sums16.as_ptr(),
            sums32: view.sums32.as_ptr(),
            out: out.as_mut_ptr(),
            outputs: weights.outputs(),
        }
    }

    /// Computes the columns of tiles `first` to `end`.
    fn run(&self, family: Family, first: usize, end: usize) {
        let (rows_of_block, tiles_of_block) = match family {
            Family::Avx512Vnni => (6, 2),
            Family::Avx2 => (3, 1),
            Family::Plain => (1, 1),
        };
        // So many rows stay in the cache of the core while all tiles go by.
        for from in (0..self.rows).step_by(ROWS_IN_CACHE) {
            let count = ROWS_IN_CACHE.min(self.rows - from);
            let groups = count.div_ceil(rows_of_block);
            let mut tile = first;
            while tile < end {
                let tiles = tiles_of_block.min(end - tile);
                let mut row = from;
                for group in 0..groups {
                    // As even as it goes: 8 rows are 4 and 4.
                    let rows = (from + count - row).div_ceil(groups - group);
                    // SAFETY: rows and tiles are within the job, and the processor has the family (`multiply` checked).
                    unsafe { self.block(family, Place { row, rows, tile, tiles, prefetch: group == 0 }) };
                    row += rows;
                }
                tile += tiles;
            }
        }
    }

    /// # Safety
    /// The place must be within the job, and the processor must have the family.
    unsafe fn block(&self, family: Family, place: Place) {
        macro_rules! with_format {
            ($function:ident, $rows:literal, $tiles:literal) => {
                // SAFETY: as the caller's.
                unsafe {
                    match self.format {
                        Format::F32 => $function::<F32, $rows, $tiles>(self, place),
                        Format::F16 => $function::<F16, $rows, $tiles>(self, place),
                        Format::Bf16 => $function::<BF16, $rows, $tiles>(self, place),
                        Format::Q8_0 => $function::<Q8_0, $rows, $tiles>(self, place),
                        Format::Q4_0 => $function::<Q4_0, $rows, $tiles>(self, place),
                        Format::Q4_1 => $function::<Q4_1, $rows, $tiles>(self, place),
                        Format::Q5_0 => $function::<Q5_0, $rows, $tiles>(self, place),
                        Format::Q5_1 => $function::<Q5_1, $rows, $tiles>(self, place),
                        Format::Q4K => $function::<Q4K, $rows, $tiles>(self, place),
                        Format::Q5K => $function::<Q5K, $rows, $tiles>(self, place),
                        Format::Q6K => $function::<Q6K, $rows, $tiles>(self, place),
                    }
                }
            };
        }
        match (family, place.rows, place.tiles) {
            #[cfg(target_arch = "x86_64")]
            (Family::Avx512Vnni, 1, 1) => with_format!(avx512, 1, 1),
            #[cfg(target_arch = "x86_64")]
            (Family::Avx512Vnni, 2, 1) => with_format!(avx512, 2, 1),
            #[cfg(target_arch = "x86_64")]
            (Family::Avx512Vnni, 3, 1) => with_format!(avx512, 3, 1),
            #[cfg(target_arch = "x86_64")]
            (Family::Avx512Vnni, 4, 1) => with_format!(avx512, 4, 1),
            #[cfg(target_arch = "x86_64")]
            (Family::Avx512Vnni, 5, 1) => with_format!(avx512, 5, 1),
            #[cfg(target_arch = "x86_64")]
            (Family::Avx512Vnni, 6, 1) => with_format!(avx512, 6, 1),
            #[cfg(target_arch = "x86_64")]
            (Family::Avx512Vnni, 1, 2) => with_format!(avx512, 1, 2),
            #[cfg(target_arch = "x86_64")]
            (Family::Avx512Vnni, 2, 2) => with_format!(avx512, 2, 2),
            #[cfg(target_arch = "x86_64")]
            (Family::Avx512Vnni, 3, 2) => with_format!(avx512, 3, 2),
            #[cfg(target_arch = "x86_64")]
            (Family::Avx512Vnni, 4, 2) => with_format!(avx512, 4, 2),
            #[cfg(target_arch = "x86_64")]
            (Family::Avx512Vnni, 5, 2) => with_format!(avx512, 5, 2),
            #[cfg(target_arch = "x86_64")]
            (Family::Avx512Vnni, 6, 2) => with_format!(avx512, 6, 2),
            #[cfg(target_arch = "x86_64")]
            (Family::Avx2, 1, 1) => with_format!(avx2, 1, 1),
            #[cfg(target_arch = "x86_64")]
            (Family::Avx2, 2, 1) => with_format!(avx2, 2, 1),
            #[cfg(target_arch = "x86_64")]
            (Family::Avx2, 3, 1) => with_format!(avx2, 3, 1),
            _ => with_format!(plain, 1, 1),
        }
    }
}

/// Which results a block computes.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    rows: usize,
    tile: usize,
    tiles: usize,
    /// Whether the weights come from memory, and should be asked for in time.
    prefetch: bool,
}

// A parameter of a function cannot be an enum.
const F32: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;
const Q8_0: u8 = 3;
const Q4_0: u8 = 4;
const Q4K: u8 = 5;
const Q5K: u8 = 6;
const Q6K: u8 = 7;
const Q4_1: u8 = 8;
const Q5_0: u8 = 9;
const Q5_1: u8 = 10;

/// # Safety
/// As [`block`], on a processor with these instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn avx512<const FORMAT: u8, const M: usize, const N: usize>(job: &Job, place: Place) {
    // SAFETY: the instructions are enabled.
    unsafe { block::<crate::avx512::Avx512, FORMAT, M, N>(job, place) }
}

/// # Safety
/// As [`block`], on a processor with these instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<const FORMAT: u8, const M: usize, const N: usize>(job: &Job, place: Place) {
    // SAFETY: the instructions are enabled.
    unsafe { block::<crate::avx2::Avx2, FORMAT, M, N>(job, place) }
}

/// # Safety
/// As [`block`].
unsafe fn plain<const FORMAT: u8, const M: usize, const N: usize>(job: &Job, place: Place) {
    // SAFETY: plain Rust runs anywhere.
    unsafe { block::<crate::plain::Plain, FORMAT, M, N>(job, place) }
}

/// 128 rows of 2,048 codes are a quarter of the second cache of most cores. The engine's chunks of prompts are as long.
const ROWS_IN_CACHE: usize = 128;
/// Tasks that each thread gets, so that one that is held up does not hold up all.
const TASKS_OF_A_THREAD: usize = 4;
/// Multiplications from which handing tiles to other threads costs less than it saves.
const WORK_FOR_THREADS: usize = 1 << 17;
