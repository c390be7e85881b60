//! Simulated hypervisor with a signing NSM, and a simulated KMS; never linked by a shipped program.

pub mod authority;
pub mod hypervisor;
pub mod kms;
pub mod notary;
pub mod nsm;
