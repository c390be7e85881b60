//! The third-party messages: each opens to the plaintext that its manifest names, and refuses to open changed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "a test program"
)]

mod tamper;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Failed, Trial};
use ring::digest;
use sealing::message::{EncryptionContext, Limits, SIGNATURE_KEY, Suite};
use sealing::raw_aes::{Keyring, WrappingKey};
use sealing::reader::{HeaderError, OpenError, open_whole};
use serde_json::Value;

fn main() -> ExitCode {
    vectors::run("aws-encryption-sdk", |folder| trials(&folder.join("aws-encryption-sdk")))
}

struct Case {
    name: String,
    message: Vec<u8>,
    keyring: Keyring,
    entry: Value,
}

fn trials(folder: &Path) -> Vec<Trial> {
    let manifest: Value = serde_json::from_slice(&fs::read(folder.join("manifest.json")).unwrap()).unwrap();
    let keyring = &manifest["keyring"];
    manifest["messages"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|entry| {
            let name = entry["file"].as_str().unwrap().to_owned();
            let key = hex::decode(keyring["wrapping_key_hex"].as_str().unwrap()).unwrap();
            let keyring = Keyring::new(
                keyring["namespace"].as_str().unwrap(),
                keyring["name"].as_str().unwrap(),
                WrappingKey::from_slice(&key).unwrap(),
            );
            let message = fs::read(folder.join(&name)).unwrap();
            let case = Arc::new(Case { name, message, keyring: keyring.unwrap(), entry: entry.clone() });
            [
                trial("opens to what its manifest says", &case, opens),
                trial("opens the same in pieces of any size", &case, opens_in_pieces),
                trial("is refused with a byte changed, cut or appended", &case, is_refused_changed),
                trial("is refused under another key", &case, is_refused_under_another_key),
                trial("opens unframed only when asked to", &case, unframed_only_when_asked),
            ]
        })
        .collect()
}

fn trial(claim: &str, case: &Arc<Case>, check: fn(&Case) -> Result<(), Failed>) -> Trial {
    let case = Arc::clone(case);
    Trial::test(format!("{} {claim}", case.name), move || check(&case))
}

fn limits() -> Limits {
    Limits { unframed: Some(100_000), ..Limits::file() }
}

impl Case {
    fn open(&self, message: &[u8]) -> Result<Vec<u8>, OpenError> {
        let (_, plaintext) = open_whole(limits(), message, 1 << 20, |header| {
            self.keyring.unwrap(header.encrypted_data_keys(), header.context()).ok()
        })?;
        Ok(plaintext.as_bytes().to_vec())
    }
}

fn opens(case: &Case) -> Result<(), Failed> {
    let (header, plaintext) = open_whole(limits(), &case.message, 1 << 20, |header| {
        case.keyring.unwrap(header.encrypted_data_keys(), header.context()).ok()
    })?;
    let plaintext = plaintext.as_bytes();
    assert_eq!(plaintext.len() as u64, case.entry["plaintext_length"].as_u64().unwrap());
    let sha256 = hex::encode(digest::digest(&digest::SHA256, plaintext));
    assert_eq!(sha256, case.entry["plaintext_sha256"].as_str().unwrap());
    let suite = match case.entry["algorithm_suite"].as_str().unwrap() {
        "AES_256_GCM_HKDF_SHA512_COMMIT_KEY" => Suite::Commit,
        "AES_256_GCM_HKDF_SHA512_COMMIT_KEY_ECDSA_P384" => Suite::CommitSigned,
        other => panic!("{other}"),
    };
    assert_eq!(header.suite(), suite);
    assert_eq!(u64::from(header.frame_length()), case.entry["frame_length"].as_u64().unwrap());
    let pairs = case.entry["encryption_context"].as_object().unwrap();
    let mut expected = EncryptionContext::from_pairs(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap())))?;
    if let Some(key) = header.context().get(SIGNATURE_KEY) {
        expected.insert(SIGNATURE_KEY, key)?;
    }
    assert_eq!(*header.context(), expected);
    Ok(())
}

fn opens_in_pieces(case: &Case) -> Result<(), Failed> {
    let whole = case.open(&case.message)?;
    let key = |header: &sealing::reader::UnverifiedHeader| {
        case.keyring.unwrap(header.encrypted_data_keys(), header.context()).ok()
    };
    for size in [1, 2, 7, 1_000, 4_096] {
        let pieces: Vec<&[u8]> = case.message.chunks(size).collect();
        assert_eq!(tamper::open_pieces(limits(), &pieces, key)?, whole, "pieces of {size}");
    }
    Ok(())
}

fn is_refused_changed(case: &Case) -> Result<(), Failed> {
    for (what, changed) in tamper::changes(&case.message) {
        if case.open(&changed).is_ok() {
            return Err(format!("opened with {what}").into());
        }
    }
    Ok(())
}

fn is_refused_under_another_key(case: &Case) -> Result<(), Failed> {
    let other = Keyring::new("fixtures", "aes-256", WrappingKey::from_bytes([7; 32]))?;
    let opened = open_whole(limits(), &case.message, 1 << 20, |header| {
        other.unwrap(header.encrypted_data_keys(), header.context()).ok()
    });
    assert_eq!(opened.err(), Some(OpenError::Key));
    Ok(())
}

fn unframed_only_when_asked(case: &Case) -> Result<(), Failed> {
    let opened = open_whole(Limits::file(), &case.message, 1 << 20, |header| {
        case.keyring.unwrap(header.encrypted_data_keys(), header.context()).ok()
    });
    if case.entry["frame_length"] == 0 {
        assert_eq!(opened.err(), Some(OpenError::Malformed(HeaderError::Unframed)));
        let short = Limits { unframed: Some(4_999), ..Limits::file() };
        let opened = open_whole(short, &case.message, 1 << 20, |header| {
            case.keyring.unwrap(header.encrypted_data_keys(), header.context()).ok()
        });
        assert_eq!(opened.err(), Some(OpenError::Length { found: 5_000, most: 4_999 }));
    } else {
        assert!(opened.is_ok());
    }
    Ok(())
}
