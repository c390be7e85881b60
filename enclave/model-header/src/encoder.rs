//! Encoders: their hyperparameters, and what they will take.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};
use thiserror::Error;

use crate::plan::gap_bytes;
use crate::safetensors::{Header, SafetensorsError, TensorInfo};

/// The shape of an encoder of the BERT family (Devlin et al. 2018), from its `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Positions that have an embedding: most tokens of a text.
    pub positions: usize,
    /// Kinds of token that have an embedding; texts here are all of the first.
    pub token_types: usize,
    /// Width of the hidden state, and of an embedding.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Width between the two halves of a feed-forward block.
    pub feed_forward: usize,
    /// Heads: a divisor of `width`.
    pub heads: usize,
    /// Added to the variance of a norm.
    pub norm_epsilon: f32,
}

/// Why a `config.json` is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum EncoderConfigError {
    /// More than any model's.
    #[error("config.json has {0} bytes; at most {MAX_CONFIG_BYTES} are accepted")]
    TooLong(usize),
    /// No JSON, or no object.
    #[error("line {line}, column {column} of config.json: expected a JSON object")]
    Malformed {
        /// Line in the file.
        line: usize,
        /// Column in it.
        column: usize,
    },
    /// Another architecture.
    #[error("architecture {0} is not supported; \"bert\" is (\"model_type\" in config.json)")]
    Architecture(String),
    /// A variant of the architecture that is not computed.
    #[error("\"{key}\" in config.json is {value}, which is not supported; {expected} is")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// Its value, shortened.
        value: String,
        /// What would be.
        expected: &'static str,
    },
    /// A hyperparameter is missing, no number, zero, too large, or does not fit another.
    #[error("\"{key}\" in config.json is {value}; {expected} is expected")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// Its value, shortened.
        value: String,
        /// What would be accepted.
        expected: String,
    },
}

/// What an encoder will take: to be asked before loading, so that what does not fit is refused in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderPlan {
    /// Bytes of memory that weights and vocabulary take once loaded, at most.
    pub weights_bytes: usize,
    /// Bytes that loading takes beside them, at most; files that lie in memory come on top.
    pub loading_bytes: usize,
    /// Bytes of the file of weights.
    pub file_bytes: usize,
    /// Number of weights that are computed with.
    pub parameters: u64,
    /// Most tokens of a text.
    pub max_tokens: usize,
    /// Elements of an embedding.
    pub width: usize,
    /// In numbers of f32: for each row that is computed together with others, and for each row of a text and each thread.
    per_row: usize,
    per_thread_row: usize,
}

/// Why there is no plan.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum EncoderPlanError {
    /// The header of the weights is malformed, or not all of it is there.
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    /// The hyperparameters are not those of a model that the engine computes.
    #[error(transparent)]
    Config(#[from] EncoderConfigError),
}

impl EncoderConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// Another architecture, and hyperparameters that the engine does not compute with.
    pub fn read(json: &[u8]) -> Result<Self, EncoderConfigError> {
        if json.len() > MAX_CONFIG_BYTES {
            return Err(EncoderConfigError::TooLong(json.len()));
        }
        let map: Map<String, Value> = serde_json::from_slice(json)
            .map_err(|error| EncoderConfigError::Malformed { line: error.line(), column: error.column() })?;
        if map.get("model_type").and_then(Value::as_str) != Some("bert") {
            return Err(EncoderConfigError::Architecture(shown(map.get("model_type"))));
        }
        for (key, expected, is_default) in VARIANTS {
            let value = map.get(key).filter(|value| !value.is_null());
            if value.is_some_and(|value| !is_default(value)) {
                return Err(EncoderConfigError::Unsupported { key, value: shown(value), expected });
            }
        }
        let number = |key, limit| required(&map, key, 1..=limit);
        let (width, heads) = (number("hidden_size", MAX_WIDTH)?, number("num_attention_heads", MAX_HEADS)?);
        if !width.is_multiple_of(heads) {
            let (key, expected) = ("num_attention_heads", format!("a divisor of {width}"));
            return Err(EncoderConfigError::OutOfRange { key, value: heads.to_string(), expected });
        }
        Ok(Self {
            vocabulary: number("vocab_size", MAX_VOCABULARY)?,
            // Two tokens stand around a text.
            positions: required(&map, "max_position_embeddings", 3..=MAX_POSITIONS)?,
            token_types: number("type_vocab_size", MAX_TOKEN_TYPES)?,
            width,
            layers: number("num_hidden_layers", MAX_LAYERS)?,
            feed_forward: number("intermediate_size", MAX_FEED_FORWARD)?,
            heads,
            norm_epsilon: epsilon(&map)?,
        })
    }

    /// Width of a head.
    #[must_use]
    pub fn head_width(&self) -> usize {
        self.width / self.heads
    }
}

