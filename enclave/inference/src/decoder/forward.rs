//! From tokens to logits: one step, of all sequences that take part in it.

use kernels::{Activations, BLOCK, Family, KvPage, Product, add, for_each, multiply, rms_norm, swiglu, write_kv};
use zeroize::Zeroizing;

use super::attention::{Attended, Heads};
use super::rope::Rotation;
use super::weights::Layer;
use super::{Decoder, KvCache};

/// A sequence's part of a step: what is appended to it.
pub(crate) struct Run<'a> {
    /// Its keys and values so far.
    pub(crate) cache: &'a mut KvCache,
    /// At least one, all in the vocabulary.
    pub(crate) tokens: &'a [u32],
    /// Of how many of them, the last ones, the logits of what may follow are wanted.
    pub(crate) wants_logits: usize,
}

/// Buffers that are kept from step to step. Prompt and answer can be told from them: they are wiped on drop.
#[derive(Default)]
pub(crate) struct Scratch {
    state: Zeroizing<Vec<f32>>,
    normed: Activations,
    queries: Zeroizing<Vec<f32>>,
    keys: Zeroizing<Vec<f32>>,
    values: Zeroizing<Vec<f32>>,
    attended: Activations,
    product: Zeroizing<Vec<f32>>,
    gate: Activations,
    up: Zeroizing<Vec<f32>>,
    last: Activations,
}

/// All who wanted the step have gone; its sequences are left as they are, and cannot go on.
pub(crate) struct Abandoned;

