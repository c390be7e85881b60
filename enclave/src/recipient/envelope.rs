//! The envelope's form: CMS EnvelopedData (RFC 5652) in BER, and of BER only what KMS writes.
//!
//! The grammar is fixed, so the reader descends without recursion. Constructed values may have a definite or an
//! indefinite length; a definite length must be the shortest. One recipient, versions 2 and 2, the algorithms byte for
//! byte, and nothing after the end. (LocalStack writes version 0 with an issuer and serial number, OpenSSL a 20-byte
//! identifier and no NULL parameters: both are refused, since KMS writes neither.)

use zeroize::Zeroizing;

/// A parsed envelope. Nothing in it is authenticated.
pub struct Envelope {
    /// The recipient's subject key identifier.
    pub key_identifier: [u8; 32],
    /// The content key under RSAES-OAEP with SHA-256, for an RSA-2048 key.
    pub encrypted_key: [u8; 256],
    /// The initialisation vector of AES-256-CBC.
    pub iv: [u8; 16],
    /// The content under AES-256-CBC with PKCS #7 padding. It is opened in place, so it is wiped.
    pub ciphertext: Zeroizing<Vec<u8>>,
}

impl Envelope {
    /// Reads one envelope and nothing after it.
    pub fn parse(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        if bytes.len() > ENVELOPE_BYTES_MAX {
            return Err(EnvelopeError::TooLarge { limit: ENVELOPE_BYTES_MAX });
        }
        let mut reader = Reader { rest: bytes };
        // RFC 5652, section 3: ContentInfo ::= SEQUENCE { contentType, content [0] EXPLICIT }.
        let envelope = reader.constructed(SEQUENCE, |content_info| {
            content_info.exactly(OID_ENVELOPED_DATA, "contentType envelopedData")?;
            content_info.constructed(CONTEXT_0, |explicit| explicit.constructed(SEQUENCE, enveloped_data))
        })?;
        reader.end()?;
        Ok(envelope)
    }
}

/// RFC 5652, section 6.1: EnvelopedData ::= SEQUENCE { version, recipientInfos, encryptedContentInfo }. KMS writes no
/// originatorInfo and no unprotectedAttrs.
fn enveloped_data(reader: &mut Reader<'_>) -> Result<Envelope, EnvelopeError> {
    reader.exactly(VERSION_2, "version 2 of EnvelopedData")?;
    let (key_identifier, encrypted_key) =
        reader.constructed(SET, |recipients| recipients.constructed(SEQUENCE, key_trans_recipient))?;
    let (iv, ciphertext) = reader.constructed(SEQUENCE, encrypted_content)?;
    Ok(Envelope { key_identifier, encrypted_key, iv, ciphertext })
}

/// RFC 5652, section 6.2.1: "If the RecipientIdentifier is the CHOICE subjectKeyIdentifier, then the version MUST be 2."
fn key_trans_recipient(reader: &mut Reader<'_>) -> Result<([u8; 32], [u8; 256]), EnvelopeError> {
    reader.exactly(VERSION_2, "version 2 of KeyTransRecipientInfo")?;
    let identifier = reader.primitive(SUBJECT_KEY_IDENTIFIER)?;
    let identifier =
        identifier.try_into().map_err(|_| EnvelopeError::Unexpected("a 32-byte subject key identifier"))?;
    reader.exactly(RSAES_OAEP_SHA256, "RSAES-OAEP with SHA-256 and MGF1 with SHA-256")?;
    let key = reader.primitive(OCTET_STRING)?;
    let key = key.try_into().map_err(|_| EnvelopeError::Unexpected("a 256-byte encrypted key"))?;
    Ok((identifier, key))
}

/// RFC 5652, section 6.1: EncryptedContentInfo ::= SEQUENCE { contentType, algorithm, [0] IMPLICIT OCTET STRING }.
fn encrypted_content(reader: &mut Reader<'_>) -> Result<([u8; 16], Zeroizing<Vec<u8>>), EnvelopeError> {
    reader.exactly(OID_DATA, "contentType data")?;
    let iv = reader.constructed(SEQUENCE, |algorithm| {
        algorithm.exactly(OID_AES_256_CBC, "AES-256-CBC")?;
        let iv = algorithm.primitive(OCTET_STRING)?;
        <[u8; 16]>::try_from(iv).map_err(|_| EnvelopeError::Unexpected("a 16-byte initialisation vector"))
    })?;
    let ciphertext = reader.octets_implicit_0()?;
    if ciphertext.is_empty() || ciphertext.len() % BLOCK_BYTES != 0 {
        return Err(EnvelopeError::Unexpected("whole blocks of ciphertext"));
    }
    Ok((iv, ciphertext))
}

