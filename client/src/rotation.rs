//! From one release to the next: which images clients and keys accept while both serve, and when the old one may be dropped.
//!
//! A release is dropped on evidence alone: attestation documents of everything that serves, minutes old, none of which shows it.

use std::collections::BTreeSet;

use attestation::Pcr;
use serde_json::{Map, Value, json};

use crate::measurements::Image;

/// A release: a name for people, and what its enclaves attest.
#[derive(Clone, Debug)]
pub struct Release {
    /// For people, and for the allow-list.
    pub name: String,
    /// Its registers; PCR0 among them.
    pub image: Image,
}

/// An enclave that was seen serving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    /// Its module id; none if only PCR0 is known.
    pub module_id: Option<String>,
    /// Its registers, as far as they are known; PCR0 among them.
    pub registers: Image,
}

/// A judgement by `subrosa verify --json`, as far as it is needed here.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Which enclave it is of.
    pub serving: Serving,
    /// When its document was made.
    pub timestamp: String,
}

/// The allow-list of these releases, for `--measurements` of `subrosa verify` and `subrosa ask`.
#[must_use]
pub fn allow_list(releases: &[Release]) -> Value {
    let image = |Release { name, image }: &Release| {
        let mut measurements = Map::from_iter([("HashAlgorithm".to_owned(), json!("Sha384 { ... }"))]);
        measurements.extend(image.iter().map(|(index, value)| (format!("PCR{index}"), hex::encode(value).into())));
        json!({"Name": name, "Measurements": measurements})
    };
    json!({"Images": releases.iter().map(image).collect::<Vec<_>>()})
}

/// Reads what `subrosa verify --json` printed of a live enclave.
///
/// # Errors
/// When it is something else, its signature or freshness is not good, or its trust anchor is not AWS's: whoever has another root's key
/// could say that nothing old serves any more. Whether the measurements were good does not matter: it is asked
/// which ones there are.
pub fn read_serving(json: &[u8]) -> Result<Seen, RotationError> {
    let value: Value = serde_json::from_slice(json).map_err(|_| RotationError::Evidence)?;
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned).ok_or(RotationError::Evidence);
    for question in ["signature", "freshness"] {
        let status = value.get(question).and_then(|answer| answer.get("status")).and_then(Value::as_str);
        if status != Some("good") {
            return Err(RotationError::NotGood { question });
        }
    }
    if value.get("aws_root") != Some(&Value::Bool(true)) {
        return Err(RotationError::NotAws);
    }
    let pcrs = value.get("pcrs").and_then(Value::as_object).ok_or(RotationError::Evidence)?;
    let mut registers = Image::new();
    for (index, digits) in pcrs {
        let index = index.parse().map_err(|_| RotationError::Evidence)?;
        registers.insert(index, image_digest(digits.as_str().unwrap_or_default())?);
    }
    if !registers.contains_key(&0) {
        return Err(RotationError::Evidence);
    }
    Ok(Seen { serving: Serving { module_id: Some(text("module_id")?), registers }, timestamp: text("timestamp")? })
}

/// Reads PCR0 from 96 hex digits.
///
/// # Errors
/// When it is something else.
pub fn image_digest(digits: &str) -> Result<Pcr, RotationError> {
    let mut value = [0; size_of::<Pcr>()];
    hex::decode_to_slice(digits, &mut value).map_err(|_| RotationError::Evidence)?;
    Ok(value)
}

/// Proof that nothing serves any more but the releases that stay.
#[derive(Debug)]
pub struct Drained(());

/// Checks that all of `enclaves` that serve are of the releases that stay, and none of those that go.
///
/// # Errors
/// When fewer were seen, or one of them is of another release, or may be: two releases can differ by PCR16 or PCR17 alone.
pub fn drained(
    stay: &[Release],
    go: &[Release],
    serving: &[Serving],
    enclaves: usize,
) -> Result<Drained, RotationError> {
    if serving.is_empty() {
        return Err(RotationError::NothingSeen);
    }
    let is_of = |serving: &Serving, release: &Release| {
        release.image.iter().all(|(index, value)| serving.registers.get(index).is_none_or(|found| found == value))
    };
    let may_go_on = |serving: &Serving| {
        stay.iter().any(|release| is_of(serving, release)) && !go.iter().any(|release| is_of(serving, release))
    };
    if let Some(old) = serving.iter().find(|serving| !may_go_on(serving)) {
        return Err(RotationError::StillServing {
            image_digest: old.registers.get(&0).map(hex::encode).unwrap_or_default(),
            module_id: old.module_id.clone().unwrap_or_else(|| "an enclave".to_owned()),
        });
    }
    let distinct: BTreeSet<&Option<String>> =
        serving.iter().map(|serving| &serving.module_id).filter(|id| id.is_some()).collect();
    let unnamed = serving.iter().filter(|serving| serving.module_id.is_none()).count();
    let seen = distinct.len() + unnamed;
    if seen < enclaves { Err(RotationError::NotAllSeen { seen, enclaves }) } else { Ok(Drained(())) }
}

