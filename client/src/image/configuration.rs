//! The image configuration: the release number, and the roots that an enclave's TLS to KMS must end in.

use attestation::certificate::{Certificate, CertificateError};
use serde::Deserialize;

/// What `etc/subrosa/image.toml` of an image says.
#[derive(Clone, Debug)]
pub struct ImageConfiguration {
    release: u64,
    roots: Vec<Root>,
}

/// A root certificate.
#[derive(Clone, Debug)]
pub struct Root {
    certificate: Certificate,
    /// The name that Amazon publishes it under.
    amazon: Option<&'static str>,
}

impl Root {
    /// The certificate.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Which of Amazon's roots it is, by its SHA-256; none for a stranger's, who may then answer in KMS's name.
    #[must_use]
    pub fn amazon(&self) -> Option<&'static str> {
        self.amazon
    }
}

impl ImageConfiguration {
    /// Reads the bytes of the file, as the enclave does: exactly `release` and `kms_roots`, at least one root.
    ///
    /// # Errors
    /// When it is something else.
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageConfigurationError> {
        let text = std::str::from_utf8(bytes).map_err(|_| ImageConfigurationError::Malformed)?;
        let File { release, kms_roots } = toml::from_str(text).map_err(|_| ImageConfigurationError::Malformed)?;
        let roots: Vec<Root> = Certificate::all_from_pem(kms_roots.as_bytes())?.into_iter().map(Root::of).collect();
        if roots.is_empty() { Err(ImageConfigurationError::NoRoot) } else { Ok(Self { release, roots }) }
    }

    /// The release number.
    #[must_use]
    pub fn release(&self) -> u64 {
        self.release
    }

    /// The roots, at least one.
    #[must_use]
    pub fn roots(&self) -> &[Root] {
        &self.roots
    }
}

impl Root {
    fn of(certificate: Certificate) -> Self {
        let found = hex::encode(certificate.sha256());
        let amazon = AMAZON_ROOTS.iter().find(|(_, sha256)| *sha256 == found).map(|(name, _)| *name);
        Self { certificate, amazon }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    release: u64,
    kms_roots: String,
}

/// Why bytes are not an image configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageConfigurationError {
    /// Not TOML, a missing member, a wrong type, or a member that is not known.
    #[error("the image configuration is not TOML with exactly `release` and `kms_roots`")]
    Malformed,
    /// No certificate.
    #[error("the image configuration names no root: its enclave would reach no KMS")]
    NoRoot,
    /// A root that cannot be read.
    #[error("a root of the image configuration cannot be read: {0}")]
    Root(#[from] CertificateError),
}

/// SHA-256 of the DER of the roots that Amazon Trust Services publishes (<https://www.amazontrust.com/repository/>).
pub const AMAZON_ROOTS: [(&str, &str); 5] = [
    ("Amazon Root CA 1", "8ecde6884f3d87b1125ba31ac3fcb13d7016de7f57cc904fe1cb97c6ae98196e"),
    ("Amazon Root CA 2", "1ba5b2aa8c65401a82960118f80bec4f62304d83cec4713a19c39c011ea46db4"),
    ("Amazon Root CA 3", "18ce6cfe7bf14e60b2e347b8dfe868cb31d02ebb3ada271569f50343b46db3a4"),
    ("Amazon Root CA 4", "e35d28419ed02025cfa69038cd623962458da5c695fbdea3c22b0bfb25897092"),
    (
        "Starfield Services Root Certificate Authority - G2",
        "568d6905a2c88708a4b3025190edcfedb1974a606a13c6e5290fcb2ae63edab5",
    ),
];
