//! The envelope of a document: COSE_Sign1 (RFC 9052, section 4.2) with ES384, in the one shape that the hardware writes.
//!
//! `84 44 a1013822 a0 59 LLLL <payload> 58 60 <signature>`, untagged; tag 18 is accepted, because AWS's text prints it.
//! Everything is compared as bytes and verified over the bytes as received: nothing is decoded and encoded again.

use ring::signature::{ECDSA_P384_SHA384_FIXED, EcdsaVerificationAlgorithm, UnparsedPublicKey};

use crate::cbor::{CborError, Reader};

/// A COSE_Sign1 message of the right shape, signature not yet verified.
#[derive(Clone, Copy, Debug)]
pub struct Sign1<'a> {
    payload: &'a [u8],
    signature: &'a [u8; SIGNATURE_LENGTH],
}

impl<'a> Sign1<'a> {
    /// Takes the message apart.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, CoseError> {
        let bytes = bytes.strip_prefix(&[TAG_SIGN1]).unwrap_or(bytes);
        let rest = bytes.strip_prefix(&[ARRAY_OF_FOUR]).ok_or(CoseError::NotSign1)?;
        let rest = rest.strip_prefix(&PROTECTED).ok_or(CoseError::Protected)?;
        // RFC 9052, section 3: the unprotected header is not signed, so nothing may stand there.
        let rest = rest.strip_prefix(&[EMPTY_MAP]).ok_or(CoseError::Unprotected)?;
        let mut reader = Reader::new(rest);
        let payload = reader.bytes(MAX_PAYLOAD)?;
        let signature = reader.bytes(SIGNATURE_LENGTH)?;
        reader.end()?;
        let signature = signature.try_into().map_err(|_| CoseError::SignatureLength(signature.len()))?;
        Ok(Self { payload, signature })
    }

    /// The signed bytes, as received. Not yet verified.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The signature, r || s. Not an identity: (r, n - s) verifies too.
    #[must_use]
    pub fn signature(&self) -> &'a [u8; SIGNATURE_LENGTH] {
        self.signature
    }
}

/// The payload of a message under whatever algorithm, for a reader that believes the channel and not the signature.
pub(crate) fn unsigned_payload(bytes: &[u8]) -> Result<&[u8], CoseError> {
    let rest = bytes.strip_prefix(&[ARRAY_OF_FOUR]).ok_or(CoseError::NotSign1)?;
    let mut reader = Reader::new(rest);
    reader.bytes(MAX_PROTECTED)?;
    reader.map(0)?;
    let payload = reader.bytes(MAX_PAYLOAD)?;
    reader.bytes(SIGNATURE_LENGTH)?;
    reader.end()?;
    Ok(payload)
}

/// Verifies `signature` over a payload with an uncompressed P-384 point (`04 || x || y`).
pub fn verify(point: &[u8], payload: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
    UnparsedPublicKey::new(ALGORITHM, point).verify(&to_be_signed(payload), signature).map_err(|_| BadSignature)
}

/// The `Sig_structure` of RFC 9052, section 4.4: `["Signature1", protected, external_aad = h'', payload]`.
#[must_use]
pub fn to_be_signed(payload: &[u8]) -> Vec<u8> {
    sig_structure(&PROTECTED_HEADER, payload)
}

/// The same for another protected header, given without the head of its byte string.
pub(crate) fn sig_structure(protected: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SIG_STRUCTURE_HEAD.len() + protected.len() + 20 + payload.len());
    bytes.extend_from_slice(SIG_STRUCTURE_HEAD);
    push_bytes_head(&mut bytes, protected.len());
    bytes.extend_from_slice(protected);
    bytes.push(EMPTY_BYTES);
    push_bytes_head(&mut bytes, payload.len());
    bytes.extend_from_slice(payload);
    bytes
}

/// The shortest head of a byte string (RFC 8949, section 4.2.1).
fn push_bytes_head(out: &mut Vec<u8>, length: usize) {
    match (u8::try_from(length), u16::try_from(length), u32::try_from(length)) {
        (Ok(small @ 0..=23), _, _) => out.push(0x40 | small),
        (Ok(length), _, _) => out.extend_from_slice(&[0x58, length]),
        (_, Ok(length), _) => {
            out.push(0x59);
            out.extend_from_slice(&length.to_be_bytes());
        }
        (_, _, Ok(length)) => {
            out.push(0x5a);
            out.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            out.push(0x5b);
            out.extend_from_slice(&u64::try_from(length).unwrap_or(u64::MAX).to_be_bytes());
        }
    }
}

/// Why bytes are not a COSE_Sign1 message of the hardware's shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CoseError {
    /// Not an array of four elements, untagged or under tag 18.
    #[error("not a COSE_Sign1 message: expected an array of four, untagged or under tag 18")]
    NotSign1,
    /// The protected header is not exactly `{1: -35}`.
    #[error("the protected header is not exactly ES384 (a1013822)")]
    Protected,
    /// Something stands in the unprotected header.
    #[error("the unprotected header is not the empty map")]
    Unprotected,
    /// ES384 signatures have 96 bytes.
    #[error("the signature has {0} bytes, expected {SIGNATURE_LENGTH}")]
    SignatureLength(usize),
    /// Payload or signature is not a strictly encoded byte string, or bytes follow.
    #[error("malformed COSE_Sign1 message: {0}")]
    Cbor(#[from] CborError),
}

