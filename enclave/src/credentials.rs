//! The operator's role credentials, from the parent.
//!
//! They are no secret from the parent, which has them anyway: they say who asks KMS, and the key policy says that this
//! is not enough. They are renewed before they expire, and at once when KMS says that they have expired.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, future};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::host::{HostError, HostServices};
use crate::platform::Clock;

/// A source of credentials that are good now.
#[derive(Clone)]
pub struct RoleCredentials {
    inner: Arc<Inner>,
}

struct Inner {
    host: HostServices,
    clock: Arc<dyn Clock>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    credentials: Option<Credentials>,
    asked: Option<Instant>,
}

impl RoleCredentials {
    /// Credentials from these host services.
    pub fn new(host: HostServices, clock: Arc<dyn Clock>) -> Self {
        Self { inner: Arc::new(Inner { host, clock, held: Mutex::default() }) }
    }

    /// Credentials that do not expire at once. One caller at a time asks the parent; the others wait for its answer.
    pub async fn current(&self) -> Result<Credentials, RoleCredentialsError> {
        let Inner { host, clock, held } = &*self.inner;
        let mut held = held.lock().await;
        let now = clock.now();
        let is_good_for = |credentials: &&Credentials, margin| {
            credentials.expiry().is_some_and(|expiry| now.checked_add(margin).is_some_and(|then| then < expiry))
        };
        if let Some(good) = held.credentials.as_ref().filter(|held| is_good_for(held, RENEW_BEFORE)) {
            return Ok(good.clone());
        }
        // Close to the end, what is held still serves: the parent is asked again, but not for every call.
        let still_good = held.credentials.clone().filter(|held| is_good_for(&held, EXPIRY_MARGIN));
        let asked_just_now = held.asked.is_some_and(|asked| asked.elapsed() < ASK_AGAIN_AFTER);
        if let (Some(good), true) = (&still_good, asked_just_now) {
            return Ok(good.clone());
        }
        held.asked = Some(Instant::now());
        match fetch(host, now).await {
            Ok(new) => {
                held.credentials = Some(new.clone());
                Ok(new)
            }
            Err(error) => still_good.ok_or(error),
        }
    }

    /// Forgets what is held: KMS said that it has expired.
    pub async fn forget(&self, used: &Credentials) {
        let mut held = self.inner.held.lock().await;
        if held.credentials.as_ref().is_some_and(|held| held.access_key_id() == used.access_key_id()) {
            *held = Held::default();
        }
    }
}

async fn fetch(host: &HostServices, now: SystemTime) -> Result<Credentials, RoleCredentialsError> {
    let body = host.get("/v1/credentials", CREDENTIALS_BYTES_MAX).await?;
    let Wire { access_key_id, secret_access_key, token, expiration } =
        serde_json::from_slice(&body).map_err(|_| RoleCredentialsError::Malformed)?;
    let is_printable = |text: &String| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if ![Some(&access_key_id), Some(&secret_access_key), token.as_ref()].into_iter().flatten().all(is_printable) {
        return Err(RoleCredentialsError::Malformed);
    }
    let expiration = OffsetDateTime::parse(&expiration, &Rfc3339).map_err(|_| RoleCredentialsError::Malformed)?;
    let expiration = SystemTime::from(expiration).min(now + TRUST_FOR);
    if expiration <= now + EXPIRY_MARGIN {
        return Err(RoleCredentialsError::Expired);
    }
    Ok(Credentials::new(access_key_id, secret_access_key, token, Some(expiration), "subrosa-parent"))
}

impl fmt::Debug for RoleCredentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("RoleCredentials")
    }
}

impl ProvideCredentials for RoleCredentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async { self.current().await.map_err(CredentialsError::provider_error) })
    }
}

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum RoleCredentialsError {
    /// The parent gave no answer.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Not the container-credentials form.
    #[error("expected AccessKeyId, SecretAccessKey, an RFC 3339 Expiration, and Token if there is one")]
    Malformed,
    /// Expired already, or about to.
    #[error("the parent's credentials have expired")]
    Expired,
}

