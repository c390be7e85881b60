//! KMS under the ordinary AWS configuration chain: environment, profile, web identity, container, instance metadata.
//!
//! Of the usual settings only `AWS_CA_BUNDLE` needs help: the Rust SDK does not read it, so the HTTP client made here does.

use std::env;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// A KMS client from the ordinary configuration chain, with deadlines on every call.
///
/// # Errors
/// When `AWS_CA_BUNDLE` is set and is not a file of certificates, or when no region is configured. Credentials are
/// looked up at the first call, and only then found missing.
pub async fn kms_client() -> Result<aws_sdk_kms::Client, ConfigurationError> {
    let bundle = env::var_os("AWS_CA_BUNDLE").filter(|value| !value.is_empty()).map(PathBuf::from);
    let trust = match &bundle {
        // As in the AWS CLI, the bundle takes the place of the platform's roots.
        Some(path) => TrustStore::empty().with_pem_certificate(read_bundle(path)?),
        None => TrustStore::default(),
    };
    let tls = TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .map_err(|error| ConfigurationError::Tls(error.to_string()))?;
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .tls_context(tls)
        .build_https();
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT)
        .operation_attempt_timeout(ATTEMPT)
        .operation_timeout(OPERATION)
        .build();
    let configuration = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .timeout_config(timeouts)
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
        .load()
        .await;
    if configuration.region().is_none() {
        return Err(ConfigurationError::NoRegion);
    }
    Ok(aws_sdk_kms::Client::new(&configuration))
}

/// Why no KMS client could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// Neither environment nor profile names a region.
    #[error("no AWS region is configured: set AWS_REGION, or `region` in the profile")]
    NoRegion,
    /// `AWS_CA_BUNDLE` names a file that cannot be used.
    #[error("AWS_CA_BUNDLE names {path}, which {what}: give a PEM file of certificates, or unset it")]
    Bundle {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The TLS settings were refused.
    #[error("the TLS settings for KMS were refused: {0}")]
    Tls(String),
}

/// Reads the bundle and checks it here, because the SDK panics on one that does not parse.
fn read_bundle(path: &Path) -> Result<Vec<u8>, ConfigurationError> {
    let wrong = |what: String| ConfigurationError::Bundle { path: path.to_owned(), what };
    let mut pem = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BUNDLE + 1).read_to_end(&mut pem))
        .map_err(|error| wrong(format!("cannot be read ({error})")))?;
    if pem.len() as u64 > MAX_BUNDLE {
        return Err(wrong(format!("is larger than {MAX_BUNDLE} bytes")));
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| wrong(format!("is not PEM ({error:?})")))?;
        roots.add(certificate).map_err(|error| wrong(format!("holds a certificate that does not parse ({error})")))?;
    }
    if roots.is_empty() {
        return Err(wrong("holds no certificate".to_owned()));
    }
    Ok(pem)
}

const CONNECT: Duration = Duration::from_secs(5);
const ATTEMPT: Duration = Duration::from_secs(10);
const OPERATION: Duration = Duration::from_secs(30);
const ATTEMPTS: u32 = 3;
/// Four times the bundle that operating systems ship (about 250 KB).
const MAX_BUNDLE: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_that_holds_no_certificate_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bundle.pem");
        std::fs::write(&path, "no certificate here\n").unwrap();
        let error = read_bundle(&path).unwrap_err().to_string();
        assert!(error.contains("holds no certificate") && error.contains("bundle.pem"), "{error}");
    }

    #[test]
    fn a_bundle_with_a_broken_certificate_is_refused_and_does_not_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bundle.pem");
        std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        assert!(read_bundle(&path).unwrap_err().to_string().contains("does not parse"));
    }
}
