//! Credentials of the instance role for the enclave, which may use KMS and nothing else of them.
//!
//! They come from the AWS SDK's default chain (environment, profile, web identity, container, instance metadata), are
//! kept until shortly before they expire, and never stand in a log: nothing here has a `Debug` that shows them.

use std::time::{Duration, SystemTime};

use aws_config::{BehaviorVersion, Region};
use aws_credential_types::{
    Credentials as AwsCredentials,
    provider::{ProvideCredentials, SharedCredentialsProvider},
};
use aws_smithy_http_client::tls::{Provider as Tls, rustls_provider::CryptoMode};
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    sync::{Mutex, OnceCell},
    time::{Instant, timeout},
};

/// Where the enclave's credentials come from.
pub(crate) struct Credentials {
    given: Option<SharedCredentialsProvider>,
    chain: OnceCell<Option<SharedCredentialsProvider>>,
    region: String,
    deadline: Duration,
    last: Mutex<Last>,
}

enum Last {
    Nothing,
    Good { document: String, use_until: SystemTime },
    Failed { at: Instant },
}

/// Why there are none. The source's own words are logged as a kind only: they may quote a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CredentialsError {
    #[error("no source of AWS credentials is configured here")]
    NoSource,
    #[error("the source of AWS credentials did not answer in time")]
    Deadline,
    #[error("the source of AWS credentials failed: {0}")]
    Source(&'static str),
    #[error("the source failed a moment ago")]
    Again,
    #[error("the credentials cannot be written down")]
    Form,
}

impl Credentials {
    pub(crate) fn new(given: Option<SharedCredentialsProvider>, region: String, deadline: Duration) -> Self {
        Self { given, chain: OnceCell::new(), region, deadline, last: Mutex::new(Last::Nothing) }
    }

    /// The document of `docs/PROTOCOL.md`, section 3. Whoever asks while another fetches waits for that one.
    pub(crate) async fn document(&self) -> Result<String, CredentialsError> {
        let mut last = self.last.lock().await;
        match &*last {
            Last::Good { document, use_until } if SystemTime::now() < *use_until => return Ok(document.clone()),
            Last::Failed { at } if at.elapsed() < AFTER_FAILURE => return Err(CredentialsError::Again),
            Last::Good { .. } | Last::Failed { .. } | Last::Nothing => {}
        }
        match self.fetch().await {
            Ok((document, use_until)) => {
                *last = Last::Good { document: document.clone(), use_until };
                Ok(document)
            }
            Err(error) => {
                *last = Last::Failed { at: Instant::now() };
                Err(error)
            }
        }
    }

    async fn fetch(&self) -> Result<(String, SystemTime), CredentialsError> {
        let provider = match &self.given {
            Some(given) => Some(given),
            None => self.chain.get_or_init(|| default_chain(self.region.clone())).await.as_ref(),
        };
        let provider = provider.ok_or(CredentialsError::NoSource)?;
        let fetched = timeout(self.deadline, provider.provide_credentials()).await;
        let credentials =
            fetched.map_err(|_| CredentialsError::Deadline)?.map_err(|error| CredentialsError::Source(kind(&error)))?;
        // Long-term keys do not expire; the form wants a date, and a short one makes their removal felt.
        let expiry = credentials.expiry().unwrap_or_else(|| SystemTime::now() + LONG_TERM);
        let document = Document::of(&credentials, expiry)?;
        Ok((document, expiry.checked_sub(RENEW_BEFORE).unwrap_or(SystemTime::UNIX_EPOCH)))
    }
}

/// The container-credentials form of the AWS SDKs.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Document<'a> {
    access_key_id: &'a str,
    secret_access_key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
    expiration: String,
}

impl<'a> Document<'a> {
    fn of(credentials: &'a AwsCredentials, expiry: SystemTime) -> Result<String, CredentialsError> {
        let expiry = OffsetDateTime::from(expiry).replace_nanosecond(0).map_err(|_| CredentialsError::Form)?;
        let document = Self {
            access_key_id: credentials.access_key_id(),
            secret_access_key: credentials.secret_access_key(),
            token: credentials.session_token(),
            expiration: expiry.format(&Rfc3339).map_err(|_| CredentialsError::Form)?,
        };
        serde_json::to_string(&document).map_err(|_| CredentialsError::Form)
    }
}

