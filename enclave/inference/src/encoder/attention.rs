//! Attention of every token of a text to all of them.

use kernels::{Attention, BLOCK, Family, KvElement, KvPage, KvShape, for_each, write_kv};
use zeroize::Zeroizing;

/// Queries (scaled), keys and values of a group of texts: rows of all heads, one after the other.
pub(super) struct Heads<'a> {
    pub(super) family: Family,
    pub(super) heads: usize,
    pub(super) head_width: usize,
    pub(super) queries: &'a [f32],
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
}

impl Heads<'_> {
    /// Writes what the rows attend to into `out`, which lies as `queries`. `lengths` are the rows of each text.
    pub(super) fn attend(&self, lengths: &[usize], out: &mut [f32]) {
        let row_width = self.heads * self.head_width;
        let mut tasks = Vec::with_capacity(lengths.len() * self.heads);
        let (mut first, mut work) = (0, 0);
        for &count in lengths {
            tasks.extend((0..self.heads).map(|head| (first, count, head, Zeroizing::new(Vec::new()))));
            first += count;
            work += count * count * row_width;
        }
        let run = |(first, count, head, attended): &mut (usize, usize, usize, Zeroizing<Vec<f32>>)| {
            *attended = self.head(*first, *count, *head);
        };
        if work < WORK_FOR_THREADS {
            tasks.iter_mut().for_each(run);
        } else {
            for_each(&mut tasks, run);
        }
        for (first, count, head, attended) in &tasks {
            let rows = out.chunks_exact_mut(row_width).skip(*first).take(*count);
            for (row, attended) in rows.zip(attended.chunks_exact(self.head_width)) {
                row.chunks_exact_mut(self.head_width)
                    .skip(*head)
                    .take(1)
                    .for_each(|place| place.copy_from_slice(attended));
            }
        }
    }

    /// One head of one text, whose keys and values lie in pages of their own: few enough to stay in the cache of the core.
    fn head(&self, first: usize, count: usize, head: usize) -> Zeroizing<Vec<f32>> {
        let width = self.head_width;
        let shape = KvShape { layers: 1, kv_heads: 1, head_width: width, element: KvElement::F32 };
        let mut pages: Vec<KvPage> = (0..count.div_ceil(BLOCK)).map(|_| KvPage::zeroed(&shape)).collect();
        let rows = self.of_head(self.keys, first, count, head).zip(self.of_head(self.values, first, count, head));
        for (position, (key, value)) in rows.enumerate() {
            if let Some(page) = pages.get_mut(position / BLOCK) {
                write_kv(&shape, page.bytes_mut(), 0, position % BLOCK, key, value);
            }
        }
        let pages: Vec<&[u8]> = pages.iter().map(KvPage::bytes).collect();
        let mut queries = Zeroizing::new(Vec::with_capacity(count * width));
        self.of_head(self.queries, first, count, head).for_each(|query| queries.extend_from_slice(query));
        let mut attended = Zeroizing::new(vec![0.0; count * width]);
        let attention = Attention { shape: &shape, layer: 0, kv_head: 0, pages: &pages };
        attention.attend(self.family, &queries, &vec![count; count], &mut attended);
        attended
    }

    fn of_head<'a>(&self, rows: &'a [f32], first: usize, count: usize, head: usize) -> impl Iterator<Item = &'a [f32]> {
        let width = self.head_width;
        rows.chunks_exact(self.heads * width)
            .skip(first)
            .take(count)
            .filter_map(move |row| row.chunks_exact(width).nth(head))
    }
}

/// Multiplications from which handing heads to other threads costs less than it saves.
const WORK_FOR_THREADS: usize = 1 << 17;
