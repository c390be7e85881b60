//! The configuration document: would the enclave take it?
//!
//! docs/PROTOCOL.md, section 9. The enclave has its own reader, which this crate must not link; `tests/doctor.rs` holds the
//! two to the same verdicts.

use std::collections::BTreeSet;
use std::path::Path;

use kms_policies::arn::KeyArn;
use ring::digest::{SHA384, digest};
use serde::Deserialize;

use super::{Finding, Root};

/// What is known of a good document.
#[derive(Clone, Debug)]
pub struct Known {
    /// The region.
    pub region: String,
    /// The models.
    pub models: Vec<Model>,
    /// Most bytes of a pack's files.
    pub model_pack_bytes: u64,
    /// SHA-384 of the document's bytes, which PCR17 is extended with.
    pub sha384: [u8; 48],
}

/// One model of the document.
#[derive(Clone, Debug)]
pub struct Model {
    /// The name of its pack.
    pub name: String,
    /// The supplier's key.
    pub key: KeyArn,
    /// SHA-384 of its manifest.
    pub manifest_sha384: [u8; 48],
    /// `subrosa:model` of the pack.
    pub model: String,
    /// `subrosa:version` of the pack.
    pub version: String,
}

/// The document, and what it says if it is good.
#[must_use]
pub fn examine(root: &Root, path: &Path) -> (Finding, Option<Known>) {
    const CHECK: &str = "configuration";
    let place = root.at(path);
    let mend =
        "write the configuration document of docs/PROTOCOL.md, section 9 (deploy/configuration.json is an example)";
    let bytes = match std::fs::read(&place) {
        Ok(bytes) => bytes,
        Err(error) => {
            return (Finding::wrong(CHECK, format!("{} cannot be read: {error}", place.display()), mend), None);
        }
    };
    match parse(&bytes) {
        Ok(known) => {
            let found = format!("{}: {} models, {}", place.display(), known.models.len(), known.region);
            let finding = if known.models.is_empty() {
                Finding::warning(CHECK, found, "name a model: without one nothing can be asked")
            } else {
                Finding::ok(CHECK, found)
            };
            (finding, Some(known))
        }
        Err(error) => (Finding::wrong(CHECK, format!("{}: {error}", place.display()), mend), None),
    }
}

/// Reads a document as strictly as the enclave does.
///
/// # Errors
/// What the enclave would refuse it for.
pub fn parse(bytes: &[u8]) -> Result<Known, ConfigurationError> {
    if bytes.len() > MAX_DOCUMENT {
        return Err(ConfigurationError::TooLarge);
    }
    let document: Document = serde_json::from_slice(bytes).map_err(ConfigurationError::Form)?;
    let Document { version, region, accounts, models, key_policies: _, accepted_images, limits } = document;
    if version != 1 {
        return Err(ConfigurationError::Version(version));
    }
    if !is_region(&region) {
        return Err(ConfigurationError::Region(region));
    }
    if let Some(account) = accounts.into_iter().find(|account| !is_account(account)) {
        return Err(ConfigurationError::Account(account));
    }
    if accepted_images.len() > MAX_IMAGES || !accepted_images.iter().all(|image| is_image(image)) {
        return Err(ConfigurationError::Images);
    }
    if models.len() > MAX_MODELS {
        return Err(ConfigurationError::TooManyModels(models.len()));
    }
    let mut names = BTreeSet::new();
    let mut known = Vec::new();
    for member in models {
        let model = member.check(&region)?;
        if !names.insert(model.name.clone()) {
            return Err(ConfigurationError::Twice(model.name));
        }
        known.push(model);
    }
    let mut sha384 = [0; 48];
    sha384.copy_from_slice(digest(&SHA384, bytes).as_ref());
    Ok(Known { region, models: known, model_pack_bytes: limits.check()?, sha384 })
}

