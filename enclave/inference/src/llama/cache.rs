//! Keys and values of one sequence, with room from the start for all that it may become.

use zeroize::Zeroize;

use super::Config;

/// The KV cache of one sequence. Prompt and answer can be told from it, so it is wiped on drop.
pub(crate) struct KvCache {
    layers: Vec<LayerCache>,
    length: usize,
    capacity: usize,
}

/// One layer: for each head, `capacity` keys (and values) one after the other.
pub(super) struct LayerCache {
    keys: Vec<f32>,
    values: Vec<f32>,
    capacity: usize,
    head_width: usize,
    /// Positions that were ever written.
    written: usize,
}

impl KvCache {
    /// Room for `capacity` tokens: `capacity * Config::kv_bytes_per_token` bytes.
    pub(crate) fn new(config: &Config, capacity: usize) -> Self {
        let elements = capacity * config.kv_width();
        let layers = (0..config.layers)
            .map(|_| LayerCache {
                keys: vec![0.0; elements],
                values: vec![0.0; elements],
                capacity,
                head_width: config.head_width,
                written: 0,
            })
            .collect();
        Self { layers, length: 0, capacity }
    }

    /// Tokens in the cache.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Tokens that still fit.
    pub(crate) fn room(&self) -> usize {
        self.capacity - self.length
    }

    pub(super) fn layers_mut(&mut self) -> impl Iterator<Item = &mut LayerCache> {
        self.layers.iter_mut()
    }

    /// Takes note that every layer has got `count` more positions.
    pub(super) fn advance(&mut self, count: usize) {
        self.length += count;
    }
}

impl LayerCache {
    /// Puts the rows of `keys` and `values`, all heads side by side, at positions `first` onward.
    pub(super) fn store(&mut self, first: usize, keys: &[f32], values: &[f32]) {
        let (capacity, width) = (self.capacity, self.head_width);
        self.written = self.written.max(first + keys.len() / (self.keys.len() / capacity));
        for (cache, rows) in [(&mut self.keys, keys), (&mut self.values, values)] {
            let heads = cache.len() / (capacity * width);
            for (head, store) in cache.chunks_exact_mut(capacity * width).enumerate() {
                let places = store.chunks_exact_mut(width).skip(first);
                let heads_of_rows = rows.chunks_exact(width).skip(head).step_by(heads);
                for (place, row) in places.zip(heads_of_rows) {
                    place.copy_from_slice(row);
                }
            }
        }
    }

    /// For each head, the first `length` keys and values.
    pub(super) fn heads(&self, length: usize) -> impl Iterator<Item = (&[f32], &[f32])> {
        let stride = self.capacity * self.head_width;
        let used = length * self.head_width;
        let keys = self.keys.chunks_exact(stride).filter_map(move |head| head.get(..used));
        let values = self.values.chunks_exact(stride).filter_map(move |head| head.get(..used));
        keys.zip(values)
    }
}

impl Drop for LayerCache {
    /// Wipes what was written; the rest was never touched and has no memory yet, which wiping it would claim.
    fn drop(&mut self) {
        let used = self.written * self.head_width;
        for cache in [&mut self.keys, &mut self.values] {
            for head in cache.chunks_exact_mut(self.capacity * self.head_width) {
                head.get_mut(..used).into_iter().for_each(Zeroize::zeroize);
            }
        }
    }
}
