//! The operations of KMS: request in, answer or refusal out.

mod cryptography;
mod grants;
mod management;

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kms_policies::arn::KeyArn;
use serde::de::{DeserializeOwned, Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use zeroize::Zeroizing;

use super::Service;
use super::error::KmsError;
use super::faults::Lie;
use super::journal::Entry;
use super::principals::Principal;
use super::store::{Key, Store, not_found};

/// One authenticated call, and what is noted about it.
pub(super) struct Call {
    pub(super) principal: Principal,
    pub(super) region: String,
    pub(super) lie: Option<Lie>,
    pub(super) entry: Entry,
}

impl Service {
    /// Runs an operation by its name, the part of `X-Amz-Target` behind `TrentService.`.
    pub(super) fn operate(&self, operation: &str, body: &[u8], call: &mut Call) -> Result<Value, KmsError> {
        match operation {
            "CreateKey" => self.create_key(read(body)?, call),
            "DescribeKey" => self.describe_key(read(body)?, call),
            "GetKeyPolicy" => self.get_key_policy(read(body)?, call),
            "PutKeyPolicy" => self.put_key_policy(read(body)?, call),
            "Encrypt" => self.encrypt(read(body)?, call),
            "Decrypt" => self.decrypt(read(body)?, call),
            "ReEncrypt" => self.re_encrypt(read(body)?, call),
            "GenerateDataKey" => self.generate_data_key(read(body)?, call),
            "GenerateDataKeyWithoutPlaintext" => self.generate_data_key_without_plaintext(read(body)?, call),
            "GenerateRandom" => self.generate_random(read(body)?, call),
            "CreateGrant" => self.create_grant(read(body)?, call),
            "ListGrants" => self.list_grants(&read(body)?, call),
            "RevokeGrant" => self.revoke_grant(&read(body)?, call),
            _ => Err(KmsError::new("UnknownOperationException", "")),
        }
    }
}

impl Call {
    /// The key that a `KeyId` names: a full ARN, or a bare id of the caller's account.
    fn resolve<'a>(&mut self, store: &'a Store, key_id: Option<&str>) -> Result<&'a Key, KmsError> {
        let key_id = key_id.ok_or_else(|| KmsError::missing("keyId"))?;
        let key = if key_id.starts_with("arn:") {
            let arn = KeyArn::parse(key_id)
                .map_err(|_| KmsError::new("NotFoundException", format!("Invalid arn {key_id}")))?;
            if arn.region() != self.region {
                return Err(KmsError::new("NotFoundException", format!("Invalid arn {}", arn.region())));
            }
            store.get(arn.as_str())
        } else {
            store.by_id(&self.region, key_id).filter(|key| key.arn.account() == self.principal.caller.account())
        };
        let key = key.ok_or_else(|| not_found(key_id))?;
        self.entry.key = Some(key.arn.as_str().to_owned());
        Ok(key)
    }
}

/// Bytes, base64 on the wire. Wiped when dropped: they may be a plaintext.
pub(super) struct Blob(pub(super) Zeroizing<Vec<u8>>);

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        STANDARD.decode(text.as_bytes()).map(|bytes| Self(Zeroizing::new(bytes))).map_err(D::Error::custom)
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0.as_slice()))
    }
}

/// The members of a request; what is not known is passed over, as the service does.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, KmsError> {
    serde_json::from_slice(body).map_err(|error| KmsError::new("SerializationException", error.to_string()))
}

/// Answers as JSON.
fn answer(members: impl Serialize) -> Result<Value, KmsError> {
    serde_json::to_value(members).map_err(|error| KmsError::internal(error.to_string()))
}

/// KMS developer guide, "Encryption context": "cannot exceed 8192 bytes".
fn check_context(context: &BTreeMap<String, String>) -> Result<(), KmsError> {
    let bytes: usize = context.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > MAX_CONTEXT_BYTES {
        return Err(KmsError::validation("EncryptionContext is too large"));
    }
    Ok(())
}

/// The bounds of a number or length, in the service's words.
fn check_range(member: &str, value: usize, least: usize, most: usize) -> Result<(), KmsError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(KmsError::validation(format!(
        "1 validation error detected: Value at '{member}' failed to satisfy constraint: Member must have a value or length between {least} and {most}"
    )))
}

/// `DryRun`: authorized, so far and no further.
fn check_dry_run(dry_run: Option<bool>) -> Result<(), KmsError> {
    if dry_run == Some(true) {
        return Err(KmsError::new(
            "DryRunOperationException",
            "The request would have succeeded, but the DryRun option is set.",
        ));
    }
    Ok(())
}

const MAX_CONTEXT_BYTES: usize = 8192;
