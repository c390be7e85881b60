//! Evidence as it is stored or served: an attestation document, with or without the keyset that it binds.
//!
//! Accepted are the raw document, its base64 or its hex, and `{"document": base64, "keyset": base64}`, the answer of
//! `GET /v1/attestation` (docs/PROTOCOL.md section 2). Which of them it is, the bytes say without doubt: a raw document
//! always holds bytes above 127 (it begins 84 44 A1, or D2 84), an encoded one never does.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use crate::transport::MAX_EVIDENCE;

/// Bytes that claim to be a document, and perhaps a keyset. Nothing has been checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The COSE_Sign1 bytes.
    pub document: Vec<u8>,
    /// The CBOR bytes.
    pub keyset: Option<Vec<u8>>,
}

impl Evidence {
    /// Reads evidence in any of its forms.
    ///
    /// # Errors
    /// When it is empty, too large, or text that is neither JSON of the right shape nor hex nor base64.
    pub fn read(bytes: &[u8]) -> Result<Self, EvidenceError> {
        if bytes.len() > MAX_EVIDENCE {
            return Err(EvidenceError::TooLarge);
        }
        if !bytes.is_ascii() {
            return Ok(Self { document: bytes.to_vec(), keyset: None });
        }
        match bytes.trim_ascii() {
            b"" => Err(EvidenceError::Empty),
            text if text.starts_with(b"{") => Self::read_object(text),
            text => Ok(Self { document: decode(text)?, keyset: None }),
        }
    }

    fn read_object(text: &[u8]) -> Result<Self, EvidenceError> {
        let Object { document, keyset } =
            serde_json::from_slice(text).map_err(|error| EvidenceError::Object(error.to_string()))?;
        Ok(Self {
            document: decode(document.as_bytes())?,
            keyset: keyset.map(|keyset| decode(keyset.as_bytes())).transpose()?,
        })
    }
}

/// Why bytes are not evidence.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// No byte.
    #[error("the evidence is empty")]
    Empty,
    /// More than [`MAX_EVIDENCE`].
    #[error("the evidence is larger than {MAX_EVIDENCE} bytes, which no document is")]
    TooLarge,
    /// JSON of another shape.
    #[error("the evidence is not {{\"document\": base64, \"keyset\": base64}} ({0})")]
    Object(String),
    /// Text in no known encoding.
    #[error("the evidence is text, but neither hex nor base64; give the raw document, or one of these")]
    Encoding,
}

/// Hex if every character is a hex digit (no base64 of a document is: it begins `hE` or `0o`), else base64.
fn decode(text: &[u8]) -> Result<Vec<u8>, EvidenceError> {
    let packed: Vec<u8> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let digits = packed.strip_prefix(b"0x").unwrap_or(&packed);
    if !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit) {
        return hex::decode(digits).map_err(|_| EvidenceError::Encoding);
    }
    let any_padding = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let url_safe = packed.iter().any(|byte| matches!(byte, b'-' | b'_'));
    let alphabet = if url_safe { &alphabet::URL_SAFE } else { &alphabet::STANDARD };
    match GeneralPurpose::new(alphabet, any_padding).decode(&packed) {
        Ok(bytes) if !bytes.is_empty() => Ok(bytes),
        _ => Err(EvidenceError::Encoding),
    }
}

#[derive(Deserialize)]
struct Object {
    document: String,
    keyset: Option<String>,
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

    use super::*;

    const DOCUMENT: &[u8] = &[0x84, 0x44, 0xa1, 0x01, 0x38, 0x22, 0xa0, 0xff, 0xfe];

    #[test]
    fn all_forms_of_a_document_read_the_same() {
        let base64 = STANDARD.encode(DOCUMENT);
        let object = format!("{{\"document\":\"{base64}\",\"keyset\":\"/wA=\"}}\n");
        let folded = format!("{}\n{}\n", &base64[..5], &base64[5..]);
        for text in
            [&base64, &folded, &URL_SAFE_NO_PAD.encode(DOCUMENT), &hex::encode(DOCUMENT), &hex::encode_upper(DOCUMENT)]
        {
            assert_eq!(Evidence::read(text.as_bytes()).unwrap().document, DOCUMENT, "{text}");
        }
        assert_eq!(Evidence::read(DOCUMENT).unwrap().document, DOCUMENT);
        let evidence = Evidence::read(object.as_bytes()).unwrap();
        assert_eq!((evidence.document.as_slice(), evidence.keyset.as_deref()), (DOCUMENT, Some(&[0xff, 0][..])));
    }

    #[test]
    fn text_that_is_no_evidence_is_refused() {
        assert_eq!(Evidence::read(b" \n"), Err(EvidenceError::Empty));
        assert_eq!(Evidence::read(b"hello, world"), Err(EvidenceError::Encoding));
        assert_eq!(Evidence::read(b"abc"), Err(EvidenceError::Encoding));
        assert!(matches!(Evidence::read(b"{\"keyset\":\"\"}"), Err(EvidenceError::Object(_))));
        assert_eq!(Evidence::read(&vec![b'a'; MAX_EVIDENCE + 1]), Err(EvidenceError::TooLarge));
    }
}