async fn default_chain(region: String) -> Option<SharedCredentialsProvider> {
    let http = aws_smithy_http_client::Builder::new().tls_provider(Tls::Rustls(CryptoMode::AwsLc)).build_https();
    let config = aws_config::defaults(BehaviorVersion::latest()).region(Region::new(region)).http_client(http);
    config.load().await.credentials_provider()
}

fn kind(error: &aws_credential_types::provider::error::CredentialsError) -> &'static str {
    use aws_credential_types::provider::error::CredentialsError as E;
    match error {
        E::CredentialsNotLoaded(_) => "nothing in the environment, profiles, container or instance metadata",
        E::ProviderTimedOut(_) => "timed out",
        E::InvalidConfiguration(_) => "invalid configuration",
        E::ProviderError(_) => "provider error",
        _ => "unknown error",
    }
}

/// The enclave gets credentials that last at least this long, where the source can give them.
const RENEW_BEFORE: Duration = Duration::from_secs(300);
const LONG_TERM: Duration = Duration::from_secs(3600);
/// A source that failed is left in peace for a moment.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    };

    use super::*;
    use aws_credential_types::provider::{
        error::CredentialsError as SourceError, future::ProvideCredentials as Provided,
    };

    #[derive(Debug)]
    struct Source {
        asked: Arc<AtomicU64>,
        expires_in: Option<u64>,
        fails: bool,
    }

    impl ProvideCredentials for Source {
        fn provide_credentials<'a>(&'a self) -> Provided<'a>
        where
            Self: 'a,
        {
            let count = self.asked.fetch_add(1, Relaxed);
            if self.fails {
                return Provided::ready(Err(SourceError::provider_error("secret words")));
            }
            let expiry = self.expires_in.map(|seconds| SystemTime::now() + Duration::from_secs(seconds));
            Provided::ready(Ok(AwsCredentials::new(
                format!("AKID{count}"),
                "secret",
                Some("token".into()),
                expiry,
                "test",
            )))
        }
    }

    fn source(expires_in: Option<u64>, fails: bool) -> (Credentials, Arc<AtomicU64>) {
        let asked = Arc::new(AtomicU64::new(0));
        let provider = SharedCredentialsProvider::new(Source { asked: Arc::clone(&asked), expires_in, fails });
        (Credentials::new(Some(provider), "us-east-1".into(), Duration::from_secs(1)), asked)
    }

    #[tokio::test]
    async fn credentials_are_kept_until_five_minutes_before_they_expire() {
        for (expires_in, times) in [(Some(3600), 1), (Some(310), 1), (Some(290), 3), (None, 1)] {
            let (credentials, asked) = source(expires_in, false);
            for _ in 0..3 {
                assert!(credentials.document().await.unwrap().contains("AKID"));
            }
            assert_eq!(asked.load(Relaxed), times, "{expires_in:?}");
        }
    }

    #[tokio::test]
    async fn the_document_has_the_container_form() {
        let expiry = SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_123);
        let with = |token: Option<&str>| {
            Document::of(&AwsCredentials::new("A", "S", token.map(Into::into), None, "test"), expiry).unwrap()
        };
        assert_eq!(
            with(Some("T")),
            r#"{"AccessKeyId":"A","SecretAccessKey":"S","Token":"T","Expiration":"2027-01-15T08:00:00Z"}"#
        );
        assert!(!with(None).contains("Token"));
    }

    #[tokio::test]
    async fn a_failing_source_is_asked_once_a_second_and_not_quoted() {
        let (credentials, asked) = source(None, true);
        let error = credentials.document().await.unwrap_err();
        assert!(!error.to_string().contains("secret words"), "{error}");
        assert_eq!(credentials.document().await, Err(CredentialsError::Again));
        tokio::time::sleep(AFTER_FAILURE + Duration::from_millis(50)).await;
        assert_eq!(credentials.document().await, Err(CredentialsError::Source("provider error")));
        assert_eq!(asked.load(Relaxed), 2);
    }
}
