//! Data keys: made and unwrapped by KMS under a customer's key, or by a raw AES key that both sides hold.

use std::collections::HashMap;

use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::DataKeySpec;
use sealing::SystemRandom;
use sealing::message::{DataKey, EncryptedDataKey, EncryptionContext};
use sealing::raw_aes::{Keyring, RawAesError};
use zeroize::Zeroizing;

/// Where data keys come from.
pub enum KeySource {
    /// A key in KMS.
    Kms(KmsKey),
    /// A raw AES keyring.
    Raw(Keyring),
}

/// A KMS key, and the client that may use it.
#[derive(Clone, Debug)]
pub struct KmsKey {
    client: aws_sdk_kms::Client,
    key: String,
}

impl KeySource {
    /// Makes a data key for a message with this context.
    ///
    /// # Errors
    /// [`DataKeyError`].
    pub async fn generate(&self, context: &EncryptionContext) -> Result<(DataKey, EncryptedDataKey), DataKeyError> {
        match self {
            Self::Kms(key) => key.generate(context).await,
            Self::Raw(keyring) => {
                let mut random = SystemRandom::new();
                let key = DataKey::generate(&mut random).map_err(RawAesError::from)?;
                let wrapped = keyring.wrap(&key, context, &mut random)?;
                Ok((key, wrapped))
            }
        }
    }

    /// Unwraps the data key of a message: the first encrypted data key that is under this key, with no second try.
    ///
    /// # Errors
    /// [`DataKeyError`].
    pub async fn unwrap(
        &self,
        keys: &[EncryptedDataKey],
        context: &EncryptionContext,
    ) -> Result<DataKey, DataKeyError> {
        match self {
            Self::Kms(key) => key.unwrap(keys, context).await,
            Self::Raw(keyring) => Ok(keyring.unwrap(keys, context)?),
        }
    }
}

impl KmsKey {
    /// The key with this ARN. For [`generate`](Self::generate) an alias or a bare id will do.
    #[must_use]
    pub fn new(client: aws_sdk_kms::Client, key: impl Into<String>) -> Self {
        Self { client, key: key.into() }
    }

    /// The same client, with the key of this ARN.
    #[must_use]
    pub fn with_arn(&self, arn: impl Into<String>) -> Self {
        Self { client: self.client.clone(), key: arn.into() }
    }

    /// KMS `GenerateDataKey`, AES-256. The encrypted data key names the key by the ARN that KMS returned.
    ///
    /// # Errors
    /// When KMS refuses, cannot be reached, or returns anything but 32 bytes under the key that was asked for.
    pub async fn generate(&self, context: &EncryptionContext) -> Result<(DataKey, EncryptedDataKey), DataKeyError> {
        const OPERATION: &str = "GenerateDataKey";
        let answer = self
            .client
            .generate_data_key()
            .key_id(&self.key)
            .key_spec(DataKeySpec::Aes256)
            .set_encryption_context(Some(pairs(context)))
            .send()
            .await
            .map_err(|error| kms_error(OPERATION, &self.key, error))?;
        let wrong = |what| DataKeyError::Unexpected { operation: OPERATION, what };
        let arn = answer.key_id.ok_or(wrong("no key id"))?;
        self.expect_key(&arn).ok_or(wrong("another key than the one asked for"))?;
        let ciphertext = answer.ciphertext_blob.ok_or(wrong("no encrypted data key"))?.into_inner();
        if ciphertext.is_empty() || ciphertext.len() > MAX_CIPHERTEXT {
            return Err(wrong("an encrypted data key of impossible length"));
        }
        let key = plaintext(answer.plaintext).ok_or(wrong("no data key of 32 bytes"))?;
        let wrapped =
            EncryptedDataKey { provider_id: PROVIDER.to_owned(), provider_info: arn.into_bytes(), ciphertext };
        Ok((key, wrapped))
    }

