//! The registers that an enclave extends itself, as they will be: PCR16 by its models, PCR17 by its configuration.
//!
//! docs/PROTOCOL.md, sections 9 and 10: `PCR17 := SHA384(PCR17 || SHA384(document))`, and for each pack, in order of name,
//! `PCR16 := SHA384(PCR16 || SHA384(manifest))`, both from zero.

use std::collections::BTreeMap;

use attestation::Pcr;
use attestation::measurement::extend;
use ring::digest::{SHA384, digest};
use serde::Deserialize;

/// PCR16 and PCR17 under this configuration document. It names its models' manifests by their digests.
///
/// # Errors
/// When it is not a configuration document; only what is needed here is checked, the enclave checks the rest.
pub fn of_configuration(document: &[u8]) -> Result<Configured, RegistersError> {
    if document.len() > MAX_CONFIGURATION {
        return Err(RegistersError::TooLarge { what: "configuration document", limit: MAX_CONFIGURATION });
    }
    let Document { models } = serde_json::from_slice(document)
        .map_err(|error| RegistersError::Configuration(format!("line {}, column {}", error.line(), error.column())))?;
    let mut manifests = BTreeMap::new();
    for Model { name, manifest_sha384 } in models {
        let mut value = [0; size_of::<Pcr>()];
        hex::decode_to_slice(&manifest_sha384, &mut value)
            .map_err(|_| RegistersError::Configuration("a manifest_sha384 is not 96 hex digits".into()))?;
        if manifests.insert(name, value).is_some() {
            return Err(RegistersError::Configuration("a model stands there twice".into()));
        }
    }
    let models = manifests.values().fold(ZERO, |register, manifest| extend(&register, manifest));
    Ok(Configured {
        models,
        configuration: extend(&ZERO, &sha384(document)),
        manifests: manifests.into_values().collect(),
    })
}

/// PCR16 of an enclave with the packs of these manifests (the bytes of each `manifest.json`), loaded under their own names.
///
/// # Errors
/// When one is not a manifest, or two have one name.
pub fn of_manifests(manifests: &[Vec<u8>]) -> Result<Pcr, RegistersError> {
    let mut by_name = BTreeMap::new();
    for manifest in manifests {
        let Manifest { name } = manifest_of(manifest)?;
        if by_name.insert(name, sha384(manifest)).is_some() {
            return Err(RegistersError::Manifest("two of them have one name".into()));
        }
    }
    Ok(by_name.values().fold(ZERO, |register, manifest| extend(&register, manifest)))
}

/// The registers under a configuration document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configured {
    /// PCR16.
    pub models: Pcr,
    /// PCR17.
    pub configuration: Pcr,
    /// SHA-384 of each manifest that it names.
    manifests: Vec<[u8; 48]>,
}

impl Configured {
    /// That exactly these manifests are named.
    ///
    /// # Errors
    /// When one is not, or another one is.
    pub fn check_manifests(&self, manifests: &[Vec<u8>]) -> Result<(), RegistersError> {
        let given: Vec<[u8; 48]> = manifests.iter().map(|manifest| sha384(manifest)).collect();
        if let Some(unnamed) = given.iter().find(|digest| !self.manifests.contains(digest)) {
            return Err(RegistersError::OtherModel { digest: hex::encode(unnamed) });
        }
        match self.manifests.iter().find(|digest| !given.contains(digest)) {
            Some(missing) => Err(RegistersError::MissingModel { digest: hex::encode(missing) }),
            None => Ok(()),
        }
    }
}

/// Why the registers cannot be computed.
#[derive(Debug, thiserror::Error)]
pub enum RegistersError {
    /// Larger than the enclave takes.
    #[error("the {what} has more than {limit} bytes")]
    TooLarge {
        /// What.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// Not a configuration document.
    #[error("not a configuration document of docs/PROTOCOL.md, section 9 ({0})")]
    Configuration(String),
    /// Not a manifest.
    #[error("not the manifest.json of a model pack ({0})")]
    Manifest(String),
    /// A model that the configuration does not name.
    #[error("the configuration does not name the manifest with SHA-384 {digest}: the enclave would refuse this pack")]
    OtherModel {
        /// Of the manifest.
        digest: String,
    },
    /// A model that the configuration names, and that was not given.
    #[error("the configuration also names the manifest with SHA-384 {digest}: give all manifests, or none")]
    MissingModel {
        /// Of the manifest.
        digest: String,
    },
}

#[derive(Deserialize)]
struct Document {
    models: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    name: String,
    manifest_sha384: String,
}

#[derive(Deserialize)]
struct Manifest {
    name: String,
}

fn manifest_of(bytes: &[u8]) -> Result<Manifest, RegistersError> {
    if bytes.len() > MAX_MANIFEST {
        return Err(RegistersError::TooLarge { what: "manifest", limit: MAX_MANIFEST });
    }
    serde_json::from_slice(bytes).map_err(|error| RegistersError::Manifest(error.to_string()))
}

fn sha384(bytes: &[u8]) -> [u8; 48] {
    let mut value = [0; 48];
    value.copy_from_slice(digest(&SHA384, bytes).as_ref());
    value
}

const ZERO: Pcr = [0; 48];
/// The enclave takes no larger document (`enclave/src/configuration.rs`).
pub const MAX_CONFIGURATION: usize = 262_144;
/// docs/PROTOCOL.md, section 10.
pub const MAX_MANIFEST: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(models: &[(&str, &[u8])]) -> Vec<u8> {
        let models: Vec<_> = models
            .iter()
            .map(|(name, manifest)| serde_json::json!({"name": name, "manifest_sha384": hex::encode(sha384(manifest)), "model": "m"}))
            .collect();
        serde_json::json!({"version": 1, "models": models}).to_string().into_bytes()
    }

    #[test]
    fn packs_are_extended_in_order_of_their_name_in_the_configuration() {
        let (one, two) = (br#"{"name":"z"}"#.as_slice(), br#"{"name":"a"}"#.as_slice());
        let document = configuration(&[("second", two), ("first", one)]);
        let found = of_configuration(&document).unwrap();
        let expected = [one, two].iter().fold(ZERO, |register, manifest| extend(&register, &sha384(manifest)));
        assert_eq!((found.models, found.configuration), (expected, extend(&ZERO, &sha384(&document))));
        assert!(found.check_manifests(&[two.to_vec(), one.to_vec()]).is_ok());
        assert!(matches!(found.check_manifests(&[one.to_vec()]), Err(RegistersError::MissingModel { .. })));
        let third = br#"{"name":"x"}"#.to_vec();
        assert!(matches!(found.check_manifests(&[third]), Err(RegistersError::OtherModel { .. })));
        // By their own names, the order is another.
        assert_ne!(of_manifests(&[one.to_vec(), two.to_vec()]).unwrap(), expected);
    }

    #[test]
    fn without_a_model_the_register_stays_zero() {
        assert_eq!(of_configuration(&configuration(&[])).unwrap().models, ZERO);
    }

    #[test]
    fn what_is_neither_is_refused() {
        assert!(of_configuration(b"{}").is_err() && of_configuration(&vec![b' '; MAX_CONFIGURATION + 1]).is_err());
        assert!(of_manifests(&[b"[]".to_vec()]).is_err() && of_manifests(&[vec![b' '; MAX_MANIFEST + 1]]).is_err());
        assert!(of_manifests(&[br#"{"name":"a"}"#.to_vec(), br#"{"name":"a"}"#.to_vec()]).is_err());
    }
}
