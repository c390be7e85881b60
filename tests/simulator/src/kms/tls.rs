//! The server's certificate, and the CA that signs it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use thiserror::Error;
use time::{Duration, OffsetDateTime};
use tokio_rustls::TlsAcceptor;

/// Why there is no certificate to serve with.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A certificate or key.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// What the server shows, and what clients trust it by.
pub(super) struct Identity {
    pub(super) acceptor: TlsAcceptor,
    pub(super) ca_pem: String,
    pub(super) ca_path: PathBuf,
}

impl Identity {
    /// Takes the CA that an earlier run left in a folder (`ca.pem`, `ca-key.pem`), or makes one there, and signs a server certificate for loopback and for the
    /// endpoint names of the regions.
    pub(super) fn load_or_make(folder: &Path, regions: &[String]) -> Result<Self, TlsError> {
        fs::create_dir_all(folder).map_err(|source| TlsError::File { path: folder.to_owned(), source })?;
        let (ca_path, key_path) = (folder.join("ca.pem"), folder.join("ca-key.pem"));
        let read =
            |path: &Path| fs::read_to_string(path).map_err(|source| TlsError::File { path: path.to_owned(), source });
        if !ca_path.exists() || !key_path.exists() {
            let key = KeyPair::generate()?;
            let certificate = ca_parameters()?.self_signed(&key)?;
            write_private(&key_path, &key.serialize_pem())?;
            write_private(&ca_path, &certificate.pem())?;
        }
        let ca_pem = read(&ca_path)?;
        let issuer = Issuer::new(ca_parameters()?, KeyPair::from_pem(&read(&key_path)?)?);
        let server_key = KeyPair::generate()?;
        let certificate = server_parameters(regions)?.signed_by(&server_key, &issuer)?;
        let private_key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(server_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private_key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), ca_pem, ca_path })
    }
}

fn ca_parameters() -> Result<CertificateParams, rcgen::Error> {
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters.distinguished_name.push(DnType::CommonName, "Subrosa simulated KMS CA");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    (parameters.not_before, parameters.not_after) = validity(3650);
    Ok(parameters)
}

fn server_parameters(regions: &[String]) -> Result<CertificateParams, rcgen::Error> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    names.extend(regions.iter().map(|region| format!("kms.{region}.amazonaws.com")));
    let mut parameters = CertificateParams::new(names)?;
    parameters.distinguished_name.push(DnType::CommonName, "Subrosa simulated KMS");
    parameters.use_authority_key_identifier_extension = true;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    (parameters.not_before, parameters.not_after) = validity(365);
    Ok(parameters)
}

fn validity(days: i64) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - Duration::hours(1), now + Duration::days(days))
}

/// Writes a file that only its owner can read.
pub(super) fn write_private(path: &Path, text: &str) -> Result<(), TlsError> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| TlsError::File { path: path.to_owned(), source })
}
