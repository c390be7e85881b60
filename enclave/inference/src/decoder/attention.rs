//! Grouped-query attention of all rows of a step.

use std::sync::Arc;

use kernels::{Attention, BLOCK, Family, KvPage, KvShape, for_each};
use zeroize::Zeroizing;

/// The queries of one sequence in a step, and the pages that hold its keys and values, those of the step included.
pub(super) struct Attended<'a> {
    /// The first of its rows: where those of the sequence before it end.
    pub(super) row: usize,
    /// Position of that row in the sequence.
    pub(super) first: usize,
    /// Rows.
    pub(super) count: usize,
    pub(super) pages: &'a [Arc<KvPage>],
}

/// One layer.
pub(super) struct Heads<'a> {
    pub(super) family: Family,
    pub(super) shape: &'a KvShape,
    pub(super) layer: usize,
    /// Heads of queries that share a head of keys and values.
    pub(super) group: usize,
}

impl Heads<'_> {
    /// Reads `queries` (rows of all heads, scaled), and writes what they attend to into `out`, which lies alike.
    pub(super) fn attend(&self, sequences: &[Attended<'_>], queries: &[f32], out: &mut [f32]) {
        let width = self.group * self.shape.head_width;
        let row_width = width * self.shape.kv_heads;
        let mut tasks = Vec::new();
        let mut work = 0;
        for sequence in sequences {
            for start in (0..sequence.count).step_by(ROWS_OF_A_TASK) {
                let count = ROWS_OF_A_TASK.min(sequence.count - start);
                work += (sequence.first + start + count) * count * row_width;
                let attended = Zeroizing::new(Vec::new());
                tasks.extend(
                    (0..self.shape.kv_heads).map(|kv_head| (sequence, start, count, kv_head, attended.clone())),
                );
            }
        }
        let run = |(sequence, start, count, kv_head, attended): &mut Task<'_>| {
            let (start, count, kv_head) = (*start, *count, *kv_head);
            let mut gathered = Zeroizing::new(Vec::with_capacity(count * width));
            let rows = queries.chunks_exact(row_width).skip(sequence.row + start).take(count);
            rows.filter_map(|row| row.chunks_exact(width).nth(kv_head))
                .for_each(|heads| gathered.extend_from_slice(heads));
            let lengths: Vec<usize> =
                (0..count).flat_map(|row| [sequence.first + start + row + 1].repeat(self.group)).collect();
            let needed = lengths.last().map_or(0, |length| length.div_ceil(BLOCK));
            let pages: Vec<&[u8]> = sequence.pages.iter().take(needed).map(|page| page.bytes()).collect();
            *attended = Zeroizing::new(vec![0.0; count * width]);
            let attention = Attention { shape: self.shape, layer: self.layer, kv_head, pages: &pages };
            attention.attend(self.family, &gathered, &lengths, attended);
        };
        if work < WORK_FOR_THREADS {
            tasks.iter_mut().for_each(run);
        } else {
            for_each(&mut tasks, run);
        }
        // All heads of some rows side by side.
        let are_few = out.len() < COPIES_FOR_THREADS;
        let mut left = out;
        let mut gathered = Vec::new();
        for heads in tasks.chunks(self.shape.kv_heads) {
            let count = heads.first().map_or(0, |(_, _, count, _, _)| *count);
            let Some((rows, after)) = left.split_at_mut_checked(count * row_width) else { break };
            gathered.push((rows, heads));
            left = after;
        }
        let gather = |(rows, heads): &mut (&mut [f32], &[Task<'_>])| {
            for (index, row) in rows.chunks_exact_mut(row_width).enumerate() {
                for (place, (.., attended)) in row.chunks_exact_mut(width).zip(*heads) {
                    attended.chunks_exact(width).skip(index).take(1).for_each(|row| place.copy_from_slice(row));
                }
            }
        };
        if are_few {
            gathered.iter_mut().for_each(gather);
        } else {
            for_each(&mut gathered, gather);
        }
    }
}

/// Rows of a sequence, the first and how many; a head of keys and values; and what they attend to.
type Task<'a> = (&'a Attended<'a>, usize, usize, usize, Zeroizing<Vec<f32>>);

/// Rows that share a pass over the pages: as many as make reading them cheap, few enough to divide a prompt's chunk.
const ROWS_OF_A_TASK: usize = 32;
/// Multiplications from which handing heads to other threads costs less than it saves.
const WORK_FOR_THREADS: usize = 1 << 17;
/// Elements from which it does for what is only copied.
const COPIES_FOR_THREADS: usize = 1 << 16;
