//! The Llama architecture: what Llama 2 and 3, Mistral, SmolLM and their kin compute.

mod attention;
mod cache;
mod forward;
mod linear;
mod math;
mod rope;
mod weights;

pub(crate) use cache::KvCache;
pub(crate) use forward::ForwardError;
use model_header::Config;
use weights::Weights;
pub use weights::WeightsError;

use crate::gguf::Header;

/// Hyperparameters and weights.
pub(crate) struct Llama {
    pub(crate) config: Config,
    weights: Weights,
}

impl Llama {
    /// Loads all weights of `file` under `config`.
    pub(crate) fn load(
        config: Config,
        header: &Header<'_>,
        file: &[u8],
        dense_parameters: usize,
    ) -> Result<Self, WeightsError> {
        let weights = Weights::load(&config, header, file, dense_parameters)?;
        Ok(Self { config, weights })
    }

    /// Whether any product is one of quantised blocks, on candle's own threads.
    pub(crate) fn uses_blocks(&self) -> bool {
        self.weights.uses_blocks()
    }
}
