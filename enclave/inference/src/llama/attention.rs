//! Grouped-query attention over the KV cache.

use candle_core::{Device, Tensor};
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use zeroize::Zeroizing;

use super::cache::LayerCache;
use super::math::{add_scaled, dot, softmax};
use super::{Config, ForwardError};

/// Queries of a chunk, all heads side by side, against the cache, which already holds the chunk's own keys and values.
pub(super) struct Attention<'a> {
    pub(super) config: &'a Config,
    pub(super) queries: &'a [f32],
    /// Position of the chunk's first token.
    pub(super) first: usize,
    /// Tokens in the chunk.
    pub(super) count: usize,
}

impl Attention<'_> {
    /// Rows of values, all heads side by side, weighted by how well their keys answer the queries.
    pub(super) fn over(&self, cache: &LayerCache) -> Result<Zeroizing<Vec<f32>>, ForwardError> {
        let length = self.first + self.count;
        let heads: Vec<_> = cache.heads(length).enumerate().collect();
        let work = length * self.count * self.config.query_width();
        let groups: Vec<Zeroizing<Vec<f32>>> = if work >= PARALLEL_FROM {
            let groups = heads.into_par_iter().map(|(head, (keys, values))| self.group(head, keys, values));
            groups.collect::<Result<_, _>>()?
        } else {
            let groups = heads.into_iter().map(|(head, (keys, values))| self.group(head, keys, values));
            groups.collect::<Result<_, _>>()?
        };
        Ok(self.side_by_side(&groups))
    }

    /// All query heads that share one head of keys and values: head by head, rows of all the chunk's tokens.
    fn group(&self, kv_head: usize, keys: &[f32], values: &[f32]) -> Result<Zeroizing<Vec<f32>>, ForwardError> {
        let width = self.config.head_width;
        let size = self.config.heads / self.config.kv_heads;
        let scale = 1.0 / (width as f32).sqrt();
        let mut queries = Zeroizing::new(Vec::with_capacity(size * self.count * width));
        for head in kv_head * size..(kv_head + 1) * size {
            for row in self.queries.chunks_exact(self.config.query_width()) {
                queries.extend(row.chunks_exact(width).skip(head).take(1).flatten().map(|x| x * scale));
            }
        }
        if self.count == 1 {
            Ok(one_position(&queries, keys, values, width))
        } else {
            Ok(self.many_positions(&queries, keys, values)?)
        }
    }

    fn many_positions(
        &self,
        queries: &[f32],
        keys: &[f32],
        values: &[f32],
    ) -> candle_core::Result<Zeroizing<Vec<f32>>> {
        let width = self.config.head_width;
        let (rows, length) = (queries.len() / width, keys.len() / width);
        let queries = Tensor::from_slice(queries, (rows, width), &Device::Cpu)?;
        let keys = Tensor::from_slice(keys, (length, width), &Device::Cpu)?;
        let values = Tensor::from_slice(values, (length, width), &Device::Cpu)?;
        let scores = queries.matmul(&keys.t()?)?.reshape(rows * length)?.to_vec1()?;
        let mut scores = Zeroizing::new(scores);
        for (row, scores) in scores.chunks_exact_mut(length).enumerate() {
            // A token sees itself and what came before.
            let (past, future) = scores.split_at_mut((self.first + row % self.count + 1).min(length));
            softmax(past);
            future.fill(0.0);
        }
        let weights = Tensor::from_slice(&scores, (rows, length), &Device::Cpu)?;
        Ok(Zeroizing::new(weights.matmul(&values)?.reshape(rows * width)?.to_vec1()?))
    }

    /// From group by group, head by head, token by token to token by token, head by head.
    fn side_by_side(&self, groups: &[Zeroizing<Vec<f32>>]) -> Zeroizing<Vec<f32>> {
        let width = self.config.head_width;
        let mut rows = Zeroizing::new(vec![0.0; self.count * self.config.query_width()]);
        let heads = groups.iter().flat_map(|group| group.chunks_exact(self.count * width));
        for (head, outputs) in heads.enumerate() {
            for (row, output) in rows.chunks_exact_mut(self.config.query_width()).zip(outputs.chunks_exact(width)) {
                if let Some(place) = row.chunks_exact_mut(width).nth(head) {
                    place.copy_from_slice(output);
                }
            }
        }
        rows
    }
}

/// A single token sees everything in the cache, and a matrix product for one row would only copy.
fn one_position(queries: &[f32], keys: &[f32], values: &[f32], width: usize) -> Zeroizing<Vec<f32>> {
    let mut outputs = Zeroizing::new(vec![0.0; queries.len()]);
    let mut scores = Zeroizing::new(vec![0.0; keys.len() / width]);
    for (query, output) in queries.chunks_exact(width).zip(outputs.chunks_exact_mut(width)) {
        for (score, key) in scores.iter_mut().zip(keys.chunks_exact(width)) {
            *score = dot(query, key);
        }
        softmax(&mut scores);
        for (&score, value) in scores.iter().zip(values.chunks_exact(width)) {
            add_scaled(output, score, value);
        }
    }
    outputs
}

/// Multiplications from which handing heads to other threads costs less than it saves.
const PARALLEL_FROM: usize = 1 << 20;
