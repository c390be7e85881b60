//! Wycheproof on the primitives that messages stand on, called as `sealing` calls them: AES-256-GCM and HKDF of ring, and
//! ECDSA P-384 of aws-lc with a compressed key over a streamed digest.
//!
//! Wycheproof's HKDF-SHA512 file is not among the vectors; ring's HKDF is one code for all digests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "a test program"
)]

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use aws_lc_rs::digest::{Context, SHA384};
use aws_lc_rs::signature::{ECDSA_P384_SHA384_ASN1, UnparsedPublicKey};
use libtest_mimic::{Failed, Trial};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf;
use serde_json::Value;

fn main() -> ExitCode {
    vectors::run("wycheproof", |folder| {
        let folder = folder.join("wycheproof");
        let mut trials = file(&folder, "aes_gcm_test.json", aes_gcm);
        trials.extend(file(&folder, "hkdf_sha256_test.json", |_, test| hkdf(hkdf::HKDF_SHA256, test)));
        trials.extend(file(&folder, "hkdf_sha384_test.json", |_, test| hkdf(hkdf::HKDF_SHA384, test)));
        trials.extend(file(&folder, "ecdsa_secp384r1_sha384_test.json", ecdsa));
        trials
    })
}

type Check = fn(&Value, &Value) -> Option<bool>;

/// One trial for each test of a file. `check` says whether the primitive accepted, or `None` where the test is of
/// parameters that are not used here.
fn file(folder: &Path, name: &str, check: Check) -> Vec<Trial> {
    let file: Value = serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap();
    let mut trials = Vec::new();
    for group in file["testGroups"].as_array().unwrap() {
        for test in group["tests"].as_array().unwrap() {
            let Some(accepted) = check(group, test) else { continue };
            let (expected, comment) = (test["result"].as_str().unwrap().to_owned(), test["comment"].as_str().unwrap());
            trials.push(Trial::test(format!("{name} {} {comment}: {expected}", test["tcId"]), move || {
                let right = accepted == (expected == "valid");
                right.then_some(()).ok_or_else(|| Failed::from(format!("accepted: {accepted}")))
            }));
        }
    }
    assert!(!trials.is_empty());
    trials
}

fn bytes(test: &Value, name: &str) -> Vec<u8> {
    hex::decode(test[name].as_str().unwrap()).unwrap()
}

fn aes_gcm(group: &Value, test: &Value) -> Option<bool> {
    (group["keySize"] == 256 && group["ivSize"] == 96 && group["tagSize"] == 128).then_some(())?;
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes(test, "key")).unwrap());
    let nonce = || Nonce::try_assume_unique_for_key(&bytes(test, "iv")).unwrap();
    let (aad, message) = (Aad::from(bytes(test, "aad")), bytes(test, "msg"));
    let sealed = [bytes(test, "ct"), bytes(test, "tag")].concat();
    let mut place = sealed.clone();
    let opened = key.open_in_place(nonce(), aad, &mut place).is_ok_and(|plain| plain == message);
    let mut place = message;
    let tag = key.seal_in_place_separate_tag(nonce(), Aad::from(bytes(test, "aad")), &mut place).unwrap();
    place.extend_from_slice(tag.as_ref());
    Some(opened && place == sealed)
}

fn hkdf(algorithm: hkdf::Algorithm, test: &Value) -> Option<bool> {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let length = usize::try_from(test["size"].as_u64()?).ok()?;
    let secret = hkdf::Salt::new(algorithm, &bytes(test, "salt")).extract(&bytes(test, "ikm"));
    let info = bytes(test, "info");
    let info = [info.as_slice()];
    let mut out = vec![0; length];
    let filled = secret.expand(&info, Length(length)).is_ok_and(|okm| okm.fill(&mut out).is_ok());
    Some(filled && out == bytes(test, "okm"))
}

fn ecdsa(group: &Value, test: &Value) -> Option<bool> {
    let point = bytes(&group["publicKey"], "uncompressed");
    let (x, y) = point[1..].split_at(48);
    let compressed = [&[2 + (y[47] & 1)], x].concat();
    let mut digest = Context::new(&SHA384);
    bytes(test, "msg").chunks(3).for_each(|chunk| digest.update(chunk));
    let key = UnparsedPublicKey::new(&ECDSA_P384_SHA384_ASN1, compressed);
    Some(key.verify_digest(&digest.finish(), &bytes(test, "sig")).is_ok())
}
