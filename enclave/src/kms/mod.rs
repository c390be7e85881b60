//! KMS, asked from inside the enclave: `Decrypt` and `GenerateDataKey`, each with a fresh recipient key and a fresh
//! attestation document.
//!
//! What the service relies on, whatever the parent does to the tunnel: TLS ends here; `KeyId` and the whole encryption
//! context are always sent; the key ARN that KMS returns is the one that was asked for; an answer with `Plaintext` is
//! refused, since only somebody who ignored the recipient would write it; the data key comes out of the envelope.

pub mod arn;
pub mod connector;
pub mod rate;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_sdk_kms::Client;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::timeout::TimeoutConfig;
use aws_sdk_kms::config::{Config, IdentityCache, Region as SdkRegion, StalledStreamProtectionConfig};
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{DataKeySpec, EncryptionAlgorithmSpec, GrantListEntry, KeyEncryptionMechanism, RecipientInfo};
use kms_policies::exposure::{Constraints, Grant};
use ring::digest;
use sealing::message::{DataKey, EncryptedDataKey, EncryptionContext};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::attester::Attester;
use crate::credentials::RoleCredentials;
use crate::log::KmsCode;
use crate::platform::Clock;
use crate::recipient::RecipientKey;
use arn::{KeyArn, Region};
use connector::{SdkClock, Tunnel, is_tls_refusal};
use rate::{Gate, GateClosed};

/// The provider id of data keys under KMS (AWS Encryption SDK, message format).
pub const PROVIDER: &str = "aws-kms";

/// KMS of one region.
pub struct Kms {
    client: Client,
    tunnel: Tunnel,
    credentials: RoleCredentials,
    attester: Attester,
    keys: Arc<RecipientKeys>,
    gate: Gate,
}

/// Proof that a TLS handshake with KMS has succeeded.
#[must_use]
pub struct Reached(());

impl Kms {
    /// A client for `region`. Nothing is sent yet.
    pub fn new(
        region: &Region,
        tunnel: Tunnel,
        credentials: RoleCredentials,
        attester: Attester,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let timeouts =
            TimeoutConfig::builder().operation_timeout(CALL_DEADLINE).operation_attempt_timeout(ATTEMPT_DEADLINE);
        let retries = RetryConfig::standard()
            .with_max_attempts(ATTEMPTS)
            .with_initial_backoff(Duration::from_millis(100))
            .with_max_backoff(Duration::from_secs(1));
        let config = Config::builder()
            .behavior_version_latest()
            .region(SdkRegion::new(region.as_str().to_owned()))
            .endpoint_url(format!("https://{}", region.kms_host()))
            .credentials_provider(credentials.clone())
            // `RoleCredentials` is the cache.
            .identity_cache(IdentityCache::no_cache())
            .time_source(SdkClock(clock))
            .http_client(tunnel.http_client())
            .timeout_config(timeouts.build())
            .retry_config(retries)
            // Whole attempts have a deadline, and no answer of KMS is a stream.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .build();
        let client = Client::from_conf(config);
        Self { client, tunnel, credentials, attester, keys: Arc::default(), gate: Gate::default() }
    }

    /// Shakes hands with KMS through the tunnel.
    pub async fn reach(&self) -> io::Result<Reached> {
        self.tunnel.connect().await.map(|_| Reached(()))
    }

    /// The data key inside `encrypted`, if KMS gives it to this enclave under exactly this context.
    pub async fn decrypt(
        &self,
        key: &KeyArn,
        encrypted: &EncryptedDataKey,
        context: &EncryptionContext,
    ) -> Result<DataKey, KmsError> {
        let call = call_digest(key, encrypted, context);
        if self.gate.was_refused(&call) {
            return Err(KmsError::Refused { code: KmsCode::Other });
        }
        let _pass = self.gate.pass(key).await?;
        let mut result = self.decrypt_once(key, encrypted, context).await;
        if matches!(result, Err(KmsError::CredentialsExpired)) {
            result = self.decrypt_once(key, encrypted, context).await;
        }
        if matches!(result, Err(KmsError::Refused { .. } | KmsError::RuleBroken(_))) {
            self.gate.refuse(call);
        }
        result
    }

    /// A new data key under `key` and exactly this context: plain, and encrypted.
    pub async fn generate_data_key(
        &self,
        key: &KeyArn,
        context: &EncryptionContext,
    ) -> Result<(DataKey, EncryptedDataKey), KmsError> {
        let _pass = self.gate.pass(key).await?;
        match self.generate_once(key, context).await {
            Err(KmsError::CredentialsExpired) => self.generate_once(key, context).await,
            result => result,
        }
    }

