//! The untrusted relay on the parent instance.
//!
//! The parent carries bytes between clients, enclave and KMS and can read none of them: requests and answers are sealed
//! end to end, and TLS to KMS ends inside the enclave. What it knows is what it could count itself.
//!
//! ```text
//! client ──HTTP/1.1 or h2c──► front door ──h2c over vsock──► enclave
//!                             host services ◄──HTTP/1.1──────  (configuration, credentials, model packs)
//!         KMS ◄────TCP──────  blind tunnel  ◄──TLS bytes─────
//! ```
//!
//! It depends on no package that could open a message; `tests/architecture.rs` checks that.

mod answer;
mod connection;
mod credentials;
mod exchange;
mod front_door;
mod host_services;
mod link;
mod metrics;
mod model_packs;
mod parent;
mod readiness;
mod refusal;
mod response;
mod routes;
mod settings;
mod tunnel;
mod upload;

pub use parent::{Parent, StartError, run};
pub use settings::{Deadlines, Limits, Settings, SettingsError};
