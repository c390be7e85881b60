//! The header of a model's file: what the model is, and what loading and running it will take.
//!
//! The engine (`inference`) loads by this, and the client plans by it, so both go by one reader and one set of numbers.
//! Nothing here computes with weights, opens a file or holds anything of a customer.

mod config;
pub mod gguf;
mod plan;

pub use config::{Architecture, Config, ConfigError, RopeScaling};
pub use plan::{Activations, KV_PAGE, MOST_GUESSING, PROMPT_CHUNK, Plan, PlanError, bytes_at_once};
