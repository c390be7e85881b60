//! Operations that use key material.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::Zeroizing;

use super::{Blob, Call, answer, check_context, check_dry_run, check_range};
use crate::kms::authorization::Circumstances;
use crate::kms::error::KmsError;
use crate::kms::faults::Lie;
use crate::kms::recipient::{RecipientInfo, VerifiedRecipient};
use crate::kms::store::Key;
use crate::kms::{Service, blob, random, random_uuid};

type Context = BTreeMap<String, String>;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct EncryptRequest {
    key_id: Option<String>,
    plaintext: Option<Blob>,
    #[serde(default)]
    encryption_context: Context,
    encryption_algorithm: Option<String>,
    dry_run: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DecryptRequest {
    ciphertext_blob: Option<Blob>,
    key_id: Option<String>,
    #[serde(default)]
    encryption_context: Context,
    encryption_algorithm: Option<String>,
    recipient: Option<RecipientInfo>,
    dry_run: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ReEncryptRequest {
    ciphertext_blob: Option<Blob>,
    source_key_id: Option<String>,
    destination_key_id: Option<String>,
    #[serde(default)]
    source_encryption_context: Context,
    #[serde(default)]
    destination_encryption_context: Context,
    dry_run: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct GenerateDataKeyRequest {
    key_id: Option<String>,
    key_spec: Option<String>,
    number_of_bytes: Option<usize>,
    #[serde(default)]
    encryption_context: Context,
    recipient: Option<RecipientInfo>,
    dry_run: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct GenerateRandomRequest {
    number_of_bytes: Option<usize>,
    recipient: Option<RecipientInfo>,
}

/// The answers of all of them; what an operation does not have is left out.
#[derive(Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption_algorithm: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ciphertext_blob: Option<Blob>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plaintext: Option<Blob>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ciphertext_for_recipient: Option<Blob>,
}

impl Service {
    pub(super) fn encrypt(&self, request: EncryptRequest, call: &mut Call) -> Result<Value, KmsError> {
        let EncryptRequest { key_id, plaintext, encryption_context, encryption_algorithm, dry_run } = request;
        let plaintext = plaintext.ok_or_else(|| KmsError::missing("plaintext"))?;
        check_range("plaintext", plaintext.0.len(), 1, MAX_PLAINTEXT)?;
        check_algorithm(encryption_algorithm.as_deref())?;
        note_context(&encryption_context, call)?;
        let store = self.store();
        let key = call.resolve(&store, key_id.as_deref())?;
        call.authorize(
            key,
            "Encrypt",
            &Circumstances { context: Some(&encryption_context), ..Circumstances::default() },
        )?;
        check_dry_run(dry_run)?;
        let sealed = blob::seal(key.arn.id(), &key.material, &encryption_context, &plaintext.0)?;
        answer(Answer { encryption_algorithm: Some(SYMMETRIC), ..Answer::of(key, Some(sealed)) })
    }

    pub(super) fn decrypt(&self, request: DecryptRequest, call: &mut Call) -> Result<Value, KmsError> {
        let DecryptRequest { ciphertext_blob, key_id, encryption_context, encryption_algorithm, recipient, dry_run } =
            request;
        let ciphertext = ciphertext_blob.ok_or_else(|| KmsError::missing("ciphertextBlob"))?;
        check_range("ciphertextBlob", ciphertext.0.len(), 1, MAX_CIPHERTEXT)?;
        check_algorithm(encryption_algorithm.as_deref())?;
        note_context(&encryption_context, call)?;
        let recipient = self.note_recipient(recipient, call)?;
        let store = self.store();
        let sealed_under = blob::key_id(&ciphertext.0)?;
        let key = match &key_id {
            Some(_) => call.resolve(&store, key_id.as_deref())?,
            None => store.by_id(&call.region, sealed_under).ok_or_else(KmsError::invalid_ciphertext)?,
        };
        call.entry.key = Some(key.arn.as_str().to_owned());
        call.authorize(key, "Decrypt", &attested(&encryption_context, recipient.as_ref()))?;
        if key.arn.id() != sealed_under {
            return Err(incorrect_key());
        }
        let plaintext = blob::open(&ciphertext.0, &key.material, &encryption_context)?;
        check_dry_run(dry_run)?;
        let answered = Answer { encryption_algorithm: Some(SYMMETRIC), ..Answer::of(key, None) };
        answer(self.deliver(answered, plaintext, recipient.as_ref(), call.lie)?)
    }

    pub(super) fn re_encrypt(&self, request: ReEncryptRequest, call: &mut Call) -> Result<Value, KmsError> {
        let ReEncryptRequest {
            ciphertext_blob,
            source_key_id,
            destination_key_id,
            source_encryption_context,
            destination_encryption_context,
            dry_run,
        } = request;
        let ciphertext = ciphertext_blob.ok_or_else(|| KmsError::missing("ciphertextBlob"))?;
        check_range("ciphertextBlob", ciphertext.0.len(), 1, MAX_CIPHERTEXT)?;
        check_context(&destination_encryption_context)?;
        note_context(&source_encryption_context, call)?;
        let store = self.store();
        let sealed_under = blob::key_id(&ciphertext.0)?;
        let destination = call.resolve(
            &store,
            Some(destination_key_id.as_deref().ok_or_else(|| KmsError::missing("destinationKeyId"))?),
        )?;
        let source = match &source_key_id {
            Some(_) => call.resolve(&store, source_key_id.as_deref())?,
            None => store.by_id(&call.region, sealed_under).ok_or_else(KmsError::invalid_ciphertext)?,
        };
        call.entry.key = Some(source.arn.as_str().to_owned());
        call.authorize(
            source,
            "ReEncryptFrom",
            &Circumstances { context: Some(&source_encryption_context), ..Circumstances::default() },
        )?;
        call.authorize(
            destination,
            "ReEncryptTo",
            &Circumstances { context: Some(&destination_encryption_context), ..Circumstances::default() },
        )?;
        if source.arn.id() != sealed_under {
            return Err(incorrect_key());
        }
        let plaintext = blob::open(&ciphertext.0, &source.material, &source_encryption_context)?;
        check_dry_run(dry_run)?;
        let sealed =
            blob::seal(destination.arn.id(), &destination.material, &destination_encryption_context, &plaintext)?;
        answer(Answer { source_key_id: Some(source.arn.as_str().to_owned()), ..Answer::of(destination, Some(sealed)) })
    }

    pub(super) fn generate_data_key(
        &self,
        request: GenerateDataKeyRequest,
        call: &mut Call,
    ) -> Result<Value, KmsError> {
        self.new_data_key(request, "GenerateDataKey", call)
    }

    pub(super) fn generate_data_key_without_plaintext(
        &self,
        request: GenerateDataKeyRequest,
        call: &mut Call,
    ) -> Result<Value, KmsError> {
        // The API has no Recipient here; whatever stands there is an unknown member.
        self.new_data_key(
            GenerateDataKeyRequest { recipient: None, ..request },
            "GenerateDataKeyWithoutPlaintext",
            call,
        )
    }

    fn new_data_key(
        &self,
        request: GenerateDataKeyRequest,
        operation: &str,
        call: &mut Call,
    ) -> Result<Value, KmsError> {
        let GenerateDataKeyRequest { key_id, key_spec, number_of_bytes, encryption_context, recipient, dry_run } =
            request;
        let length = data_key_length(key_spec.as_deref(), number_of_bytes)?;
        note_context(&encryption_context, call)?;
        let recipient = self.note_recipient(recipient, call)?;
        let store = self.store();
        let key = call.resolve(&store, key_id.as_deref())?;
        call.authorize(key, operation, &attested(&encryption_context, recipient.as_ref()))?;
        check_dry_run(dry_run)?;
        let mut plaintext = Zeroizing::new(vec![0; length]);
        random(&mut plaintext)?;
        let sealed = blob::seal(key.arn.id(), &key.material, &encryption_context, &plaintext)?;
        let answered = Answer::of(key, Some(sealed));
        if operation == "GenerateDataKey" {
            return answer(self.deliver(answered, plaintext, recipient.as_ref(), call.lie)?);
        }
        answer(answered)
    }

    pub(super) fn generate_random(&self, request: GenerateRandomRequest, call: &mut Call) -> Result<Value, KmsError> {
        let GenerateRandomRequest { number_of_bytes, recipient } = request;
        let length = number_of_bytes.ok_or_else(|| KmsError::missing("numberOfBytes"))?;
        check_range("numberOfBytes", length, 1, MAX_RANDOM)?;
        let recipient = self.note_recipient(recipient, call)?;
        call.authorize_by_iam("GenerateRandom")?;
        let mut plaintext = Zeroizing::new(vec![0; length]);
        random(&mut plaintext)?;
        answer(self.deliver(Answer::default(), plaintext, recipient.as_ref(), None)?)
    }

    /// KMS API reference: with `Recipient`, "the `Plaintext` field in the response is null or empty" and `CiphertextForRecipient` holds
    /// the plaintext. Lies are told here.
    fn deliver(
        &self,
        mut answer: Answer,
        plaintext: Zeroizing<Vec<u8>>,
        recipient: Option<&VerifiedRecipient>,
        lie: Option<Lie>,
    ) -> Result<Answer, KmsError> {
        if lie == Some(Lie::OtherKeyId)
            && let Some((account, _)) = answer.key_id.as_deref().and_then(|arn| arn.rsplit_once('/'))
        {
            answer.key_id = Some(format!("{account}/{}", random_uuid()?));
        }
        let Some(recipient) = recipient else {
            if lie != Some(Lie::Nothing) {
                answer.plaintext = Some(Blob(plaintext));
            }
            return Ok(answer);
        };
        let mut other = Zeroizing::new(vec![0; plaintext.len()]);
        random(&mut other)?;
        let layout = self.faults.next_layout();
        answer.ciphertext_for_recipient = match lie {
            Some(Lie::Plaintext | Lie::Nothing) => None,
            Some(Lie::OtherPlaintext) => Some(recipient.key.envelop(&other, layout)?),
            Some(Lie::GarbageEnvelope) => {
                let mut garbage = vec![0; REAL_ENVELOPE_LEN];
                random(&mut garbage)?;
                Some(garbage)
            }
            Some(Lie::PlaintextBeside | Lie::OtherKeyId) | None => Some(recipient.key.envelop(&plaintext, layout)?),
        }
        .map(|envelope| Blob(Zeroizing::new(envelope)));
        if matches!(lie, Some(Lie::Plaintext | Lie::PlaintextBeside)) {
            answer.plaintext = Some(Blob(plaintext));
        }
        Ok(answer)
    }

    fn note_recipient(
        &self,
        recipient: Option<RecipientInfo>,
        call: &mut Call,
    ) -> Result<Option<VerifiedRecipient>, KmsError> {
        let recipient = self.verify_recipient(recipient)?;
        if let Some(verified) = &recipient {
            call.entry.attested = true;
            call.entry.pcr0 = verified.measurements.pcrs.get(&0).map(hex::encode);
        }
        Ok(recipient)
    }
}

impl Answer {
    fn of(key: &Key, sealed: Option<Vec<u8>>) -> Self {
        Self {
            key_id: Some(key.arn.as_str().to_owned()),
            ciphertext_blob: sealed.map(|bytes| Blob(Zeroizing::new(bytes))),
            ..Self::default()
        }
    }
}

fn note_context(context: &Context, call: &mut Call) -> Result<(), KmsError> {
    call.entry.context.clone_from(context);
    check_context(context)
}

fn attested<'a>(context: &'a Context, recipient: Option<&'a VerifiedRecipient>) -> Circumstances<'a> {
    Circumstances {
        context: Some(context),
        recipient: recipient.map(|verified| &verified.measurements),
        ..Circumstances::default()
    }
}

fn data_key_length(key_spec: Option<&str>, number_of_bytes: Option<usize>) -> Result<usize, KmsError> {
    match (key_spec, number_of_bytes) {
        (Some("AES_256"), None) => Ok(32),
        (Some("AES_128"), None) => Ok(16),
        (None, Some(length)) => check_range("numberOfBytes", length, 1, MAX_RANDOM).map(|()| length),
        (Some(_), None) => Err(KmsError::validation(
            "1 validation error detected: Value at 'keySpec' failed to satisfy constraint: Member must satisfy enum value set: [AES_256, AES_128]",
        )),
        _ => Err(KmsError::validation("Please specify either number of bytes or key spec.")),
    }
}

fn check_algorithm(algorithm: Option<&str>) -> Result<(), KmsError> {
    match algorithm {
        None | Some(SYMMETRIC) => Ok(()),
        Some(other) => Err(KmsError::new(
            "InvalidKeyUsageException",
            format!("Algorithm {other} is incompatible with key spec SYMMETRIC_DEFAULT."),
        )),
    }
}

fn incorrect_key() -> KmsError {
    KmsError::new(
        "IncorrectKeyException",
        "The key ID in the request does not identify a KMS key that can perform this operation.",
    )
}

const SYMMETRIC: &str = "SYMMETRIC_DEFAULT";
/// KMS API reference: Encrypt takes at most 4,096 bytes, Decrypt at most 6,144, GenerateRandom and GenerateDataKey give at most 1,024.
const MAX_PLAINTEXT: usize = 4096;
const MAX_CIPHERTEXT: usize = 6144;
const MAX_RANDOM: usize = 1024;
/// The length of a real envelope of a 32-byte key.
const REAL_ENVELOPE_LEN: usize = 493;
