//! The configuration document: it comes from the parent, and is trusted only because it is measured into PCR17.
//!
//! docs/PROTOCOL.md, section 9. It can tighten what is compiled in, never loosen it: every limit has a ceiling here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ring::digest;
use serde::Deserialize;

use crate::kms::arn::{Account, ArnError, KeyArn, Region};

/// A configuration document, every field checked.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// The one region whose KMS is spoken to.
    pub region: Region,
    /// The accounts whose keys customers may use; empty: any.
    pub accounts: BTreeSet<Account>,
    /// The models, by the name that requests use.
    pub models: BTreeMap<String, ModelSource>,
    /// What an open key policy means.
    pub key_policies: OnOpenPolicy,
    /// PCR0 of other images that key policies may name beside this one: the releases before and after.
    pub accepted_images: Vec<[u8; 48]>,
    /// The limits.
    pub limits: Limits,
    /// SHA-384 of the document's bytes.
    pub sha384: [u8; 48],
}

/// Where a model comes from, and what it must be. Nothing of this is ever learned from the pack itself.
#[derive(Clone, Debug)]
pub struct ModelSource {
    /// The supplier's key.
    pub key_arn: KeyArn,
    /// SHA-384 of the bytes of `manifest.json`.
    pub manifest_sha384: [u8; 48],
    /// `subrosa:model` of the pack's encryption context.
    pub model: String,
    /// `subrosa:version` of the pack's encryption context.
    pub version: String,
}

/// What is done when a key's policy has a way to plaintext that needs no accepted image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnOpenPolicy {
    /// The verdict says so: in the keyset for model keys, in the sealed answer for a customer's.
    #[default]
    Report,
    /// An open way ends boot; a customer's request gets a sealed error. What KMS does not show passes: the parent can see to that.
    Refuse,
    /// Only a policy that was read, with its grants, and found closed is good enough. Not for keys of other accounts.
    Require,
}

/// Limits of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one sealed request.
    pub sealed_request_bytes: usize,
    /// Sealed requests in work at once.
    pub concurrent_requests: usize,
    /// Those of one tenant.
    pub tenant_concurrent_requests: usize,
    /// From the first byte of a request to the last of its answer.
    pub request_time: Duration,
    /// Tokens of one answer.
    pub max_tokens: usize,
    /// Bytes of all files of one model pack.
    pub model_pack_bytes: u64,
}

impl Configuration {
    /// Reads the document. Unknown members, duplicates and trailing bytes are refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigurationError> {
        if bytes.len() > DOCUMENT_BYTES_MAX {
            return Err(ConfigurationError::TooLarge { limit: DOCUMENT_BYTES_MAX });
        }
        // serde_json's own error would quote the document; its place is enough.
        let document: Document = serde_json::from_slice(bytes)
            .map_err(|error| ConfigurationError::Malformed { line: error.line(), column: error.column() })?;
        let Document { version, region, accounts, models, key_policies, accepted_images, limits } = document;
        if version != 1 {
            return Err(ConfigurationError::Version { found: version });
        }
        let region = Region::parse(&region)?;
        let accounts = accounts.iter().map(|account| Account::parse(account)).collect::<Result<_, _>>()?;
        if models.len() > MODELS_MAX {
            return Err(ConfigurationError::TooManyModels { limit: MODELS_MAX });
        }
        let mut by_name = BTreeMap::new();
        for ModelMember { name, key_arn, manifest_sha384, model, version } in models {
            if !is_model_name(&name) {
                return Err(ConfigurationError::Name);
            }
            let key_arn = KeyArn::parse(&key_arn)?;
            if key_arn.region() != &region {
                return Err(ConfigurationError::OtherRegion);
            }
            let mut digest = [0; 48];
            hex::decode_to_slice(&manifest_sha384, &mut digest).map_err(|_| ConfigurationError::Digest)?;
            if !is_context_value(&model) || !is_context_value(&version) {
                return Err(ConfigurationError::Name);
            }
            let source = ModelSource { key_arn, manifest_sha384: digest, model, version };
            if by_name.insert(name, source).is_some() {
                return Err(ConfigurationError::DuplicateModel);
            }
        }
        if accepted_images.len() > IMAGES_MAX {
            return Err(ConfigurationError::TooManyImages { limit: IMAGES_MAX });
        }
        let accepted_images = accepted_images
            .iter()
            .map(|text| {
                let mut pcr0 = [0; 48];
                hex::decode_to_slice(text, &mut pcr0).map_err(|_| ConfigurationError::Image)?;
                // Every enclave in debug mode, of anybody, has it.
                if pcr0 == [0; 48] { Err(ConfigurationError::Image) } else { Ok(pcr0) }
            })
            .collect::<Result<_, _>>()?;
        let mut sha384 = [0; 48];
        sha384.copy_from_slice(digest::digest(&digest::SHA384, bytes).as_ref());
        Ok(Self { region, accounts, models: by_name, key_policies, accepted_images, limits: limits.check()?, sha384 })
    }

    /// Whether customers may use keys of this account.
    pub fn allows(&self, account: &Account) -> bool {
        self.accounts.is_empty() || self.accounts.contains(account)
    }
}

