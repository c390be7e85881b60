//! What a model will take, from its header alone.

use thiserror::Error;

use crate::gguf::{GgufError, Header};
use crate::llama::{self, Config, ConfigError};
use crate::model::LoadOptions;

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
    /// Reads the header at the start of `file`; the tensors themselves need not be there yet. The plan is for
    /// [`LoadOptions::default`].
    ///
    /// # Errors
    /// A malformed or unsupported file.
    pub fn from_header(file: &[u8]) -> Result<Self, PlanError> {
        Self::under(file, &LoadOptions::default())
    }

    /// As [`Plan::from_header`], for loading under `options`.
    ///
    /// # Errors
    /// A malformed or unsupported file.
    pub fn under(file: &[u8], options: &LoadOptions) -> Result<Self, PlanError> {
        let header = Header::parse(file)?;
        let config = Config::read(&header)?;
        Ok(Self {
            weights_bytes: llama::resident_bytes(&header, options.dense_parameters),
            kv_bytes_per_token: config.kv_bytes_per_token(),
            context_length: config.context_length,
            parameters: llama::parameters(&header),
        })
    }
}
