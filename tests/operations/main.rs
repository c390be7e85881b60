//! What operators are given: the plan against a running enclave, the doctor against the simulated KMS, and the files of `deploy/`.
//!
//! Programs are taken from where they were built: `make test` builds them first.

mod deployed;
mod doctor;
#[path = "../../enclave/inference/tests/making/mod.rs"]
mod making;
mod plan;
mod supervision;
