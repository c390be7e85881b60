//! How an enclave asks its Nitro Secure Module: the trait that a driver implements, and the only two requests for
//! documents that exist.
//!
//! A driver (the device in an enclave, a socket under the simulator) implements [`Exchange`]; [`Nsm`] follows.

use std::collections::BTreeSet;
use std::io;

use aws_nitro_enclaves_nsm_api::api::{ErrorCode, Request, Response};
use serde_bytes::ByteBuf;

use crate::Pcr;
use crate::cbor::{self, CborError};
use crate::keyset;

/// A Nitro Secure Module. Every call blocks, as the device's does.
pub trait Nsm: Send + Sync {
    /// An attestation document, signed now.
    fn document(&self, request: &DocumentRequest) -> Result<Vec<u8>, NsmError>;
    /// Fills `out` with entropy.
    fn random(&self, out: &mut [u8]) -> Result<(), NsmError>;
    /// Extends a register: new value = SHA384(old || data).
    fn extend_pcr(&self, index: u16, data: &[u8]) -> Result<Pcr, NsmError>;
    /// Locks a register for the rest of this enclave's life.
    fn lock_pcr(&self, index: u16) -> Result<(), NsmError>;
    /// Whether a register is locked, and its value.
    fn describe_pcr(&self, index: u16) -> Result<(bool, Pcr), NsmError>;
    /// What this NSM is.
    fn describe(&self) -> Result<Description, NsmError>;
}

/// One request, one response: what a driver has to provide.
pub trait Exchange: Send + Sync {
    /// Sends a request and waits for its response. An NSM's refusal is a response ([`Response::Error`]), not an error.
    fn exchange(&self, request: Request) -> Result<Response, NsmError>;
}

impl<E: Exchange> Nsm for E {
    fn document(&self, request: &DocumentRequest) -> Result<Vec<u8>, NsmError> {
        match self.exchange(request.to_wire())? {
            Response::Attestation { document } => Ok(document),
            other => Err(unexpected(other)),
        }
    }

    fn random(&self, out: &mut [u8]) -> Result<(), NsmError> {
        let mut rest = out;
        while !rest.is_empty() {
            let Response::GetRandom { random } = accepted(self.exchange(Request::GetRandom)?)? else {
                return Err(NsmError::Unexpected);
            };
            // An empty answer would never end.
            if random.is_empty() {
                return Err(NsmError::Unexpected);
            }
            let length = random.len().min(rest.len());
            let (now, later) = rest.split_at_mut_checked(length).ok_or(NsmError::Unexpected)?;
            now.copy_from_slice(random.get(..length).ok_or(NsmError::Unexpected)?);
            rest = later;
        }
        Ok(())
    }

    fn extend_pcr(&self, index: u16, data: &[u8]) -> Result<Pcr, NsmError> {
        match self.exchange(Request::ExtendPCR { index, data: data.to_vec() })? {
            Response::ExtendPCR { data } => to_pcr(&data),
            other => Err(unexpected(other)),
        }
    }

