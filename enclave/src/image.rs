//! `/etc/subrosa/image.toml`: what is decided by the measured image and by nothing else.

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;

/// The image configuration: the release number and the roots that TLS to KMS must end in.
///
/// There is no default root: an image without roots reaches no KMS.
#[derive(Clone, Debug)]
pub struct ImageConfiguration {
    release: u64,
    kms_roots: Vec<CertificateDer<'static>>,
}

impl ImageConfiguration {
    /// Reads the text of the file. Unknown members are refused (docs/PROTOCOL.md, section 9).
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        if text.len() > FILE_BYTES_MAX {
            return Err(ImageError::TooLarge { limit: FILE_BYTES_MAX });
        }
        let File { release, kms_roots } = toml::from_str(text).map_err(|_| ImageError::Malformed)?;
        let kms_roots = CertificateDer::pem_slice_iter(kms_roots.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| ImageError::Roots)?;
        let image = Self { release, kms_roots };
        // An empty store, or one with a certificate that cannot anchor a chain, must fail here and not at the first call.
        image.root_store()?;
        Ok(image)
    }

    /// The release number that the keyset publishes.
    pub fn release(&self) -> u64 {
        self.release
    }

    /// The roots, ready for rustls.
    pub fn root_store(&self) -> Result<RootCertStore, ImageError> {
        let mut store = RootCertStore::empty();
        for root in &self.kms_roots {
            store.add(root.clone()).map_err(|_| ImageError::Roots)?;
        }
        if store.is_empty() { Err(ImageError::Roots) } else { Ok(store) }
    }
}

/// Why the image configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// More bytes than any real file has.
    #[error("the image configuration is larger than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// Not TOML, a missing member, a wrong type, or a member that is not known.
    #[error("the image configuration must be TOML with exactly `release` and `kms_roots`")]
    Malformed,
    /// No certificate, or one that is no trust anchor.
    #[error("`kms_roots` must hold at least one PEM certificate, and each must be a trust anchor")]
    Roots,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    release: u64,
    kms_roots: String,
}

/// Amazon's five roots are about 7 KiB of PEM.
const FILE_BYTES_MAX: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_member_is_refused() {
        let error = ImageConfiguration::parse("release = 1\nkms_roots = \"\"\nendpoint = \"http://here\"").unwrap_err();
        assert!(matches!(error, ImageError::Malformed));
    }

    #[test]
    fn an_image_without_roots_is_refused() {
        assert!(matches!(ImageConfiguration::parse("release = 1\nkms_roots = \"\""), Err(ImageError::Roots)));
        assert!(matches!(ImageConfiguration::parse("release = 1"), Err(ImageError::Malformed)));
    }

    #[test]
    fn a_root_that_is_no_certificate_is_refused() {
        let text =
            "release = 1\nkms_roots = \"\"\"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n\"\"\"";
        assert!(matches!(ImageConfiguration::parse(text), Err(ImageError::Roots)));
    }
}
