//! What a certificate of a stranger says: names, times, key. For showing, and for the key of an image's signature.
//!
//! Field reading only: nothing here says that anybody may be believed. The hardware's own certificates have a stricter
//! reader, in [`crate::chain`].

use ring::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Name};

/// The fields of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    der: Vec<u8>,
    subject: Name,
    issuer: Name,
    not_before: i64,
    not_after: i64,
    signature_algorithm: String,
    signature: Vec<u8>,
    public_key: PublicKey,
}

/// A distinguished name: attributes in the order of the certificate, as (name, value).
///
/// Names are those of OpenSSL (`commonName`), or dotted numbers. Values are a stranger's text: escape before showing.
pub type Name = Vec<(String, String)>;

/// Where a time stands to the validity of a certificate (RFC 5280, section 4.1.2.5: both ends belong to it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Before it.
    NotYetValid,
    /// In it.
    Valid,
    /// After it.
    Expired,
}

/// The key of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// On P-256, uncompressed.
    P256([u8; 65]),
    /// On P-384, uncompressed.
    P384([u8; 97]),
    /// On P-521.
    P521,
    /// Anything else.
    Other,
}

impl Certificate {
    /// The first certificate of a PEM text, as OpenSSL reads it.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn from_pem(pem: &[u8]) -> Result<Self, CertificateError> {
        // Other readers take other labels too (OpenSSL: "TRUSTED CERTIFICATE"): of two blocks they might take the other.
        let text = String::from_utf8_lossy(pem);
        match (Self::all_from_pem(pem)?.pop(), text.matches("-----BEGIN").count()) {
            (Some(certificate), 1) => Ok(certificate),
            _ => Err(CertificateError::Pem),
        }
    }

    /// All certificates of a PEM text.
    ///
    /// # Errors
    /// When one cannot be read. That there is none is no error.
    pub fn all_from_pem(pem: &[u8]) -> Result<Vec<Self>, CertificateError> {
        CertificateDer::pem_slice_iter(pem)
            .map(|der| der.map_err(|_| CertificateError::Pem).and_then(|der| Self::from_der(&der)))
            .collect()
    }

    /// Reads the DER of one certificate.
    ///
    /// # Errors
    /// When it is not exactly that, or too large.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        if der.len() > MAX_CERTIFICATE {
            return Err(CertificateError::TooLarge { length: der.len() });
        }
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
        if !rest.is_empty() {
            return Err(CertificateError::Malformed);
        }
        Ok(Self {
            der: der.to_vec(),
            subject: name(certificate.subject()),
            issuer: name(certificate.issuer()),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            signature_algorithm: known(ALGORITHMS, &certificate.signature_algorithm.algorithm.to_id_string()),
            signature: certificate.signature_value.data.to_vec(),
            public_key: PublicKey::of(certificate.public_key()),
        })
    }

    /// The bytes.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// SHA-256 of the bytes: the fingerprint.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        let mut out = [0; 32];
        out.copy_from_slice(digest(&SHA256, &self.der).as_ref());
        out
    }

    /// Whose it is.
    #[must_use]
    pub fn subject(&self) -> &Name {
        &self.subject
    }

    /// Who issued it, by its own word.
    #[must_use]
    pub fn issuer(&self) -> &Name {
        &self.issuer
    }

    /// The first second of its validity, since 1970.
    #[must_use]
    pub fn not_before(&self) -> i64 {
        self.not_before
    }

    /// The last second of its validity, since 1970.
    #[must_use]
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// Whether it is valid at this second since 1970.
    #[must_use]
    pub fn validity_at(&self, second: i64) -> Validity {
        match second {
            early if early < self.not_before => Validity::NotYetValid,
            late if late > self.not_after => Validity::Expired,
            _ => Validity::Valid,
        }
    }

    /// How its issuer signed it: OpenSSL's name, or dotted numbers.
    #[must_use]
    pub fn signature_algorithm(&self) -> &str {
        &self.signature_algorithm
    }

    /// Its issuer's signature. Nobody has verified it.
    #[must_use]
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// Its key.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }
}

