//! Who signed this image? The signature section: who vouches for PCR0, and whether that holds.
//!
//! The section is CBOR as AWS's tools write it: `[{"signing_certificate": PEM, "signature": COSE_Sign1}]`, and what is
//! signed is `{"register_index": 0, "register_value": PCR0}`. Byte strings are arrays of integers there, an accident of the
//! writer that all readers rely on.

use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, EcdsaVerificationAlgorithm, UnparsedPublicKey,
};

use crate::Pcr;
use crate::cbor::{CborError, Reader};
use crate::certificate::{Certificate, CertificateError, PublicKey};
use crate::cose;
use crate::measurement::h48;

/// A good signature over the PCR0 of its image.
///
/// It proves that the certificate's key signed this PCR0, and nothing else. The certificate is not covered by it, and not
/// checked against anybody's root or clock: whoever has one signed image can put another certificate around the same key, with
/// any names and times. That is another PCR8. So names are claims, and only the register says which certificate it is.
#[derive(Clone, Debug)]
pub struct Signature {
    certificate: Certificate,
    algorithm: Algorithm,
    pcr8: Pcr,
}

impl Signature {
    /// The signing certificate.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// How it signs.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The register that the certificate makes.
    #[must_use]
    pub fn pcr8(&self) -> Pcr {
        self.pcr8
    }
}

/// The algorithms of AWS's tools, by the curve of the certificate's key (RFC 9053, section 2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// ECDSA on P-521 with SHA-512. This reader knows its name and cannot verify it.
    Es512,
}

impl Algorithm {
    /// The name that RFC 9053 gives it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
        }
    }

    /// Protected headers `{1: -7}`, `{1: -35}` and `{1: -36}`, and nothing else in them.
    fn of_protected(header: &[u8]) -> Option<Self> {
        match header {
            [0xa1, 0x01, 0x26] => Some(Self::Es256),
            [0xa1, 0x01, 0x38, 0x22] => Some(Self::Es384),
            [0xa1, 0x01, 0x38, 0x23] => Some(Self::Es512),
            _ => None,
        }
    }
}

/// Reads the section and verifies it for an image with this PCR0.
pub(super) fn verify(section: &[u8], pcr0: &Pcr) -> Result<Signature, SignatureError> {
    let (pem, envelope) = read_section(section)?;
    let certificate = Certificate::from_pem(&pem)?;
    let envelope = Envelope::parse(&envelope)?;
    let algorithm = envelope.verify(certificate.public_key())?;
    // What is signed is looked at only now that somebody has signed it.
    let (index, value) = read_payload(envelope.payload)?;
    if index != 0 {
        return Err(SignatureError::OtherRegister { index });
    }
    if value != *pcr0 {
        return Err(SignatureError::OtherImage { signed: value, found: *pcr0 });
    }
    let pcr8 = h48(certificate.der());
    Ok(Signature { certificate, algorithm, pcr8 })
}

/// PEM and COSE_Sign1 of the one signature.
fn read_section(section: &[u8]) -> Result<(Vec<u8>, Vec<u8>), SignatureError> {
    let mut reader = Reader::new(section);
    // AWS's readers look at the first signature only: what a second one means, nobody has said.
    let count = reader.array(MAX_SIGNATURES)?;
    if count != 1 {
        return Err(SignatureError::Count { found: count });
    }
    expect_map_of_two(&mut reader)?;
    expect_key(&mut reader, "signing_certificate")?;
    let pem = read_bytes(&mut reader, MAX_PEM)?;
    expect_key(&mut reader, "signature")?;
    let envelope = read_bytes(&mut reader, MAX_ENVELOPE)?;
    reader.end()?;
    Ok((pem, envelope))
}

/// Index and value of the register that is signed.
fn read_payload(payload: &[u8]) -> Result<(u64, Pcr), SignatureError> {
    let mut reader = Reader::new(payload);
    expect_map_of_two(&mut reader)?;
    expect_key(&mut reader, "register_index")?;
    let index = reader.unsigned()?;
    expect_key(&mut reader, "register_value")?;
    let value = read_bytes(&mut reader, size_of::<Pcr>())?;
    reader.end()?;
    let value = value.as_slice().try_into().map_err(|_| SignatureError::RegisterLength { found: value.len() })?;
    Ok((index, value))
}

fn expect_map_of_two(reader: &mut Reader<'_>) -> Result<(), SignatureError> {
    match reader.map(2)? {
        2 => Ok(()),
        _ => Err(SignatureError::Shape { expected: "a map of two" }),
    }
}

fn expect_key(reader: &mut Reader<'_>, expected: &'static str) -> Result<(), SignatureError> {
    if reader.text(expected.len())? == expected { Ok(()) } else { Err(SignatureError::Shape { expected }) }
}

