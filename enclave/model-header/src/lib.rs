//! The header of a model's file: what the model is, and what loading and running it will take.
//!
//! The engine (`inference`) loads by this, and the client plans by it, so both go by one reader and one set of numbers.
//! Nothing here computes with weights, opens a file or holds anything of a customer.

mod config;
mod encoder;
pub mod gguf;
mod plan;
pub mod safetensors;

pub use config::{Architecture, Config, ConfigError, RopeScaling};
pub use encoder::{
    EncoderConfig, EncoderConfigError, EncoderPlan, EncoderPlanError, MAX_TEXT_BYTES, ROWS_TOGETHER, is_left_out,
};
pub use plan::{
    Activations, KV_PAGE, MOST_GUESSING, PROMPT_CHUNK, Plan, PlanError, READ_AT_ONCE, bytes_at_once, resident_bytes,
};