    fn lock_pcr(&self, index: u16) -> Result<(), NsmError> {
        match self.exchange(Request::LockPCR { index })? {
            Response::LockPCR => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    fn describe_pcr(&self, index: u16) -> Result<(bool, Pcr), NsmError> {
        match self.exchange(Request::DescribePCR { index })? {
            Response::DescribePCR { lock, data } => Ok((lock, to_pcr(&data)?)),
            other => Err(unexpected(other)),
        }
    }

    fn describe(&self) -> Result<Description, NsmError> {
        match self.exchange(Request::DescribeNSM)? {
            Response::DescribeNSM {
                version_major,
                version_minor,
                version_patch,
                module_id,
                max_pcrs,
                locked_pcrs,
                digest: _,
            } => Ok(Description {
                version: (version_major, version_minor, version_patch),
                module_id,
                max_pcrs,
                locked_pcrs,
            }),
            other => Err(unexpected(other)),
        }
    }
}

/// A request for an attestation document.
///
/// There are exactly two kinds, and nothing from outside the enclave reaches `public_key` or `user_data` by either:
/// an NSM that signs what a stranger chose would be a total loss.
#[derive(Clone, Debug)]
pub struct DocumentRequest(Purpose);

#[derive(Clone, Debug)]
enum Purpose {
    Client { nonce: ClientNonce, keyset: keyset::Digest },
    Kms { key: Box<RsaPublicKey> },
}

impl DocumentRequest {
    /// A document for a client: its nonce, and the digest of the keyset as `user_data`; no `public_key`.
    #[must_use]
    pub fn for_client(nonce: ClientNonce, keyset: &keyset::Digest) -> Self {
        Self(Purpose::Client { nonce, keyset: *keyset })
    }

    /// A document for KMS: the key that a data key is encrypted to; no `user_data`, no `nonce`.
    #[must_use]
    pub fn for_kms(key: &RsaPublicKey) -> Self {
        Self(Purpose::Kms { key: Box::new(key.clone()) })
    }

    /// The request as the NSM reads it.
    #[must_use]
    pub fn to_wire(&self) -> Request {
        match &self.0 {
            Purpose::Client { nonce, keyset } => Request::Attestation {
                user_data: Some(ByteBuf::from(keyset.as_bytes())),
                nonce: Some(ByteBuf::from(nonce.0.as_slice())),
                public_key: None,
            },
            Purpose::Kms { key } => {
                Request::Attestation { user_data: None, nonce: None, public_key: Some(ByteBuf::from(key.0.as_slice())) }
            }
        }
    }
}

/// A nonce that a client made: 16 to 64 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientNonce(Vec<u8>);

impl ClientNonce {
    /// Takes a nonce of the right length.
    pub fn new(bytes: &[u8]) -> Result<Self, NonceLength> {
        if (MIN_NONCE..=MAX_NONCE).contains(&bytes.len()) {
            Ok(Self(bytes.to_vec()))
        } else {
            Err(NonceLength { found: bytes.len() })
        }
    }
}

impl TryFrom<&[u8]> for ClientNonce {
    type Error = NonceLength;

    fn try_from(bytes: &[u8]) -> Result<Self, NonceLength> {
        Self::new(bytes)
    }
}

/// The nonce is too short to be one, or too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the nonce has {found} bytes, expected {MIN_NONCE} to {MAX_NONCE}")]
pub struct NonceLength {
    /// Its length.
    pub found: usize,
}

/// An RSA-2048 public key as KMS wants it: SubjectPublicKeyInfo, DER, 294 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RsaPublicKey([u8; RSA_2048_SPKI]);

impl RsaPublicKey {
    /// Takes the DER of a key of the right size.
    pub fn from_spki_der(der: &[u8]) -> Result<Self, NotRsa2048> {
        let der: [u8; RSA_2048_SPKI] = der.try_into().map_err(|_| NotRsa2048)?;
        if der.starts_with(&RSA_2048_SPKI_HEAD) { Ok(Self(der)) } else { Err(NotRsa2048) }
    }

    /// The DER.
    #[must_use]
    pub fn as_spki_der(&self) -> &[u8] {
        &self.0
    }
}

/// Not the SubjectPublicKeyInfo of an RSA key of 2048 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the SubjectPublicKeyInfo of an RSA-2048 key with exponent 65537")]
pub struct NotRsa2048;

/// What an NSM says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Major, minor, patch.
    pub version: (u16, u16, u16),
    /// The module id, as documents carry it.
    pub module_id: String,
    /// How many registers there are.
    pub max_pcrs: u16,
    /// Those that are locked.
    pub locked_pcrs: BTreeSet<u16>,
}

/// Why an NSM did not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NsmError {
    /// The NSM said no.
    #[error("the NSM refused: {0:?}")]
    Refused(ErrorCode),
    /// The response answers another request.
    #[error("the NSM's response does not belong to the request")]
    Unexpected,
    /// The response is not what an NSM writes.
    #[error("malformed response of the NSM: {0}")]
    Malformed(String),
    /// The device or the socket failed.
    #[error("the NSM cannot be reached: {0}")]
    Transport(#[from] io::Error),
}

impl From<CborError> for NsmError {
    fn from(error: CborError) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// A request in CBOR, for a driver that carries bytes.
pub fn wire_encode_request(request: &Request) -> Result<Vec<u8>, NsmError> {
    encode(request)
}

/// A response in CBOR, for whoever plays the NSM.
pub fn wire_encode_response(response: &Response) -> Result<Vec<u8>, NsmError> {
    encode(response)
}

/// A request from CBOR, strictly: a duplicate key would otherwise be accepted, and the last one would win.
pub fn wire_decode_request(bytes: &[u8]) -> Result<Request, NsmError> {
    decode(bytes, MAX_REQUEST)
}

/// A response from CBOR, strictly.
pub fn wire_decode_response(bytes: &[u8]) -> Result<Response, NsmError> {
    decode(bytes, MAX_RESPONSE)
}

fn encode<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, NsmError> {
    serde_cbor::to_vec(value).map_err(|error| NsmError::Malformed(error.to_string()))
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, NsmError> {
    if bytes.len() > max {
        return Err(NsmError::Malformed(format!("{} bytes, expected at most {max}", bytes.len())));
    }
    cbor::check(bytes, MAX_DEPTH)?;
    serde_cbor::from_slice(bytes).map_err(|error| NsmError::Malformed(error.to_string()))
}

fn accepted(response: Response) -> Result<Response, NsmError> {
    match response {
        Response::Error(code) => Err(NsmError::Refused(code)),
        other => Ok(other),
    }
}

fn unexpected(response: Response) -> NsmError {
    accepted(response).err().unwrap_or(NsmError::Unexpected)
}

fn to_pcr(data: &[u8]) -> Result<Pcr, NsmError> {
    data.try_into().map_err(|_| NsmError::Malformed(format!("a register of {} bytes, expected 48", data.len())))
}

/// `NSM_REQUEST_MAX_SIZE` of the Linux driver.
pub const MAX_REQUEST: usize = 0x1000;
/// `NSM_RESPONSE_MAX_SIZE` of the Linux driver.
pub const MAX_RESPONSE: usize = 0x3000;
/// A response is a map of a map of an array.
const MAX_DEPTH: usize = 4;
/// `docs/PROTOCOL.md` section 2.
const MIN_NONCE: usize = 16;
const MAX_NONCE: usize = 64;
/// AWS, aws-nitro-enclaves-sdk-c RecipientRequest.md: an RSA-2048 SubjectPublicKeyInfo; with exponent 65537 it has 294 bytes.
const RSA_2048_SPKI: usize = 294;
/// SEQUENCE { SEQUENCE { rsaEncryption, NULL }, BIT STRING { SEQUENCE { INTEGER of 257 bytes ..
const RSA_2048_SPKI_HEAD: [u8; 33] = [
    0x30, 0x82, 0x01, 0x22, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
    0x03, 0x82, 0x01, 0x0f, 0x00, 0x30, 0x82, 0x01, 0x0a, 0x02, 0x82, 0x01, 0x01, 0x00,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn hex_of(request: &Request) -> String {
        hex::encode(wire_encode_request(request).unwrap())
    }

    /// The bytes that the real NSM reads, from the reference of facts (nsm-api's own encoding).
    #[test]
    fn requests_are_the_devices_bytes() {
        assert_eq!(hex_of(&Request::DescribeNSM), "6b44657363726962654e534d");
        assert_eq!(hex_of(&Request::DescribePCR { index: 0 }), "a16b4465736372696265504352a165696e64657800");
        assert_eq!(
            hex_of(&Request::ExtendPCR { index: 16, data: vec![1, 2, 3] }),
            "a169457874656e64504352a265696e64657810646461746143010203"
        );
    }

    #[test]
    fn a_document_for_a_client_has_no_public_key_and_one_for_kms_has_nothing_else() {
        let nonce = ClientNonce::new(&[7; 16]).unwrap();
        let request = DocumentRequest::for_client(nonce, &keyset::Digest::of(b"keyset"));
        let Request::Attestation { user_data, nonce, public_key } = request.to_wire() else { panic!() };
        assert_eq!(user_data.unwrap().as_slice(), keyset::Digest::of(b"keyset").as_bytes());
        assert_eq!(nonce.unwrap().as_slice(), [7; 16]);
        assert!(public_key.is_none());

        let der = [&RSA_2048_SPKI_HEAD[..], &[0x5a; RSA_2048_SPKI - 33]].concat();
        let request = DocumentRequest::for_kms(&RsaPublicKey::from_spki_der(&der).unwrap());
        let Request::Attestation { user_data, nonce, public_key } = request.to_wire() else { panic!() };
        assert!(user_data.is_none() && nonce.is_none());
        assert_eq!(public_key.unwrap().as_slice(), der);
    }

    #[test]
    fn nonces_have_16_to_64_bytes_and_keys_are_rsa_2048() {
        for length in [0, 15, 65, 1024] {
            assert_eq!(ClientNonce::new(&vec![0; length]), Err(NonceLength { found: length }));
        }
        assert!(ClientNonce::new(&[0; 64]).is_ok());
        assert_eq!(RsaPublicKey::from_spki_der(&[0x30; 294]), Err(NotRsa2048));
        assert_eq!(RsaPublicKey::from_spki_der(&RSA_2048_SPKI_HEAD), Err(NotRsa2048));
    }

    /// Answers every request with the same response.
    struct Stubborn(fn() -> Response);

    impl Exchange for Stubborn {
        fn exchange(&self, _: Request) -> Result<Response, NsmError> {
            Ok((self.0)())
        }
    }

    #[test]
    fn a_response_to_another_request_is_refused() {
        let nsm = Stubborn(|| Response::LockPCR);
        assert!(matches!(nsm.describe(), Err(NsmError::Unexpected)));
        assert!(matches!(nsm.random(&mut [0; 4]), Err(NsmError::Unexpected)));
        assert!(nsm.lock_pcr(16).is_ok());
    }

    #[test]
    fn refusals_keep_their_code_and_empty_entropy_is_refused() {
        let nsm = Stubborn(|| Response::Error(ErrorCode::ReadOnlyIndex));
        assert!(matches!(nsm.extend_pcr(0, b""), Err(NsmError::Refused(ErrorCode::ReadOnlyIndex))));
        let nsm = Stubborn(|| Response::GetRandom { random: Vec::new() });
        assert!(matches!(nsm.random(&mut [0; 4]), Err(NsmError::Unexpected)));
    }

    #[test]
    fn entropy_is_gathered_over_as_many_calls_as_it_takes() {
        let nsm = Stubborn(|| Response::GetRandom { random: vec![9; 256] });
        let mut out = [0; 600];
        nsm.random(&mut out).unwrap();
        assert_eq!(out, [9; 600]);
    }

    #[test]
    fn a_duplicate_key_on_the_wire_is_refused() {
        let twice = hex::decode("a16b4465736372696265504352a265696e6465780065696e64657801").unwrap();
        assert!(matches!(wire_decode_request(&twice), Err(NsmError::Malformed(_))));
    }
}
