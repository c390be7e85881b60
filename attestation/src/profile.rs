//! What the hardware's certificates look like, where a general path validator does not look.
//!
//! Field reading only: every signature is verified in [`crate::chain`].

use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo, X509Version};

/// What a certificate is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Signs certificates, so many of them of authorities on the way down to the leaf.
    Authority { authorities_below: u32 },
    /// Signs the document.
    Leaf,
}

/// The fields of a certificate that fits the profile.
#[derive(Debug)]
pub(crate) struct Profile<'a> {
    /// Seconds since 1970; valid from the beginning of this second.
    pub(crate) not_before: u64,
    /// Seconds since 1970; valid through this second (RFC 5280, section 4.1.2.5: "inclusive").
    pub(crate) not_after: u64,
    /// DER. Names are compared as bytes: the order of their parts differs between certificates.
    pub(crate) issuer: &'a [u8],
    pub(crate) subject: &'a [u8],
    /// The public key, `04 || x || y` on P-384.
    pub(crate) point: [u8; POINT_LENGTH],
}

/// Reads a certificate and checks it against the profile of its role.
pub(crate) fn read(der: &[u8], role: Role) -> Result<Profile<'_>, ProfileError> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| ProfileError::Malformed)?;
    if !rest.is_empty() {
        return Err(ProfileError::Malformed);
    }
    if certificate.version() != X509Version::V3 {
        return Err(ProfileError::Version);
    }
    // RFC 5280, section 4.1.1.2: the algorithm outside "MUST contain the same algorithm identifier" as the one inside.
    check_signature_algorithm(&certificate.signature_algorithm)?;
    check_signature_algorithm(&certificate.tbs_certificate.signature)?;
    check_extensions(&certificate, role)?;
    let seconds = |time: i64| u64::try_from(time).map_err(|_| ProfileError::Validity);
    let not_before = seconds(certificate.validity().not_before.timestamp())?;
    let not_after = seconds(certificate.validity().not_after.timestamp())?;
    if not_before > not_after {
        return Err(ProfileError::Validity);
    }
    let tbs = certificate.tbs_certificate;
    Ok(Profile {
        not_before,
        not_after,
        issuer: tbs.issuer.as_raw(),
        subject: tbs.subject.as_raw(),
        point: point_on_p384(&tbs.subject_pki)?,
    })
}

fn check_signature_algorithm(algorithm: &AlgorithmIdentifier<'_>) -> Result<(), ProfileError> {
    // RFC 5758, section 3.2: "the encoding MUST omit the parameters field".
    let is_right = algorithm.algorithm.to_id_string() == ECDSA_WITH_SHA384 && algorithm.parameters.is_none();
    if is_right { Ok(()) } else { Err(ProfileError::SignatureAlgorithm) }
}

fn point_on_p384(key: &SubjectPublicKeyInfo<'_>) -> Result<[u8; POINT_LENGTH], ProfileError> {
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let is_p384 = key.algorithm.algorithm.to_id_string() == EC_PUBLIC_KEY
        && curve.is_some_and(|curve| curve.to_id_string() == SECP384R1)
        && key.subject_public_key.unused_bits == 0;
    let point: [u8; POINT_LENGTH] = key.subject_public_key.data.as_ref().try_into().map_err(|_| ProfileError::Key)?;
    // RFC 5480, section 2.2: 04 is the uncompressed form.
    if is_p384 && point.starts_with(&[4]) { Ok(point) } else { Err(ProfileError::Key) }
}

fn check_extensions(certificate: &X509Certificate<'_>, role: Role) -> Result<(), ProfileError> {
    // Both return an error for an extension that appears twice.
    let constraints = certificate.basic_constraints().map_err(|_| ProfileError::Malformed)?;
    let constraints = constraints.ok_or(ProfileError::BasicConstraints)?;
    let usage = certificate.key_usage().map_err(|_| ProfileError::Malformed)?.ok_or(ProfileError::KeyUsage)?;
    if certificate.extended_key_usage().map_err(|_| ProfileError::Malformed)?.is_some() {
        return Err(ProfileError::ExtendedKeyUsage);
    }
    let path_length = constraints.value.path_len_constraint;
    match role {
        Role::Authority { authorities_below } => {
            if !constraints.value.ca || !constraints.critical {
                return Err(ProfileError::BasicConstraints);
            }
            if path_length.is_some_and(|at_most| authorities_below > at_most) {
                return Err(ProfileError::PathLength);
            }
            if usage.value.key_cert_sign() { Ok(()) } else { Err(ProfileError::KeyUsage) }
        }
        Role::Leaf => {
            if constraints.value.ca || path_length.is_some() {
                return Err(ProfileError::BasicConstraints);
            }
            let is_signer = usage.value.digital_signature() && !usage.value.key_cert_sign();
            if is_signer { Ok(()) } else { Err(ProfileError::KeyUsage) }
        }
    }
}

/// How a certificate differs from those of the hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// Not the DER of one certificate.
    #[error("it is not a DER certificate")]
    Malformed,
    /// Not version 3.
    #[error("its version is not 3")]
    Version,
    /// Signed by another algorithm, or the two places that name it differ.
    #[error("it is not signed with ecdsa-with-SHA384")]
    SignatureAlgorithm,
    /// Not a P-384 key in uncompressed form.
    #[error("its key is not an uncompressed P-384 point")]
    Key,
    /// The dates are malformed, before 1970 or in the wrong order.
    #[error("its validity is malformed")]
    Validity,
    /// An authority without the mark of one, or a leaf with it.
    #[error("its basic constraints do not fit its place in the chain")]
    BasicConstraints,
    /// More authorities below than it allows.
    #[error("its path length is exceeded")]
    PathLength,
    /// It may not sign what it signed.
    #[error("its key usage does not fit its place in the chain")]
    KeyUsage,
    /// The hardware's certificates have none.
    #[error("it has an extended key usage")]
    ExtendedKeyUsage,
}

const ECDSA_WITH_SHA384: &str = "1.2.840.10045.4.3.3";
const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
const SECP384R1: &str = "1.3.132.0.34";
/// `04`, x and y of 48 bytes each.
const POINT_LENGTH: usize = 97;
