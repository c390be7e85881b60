//! `Recipient`: an attestation document in a call, verified before anything believes it.

use std::time::Duration;

use attestation::document::{Document, ParseError, UnixMillis};
use attestation::{chain, freshness};
use kms_policies::Recipient;
use serde::Deserialize;

use super::envelope::RecipientKey;
use super::error::KmsError;
use super::operations::Blob;
use super::{Service, now_millis};

/// The member `Recipient` of a call.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RecipientInfo {
    key_encryption_algorithm: Option<String>,
    attestation_document: Option<Blob>,
}

/// A recipient whose document was verified: what policies may look at, and the key to envelop for.
pub(super) struct VerifiedRecipient {
    pub(super) measurements: Recipient,
    pub(super) key: RecipientKey,
}

impl Service {
    /// Verifies a recipient: chain and signature now, age at most five minutes, an RSA-2048 key in it. Which code runs there is the key
    /// policy's question, so a debug-mode document passes here.
    pub(super) fn verify_recipient(&self, info: Option<RecipientInfo>) -> Result<Option<VerifiedRecipient>, KmsError> {
        let Some(RecipientInfo { key_encryption_algorithm, attestation_document }) = info else { return Ok(None) };
        match key_encryption_algorithm.as_deref() {
            Some("RSAES_OAEP_SHA_256") => {}
            None => return Err(KmsError::missing("recipient.keyEncryptionAlgorithm")),
            Some(other) => {
                return Err(KmsError::validation(format!("KeyEncryptionAlgorithm {other} is not RSAES_OAEP_SHA_256")));
            }
        }
        let bytes = attestation_document.ok_or_else(|| KmsError::missing("recipient.attestationDocument"))?.0;
        let bytes = match &self.notary {
            Some(notary) => notary.sign(&bytes).map_err(|error| {
                KmsError::validation(format!("The attestation document is not for this notary: {error}"))
            })?,
            None => bytes.to_vec(),
        };
        let document = Document::parse(&bytes).map_err(|error| match error {
            ParseError::NitroTpm => KmsError::validation("The attestation document is a NitroTPM's, not an enclave's"),
            other => KmsError::validation(format!("The attestation document cannot be read: {other}")),
        })?;
        let ahead = u64::try_from(self.faults.attestation_clock_ahead().as_millis()).unwrap_or(u64::MAX);
        let now = UnixMillis(now_millis().saturating_add(ahead));
        chain::verify_signature(&document, &self.anchor, now, LEEWAY).map_err(|error| {
            KmsError::validation(format!("The attestation document is not signed by Nitro: {error}"))
        })?;
        let demanded = freshness::Freshness { now, max_age: Some(MAX_AGE), nonce: None, max_ahead: LEEWAY };
        freshness::check(&document, &demanded)
            .map_err(|error| KmsError::validation(format!("The attestation document is not fresh: {error}")))?;
        let public_key = document
            .public_key()
            .ok_or_else(|| KmsError::validation("The attestation document holds no public key"))?;
        let key = RecipientKey::parse(public_key).ok_or_else(|| {
            KmsError::validation("The attestation document's public key is not RSA-2048 as a SubjectPublicKeyInfo")
        })?;
        let measurements = Recipient { pcrs: document.pcrs().clone(), ..Recipient::default() };
        Ok(Some(VerifiedRecipient { measurements, key }))
    }
}

/// KMS takes no document older than five minutes.
const MAX_AGE: Duration = Duration::from_secs(300);
/// How far the NSM's clock may be off.
const LEEWAY: Duration = Duration::from_secs(60);
