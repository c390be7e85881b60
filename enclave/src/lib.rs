//! The service inside the enclave: boot, keys, requests and answers.
//!
//! Everything here is measured into the image and sees plaintext. What comes from outside (the parent, the network, a
//! customer, a model supplier) is untrusted until a type says otherwise: see [`boot`] for the order in which trust is
//! won, [`request`] for what happens to one sealed request.
//!
//! Two programs use this library: `subrosa-enclave` gives it vsock, the Nitro Secure Module and the file in the image;
//! the simulated enclave of the tests gives it sockets and the simulator's module. Nothing else differs.

pub mod attester;
pub mod boot;
pub mod cache;
pub mod configuration;
pub mod credentials;
pub mod host;
pub mod image;
pub mod key_policy;
pub mod kms;
pub mod log;
mod memory;
pub mod pack;
pub mod platform;
pub mod recipient;
pub mod replay;
mod request;
mod service;
pub mod tenant;

pub use boot::{ServeError, serve};
pub use image::ImageConfiguration;
pub use platform::{Clock, Dialler, Platform, SystemClock};