/// Why bytes are no envelope of KMS. It stays inside the enclave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// More bytes than KMS may answer with.
    #[error("the envelope is larger than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// A length runs past the end.
    #[error("the envelope is cut short")]
    Short,
    /// A length that is reserved, too long, or not the shortest.
    #[error("a length is not in its shortest form")]
    Length,
    /// Something else stands where this belongs.
    #[error("expected {0}")]
    Unexpected(&'static str),
    /// Bytes after the end of a value.
    #[error("unexpected bytes after the end of a value")]
    Trailing,
}

struct Reader<'a> {
    rest: &'a [u8],
}

enum Length {
    Definite(usize),
    Indefinite,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], EnvelopeError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(EnvelopeError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, EnvelopeError> {
        let (first, rest) = self.rest.split_first().ok_or(EnvelopeError::Short)?;
        self.rest = rest;
        Ok(*first)
    }

    fn end(&self) -> Result<(), EnvelopeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(EnvelopeError::Trailing) }
    }

    /// Whole encoded values that can be written in one way only.
    fn exactly(&mut self, encoded: &[u8], what: &'static str) -> Result<(), EnvelopeError> {
        if self.take(encoded.len())? == encoded { Ok(()) } else { Err(EnvelopeError::Unexpected(what)) }
    }

    fn tag(&mut self, tag: u8) -> Result<(), EnvelopeError> {
        if self.byte()? == tag { Ok(()) } else { Err(EnvelopeError::Unexpected("another tag")) }
    }

    /// X.690, section 8.1.3, with the shortest form of section 10.1 for definite lengths.
    fn length(&mut self) -> Result<Length, EnvelopeError> {
        let length = match self.byte()? {
            0x80 => return Ok(Length::Indefinite),
            short @ 0..=0x7f => usize::from(short),
            0x81 => match self.byte()? {
                long @ 0x80.. => usize::from(long),
                _ => return Err(EnvelopeError::Length),
            },
            0x82 => match (self.byte()?, self.byte()?) {
                (0, _) => return Err(EnvelopeError::Length),
                (high, low) => usize::from(u16::from_be_bytes([high, low])),
            },
            _ => return Err(EnvelopeError::Length),
        };
        Ok(Length::Definite(length))
    }

    fn primitive(&mut self, tag: u8) -> Result<&'a [u8], EnvelopeError> {
        self.tag(tag)?;
        match self.length()? {
            Length::Definite(length) => self.take(length),
            // X.690, section 8.1.3.2: a primitive value has the definite form.
            Length::Indefinite => Err(EnvelopeError::Length),
        }
    }

    fn constructed<T>(
        &mut self,
        tag: u8,
        read: impl FnOnce(&mut Reader<'a>) -> Result<T, EnvelopeError>,
    ) -> Result<T, EnvelopeError> {
        self.tag(tag)?;
        match self.length()? {
            Length::Definite(length) => {
                let mut inner = Reader { rest: self.take(length)? };
                let value = read(&mut inner)?;
                inner.end()?;
                Ok(value)
            }
            Length::Indefinite => {
                let value = read(self)?;
                self.exactly(END_OF_CONTENTS, "end of contents")?;
                Ok(value)
            }
        }
    }

    /// [0] IMPLICIT OCTET STRING: primitive, or constructed of primitive chunks (X.690, section 8.7).
    fn octets_implicit_0(&mut self) -> Result<Zeroizing<Vec<u8>>, EnvelopeError> {
        if self.rest.first() == Some(&CONTEXT_0_PRIMITIVE) {
            return Ok(Zeroizing::new(self.primitive(CONTEXT_0_PRIMITIVE)?.to_vec()));
        }
        self.constructed(CONTEXT_0, |chunks| {
            let mut octets = Zeroizing::new(Vec::with_capacity(chunks.rest.len()));
            while chunks.rest.first() == Some(&OCTET_STRING) {
                octets.extend_from_slice(chunks.primitive(OCTET_STRING)?);
            }
            Ok(octets)
        })
    }
}

