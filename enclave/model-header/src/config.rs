//! Hyperparameters, read from the metadata and held to what this engine computes.

use thiserror::Error;

use crate::gguf::{GgufError, Header, TensorType};

/// The shape of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What kind of model it is.
    pub architecture: Architecture,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Most tokens of a sequence. Where the file has attention slide through a window, its width: up to there nothing has slid out,
    /// so that full attention, which is what is computed, is the same.
    pub context_length: usize,
    /// The context that the file states.
    pub stated_context: usize,
    /// Width of the hidden state.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Width between the two halves of a feed-forward block.
    pub feed_forward: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values: a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of a head: an even number.
    pub head_width: usize,
    /// Added to the mean square of a norm.
    pub rms_epsilon: f32,
    /// Base of the rotary frequencies.
    pub rope_base: f64,
    /// How those are stretched over a longer context.
    pub rope_scaling: RopeScaling,
    /// Bytes of an element in the KV cache: 4 (f32) where all matrices are f32, else 2 (f16).
    pub kv_element_bytes: usize,
}

/// The decoders that are computed. They differ in how rotary pairs lie, and in what is done to queries, keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and 3, Mistral and their kin: pairs side by side.
    Llama,
    /// Qwen 2 and 2.5: pairs half a head apart, and a bias on queries, keys and values.
    Qwen2,
    /// Qwen 3: pairs half a head apart, and a norm on each head of queries and keys.
    Qwen3,
}

impl Architecture {
    /// The name in `general.architecture`, with which the keys of the hyperparameters begin.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    const ALL: [Self; 3] = [Self::Llama, Self::Qwen2, Self::Qwen3];
}

/// How frequencies are stretched over a longer context.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions are divided by this factor.
    Linear(f64),
}

/// Why the hyperparameters of a file are refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The metadata is malformed.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// Another architecture.
    #[error("architecture \"{0}\" is not supported; \"llama\", \"qwen2\" and \"qwen3\" are")]
    Architecture(String),
    /// A hyperparameter is zero, too large, or does not fit another.
    #[error("metadata \"{key}\" is {value}; {expected} is expected")]
    OutOfRange {
        /// The metadata key.
        key: String,
        /// Its value.
        value: u64,
        /// What would be accepted.
        expected: String,
    },
    /// A variant of the architecture that this engine does not compute.
    #[error("the model uses {0}, which is not supported")]
    Unsupported(String),
}

impl Config {
    /// Reads the hyperparameters.
    ///
    /// # Errors
    /// One that is missing or malformed, or that the engine does not compute with.
    pub fn read(header: &Header<'_>) -> Result<Self, ConfigError> {
        let name = header.text("general.architecture")?;
        let known = Architecture::ALL.into_iter().find(|architecture| architecture.name() == name);
        let architecture = known.ok_or_else(|| ConfigError::Architecture(name.to_owned()))?;
        let key = |part: &str| format!("{name}.{part}");
        if header.optional_number(&key("expert_count"))?.is_some_and(|count| count > 0) {
            return Err(ConfigError::Unsupported("a mixture of experts".to_owned()));
        }
        let width = required(header, &key("embedding_length"), MAX_WIDTH)?;
        let heads = required(header, &key("attention.head_count"), MAX_HEADS)?;
        let kv_heads = optional(header, &key("attention.head_count_kv"), MAX_HEADS)?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(out_of_range(&key("attention.head_count_kv"), kv_heads, format!("a divisor of {heads}")));
        }
        let head_width = match optional(header, &key("attention.key_length"), MAX_HEAD_WIDTH)? {
            Some(given) => given,
            None if width.is_multiple_of(heads) && width / heads <= MAX_HEAD_WIDTH => width / heads,
            None => return Err(out_of_range(&key("attention.head_count"), heads, format!("a divisor of {width}"))),
        };
        if !head_width.is_multiple_of(2) {
            return Err(out_of_range(&key("attention.key_length"), head_width, "an even number".to_owned()));
        }
        for (part, meaning) in
            [("attention.value_length", "values as wide as keys"), ("rope.dimension_count", "rotation of whole heads")]
        {
            if let Some(value) = optional(header, &key(part), MAX_HEAD_WIDTH)?.filter(|&value| value != head_width) {
                return Err(out_of_range(&key(part), value, format!("{head_width} ({meaning})")));
            }
        }
        if header.optional_bool(&key("attention.causal"))? == Some(false) {
            return Err(ConfigError::Unsupported(
                "attention to later tokens (\"attention.causal\" is false)".to_owned(),
            ));
        }
        let stated_context = required(header, &key("context_length"), MAX_CONTEXT)?;
        let window = window(header, name)?.unwrap_or(stated_context);
        let is_exact = header.tensors().all(|(_, info)| info.shape.len() < 2 || info.kind == TensorType::F32);
        Ok(Self {
            architecture,
            vocabulary: vocabulary(header, &key("vocab_size"))?,
            context_length: stated_context.min(window),
            stated_context,
            width,
            layers: required(header, &key("block_count"), MAX_LAYERS)?,
            feed_forward: required(header, &key("feed_forward_length"), MAX_FEED_FORWARD)?,
            heads,
            kv_heads,
            head_width,
            rms_epsilon: positive(header, &key("attention.layer_norm_rms_epsilon"), DEFAULT_RMS_EPSILON)? as f32,
            rope_base: positive(header, &key("rope.freq_base"), DEFAULT_ROPE_BASE)?,
            rope_scaling: rope_scaling(header, name)?,
            kv_element_bytes: if is_exact { 4 } else { 2 },
        })
    }

    /// Width of the keys, and of the values, of all heads together.
    #[must_use]
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_width
    }

    /// Width of the queries of all heads together.
    #[must_use]
    pub fn query_width(&self) -> usize {
        self.heads * self.head_width
    }

    /// Bytes that one position takes in the KV cache; positions are taken in pages of [`KV_PAGE`](crate::KV_PAGE).
    #[must_use]
    pub fn kv_bytes_per_token(&self) -> usize {
        // Values lie in vectors of 16.
        let elements = self.head_width + self.head_width.next_multiple_of(16);
        self.layers * self.kv_heads * elements * self.kv_element_bytes
    }
}

