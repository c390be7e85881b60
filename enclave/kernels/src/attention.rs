//! Attention over a paged KV cache.

use std::ptr::null;

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use zeroize::{Zeroize, Zeroizing};

use crate::dispatch::for_each_family;
use crate::math::{exp, largest, total};
use crate::store::{LINE, Store};
use crate::vector::Vector;
use crate::{Family, LANES};

/// Positions of a page.
pub const BLOCK: usize = 64;

/// How keys and values are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvElement {
    /// As they were computed.
    F32,
    /// As half-precision floats; what is too large becomes the largest.
    F16,
}

/// What a KV cache holds of a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers.
    pub layers: usize,
    /// Heads of keys and values in each.
    pub kv_heads: usize,
    /// Elements of a key, and of a value.
    pub head_width: usize,
    /// How they are held.
    pub element: KvElement,
}

/// The attention of one head of keys and values in one layer.
///
/// A page holds [`BLOCK`] positions of all layers and heads. Of a head it holds keys in tiles of 16 positions, element by element,
/// and values in tiles of 16 elements, position by position: both are read as a matrix product reads its weights.
pub struct Attention<'a> {
    /// What the pages hold.
    pub shape: &'a KvShape,
    /// Which layer.
    pub layer: usize,
    /// Which head of keys and values.
    pub kv_head: usize,
    /// Pages of [`KvShape::page_bytes`], from position 0 on.
    pub pages: &'a [&'a [u8]],
}

/// A page of a KV cache. Prompt and answer can be told from it: it is wiped on drop.
pub struct KvPage(Store);

impl KvPage {
    /// With nothing in it.
    #[must_use]
    pub fn zeroed(shape: &KvShape) -> Self {
        Self(Store::zeroed(shape.page_bytes()))
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    /// Its bytes, to write to.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }
}

impl Drop for KvPage {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl KvElement {
    /// Bytes of an element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

impl KvShape {
    /// Bytes of a page.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.layers.saturating_mul(self.kv_heads).saturating_mul(self.head_bytes())
    }

    /// Where the heads of a layer lie in a page.
    ///
    /// # Panics
    /// When the page is not of the shape, or has no such layer.
    pub fn heads_mut<'a>(&self, page: &'a mut [u8], layer: usize) -> std::slice::ChunksExactMut<'a, u8> {
        assert!(page.len() == self.page_bytes(), "a page of this shape");
        let bytes = self.head_bytes();
        page[self.head_offset(layer, 0)..][..self.kv_heads * bytes].chunks_exact_mut(bytes)
    }

    fn head_bytes(&self) -> usize {
        (self.head_width.saturating_add(self.padded())).saturating_mul(BLOCK * self.element.bytes())
    }

    fn padded(&self) -> usize {
        self.head_width.checked_next_multiple_of(LANES).unwrap_or(usize::MAX)
    }

    fn head_offset(&self, layer: usize, kv_head: usize) -> usize {
        assert!(layer < self.layers && kv_head < self.kv_heads, "a head of the cache");
        (layer * self.kv_heads + kv_head) * self.head_bytes()
    }
}

/// Puts the keys and values of positions that follow each other into a page, from position `slot` of it on. Both are rows of all
/// heads.
///
/// # Panics
/// As [`write_head`] and [`KvShape::heads_mut`].
pub fn write_kv(shape: &KvShape, page: &mut [u8], layer: usize, slot: usize, keys: &[f32], values: &[f32]) {
    for (head, place) in shape.heads_mut(page, layer).enumerate() {
        write_head(shape, place, head, slot, keys, values);
    }
}

/// The same for one head, into its [place](KvShape::heads_mut): what sixteen positions share of it stays in the first cache.
///
/// # Panics
/// When the place or the lengths are not of the shape, or a page has not so many positions.
pub fn write_head(shape: &KvShape, place: &mut [u8], head: usize, slot: usize, keys: &[f32], values: &[f32]) {
    let (head_width, width) = (shape.head_width, shape.kv_heads * shape.head_width);
    assert!(place.len() == shape.head_bytes() && head < shape.kv_heads, "a head of this shape");
    assert!(keys.len() == values.len() && keys.len().is_multiple_of(width), "rows of this shape");
    assert!(slot <= BLOCK && keys.len() / width <= BLOCK - slot, "positions of the page");
    let to_convert = if shape.element == KvElement::F16 { 2 * head_width } else { 0 };
    let mut both = Zeroizing::new(vec![0.0; to_convert]);
    let mut halves = Zeroizing::new(vec![0_u16; to_convert]);
    let (key_tiles, value_tiles) = place.split_at_mut(BLOCK * head_width * shape.element.bytes());
    for (slot, (keys, values)) in (slot..).zip(keys.chunks_exact(width).zip(values.chunks_exact(width))) {
        let (key, value) = (&keys[head * head_width..][..head_width], &values[head * head_width..][..head_width]);
        match shape.element {
            KvElement::F32 => scatter(key_tiles, value_tiles, slot, key, value, f32::to_le_bytes),
            KvElement::F16 => {
                for (places, elements) in both.chunks_exact_mut(head_width).zip([key, value]) {
                    for (place, x) in places.iter_mut().zip(elements) {
                        *place = x.clamp(-LARGEST, LARGEST);
                    }
                }
                // Faster than one after the other by far.
                halves.reinterpret_cast_mut::<f16>().convert_from_f32_slice(&both);
                let (key, value) = halves.split_at(head_width);
                scatter(key_tiles, value_tiles, slot, key, value, u16::to_le_bytes);
            }
        }
    }
}