impl EncoderPlan {
    /// Reads `config` (the whole `config.json`) and the header at the start of `weights`; the tensors themselves need not be there.
    ///
    /// # Errors
    /// A malformed or unsupported file.
    pub fn from_header(weights: &[u8], config: &[u8]) -> Result<Self, EncoderPlanError> {
        let header = Header::parse(weights)?;
        let config = EncoderConfig::read(config)?;
        let used = || header.tensors().filter(|(name, _)| !is_left_out(name)).map(|(_, info)| info);
        let weights_bytes = used().map(resident_bytes).fold(0, usize::saturating_add);
        let longest = used().map(|info| info.shape.last().copied().unwrap_or(0)).max().unwrap_or(0);
        let EncoderConfig { vocabulary, positions, width, feed_forward, .. } = config;
        // The table of positions is unpacked and added to that of the types while both are there.
        let unpacked = positions.saturating_mul(width).saturating_mul(size_of::<f32>());
        Ok(Self {
            weights_bytes: weights_bytes
                .saturating_add(unpacked)
                .saturating_add(vocabulary.saturating_mul(TOKEN_BYTES)),
            loading_bytes: crate::READ_AT_ONCE
                .saturating_add(longest.saturating_mul(16 * size_of::<f32>()))
                .saturating_add(header.data_offset().saturating_mul(8))
                .saturating_add(vocabulary.saturating_mul(TOKEN_BYTES)),
            file_bytes: header.file_bytes(),
            parameters: used().map(|info| info.elements() as u64).fold(0, u64::saturating_add),
            max_tokens: positions,
            width,
            // The state, queries, keys, values, what they attend to in the tasks' results and side by side, a product.
            per_row: 7 * width + feed_forward,
            // Of a head: queries, sums, results; keys and values, whose pages are filled up.
            per_thread_row: 5 * (config.head_width() + 16),
        })
    }

    /// Bytes that one call takes beside the weights, at most: `texts`, each of at most `tokens` (longer ones are read, and cut), on
    /// `threads`.
    #[must_use]
    pub fn computing_bytes(&self, texts: usize, tokens: usize, threads: usize) -> u64 {
        let [texts, tokens, threads] = [texts, tokens.min(self.max_tokens), threads.max(1)].map(|number| number as u64);
        let part = |size: usize, count: u64| (size as u64).saturating_mul(count);
        let rows = texts.saturating_mul(tokens).min(tokens.max(ROWS_TOGETHER as u64));
        let floats = part(self.per_row, rows)
            .saturating_add(part(self.per_thread_row, threads.saturating_mul(tokens.next_multiple_of(64))))
            .saturating_add(part(self.width, texts))
            // The tokens themselves.
            .saturating_add(texts.saturating_mul(tokens));
        floats.saturating_mul(size_of::<f32>() as u64).saturating_add(READING_BYTES as u64)
    }
}

