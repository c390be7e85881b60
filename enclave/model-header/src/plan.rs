//! What a model will take, from its header alone.

use thiserror::Error;

use crate::config::{Config, ConfigError};
use crate::gguf::{GgufError, Header, TensorInfo, TensorType};

/// What a model will take: to be asked before loading, so that what does not fit is refused in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Bytes of memory that the weights take once loaded, at most; the file is not part of it.
    pub weights_bytes: usize,
    /// Bytes of memory that each token of a running sequence (prompt and answer) takes.
    pub kv_bytes_per_token: usize,
    /// Most tokens of a sequence.
    pub context_length: usize,
    /// Number of weights.
    pub parameters: u64,
    /// Bytes of the file, which are held while the weights are loaded from it.
    pub file_bytes: usize,
    /// Bytes that loading takes beside the file and the weights, at most: one tensor's blocks, once or twice over.
    pub loading_bytes: usize,
    /// What computing takes.
    pub activations: Activations,
}

/// Why a header gives no plan.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// The header is malformed, or not all of it is there.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The hyperparameters are not those of a model that the engine computes.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl Plan {
    /// Reads the header at the start of `file`; the tensors themselves need not be there yet. The plan is for a model
    /// of at most [`DENSE_PARAMETERS`] to be held as f32, which is the engine's default.
    ///
    /// # Errors
    /// A malformed or unsupported file.
    pub fn from_header(file: &[u8]) -> Result<Self, PlanError> {
        Self::under(file, DENSE_PARAMETERS)
    }

    /// As [`Plan::from_header`], with another limit on models that are held as f32.
    ///
    /// # Errors
    /// A malformed or unsupported file.
    pub fn under(file: &[u8], dense_parameters: usize) -> Result<Self, PlanError> {
        let header = Header::parse(file)?;
        let config = Config::read(&header)?;
        let dense = header.parameters() <= dense_parameters as u64;
        let resident = header.tensors().map(|(_, info)| Form::choose(info, dense).resident_bytes(info));
        let largest = header.tensors().map(|(_, info)| info.bytes).max().unwrap_or(0);
        Ok(Self {
            weights_bytes: resident.fold(0, usize::saturating_add),
            kv_bytes_per_token: config.kv_bytes_per_token(),
            context_length: config.context_length,
            parameters: header.parameters(),
            file_bytes: header.file_bytes(),
            // A copy that lies where candle wants it, and candle's own.
            loading_bytes: largest.saturating_mul(2),
            activations: Activations::of(&config),
        })
    }
}

/// Whether the weights of a model are computed with as f32 or as blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// f32.
    Dense,
    /// Blocks as in the file.
    Blocks,
}

impl Form {
    /// `dense`: the model is small enough (see [`DENSE_PARAMETERS`]).
    #[must_use]
    pub fn choose(info: &TensorInfo, dense: bool) -> Self {
        match info.kind {
            _ if dense || info.shape.len() < 2 => Self::Dense,
            TensorType::F32 | TensorType::F16 | TensorType::Bf16 => Self::Dense,
            _ => Self::Blocks,
        }
    }

    /// Bytes that weights of `info` take in memory, at most: candle keeps blocks as they are and, for some formats,
    /// a copy in the order that its kernels like, which takes up to 10 bits per weight.
    #[must_use]
    pub fn resident_bytes(self, info: &TensorInfo) -> usize {
        let elements = info.elements();
        match (self, info.kind) {
            (Self::Dense, _) => elements.saturating_mul(size_of::<f32>()),
            (Self::Blocks, TensorType::Q8_0 | TensorType::Q4K | TensorType::Q6K) => {
                info.bytes.saturating_add(elements / 4 * 5)
            }
            (Self::Blocks, _) => info.bytes,
        }
    }
}

/// What computing takes beside weights and KV cache, at most. In numbers of f32, counted off the engine's code
/// (`llama/forward.rs`, `llama/attention.rs`, `llama/linear.rs`), and held to what it really takes by a test of the
/// engine (`inference/tests/footprint.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activations {
    /// For each token of a chunk of the prompt.
    per_token: usize,
    /// For each answer, whatever its length.
    per_answer: usize,
    /// Heads of keys and values, which are worked off at the same time where there are threads for it.
    kv_heads: usize,
    /// For each of those, for each token of a chunk: the queries that share the head.
    queries_per_token: usize,
    /// For each of those, for each position of the sequence so far: a key and a value.
    keys_per_position: usize,
    /// For each of those, for each token of a chunk and each position: how well they go together. As a tensor, as a
    /// vector, in the panels of a product, and once more for what was freed a moment ago and the allocator still keeps.
    scores_per_pair: usize,
}

impl Activations {
    fn of(config: &Config) -> Self {
        let (width, query, key_value) = (config.width, config.query_width(), config.kv_width());
        let group = config.heads / config.kv_heads;
        // The state, its norm, and the rotation: a cosine and a sine for each pair.
        let throughout = 2 * width + config.head_width;
        // Queries, keys and values; the attended rows by head and side by side; a tensor of these; the product, and a
        // copy of it.
        let attention = query + 2 * key_value + 3 * query + 2 * width;
        // The gate, what goes up, and a third one while either is copied out of or into a tensor.
        let feed_forward = 3 * config.feed_forward + 2 * width;
        Self {
            per_token: throughout + attention.max(feed_forward),
            // The logits as a product, as a vector, and in the sampler with their indices.
            per_answer: 5 * config.vocabulary + 4 * width,
            kv_heads: config.kv_heads,
            queries_per_token: 3 * group * config.head_width,
            keys_per_position: 2 * config.head_width,
            scores_per_pair: 4 * group,
        }
    }

    /// Bytes for `sequences` answers at the same time, each of at most `tokens` (prompt and answer), on `threads`.
    #[must_use]
    pub fn bytes(&self, sequences: usize, tokens: usize, threads: usize) -> u64 {
        let [sequences, tokens, threads] = [sequences, tokens, threads].map(|number| number as u64);
        let Self { per_token, per_answer, kv_heads, queries_per_token, keys_per_position, scores_per_pair } = *self;
        let chunk = tokens.min(PROMPT_CHUNK as u64);
        let sum = |parts: &[(usize, u64)]| {
            parts.iter().fold(0_u64, |sum, (size, count)| sum.saturating_add((*size as u64).saturating_mul(*count)))
        };
        let of_one = sum(&[(per_token, chunk), (per_answer, 1)]);
        let of_head = sum(&[
            (queries_per_token, chunk),
            (keys_per_position, tokens),
            (scores_per_pair, chunk.saturating_mul(tokens)),
        ]);
        let heads = sequences.saturating_mul(kv_heads as u64).min(threads.max(1));
        let floats = of_one.saturating_mul(sequences).saturating_add(of_head.saturating_mul(heads));
        floats.saturating_mul(size_of::<f32>() as u64)
    }
}

impl Header<'_> {
    /// Number of weights in the file.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.tensors().map(|(_, info)| info.elements() as u64).fold(0, u64::saturating_add)
    }
}

/// A model of at most so many weights is computed with as f32 (128 MiB); a larger one keeps the blocks of its file.
pub const DENSE_PARAMETERS: usize = 32 << 20;
/// Tokens of a prompt that are worked off together: enough for matrix products to be efficient, few enough that
/// activations stay small and a cancelled request ends soon.
pub const PROMPT_CHUNK: usize = 128;
