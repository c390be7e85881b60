//! Quantised activations, as a product reads them.

use super::Job;
use crate::{BLOCK_INPUTS, SUPER};

/// Some of the rows at one super-block (see [`Activations`](crate::Activations)).
#[derive(Clone, Copy)]
pub(super) struct QuantisedRows {
    codes: *const i8,
    starts16: *const i32,
    sums32: *const i16,
    scales: *const f32,
    /// Blocks of the super-block.
    pub(super) blocks: usize,
}

impl QuantisedRows {
    /// From row `first` on, at super-block `index`, which has `blocks` blocks.
    ///
    /// # Safety
    /// The job must have such a row and such a super-block.
    #[inline(always)]
    pub(super) unsafe fn of(job: &Job, index: usize, blocks: usize, first: usize) -> Self {
        let before = index * job.rows * SUPER + first * blocks;
        // SAFETY: as the caller's.
        unsafe {
            Self {
                codes: job.codes.add(before * BLOCK_INPUTS),
                starts16: job.starts16.add(before * 2),
                sums32: job.sums32.add(before),
                scales: job.scales.add(index * job.rows + first),
                blocks,
            }
        }
    }

    /// The same, with a number of blocks that the compiler may know.
    #[inline(always)]
    pub(super) fn with_blocks(self, blocks: usize) -> Self {
        Self { blocks, ..self }
    }

    /// Where the activations of a row begin, or those of the last one end.
    #[inline(always)]
    pub(super) unsafe fn codes(&self, row: usize) -> *const i8 {
        // SAFETY: the caller's row is one of them, or the first that is not.
        unsafe { self.codes.add(row * self.blocks * BLOCK_INPUTS) }
    }

    /// Four activations.
    #[inline(always)]
    pub(super) unsafe fn four(&self, row: usize, input: usize) -> i32 {
        // SAFETY: the caller's row has so many activations.
        unsafe { self.codes.add(row * self.blocks * BLOCK_INPUTS + input).cast::<i32>().read_unaligned() }
    }

    #[inline(always)]
    pub(super) unsafe fn scale(&self, row: usize) -> f32 {
        // SAFETY: the caller's row has a scale.
        unsafe { *self.scales.add(row) }
    }

    /// Where the sum of half a block of Q6_K begins.
    #[inline(always)]
    pub(super) unsafe fn start16(&self, row: usize, half: usize) -> i32 {
        // SAFETY: the caller's row has so many halves of blocks.
        unsafe { *self.starts16.add(row * self.blocks * 2 + half) }
    }

    #[inline(always)]
    pub(super) unsafe fn sum32(&self, row: usize, block: usize) -> i32 {
        // SAFETY: the caller's row has so many blocks.
        i32::from(unsafe { *self.sums32.add(row * self.blocks + block) })
    }

    /// The sums of two blocks, as two i16.
    #[inline(always)]
    pub(super) unsafe fn sum_pair(&self, row: usize, block: usize) -> i32 {
        // SAFETY: the caller's row has so many blocks, and one more.
        unsafe { self.sums32.add(row * self.blocks + block).cast::<i32>().read_unaligned() }
    }
}