impl PublicKey {
    fn of(key: &SubjectPublicKeyInfo<'_>) -> Self {
        let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        let curve = curve.map(|curve| curve.to_id_string()).unwrap_or_default();
        if key.algorithm.algorithm.to_id_string() != EC_PUBLIC_KEY || key.subject_public_key.unused_bits != 0 {
            return Self::Other;
        }
        // RFC 5480, section 2.2: 04 is the uncompressed form.
        let point = key.subject_public_key.data.as_ref();
        match curve.as_str() {
            SECP256R1 if point.starts_with(&[4]) => point.try_into().map_or(Self::Other, Self::P256),
            SECP384R1 if point.starts_with(&[4]) => point.try_into().map_or(Self::Other, Self::P384),
            SECP521R1 => Self::P521,
            _ => Self::Other,
        }
    }

    /// For messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::P256(_) => "a P-256 key",
            Self::P384(_) => "a P-384 key",
            Self::P521 => "a P-521 key",
            Self::Other => "no uncompressed point on P-256, P-384 or P-521",
        }
    }
}

fn name(name: &X509Name<'_>) -> Name {
    name.iter_attributes()
        .map(|attribute| {
            let value = attribute.as_str().unwrap_or("(not text)");
            (known(ATTRIBUTES, &attribute.attr_type().to_id_string()), value.to_owned())
        })
        .collect()
}

/// The name of an object identifier in a table, or the identifier itself.
fn known(table: &[(&str, &str)], identifier: &str) -> String {
    let name = table.iter().find(|(known, _)| *known == identifier).map_or(identifier, |(_, name)| name);
    name.to_owned()
}

/// Why bytes are not a certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// No certificate in the PEM.
    #[error("no PEM certificate found")]
    Pem,
    /// Not the DER of one certificate.
    #[error("it is not a DER certificate")]
    Malformed,
    /// Larger than any real one.
    #[error("it has {length} bytes, at most {MAX_CERTIFICATE} are allowed")]
    TooLarge {
        /// Its length.
        length: usize,
    },
}

/// Ours: certificates of public authorities have 1 to 3 KiB.
const MAX_CERTIFICATE: usize = 16 * 1024;
const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
const SECP256R1: &str = "1.2.840.10045.3.1.7";
const SECP384R1: &str = "1.3.132.0.34";
const SECP521R1: &str = "1.3.132.0.35";

/// Names of OpenSSL (`crypto/objects/objects.txt`), because `nitro-cli` prints these.
const ATTRIBUTES: &[(&str, &str)] = &[
    ("2.5.4.3", "commonName"),
    ("2.5.4.4", "surname"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "countryName"),
    ("2.5.4.7", "localityName"),
    ("2.5.4.8", "stateOrProvinceName"),
    ("2.5.4.9", "streetAddress"),
    ("2.5.4.10", "organizationName"),
    ("2.5.4.11", "organizationalUnitName"),
    ("2.5.4.12", "title"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.42", "givenName"),
    ("2.5.4.97", "organizationIdentifier"),
    ("0.9.2342.19200300.100.1.1", "userId"),
    ("0.9.2342.19200300.100.1.25", "domainComponent"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];
const ALGORITHMS: &[(&str, &str)] = &[
    ("1.2.840.10045.4.3.2", "ecdsa-with-SHA256"),
    ("1.2.840.10045.4.3.3", "ecdsa-with-SHA384"),
    ("1.2.840.10045.4.3.4", "ecdsa-with-SHA512"),
    ("1.2.840.113549.1.1.11", "sha256WithRSAEncryption"),
    ("1.2.840.113549.1.1.12", "sha384WithRSAEncryption"),
    ("1.2.840.113549.1.1.13", "sha512WithRSAEncryption"),
    ("1.3.101.112", "ED25519"),
];
