//! Third-party vectors: genuine documents, COSE messages, ECDSA signatures. One trial for each claim about each file.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests"
)]

mod third_party;

use std::process::ExitCode;

/// One area after the other; the exit code tells whether any failed.
fn main() -> ExitCode {
    let codes = [
        vectors::run("attestation", third_party::documents::trials),
        vectors::run("cose-aws", third_party::cose::aws_trials),
        vectors::run("cose-wg-examples", third_party::cose::working_group_trials),
        vectors::run("wycheproof", third_party::cose::wycheproof_trials),
    ];
    if codes.iter().all(|code| *code == ExitCode::SUCCESS) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
