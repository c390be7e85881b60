//! Writes enclave image files: the same bytes from the same parts, wherever it runs.
//!
//! What reads images is `attestation::image`: an image is never judged by what wrote it.

mod der;
pub mod eif;
pub mod metadata;
pub mod newc;
pub mod ramdisk;
pub mod sign;
