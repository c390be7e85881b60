//! From tokens to logits: one step, of all sequences that take part in it.

use kernels::{Activations, BLOCK, Family, Product, add, for_each, multiply, rms_norm, swiglu, write_head};
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
    logits: Zeroizing<Vec<f32>>,
}

/// All who wanted the step have gone; its sequences are left as they are, and cannot go on.
pub(crate) struct Abandoned;

impl Decoder {
    /// Appends the tokens of each run to its sequence. Gives the logits that were wanted, in the order of the tokens, each of as many
    /// elements as the vocabulary has tokens.
    ///
    /// What a sequence gets does not depend on what else is in the step, nor on how its tokens are divided into steps.
    /// `abandon` is asked before each layer.
    pub(crate) fn step<'a>(
        &self,
        runs: &mut [Run<'_>],
        scratch: &'a mut Scratch,
        abandon: &dyn Fn() -> bool,
    ) -> Result<&'a mut [f32], Abandoned> {
        let width = self.config.width;
        let rows: usize = runs.iter().map(|run| run.tokens.len()).sum();
        let positions: Vec<usize> =
            runs.iter().flat_map(|run| run.cache.len()..run.cache.len() + run.tokens.len()).collect();
        let rotation = self.weights.rope.rotation(&positions);
        let wanted: usize = runs.iter().map(|run| run.wants_logits).sum();
        if scratch.logits.len() != wanted * self.config.vocabulary {
            // They are many: whoever left takes the memory along that was planned for them, before others use it.
            scratch.logits = Zeroizing::default();
        }
        for run in runs.iter_mut() {
            run.cache.reserve(&self.kv_shape, run.tokens.len());
        }
        // With room for all: what a buffer moves away from is not wiped.
        let mut tokens = Zeroizing::new(Vec::with_capacity(rows));
        tokens.extend(runs.iter().flat_map(|run| run.tokens).copied());
        resize(&mut scratch.state, rows * width);
        each_row(&mut scratch.state, width, |row, state| {
            if let Some(token) = tokens.get(row) {
                self.weights.embedding.row(*token as usize, state);
            }
        });
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

    fn attend(&self, index: usize, layer: &Layer, runs: &mut [Run<'_>], rotation: &Rotation, scratch: &mut Scratch) {
        self.project(index, layer, runs, rotation, scratch);
        let Scratch { state, queries, attended, product, .. } = scratch;
        if state.is_empty() {
            return;
        }
        let (width, query) = (self.config.width, self.config.query_width());
        let rows = state.len() / width;
        let mut row = 0;
        let mut sequences = Vec::with_capacity(runs.len());
        for run in runs.iter() {
            let count = self.rows_that_go_on(index, run);
            let first = run.cache.len() + run.tokens.len() - count;
            sequences.push(Attended { row, first, count, pages: run.cache.pages() });
            row += count;
        }
        let group = self.config.heads / self.config.kv_heads;
        let heads = Heads { family: self.family, shape: &self.kv_shape, layer: index, group };
        heads.attend(&sequences, queries, attended.rows_mut(rows, query));
        attended.quantise(self.family);
        resize(product, rows * width);
        multiply(self.family, attended, &mut [Product { weights: &layer.attention_output, out: product }]);
        each_pair(state, product, width, add);
    }

    /// Rows of a run that go on after layer `index` has its keys and values: in the last one, those whose logits are wanted.
    fn rows_that_go_on(&self, index: usize, run: &Run<'_>) -> usize {
        if index + 1 == self.weights.layers.len() { run.wants_logits } else { run.tokens.len() }
    }

    /// Keeps the keys and values of all rows, leaves in `state` the rows that go on, and computes the queries of these.
    fn project(&self, index: usize, layer: &Layer, runs: &mut [Run<'_>], rotation: &Rotation, scratch: &mut Scratch) {
        let (width, query, key_value) = (self.config.width, self.config.query_width(), self.config.kv_width());
        let Scratch { state, normed, queries, keys, values, .. } = scratch;
        let rows = state.len() / width;
        let left: usize = runs.iter().map(|run| self.rows_that_go_on(index, run)).sum();
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
            each_row(values, key_value, |_, values| add(values, bias));
        }
        self.keep(index, runs, keys, values);
        let scale = 1.0 / (self.config.head_width as f32).sqrt();
        each_row(queries, query, |row, queries| {
            self.position(layer, 0, queries);
            rotation_of_queries.apply(row, queries);
            queries.iter_mut().for_each(|x| *x *= scale);
        });
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
                    let places = self.kv_shape.heads_mut(page.bytes_mut(), index).enumerate();
                    tasks.extend(places.map(|(head, place)| (place, head, first, keys, values)));
                }
            }
            row = end;
        }
        let keep = |(place, head, slot, keys, values): &mut (&mut [u8], usize, usize, &[f32], &[f32])| {
            write_head(&self.kv_shape, place, *head, *slot, keys, values);
        };
        if keys.len() / self.config.head_width < HEADS_FOR_THREADS {
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
        each_pair(gates, up, inner, |gates, up| swiglu(self.family, gates, up));
        gate.quantise(self.family);
        resize(product, rows * width);
        multiply(self.family, gate, &mut [Product { weights: &layer.down, out: product }]);
        each_pair(state, product, width, add);
    }

    /// Of all rows that are left.
    fn logits<'a>(&self, scratch: &'a mut Scratch) -> &'a mut [f32] {
        let width = self.config.width;
        let Scratch { state, last, logits, .. } = scratch;
        let rows = state.len() / width;
        resize(logits, rows * self.config.vocabulary);
        if rows > 0 {
            norm(self.family, state, &self.weights.output_norm, self.config.rms_epsilon, last.rows_mut(rows, width));
            last.quantise(self.family);
            let weights = self.weights.output.as_ref().unwrap_or(&self.weights.embedding);
            multiply(self.family, last, &mut [Product { weights, out: logits }]);
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
        // First gone, then anew: both at once are in nobody's plan.
        *buffer = Zeroizing::default();
        buffer.reserve_exact(length);
    }
    buffer.resize(length, 0.0);
}

fn norm(family: Family, state: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    each_pair(out, state, weight.len(), |out, state| {
        out.copy_from_slice(state);
        rms_norm(family, out, weight, epsilon);
    });
}

/// Works on each row and the one in its place of `others`, as [`each_row`].
fn each_pair(rows: &mut [f32], others: &[f32], width: usize, work: impl Fn(&mut [f32], &[f32]) + Sync) {
    each_row(rows, width, |row, elements| {
        if let Some(other) = others.chunks_exact(width).nth(row) {
            work(elements, other);
        }
    });
}

/// Works on each row, on several threads if there are many.
fn each_row(rows: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if rows.len() / width < ROWS_FOR_THREADS {
        rows.chunks_exact_mut(width).enumerate().for_each(|(row, elements)| work(row, elements));
    } else {
        let together = (rows.len() / width / 8).clamp(1, 4);
        let mut tasks: Vec<_> = rows.chunks_mut(together * width).enumerate().collect();
        for_each(&mut tasks, |(task, rows)| {
            let first = *task * together;
            rows.chunks_exact_mut(width).enumerate().for_each(|(row, elements)| work(first + row, elements));
        });
    }
}

/// Rows from which handing some to other threads costs less than it saves.
const ROWS_FOR_THREADS: usize = 8;
/// Heads of rows from which it does for keeping keys and values.
const HEADS_FOR_THREADS: usize = 16;
