//! boto3, pinned and unmodified, finds in the simulated KMS what it would find in the real one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "tests stop at the first surprise"
)]

mod stand;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use attestation::UnixMillis;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use simulator::kms::Principal;
use stand::{Attester, Image, SECRET, STRANGER, Stand};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boto3_finds_every_operation_and_every_refusal() {
    let stand = Stand::start().await;
    let session = "arn:aws:sts::111122223333:assumed-role/Administrator/session";
    let principal = || Principal::new(session, SECRET).unwrap();
    stand.kms.set_principal("Session", principal().with_session("token", stand::now().0 + 600_000));
    stand.kms.set_principal("Expired", principal().with_session("token", stand::now().0));
    let mut enclave = Attester::start(&stand.authority, &Image::good());
    let spki = enclave.spki();
    let stale = enclave.document_with(Some(&spki), UnixMillis(stand::now().0 - 301_000));
    let job = json!({
        "url": stand.kms.url(), "ca": stand.kms.ca_path(), "secret": SECRET, "administrator": session, "grantee": STRANGER,
        "document": STANDARD.encode(enclave.document()), "stale": STANDARD.encode(stale),
    });
    let version = tokio::task::spawn_blocking(move || run(&job.to_string())).await.unwrap();
    assert_eq!(version.trim(), "1.44.5");
    let recipients = stand.kms.journal().entries().into_iter().filter(|entry| entry.attested).count();
    assert_eq!(recipients, 3);
}

fn run(job: &str) -> String {
    let mut child = Command::new(environment().join("bin/python"))
        .arg(folder().join("kms.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the virtual environment has a python");
    child.stdin.take().unwrap().write_all(job.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "kms.py failed; its error stands above");
    String::from_utf8(output.stdout).unwrap()
}

/// The virtual environment with the pinned packages: made at the first run, and again when the pins change.
fn environment() -> PathBuf {
    let requirements = folder().join("requirements.txt");
    let pins = ring::digest::digest(&ring::digest::SHA256, &fs::read(&requirements).unwrap());
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let ready = target.join(format!("boto3-{}", hex::encode(&pins.as_ref()[..8])));
    if ready.is_dir() {
        return ready;
    }
    eprintln!("installing boto3 into the target folder (once) ...");
    // Made beside, then renamed: an interrupted run leaves nothing that looks ready.
    let fresh = tempfile::Builder::new().prefix("boto3-").tempdir_in(target).unwrap().keep();
    assert!(
        Command::new("python3").args(["-m", "venv"]).arg(&fresh).status().is_ok_and(|status| status.success()),
        "{MISSING}"
    );
    let mut install = Command::new(fresh.join("bin/python"));
    install
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r"])
        .arg(&requirements);
    assert!(install.status().is_ok_and(|status| status.success()), "{NOT_INSTALLED}");
    if fs::rename(&fresh, &ready).is_err() {
        // Another run was faster.
        assert!(ready.is_dir(), "the virtual environment could not be put at {}", ready.display());
        let _ = fs::remove_dir_all(&fresh);
    }
    ready
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python")
}

const MISSING: &str = "this test needs python3 (3.9 or later) with its venv and pip modules. \
    Debian, Ubuntu: apt install python3 python3-venv python3-pip; Fedora: dnf install python3 python3-pip; macOS: brew install python3";

const NOT_INSTALLED: &str = "pip could not install the packages of tests/simulator/tests/python/requirements.txt: \
    it needs the Python package registry at the first run, or a mirror named in pip's own configuration";