/// The container-credentials form; other members (RoleArn, AccountId, Type, ...) may stand beside.
#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "AccessKeyId")]
    access_key_id: String,
    #[serde(rename = "SecretAccessKey")]
    secret_access_key: String,
    /// Long-term keys have none.
    #[serde(rename = "Token")]
    token: Option<String>,
    #[serde(rename = "Expiration")]
    expiration: String,
}

/// docs/PROTOCOL.md, section 3: "at most 16,384 bytes".
const CREDENTIALS_BYTES_MAX: usize = 16_384;
/// "We make new credentials available at least five minutes before the expiration of the old credentials." (EC2 guide,
/// IAM roles.)
const RENEW_BEFORE: Duration = Duration::from_secs(300);
/// A call that is signed now must still be good when it arrives.
const EXPIRY_MARGIN: Duration = Duration::from_secs(5);
/// Whatever the parent says of their life.
const TRUST_FOR: Duration = Duration::from_secs(3600);
/// Between two questions while what is held still serves.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::{answer, parent};
    use crate::platform::SystemClock;

    fn wire(id: &str, lives: Duration) -> Vec<u8> {
        let expiration = OffsetDateTime::from(SystemTime::now() + lives).format(&Rfc3339).unwrap();
        answer(&format!(
            r#"{{"AccessKeyId":"{id}","SecretAccessKey":"s","Token":"t","Expiration":"{expiration}","RoleArn":"r"}}"#
        ))
    }

    fn role(address: address::Address) -> RoleCredentials {
        RoleCredentials::new(HostServices::new(address), Arc::new(SystemClock))
    }

    #[tokio::test]
    async fn good_credentials_are_asked_for_once() {
        let (_folder, address) = parent(vec![wire("one", Duration::from_secs(1000))]);
        let role = role(address);
        for _ in 0..3 {
            assert_eq!(role.current().await.unwrap().access_key_id(), "one");
        }
    }

    #[tokio::test]
    async fn credentials_that_kms_calls_expired_are_renewed_at_once() {
        let long = Duration::from_secs(1000);
        let (_folder, address) = parent(vec![wire("one", long), wire("two", long)]);
        let role = role(address);
        let used = role.current().await.unwrap();
        role.forget(&used).await;
        assert_eq!(role.current().await.unwrap().access_key_id(), "two");
        role.forget(&used).await;
        assert_eq!(role.current().await.unwrap().access_key_id(), "two", "what is held is not what had expired");
    }

    #[tokio::test]
    async fn credentials_close_to_their_end_serve_until_there_are_new_ones() {
        let (_folder, address) = parent(vec![wire("one", Duration::from_secs(60))]);
        let role = role(address);
        assert_eq!(role.current().await.unwrap().access_key_id(), "one");
        assert_eq!(role.current().await.unwrap().access_key_id(), "one");
    }

    #[tokio::test]
    async fn expired_or_malformed_credentials_are_refused() {
        let (_folder, address) =
            parent(vec![wire("one", Duration::from_secs(1)), answer("{}"), wire("two\\n", Duration::from_secs(1000))]);
        let role = role(address);
        assert!(matches!(role.current().await, Err(RoleCredentialsError::Expired)));
        assert!(matches!(role.current().await, Err(RoleCredentialsError::Malformed)));
        assert!(matches!(role.current().await, Err(RoleCredentialsError::Malformed)));
    }

    #[tokio::test]
    async fn nobody_is_trusted_for_longer_than_an_hour() {
        let (_folder, address) = parent(vec![wire("one", Duration::from_secs(1_000_000))]);
        let expiry = role(address).current().await.unwrap().expiry().unwrap();
        assert!(expiry <= SystemTime::now() + TRUST_FOR);
    }
}