/// Whether a tensor of a BERT file takes no part in an embedding: the positions' own numbers, and the pooler, which was trained to
/// tell whether one sentence follows another.
#[must_use]
pub fn is_left_out(tensor: &str) -> bool {
    tensor == "embeddings.position_ids" || tensor.starts_with("pooler.")
}

/// As many as in the file, but that outputs of a matrix are taken by 16, and that there are gaps.
fn resident_bytes(info: &TensorInfo) -> usize {
    match *info.shape.as_slice() {
        [outputs, inputs] => {
            let weights = outputs.next_multiple_of(16).saturating_mul(inputs).saturating_mul(info.dtype.bytes());
            weights.saturating_add(gap_bytes(outputs, inputs))
        }
        _ => info.elements().saturating_mul(size_of::<f32>()),
    }
}

fn required(
    map: &Map<String, Value>,
    key: &'static str,
    accepted: RangeInclusive<usize>,
) -> Result<usize, EncoderConfigError> {
    let value = map.get(key);
    let number = value.and_then(Value::as_u64).and_then(|number| usize::try_from(number).ok());
    number.filter(|number| accepted.contains(number)).ok_or_else(|| EncoderConfigError::OutOfRange {
        key,
        value: shown(value),
        expected: format!("a number from {} to {}", accepted.start(), accepted.end()),
    })
}

fn epsilon(map: &Map<String, Value>) -> Result<f32, EncoderConfigError> {
    let key = "layer_norm_eps";
    let Some(value) = map.get(key) else { return Ok(DEFAULT_NORM_EPSILON) };
    let number = value.as_f64().map(|number| number as f32);
    number.filter(|number| (0.0..=1.0).contains(number)).ok_or_else(|| EncoderConfigError::OutOfRange {
        key,
        value: shown(Some(value)),
        expected: "a number from 0 to 1".to_owned(),
    })
}

/// For a message: what a stranger wrote may be long.
fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "missing".to_owned(), |value| value.to_string().chars().take(MAX_SHOWN).collect())
}

/// What else a `config.json` may ask for, what is computed, and whether a value says that.
type Variant = (&'static str, &'static str, fn(&Value) -> bool);
const VARIANTS: [Variant; 4] = [
    ("hidden_act", "\"gelu\"", |value| value == "gelu"),
    ("position_embedding_type", "\"absolute\"", |value| value == "absolute"),
    ("is_decoder", "false", |value| value == &Value::Bool(false)),
    ("add_cross_attention", "false", |value| value == &Value::Bool(false)),
];
/// BertConfig's default in Hugging Face transformers.
const DEFAULT_NORM_EPSILON: f32 = 1e-12;
/// Rows that are computed together at most, unless a single text has more: enough for matrix products to be efficient.
pub const ROWS_TOGETHER: usize = 256;
/// Most bytes of a text: some 25 times what fits the 512 positions of most encoders.
pub const MAX_TEXT_BYTES: usize = 64 << 10;
/// What the tokenizer takes while it reads a text, at most: of each byte where it came from, and of each token a copy.
const READING_BYTES: usize = 256 * MAX_TEXT_BYTES;
/// What the tokenizer holds of a token: its text twice, each in a table.
const TOKEN_BYTES: usize = 256;
/// Some classifiers name thousands of labels in it.
const MAX_CONFIG_BYTES: usize = 1 << 20;
const MAX_SHOWN: usize = 60;

// The largest encoders have 48 layers, width 2,560, feed-forward 10,240, 40 heads and 8,192 positions.
// The limits leave room and keep every product of them within 64 bits.
const MAX_LAYERS: usize = 1_024;
const MAX_WIDTH: usize = 16_384;
const MAX_FEED_FORWARD: usize = 65_536;
const MAX_HEADS: usize = 1_024;
const MAX_POSITIONS: usize = 65_536;
const MAX_TOKEN_TYPES: usize = 64;
const MAX_VOCABULARY: usize = 2 << 20;
