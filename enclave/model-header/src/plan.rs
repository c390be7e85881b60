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
    /// Bytes of memory that the vocabulary takes as it lies for answers of a given form, at most.
    pub vocabulary_bytes: usize,
    /// Number of weights.
    pub parameters: u64,
    /// Bytes of the file, which are held while the weights are loaded from it.
    pub file_bytes: usize,
    /// Bytes that loading takes beside the weights, at most; a file that lies in memory comes on top.
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
    /// Reads the header at the start of `file`; the tensors themselves need not be there yet.
    ///
    /// # Errors
    /// A malformed or unsupported file.
    pub fn from_header(file: &[u8]) -> Result<Self, PlanError> {
        let header = Header::parse(file)?;
        let config = Config::read(&header)?;
        let resident = header.tensors().map(|(_, info)| resident_bytes(info));
        let vectors = header.tensors().filter(|(_, info)| info.shape.len() < 2).map(|(_, info)| info.bytes);
        Ok(Self {
            weights_bytes: resident.fold(0, usize::saturating_add),
            kv_bytes_per_token: config.kv_bytes_per_token(),
            context_length: config.context_length,
            vocabulary_bytes: vocabulary_bytes(&header)?,
            parameters: header.parameters(),
            file_bytes: header.file_bytes(),
            loading_bytes: vectors
                .max()
                .unwrap_or(0)
                .saturating_mul(2)
                .saturating_add(READ_AT_ONCE)
                .saturating_add(header.data_offset().saturating_mul(2)),
            activations: Activations::of(&config),
        })
    }

    /// Bytes that keys and values of a sequence of so many tokens take: whole pages.
    #[must_use]
    pub fn sequence_bytes(&self, tokens: usize) -> u64 {
        let positions = (tokens as u64).div_ceil(KV_PAGE as u64).saturating_mul(KV_PAGE as u64);
        positions.saturating_mul(self.kv_bytes_per_token as u64)
    }
}

/// Bytes that weights of `info` take in memory: as many as in the file, but that outputs are taken by 16, and that the scales of the
/// K formats lie apart (`kernels::Format`; the engine's `tests/footprint.rs` holds both together).
fn resident_bytes(info: &TensorInfo) -> usize {
    let &[outputs, inputs] = info.shape.as_slice() else { return info.elements().saturating_mul(size_of::<f32>()) };
    let row = match info.kind {
        TensorType::Q4K => inputs.saturating_mul(148) / 256,
        TensorType::Q5K => inputs.saturating_mul(180) / 256,
        TensorType::Q6K => inputs.saturating_mul(212) / 256,
        kind => inputs / kind.block_size() * kind.block_bytes(),
    };
    outputs.next_multiple_of(16).saturating_mul(row)
}

/// The engine keeps six trees of tokens: four have all tokens or, in pairs, halves of them. Each takes 12 bytes for a token; and for each
/// byte of their texts, a byte, up to a node of 8 and what making them leaves (`inference/src/constraint/vocabulary.rs`; measured with 128,000
/// random words).
fn vocabulary_bytes(header: &Header<'_>) -> Result<usize, GgufError> {
    let Some(tokens) = header.optional_array("tokenizer.ggml.tokens")? else { return Ok(0) };
    let texts = tokens.texts().map_or(0, |texts| texts.map(str::len).fold(0, usize::saturating_add));
    Ok(tokens.len().saturating_mul(6 * 12).saturating_add(texts.saturating_mul(4 * 10)))
}

/// What computing takes beside weights and KV cache, at most. In numbers of f32, counted off the engine's code
/// (`decoder/forward.rs`, `decoder/attention.rs`), and held to what it really takes by a test of the
/// engine (`inference/tests/footprint.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activations {
    /// For each row of a step.
    per_row: usize,
    /// For each answer, whatever its length.
    per_answer: usize,
    /// For each of the few answers that are guessed ahead.
    per_guess: usize,
    /// For each thread: the queries, products and results of a task of attention.
    per_thread: usize,
}

impl Activations {
    fn of(config: &Config) -> Self {
        let (width, query, key_value) = (config.width, config.query_width(), config.kv_width());
        let group = config.heads / config.kv_heads;
        // Activations that are multiplied lie as f32 and, in a third more, quantised.
        let quantised = |elements: usize| elements + elements / 3 + 16;
        // The state, its norm, a product, and the rotation: a cosine and a sine for each pair.
        let throughout = width + quantised(width) + width + config.head_width;
        // Queries, keys and values; what they attend to, in the tasks' results and side by side.
        let attention = query + 2 * key_value + query + quantised(query);
        let feed_forward = quantised(config.feed_forward) + config.feed_forward;
        Self {
            per_row: throughout + attention + feed_forward,
            // The logits, in the sampler with their indices, and there as they were.
            per_answer: 4 * config.vocabulary + 2 * width,
            // Logits, and the rows that they come from, of seven tokens more.
            per_guess: 7 * (config.vocabulary + 2 * width),
            per_thread: 32 * group * (3 * config.head_width + 64),
        }
    }

    /// Bytes for `sequences` answers at the same time, each of at most `tokens` (prompt and answer), on `threads`.
    #[must_use]
    pub fn bytes(&self, sequences: usize, tokens: usize, threads: usize) -> u64 {
        let [sequences, tokens, threads] = [sequences, tokens, threads].map(|number| number as u64);
        let Self { per_row, per_answer, per_guess, per_thread } = *self;
        let rows = tokens.saturating_mul(sequences).min((PROMPT_CHUNK as u64).saturating_add(sequences));
        let part = |size: usize, count: u64| (size as u64).saturating_mul(count);
        let floats = part(per_row, rows)
            .saturating_add(part(per_answer, sequences))
            .saturating_add(part(per_guess, sequences.min(MOST_GUESSING)))
            .saturating_add(part(per_thread, threads.max(1)));
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

/// So many answers at most are guessed ahead in one step.
pub const MOST_GUESSING: u64 = 4;
/// Bytes of a matrix that the engine reads before it packs them.
pub const READ_AT_ONCE: usize = 4 << 20;
/// Positions of a page of the KV cache.
pub const KV_PAGE: usize = 64;
/// Tokens of a prompt that are worked off together: enough for matrix products to be efficient, few enough that
/// activations stay small and a cancelled request ends soon.
pub const PROMPT_CHUNK: usize = 128;
