//! A notary for emulated modules: it signs what QEMU's NSM states, so that verifiers run unchanged behind it.
//!
//! QEMU's `nitro-enclave` machine measures an image as the hardware does, but it has no key: its documents carry zeros
//! for certificate, issuers and signature, and every verifier refuses them. The notary takes a document of exactly that
//! shape, keeps what it states, and signs it under the simulator's [`Authority`]. It believes whoever brings it a
//! document, so it is good for tests only; nothing else than such a document gets a signature from it.

use std::fmt;
use std::sync::Arc;

use attestation::cose::SIGNATURE_LENGTH;
use attestation::document::{Document, ParseError, UnixMillis};
use time::OffsetDateTime;

use crate::authority::{Authority, AuthorityError, EnclaveName};
use crate::nsm::ModuleError;
use crate::nsm::document::{self, Statement};

/// Signs the documents of emulated modules.
#[derive(Clone)]
pub struct Notary {
    authority: Arc<Authority>,
    region: String,
}

impl Notary {
    /// A notary under this authority, whose certificates name this region.
    #[must_use]
    pub fn new(authority: Arc<Authority>, region: &str) -> Self {
        Self { authority, region: region.to_owned() }
    }

    /// The same statement, with a real chain and signature.
    pub fn sign(&self, unsigned: &[u8]) -> Result<Vec<u8>, NotaryError> {
        let stated = read(unsigned)?;
        let name = EnclaveName {
            region: self.region.clone(),
            instance_id: stated.instance_id().to_owned(),
            module_id: stated.module_id().to_owned(),
        };
        let credentials = self.authority.issue(&name, time_of(stated.timestamp())?)?;
        let statement = Statement {
            module_id: stated.module_id(),
            timestamp: stated.timestamp(),
            pcrs: stated.pcrs().clone(),
            public_key: stated.public_key(),
            user_data: stated.user_data(),
            nonce: stated.nonce(),
        };
        Ok(document::sign(&statement, &credentials)?)
    }
}

impl fmt::Debug for Notary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Notary").field("region", &self.region).finish_non_exhaustive()
    }
}

/// Reads a document of exactly the shape that QEMU 10 writes (`hw/virtio/virtio-nsm.c`, `add_protected_header_to_cose`
/// and what follows): `84 43 a10120 a0 <payload> 58 40 <64 zeros>`, 64 zeros for the certificate and for the one issuer.
fn read(unsigned: &[u8]) -> Result<Document, NotaryError> {
    let payload = unsigned
        .strip_prefix(&HEAD)
        .and_then(|rest| rest.strip_suffix(&NO_SIGNATURE))
        .ok_or(NotaryError::NotUnsigned("envelope"))?;
    // The strict parser of real documents reads the rest, in the envelope that it demands.
    let message = [&ES384_HEAD[..], payload, &ES384_TAIL, &[0; SIGNATURE_LENGTH]].concat();
    let stated = Document::parse(&message)?;
    if stated.certificate() != ZEROS {
        return Err(NotaryError::NotUnsigned("certificate"));
    }
    if stated.cabundle() != [ZEROS] {
        return Err(NotaryError::NotUnsigned("issuers"));
    }
    Ok(stated)
}

fn time_of(timestamp: UnixMillis) -> Result<OffsetDateTime, NotaryError> {
    let seconds = i64::try_from(timestamp.seconds()).ok();
    let time = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.filter(|time| (2020..2200).contains(&time.year())).ok_or(NotaryError::Time)
}

