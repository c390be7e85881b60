//! From tokens to logits.

use model_header::PROMPT_CHUNK;
use thiserror::Error;
use zeroize::Zeroizing;

use super::attention::Attention;
use super::math::{add, rms_norm, swiglu};
use super::weights::Layer;
use super::{KvCache, Llama};
use crate::generate::Cancel;

/// Why no logits came out. Says nothing of the tokens.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum ForwardError {
    #[error("cancelled")]
    Cancelled,
    #[error("the engine failed")]
    Engine,
}

impl From<candle_core::Error> for ForwardError {
    fn from(_: candle_core::Error) -> Self {
        Self::Engine
    }
}

impl Llama {
    /// Appends `tokens` to the sequence of `cache`; gives the logits of what may follow the last of them.
    ///
    /// Every token must be in the vocabulary, and all must fit the cache. Works off the tokens in chunks, and asks
    /// `cancel` before each layer of each.
    pub(crate) fn forward(
        &self,
        tokens: &[u32],
        cache: &mut KvCache,
        cancel: &Cancel,
    ) -> Result<Zeroizing<Vec<f32>>, ForwardError> {
        let vocabulary = u32::try_from(self.config.vocabulary).unwrap_or(u32::MAX);
        if tokens.is_empty() || tokens.len() > cache.room() || tokens.iter().any(|&token| token >= vocabulary) {
            return Err(ForwardError::Engine);
        }
        let mut last = Zeroizing::new(Vec::new());
        for chunk in tokens.chunks(PROMPT_CHUNK) {
            last = self.chunk(chunk, cache, cancel)?;
        }
        let last = last.rchunks_exact(self.config.width).next().ok_or(ForwardError::Engine)?;
        let mut normed = Zeroizing::new(vec![0.0; self.config.width]);
        rms_norm(last, &self.weights.output_norm, self.config.rms_epsilon, &mut normed);
        let output = self.weights.output.as_ref().unwrap_or(&self.weights.embedding);
        Ok(Zeroizing::new(output.forward(&normed)?))
    }

    /// The hidden state after the last layer, of each token of a chunk.
    fn chunk(&self, tokens: &[u32], cache: &mut KvCache, cancel: &Cancel) -> Result<Zeroizing<Vec<f32>>, ForwardError> {
        let first = cache.len();
        let rotation = self.weights.rope.rotation(first, tokens.len());
        let mut state = Zeroizing::new(self.weights.embedding.rows(tokens)?);
        let mut normed = Zeroizing::new(vec![0.0; state.len()]);
        for (layer, layer_cache) in self.weights.layers.iter().zip(cache.layers_mut()) {
            if cancel.is_cancelled() {
                return Err(ForwardError::Cancelled);
            }
            rms_norm(&state, &layer.attention_norm, self.config.rms_epsilon, &mut normed);
            let mut queries = Zeroizing::new(layer.query.forward(&normed)?);
            let mut keys = Zeroizing::new(layer.key.forward(&normed)?);
            let values = Zeroizing::new(layer.value.forward(&normed)?);
            rotation.apply(&mut queries, self.config.query_width());
            rotation.apply(&mut keys, self.config.kv_width());
            layer_cache.store(first, &keys, &values);
            let attention = Attention { config: &self.config, queries: &queries, first, count: tokens.len() };
            let attended = attention.over(layer_cache)?;
            add(&mut state, &Zeroizing::new(layer.attention_output.forward(&attended)?));

            rms_norm(&state, &layer.feed_forward_norm, self.config.rms_epsilon, &mut normed);
            add(&mut state, &feed_forward(layer, &normed)?);
        }
        cache.advance(tokens.len());
        Ok(state)
    }
}

fn feed_forward(layer: &Layer, normed: &[f32]) -> Result<Zeroizing<Vec<f32>>, ForwardError> {
    let mut gate = Zeroizing::new(layer.gate.forward(normed)?);
    let up = Zeroizing::new(layer.up.forward(normed)?);
    swiglu(&mut gate, &up);
    Ok(Zeroizing::new(layer.down.forward(&gate)?))
}
