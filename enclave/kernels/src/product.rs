//! Products of activations with packed weights.

#[cfg(target_arch = "x86_64")]
mod amx;
mod block;
mod rows;
mod wide;

use block::{Ahead, block};
use wide::{Area, Scratch, Vectors};
use zeroize::Zeroize;

use crate::Family;
use crate::activations::{Activations, View};
use crate::format::Format;
use crate::layout::{BAND, Layout};
use crate::packed::Packed;
use crate::team::{for_each, threads};

/// One matrix, and where its results go: rows of as many elements as the matrix has outputs.
pub struct Product<'a> {
    /// What to multiply with.
    pub weights: &'a Packed,
    /// Row by row.
    pub out: &'a mut [f32],
}

/// Multiplies the same activations with several matrices, divided among the threads of the [team](crate::Team) that runs this.
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
            assert_eq!(Some(out.len()), view.rows.checked_mul(weights.outputs()), "as many elements as results");
            if weights.format().is_quantised() {
                assert_eq!(view.codes.len(), view.rows * view.inputs, "quantised activations");
            }
            work += weights.outputs() * weights.inputs();
            Job::new(&view, weights, out)
        })
        .collect();
    let threads = threads();
    if threads == 1 || work * view.rows < WORK_FOR_THREADS {
        for job in &jobs {
            job.run(family, 0, job.layout.tiles);
        }
        return;
    }
    let tiles: usize = jobs.iter().map(|job| job.layout.tiles).sum();
    let together = tiles.div_ceil(threads * TASKS_OF_A_THREAD);
    // Whole bands, or as many tiles as divide one: better a few tasks more than one that all others wait for.
    let together = if together < BAND { 1 << together.ilog2().max(1) } else { together / BAND * BAND };
    let mut tasks: Vec<(&Job, usize)> =
        jobs.iter().flat_map(|job| (0..job.layout.tiles).step_by(together).map(move |first| (job, first))).collect();
    for_each(&mut tasks, |(job, first)| job.run(family, *first, job.layout.tiles.min(*first + together)));
}