/// The signature does not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ES384 signature does not verify")]
pub struct BadSignature;

/// ES384: ECDSA on P-384 with SHA-384, the signature as r || s (RFC 9053, section 2.1).
pub static ALGORITHM: &EcdsaVerificationAlgorithm = &ECDSA_P384_SHA384_FIXED;
/// ES384: r and s of 48 bytes each, big-endian (RFC 9053, section 2.1).
pub const SIGNATURE_LENGTH: usize = 96;
/// AWS, "Verifying the root of trust": the payload has 1 to 2^14 bytes.
pub const MAX_PAYLOAD: usize = 16_384;
/// A document in all: the payload, and some 112 bytes around it.
pub const MAX_DOCUMENT: usize = MAX_PAYLOAD + 256;

/// One entry, whose key and value have at most nine bytes each.
const MAX_PROTECTED: usize = 19;
const TAG_SIGN1: u8 = 0xd2;
const ARRAY_OF_FOUR: u8 = 0x84;
const EMPTY_MAP: u8 = 0xa0;
const EMPTY_BYTES: u8 = 0x40;
/// `{1: -35}`: algorithm ES384 (RFC 9053, section 2.1).
const PROTECTED_HEADER: [u8; 4] = [0xa1, 0x01, 0x38, 0x22];
/// The same as a byte string.
const PROTECTED: [u8; 5] = [0x44, 0xa1, 0x01, 0x38, 0x22];
const SIG_STRUCTURE_HEAD: &[u8] = b"\x84\x6aSignature1";

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Vec<u8> {
        let mut bytes = vec![ARRAY_OF_FOUR];
        bytes.extend_from_slice(&PROTECTED);
        bytes.extend_from_slice(&[EMPTY_MAP, 0x43, 1, 2, 3, 0x58, 96]);
        bytes.extend_from_slice(&[7; SIGNATURE_LENGTH]);
        bytes
    }

    #[test]
    fn the_hardwares_shape_is_accepted_untagged_and_under_tag_18() {
        let bytes = message();
        assert_eq!(Sign1::parse(&bytes).unwrap().payload(), [1, 2, 3]);
        assert_eq!(Sign1::parse(&[&[TAG_SIGN1][..], &bytes].concat()).unwrap().signature(), &[7; SIGNATURE_LENGTH]);
    }

    #[test]
    fn every_other_shape_is_refused() {
        let bytes = message();
        let refused = |bytes: &[u8]| Sign1::parse(bytes).unwrap_err();
        assert_eq!(refused(&[&[TAG_SIGN1, TAG_SIGN1][..], &bytes].concat()), CoseError::NotSign1);
        assert_eq!(refused(&[&[0xd8, 18][..], &bytes].concat()), CoseError::NotSign1);
        assert_eq!(refused(&[&[0xd3][..], &bytes].concat()), CoseError::NotSign1);
        assert_eq!(refused(&[&[0x9f][..], &bytes[1..], &[0xff]].concat()), CoseError::NotSign1);
        assert_eq!(refused(&[&bytes[..], &[0]].concat()), CoseError::Cbor(CborError::Trailing { count: 1 }));
        let mut null_unprotected = bytes.clone();
        null_unprotected[6] = 0xf6;
        assert_eq!(refused(&null_unprotected), CoseError::Unprotected);
        let mut es256 = bytes.clone();
        es256[3..6].copy_from_slice(&[0x01, 0x26, 0xa0]);
        assert_eq!(refused(&es256), CoseError::Protected);
        let mut short = bytes[..bytes.len() - 1].to_vec();
        short[12] = 95;
        assert_eq!(refused(&short), CoseError::SignatureLength(95));
        for length in 0..bytes.len() {
            refused(&bytes[..length]);
        }
    }

    #[test]
    fn what_nobody_signed_is_read_for_its_payload_and_never_as_a_message() {
        let unsigned = [&[0x84, 0x43, 0xa1, 0x01, 0x20, 0xa0, 0x43, 1, 2, 3, 0x58, 64][..], &[0; 64]].concat();
        assert_eq!(unsigned_payload(&unsigned).unwrap(), [1, 2, 3]);
        assert_eq!(Sign1::parse(&unsigned).unwrap_err(), CoseError::Protected);
        assert_eq!(unsigned_payload(&message()).unwrap(), [1, 2, 3]);
        for length in 0..unsigned.len() {
            assert!(unsigned_payload(&unsigned[..length]).is_err(), "{length}");
        }
        assert!(unsigned_payload(&[&unsigned[..], &[0]].concat()).is_err());
        let unprotected = [&unsigned[..5], &[0xa1, 1, 1], &unsigned[6..]].concat();
        assert!(unsigned_payload(&unprotected).is_err());
    }

    #[test]
    fn heads_of_byte_strings_are_the_shortest() {
        for (length, head) in [
            (0, vec![0x40]),
            (23, vec![0x57]),
            (24, vec![0x58, 24]),
            (256, vec![0x59, 1, 0]),
            (65_536, vec![0x5a, 0, 1, 0, 0]),
        ] {
            let mut out = Vec::new();
            push_bytes_head(&mut out, length);
            assert_eq!(out, head);
        }
    }
}
