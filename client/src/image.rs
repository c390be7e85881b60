//! Enclave image files on disk: read within limits, measured, and told as `nitro-cli` tells them.
//!
//! What an image *is* stands in [`attestation::image`]; here is what a command needs around it.

pub mod configuration;
pub mod describe;
pub mod file;

pub use configuration::{ImageConfiguration, ImageConfigurationError};
pub use describe::Description;
pub use file::{FileError, MAX_IMAGE, TrustedImage};
