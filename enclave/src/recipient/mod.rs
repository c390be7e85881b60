//! `CiphertextForRecipient`: what KMS encrypts to the RSA key of an attestation document.
//!
//! The envelope authenticates nobody: whoever sees the public key can make one. It is trusted only because it came over
//! TLS that ends in this enclave, and its data key is then proved by the message's own key commitment.

mod envelope;

pub use envelope::{Envelope, EnvelopeError};

use aws_lc_rs::cipher::{AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rsa::{KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use ring::digest;
use zeroize::Zeroizing;

/// The private half of the RSA-2048 key that one attestation document carries. It never leaves this type.
pub struct RecipientKey {
    key: OaepPrivateDecryptingKey,
    spki: Vec<u8>,
}

impl RecipientKey {
    /// Makes a new key. Tens of milliseconds of work: call it off the async threads.
    pub fn generate() -> Result<Self, RecipientError> {
        Self::from_key(PrivateDecryptingKey::generate(KeySize::Rsa2048).map_err(|_| RecipientError)?)
    }

    /// Takes a key made elsewhere. For test vectors: a key that somebody else knows protects nothing.
    pub fn danger_from_pkcs8(pkcs8: &[u8]) -> Result<Self, RecipientError> {
        Self::from_key(PrivateDecryptingKey::from_pkcs8(pkcs8).map_err(|_| RecipientError)?)
    }

    /// The public key as DER SubjectPublicKeyInfo (294 bytes), for the attestation document.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// Opens an envelope. There is one error for every failure (parse, identifier, OAEP, padding): which of them it was
    /// is nobody's business.
    pub fn open(&self, envelope: &[u8]) -> Result<Zeroizing<Vec<u8>>, RecipientError> {
        let Envelope { key_identifier, encrypted_key, iv, mut ciphertext } =
            Envelope::parse(envelope).map_err(|_| RecipientError)?;
        // The identifier is SHA-256 of the SubjectPublicKeyInfo (seen in real answers of KMS; not SHA-1 of the bit string).
        if digest::digest(&digest::SHA256, &self.spki).as_ref() != key_identifier {
            return Err(RecipientError);
        }
        let mut plain = Zeroizing::new(vec![0_u8; self.key.min_output_size()]);
        let content_key =
            self.key.decrypt(&OAEP_SHA256_MGF1SHA256, &encrypted_key, &mut plain, None).map_err(|_| RecipientError)?;
        if content_key.len() != CONTENT_KEY_BYTES {
            return Err(RecipientError);
        }
        let cipher = UnboundCipherKey::new(&AES_256, content_key)
            .and_then(PaddedBlockDecryptingKey::cbc_pkcs7)
            .map_err(|_| RecipientError)?;
        let opened = cipher
            .decrypt(&mut ciphertext, DecryptionContext::Iv128(FixedLength::from(&iv)))
            .map_err(|_| RecipientError)?
            .len();
        ciphertext.truncate(opened);
        Ok(ciphertext)
    }

    fn from_key(key: PrivateDecryptingKey) -> Result<Self, RecipientError> {
        let spki = AsDer::<PublicKeyX509Der<'_>>::as_der(&key.public_key()).map_err(|_| RecipientError)?;
        let spki = spki.as_ref().to_vec();
        let key = OaepPrivateDecryptingKey::new(key).map_err(|_| RecipientError)?;
        Ok(Self { key, spki })
    }
}

/// The envelope was not opened. On purpose there is nothing more to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer of KMS was not encrypted to this enclave's key, or is damaged")]
pub struct RecipientError;

/// AES-256.
const CONTENT_KEY_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use aws_lc_rs::cipher::{EncryptionContext, PaddedBlockEncryptingKey};
    use aws_lc_rs::rsa::{OaepPublicEncryptingKey, PublicEncryptingKey};
    use proptest::prelude::*;

    use super::envelope::tests::build;
    use super::*;

    fn sealed_to(key: &RecipientKey, content_key: &[u8], plaintext: &[u8], layout: envelope::tests::Layout) -> Vec<u8> {
        let public = OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(key.spki()).unwrap()).unwrap();
        let mut encrypted_key = vec![0; public.ciphertext_size()];
        public.encrypt(&OAEP_SHA256_MGF1SHA256, content_key, &mut encrypted_key, None).unwrap();
        let cipher = PaddedBlockEncryptingKey::cbc_pkcs7(UnboundCipherKey::new(&AES_256, &[7; 32]).unwrap()).unwrap();
        let mut ciphertext = plaintext.to_vec();
        let EncryptionContext::Iv128(iv) = EncryptionContext::Iv128(FixedLength::from(&[9; 16])) else {
            unreachable!()
        };
        cipher.less_safe_encrypt(&mut ciphertext, EncryptionContext::Iv128(iv)).unwrap();
        let identifier = digest::digest(&digest::SHA256, key.spki());
        build(identifier.as_ref(), &encrypted_key, &[9; 16], &ciphertext, layout)
    }

    #[test]
    fn both_layouts_of_kms_open() {
        let key = RecipientKey::generate().unwrap();
        assert_eq!(key.spki().len(), 294);
        for layout in [envelope::tests::Layout::Chunks, envelope::tests::Layout::Primitive] {
            let sealed = sealed_to(&key, &[7; 32], &[5; 32], layout);
            assert_eq!(key.open(&sealed).unwrap().as_slice(), [5; 32]);
        }
    }

    #[test]
    fn another_key_opens_nothing() {
        let (key, other) = (RecipientKey::generate().unwrap(), RecipientKey::generate().unwrap());
        let sealed = sealed_to(&key, &[7; 32], &[5; 32], envelope::tests::Layout::Chunks);
        assert!(other.open(&sealed).is_err());
    }

    #[test]
    fn a_content_key_of_another_length_is_refused() {
        let key = RecipientKey::generate().unwrap();
        let sealed = sealed_to(&key, &[7; 31], &[5; 32], envelope::tests::Layout::Chunks);
        assert!(key.open(&sealed).is_err());
    }

    #[test]
    fn any_flipped_byte_outside_the_unauthenticated_content_is_refused() {
        let key = RecipientKey::generate().unwrap();
        let sealed = sealed_to(&key, &[7; 32], &[5; 32], envelope::tests::Layout::Primitive);
        // CBC has no authentication: a flip in the IV or in a block changes the data key silently, and only the
        // message's key commitment notices. So a flip must be refused or must give another key; never the same one.
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            if let Ok(opened) = key.open(&changed) {
                assert_ne!(opened.as_slice(), [5; 32], "offset {at}");
            }
        }
    }

    #[test]
    fn every_truncation_and_one_appended_byte_are_refused() {
        let key = RecipientKey::generate().unwrap();
        let sealed = sealed_to(&key, &[7; 32], &[5; 32], envelope::tests::Layout::Chunks);
        for end in 0..sealed.len() {
            assert!(key.open(&sealed[..end]).is_err(), "cut at {end}");
        }
        let mut longer = sealed;
        longer.push(0);
        assert!(key.open(&longer).is_err());
    }

    proptest! {
        #[test]
        fn noise_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
            prop_assert!(Envelope::parse(&bytes).is_err());
        }
    }
}