    /// The key's policy and its grants, as KMS shows them within the key's own account.
    pub(crate) async fn key_policy(&self, key: &KeyArn) -> Result<KeyPolicy, KmsError> {
        let _pass = self.gate.pass(key).await?;
        let used = self.credentials.current().await.map_err(|_| KmsError::Unreachable)?;
        let sent = self.client.get_key_policy().key_id(key.as_str()).policy_name("default").send().await;
        let text = match sent {
            Ok(answer) => answer.policy.ok_or(KmsError::RuleBroken("there is no policy"))?,
            Err(error) => return Err(self.refusal(&error, &used).await),
        };
        // One that is longer than a policy can be is judged all the same: as one that cannot be understood.
        let text = if text.len() > KEY_POLICY_BYTES_MAX { String::new() } else { text };
        let mut grants = Vec::new();
        let mut marker = None;
        for _ in 0..GRANT_PAGES_MAX {
            let sent = self.client.list_grants().key_id(key.as_str()).limit(100).set_marker(marker).send().await;
            let page = match sent {
                Ok(page) => page,
                // The policy may be shown where the grants are not.
                Err(_) => return Ok(KeyPolicy { text, grants: None }),
            };
            grants.extend(page.grants.unwrap_or_default().into_iter().map(grant));
            if !page.truncated {
                return Ok(KeyPolicy { text, grants: Some(grants) });
            }
            marker = page.next_marker;
        }
        // There are more: those that were not seen are not called closed.
        Ok(KeyPolicy { text, grants: None })
    }

    async fn decrypt_once(
        &self,
        key: &KeyArn,
        encrypted: &EncryptedDataKey,
        context: &EncryptionContext,
    ) -> Result<DataKey, KmsError> {
        let (recipient_key, recipient) = self.recipient().await?;
        let used = self.credentials.current().await.map_err(|_| KmsError::Unreachable)?;
        let sent = self
            .client
            .decrypt()
            .key_id(key.as_str())
            .ciphertext_blob(Blob::new(encrypted.ciphertext.clone()))
            .set_encryption_context(Some(pairs(context)))
            .encryption_algorithm(EncryptionAlgorithmSpec::SymmetricDefault)
            .recipient(recipient)
            .send()
            .await;
        let answer = match sent {
            Ok(answer) => answer,
            Err(error) => return Err(self.refusal(&error, &used).await),
        };
        no_plaintext(answer.plaintext())?;
        same_key(key, answer.key_id())?;
        open(recipient_key, answer.ciphertext_for_recipient()).await
    }

    async fn generate_once(
        &self,
        key: &KeyArn,
        context: &EncryptionContext,
    ) -> Result<(DataKey, EncryptedDataKey), KmsError> {
        let (recipient_key, recipient) = self.recipient().await?;
        let used = self.credentials.current().await.map_err(|_| KmsError::Unreachable)?;
        let sent = self
            .client
            .generate_data_key()
            .key_id(key.as_str())
            .key_spec(DataKeySpec::Aes256)
            .set_encryption_context(Some(pairs(context)))
            .recipient(recipient)
            .send()
            .await;
        let answer = match sent {
            Ok(answer) => answer,
            Err(error) => return Err(self.refusal(&error, &used).await),
        };
        no_plaintext(answer.plaintext())?;
        same_key(key, answer.key_id())?;
        let ciphertext = answer.ciphertext_blob().map(|blob| blob.as_ref().to_vec()).unwrap_or_default();
        if ciphertext.is_empty() || ciphertext.len() > ENCRYPTED_DATA_KEY_BYTES_MAX {
            return Err(KmsError::RuleBroken("CiphertextBlob has no possible length"));
        }
        let data_key = open(recipient_key, answer.ciphertext_for_recipient()).await?;
        let provider_info = key.as_str().as_bytes().to_vec();
        Ok((data_key, EncryptedDataKey { provider_id: PROVIDER.to_owned(), provider_info, ciphertext }))
    }