impl Decoder {
    /// Appends the tokens of each run to its sequence. Gives the logits that were wanted, in the order of the tokens, each of as many
    /// elements as the vocabulary has tokens.
    ///
    /// What a sequence gets does not depend on what else is in the step, nor on how its tokens are divided into steps.
    /// `abandon` is asked before each layer.
    pub(crate) fn step(
        &self,
        runs: &mut [Run<'_>],
        scratch: &mut Scratch,
        abandon: &dyn Fn() -> bool,
    ) -> Result<Zeroizing<Vec<f32>>, Abandoned> {
        let width = self.config.width;
        let rows: usize = runs.iter().map(|run| run.tokens.len()).sum();
        let positions: Vec<usize> =
            runs.iter().flat_map(|run| run.cache.len()..run.cache.len() + run.tokens.len()).collect();
        let rotation = self.weights.rope.rotation(&positions);
        for run in runs.iter_mut() {
            run.cache.reserve(&self.kv_shape, run.tokens.len());
        }
        let tokens = runs.iter().flat_map(|run| run.tokens);
        resize(&mut scratch.state, rows * width);
        for (token, row) in tokens.zip(scratch.state.chunks_exact_mut(width)) {
            self.weights.embedding.row(*token as usize, row);
        }
        for (index, layer) in self.weights.layers.iter().enumerate() {
            if abandon() {
                return Err(Abandoned);
            }
            self.attend(index, layer, runs, &rotation, scratch);
            if scratch.state.is_empty() {
                break;
            }
            self.feed_forward(layer, scratch);
        }
        for run in runs.iter_mut() {
            run.cache.advance(run.tokens.len());
        }
        Ok(self.logits(scratch))
    }

    /// In the last layer, leaves in `state` only the rows whose logits are wanted: of the others, only keys and values are used again.
    fn attend(&self, index: usize, layer: &Layer, runs: &mut [Run<'_>], rotation: &Rotation, scratch: &mut Scratch) {
        let (width, query, key_value) = (self.config.width, self.config.query_width(), self.config.kv_width());
        let Scratch { state, normed, queries, keys, values, attended, product, .. } = scratch;
        let rows = state.len() / width;
        let goes_on = |run: &Run<'_>| {
            if index + 1 == self.weights.layers.len() { run.wants_logits } else { run.tokens.len() }
        };
        let left: usize = runs.iter().map(goes_on).sum();
        norm(self.family, state, &layer.attention_norm, self.config.rms_epsilon, normed.rows_mut(rows, width));
        normed.quantise(self.family);
        resize(queries, left * query);
        resize(keys, rows * key_value);
        resize(values, rows * key_value);
        let of_keys = Product { weights: &layer.key, out: keys };
        let of_values = Product { weights: &layer.value, out: values };
        let of_queries = Product { weights: &layer.query, out: queries };
        let narrowed;
        let rotation_of_queries = if left == rows {
            multiply(self.family, normed, &mut [of_queries, of_keys, of_values]);
            rotation
        } else {
            multiply(self.family, normed, &mut [of_keys, of_values]);
            let positions = narrow(state, width, runs);
            norm(self.family, state, &layer.attention_norm, self.config.rms_epsilon, normed.rows_mut(left, width));
            normed.quantise(self.family);
            multiply(self.family, normed, &mut [of_queries]);
            narrowed = self.weights.rope.rotation(&positions);
            &narrowed
        };
        each_row(keys, key_value, |row, keys| {
            self.position(layer, 1, keys);
            rotation.apply(row, keys);
        });
        if let Some([_, _, bias]) = &layer.biases {
            values.chunks_exact_mut(key_value).for_each(|row| add(row, bias));
        }
        self.keep(index, runs, keys, values);
        if left == 0 {
            return;
        }
        let scale = 1.0 / (self.config.head_width as f32).sqrt();
        each_row(queries, query, |row, queries| {
            self.position(layer, 0, queries);
            rotation_of_queries.apply(row, queries);
            queries.iter_mut().for_each(|x| *x *= scale);
        });
        let mut row = 0;
        let mut sequences = Vec::with_capacity(runs.len());
        for run in runs.iter() {
            let count = goes_on(run);
            let first = run.cache.len() + run.tokens.len() - count;
            sequences.push(Attended { row, first, count, pages: run.cache.pages() });
            row += count;
        }
        let group = self.config.heads / self.config.kv_heads;
        let heads = Heads { family: self.family, shape: &self.kv_shape, layer: index, group };
        heads.attend(&sequences, queries, attended.rows_mut(left, query));
        attended.quantise(self.family);
        resize(product, left * width);
        multiply(self.family, attended, &mut [Product { weights: &layer.attention_output, out: product }]);
        add(state, product);
    }

    /// Puts the keys and values of all rows into the pages of their sequences.
    fn keep(&self, index: usize, runs: &mut [Run<'_>], keys: &[f32], values: &[f32]) {
        let width = self.config.kv_width();
        let mut row = 0;
        let mut tasks = Vec::new();
        for run in runs.iter_mut() {
            let end = row + run.tokens.len();
            let mut slot = run.cache.len() % BLOCK;
            for page in run.cache.pages_mut(run.tokens.len()) {
                let rows = row * width..end.min(row + BLOCK - slot) * width;
                let first = std::mem::take(&mut slot);
                row = rows.end / width;
                if let (Some(page), Some(keys), Some(values)) = (page, keys.get(rows.clone()), values.get(rows)) {
                    tasks.push((page, first, keys, values));
                }
            }
            row = end;
        }
        let keep = |(page, slot, keys, values): &mut (&mut KvPage, usize, &[f32], &[f32])| {
            write_kv(&self.kv_shape, page.bytes_mut(), index, *slot, keys, values);
        };
        if keys.len() / width < ROWS_FOR_THREADS {
            tasks.iter_mut().for_each(keep);
        } else {
            for_each(&mut tasks, keep);
        }
    }

    /// What comes between the product and the rotation, of queries (0) and keys (1).
    fn position(&self, layer: &Layer, which: usize, row: &mut [f32]) {
        if let Some(bias) = layer.biases.as_ref().and_then(|biases| biases.get(which)) {
            add(row, bias);
        }
        if let Some(weight) = layer.head_norms.as_ref().and_then(|norms| norms.get(which)) {
            rms_norm(self.family, row, weight, self.config.rms_epsilon);
        }
    }

    fn feed_forward(&self, layer: &Layer, scratch: &mut Scratch) {
        let (width, inner) = (self.config.width, self.config.feed_forward);
        let Scratch { state, normed, product, gate, up, .. } = scratch;
        let rows = state.len() / width;
        norm(self.family, state, &layer.feed_forward_norm, self.config.rms_epsilon, normed.rows_mut(rows, width));
        normed.quantise(self.family);
        resize(up, rows * inner);
        let gates = gate.rows_mut(rows, inner);
        multiply(
            self.family,
            normed,
            &mut [Product { weights: &layer.gate, out: gates }, Product { weights: &layer.up, out: up }],
        );
        if rows < ROWS_FOR_THREADS {
            swiglu(self.family, gates, up);
        } else {
            let length = ROWS_OF_A_TASK * inner;
            let mut tasks: Vec<_> = gates.chunks_mut(length).zip(up.chunks(length)).collect();
            for_each(&mut tasks, |(gates, up)| swiglu(self.family, gates, up));
        }
        gate.quantise(self.family);
        resize(product, rows * width);
        multiply(self.family, gate, &mut [Product { weights: &layer.down, out: product }]);
        add(state, product);
    }

    /// Of all rows that are left.
    fn logits(&self, scratch: &mut Scratch) -> Zeroizing<Vec<f32>> {
        let width = self.config.width;
        let Scratch { state, last, .. } = scratch;
        let rows = state.len() / width;
        let mut logits = Zeroizing::new(vec![0.0; rows * self.config.vocabulary]);
        if rows > 0 {
            norm(self.family, state, &self.weights.output_norm, self.config.rms_epsilon, last.rows_mut(rows, width));
            last.quantise(self.family);
            let weights = self.weights.output.as_ref().unwrap_or(&self.weights.embedding);
            multiply(self.family, last, &mut [Product { weights, out: &mut logits }]);
        }
        logits
    }
}

/// Moves the rows whose logits are wanted to the front, and forgets the others. Gives their positions.
fn narrow(state: &mut Zeroizing<Vec<f32>>, width: usize, runs: &[Run<'_>]) -> Vec<usize> {
    let (mut end, mut kept, mut positions) = (0, 0, Vec::new());
    for run in runs {
        end += run.tokens.len();
        let wanted = (end - run.wants_logits) * width..end * width;
        kept += wanted.len();
        state.copy_within(wanted.clone(), kept - wanted.len());
        let after = run.cache.len() + run.tokens.len();
        positions.extend(after - run.wants_logits..after);
    }
    state.truncate(kept);
    positions
}

/// Makes a buffer longer or shorter; one that must move is wiped where it was.
fn resize(buffer: &mut Zeroizing<Vec<f32>>, length: usize) {
    if length > buffer.capacity() {
        *buffer = Zeroizing::new(Vec::with_capacity(length));
    }
    buffer.resize(length, 0.0);
}

fn norm(family: Family, state: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let width = weight.len();
    each_row(out, width, |row, out| {
        if let Some(state) = state.chunks_exact(width).nth(row) {
            out.copy_from_slice(state);
            rms_norm(family, out, weight, epsilon);
        }
    });
}

/// Works on each row, on several threads if there are many.
fn each_row(rows: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if rows.len() / width < ROWS_FOR_THREADS {
        rows.chunks_exact_mut(width).enumerate().for_each(|(row, elements)| work(row, elements));
    } else {
        let mut tasks: Vec<_> = rows.chunks_mut(ROWS_OF_A_TASK * width).enumerate().collect();
        for_each(&mut tasks, |(task, rows)| {
            let first = *task * ROWS_OF_A_TASK;
            rows.chunks_exact_mut(width).enumerate().for_each(|(row, elements)| work(first + row, elements));
        });
    }
}

/// Rows from which handing some to other threads costs less than it saves.
const ROWS_FOR_THREADS: usize = 16;
const ROWS_OF_A_TASK: usize = 4;
