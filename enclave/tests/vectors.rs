//! Third-party vectors: genuine envelopes of KMS, those of imitators, and Wycheproof on the primitives beneath.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "a test"
)]

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use aws_lc_rs::cipher::{AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use enclave::recipient::{Envelope, RecipientKey};
use libtest_mimic::{Failed, Trial};
use serde_json::Value;

fn main() -> ExitCode {
    vectors::run("kms-cms", envelopes)
}

fn envelopes(folder: &Path) -> Vec<Trial> {
    let cms = folder.join("kms-cms");
    let wycheproof = folder.join("wycheproof");
    let read = |name: &str| fs::read(cms.join(name)).unwrap();
    // Whatever its name says, the file is a PKCS #1 RSAPrivateKey (RFC 8017, A.1.2).
    let key = pkcs8(&read("edgebit_recipient_key.pkcs8.der"));
    let genuine = read("edgebit_ciphertext_for_recipient.ber");
    let plaintext = read("edgebit_plaintext.bin");
    let spki = read("edgebit_recipient_spki.der");

    let mut trials = vec![trial("the genuine envelope of KMS opens to its data key", {
        let (key, genuine, plaintext) = (key.clone(), genuine.clone(), plaintext.clone());
        move || {
            let key = RecipientKey::danger_from_pkcs8(&key).unwrap();
            assert_eq!(key.spki(), spki);
            assert_eq!(key.open(&genuine).unwrap().as_slice(), plaintext);
        }
    })];
    // The genuine message authenticates nothing but its form: a flip in IV or content may open, never to the same key.
    trials.push(trial("the genuine envelope with any single bit of any byte changed never opens to its data key", {
        let (key, genuine, plaintext) = (key.clone(), genuine.clone(), plaintext.clone());
        move || {
            let key = RecipientKey::danger_from_pkcs8(&key).unwrap();
            for at in 0..genuine.len() {
                let mut changed = genuine.clone();
                changed[at] ^= 1 << (at % 8);
                assert!(key.open(&changed).map_or(true, |opened| opened.as_slice() != plaintext), "offset {at}");
            }
        }
    }));
    trials.push(trial("the genuine envelope cut or lengthened is refused", {
        let (key, genuine) = (key.clone(), genuine.clone());
        move || {
            let key = RecipientKey::danger_from_pkcs8(&key).unwrap();
            assert!((0..genuine.len()).all(|end| key.open(&genuine[..end]).is_err()));
            assert!(key.open(&[genuine.as_slice(), &[0]].concat()).is_err());
        }
    }));
    for suffix in ["", "_w_ctx"] {
        let (input, ciphertext) =
            (read(&format!("sdkc_input_ber{suffix}.bin")), read(&format!("sdkc_ciphertext_out{suffix}.bin")));
        let (encrypted_key, iv) =
            (read(&format!("sdkc_encrypted_key_out{suffix}.bin")), read(&format!("sdkc_iv_out{suffix}.bin")));
        trials.push(trial(&format!("the parts of genuine sdkc_input_ber{suffix} are found"), move || {
            let envelope = Envelope::parse(&input).unwrap();
            assert_eq!(envelope.ciphertext.as_slice(), ciphertext);
            assert_eq!(envelope.encrypted_key.as_slice(), encrypted_key);
            assert_eq!(envelope.iv.as_slice(), iv);
        }));
    }
    // KMS writes neither of these forms, so they are refused: version 0 with issuerAndSerialNumber; a 20-byte
    // identifier and algorithm parameters without NULL.
    for name in ["localstack_envelope_v0_issuerserial.der", "openssl_keyid_def.der", "openssl_keyid_indef.ber"] {
        let (key, input) = (key.clone(), read(name));
        trials.push(trial(&format!("{name} is not KMS's form and is refused"), move || {
            assert!(RecipientKey::danger_from_pkcs8(&key).unwrap().open(&input).is_err());
        }));
    }
    trials.extend(oaep(&wycheproof, "rsa_oaep_2048_sha256_mgf1sha256_test.json", true));
    trials.extend(oaep(&wycheproof, "rsa_oaep_2048_sha256_mgf1sha1_test.json", false));
    trials.extend(cbc(&wycheproof));
    trials
}

/// RSA-OAEP. With `ours` false the parameters are others than ours, and nothing may decrypt to its message.
fn oaep(folder: &Path, file: &str, ours: bool) -> Vec<Trial> {
    each(folder, file, move |group, test| {
        let key = PrivateDecryptingKey::from_pkcs8(&bytes(&group["privateKeyPkcs8"])).unwrap();
        let key = OaepPrivateDecryptingKey::new(key).unwrap();
        let label = bytes(&test["label"]);
        let label = (!label.is_empty()).then_some(label.as_slice());
        let mut out = vec![0; key.min_output_size()];
        let opened =
            key.decrypt(&OAEP_SHA256_MGF1SHA256, &bytes(&test["ct"]), &mut out, label).map(|plain| plain.to_vec());
        let good = opened.is_ok_and(|opened| opened == bytes(&test["msg"]));
        assert_eq!(good, ours && test["result"] != "invalid");
    })
}

/// AES-CBC with PKCS #5 padding, 256-bit keys.
fn cbc(folder: &Path) -> Vec<Trial> {
    each(folder, "aes_cbc_pkcs5_test.json", |group, test| {
        if group["keySize"] != 256 {
            return;
        }
        let key = UnboundCipherKey::new(&AES_256, &bytes(&test["key"])).unwrap();
        let key = PaddedBlockDecryptingKey::cbc_pkcs7(key).unwrap();
        let iv: [u8; 16] = bytes(&test["iv"]).try_into().unwrap();
        let mut text = bytes(&test["ct"]);
        let opened =
            key.decrypt(&mut text, DecryptionContext::Iv128(FixedLength::from(&iv))).map(|plain| plain.to_vec());
        let good = opened.is_ok_and(|opened| opened == bytes(&test["msg"]));
        assert_eq!(good, test["result"] == "valid");
    })
}

fn each(folder: &Path, file: &str, check: impl Fn(&Value, &Value) + Copy + Send + 'static) -> Vec<Trial> {
    let suite: Value = serde_json::from_slice(&fs::read(folder.join(file)).unwrap()).unwrap();
    let groups = suite["testGroups"].as_array().unwrap();
    let cases = groups.iter().flat_map(|group| {
        let mut settings = group.clone();
        settings["tests"] = Value::Null;
        group["tests"].as_array().unwrap().iter().map(move |test| (settings.clone(), test.clone()))
    });
    cases
        .map(|(group, test)| {
            let name = format!("{file} #{} {}", test["tcId"], test["comment"].as_str().unwrap_or_default());
            trial(&name, move || check(&group, &test))
        })
        .collect()
}

/// RFC 5208: PrivateKeyInfo ::= SEQUENCE { version 0, AlgorithmIdentifier { rsaEncryption, NULL }, OCTET STRING }.
fn pkcs8(pkcs1: &[u8]) -> Vec<u8> {
    let length = |value: usize| u16::try_from(value).unwrap().to_be_bytes();
    let algorithm = [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
    let inner = [&[0x02, 0x01, 0x00][..], &algorithm, &[0x04, 0x82], &length(pkcs1.len()), pkcs1].concat();
    [&[0x30, 0x82][..], &length(inner.len()), &inner].concat()
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn trial(name: &str, check: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || -> Result<(), Failed> {
        check();
        Ok(())
    })
}
