//! What a model will take, from its header alone.

use thiserror::Error;

use crate::config::{Config, ConfigError};
use crate::gguf::{GgufError, Header, TensorInfo, TensorType};

/// What a model will take: to be asked before loading, so that what does not fit is refused in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Bytes of memory that the weights take once loaded, at most; the file is not part of it.
    pub weights_bytes: usize,
    /// Bytes of memory that the tokenizer takes, at most.
    pub vocabulary_bytes: usize,
    /// Bytes of memory that the vocabulary takes once more, at most, from the first answer of a given form on.
    pub form_bytes: usize,
    /// Bytes of memory that each token of a running sequence (prompt and answer) takes.
    pub kv_bytes_per_token: usize,
    /// Most tokens of a sequence.
    pub context_length: usize,
    /// The context that the file states: more than `context_length` where attention would slide through a window from there on.
    pub stated_context: usize,
    /// Number of weights.
    pub parameters: u64,
    /// Bytes of the file up to the end of its last tensor.
    pub file_bytes: usize,
    /// Bytes that loading takes beside the weights, at most. The file itself passes through, and is never held as a whole.
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
        Self::of(&Header::parse(file)?)
    }

    /// The same of a header that has been read.
    ///
    /// # Errors
    /// Hyperparameters that the engine does not compute with.
    pub fn of(header: &Header<'_>) -> Result<Self, PlanError> {
        let config = Config::read(header)?;
        let resident = header.tensors().map(|(_, info)| resident_bytes(info));
        let read = header.tensors().map(|(_, info)| bytes_at_once(info)).max().unwrap_or(0);
        // A vector is copied before it is made of numbers.
        let vectors = header.tensors().filter(|(_, info)| info.shape.len() < 2).map(|(_, info)| info.bytes);
        Ok(Self {
            weights_bytes: resident.fold(0, usize::saturating_add),
            vocabulary_bytes: vocabulary_bytes(header)?,
            form_bytes: form_bytes(header)?,
            kv_bytes_per_token: config.kv_bytes_per_token(),
            context_length: config.context_length,
            stated_context: config.stated_context,
            parameters: header.parameters(),
            file_bytes: header.file_bytes(),
            loading_bytes: vectors
                .max()
                .unwrap_or(0)
                .saturating_mul(2)
                .saturating_add(read)
                .saturating_add(HUGE_PAGE)
                .saturating_add(header.data_offset().saturating_mul(2)),
            activations: Activations::of(&config),
        })
    }

    /// Bytes that must be free before the weights are loaded; of these, what forms take is not used yet.
    #[must_use]
    pub fn bytes_to_load(&self) -> u64 {
        let parts = [self.weights_bytes, self.vocabulary_bytes, self.form_bytes, self.loading_bytes];
        parts.iter().fold(0, |sum: u64, part| sum.saturating_add(*part as u64))
    }

    /// Bytes that keys and values of a sequence of so many tokens take: whole pages.
    #[must_use]
    pub fn sequence_bytes(&self, tokens: usize) -> u64 {
        let positions = (tokens as u64).div_ceil(KV_PAGE as u64).saturating_mul(KV_PAGE as u64);
        positions.saturating_mul(self.kv_bytes_per_token as u64)
    }

    /// Bytes that are set aside for an answer of so many tokens (prompt and answer) before it begins: its keys and values, and what
    /// computing takes for each answer.
    #[must_use]
    pub fn answer_bytes(&self, tokens: usize) -> u64 {
        self.sequence_bytes(tokens).saturating_add(self.activations.of_an_answer())
    }
}

/// What the lists of the vocabulary become (`inference/src/tokenizer/`): their texts; for each token its place, its kind, and
/// half as many slots again of a hash table; for each merge four numbers; for each score its rank, and twice the score while
/// ranks are made. And the patterns by which text is cut, compiled. Of Llama 3's size (128,256 tokens, 241,315 merges) that
/// is 12.0 MiB, where 9.6 were measured; of Qwen's (151,936 and 151,387) 11.2, where 8.2 were.
fn vocabulary_bytes(header: &Header<'_>) -> Result<usize, GgufError> {
    let length = |key| Ok::<_, GgufError>(header.optional_array(key)?.map_or(0, |array| array.len()));
    let tokens = header.optional_array("tokenizer.ggml.tokens")?;
    let texts = tokens.and_then(|tokens| tokens.texts()).into_iter().flatten().map(str::len);
    let parts = [
        texts.fold(0, usize::saturating_add),
        length("tokenizer.ggml.tokens")?.saturating_mul(4 + 1 + 6),
        length("tokenizer.ggml.merges")?.saturating_mul(16),
        length("tokenizer.ggml.scores")?.saturating_mul(4 + 16),
        PATTERNS,
    ];
    Ok(parts.into_iter().fold(0, usize::saturating_add))
}

