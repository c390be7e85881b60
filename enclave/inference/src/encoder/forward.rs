//! From tokens to states: all texts of a group together, each as if it were alone.

use kernels::{Activations, Family, Product, add, for_each, gelu, layer_norm, multiply};
use model_header::EncoderConfig;
use zeroize::Zeroizing;

use super::attention::Heads;
use super::weights::{Layer, Linear, Norm, Weights};

/// Hyperparameters and weights.
pub(super) struct Bert {
    pub(super) config: EncoderConfig,
    pub(super) weights: Weights,
    pub(super) family: Family,
}

/// Buffers that are kept from group to group. The texts can be told from them: they are wiped on drop.
#[derive(Default)]
pub(super) struct Scratch {
    /// Which the layers add to, and multiply with: encoders norm after they add.
    state: Activations,
    queries: Zeroizing<Vec<f32>>,
    keys: Zeroizing<Vec<f32>>,
    values: Zeroizing<Vec<f32>>,
    attended: Activations,
    product: Zeroizing<Vec<f32>>,
    inner: Activations,
}

/// Nobody wants the states any more.
pub(super) struct Abandoned;

impl Bert {
    /// The states of all tokens after the last layer, rows of the model's width, in the order of the texts. Texts have at least one token, at
    /// most as many as there are positions, and all are in the vocabulary.
    ///
    /// What a text gets does not depend on the others. `abandon` is asked before each layer.
    pub(super) fn states<'a>(
        &self,
        texts: &[&[u32]],
        scratch: &'a mut Scratch,
        abandon: &dyn Fn() -> bool,
    ) -> Result<&'a [f32], Abandoned> {
        let lengths: Vec<usize> = texts.iter().map(|tokens| tokens.len()).collect();
        self.embed(texts, scratch);
        for layer in &self.weights.layers {
            if abandon() {
                return Err(Abandoned);
            }
            self.attend(layer, &lengths, scratch);
            self.feed_forward(layer, scratch);
        }
        Ok(scratch.state.floats())
    }

    fn embed(&self, texts: &[&[u32]], scratch: &mut Scratch) {
        let width = self.config.width;
        let state = scratch.state.rows_mut(texts.iter().map(|tokens| tokens.len()).sum(), width);
        let tokens = texts.iter().flat_map(|tokens| tokens.iter().zip(self.weights.positions.chunks_exact(width)));
        for (row, (token, position)) in state.chunks_exact_mut(width).zip(tokens) {
            self.weights.words.row(*token as usize, row);
            add(row, position);
        }
        self.norm(state, &self.weights.norm);
    }

    fn attend(&self, layer: &Layer, lengths: &[usize], scratch: &mut Scratch) {
        let width = self.config.width;
        let Scratch { state, queries, keys, values, attended, product, .. } = scratch;
        let rows = state.rows();
        for buffer in [&mut *queries, &mut *keys, &mut *values] {
            resize(buffer, rows * width);
        }
        multiply(
            self.family,
            state,
            &mut [
                Product { weights: &layer.query.weight, out: queries },
                Product { weights: &layer.key.weight, out: keys },
                Product { weights: &layer.value.weight, out: values },
            ],
        );
        let head_width = self.config.head_width();
        let scale = 1.0 / (head_width as f32).sqrt();
        each_row(queries, width, |row| {
            add(row, &layer.query.bias);
            row.iter_mut().for_each(|x| *x *= scale);
        });
        each_row(keys, width, |row| add(row, &layer.key.bias));
        each_row(values, width, |row| add(row, &layer.value.bias));
        let heads = Heads { family: self.family, heads: self.config.heads, head_width, queries, keys, values };
        heads.attend(lengths, attended.rows_mut(rows, width));
        self.add_and_norm(attended, &layer.attention_output, &layer.attention_norm, product, state);
    }

    fn feed_forward(&self, layer: &Layer, scratch: &mut Scratch) {
        let Scratch { state, product, inner, .. } = scratch;
        let width = self.config.feed_forward;
        let out = inner.rows_mut(state.rows(), width);
        multiply(self.family, state, &mut [Product { weights: &layer.intermediate.weight, out: &mut *out }]);
        each_row(out, width, |row| {
            add(row, &layer.intermediate.bias);
            gelu(self.family, row);
        });
        self.add_and_norm(inner, &layer.output, &layer.output_norm, product, state);
    }

    /// `state := norm(state + linear(from))`
    fn add_and_norm(
        &self,
        from: &Activations,
        linear: &Linear,
        norm: &Norm,
        product: &mut Zeroizing<Vec<f32>>,
        state: &mut Activations,
    ) {
        let (rows, width) = (state.rows(), self.config.width);
        resize(product, rows * width);
        multiply(self.family, from, &mut [Product { weights: &linear.weight, out: product }]);
        // As many as before, whose content stays.
        let state = state.rows_mut(rows, width);
        for (row, product) in state.chunks_exact_mut(width).zip(product.chunks_exact(width)) {
            add(row, product);
            add(row, &linear.bias);
        }
        self.norm(state, norm);
    }

    fn norm(&self, state: &mut [f32], norm: &Norm) {
        let epsilon = self.config.norm_epsilon;
        each_row(state, norm.weight.len(), |row| layer_norm(self.family, row, &norm.weight, &norm.bias, epsilon));
    }
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

/// Works on each row, on several threads if there are many.
fn each_row(rows: &mut [f32], width: usize, work: impl Fn(&mut [f32]) + Sync) {
    if rows.len() / width < ROWS_FOR_THREADS {
        rows.chunks_exact_mut(width).for_each(work);
    } else {
        let mut tasks: Vec<&mut [f32]> = rows.chunks_mut(ROWS_OF_A_TASK * width).collect();
        for_each(&mut tasks, |rows| rows.chunks_exact_mut(width).for_each(&work));
    }
}

/// Rows from which handing some to other threads costs less than it saves.
const ROWS_FOR_THREADS: usize = 16;
const ROWS_OF_A_TASK: usize = 4;