/// A matrix and what it is multiplied with, as the kernels read them.
struct Job {
    layout: Layout,
    weights: *const u8,
    rows: usize,
    floats: *const f32,
    codes: *const i8,
    scales: *const f32,
    starts16: *const i32,
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
            layout: weights.layout(),
            weights: weights.start(),
            rows: view.rows,
            floats: view.floats.as_ptr(),
            codes: view.codes.as_ptr(),
            scales: view.scales.as_ptr(),
            starts16: view.starts16.as_ptr(),
            sums32: view.sums32.as_ptr(),
            out: out.as_mut_ptr(),
            outputs: weights.outputs(),
        }
    }

    /// Computes the columns of tiles `first` to `end`.
    fn run(&self, family: Family, first: usize, end: usize) {
        let (few, tiles_of_area) = match family {
            Family::Avx512Amx => (12, 2),
            Family::Avx512Vnni => (12, 2),
            Family::Avx2 => (3, 1),
            Family::NeonDotprod | Family::NeonI8mm => (4, 1),
            Family::Plain => (1, 1),
        };
        if self.rows > few && self.layout.format.is_quantised() {
            wide::SCRATCH.with_borrow_mut(|scratch| {
                // So many rows stay in the cache of the core while all tiles go by.
                for row in (0..self.rows).step_by(ROWS_IN_CACHE) {
                    let rows = ROWS_IN_CACHE.min(self.rows - row);
                    for tile in (first..end).step_by(tiles_of_area) {
                        let area = Area { row, rows, tile, goes_on: end - tile >= 2 * tiles_of_area };
                        // SAFETY: rows and tiles are within the job, and the processor has the family (`multiply` checked).
                        unsafe { self.area(family, area, tiles_of_area.min(end - tile), scratch) };
                    }
                }
                scratch.zeroize();
            });
            wipe_stack();
            return;
        }
        // More rows of floats than are multiplied at once read their weights again: one tile, which is still in a cache.
        let together = if self.rows > few { 1 } else { BAND };
        let mut tile = first;
        while tile < end {
            let tiles = (tile + 1).next_multiple_of(together).min(end) - tile;
            for row in (0..self.rows).step_by(few) {
                let rows = few.min(self.rows - row);
                let ahead = Ahead::of(family, self.layout.format, rows);
                // SAFETY: as above.
                unsafe { self.block(family, Place { row, rows, tile, tiles, ahead }) };
            }
            tile += tiles;
        }
        wipe_stack();
    }

    /// # Safety
    /// The area must be within the job, with `tiles` tiles; the format must be quantised, and the processor must have the family.
    unsafe fn area(&self, family: Family, area: Area, tiles: usize, scratch: &mut Scratch) {
        macro_rules! with_format {
            ($function:ident, $($number:literal),*) => {
                // SAFETY: as the caller's.
                unsafe {
                    match self.layout.format {
                        Format::Q8_0 => $function::<Q8_0, $($number),*>(self, area, scratch),
                        Format::Q4_0 => $function::<Q4_0, $($number),*>(self, area, scratch),
                        Format::Q4_1 => $function::<Q4_1, $($number),*>(self, area, scratch),
                        Format::Q5_0 => $function::<Q5_0, $($number),*>(self, area, scratch),
                        Format::Q5_1 => $function::<Q5_1, $($number),*>(self, area, scratch),
                        Format::Q4K => $function::<Q4K, $($number),*>(self, area, scratch),
                        Format::Q5K => $function::<Q5K, $($number),*>(self, area, scratch),
                        Format::Q6K => $function::<Q6K, $($number),*>(self, area, scratch),
                        Format::F32 | Format::F16 | Format::Bf16 => {}
                    }
                }
            };
        }
        match (family, tiles) {
            #[cfg(target_arch = "x86_64")]
            (Family::Avx512Amx, 2) => with_format!(wide_amx, 2),
            #[cfg(target_arch = "x86_64")]
            (Family::Avx512Amx, _) => with_format!(wide_amx, 1),
            #[cfg(target_arch = "x86_64")]
            (Family::Avx512Vnni, 2) => with_format!(wide_avx512, 6, 2),
            #[cfg(target_arch = "x86_64")]
            (Family::Avx512Vnni, _) => with_format!(wide_avx512, 6, 1),
            #[cfg(target_arch = "x86_64")]
            (Family::Avx2, _) => with_format!(wide_avx2, 3, 1),
            #[cfg(target_arch = "aarch64")]
            (Family::NeonDotprod, _) => with_format!(wide_neon_dotprod, 4, 1),
            #[cfg(target_arch = "aarch64")]
            (Family::NeonI8mm, _) => with_format!(wide_neon_i8mm, 4, 1),
            _ => with_format!(wide_plain, 1, 1),
        }
    }

    /// # Safety
    /// The place must be within the job, and the processor must have the family.
    unsafe fn block(&self, family: Family, place: Place) {
        macro_rules! with_format {
            ($function:ident, $rows:literal) => {
                // SAFETY: as the caller's.
                unsafe {
                    match self.layout.format {
                        Format::F32 => $function::<F32, $rows>(self, place),
                        Format::F16 => $function::<F16, $rows>(self, place),
                        Format::Bf16 => $function::<BF16, $rows>(self, place),
                        Format::Q8_0 => $function::<Q8_0, $rows>(self, place),
                        Format::Q4_0 => $function::<Q4_0, $rows>(self, place),
                        Format::Q4_1 => $function::<Q4_1, $rows>(self, place),
                        Format::Q5_0 => $function::<Q5_0, $rows>(self, place),
                        Format::Q5_1 => $function::<Q5_1, $rows>(self, place),
                        Format::Q4K => $function::<Q4K, $rows>(self, place),
                        Format::Q5K => $function::<Q5K, $rows>(self, place),
                        Format::Q6K => $function::<Q6K, $rows>(self, place),
                    }
                }
            };
        }
        macro_rules! with_rows {
            ($function:ident: $($rows:literal)*) => {
                match place.rows {
                    $($rows => with_format!($function, $rows),)*
                    _ => {}
                }
            };
        }
        match family {
            #[cfg(target_arch = "x86_64")]
            Family::Avx512Vnni | Family::Avx512Amx => with_rows!(avx512: 1 2 3 4 5 6 7 8 9 10 11 12),
            #[cfg(target_arch = "x86_64")]
            Family::Avx2 => with_rows!(avx2: 1 2 3),
            #[cfg(target_arch = "aarch64")]
            Family::NeonDotprod => with_rows!(neon_dotprod: 1 2 3 4),
            #[cfg(target_arch = "aarch64")]
            Family::NeonI8mm => with_rows!(neon_i8mm: 1 2 3 4),
            _ => with_rows!(plain: 1),
        }
    }
}

/// Overwrites what functions that were called before left on the stack: registers for which there was no room hold sums of activations.
#[inline(never)]
fn wipe_stack() {
    let frame = [0_u64; WIPED / size_of::<u64>()];
    zeroize::optimization_barrier(&frame);
}

