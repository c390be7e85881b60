//! Loads a model from a GGUF file and generates text on the CPU; loads an encoder from safetensors and embeds texts ([`Encoder`]).
//!
//! This crate knows no socket, no key, no NSM and no log. It gets bytes and messages, and gives tokens. What it
//! holds of a customer (prompt, tokens, KV cache, text held back, embeddings) has no `Debug` and is wiped on drop. What the
//! `tokenizers` library, the template engine and the grammar's library copy of it while they work (the last one a schema or grammar
//! and the answer that it binds), and token ids on their way from the engine's thread to the caller's, are freed, but not wiped.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use inference::{Cancel, LoadOptions, Message, Model, Plan, Role, Sampling};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let file = std::fs::read("model.gguf")?;
//! let plan = Plan::from_header(&file)?; // what it will take, before anything is allocated
//! assert!(plan.weights_bytes < 1 << 30);
//! let model = Model::load(&file, &LoadOptions::default())?;
//! let prompt = model.prompt(&[Message { role: Role::User, content: "Good morning" }])?;
//! let max_tokens = model.room_after(&prompt).min(256);
//! model.generate(&prompt, &Sampling::greedy(), max_tokens, &Cancel::new(), &mut |token| {
//!     let _text: &str = token.text;
//!     ControlFlow::Continue(())
//! })?;
//! # Ok(()) }
//! ```

/// The reader of a model's header, which the client plans by as well.
pub use model_header::gguf;

#[cfg(test)]
mod against_transformers;
mod asker;
mod constraint;
mod decoder;
mod encoder;
mod engine;
mod generate;
mod logprobs;
mod model;
mod opened;
mod sample;
mod stream;
mod template;
mod threads;
mod tokenizer;

pub use asker::{Asker, PrefixScope};
pub use constraint::{CONSTRAINT_BYTES, ConstraintError, Form, MAX_GRAMMAR_BYTES, MAX_SCHEMA_BYTES};
pub use decoder::WeightsError;
pub use encoder::{
    EmbedError, EmbedOptions, Embedding, Encoder, EncoderError, EncoderFiles, EncoderWeightsError, MAX_TEXT_BYTES,
    MAX_TEXTS, PackError, Pooling, Vocabulary, VocabularyError,
};
pub use engine::KvMemory;
pub use generate::{Begun, Cancel, FinishReason, Finished, GenerateError, Queued, Token};
pub use logprobs::{MAX_TOP_LOGPROBS, TokenLogprobs};
pub use model::{
    EngineError, LoadError, LoadOptions, MAX_CONTENT_BYTES, MAX_MESSAGES, Message, Model, Prompt, PromptError, Role,
};
/// The reader of a safetensors file's header.
pub use model_header::safetensors;
pub use model_header::{ConfigError, EncoderConfigError, EncoderPlan, EncoderPlanError, Plan, PlanError};
pub use opened::Opened;
pub use sample::{MAX_BIASES, MAX_STOP_BYTES, MAX_STOPS, MAX_TEMPERATURE, Sampling, SamplingError};
pub use template::{Problem, TemplateError};
pub use threads::ThreadsError;
pub use tokenizer::TokenizerError;