/// Why the enclave would refuse a document.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// Larger than it takes.
    #[error("it has more than {MAX_DOCUMENT} bytes")]
    TooLarge,
    /// Not JSON, or a member that is missing, superfluous or of another type.
    #[error("it is not of the form of docs/PROTOCOL.md, section 9: {0}")]
    Form(#[source] serde_json::Error),
    /// Another version.
    #[error("version {0}; 1 is expected")]
    Version(u64),
    /// Not a region.
    #[error("{0:?} is not a region such as eu-central-1")]
    Region(String),
    /// Too many images, or something else than PCR0.
    #[error("accepted_images must be at most {MAX_IMAGES} values of PCR0, of 96 hexadecimal digits, not all zero")]
    Images,
    /// Not an account.
    #[error("{0:?} is not an account of 12 digits")]
    Account(String),
    /// More models than an enclave serves.
    #[error("{0} models; at most {MAX_MODELS} are served")]
    TooManyModels(usize),
    /// Two models of one name.
    #[error("two models are named {0:?}")]
    Twice(String),
    /// Not a name.
    #[error("{name:?} is not {what}")]
    Name {
        /// As it stands there.
        name: String,
        /// What it should be.
        what: &'static str,
    },
    /// Not a key of the region.
    #[error("the key of model {model:?} is {key:?}; the full ARN of a key in {region} is expected, not an alias")]
    Key {
        /// The model.
        model: String,
        /// As it stands there.
        key: String,
        /// The configured region.
        region: String,
    },
    /// Not a digest.
    #[error("manifest_sha384 of model {0:?} is not 96 hexadecimal digits (`subrosa pack` prints it)")]
    Digest(String),
    /// A limit out of range.
    #[error("{member} is {value}; {low} to {high} are accepted")]
    Limit {
        /// The member.
        member: &'static str,
        /// Its value.
        value: u64,
        /// The least.
        low: u64,
        /// The most.
        high: u64,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u64,
    region: String,
    #[serde(default)]
    accounts: Vec<String>,
    models: Vec<Member>,
    #[serde(default)]
    #[expect(dead_code, reason = "only its form is checked here")]
    key_policies: OnOpenPolicy,
    #[serde(default)]
    accepted_images: Vec<String>,
    #[serde(default)]
    limits: Limits,
}

/// Every enclave in debug mode has the digest of zeros.
fn is_image(text: &str) -> bool {
    hex::decode(text).is_ok_and(|digest| digest.len() == 48 && digest.iter().any(|byte| *byte != 0))
}

/// What the enclave does about a key's policy.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum OnOpenPolicy {
    #[default]
    Report,
    Refuse,
    Require,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Member {
    name: String,
    key_arn: String,
    manifest_sha384: String,
    model: String,
    version: String,
}

impl Member {
    fn check(self, region: &str) -> Result<Model, ConfigurationError> {
        let Self { name, key_arn, manifest_sha384, model, version } = self;
        if !is_pack_name(&name) {
            return Err(ConfigurationError::Name { name, what: "a model's name: [a-z0-9][a-z0-9._-]{0,63}" });
        }
        let key =
            KeyArn::parse(&key_arn).ok().filter(|key| key.region() == region && is_partition_of(&key_arn, region));
        let Some(key) = key else {
            return Err(ConfigurationError::Key { model: name, key: key_arn, region: region.to_owned() });
        };
        let mut digest = [0; 48];
        if hex::decode_to_slice(&manifest_sha384, &mut digest).is_err() {
            return Err(ConfigurationError::Digest(name));
        }
        for value in [&model, &version] {
            if !is_context_value(value) {
                let what = "a value of the encryption context: [A-Za-z0-9._-]{1,64}";
                return Err(ConfigurationError::Name { name: value.clone(), what });
            }
        }
        Ok(Model { name, key, manifest_sha384: digest, model, version })
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    sealed_request_bytes: Option<u64>,
    concurrent_requests: Option<u64>,
    tenant_concurrent_requests: Option<u64>,
    request_seconds: Option<u64>,
    max_tokens: Option<u64>,
    model_pack_bytes: Option<u64>,
}

impl Limits {
    /// The table of docs/PROTOCOL.md, section 9.
    fn check(self) -> Result<u64, ConfigurationError> {
        let Self {
            sealed_request_bytes,
            concurrent_requests,
            tenant_concurrent_requests,
            request_seconds,
            max_tokens,
            model_pack_bytes,
        } = self;
        for (member, value, low, high) in [
            ("sealed_request_bytes", sealed_request_bytes, 1024, 16 << 20),
            ("concurrent_requests", concurrent_requests, 1, 256),
            ("tenant_concurrent_requests", tenant_concurrent_requests, 1, 256),
            ("request_seconds", request_seconds, 1, 900),
            ("max_tokens", max_tokens, 1, 32_768),
            ("model_pack_bytes", model_pack_bytes, 1, 1 << 40),
        ] {
            if let Some(value) = value.filter(|value| !(low..=high).contains(value)) {
                return Err(ConfigurationError::Limit { member, value, low, high });
            }
        }
        Ok(model_pack_bytes.unwrap_or(16 << 30))
    }
}

fn is_region(text: &str) -> bool {
    let is_word =
        |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    text.len() <= MAX_REGION && text.split('-').count() >= 3 && text.split('-').all(is_word)
}

/// A region lies in one partition, and its keys' ARNs name it.
fn is_partition_of(arn: &str, region: &str) -> bool {
    let partition = if region.starts_with("cn-") {
        "aws-cn"
    } else if region.starts_with("us-gov-") {
        "aws-us-gov"
    } else {
        "aws"
    };
    arn.split(':').nth(1) == Some(partition)
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_pack_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= 64
        && name.bytes().next().is_some_and(plain)
        && name.bytes().all(|byte| plain(byte) || b"._-".contains(&byte))
}

fn is_context_value(value: &str) -> bool {
    (1..=64).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// docs/PROTOCOL.md, section 3: "at most 262,144 bytes".
const MAX_DOCUMENT: usize = 262_144;
const MAX_MODELS: usize = 16;
const MAX_IMAGES: usize = 16;
const MAX_REGION: usize = 32;