/// The engine keeps six trees of tokens: four have all tokens or, in pairs, halves of them. Each takes 12 bytes for a token; and for each
/// byte of their texts, a byte, up to a node of 8 and what making them leaves. While they are made, each token lies beside them twice
/// (`inference/src/constraint/vocabulary.rs`; `inference/tests/constrained_limits.rs` holds both together).
fn form_bytes(header: &Header<'_>) -> Result<usize, GgufError> {
    let Some(tokens) = header.optional_array("tokenizer.ggml.tokens")? else { return Ok(0) };
    let texts = tokens.texts().map_or(0, |texts| texts.map(str::len).fold(0, usize::saturating_add));
    Ok(tokens.len().saturating_mul(6 * 12 + 128).saturating_add(texts.saturating_mul(4 * 10)))
}

/// Bytes of a tensor that the engine reads before it packs them: of a matrix as many rows as make whole tiles and some 4 MiB.
#[must_use]
pub fn bytes_at_once(info: &TensorInfo) -> usize {
    let &[outputs, _] = info.shape.as_slice() else { return info.bytes };
    let row = info.bytes / outputs.max(1);
    let rows = (READ_AT_ONCE / row.max(1)).next_multiple_of(TILE_OUTPUTS).max(TILE_OUTPUTS);
    rows.min(outputs).saturating_mul(row)
}

/// Bytes that weights of `info` take in memory: as many as in the file, but that outputs are taken by 16, that the scales of the K formats
/// lie apart, and that there are gaps (`kernels::Format`; a test of the engine's `decoder/weights.rs` holds both together).
#[must_use]
pub fn resident_bytes(info: &TensorInfo) -> usize {
    let &[outputs, inputs] = info.shape.as_slice() else { return info.elements().saturating_mul(size_of::<f32>()) };
    let row = match info.kind {
        TensorType::Q4K => inputs.saturating_mul(148) / 256,
        TensorType::Q5K => inputs.saturating_mul(180) / 256,
        TensorType::Q6K => inputs.saturating_mul(212) / 256,
        kind => inputs / kind.block_size() * kind.block_bytes(),
    };
    outputs.next_multiple_of(TILE_OUTPUTS).saturating_mul(row).saturating_add(gap_bytes(outputs, inputs))
}

/// Bytes that are left free in a packed matrix: a line of the cache for 256 outputs of 256 inputs.
pub(crate) fn gap_bytes(outputs: usize, inputs: usize) -> usize {
    outputs.div_ceil(256).saturating_mul(inputs.div_ceil(256)).saturating_mul(64)
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
        // The state, its norm, a product, and the rotation, in the last layer another one: a cosine and a sine for each pair.
        let throughout = width + quantised(width) + width + 2 * config.head_width;
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

    /// Bytes that each answer takes of it.
    fn of_an_answer(&self) -> u64 {
        (self.per_row as u64).saturating_add(self.per_answer as u64).saturating_mul(size_of::<f32>() as u64)
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
/// Enough that all threads have rows to pack.
pub const READ_AT_ONCE: usize = 4 << 20;
/// Patterns with classes of Unicode's letters, and what looking for them keeps.
const PATTERNS: usize = 6 << 20;
/// Weights lie on pages of this size, and the last one is not used to its end (`kernels::Room`).
const HUGE_PAGE: usize = 2 << 20;
/// Outputs that are packed together (`kernels::LANES`).
const TILE_OUTPUTS: usize = 16;
/// Positions of a page of the KV cache.
pub const KV_PAGE: usize = 64;
/// Tokens of a prompt that are worked off together: enough for matrix products to be efficient, few enough that
/// activations stay small and a cancelled request ends soon.
pub const PROMPT_CHUNK: usize = 128;
