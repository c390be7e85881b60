//! Did a Nitro hypervisor sign this? The signature of a document, and the chain to a root that the caller trusts.

use std::time::Duration;

use ring::digest::{SHA256, digest};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::cose;
use crate::document::{Document, Fingerprint, UnixMillis};
pub use crate::profile::ProfileError;
use crate::profile::{self, Profile, Role};

/// The root certificate that a relying party trusts, by its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustAnchor {
    der: Vec<u8>,
}

impl TrustAnchor {
    /// AWS's root G1 for the commercial partition. (China and GovCloud have other roots.)
    #[must_use]
    pub fn aws() -> Self {
        Self { der: AWS_ROOT_G1.to_vec() }
    }

    /// Another root, for a simulator or another partition: whoever holds its key can forge every measurement.
    pub fn danger_from_der(der: &[u8]) -> Result<Self, TrustAnchorError> {
        profile::read(der, Role::Authority { authorities_below: 0 })?;
        Ok(Self { der: der.to_vec() })
    }

    /// [`Self::danger_from_der`] from the first certificate of a PEM file.
    pub fn danger_from_pem(pem: &[u8]) -> Result<Self, TrustAnchorError> {
        use rustls_pki_types::pem::PemObject;
        let certificate = CertificateDer::from_pem_slice(pem).map_err(|_| TrustAnchorError::Pem)?;
        Self::danger_from_der(&certificate)
    }

    /// SHA-256 of the certificate's DER, the fingerprint that AWS publishes for its root.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        sha256(&self.der)
    }

    /// Whether this is AWS's root.
    #[must_use]
    pub fn is_aws(&self) -> bool {
        self.sha256() == AWS_ROOT_G1_SHA256
    }
}

/// Proof that a document is signed by a key that the chain leads to from a trusted root.
#[derive(Clone, Debug)]
pub struct SignatureVerified {
    document: Fingerprint,
    anchor_sha256: [u8; 32],
    window: Window,
}

impl SignatureVerified {
    /// The root that the chain leads to.
    #[must_use]
    pub fn anchor_sha256(&self) -> [u8; 32] {
        self.anchor_sha256
    }

    /// Whether that is AWS's root.
    #[must_use]
    pub fn is_aws_root(&self) -> bool {
        self.anchor_sha256 == AWS_ROOT_G1_SHA256
    }

    /// The first and the last second (since 1970, both included) at which the whole chain is valid.
    #[must_use]
    pub fn valid_seconds(&self) -> (u64, u64) {
        (self.window.not_before, self.window.not_after)
    }

    pub(crate) fn document(&self) -> Fingerprint {
        self.document
    }
}

/// Verifies a document's signature and its chain to `anchor` at the time `at`.
///
/// Each certificate must be valid within `leeway` of `at`. Stored evidence has no leeway (`Duration::ZERO`) and is verified
/// at the time that the caller names; a live enclave is verified at the caller's now, with [`LIVE_LEEWAY`]. Revocation is
/// not looked at, as AWS's own description of the verification has it.
pub fn verify_signature(
    document: &Document,
    anchor: &TrustAnchor,
    at: UnixMillis,
    leeway: Duration,
) -> Result<SignatureVerified, SignatureError> {
    // What costs nothing comes before the five signatures: number, root, form, names, times.
    let count = document.cabundle().len() + 1;
    if !(2..=MAX_CHAIN).contains(&count) {
        return Err(SignatureError::ChainLength { found: count });
    }
    let Some((root, intermediates)) = document.cabundle().split_first() else {
        return Err(SignatureError::ChainLength { found: count });
    };
    if *root != anchor.der {
        return Err(SignatureError::ForeignRoot { found: sha256(root), trusted: anchor.sha256() });
    }
    let chain = read_chain(document)?;
    let window = Window::of(&chain);
    let effective = window.effective_time(at.seconds(), leeway.as_secs())?;
    let leaf = chain.last().ok_or(SignatureError::ChainLength { found: count })?;
    cose::verify(&leaf.point, document.payload(), document.signature()).map_err(|_| SignatureError::Document)?;
    verify_path(document.certificate(), intermediates, anchor, effective)?;
    Ok(SignatureVerified { document: document.fingerprint(), anchor_sha256: anchor.sha256(), window })
}

