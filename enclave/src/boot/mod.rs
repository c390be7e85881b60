//! Boot as a typestate: each phase consumes the one before, so that a skipped step does not compile.
//!
//! ```text
//! Cold -> Attested -> Configured -> Keyed -> Loaded -> serving
//! ```
//! Customer keys, documents for customers and port 5000 exist only after `Loaded`. What the parent provides may be late:
//! it is asked for again, politely, forever. What it provides wrongly ends boot.

mod entropy;
mod packs;
mod patience;
mod phases;
mod provisional;

use std::future::Future;

use address::ListenError;
use attestation::nsm::NsmError;

use crate::attester::AttesterError;
use crate::configuration::ConfigurationError;
use crate::image::ImageError;
use crate::kms::KmsError;
use crate::kms::connector::TunnelError;
use crate::log::{self, EndReason, Event, Phase};
use crate::pack::PackError;
use crate::platform::Platform;
use crate::service;

pub use entropy::EntropyError;
pub(crate) use phases::Parts;
pub use phases::{Attested, Cold, Configured, Keyed, Loaded};

/// All of the service: boots, serves until `shutdown` is ready, drains, returns.
///
/// # Errors
/// What ended boot, or what makes it wrong to go on serving. Nothing that a request contains is among it.
pub async fn serve(platform: Platform, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
    // The parent reads the console: what a panic would print there could quote a prompt.
    std::panic::set_hook(Box::new(|_| log::write(Event::Panicked)));
    boot_and_run(platform, shutdown).await.inspect_err(|error| log::write(Event::Ended { reason: error.reason() }))
}

async fn boot_and_run(platform: Platform, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
    tokio::pin!(shutdown);
    let boot = async {
        log::write(Event::Boot { phase: Phase::Cold });
        let attested = Cold::new(platform).attest().await?;
        log::write(Event::Boot { phase: Phase::Attested });
        let configured = attested.configure().await?;
        log::write(Event::Boot { phase: Phase::Configured });
        let keyed = configured.reach_kms().await?;
        log::write(Event::Boot { phase: Phase::Keyed });
        let loaded = keyed.load().await?;
        log::write(Event::Boot { phase: Phase::Loaded });
        Ok::<_, ServeError>(loaded)
    };
    let loaded = tokio::select! {
        booted = boot => booted?,
        () = &mut shutdown => return Ok(()),
    };
    service::run(loaded, shutdown).await
}

/// Why the service ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No randomness to make keys with.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// The security module refused or failed.
    #[error(transparent)]
    Nsm(#[from] NsmError),
    /// No document, or a clock that is wrong.
    #[error(transparent)]
    Attester(#[from] AttesterError),
    /// A user PCR was extended or locked before we came, or does not have the value that it should have.
    #[error("pcr{index} is not what it should be; expected {expected}")]
    Pcr {
        /// The register.
        index: u16,
        /// What was expected of it.
        expected: &'static str,
    },
    /// The image's own file.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The configuration document.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    /// PCR0 to PCR2 are zero. Boot ended before any key was asked for.
    #[error("this enclave runs in debug mode: its memory is open to the parent, so it asks for no key")]
    DebugMode,
    /// TLS to KMS cannot be set up.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// KMS gave no data key for a model pack.
    #[error("no data key for a model pack: {0}")]
    ModelPackKey(#[source] KmsError),
    /// The configuration says `refuse`, and somebody could have a model pack without this image.
    #[error(
        "the policy of a model pack's key has a way to plaintext that needs no accepted image; see subrosa policy check"
    )]
    KeyPolicyOpen,
    /// A model pack is not the configured one.
    #[error(transparent)]
    Pack(#[from] PackFault),
    /// The door could not be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The clock and the module's timestamps have drifted apart.
    #[error("the clock and the security module are more than 60 s apart")]
    ClockDrift,
    /// Work of ours ended before it was done.
    #[error("a task of the enclave itself failed")]
    Internal,
}

impl ServeError {
    /// The same for the log.
    fn reason(&self) -> EndReason {
        match self {
            Self::Entropy(_) => EndReason::Entropy,
            Self::Nsm(_) | Self::Attester(AttesterError::Module | AttesterError::Busy) => EndReason::Module,
            Self::Attester(AttesterError::Drift { .. }) | Self::ClockDrift => EndReason::ClockDrift,
            Self::Pcr { .. } => EndReason::Pcr,
            Self::Image(_) => EndReason::Image,
            Self::Configuration(_) => EndReason::Configuration,
            Self::DebugMode => EndReason::DebugMode,
            Self::ModelPackKey(_) => EndReason::ModelPackKey,
            Self::KeyPolicyOpen => EndReason::KeyPolicyOpen,
            Self::Pack(PackFault::NoRoom { .. }) => EndReason::Memory,
            Self::Pack(_) => EndReason::ModelPack,
            Self::Listen(_) => EndReason::Listen,
            Self::Tunnel(_) | Self::Internal => EndReason::Internal,
        }
    }
}

/// Why a model pack is refused.
#[derive(Debug, thiserror::Error)]
pub enum PackFault {
    /// The message does not open.
    #[error("the model pack does not open: {0}")]
    Open(#[from] sealing::reader::OpenError),
    /// The message is for another key, model, version or suite than the configured ones.
    #[error("the model pack's header differs from the configuration: {0}")]
    Header(&'static str),
    /// The archive inside is not the configured one.
    #[error(transparent)]
    Archive(#[from] PackError),
    /// The archive has no model file, or an empty one.
    #[error("the model pack has no model.gguf")]
    NoModel,
    /// The model needs more memory than this machine has left.
    #[error("the model needs {needed} bytes of memory, and {available} are free: give the enclave more memory")]
    NoRoom {
        /// Bytes of its weights, and of what loading takes beside.
        needed: u64,
        /// Bytes of memory.
        available: u64,
    },
    /// The engine refuses the model.
    #[error("the model does not load: {0}")]
    Model(#[from] inference::LoadError),
}