fn scatter<T: Copy, const SIZE: usize>(
    keys: &mut [u8],
    values: &mut [u8],
    slot: usize,
    key: &[T],
    value: &[T],
    bytes: impl Fn(T) -> [u8; SIZE],
) {
    let tile = &mut keys[slot / LANES * key.len() * LANES * SIZE..][..key.len() * LANES * SIZE];
    for (lanes, &x) in tile.chunks_exact_mut(LANES * SIZE).zip(key) {
        lanes[slot % LANES * SIZE..][..SIZE].copy_from_slice(&bytes(x));
    }
    for (tile, chunk) in values.chunks_exact_mut(BLOCK * LANES * SIZE).zip(value.chunks(LANES)) {
        let place = &mut tile[slot * LANES * SIZE..][..LANES * SIZE];
        for (place, &x) in place.as_chunks_mut::<SIZE>().0.iter_mut().zip(chunk) {
            *place = bytes(x);
        }
    }
}

impl Attention<'_> {
    /// For each query, the values of the first `lengths` positions, weighted by the softmax of their keys' products with it.
    ///
    /// `queries` and `out` hold as many rows as there are lengths, of `head_width` elements; queries are scaled already. What comes
    /// out for a query does not depend on the others.
    ///
    /// # Panics
    /// When pages or lengths do not go together, or a length is zero.
    pub fn attend(&self, family: Family, queries: &[f32], lengths: &[usize], out: &mut [f32]) {
        let width = self.shape.head_width;
        let rows = lengths.len();
        assert!(queries.len() == rows * width && out.len() == queries.len(), "as many rows as lengths");
        assert!(
            lengths.iter().all(|length| (1..=self.pages.len() * BLOCK).contains(length)),
            "lengths within the pages"
        );
        assert!(self.pages.iter().all(|page| page.len() == self.shape.page_bytes()), "pages of this shape");
        let padded = self.shape.padded();
        let mut sums = Zeroizing::new(vec![0.0; rows * padded]);
        let mut states = Zeroizing::new(vec![State { largest: f32::NEG_INFINITY, total: 0.0 }; rows]);
        let mut weights = Zeroizing::new([[0.0; BLOCK]; ROWS]);
        let offset = self.shape.head_offset(self.layer, self.kv_head);
        for (index, page) in self.pages.iter().enumerate() {
            let head = &page[offset..][..self.shape.head_bytes()];
            let (keys, values) = head.split_at(BLOCK * width * self.shape.element.bytes());
            // After the last page, a thread goes on with the first one of the next head.
            let next = match self.pages.get(index + 1) {
                Some(page) => &page[offset..],
                None => &self.pages[0][offset + self.shape.head_bytes()..],
            };
            let next = if next.is_empty() { null() } else { next.as_ptr() };
            let block = Block { keys, values, next, first: index * BLOCK, width, padded };
            match self.shape.element {
                KvElement::F32 => block_f32(family, &block, queries, lengths, &mut states, &mut sums, &mut weights),
                KvElement::F16 => block_f16(family, &block, queries, lengths, &mut states, &mut sums, &mut weights),
            }
        }
        for ((out, sums), state) in out.chunks_exact_mut(width).zip(sums.chunks_exact(padded)).zip(states.iter()) {
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = sum / state.total;
            }
        }
    }
}

/// A row so far: the largest product, and the sum of the weights relative to it (Milakov and Gimelshein 2018).
#[derive(Clone, Copy, Zeroize)]
struct State {
    largest: f32,
    total: f32,
}

/// Of the rows that are computed together, the weights of a page's positions. Which words a prompt looks back to can be told from them.
type Weights = [[f32; BLOCK]; ROWS];