/// The certificates from root to leaf, each of its profile and issued in the name of the one before.
fn read_chain(document: &Document) -> Result<Vec<Profile<'_>>, SignatureError> {
    let authorities = document.cabundle().len();
    let mut chain: Vec<Profile<'_>> = Vec::with_capacity(authorities + 1);
    for (position, der) in document.cabundle().iter().map(Vec::as_slice).chain([document.certificate()]).enumerate() {
        let below = u32::try_from(authorities.saturating_sub(position + 1)).unwrap_or(u32::MAX);
        let role = if position < authorities { Role::Authority { authorities_below: below } } else { Role::Leaf };
        let certificate =
            profile::read(der, role).map_err(|reason| SignatureError::Certificate { position, reason })?;
        if chain.last().is_some_and(|issuer| issuer.subject != certificate.issuer) {
            return Err(SignatureError::Names { position });
        }
        chain.push(certificate);
    }
    Ok(chain)
}

/// The signatures of the certificates, by a general path validator that may use one algorithm only.
fn verify_path(
    leaf: &[u8],
    intermediates: &[Vec<u8>],
    anchor: &TrustAnchor,
    at_seconds: u64,
) -> Result<(), SignatureError> {
    let root = CertificateDer::from(anchor.der.as_slice());
    let anchors = [anchor_from_trusted_cert(&root)?];
    let intermediates: Vec<_> = intermediates.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let leaf = CertificateDer::from(leaf);
    let leaf = EndEntityCert::try_from(&leaf)?;
    let at = UnixTime::since_unix_epoch(Duration::from_secs(at_seconds));
    let algorithms = [webpki::ring::ECDSA_P384_SHA384];
    // A usage must be named. The hardware's certificates have no extended key usage and the profile refuses any, so
    // this choice decides nothing.
    let usage = KeyUsage::client_auth();
    let path = leaf.verify_for_usage(&algorithms, &anchors, &intermediates, at, usage, None, None)?;
    // Every certificate of the bundle is on the path: no short cut past one.
    if path.intermediate_certificates().count() != intermediates.len() {
        return Err(SignatureError::Path(webpki::Error::UnknownIssuer));
    }
    Ok(())
}

/// The seconds at which a whole chain is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    not_before: u64,
    not_after: u64,
    youngest: usize,
    oldest: usize,
}

