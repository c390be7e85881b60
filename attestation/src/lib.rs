//! Reads and checks AWS Nitro Enclaves attestation documents.
//!
//! Three questions, three functions, three errors (RFC 9334 calls the answers *appraisal of evidence*):
//!
//! | question | function | proof |
//! | --- | --- | --- |
//! | did a Nitro hypervisor sign this? | [`chain::verify_signature`] | [`chain::SignatureVerified`] |
//! | is it fresh, and for me? | [`freshness::check`] | [`freshness::Fresh`] |
//! | is it the code that I want? | [`measurement::check`] | [`measurement::Measured`] |
//!
//! [`Verified`] holds a document for which all three were answered. Nothing here reads a clock, a file or a device:
//! bytes, trust anchor and time are arguments. Before the first question stands [`document::Document::parse`], which
//! accepts exactly the form that the hardware writes.
//!
//! Where the code that one wants is at hand as a file, [`image`] computes its measurements.
//!
//! The other side of the table is here too, because both sides must agree on it: [`nsm`] is how an enclave asks for
//! a document, [`keyset`] is what the document's `user_data` binds.

pub mod cbor;
pub mod certificate;
pub mod chain;
pub mod cose;
pub mod document;
pub mod freshness;
pub mod image;
pub mod keyset;
pub mod measurement;
pub mod nsm;
mod profile;
mod verified;

pub use document::{Document, ParseError, UnixMillis};
pub use verified::{MixedProofs, Verified};

/// The value of a platform configuration register: a SHA-384 digest.
pub type Pcr = [u8; 48];