    /// A new key, and a document that is seconds old and carries it.
    async fn recipient(&self) -> Result<(RecipientKey, RecipientInfo), KmsError> {
        let key = RecipientKeys::take(&self.keys).await?;
        let attested = self.attester.for_kms(key.spki()).await.map_err(|_| KmsError::Module)?;
        let recipient = RecipientInfo::builder()
            .key_encryption_algorithm(KeyEncryptionMechanism::RsaesOaepSha256)
            .attestation_document(Blob::new(attested.bytes))
            .build();
        Ok((key, recipient))
    }

    async fn refusal<E>(
        &self,
        error: &SdkError<E, aws_smithy_runtime_api::client::orchestrator::HttpResponse>,
        used: &aws_credential_types::Credentials,
    ) -> KmsError
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let refusal = classify(error);
        if matches!(refusal, KmsError::CredentialsExpired) {
            self.credentials.forget(used).await;
        }
        refusal
    }
}

/// What KMS shows of who may use a key.
pub(crate) struct KeyPolicy {
    /// The policy's text, as KMS gave it.
    pub(crate) text: String,
    /// The grants beside it, where they are shown.
    pub(crate) grants: Option<Vec<Grant>>,
}

fn grant(entry: GrantListEntry) -> Grant {
    let constraints = entry.constraints.map(|constraints| Constraints {
        encryption_context_equals: constraints.encryption_context_equals.map(|pairs| pairs.into_iter().collect()),
        encryption_context_subset: constraints.encryption_context_subset.map(|pairs| pairs.into_iter().collect()),
    });
    Grant {
        grant_id: entry.grant_id.unwrap_or_default(),
        grantee_principal: entry.grantee_principal.unwrap_or_default(),
        operations: entry.operations.unwrap_or_default().iter().map(|name| name.as_str().to_owned()).collect(),
        constraints,
    }
}

/// AccessDenied, Validation, Throttling and ExpiredToken are not modelled by the SDK, so codes are compared and not types.
fn classify<E>(error: &SdkError<E, aws_smithy_runtime_api::client::orchestrator::HttpResponse>) -> KmsError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let code = match error {
        SdkError::ServiceError(service) => service.err().code(),
        SdkError::TimeoutError(_) => return KmsError::Timeout,
        SdkError::DispatchFailure(failure) if failure.is_timeout() => return KmsError::Timeout,
        error if is_tls_refusal(error) => return KmsError::Impostor,
        _ => return KmsError::Unreachable,
    };
    match code {
        Some("AccessDeniedException") => KmsError::Refused { code: KmsCode::AccessDeniedException },
        Some("InvalidCiphertextException" | "IncorrectKeyException") => {
            KmsError::Refused { code: KmsCode::InvalidCiphertextException }
        }
        Some("ValidationException") => KmsError::Refused { code: KmsCode::ValidationException },
        Some("NotFoundException") => KmsError::Refused { code: KmsCode::NotFoundException },
        Some("DisabledException" | "KMSInvalidStateException" | "InvalidKeyUsageException") => {
            KmsError::Refused { code: KmsCode::KeyUnusable }
        }
        Some("ThrottlingException" | "LimitExceededException") => KmsError::Busy,
        Some("ExpiredTokenException" | "UnrecognizedClientException" | "InvalidClientTokenId") => {
            KmsError::CredentialsExpired
        }
        Some("KMSInternalException" | "DependencyTimeoutException" | "KeyUnavailableException") => {
            KmsError::Unreachable
        }
        _ => KmsError::Refused { code: KmsCode::Other },
    }
}

/// "If you use the Recipient parameter ... the Plaintext field in the response is null or empty." (KMS API, Decrypt.)
fn no_plaintext(plaintext: Option<&Blob>) -> Result<(), KmsError> {
    match plaintext {
        Some(blob) if !blob.as_ref().is_empty() => Err(KmsError::RuleBroken("the answer carries Plaintext")),
        _ => Ok(()),
    }
}

fn same_key(asked: &KeyArn, returned: Option<&str>) -> Result<(), KmsError> {
    if returned == Some(asked.as_str()) { Ok(()) } else { Err(KmsError::RuleBroken("the answer names another key")) }
}

async fn open(key: RecipientKey, envelope: Option<&Blob>) -> Result<DataKey, KmsError> {
    let envelope = envelope.ok_or(KmsError::RuleBroken("there is no CiphertextForRecipient"))?.as_ref().to_vec();
    let opened: Zeroizing<Vec<u8>> = tokio::task::spawn_blocking(move || key.open(&envelope))
        .await
        .map_err(|_| KmsError::Module)?
        .map_err(|_| KmsError::RuleBroken("the envelope does not open"))?;
    DataKey::from_slice(&opened).map_err(|_| KmsError::RuleBroken("the data key has not 32 bytes"))
}

