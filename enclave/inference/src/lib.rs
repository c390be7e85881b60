//! Loads a model from a GGUF file and generates text on the CPU.
//!
//! This crate knows no socket, no key, no NSM and no log. It gets bytes and messages, and gives tokens. What it
//! holds of a customer (prompt, tokens, KV cache, text held back) has no `Debug` and is wiped on drop. What the
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

mod constraint;
mod decoder;
mod engine;
mod generate;
mod logprobs;
mod model;
mod sample;
mod stream;
mod template;
mod threads;
mod tokenizer;

pub use constraint::{CONSTRAINT_BYTES, Constraint, ConstraintError, Form, MAX_GRAMMAR_BYTES, MAX_SCHEMA_BYTES};
pub use decoder::WeightsError;
pub use generate::{Cancel, FinishReason, Finished, GenerateError, Token};
pub use logprobs::{MAX_TOP_LOGPROBS, TokenLogprobs};
pub use model::{
    EngineError, LoadError, LoadOptions, MAX_CONTENT_BYTES, MAX_MESSAGES, Message, Model, Prompt, PromptError, Role,
};
pub use model_header::{ConfigError, Plan, PlanError};
pub use sample::{MAX_BIASES, MAX_STOP_BYTES, MAX_STOPS, MAX_TEMPERATURE, Sampling, SamplingError};
pub use template::{Problem, TemplateError};
pub use threads::ThreadsError;
pub use tokenizer::TokenizerError;
