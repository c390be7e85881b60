//! All weights of a model: every tensor that should be there, in the shape it should have, and no other.

use std::collections::BTreeSet;

use model_header::{Config, Form};
use thiserror::Error;

use super::linear::{self, Linear};
use super::rope::Rope;
use crate::gguf::{GgufError, Header, TensorInfo};

/// The weights of a model.
pub(crate) struct Weights {
    pub(super) embedding: Linear,
    pub(super) layers: Vec<Layer>,
    pub(super) output_norm: Vec<f32>,
    /// `None`: tied, the embedding is the output too.
    pub(super) output: Option<Linear>,
    pub(super) rope: Rope,
}

/// The weights of one layer.
pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) attention_output: Linear,
    pub(super) feed_forward_norm: Vec<f32>,
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

/// Why the weights of a file are refused.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// A tensor lies outside the file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A tensor is missing.
    #[error("tensor \"{0}\" is missing")]
    Missing(String),
    /// A tensor has another shape than the hyperparameters ask for.
    #[error("tensor \"{tensor}\" has shape {shape:?}; {expected:?} is expected")]
    Shape {
        /// Name of the tensor.
        tensor: String,
        /// Its shape, slowest dimension first.
        shape: Vec<usize>,
        /// The shape that the hyperparameters ask for.
        expected: Vec<usize>,
    },
    /// A tensor that the Llama architecture does not have: ignoring it would compute another model.
    #[error("tensor \"{0}\" has no place in the Llama architecture")]
    Unknown(String),
    /// A vector of weights is zero, infinite or not a number where that cannot be computed with.
    #[error("tensor \"{0}\" holds values that cannot be computed with")]
    Values(String),
    /// candle refused a tensor.
    #[error("tensor \"{tensor}\": {reason}")]
    Tensor {
        /// Name of the tensor.
        tensor: String,
        /// What candle says.
        reason: String,
    },
}

impl Weights {
    pub(super) fn load(
        config: &Config,
        header: &Header<'_>,
        file: &[u8],
        dense_parameters: usize,
    ) -> Result<Self, WeightsError> {
        let dense = header.parameters() <= dense_parameters as u64;
        let mut loader = Loader { header, file, dense, seen: BTreeSet::new() };
        let (width, query, key_value) = (config.width, config.query_width(), config.kv_width());
        let embedding = loader.matrix("token_embd.weight", config.vocabulary, width)?;
        let mut layers = Vec::new();
        for index in 0..config.layers {
            let name = |part: &str| format!("blk.{index}.{part}.weight");
            layers.push(Layer {
                attention_norm: loader.vector(&name("attn_norm"), width)?,
                query: loader.matrix(&name("attn_q"), query, width)?,
                key: loader.matrix(&name("attn_k"), key_value, width)?,
                value: loader.matrix(&name("attn_v"), key_value, width)?,
                attention_output: loader.matrix(&name("attn_output"), width, query)?,
                feed_forward_norm: loader.vector(&name("ffn_norm"), width)?,
                gate: loader.matrix(&name("ffn_gate"), config.feed_forward, width)?,
                up: loader.matrix(&name("ffn_up"), config.feed_forward, width)?,
                down: loader.matrix(&name("ffn_down"), width, config.feed_forward)?,
            });
        }
        let output_norm = loader.vector("output_norm.weight", width)?;
        let output = match header.tensor_info(OUTPUT) {
            Some(_) => Some(loader.matrix(OUTPUT, config.vocabulary, width)?),
            None => None,
        };
        let factors = match header.tensor_info(ROPE_FACTORS) {
            Some(_) => Some(loader.vector(ROPE_FACTORS, config.head_width / 2)?),
            None => None,
        };
        if factors.as_ref().is_some_and(|factors| factors.iter().any(|factor| !factor.is_normal())) {
            return Err(WeightsError::Values(ROPE_FACTORS.to_owned()));
        }
        loader.nothing_left()?;
        let rope = Rope::new(config.head_width, config.rope_base, &config.rope_scaling, factors.as_deref());
        Ok(Self { embedding, layers, output_norm, output, rope })
    }

    pub(super) fn uses_blocks(&self) -> bool {
        let of_layer = |layer: &Layer| {
            let Layer { attention_norm: _, query, key, value, attention_output, feed_forward_norm: _, gate, up, down } =
                layer;
            [query, key, value, attention_output, gate, up, down].into_iter().any(Linear::is_blocks)
        };
        self.layers.iter().any(of_layer) || self.output.as_ref().unwrap_or(&self.embedding).is_blocks()
    }
}

struct Loader<'a> {
    header: &'a Header<'a>,
    file: &'a [u8],
    dense: bool,
    seen: BTreeSet<String>,
}

impl<'a> Loader<'a> {
    fn matrix(&mut self, name: &str, outputs: usize, inputs: usize) -> Result<Linear, WeightsError> {
        let (info, bytes) = self.find(name, &[outputs, inputs])?;
        Linear::load(Form::choose(info, self.dense), info, bytes).map_err(|error| refused(name, &error))
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>, WeightsError> {
        let (info, bytes) = self.find(name, &[length])?;
        linear::vector(info, bytes).map_err(|error| refused(name, &error))
    }

    fn find(&mut self, name: &str, expected: &[usize]) -> Result<(&'a TensorInfo, &'a [u8]), WeightsError> {
        let info = self.header.tensor_info(name).ok_or_else(|| WeightsError::Missing(name.to_owned()))?;
        if info.shape != expected {
            let (tensor, shape) = (name.to_owned(), info.shape.clone());
            return Err(WeightsError::Shape { tensor, shape, expected: expected.to_vec() });
        }
        let bytes = self.header.tensor(self.file, name, info)?;
        self.seen.insert(name.to_owned());
        Ok((info, bytes))
    }

    fn nothing_left(&self) -> Result<(), WeightsError> {
        match self.header.tensors().find(|(name, _)| !self.seen.contains(*name)) {
            Some((name, _)) => Err(WeightsError::Unknown(name.to_owned())),
            None => Ok(()),
        }
    }
}

fn refused(tensor: &str, error: &candle_core::Error) -> WeightsError {
    WeightsError::Tensor { tensor: tensor.to_owned(), reason: error.to_string() }
}

const OUTPUT: &str = "output.weight";
const ROPE_FACTORS: &str = "rope_freqs.weight";