/// One head's keys and values of one page.
struct Block<'a> {
    keys: &'a [u8],
    values: &'a [u8],
    /// What is read after it, and lies alike; null if nothing is.
    next: *const u8,
    first: usize,
    width: usize,
    padded: usize,
}

for_each_family!(fn block_f32 = block_of_f32(
    block: &Block<'_>, queries: &[f32], lengths: &[usize], states: &mut [State], sums: &mut [f32], weights: &mut Weights,
));
for_each_family!(fn block_f16 = block_of_f16(
    block: &Block<'_>, queries: &[f32], lengths: &[usize], states: &mut [State], sums: &mut [f32], weights: &mut Weights,
));

#[inline(always)]
unsafe fn block_of_f32<V: Vector>(
    block: &Block<'_>,
    queries: &[f32],
    lengths: &[usize],
    states: &mut [State],
    sums: &mut [f32],
    weights: &mut Weights,
) {
    // SAFETY: as the caller's.
    unsafe { over_block::<V, false>(block, queries, lengths, states, sums, weights) }
}

#[inline(always)]
unsafe fn block_of_f16<V: Vector>(
    block: &Block<'_>,
    queries: &[f32],
    lengths: &[usize],
    states: &mut [State],
    sums: &mut [f32],
    weights: &mut Weights,
) {
    // SAFETY: as the caller's.
    unsafe { over_block::<V, true>(block, queries, lengths, states, sums, weights) }
}

/// Four rows at a time, so that each key and value that is read serves four queries.
#[inline(always)]
unsafe fn over_block<V: Vector, const F16: bool>(
    block: &Block<'_>,
    queries: &[f32],
    lengths: &[usize],
    states: &mut [State],
    sums: &mut [f32],
    weights: &mut Weights,
) {
    let Block { width, padded, mut next, .. } = *block;
    let mut row = 0;
    while row < lengths.len() {
        let rows = ROWS.min(lengths.len() - row);
        let lengths = &lengths[row..row + rows];
        if lengths.iter().any(|&length| length > block.first) {
            let queries = &queries[row * width..(row + rows) * width];
            let states = &mut states[row..row + rows];
            let sums = &mut sums[row * padded..(row + rows) * padded];
            // SAFETY: as the caller's, with as many rows as there are lengths.
            unsafe {
                match rows {
                    1 => rows_over_block::<V, F16, 1>(block, next, queries, lengths, states, sums, weights),
                    2 => rows_over_block::<V, F16, 2>(block, next, queries, lengths, states, sums, weights),
                    3 => rows_over_block::<V, F16, 3>(block, next, queries, lengths, states, sums, weights),
                    _ => rows_over_block::<V, F16, 4>(block, next, queries, lengths, states, sums, weights),
                }
            }
            next = null();
        }
        row += rows;
    }
}