/// Which results a block computes.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    rows: usize,
    tile: usize,
    /// They lie within one band.
    tiles: usize,
    ahead: Ahead,
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
unsafe fn avx512<const FORMAT: u8, const M: usize>(job: &Job, place: Place) {
    // SAFETY: the instructions are enabled.
    unsafe { block::<crate::avx512::Avx512, FORMAT, M>(job, place) }
}

/// # Safety
/// As [`block`], on a processor with these instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<const FORMAT: u8, const M: usize>(job: &Job, place: Place) {
    // SAFETY: the instructions are enabled.
    unsafe { block::<crate::avx2::Avx2, FORMAT, M>(job, place) }
}

/// # Safety
/// As [`block`], on a processor with these instructions.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
unsafe fn neon_dotprod<const FORMAT: u8, const M: usize>(job: &Job, place: Place) {
    // SAFETY: the instructions are enabled.
    unsafe { block::<crate::neon::Neon<false>, FORMAT, M>(job, place) }
}

/// # Safety
/// As [`block`], on a processor with these instructions.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod,i8mm")]
unsafe fn neon_i8mm<const FORMAT: u8, const M: usize>(job: &Job, place: Place) {
    // SAFETY: the instructions are enabled.
    unsafe { block::<crate::neon::Neon<true>, FORMAT, M>(job, place) }
}

/// Never a part of who calls it: what it leaves on the stack is wiped once it has returned.
///
/// # Safety
/// As [`block`].
#[inline(never)]
unsafe fn plain<const FORMAT: u8, const M: usize>(job: &Job, place: Place) {
    // SAFETY: plain Rust runs anywhere.
    unsafe { block::<crate::plain::Plain, FORMAT, M>(job, place) }
}

/// # Safety
/// As [`area`](wide::area), on a processor with these instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn wide_avx512<const FORMAT: u8, const M: usize, const N: usize>(job: &Job, area: Area, scratch: &mut Scratch) {
    // SAFETY: the instructions are enabled.
    unsafe { wide::area::<Vectors<crate::avx512::Avx512, M>, FORMAT, N>(job, area, scratch) }
}

/// # Safety
/// As [`area`](wide::area), on a processor with these instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn wide_amx<const FORMAT: u8, const N: usize>(job: &Job, area: Area, scratch: &mut Scratch) {
    // SAFETY: the instructions are enabled.
    unsafe { amx::area::<FORMAT, N>(job, area, scratch) }
}

/// # Safety
/// As [`area`](wide::area), on a processor with these instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn wide_avx2<const FORMAT: u8, const M: usize, const N: usize>(job: &Job, area: Area, scratch: &mut Scratch) {
    // SAFETY: the instructions are enabled.
    unsafe { wide::area::<Vectors<crate::avx2::Avx2, M>, FORMAT, N>(job, area, scratch) }
}

/// # Safety
/// As [`area`](wide::area), on a processor with these instructions.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
unsafe fn wide_neon_dotprod<const FORMAT: u8, const M: usize, const N: usize>(
    job: &Job,
    area: Area,
    scratch: &mut Scratch,
) {
    // SAFETY: the instructions are enabled.
    unsafe { wide::area::<Vectors<crate::neon::Neon<false>, M>, FORMAT, N>(job, area, scratch) }
}

/// # Safety
/// As [`area`](wide::area), on a processor with these instructions.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod,i8mm")]
unsafe fn wide_neon_i8mm<const FORMAT: u8, const M: usize, const N: usize>(
    job: &Job,
    area: Area,
    scratch: &mut Scratch,
) {
    // SAFETY: the instructions are enabled.
    unsafe { wide::area::<Vectors<crate::neon::Neon<true>, M>, FORMAT, N>(job, area, scratch) }
}

/// # Safety
/// As [`area`](wide::area).
#[inline(never)]
unsafe fn wide_plain<const FORMAT: u8, const M: usize, const N: usize>(job: &Job, area: Area, scratch: &mut Scratch) {
    // SAFETY: plain Rust runs anywhere.
    unsafe { wide::area::<Vectors<crate::plain::Plain, M>, FORMAT, N>(job, area, scratch) }
}

/// 128 rows of 2,048 codes are a quarter of the second cache of most cores. The engine's chunks of prompts are as long.
const ROWS_IN_CACHE: usize = 128;
/// Tasks that each thread gets, so that one that is held up does not hold up all.
const TASKS_OF_A_THREAD: usize = 4;
/// Multiplications from which handing tiles to other threads costs less than it saves.
const WORK_FOR_THREADS: usize = 1 << 17;
/// Bytes of the stack that are wiped after products: their frames take fewer.
const WIPED: usize = 16 << 10;