/// The tokens of the tokenizer; the hyperparameter, where it stands too, must agree.
fn vocabulary(header: &Header<'_>, stated: &str) -> Result<usize, ConfigError> {
    let key = "tokenizer.ggml.tokens";
    let tokens = header.optional_array(key)?.ok_or_else(|| GgufError::Missing(key.to_owned()))?.len();
    if tokens == 0 || tokens > MAX_VOCABULARY {
        return Err(out_of_range(key, tokens, format!("1 to {MAX_VOCABULARY} tokens")));
    }
    match optional(header, stated, MAX_VOCABULARY)? {
        Some(size) if size != tokens => {
            Err(out_of_range(stated, size, format!("{tokens}, as many as the tokenizer has")))
        }
        _ => Ok(tokens),
    }
}

/// The width of the window through which attention slides, of Mistral and of the longer Qwen 2: a number that is not 0, unless
/// the switch of Hugging Face's configurations is there, and off.
fn window(header: &Header<'_>, architecture: &str) -> Result<Option<usize>, ConfigError> {
    let key = |part: &str| format!("{architecture}.{part}");
    let is_off = header.optional_bool(&key("use_sliding_window"))? == Some(false);
    let width = header.optional_number(&key("attention.sliding_window"))?.filter(|width| *width > 0 && !is_off);
    Ok(width.map(|width| usize::try_from(width).unwrap_or(usize::MAX)))
}

/// As llama.cpp reads it: a factor without a type is linear, and "rope.scale_linear" is an older name of it.
fn rope_scaling(header: &Header<'_>, architecture: &str) -> Result<RopeScaling, ConfigError> {
    let key = |part: &str| format!("{architecture}.rope.{part}");
    if header.optional_float(&key("scaling.attn_factor"))?.is_some_and(|factor| factor != 1.0) {
        return Err(ConfigError::Unsupported("RoPE scaling with a factor for attention".to_owned()));
    }
    match header.optional_text(&key("scaling.type"))? {
        Some("none") => Ok(RopeScaling::None),
        None | Some("linear") => {
            let old = positive(header, &key("scale_linear"), 1.0)?;
            Ok(match positive(header, &key("scaling.factor"), old)? {
                1.0 => RopeScaling::None,
                factor => RopeScaling::Linear(factor),
            })
        }
        Some(other) => Err(ConfigError::Unsupported(format!("RoPE scaling of type \"{other}\""))),
    }
}

fn required(header: &Header<'_>, key: &str, limit: usize) -> Result<usize, ConfigError> {
    Ok(optional(header, key, limit)?.ok_or_else(|| GgufError::Missing(key.to_owned()))?)
}

fn optional(header: &Header<'_>, key: &str, limit: usize) -> Result<Option<usize>, ConfigError> {
    let Some(value) = header.optional_number(key)? else { return Ok(None) };
    match usize::try_from(value) {
        Ok(number) if (1..=limit).contains(&number) => Ok(Some(number)),
        _ => {
            Err(ConfigError::OutOfRange { key: key.to_owned(), value, expected: format!("a number from 1 to {limit}") })
        }
    }
}

fn positive(header: &Header<'_>, key: &str, default: f64) -> Result<f64, ConfigError> {
    match header.optional_float(key)?.unwrap_or(default) {
        number if number > 0.0 => Ok(number),
        _ => Err(GgufError::Unexpected { key: key.to_owned(), expected: "a number above zero" }.into()),
    }
}

fn out_of_range(key: &str, value: usize, expected: String) -> ConfigError {
    ConfigError::OutOfRange { key: key.to_owned(), value: value as u64, expected }
}

/// LlamaConfig's defaults in Hugging Face transformers, which llama.cpp shares.
const DEFAULT_RMS_EPSILON: f64 = 1e-5;
const DEFAULT_ROPE_BASE: f64 = 10_000.0;

// Llama 3.1 405B has 126 layers, width 16,384, feed-forward 53,248, 128 heads; the largest contexts are 10 million.
// The limits leave room and keep every product of them within 64 bits.
const MAX_LAYERS: usize = 1_024;
const MAX_WIDTH: usize = 65_536;
const MAX_FEED_FORWARD: usize = 262_144;
const MAX_HEADS: usize = 1_024;
const MAX_HEAD_WIDTH: usize = 1_024;
const MAX_CONTEXT: usize = 16 << 20;
const MAX_VOCABULARY: usize = 2 << 20;