/// An array of integers below 256.
fn read_bytes(reader: &mut Reader<'_>, max: usize) -> Result<Vec<u8>, SignatureError> {
    let length = reader.array(max)?;
    // Not reserved by the length: its elements may not be there.
    let mut bytes = Vec::new();
    for _ in 0..length {
        let byte = u8::try_from(reader.unsigned()?);
        bytes.push(byte.map_err(|_| SignatureError::Shape { expected: "an array of bytes" })?);
    }
    Ok(bytes)
}

/// COSE_Sign1 (RFC 9052, section 4.2) in the shape that AWS's tools write: nothing unprotected.
struct Envelope<'a> {
    protected: &'a [u8],
    algorithm: Algorithm,
    payload: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Envelope<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, SignatureError> {
        let bytes = bytes.strip_prefix(&[TAG_SIGN1]).unwrap_or(bytes);
        let mut reader = Reader::new(bytes);
        if reader.array(4)? != 4 {
            return Err(SignatureError::Shape { expected: "an array of four" });
        }
        let protected = reader.bytes(MAX_PROTECTED)?;
        let algorithm = Algorithm::of_protected(protected).ok_or(SignatureError::UnknownAlgorithm)?;
        reader.map(0)?;
        let payload = reader.bytes(MAX_PAYLOAD)?;
        let signature = reader.bytes(MAX_RAW_SIGNATURE)?;
        reader.end()?;
        Ok(Self { protected, algorithm, payload, signature })
    }

    /// That the key made this signature with the algorithm that belongs to its curve.
    fn verify(&self, key: &PublicKey) -> Result<Algorithm, SignatureError> {
        let algorithm = self.algorithm;
        let (method, point): (&'static EcdsaVerificationAlgorithm, &[u8]) = match (algorithm, key) {
            (Algorithm::Es256, PublicKey::P256(point)) => (&ECDSA_P256_SHA256_FIXED, point),
            (Algorithm::Es384, PublicKey::P384(point)) => (&ECDSA_P384_SHA384_FIXED, point),
            (Algorithm::Es512, PublicKey::P521) => return Err(SignatureError::Unsupported),
            _ => return Err(SignatureError::Key { algorithm: algorithm.name(), key: key.name() }),
        };
        UnparsedPublicKey::new(method, point)
            .verify(&cose::sig_structure(self.protected, self.payload), self.signature)
            .map_err(|_| SignatureError::Bad)?;
        Ok(algorithm)
    }
}

/// Why nobody's signature over this image is known to be good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// Not the CBOR that belongs there.
    #[error("the signature section is malformed: {0}")]
    Cbor(#[from] CborError),
    /// Another shape than AWS's tools write.
    #[error("the signature section is malformed: expected {expected}")]
    Shape {
        /// What belongs there.
        expected: &'static str,
    },
    /// No signature, or several.
    #[error("the signature section holds {found} signatures, expected one")]
    Count {
        /// How many.
        found: usize,
    },
    /// The certificate cannot be read.
    #[error("the signing certificate cannot be used: {0}")]
    Certificate(#[from] CertificateError),
    /// A protected header other than those of the three algorithms.
    #[error("the protected header is not exactly that of ES256, ES384 or ES512")]
    UnknownAlgorithm,
    /// ES512.
    #[error("signed with ES512 (a P-521 key), which this program cannot verify; sign with P-384")]
    Unsupported,
    /// The algorithm is not that of the key.
    #[error("signed with {algorithm}, but the certificate's key is {key}")]
    Key {
        /// Of the envelope.
        algorithm: &'static str,
        /// Of the certificate.
        key: &'static str,
    },
    /// The signature does not verify.
    #[error("the signature does not verify: it was changed, or made with another key than the certificate's")]
    Bad,
    /// A register of another length than SHA-384 has.
    #[error("the signature is good, but for a register of {found} bytes, expected {}", size_of::<Pcr>())]
    RegisterLength {
        /// Its length.
        found: usize,
    },
    /// Another register than PCR0.
    #[error("the signature is good, but for PCR{index} instead of PCR0")]
    OtherRegister {
        /// The register.
        index: u64,
    },
    /// Another image.
    #[error(
        "the signature is good, but for another image: it signs PCR0 {}, this image has {}",
        hex(signed),
        hex(found)
    )]
    OtherImage {
        /// What was signed.
        signed: Pcr,
        /// What this image has.
        found: Pcr,
    },
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// RFC 9052, section 2: COSE_Sign1 under tag 18. AWS's tools write it without.
const TAG_SIGN1: u8 = 0xd2;
/// Only to tell "several" from "not a signature section".
const MAX_SIGNATURES: usize = 32;
/// Ours: a certificate with a P-384 key and signature has 1 KiB, one from a large authority 3 KiB.
const MAX_PEM: usize = 16 * 1024;
/// The protected header of ES384 has 4 bytes.
const MAX_PROTECTED: usize = 16;
/// An index, and a register in at most 96 bytes.
const MAX_PAYLOAD: usize = 256;
/// ES512: two integers of 66 bytes.
const MAX_RAW_SIGNATURE: usize = 132;
/// All three and their heads.
const MAX_ENVELOPE: usize = 1024;
