//! COSE messages of AWS and of the working group, and Wycheproof's ECDSA signatures.

use std::fs;
use std::path::Path;

use attestation::cose::{Sign1, verify};
use libtest_mimic::{Failed, Trial};
use serde_json::Value;

/// AWS's own test messages. All carry a key id in the unprotected header, so none has the hardware's shape; with that
/// header emptied (it is not signed), the ES384 ones verify as listed and the others are refused.
pub(crate) fn aws_trials(folder: &Path) -> Vec<Trial> {
    let list = json(&folder.join("cose-aws/cose_sign1_vectors.json"));
    let key = &list["keys"]["P-384"];
    let point = [vec![4], unhex(&key["x"]), unhex(&key["y"])].concat();
    list["vectors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|vector| {
            let name = vector["name"].as_str().unwrap();
            let is_valid = vector["expected"] == "valid" && vector["key"] == "P-384";
            // Valid but for a reader that demands a tag; ours does not.
            let is_valid = is_valid || (vector["key"] == "P-384" && name.contains("missing_tag"));
            message_trial(&format!("cose-aws {name}"), unhex(&vector["hex"]), point.clone(), is_valid)
        })
        .collect()
}

/// The working group's examples of COSE_Sign1.
pub(crate) fn working_group_trials(folder: &Path) -> Vec<Trial> {
    let mut trials = Vec::new();
    for part in ["ecdsa-examples", "sign1-tests"] {
        for entry in fs::read_dir(folder.join("cose-wg-examples").join(part)).unwrap() {
            let path = entry.unwrap().path();
            let example = json(&path);
            let Some(sign) = example["input"].get("sign0") else { continue };
            let name = format!("cose-wg-examples {part}/{}", path.file_name().unwrap().to_string_lossy());
            let point = [vec![4], coordinate(&sign["key"]["x"]), coordinate(&sign["key"]["y"])].concat();
            let is_es384 = sign["protected"]["alg"] == "ES384" && example["fail"] != true;
            trials.push(message_trial(&name, unhex(&example["output"]["cbor"]), point, is_es384));
        }
    }
    trials
}

/// ECDSA P-384 with SHA-384, signatures as r || s. One trial for each group of one key.
pub(crate) fn wycheproof_trials(folder: &Path) -> Vec<Trial> {
    let suite = json(&folder.join("wycheproof/ecdsa_secp384r1_sha384_p1363_test.json"));
    let groups = suite["testGroups"].as_array().unwrap().clone();
    let count = groups.iter().map(|group| group["tests"].as_array().unwrap().len()).sum::<usize>();
    let listed = suite["numberOfTests"].as_u64().unwrap();
    let mut trials = vec![Trial::test("wycheproof ecdsa_secp384r1_sha384_p1363 is complete", move || {
        if count as u64 == listed { Ok(()) } else { Err(format!("{count} tests of {listed}").into()) }
    })];
    trials.extend(groups.into_iter().enumerate().map(|(number, group)| {
        Trial::test(format!("wycheproof ecdsa_secp384r1_sha384_p1363 group {number}"), move || {
            let point = unhex(&group["publicKey"]["uncompressed"]);
            group["tests"].as_array().unwrap().iter().try_for_each(|test| wycheproof(&point, test))
        })
    }));
    trials
}

/// `cose::verify` signs its own structure, so the primitive under it is what is tested here, with the same algorithm.
fn wycheproof(point: &[u8], test: &Value) -> Result<(), Failed> {
    let key = ring::signature::UnparsedPublicKey::new(attestation::cose::ALGORITHM, point);
    let verifies = key.verify(&unhex(&test["msg"]), &unhex(&test["sig"])).is_ok();
    let is_valid = test["result"] == "valid";
    if verifies == is_valid {
        Ok(())
    } else {
        Err(format!("{}: {} verifies: {verifies}", test["tcId"], test["comment"]).into())
    }
}

fn message_trial(name: &str, message: Vec<u8>, point: Vec<u8>, is_valid: bool) -> Trial {
    Trial::test(format!("{name} {}", if is_valid { "verifies" } else { "is refused" }), move || {
        if Sign1::parse(&message).is_ok() {
            return Err("taken although something stands in the unprotected header".into());
        }
        let emptied = with_empty_unprotected(&message);
        let verifies =
            Sign1::parse(&emptied).is_ok_and(|message| verify(&point, message.payload(), message.signature()).is_ok());
        if verifies == is_valid { Ok(()) } else { Err(format!("verifies: {verifies}").into()) }
    })
}

/// Puts the empty map in the place of a map with one short text or byte string under label 4 (a key id).
fn with_empty_unprotected(message: &[u8]) -> Vec<u8> {
    let Some(at) = message.windows(2).position(|window| window == [0xa1, 0x04]) else { return message.to_vec() };
    let length = usize::from(message[at + 2] & 0x1f);
    [&message[..at], &[0xa0], &message[at + 3 + length..]].concat()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn unhex(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

/// A coordinate in base64url without padding (RFC 7518, section 6.2.1.2).
fn coordinate(value: &Value) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let sextets: Vec<u32> = value
        .as_str()
        .unwrap()
        .bytes()
        .map(|byte| u32::try_from(ALPHABET.iter().position(|letter| *letter == byte).unwrap()).unwrap())
        .collect();
    let bits: u64 = sextets.len() as u64 * 6 / 8;
    let mut bytes = Vec::new();
    for group in sextets.chunks(4) {
        let value = (0..4).fold(0_u32, |value, at| value << 6 | group.get(at).copied().unwrap_or_default());
        bytes.extend_from_slice(&value.to_be_bytes()[1..]);
    }
    bytes.truncate(usize::try_from(bits).unwrap());
    bytes
}