/// Why a release is not dropped.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// Not what `subrosa verify --json` prints, nor a PCR0.
    #[error("expected what `subrosa verify --url URL --json` prints, or PCR0 in 96 hex digits")]
    Evidence,
    /// A document that proves nothing.
    #[error("the {question} of this evidence is not good: it does not show what serves")]
    NotGood {
        /// Which question failed.
        question: &'static str,
    },
    /// A document under another root.
    #[error("this evidence was verified under another trust anchor than AWS's: it does not show what serves")]
    NotAws,
    /// No evidence.
    #[error("nothing shows what serves: give --serving for every enclave")]
    NothingSeen,
    /// A release that would be dropped is still serving.
    #[error(
        "{module_id} still serves the image with PCR0 {image_digest}, with models or a configuration that the policy after the rotation would shut out, or is not known well enough to tell: drain it first"
    )]
    StillServing {
        /// Its PCR0.
        image_digest: String,
        /// The enclave.
        module_id: String,
    },
    /// Some enclaves were not looked at.
    #[error("{seen} of {enclaves} enclaves were seen: one that was not may still serve the old release")]
    NotAllSeen {
        /// With evidence.
        seen: usize,
        /// In service.
        enclaves: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(byte: u8) -> Release {
        Release { name: format!("{byte}.eif"), image: Image::from([(0, [byte; 48]), (1, [9; 48])]) }
    }

    fn serving(id: &str, byte: u8) -> Serving {
        Serving { module_id: Some(id.to_owned()), registers: Image::from([(0, [byte; 48])]) }
    }

    #[test]
    fn a_release_that_still_serves_is_not_dropped() {
        let (stay, go) = ([release(2)], [release(1)]);
        assert!(matches!(drained(&stay, &go, &[], 1), Err(RotationError::NothingSeen)));
        for other in [1, 3] {
            let still = drained(&stay, &go, &[serving("a", 2), serving("b", other)], 2);
            assert!(matches!(still, Err(RotationError::StillServing { module_id, .. }) if module_id == "b"), "{other}");
        }
        assert!(drained(&stay, &go, &[serving("a", 2), serving("b", 2)], 2).is_ok());
    }

    #[test]
    fn the_same_image_with_the_configuration_that_goes_is_another_release() {
        let with = |configuration: u8| {
            let mut release = release(2);
            release.image.insert(17, [configuration; 48]);
            release
        };
        let (stay, go) = ([with(8)], [with(7)]);
        let seen = |configuration: u8| Serving { registers: with(configuration).image, ..serving("a", 2) };
        assert!(drained(&stay, &go, &[seen(8)], 1).is_ok());
        assert!(matches!(drained(&stay, &go, &[seen(7)], 1), Err(RotationError::StillServing { .. })));
        // PCR0 alone does not tell which.
        assert!(matches!(drained(&stay, &go, &[serving("a", 2)], 1), Err(RotationError::StillServing { .. })));
    }

    #[test]
    fn one_enclave_seen_twice_is_one() {
        let twice = drained(&[release(2)], &[], &[serving("a", 2), serving("a", 2)], 2);
        assert!(matches!(twice, Err(RotationError::NotAllSeen { seen: 1, enclaves: 2 })));
    }

    #[test]
    fn evidence_is_read_only_if_signature_and_freshness_are_good() {
        let evidence = |signature: &str, freshness: &str| {
            json!({"verdict": "failed", "aws_root": true, "timestamp": "2026-11-21T10:00:00Z", "module_id": "i-1-enc1", "pcrs": {"0": "02".repeat(48)},
                "signature": {"status": signature}, "freshness": {"status": freshness}, "measurements": {"status": "failed"}})
            .to_string()
        };
        let seen = read_serving(evidence("good", "good").as_bytes()).unwrap();
        assert_eq!(seen.serving, serving("i-1-enc1", 2));
        for (signature, freshness) in [("failed", "good"), ("good", "failed"), ("good", "not-checked")] {
            assert!(read_serving(evidence(signature, freshness).as_bytes()).is_err());
        }
        let simulated = evidence("good", "good").replace("\"aws_root\":true", "\"aws_root\":false");
        assert!(matches!(read_serving(simulated.as_bytes()), Err(RotationError::NotAws)));
        assert!(read_serving(b"{}").is_err() && image_digest("00").is_err());
    }

    #[test]
    fn the_allow_list_is_read_by_what_reads_measurements() {
        let list = allow_list(&[release(1), release(2)]).to_string();
        let images = crate::measurements::parse_images(list.as_bytes()).unwrap();
        assert_eq!(images, [release(1).image, release(2).image]);
    }
}