impl Window {
    fn of(chain: &[Profile<'_>]) -> Self {
        let mut window = Self { not_before: 0, not_after: u64::MAX, youngest: 0, oldest: 0 };
        for (position, certificate) in chain.iter().enumerate() {
            let Profile { not_before, not_after, issuer: _, subject: _, point: _ } = certificate;
            if *not_before > window.not_before {
                (window.not_before, window.youngest) = (*not_before, position);
            }
            if *not_after < window.not_after {
                (window.not_after, window.oldest) = (*not_after, position);
            }
        }
        window
    }

    /// `at`, or the nearest second inside the window if it is no further away than `leeway`.
    fn effective_time(self, at: u64, leeway: u64) -> Result<u64, SignatureError> {
        let Self { not_before, not_after, youngest, oldest } = self;
        if not_before > not_after {
            return Err(SignatureError::NeverValid);
        }
        if at.saturating_add(leeway) < not_before {
            return Err(SignatureError::NotYetValid { position: youngest, not_before, at });
        }
        if at > not_after.saturating_add(leeway) {
            return Err(SignatureError::Expired { position: oldest, not_after, at });
        }
        Ok(at.clamp(not_before, not_after))
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// Why a signature is not believed. `position` counts certificates from the root, which is 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// Too few or too many certificates.
    #[error("the chain has {found} certificates, expected 2 to {MAX_CHAIN}")]
    ChainLength {
        /// Certificates with root and leaf.
        found: usize,
    },
    /// The document leads to a root that nobody trusts here.
    #[error("the chain begins at another root (SHA-256 {}) than the trusted one ({})", hex(found), hex(trusted))]
    ForeignRoot {
        /// SHA-256 of the document's root.
        found: [u8; 32],
        /// SHA-256 of the trust anchor.
        trusted: [u8; 32],
    },
    /// A certificate is not like those of the hardware.
    #[error("certificate {position} of the chain is not acceptable: {reason}")]
    Certificate {
        /// Its place.
        position: usize,
        /// What is wrong.
        reason: ProfileError,
    },
    /// A certificate is issued in another name than the one before it has.
    #[error("certificate {position} of the chain does not name the one before it as its issuer")]
    Names {
        /// Its place.
        position: usize,
    },
    /// The time asked about lies before the chain is valid.
    #[error("clock: certificate {position} is valid from second {not_before} (since 1970), this is {} s earlier; is the clock slow, or is this the wrong time for this document?", not_before - at)]
    NotYetValid {
        /// Its place.
        position: usize,
        /// The first second of its validity.
        not_before: u64,
        /// The time asked about, in seconds since 1970.
        at: u64,
    },
    /// The time asked about lies after the chain was valid.
    #[error("clock: certificate {position} was valid until second {not_after} (since 1970), this is {} s later; is the clock fast, or is the document old?", at - not_after)]
    Expired {
        /// Its place.
        position: usize,
        /// The last second of its validity.
        not_after: u64,
        /// The time asked about, in seconds since 1970.
        at: u64,
    },
    /// There is no time at which all certificates are valid.
    #[error("there is no time at which all certificates of the chain are valid")]
    NeverValid,
    /// The document is not signed by the leaf's key.
    #[error("the document's signature does not verify: it was changed, or signed by another key")]
    Document,
    /// A certificate is not signed by the one before it, or the path breaks a rule of RFC 5280.
    #[error("the certificate chain does not verify: {0}")]
    Path(#[from] webpki::Error),
}

impl SignatureError {
    /// Whether the time is all that is wrong, so that a look at the clock may help.
    #[must_use]
    pub fn is_about_time(&self) -> bool {
        matches!(self, Self::NotYetValid { .. } | Self::Expired { .. })
    }
}

/// Why bytes are not a root certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrustAnchorError {
    /// There is no certificate in the PEM.
    #[error("no PEM certificate found")]
    Pem,
    /// Not like the hardware's roots.
    #[error("not acceptable as a root: {0}")]
    Certificate(#[from] ProfileError),
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a live enclave's relying party allows on certificates: a leaf is backdated by only 3 s.
pub const LIVE_LEEWAY: Duration = Duration::from_secs(60);
/// Root, regional, zonal, instance and leaf: every genuine document has these five.
const MAX_CHAIN: usize = 5;
/// SHA-256 of the DER, as AWS publishes it ("Verifying the root of trust"). The hash of the ZIP file is another one.
pub const AWS_ROOT_G1_SHA256: [u8; 32] = [
    0x64, 0x1a, 0x03, 0x21, 0xa3, 0xe2, 0x44, 0xef, 0xe4, 0x56, 0x46, 0x31, 0x95, 0xd6, 0x06, 0x31, 0x7e, 0xd7, 0xcd,
    0xcc, 0x3c, 0x17, 0x56, 0xe0, 0x98, 0x93, 0xf3, 0xc6, 0x8f, 0x79, 0xbb, 0x5b,
];
const AWS_ROOT_G1: &[u8] = include_bytes!("../roots/aws-nitro-enclaves-root-g1.der");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_root_has_the_published_fingerprint() {
        assert_eq!(TrustAnchor::aws().sha256(), AWS_ROOT_G1_SHA256);
        assert!(TrustAnchor::danger_from_der(AWS_ROOT_G1).unwrap().is_aws());
    }

    #[test]
    fn leeway_reaches_so_far_and_no_further() {
        let window = Window { not_before: 1000, not_after: 2000, youngest: 4, oldest: 4 };
        assert_eq!(window.effective_time(1000, 0), Ok(1000));
        assert_eq!(window.effective_time(2000, 0), Ok(2000));
        assert_eq!(
            window.effective_time(999, 0),
            Err(SignatureError::NotYetValid { position: 4, not_before: 1000, at: 999 })
        );
        assert_eq!(
            window.effective_time(2001, 0),
            Err(SignatureError::Expired { position: 4, not_after: 2000, at: 2001 })
        );
        assert_eq!(window.effective_time(940, 60), Ok(1000));
        assert_eq!(window.effective_time(2060, 60), Ok(2000));
        assert!(window.effective_time(939, 60).is_err_and(|error| error.is_about_time()));
        assert!(window.effective_time(2061, 60).is_err());
        assert!(window.effective_time(u64::MAX, u64::MAX).is_ok());
    }
}