/// "CiphertextForRecipient: Length Constraints: Minimum length of 1. Maximum length of 6144." (KMS API, Decrypt.)
const ENVELOPE_BYTES_MAX: usize = 6144;
const BLOCK_BYTES: usize = 16;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OCTET_STRING: u8 = 0x04;
const CONTEXT_0: u8 = 0xa0;
const CONTEXT_0_PRIMITIVE: u8 = 0x80;
const SUBJECT_KEY_IDENTIFIER: u8 = 0x80;
const END_OF_CONTENTS: &[u8] = &[0, 0];
const VERSION_2: &[u8] = &[0x02, 0x01, 0x02];
/// 1.2.840.113549.1.7.3.
const OID_ENVELOPED_DATA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x03];
/// 1.2.840.113549.1.7.1.
const OID_DATA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
/// 2.16.840.1.101.3.4.1.42.
const OID_AES_256_CBC: &[u8] = &[0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a];
/// RFC 4055, section 4.1: id-RSAES-OAEP with hashFunc SHA-256 and maskGenFunc MGF1 with SHA-256, pSource default.
const RSAES_OAEP_SHA256: &[u8] = &[
    0x30, 0x3c, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x07, 0x30, 0x2f, //
    0xa0, 0x0f, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, //
    0xa1, 0x1c, 0x30, 0x1a, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08, //
    0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00,
];

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[derive(Clone, Copy)]
    pub(crate) enum Layout {
        Chunks,
        Primitive,
    }

    pub(crate) fn build(identifier: &[u8], key: &[u8], iv: &[u8; 16], ciphertext: &[u8], layout: Layout) -> Vec<u8> {
        let mut recipient = VERSION_2.to_vec();
        recipient.extend_from_slice(&tlv(SUBJECT_KEY_IDENTIFIER, identifier));
        recipient.extend_from_slice(RSAES_OAEP_SHA256);
        recipient.extend_from_slice(&tlv(OCTET_STRING, key));
        let mut out = vec![0x30, 0x80];
        out.extend_from_slice(OID_ENVELOPED_DATA);
        out.extend_from_slice(&[0xa0, 0x80, 0x30, 0x80]);
        out.extend_from_slice(VERSION_2);
        out.extend_from_slice(&tlv(SET, &tlv(SEQUENCE, &recipient)));
        out.extend_from_slice(&[0x30, 0x80]);
        out.extend_from_slice(OID_DATA);
        out.extend_from_slice(&tlv(SEQUENCE, &[OID_AES_256_CBC, &tlv(OCTET_STRING, iv)].concat()));
        match layout {
            Layout::Primitive => out.extend_from_slice(&tlv(CONTEXT_0_PRIMITIVE, ciphertext)),
            Layout::Chunks => {
                out.extend_from_slice(&[0xa0, 0x80]);
                for chunk in ciphertext.chunks(20) {
                    out.extend_from_slice(&tlv(OCTET_STRING, chunk));
                }
                out.extend_from_slice(END_OF_CONTENTS);
            }
        }
        out.extend_from_slice(&[0; 8]);
        out
    }

    pub(crate) fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len()).unwrap();
        let mut out = vec![tag];
        match length {
            0..=0x7f => out.push(length as u8),
            0x80..=0xff => out.extend_from_slice(&[0x81, length as u8]),
            _ => {
                out.push(0x82);
                out.extend_from_slice(&length.to_be_bytes());
            }
        }
        [out, value.to_vec()].concat()
    }

    #[test]
    fn a_second_recipient_is_refused() {
        let one = build(&[1; 32], &[2; 256], &[3; 16], &[4; 48], Layout::Primitive);
        assert!(Envelope::parse(&one).is_ok());
        let mut recipient = VERSION_2.to_vec();
        recipient.extend_from_slice(&tlv(SUBJECT_KEY_IDENTIFIER, &[1; 32]));
        recipient.extend_from_slice(RSAES_OAEP_SHA256);
        recipient.extend_from_slice(&tlv(OCTET_STRING, &[2; 256]));
        let set = tlv(SET, &tlv(SEQUENCE, &recipient));
        let two = tlv(SET, &[tlv(SEQUENCE, &recipient), tlv(SEQUENCE, &recipient)].concat());
        let at = one.windows(set.len()).position(|window| window == set).unwrap();
        let changed = [&one[..at], &two, &one[at + set.len()..]].concat();
        assert!(matches!(Envelope::parse(&changed), Err(EnvelopeError::Trailing)));
    }

    #[test]
    fn a_length_that_is_not_the_shortest_is_refused() {
        assert!(Reader { rest: &[0x81, 0x7f] }.length().is_err());
        assert!(Reader { rest: &[0x82, 0x00, 0xff] }.length().is_err());
        assert!(Reader { rest: &[0x83, 0x01, 0x00, 0x00] }.length().is_err());
    }

    #[test]
    fn a_primitive_value_of_indefinite_length_is_refused() {
        assert!(Reader { rest: &[0x04, 0x80, 0, 0] }.primitive(OCTET_STRING).is_err());
    }

    #[test]
    fn ciphertext_that_is_not_whole_blocks_is_refused() {
        for length in [0, 15, 17] {
            let bytes = build(&[1; 32], &[2; 256], &[3; 16], &vec![4; length], Layout::Chunks);
            assert!(Envelope::parse(&bytes).is_err(), "{length}");
        }
    }
}
