//! `subrosa open` over every message that the Python AWS Encryption SDK wrote.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod support;

use std::path::Path;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libtest_mimic::Trial;
use serde_json::Value;
use support::{run_with, subrosa};

fn main() -> ExitCode {
    vectors::run("aws-encryption-sdk", |folder| {
        let folder = folder.join("aws-encryption-sdk");
        let manifest: Value = serde_json::from_slice(&std::fs::read(folder.join("manifest.json")).unwrap()).unwrap();
        let key = format!("fixtures/aes-256={}", manifest["keyring"]["wrapping_key_hex"].as_str().unwrap());
        manifest["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| opens(&folder, entry.clone(), key.clone()))
            .collect()
    })
}

fn opens(folder: &Path, entry: Value, key: String) -> Trial {
    let file = entry["file"].as_str().unwrap().to_owned();
    let path = folder.join(&file);
    Trial::test(format!("{file} opens, and its header is told"), move || {
        let scratch = tempfile::tempdir()?;
        let header = scratch.path().join("header.json");
        let message = std::fs::read(&path)?;
        let mut command = subrosa();
        command.args(["open", "--raw-aes", &key, "--json-header", header.to_str().unwrap()]);
        let output = run_with(&mut command, &message);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let digest = ring::digest::digest(&ring::digest::SHA256, &output.stdout);
        assert_eq!(hex::encode(digest), entry["plaintext_sha256"].as_str().unwrap());
        let header: Value = serde_json::from_slice(&std::fs::read(&header)?)?;
        let id = STANDARD.decode(entry["message_id"].as_str().unwrap())?;
        assert_eq!(header["message_id"].as_str().unwrap(), hex::encode(id));
        assert_eq!(header["frame_length"], entry["frame_length"]);
        for (key, value) in entry["encryption_context"].as_object().unwrap() {
            assert_eq!(header["encryption_context"][key], *value);
        }
        Ok(())
    })
}