/// Why the notary does not sign.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotaryError {
    /// Not the shape that an emulated module gives. A real document is refused, too: it has its signature.
    #[error("not an unsigned document of an emulated module: its {0} differs")]
    NotUnsigned(&'static str),
    /// The statement is no document.
    #[error("what the emulated module states is no attestation document: {0}")]
    Statement(#[from] ParseError),
    /// A time that certificates cannot have.
    #[error("the emulated module's time is out of the range of certificates")]
    Time,
    /// No certificates.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// No signature.
    #[error(transparent)]
    Signature(#[from] ModuleError),
}

/// An array of four, the protected header `{1: -1}`, no unprotected header.
const HEAD: [u8; 6] = [0x84, 0x43, 0xa1, 0x01, 0x20, 0xa0];
/// A byte string of 64 zeros.
const NO_SIGNATURE: [u8; 66] = {
    let mut bytes = [0; 66];
    bytes[0] = 0x58;
    bytes[1] = 0x40;
    bytes
};
const ZEROS: [u8; 64] = [0; 64];
/// The same with the protected header `{1: -35}` (ES384).
const ES384_HEAD: [u8; 7] = [0x84, 0x44, 0xa1, 0x01, 0x38, 0x22, 0xa0];
/// The head of a byte string of 96 bytes.
const ES384_TAIL: [u8; 2] = [0x58, 0x60];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use attestation::chain;

    use super::*;

    /// The root of an authority is as old as the authority, so this is the true time, in whole seconds as QEMU has it.
    fn now() -> UnixMillis {
        UnixMillis(u64::try_from(OffsetDateTime::now_utc().unix_timestamp()).unwrap() * 1000)
    }

    /// A document as QEMU writes it, with whatever `spoil` makes of its certificates.
    fn unsigned(spoil: impl Fn(&mut Vec<u8>, &mut Vec<Vec<u8>>)) -> Vec<u8> {
        let authority = Authority::ephemeral().unwrap();
        let name = EnclaveName {
            region: "us-east-1".into(),
            instance_id: "i-0123456789abcdef0".into(),
            module_id: "i-0123456789abcdef0-enc0123456789abcdef".into(),
        };
        let mut credentials = authority.issue(&name, time_of(now()).unwrap()).unwrap();
        (credentials.certificate, credentials.cabundle) = (ZEROS.to_vec(), vec![ZEROS.to_vec()]);
        spoil(&mut credentials.certificate, &mut credentials.cabundle);
        let pcrs = BTreeMap::from([(0, [7; 48]), (16, [9; 48])]);
        let statement = Statement {
            module_id: &name.module_id,
            timestamp: now(),
            pcrs,
            public_key: None,
            user_data: Some(b"digest"),
            nonce: Some(b"nonce"),
        };
        let payload = document::payload(&statement, &credentials).unwrap();
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [&HEAD[..], &[0x59], &length, &payload, &NO_SIGNATURE].concat()
    }

    fn notary() -> (Notary, chain::TrustAnchor) {
        let authority = Arc::new(Authority::ephemeral().unwrap());
        let anchor = authority.trust_anchor().unwrap();
        (Notary::new(authority, "us-east-1"), anchor)
    }

    #[test]
    fn what_it_signs_verifies_under_its_authority_and_states_the_same() {
        let (notary, anchor) = notary();
        let unsigned = unsigned(|_, _| ());
        assert!(Document::parse(&unsigned).is_err(), "nobody accepts it unsigned");
        let signed = Document::parse(&notary.sign(&unsigned).unwrap()).unwrap();
        chain::verify_signature(&signed, &anchor, signed.timestamp(), Duration::ZERO).unwrap();
        let stated = read(&unsigned).unwrap();
        assert_eq!((signed.module_id(), signed.timestamp()), (stated.module_id(), stated.timestamp()));
        assert_eq!((signed.pcrs(), signed.public_key()), (stated.pcrs(), stated.public_key()));
        assert_eq!((signed.user_data(), signed.nonce()), (stated.user_data(), stated.nonce()));
        assert!(
            chain::verify_signature(&signed, &chain::TrustAnchor::aws(), signed.timestamp(), Duration::ZERO).is_err()
        );
    }

    #[test]
    fn the_bytes_that_qemu_has_written_are_signed() {
        let Some(vectors) = vectors::folder() else {
            assert!(std::env::var_os("CI").is_none(), "the third-party vectors are missing (set SUBROSA_VECTORS)");
            return;
        };
        let text = std::fs::read_to_string(vectors.join("attestation/qemu-unsigned.hex")).unwrap();
        let bytes = hex::decode(text.trim()).unwrap();
        // That machine was called "hello". Ours has a name like the hardware's, and so has each payload a head of three bytes.
        let at = bytes.windows(6).position(|window| window == b"\x65hello").unwrap();
        let name = "i-0123456789abcdef0-enc0123456789abcdef";
        let end = bytes.len() - NO_SIGNATURE.len();
        let payload = [&bytes[HEAD.len() + 3..at], &[0x78, 39], name.as_bytes(), &bytes[at + 6..end]].concat();
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        let unsigned = [&HEAD[..], &[0x59], &length, &payload, &NO_SIGNATURE].concat();
        let signed = Document::parse(&notary().0.sign(&unsigned).unwrap()).unwrap();
        assert_eq!((signed.module_id(), signed.pcrs().len()), (name, 20));
    }

    #[test]
    fn a_signed_document_gets_no_second_signature() {
        let (notary, _) = notary();
        let signed = notary.sign(&unsigned(|_, _| ())).unwrap();
        assert!(matches!(notary.sign(&signed), Err(NotaryError::NotUnsigned("envelope"))));
    }

    #[test]
    fn every_other_shape_is_refused() {
        let (notary, _) = notary();
        let good = unsigned(|_, _| ());
        let with_certificate = unsigned(|certificate, _| *certificate = vec![1; 64]);
        assert!(matches!(notary.sign(&with_certificate), Err(NotaryError::NotUnsigned("certificate"))));
        let spoils: [fn(&mut Vec<Vec<u8>>); 3] = [|b| b.push(ZEROS.to_vec()), |b| b[0].push(0), |b| b[0][3] = 1];
        for spoil in spoils {
            let bytes = unsigned(|_, bundle| spoil(bundle));
            assert!(matches!(notary.sign(&bytes), Err(NotaryError::NotUnsigned("issuers"))));
        }
        // Each byte of the envelope, and of the signature's zeros.
        for at in (0..HEAD.len()).chain(good.len() - NO_SIGNATURE.len()..good.len()) {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            assert!(matches!(notary.sign(&bytes), Err(NotaryError::NotUnsigned("envelope"))), "byte {at}");
        }
        for length in 0..good.len() {
            assert!(notary.sign(&good[..length]).is_err(), "{length} bytes");
        }
        assert!(notary.sign(&[&good[..], &[0]].concat()).is_err());
    }
}
