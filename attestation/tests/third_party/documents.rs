//! Genuine documents: accepted and refused as `attestation/index.json` says, and refused with any byte changed.

use std::fs;
use std::path::Path;
use std::time::Duration;

use attestation::chain::{SignatureError, TrustAnchor, verify_signature};
use attestation::cose::{self, CoseError};
use attestation::document::OwnDocument;
use attestation::measurement::{self, Expected, MeasurementError};
use attestation::{Document, ParseError, UnixMillis};
use libtest_mimic::{Failed, Trial};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Trials for every file of the area.
pub(crate) fn trials(folder: &Path) -> Vec<Trial> {
    let read = |file: &str| fs::read(folder.join(file)).unwrap();
    let index: Value = serde_json::from_slice(&read("attestation/index.json")).unwrap();
    let mut trials = Vec::new();
    for entry in index.as_array().unwrap() {
        let file = entry["file"].as_str().unwrap().to_owned();
        let bytes = read(&file);
        match entry["expected"].as_str().unwrap() {
            expected @ ("valid" | "valid-debug") => {
                trials.extend(genuine(&file, bytes, entry, expected == "valid-debug"))
            }
            "reject:not-an-enclave" => trials.push(trial(&file, "is told apart as NitroTPM", move || {
                same(Document::parse(&bytes).err(), Some(ParseError::NitroTpm))
            })),
            "reject:shape" => trials.push(trial(&file, "is refused for its shape", move || {
                same(Document::parse(&bytes).err(), Some(ParseError::Cose(CoseError::Unprotected)))
            })),
            "reject:root" => trials.push(refused(&file, "root", bytes, entry, |error| {
                matches!(error, SignatureError::ForeignRoot { .. })
            })),
            "reject:signature" => trials
                .push(refused(&file, "signature", bytes, entry, |error| matches!(error, SignatureError::Document))),
            other => panic!("{file}: unknown expectation {other}"),
        }
    }
    let read_hex = |file: &str| hex::decode(String::from_utf8(read(file)).unwrap().trim()).unwrap();
    let qemu = read_hex("attestation/qemu-unsigned.hex");
    trials.push(trial("attestation/qemu-unsigned.hex", "is refused", move || {
        same(Document::parse(&qemu).err(), Some(ParseError::Cose(CoseError::Protected)))
    }));
    let qemu = read_hex("attestation/qemu-unsigned.hex");
    trials.push(trial("attestation/qemu-unsigned.hex", "is read by its own enclave, up to its name", move || {
        same(OwnDocument::parse(&qemu).err(), Some(ParseError::ModuleId("hello".to_owned())))
    }));
    let file = "attestation/espresso-sig_structure-2025-06-indef.tbs.bin";
    let signed = read(file);
    trials.push(trial(file, "is the structure that we would verify", move || {
        // "Signature1", protected, external_aad, and the payload from its map on.
        let payload = signed.get(1 + 11 + 5 + 1 + 3..).ok_or("too short")?;
        same(cose::to_be_signed(payload), signed.clone())
    }));
    trials
}

fn genuine(file: &str, bytes: Vec<u8>, entry: &Value, debug: bool) -> Vec<Trial> {
    let at = UnixMillis(entry["timestamp_ms"].as_u64().unwrap());
    let window = [0, 1].map(|edge| seconds(&entry["chain_window"][edge]));
    let entry = entry.clone();
    let changed = bytes.clone();
    let (other, fields) = (bytes.clone(), bytes.clone());
    vec![
        trial(file, "verifies at its time", move || {
            verify(&bytes, at)?;
            same(Document::parse(&bytes)?.timestamp(), at)
        }),
        trial(file, "is valid to the second", move || {
            let seconds = |seconds: u64| UnixMillis(seconds * 1000);
            verify(&other, seconds(window[0]))?;
            verify(&other, seconds(window[1]))?;
            let early = verify(&other, seconds(window[0] - 1)).err();
            let late = verify(&other, seconds(window[1] + 1)).err();
            if !matches!(early, Some(SignatureError::NotYetValid { .. })) {
                return Err(format!("one second early: {early:?}").into());
            }
            if matches!(late, Some(SignatureError::Expired { .. })) {
                Ok(())
            } else {
                Err(format!("one second late: {late:?}").into())
            }
        }),
        trial(file, "has the listed fields", move || has_fields(&Document::parse(&fields)?, &entry, debug)),
        trial(file, "is refused with any byte changed", move || {
            let mut changed = changed.clone();
            for position in 0..changed.len() {
                let bit = 1 << (position % 8);
                changed[position] ^= bit;
                if Document::parse(&changed).is_ok() && verify(&changed, at).is_ok() {
                    return Err(format!("accepted with byte {position} changed").into());
                }
                changed[position] ^= bit;
            }
            // The loop put every byte back.
            Ok(verify(&changed, at)?)
        }),
    ]
}

fn has_fields(document: &Document, entry: &Value, debug: bool) -> Result<(), Failed> {
    same(document.module_id(), entry["module_id"].as_str().unwrap())?;
    same(document.pcrs().len() as u64, entry["pcr_count"].as_u64().unwrap())?;
    for (index, pcr) in document.pcrs() {
        let listed = entry["pcrs_nonzero"].get(index.to_string()).and_then(Value::as_str);
        same(hex::encode(pcr), listed.map_or("00".repeat(48), str::to_owned))?;
    }
    for (found, name) in
        [(document.public_key(), "public_key"), (document.user_data(), "user_data"), (document.nonce(), "nonce")]
    {
        let length = found.map(|bytes| format!("len {}", bytes.len()));
        same(length.as_deref(), entry[name].as_str())?;
        if let Some(value) = entry[format!("{name}_hex")].as_str() {
            same(hex::encode(found.unwrap_or_default()), value.to_owned())?;
        }
    }
    // AWS: PCR4 is the measurement of the parent's instance id, in debug mode too.
    let pcr4 = measurement::extend(&measurement::ZERO, document.instance_id().as_bytes());
    same(document.pcrs().get(&4), Some(&pcr4))?;
    let expected = Expected { pcrs: [(4, vec![pcr4])].into(), danger_allow_debug: false };
    let measured = measurement::check(document, &expected).map(drop);
    same(measured, if debug { Err(MeasurementError::Debug) } else { Ok(()) })
}

fn refused(file: &str, reason: &str, bytes: Vec<u8>, entry: &Value, is_reason: fn(&SignatureError) -> bool) -> Trial {
    let at = UnixMillis(entry["timestamp_ms"].as_u64().unwrap());
    trial(file, &format!("is refused for its {reason}"), move || match verify(&bytes, at) {
        Err(error) if is_reason(&error) => Ok(()),
        other => Err(format!("{other:?}").into()),
    })
}

fn verify(bytes: &[u8], at: UnixMillis) -> Result<(), SignatureError> {
    let document = Document::parse(bytes).unwrap();
    verify_signature(&document, &TrustAnchor::aws(), at, Duration::ZERO).map(drop)
}

fn seconds(value: &Value) -> u64 {
    let time = OffsetDateTime::parse(value.as_str().unwrap(), &Rfc3339).unwrap();
    u64::try_from(time.unix_timestamp()).unwrap()
}

fn trial(file: &str, claim: &str, run: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Trial {
    Trial::test(format!("{file} {claim}"), run)
}

fn same<T: PartialEq + std::fmt::Debug>(found: T, expected: T) -> Result<(), Failed> {
    if found == expected { Ok(()) } else { Err(format!("found {found:?}, expected {expected:?}").into()) }
}
