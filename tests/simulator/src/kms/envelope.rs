//! `CiphertextForRecipient`: CMS EnvelopedData (RFC 5652, section 6) in the BER that the real service writes.

use aws_lc_rs::cipher::{AES_256, EncryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey};
use aws_lc_rs::digest;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use zeroize::Zeroizing;

use super::error::KmsError;
use super::faults::Layout;
use super::random;

/// The RSA-2048 key of an attestation document's `public_key`.
pub(super) struct RecipientKey {
    key: PublicEncryptingKey,
    spki: Vec<u8>,
}

impl RecipientKey {
    /// Reads a DER SubjectPublicKeyInfo; only RSA-2048 is taken.
    pub(super) fn parse(spki: &[u8]) -> Option<Self> {
        let key = PublicEncryptingKey::from_der(spki).ok()?;
        (spki.len() == SPKI_LEN && key.key_size_bits() == 2048).then(|| Self { key, spki: spki.to_vec() })
    }

    /// Envelopes a plaintext for the holder of this key.
    pub(super) fn envelop(&self, plaintext: &[u8], layout: Layout) -> Result<Vec<u8>, KmsError> {
        let failed = |_| KmsError::internal("enveloping failed");
        let (mut cek, mut iv) = (Zeroizing::new([0_u8; 32]), [0_u8; 16]);
        random(cek.as_mut_slice())?;
        random(&mut iv)?;
        let oaep = OaepPublicEncryptingKey::new(self.key.clone()).map_err(failed)?;
        let mut encrypted_key = vec![0_u8; oaep.ciphertext_size()];
        let encrypted_key =
            oaep.encrypt(&OAEP_SHA256_MGF1SHA256, cek.as_slice(), &mut encrypted_key, None).map_err(failed)?;
        let cipher = UnboundCipherKey::new(&AES_256, cek.as_slice())
            .and_then(PaddedBlockEncryptingKey::cbc_pkcs7)
            .map_err(failed)?;
        let mut content = plaintext.to_vec();
        cipher.less_safe_encrypt(&mut content, EncryptionContext::Iv128(FixedLength::from(&iv))).map_err(failed)?;
        Ok(self.write(encrypted_key, &iv, &content, layout))
    }

    fn write(&self, encrypted_key: &[u8], iv: &[u8], content: &[u8], layout: Layout) -> Vec<u8> {
        let key_identifier = digest::digest(&digest::SHA256, &self.spki);
        let recipient = [
            tlv(INTEGER, &[2]),
            tlv(CONTEXT_0, key_identifier.as_ref()),
            tlv(SEQUENCE, &[tlv(OID, RSAES_OAEP), tlv(SEQUENCE, &oaep_parameters())].concat()),
            tlv(OCTET_STRING, encrypted_key),
        ]
        .concat();
        let content = match layout {
            Layout::Primitive => tlv(CONTEXT_0, content),
            Layout::Constructed | Layout::Alternate => {
                let chunks: Vec<u8> = content.chunks(CHUNK).flat_map(|chunk| tlv(OCTET_STRING, chunk)).collect();
                indefinite(CONTEXT_0 | CONSTRUCTED, &chunks)
            }
        };
        let cipher = tlv(SEQUENCE, &[tlv(OID, AES_256_CBC), tlv(OCTET_STRING, iv)].concat());
        let encrypted_content = indefinite(SEQUENCE, &[tlv(OID, DATA), cipher, content].concat());
        let enveloped = [tlv(INTEGER, &[2]), tlv(SET, &tlv(SEQUENCE, &recipient)), encrypted_content].concat();
        indefinite(
            SEQUENCE,
            &[tlv(OID, ENVELOPED_DATA), indefinite(CONTEXT_0 | CONSTRUCTED, &indefinite(SEQUENCE, &enveloped))]
                .concat(),
        )
    }
}

/// RFC 4055, section 4.1: hashAlgorithm [0] sha256 with NULL, maskGenAlgorithm [1] mgf1 over the same.
fn oaep_parameters() -> Vec<u8> {
    let sha256 = tlv(SEQUENCE, &[tlv(OID, SHA256), tlv(NULL, &[])].concat());
    let mgf1 = tlv(SEQUENCE, &[tlv(OID, MGF1), sha256.clone()].concat());
    [tlv(CONTEXT_0 | CONSTRUCTED, &sha256), tlv(CONTEXT_1 | CONSTRUCTED, &mgf1)].concat()
}

/// A value with its length before it (X.690, section 8.1.3.4 and 8.1.3.5); at most 65,535 bytes, which nothing here reaches.
fn tlv(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let [high, low] = length.to_be_bytes();
    let mut out = match length {
        0..=0x7f => vec![tag, low],
        0x80..=0xff => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    out.extend_from_slice(body);
    out
}

/// A value of indefinite length, ended by two zero bytes (X.690, section 8.1.3.6).
fn indefinite(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag, 0x80], body, &[0, 0]].concat()
}

/// DER length of an RSA-2048 SubjectPublicKeyInfo with exponent 65537.
const SPKI_LEN: usize = 294;
/// Bytes of content in each OCTET STRING of the constructed layout: a 32-byte key with its padding takes two of them.
const CHUNK: usize = 32;

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const NULL: u8 = 0x05;
const OID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const CONTEXT_0: u8 = 0x80;
const CONTEXT_1: u8 = 0x81;
const CONSTRUCTED: u8 = 0x20;

const ENVELOPED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 3];
const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1];
const RSAES_OAEP: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 7];
const MGF1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 8];
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1];
const AES_256_CBC: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 1, 0x2a];

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
    use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};

    use super::*;

    fn spki(size: KeySize) -> Vec<u8> {
        let key = PrivateDecryptingKey::generate(size).unwrap().public_key();
        AsDer::<PublicKeyX509Der<'_>>::as_der(&key).unwrap().as_ref().to_vec()
    }

    #[test]
    fn envelopes_begin_and_measure_as_the_real_ones_do() {
        let spki = spki(KeySize::Rsa2048);
        let key = RecipientKey::parse(&spki).unwrap();
        let primitive = key.envelop(&[1; 32], Layout::Primitive).unwrap();
        // Base64 of real answers begins `MIAGCSqGSIb3DQEHA6CAMIACAQIxggFr`.
        let start = "308006092a864886f70d010703a080308002010231820".to_owned() + "16b";
        assert_eq!(hex::encode(&primitive[..24]), start);
        let identifier = digest::digest(&digest::SHA256, &spki);
        assert!(primitive.windows(32).any(|window| window == identifier.as_ref()));
        assert!(primitive.ends_with(&[0; 6]) && !primitive.ends_with(&[0; 9]));
        assert_eq!(key.envelop(&[1; 32], Layout::Constructed).unwrap().len(), primitive.len() + 2 + 2 + 2);
    }

    #[test]
    fn only_an_rsa_2048_key_can_be_a_recipient() {
        assert!(RecipientKey::parse(&spki(KeySize::Rsa3072)).is_none());
        assert!(RecipientKey::parse(b"").is_none());
        let mut trailing = spki(KeySize::Rsa2048);
        trailing.push(0);
        assert!(RecipientKey::parse(&trailing).is_none());
    }
}