/// `[a-z0-9][a-z0-9._-]{0,63}`: the name that requests and the parent's path use.
pub fn is_model_name(name: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-');
    let first = name.bytes().next();
    name.len() <= 64
        && first.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        && name.bytes().all(inside)
}

/// `[A-Za-z0-9._-]{1,64}`: a value of our encryption contexts.
pub fn is_context_value(value: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=64).contains(&value.len()) && value.bytes().all(inside)
}

/// Why a document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// More bytes than the protocol allows.
    #[error("the configuration document is larger than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// Not JSON of this form: a wrong type, a missing, duplicate or unknown member, or trailing bytes.
    #[error(
        "the configuration document is not of the form of docs/PROTOCOL.md, section 9 (line {line}, column {column})"
    )]
    Malformed {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// A version that this program does not know.
    #[error("expected version 1 of the configuration document, found {found}")]
    Version {
        /// The version found.
        found: u64,
    },
    /// A key ARN, region or account.
    #[error(transparent)]
    Arn(#[from] ArnError),
    /// A model's key in another region than the configured one.
    #[error("a model's key lies in another region than the configured one")]
    OtherRegion,
    /// A name, model or version with characters outside its set.
    #[error("a name must match [a-z0-9][a-z0-9._-]{{0,63}}; a model or version [A-Za-z0-9._-]{{1,64}}")]
    Name,
    /// A digest that is not 96 hexadecimal digits.
    #[error("manifest_sha384 must be 96 hexadecimal digits")]
    Digest,
    /// Two models of one name.
    #[error("two models have the same name")]
    DuplicateModel,
    /// A PCR0 that is not 96 hexadecimal digits.
    #[error("accepted_images must be PCR0 values of 96 hexadecimal digits, not all zero")]
    Image,
    /// More images than a rollover needs.
    #[error("more than {limit} accepted_images")]
    TooManyImages {
        /// The limit.
        limit: usize,
    },
    /// More models than can be served.
    #[error("more than {limit} models")]
    TooManyModels {
        /// The limit.
        limit: usize,
    },
    /// A limit of zero, or above what is compiled in.
    #[error("{member} must lie between {low} and {high}")]
    Limit {
        /// The member.
        member: &'static str,
        /// The least value.
        low: u64,
        /// The greatest value, compiled in.
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
    models: Vec<ModelMember>,
    #[serde(default)]
    key_policies: OnOpenPolicy,
    #[serde(default)]
    accepted_images: Vec<String>,
    #[serde(default)]
    limits: LimitMembers,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelMember {
    name: String,
    key_arn: String,
    manifest_sha384: String,
    model: String,
    version: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitMembers {
    sealed_request_bytes: Option<u64>,
    concurrent_requests: Option<u64>,
    tenant_concurrent_requests: Option<u64>,
    request_seconds: Option<u64>,
    max_tokens: Option<u64>,
    model_pack_bytes: Option<u64>,
}

impl LimitMembers {
    fn check(self) -> Result<Limits, ConfigurationError> {
        let Self {
            sealed_request_bytes,
            concurrent_requests,
            tenant_concurrent_requests,
            request_seconds,
            max_tokens,
            model_pack_bytes,
        } = self;
        let concurrent = CONCURRENT_REQUESTS.check(concurrent_requests)?;
        let of_tenant = tenant_concurrent_requests.unwrap_or(concurrent - concurrent / 4);
        let of_tenant = TENANT_CONCURRENT_REQUESTS.check(Some(of_tenant))?;
        let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        Ok(Limits {
            sealed_request_bytes: size(SEALED_REQUEST_BYTES.check(sealed_request_bytes)?),
            concurrent_requests: size(concurrent),
            tenant_concurrent_requests: size(of_tenant.min(concurrent)),
            request_time: Duration::from_secs(REQUEST_SECONDS.check(request_seconds)?),
            max_tokens: size(MAX_TOKENS.check(max_tokens)?),
            model_pack_bytes: MODEL_PACK_BYTES.check(model_pack_bytes)?,
        })
    }
}

struct Bounds {
    member: &'static str,
    low: u64,
    default: u64,
    high: u64,
}

impl Bounds {
    fn check(&self, value: Option<u64>) -> Result<u64, ConfigurationError> {
        let Self { member, low, default, high } = *self;
        let value = value.unwrap_or(default);
        if (low..=high).contains(&value) { Ok(value) } else { Err(ConfigurationError::Limit { member, low, high }) }
    }
}

/// docs/PROTOCOL.md, section 3: "the configuration document, at most 262,144 bytes".
pub const DOCUMENT_BYTES_MAX: usize = 262_144;
const MODELS_MAX: usize = 16;
const IMAGES_MAX: usize = 16;

/// The defaults are those of docs/PROTOCOL.md, section 9; the ceilings bound memory and time whatever a document says.
const SEALED_REQUEST_BYTES: Bounds =
    Bounds { member: "sealed_request_bytes", low: 1024, default: 1 << 20, high: 16 << 20 };
const CONCURRENT_REQUESTS: Bounds = Bounds { member: "concurrent_requests", low: 1, default: 64, high: 256 };
/// Without the member three quarters of all: an operator with a single tenant raises it.
const TENANT_CONCURRENT_REQUESTS: Bounds =
    Bounds { member: "tenant_concurrent_requests", low: 1, default: 256, high: 256 };
const REQUEST_SECONDS: Bounds = Bounds { member: "request_seconds", low: 1, default: 120, high: 900 };
const MAX_TOKENS: Bounds = Bounds { member: "max_tokens", low: 1, default: 1024, high: 32_768 };
const MODEL_PACK_BYTES: Bounds = Bounds { member: "model_pack_bytes", low: 1, default: 16 << 30, high: 1 << 40 };

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const ARN: &str = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

    pub(crate) fn document(extra: &str) -> String {
        let digest = "ab".repeat(48);
        format!(
            r#"{{"version":1,"region":"us-east-1","models":[{{"name":"subrosa-intake","key_arn":"{ARN}",
            "manifest_sha384":"{digest}","model":"subrosa-intake","version":"1"}}]{extra}}}"#
        )
    }

    #[test]
    fn absent_limits_are_the_protocols() {
        let configuration = Configuration::parse(document("").as_bytes()).unwrap();
        let Limits {
            sealed_request_bytes,
            concurrent_requests,
            tenant_concurrent_requests,
            request_time,
            max_tokens,
            model_pack_bytes: _,
        } = configuration.limits;
        assert_eq!(tenant_concurrent_requests, 48);
        assert_eq!(sealed_request_bytes, 1_048_576);
        assert_eq!(concurrent_requests, 64);
        assert_eq!(request_time, Duration::from_secs(120));
        assert_eq!(max_tokens, 1024);
        assert!(configuration.allows(&Account::parse("999999999999").unwrap()));
    }

    #[test]
    fn an_unknown_member_is_refused() {
        for extra in [r#","guardrails":{}"#, r#","limits":{"max_tokens":5,"threads":1}"#, r#","Region":"us-east-1""#] {
            let error = Configuration::parse(document(extra).as_bytes()).unwrap_err();
            assert!(matches!(error, ConfigurationError::Malformed { .. }), "{extra}: {error}");
        }
    }

    #[test]
    fn an_open_key_policy_is_reported_unless_the_document_says_refuse() {
        let of =
            |extra| Configuration::parse(document(extra).as_bytes()).map(|configuration| configuration.key_policies);
        assert_eq!(of("").unwrap(), OnOpenPolicy::Report);
        assert_eq!(of(r#","key_policies":"report""#).unwrap(), OnOpenPolicy::Report);
        assert_eq!(of(r#","key_policies":"refuse""#).unwrap(), OnOpenPolicy::Refuse);
        assert_eq!(of(r#","key_policies":"require""#).unwrap(), OnOpenPolicy::Require);
        assert!(of(r#","key_policies":"ignore""#).is_err());
        assert!(of(r#","accepted_images":["ab"]"#).is_err());
        assert!(of(&format!(r#","accepted_images":["{}"]"#, "00".repeat(48))).is_err(), "a debug enclave");
        let image = "cd".repeat(48);
        let configuration = Configuration::parse(document(&format!(r#","accepted_images":["{image}"]"#)).as_bytes());
        assert_eq!(configuration.unwrap().accepted_images, [[0xcd; 48]]);
    }

    #[test]
    fn a_duplicate_member_is_refused() {
        let error = Configuration::parse(document(r#","region":"eu-west-1""#).as_bytes()).unwrap_err();
        assert!(matches!(error, ConfigurationError::Malformed { .. }));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        assert!(Configuration::parse(format!("{}x", document("")).as_bytes()).is_err());
        assert!(Configuration::parse(format!("{} \n", document("")).as_bytes()).is_ok());
    }

    #[test]
    fn a_limit_above_the_compiled_ceiling_is_refused() {
        for extra in [
            r#","limits":{"request_seconds":901}"#,
            r#","limits":{"concurrent_requests":0}"#,
            r#","limits":{"sealed_request_bytes":16777217}"#,
        ] {
            let error = Configuration::parse(document(extra).as_bytes()).unwrap_err();
            assert!(matches!(error, ConfigurationError::Limit { .. }), "{extra}: {error}");
        }
    }

    #[test]
    fn a_key_of_another_region_is_refused() {
        let text = document("").replace("\"region\":\"us-east-1\"", "\"region\":\"eu-west-1\"");
        assert!(matches!(Configuration::parse(text.as_bytes()), Err(ConfigurationError::OtherRegion)));
    }

    #[test]
    fn the_account_list_is_enforced_when_there_is_one() {
        let configuration = Configuration::parse(document(r#","accounts":["111122223333"]"#).as_bytes()).unwrap();
        assert!(configuration.allows(&Account::parse("111122223333").unwrap()));
        assert!(!configuration.allows(&Account::parse("444455556666").unwrap()));
    }

    #[test]
    fn names_outside_their_set_are_refused() {
        assert!(is_model_name("a") && is_model_name("0a.b_c-d"));
        for bad in ["", "A", "../x", ".a", "-a", "a b", &"a".repeat(65)] {
            assert!(!is_model_name(bad), "{bad}");
        }
        assert!(!is_context_value("a b") && !is_context_value("") && is_context_value("A_1.2-3"));
    }
}