    /// KMS `Decrypt` of the first encrypted data key under exactly this ARN.
    ///
    /// # Errors
    /// When there is none, or KMS refuses, cannot be reached, or answers for another key.
    pub async fn unwrap(
        &self,
        keys: &[EncryptedDataKey],
        context: &EncryptionContext,
    ) -> Result<DataKey, DataKeyError> {
        const OPERATION: &str = "Decrypt";
        let ours = |key: &&EncryptedDataKey| key.provider_id == PROVIDER && key.provider_info == self.key.as_bytes();
        let wrapped = keys.iter().find(ours).ok_or_else(|| DataKeyError::NoneOurs(self.key.clone()))?;
        let answer = self
            .client
            .decrypt()
            .key_id(&self.key)
            .ciphertext_blob(Blob::new(wrapped.ciphertext.clone()))
            .set_encryption_context(Some(pairs(context)))
            .send()
            .await
            .map_err(|error| kms_error(OPERATION, &self.key, error))?;
        let wrong = |what| DataKeyError::Unexpected { operation: OPERATION, what };
        if answer.key_id.as_deref() != Some(self.key.as_str()) {
            return Err(wrong("another key than the one asked for"));
        }
        plaintext(answer.plaintext).ok_or(wrong("no data key of 32 bytes"))
    }

    /// A full key ARN must come back as it is; an alias or id comes back as some full key ARN.
    fn expect_key(&self, arn: &str) -> Option<()> {
        let is_key = |arn: &str| arn.starts_with("arn:") && arn.contains(":kms:") && arn.contains(":key/");
        (is_key(arn) && (!is_key(&self.key) || arn == self.key)).then_some(())
    }
}

/// Why there is no data key.
#[derive(Debug, thiserror::Error)]
pub enum DataKeyError {
    /// KMS said no.
    #[error(
        "KMS refused {operation} under {key}: {code}: {message}; check the key policy, the encryption context and the caller"
    )]
    Refused {
        /// The call.
        operation: &'static str,
        /// The key that was asked for.
        key: String,
        /// KMS's code, for example `AccessDeniedException`.
        code: String,
        /// KMS's message.
        message: String,
    },
    /// KMS did not answer.
    #[error("KMS could not be asked for {operation}: {detail}; check network, AWS_ENDPOINT_URL_KMS, AWS_CA_BUNDLE")]
    Unreachable {
        /// The call.
        operation: &'static str,
        /// What failed.
        detail: String,
    },
    /// The call could not be made.
    #[error("KMS {operation} could not be called: {detail}; check the AWS credentials and configuration")]
    Configuration {
        /// The call.
        operation: &'static str,
        /// What is missing.
        detail: String,
    },
    /// KMS answered something else.
    #[error("KMS answered {operation} with {what}")]
    Unexpected {
        /// The call.
        operation: &'static str,
        /// What is wrong.
        what: &'static str,
    },
    /// The message is not for this key.
    #[error("the message has no encrypted data key under {0}; give the full key ARN that sealed it")]
    NoneOurs(String),
    /// The raw AES keyring said no.
    #[error(transparent)]
    Raw(#[from] RawAesError),
}

fn pairs(context: &EncryptionContext) -> HashMap<String, String> {
    context.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// Takes the key out of the SDK's answer and wipes what the answer held.
fn plaintext(blob: Option<Blob>) -> Option<DataKey> {
    let bytes = Zeroizing::new(blob?.into_inner());
    DataKey::from_slice(&bytes).ok()
}

fn kms_error<E>(operation: &'static str, key: &str, error: SdkError<E>) -> DataKeyError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let detail = || causes(&error);
    match &error {
        SdkError::ServiceError(answer) if answer.raw().status().as_u16() < 500 => DataKeyError::Refused {
            operation,
            key: key.to_owned(),
            code: printable(error.code().unwrap_or("no code")),
            message: printable(error.message().unwrap_or("no message")),
        },
        SdkError::ConstructionFailure(_) => DataKeyError::Configuration { operation, detail: detail() },
        SdkError::DispatchFailure(failure) if !(failure.is_io() || failure.is_timeout()) => {
            DataKeyError::Configuration { operation, detail: detail() }
        }
        _ => DataKeyError::Unreachable { operation, detail: detail() },
    }
}

/// An error and what caused it, on one line; each cause once, because the SDK's repeat what they wrap.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    printable(&text)
}

fn printable(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(400).collect()
}

/// Provider id of the AWS KMS keyring.
pub const PROVIDER: &str = "aws-kms";
/// docs/PROTOCOL.md section 4: encrypted data key ciphertext.
const MAX_CIPHERTEXT: usize = 6144;