fn pairs(context: &EncryptionContext) -> std::collections::HashMap<String, String> {
    context.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// Names a call of `Decrypt` for the memory of refusals: every part after its length.
fn call_digest(key: &KeyArn, encrypted: &EncryptedDataKey, context: &EncryptionContext) -> [u8; 32] {
    let mut hash = digest::Context::new(&digest::SHA256);
    for part in [key.as_str().as_bytes(), &encrypted.ciphertext, &context.to_bytes()] {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(hash.finish().as_ref());
    out
}

/// Recipient keys made ahead, one at a time in idle moments: making one takes a tenth of a second of a core, and each is
/// used for one call.
struct RecipientKeys {
    ready: Mutex<Vec<RecipientKey>>,
    filling: AtomicBool,
    /// Places for calls that find none ready.
    making: Arc<Semaphore>,
}

impl Default for RecipientKeys {
    fn default() -> Self {
        let making = Arc::new(Semaphore::new(KEYS_IN_THE_MAKING));
        Self { ready: Mutex::default(), filling: AtomicBool::default(), making }
    }
}

impl RecipientKeys {
    async fn take(keys: &Arc<Self>) -> Result<RecipientKey, KmsError> {
        let ready = keys.ready().pop();
        Self::fill(keys);
        match ready {
            Some(key) => Ok(key),
            None => {
                // Whoever gives up waiting leaves no work behind: only so many keys are in the making at once.
                let place = Arc::clone(&keys.making).acquire_owned().await.map_err(|_| KmsError::Module)?;
                let making = move || {
                    let _place = place;
                    RecipientKey::generate()
                };
                tokio::task::spawn_blocking(making).await.map_err(|_| KmsError::Module)?.map_err(|_| KmsError::Module)
            }
        }
    }

    /// Fills up in the background, unless that is going on already.
    fn fill(keys: &Arc<Self>) {
        if keys.filling.swap(true, Ordering::Relaxed) {
            return;
        }
        let keys = Arc::clone(keys);
        tokio::task::spawn_blocking(move || {
            while keys.ready().len() < KEYS_AHEAD
                && let Ok(key) = RecipientKey::generate()
            {
                keys.ready().push(key);
            }
            keys.filling.store(false, Ordering::Relaxed);
        });
    }

    fn ready(&self) -> MutexGuard<'_, Vec<RecipientKey>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why KMS gave no key.
#[derive(Debug, thiserror::Error)]
pub enum KmsError {
    /// KMS said no, and will say so again.
    #[error("kms refused ({code:?}); see the key policy, the measurements and the encryption context")]
    Refused {
        /// What it said.
        code: KmsCode,
    },
    /// KMS, or whoever answered for it, broke a rule.
    #[error("the answer of kms is refused: {0}")]
    RuleBroken(&'static str),
    /// The other end of the tunnel is not KMS.
    #[error("the other end of the tunnel could not prove to be kms")]
    Impostor,
    /// No connection, no credentials, or an internal error of KMS.
    #[error("kms cannot be reached")]
    Unreachable,
    /// No answer in time.
    #[error("kms did not answer in time")]
    Timeout,
    /// Too many calls.
    #[error("too many kms calls")]
    Busy,
    /// The role credentials have expired.
    #[error("the credentials have expired")]
    CredentialsExpired,
    /// The security module or the random number generator failed.
    #[error("the security module failed")]
    Module,
}

impl From<GateClosed> for KmsError {
    fn from(GateClosed: GateClosed) -> Self {
        Self::Busy
    }
}

/// One attempt: dial, handshake, request, answer.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(6);
/// All attempts of one call.
const CALL_DEADLINE: Duration = Duration::from_secs(20);
const ATTEMPTS: u32 = 3;
/// "Key policy document size: 32 KB." (KMS developer guide, "Resource quotas"), with room for what KMS writes in full.
const KEY_POLICY_BYTES_MAX: usize = 256 * 1024;
/// 300 grants: more than can be judged.
const GRANT_PAGES_MAX: usize = 3;
const KEYS_AHEAD: usize = 4;
const KEYS_IN_THE_MAKING: usize = 2;
/// "CiphertextBlob: Maximum length of 6144." (KMS API, GenerateDataKey.)
const ENCRYPTED_DATA_KEY_BYTES_MAX: usize = 6144;
