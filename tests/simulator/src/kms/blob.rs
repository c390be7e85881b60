//! Ciphertext blobs: opaque to the caller, sealed under the key's material with the encryption context as additional data.
//!
//! `0x01 || key id (UUID text, 36 bytes) || nonce (12) || AES-256-GCM(plaintext)`; additional data: everything before the ciphertext,
//! then the encryption context in canonical form (sorted by name, each text with its length before it).

use std::collections::BTreeMap;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::error::KmsError;
use super::random;

/// The secret of a KMS key.
pub(super) type Material = Zeroizing<[u8; 32]>;

/// Seals a plaintext.
pub(super) fn seal(
    key_id: &str,
    material: &Material,
    context: &BTreeMap<String, String>,
    plaintext: &[u8],
) -> Result<Vec<u8>, KmsError> {
    let mut nonce = [0_u8; NONCE_LEN];
    random(&mut nonce)?;
    let mut blob = vec![VERSION];
    blob.extend_from_slice(key_id.as_bytes());
    blob.extend_from_slice(&nonce);
    let aad = additional_data(&blob, context);
    let mut sealed = plaintext.to_vec();
    let key = aead(material)?;
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut sealed)
        .map_err(|_| KmsError::internal("sealing failed"))?;
    blob.extend_from_slice(&sealed);
    Ok(blob)
}

/// The id of the key that a blob says it is sealed under; not authenticated until it is opened.
pub(super) fn key_id(blob: &[u8]) -> Result<&str, KmsError> {
    let id = blob.get(1..1 + KEY_ID_LEN).ok_or_else(KmsError::invalid_ciphertext)?;
    if blob.first() != Some(&VERSION) || blob.len() < HEADER_LEN {
        return Err(KmsError::invalid_ciphertext());
    }
    std::str::from_utf8(id).map_err(|_| KmsError::invalid_ciphertext())
}

/// Opens a blob. Whatever is wrong with it, with the key or with the context, the answer is the same.
pub(super) fn open(
    blob: &[u8],
    material: &Material,
    context: &BTreeMap<String, String>,
) -> Result<Zeroizing<Vec<u8>>, KmsError> {
    let (header, sealed) = blob.split_at_checked(HEADER_LEN).ok_or_else(KmsError::invalid_ciphertext)?;
    let nonce = header.get(1 + KEY_ID_LEN..).and_then(|nonce| <[u8; NONCE_LEN]>::try_from(nonce).ok());
    let nonce = Nonce::assume_unique_for_key(nonce.ok_or_else(KmsError::invalid_ciphertext)?);
    let mut buffer = Zeroizing::new(sealed.to_vec());
    let aad = additional_data(header, context);
    let opened = aead(material)?
        .open_in_place(nonce, Aad::from(aad), &mut buffer)
        .map_err(|_| KmsError::invalid_ciphertext())?
        .len();
    buffer.truncate(opened);
    Ok(buffer)
}

fn aead(material: &Material) -> Result<LessSafeKey, KmsError> {
    UnboundKey::new(&AES_256_GCM, material.as_slice())
        .map(LessSafeKey::new)
        .map_err(|_| KmsError::internal("key material"))
}

fn additional_data(header: &[u8], context: &BTreeMap<String, String>) -> Vec<u8> {
    let mut out = header.to_vec();
    for text in context.iter().flat_map(|(name, value)| [name, value]) {
        out.extend_from_slice(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
        out.extend_from_slice(text.as_bytes());
    }
    out
}

const VERSION: u8 = 1;
const KEY_ID_LEN: usize = 36;
const HEADER_LEN: usize = 1 + KEY_ID_LEN + NONCE_LEN;

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";

    fn context(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_blob_opens_only_whole_with_its_key_and_its_context() {
        let material = Zeroizing::new([7; 32]);
        let right = context(&[("a", "bc"), ("d", "")]);
        let blob = seal(ID, &material, &right, b"secret").unwrap();
        assert_eq!(key_id(&blob).unwrap(), ID);
        assert_eq!(*open(&blob, &material, &right).unwrap(), b"secret");
        for wrong in [
            context(&[]),
            context(&[("a", "b"), ("cd", "")]),
            context(&[("a", "bc")]),
            context(&[("a", "bc"), ("D", "")]),
        ] {
            assert_eq!(open(&blob, &material, &wrong).unwrap_err(), KmsError::invalid_ciphertext());
        }
        assert!(open(&blob, &Zeroizing::new([8; 32]), &right).is_err());
        for at in 0..blob.len() {
            let mut bent = blob.clone();
            bent[at] ^= 1;
            assert!(open(&bent, &material, &right).is_err(), "{at}");
            assert!(open(&blob[..at], &material, &right).is_err(), "{at}");
        }
    }
}