#[inline(always)]
unsafe fn rows_over_block<V: Vector, const F16: bool, const M: usize>(
    block: &Block<'_>,
    next: *const u8,
    queries: &[f32],
    lengths: &[usize],
    states: &mut [State],
    sums: &mut [f32],
    weights: &mut Weights,
) {
    let Block { keys, values, first, width, padded, .. } = *block;
    let next_values = if next.is_null() { next } else { next.wrapping_add(keys.len()) };
    let size = if F16 { 2 } else { 4 };
    let mut counts = [0; M];
    // SAFETY: keys are 4 tiles of `width` times 16 elements, values `padded / 16` tiles of 64 times 16; there are `M` queries of
    // `width` elements, and `M` sums of `padded`.
    unsafe {
        let longest = lengths.iter().fold(0, |longest, length| longest.max(length.saturating_sub(first)));
        let (keys, stride) = (keys.as_ptr(), width * LANES * size);
        let (queries, products_of) = (queries.as_ptr(), weights.as_flattened_mut().as_mut_ptr());
        // In the block in which rows end, no tile that none of them sees.
        macro_rules! of_tiles {
            ($tiles:literal) => {
                products::<V, F16, M, $tiles>(keys, next, stride, width, queries, width, products_of, BLOCK, false)
            };
        }
        match longest.div_ceil(LANES) {
            0 | 1 => of_tiles!(1),
            2 => of_tiles!(2),
            3 => of_tiles!(3),
            _ => of_tiles!(4),
        }
        for row in 0..M {
            let count = lengths[row].saturating_sub(first).min(BLOCK);
            counts[row] = count;
            let weights = &mut weights[row];
            weights[count..].fill(f32::NEG_INFINITY);
            let mut peak = V::splat(states[row].largest);
            for tile in 0..BLOCK / LANES {
                peak = V::load(weights.as_ptr().add(tile * LANES)).max(peak);
            }
            let peak = largest(peak);
            if count == 0 {
                weights.fill(0.0);
                continue;
            }
            let mut sum = V::splat(0.0);
            for tile in 0..BLOCK / LANES {
                let at = weights.as_mut_ptr().add(tile * LANES);
                exp(V::load(at).sub(V::splat(peak))).store(at);
            }
            weights[count..].fill(0.0);
            for tile in 0..BLOCK / LANES {
                sum = sum.add(V::load(weights.as_ptr().add(tile * LANES)));
            }
            let mut before = [0.0_f32; LANES];
            exp(V::splat(states[row].largest - peak)).store(before.as_mut_ptr());
            // Nothing was there before the first block: its weight is none, not the smallest.
            let before = if states[row].total == 0.0 { 0.0 } else { before[0] };
            states[row] = State { largest: peak, total: states[row].total * before + total(sum) };
            let factor = V::splat(before);
            for chunk in 0..padded / LANES {
                let at = sums.as_mut_ptr().add(row * padded + chunk * LANES);
                V::load(at).mul(factor).store(at);
            }
        }
        let least = counts.iter().copied().fold(BLOCK, usize::min);
        let mut chunk = 0;
        let stride = BLOCK * LANES * size;
        while chunk < padded / LANES {
            let (at, out) = (values.as_ptr().add(chunk * stride), sums.as_mut_ptr().add(chunk * LANES));
            let next = if next.is_null() { next } else { next_values.wrapping_add(chunk * stride) };
            let left = padded / LANES - chunk;
            let weights = weights.as_flattened().as_ptr();
            // What only some of the rows see is added row by row: a value that is no number must not reach those that do not.
            if left >= 4 {
                products::<V, F16, M, 4>(at, next, stride, least, weights, BLOCK, out, padded, true);
            } else {
                products::<V, F16, M, 1>(at, next, stride, least, weights, BLOCK, out, padded, true);
            }
            for row in 0..M {
                let (at, more) = (at.add(least * LANES * size), counts[row] - least);
                let (weights, out) = (weights.add(row * BLOCK + least), out.add(row * padded));
                if more > 0 && left >= 4 {
                    products::<V, F16, 1, 4>(at, null(), stride, more, weights, BLOCK, out, padded, true);
                } else if more > 0 {
                    products::<V, F16, 1, 1>(at, null(), stride, more, weights, BLOCK, out, padded, true);
                }
            }
            chunk += if left >= 4 { 4 } else { 1 };
        }
    }
}

/// `M` rows times `N` tiles of 16 columns: `out = rows * tiles`, or added to what is there. Meanwhile it asks for as much from `next`
/// on, unless that is null: the processor does not know which page comes next, and sees no stream in tiles.
///
/// # Safety
/// Each tile has `count` times 16 elements, each row `count`; each row of `out` has `N` times 16.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "two matrices and a third, each with its stride")]
unsafe fn products<V: Vector, const F16: bool, const M: usize, const N: usize>(
    tiles: *const u8,
    next: *const u8,
    tile_stride: usize,
    count: usize,
    rows: *const f32,
    row_stride: usize,
    out: *mut f32,
    out_stride: usize,
    add: bool,
) {
    // SAFETY: as the caller's.
    unsafe {
        let mut sums = [[V::splat(0.0); N]; M];
        if add {
            for row in 0..M {
                for tile in 0..N {
                    sums[row][tile] = V::load(out.add(row * out_stride + tile * LANES));
                }
            }
        }
        let bytes = N * LANES * if F16 { 2 } else { 4 };
        for index in 0..count {
            if !next.is_null() {
                for line in 0..bytes.div_ceil(LINE) {
                    V::prefetch(next.wrapping_add(index * bytes + line * LINE));
                }
            }
            let mut lanes = [V::splat(0.0); N];
            for tile in 0..N {
                let at = tiles.add(tile * tile_stride);
                lanes[tile] = if F16 {
                    V::load_f16(at.add(index * LANES * 2))
                } else {
                    V::load(at.add(index * LANES * 4).cast())
                };
            }
            for row in 0..M {
                let with = V::splat(*rows.add(row * row_stride + index));
                for tile in 0..N {
                    sums[row][tile] = lanes[tile].fma(with, sums[row][tile]);
                }
            }
        }
        for row in 0..M {
            for tile in 0..N {
                sums[row][tile].store(out.add(row * out_stride + tile * LANES));
            }
        }
    }
}

/// `f16::MAX`.
const LARGEST: f32 = 65504.0;
/// Queries that share what is read.
const ROWS: usize = 4;
