//! The encryption context: what a message says about itself in the clear, authenticated.

use std::collections::BTreeMap;

/// The key under which a signed message carries its signature's public key.
pub const SIGNATURE_KEY: &str = "aws-crypto-public-key";

/// "The prefix `aws-crypto-` is reserved" (AWS Encryption SDK developer guide, *Encryption context*).
pub const RESERVED_PREFIX: &str = "aws-crypto-";

/// Pairs of text, each key once, in one order: that of the UTF-8 bytes of the keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct EncryptionContext(BTreeMap<String, String>);

/// What is wrong with an encryption context.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// The same key twice.
    #[error("the encryption context has the key {0:?} twice")]
    DuplicateKey(String),
    /// Keys that do not ascend: not the one form that is written.
    #[error("the keys of the encryption context are not in ascending order")]
    NotSorted,
    /// An empty key.
    #[error("the encryption context has an empty key")]
    EmptyKey,
    /// Not UTF-8.
    #[error("the encryption context is not UTF-8")]
    NotUtf8,
    /// A count of zero, which is written as no context at all.
    #[error("the encryption context says that it has no pairs; an empty one is written as zero bytes")]
    ZeroCount,
    /// The lengths inside do not add up to the length of the whole.
    #[error("the lengths inside the encryption context do not add up to {0} bytes")]
    Lengths(usize),
    /// More than its two-byte length can say.
    #[error("the encryption context is longer than 65535 bytes")]
    TooLong,
    /// A key of the prefix that the format keeps for itself.
    #[error("keys that begin with aws-crypto- are reserved, {0:?} is one")]
    Reserved(String),
}

impl EncryptionContext {
    /// An empty context.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The context of these pairs.
    ///
    /// # Errors
    /// [`ContextError`] as for [`insert`](Self::insert).
    pub fn from_pairs<K: Into<String>, V: Into<String>>(
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, ContextError> {
        let mut context = Self::new();
        pairs.into_iter().try_for_each(|(key, value)| context.insert(key, value))?;
        Ok(context)
    }

    /// Adds a pair.
    ///
    /// # Errors
    /// [`ContextError`] when the key is empty or there already, or the whole would no longer fit a header.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<String>) -> Result<(), ContextError> {
        let (key, value) = (key.into(), value.into());
        if key.is_empty() {
            return Err(ContextError::EmptyKey);
        }
        if self.0.contains_key(&key) {
            return Err(ContextError::DuplicateKey(key));
        }
        let count = 2_usize;
        let length = self.iter().chain([(key.as_str(), value.as_str())]).fold(count, |sum, (key, value)| {
            sum.saturating_add(4).saturating_add(key.len()).saturating_add(value.len())
        });
        if length > usize::from(u16::MAX) {
            return Err(ContextError::TooLong);
        }
        self.0.insert(key, value);
        Ok(())
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// All pairs, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The pairs as a map.
    #[must_use]
    pub fn as_map(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// How many pairs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one serialised form: nothing for an empty context; else the count, then each key and value after its length,
    /// in ascending order of the keys' UTF-8 bytes.
    ///
    /// "The key-value pairs are sorted, in ascending order, by UTF-8 encoded ... key" (AWS Encryption SDK developer
    /// guide, *Message format*, *AAD*).
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.is_empty() {
            return bytes;
        }
        bytes.extend_from_slice(&length_bytes(self.len()));
        for (key, value) in self.iter() {
            for text in [key, value] {
                bytes.extend_from_slice(&length_bytes(text.len()));
                bytes.extend_from_slice(text.as_bytes());
            }
        }
        bytes
    }

    /// Reads the serialised form, and only that: `parse(b)?.to_bytes() == b`.
    ///
    /// # Errors
    /// [`ContextError`] for anything that [`to_bytes`](Self::to_bytes) would not have written.
    pub fn parse(bytes: &[u8]) -> Result<Self, ContextError> {
        let mut context = Self::new();
        if bytes.is_empty() {
            return Ok(context);
        }
        let lengths = || ContextError::Lengths(bytes.len());
        let (count, mut rest) = bytes.split_first_chunk().ok_or_else(lengths)?;
        let count = u16::from_be_bytes(*count);
        if count == 0 {
            return Err(ContextError::ZeroCount);
        }
        for _ in 0..count {
            let key = text(&mut rest).ok_or_else(lengths)?.map_err(|_| ContextError::NotUtf8)?;
            let value = text(&mut rest).ok_or_else(lengths)?.map_err(|_| ContextError::NotUtf8)?;
            if context.0.last_key_value().is_some_and(|(last, _)| key < last.as_str()) {
                return Err(ContextError::NotSorted);
            }
            context.insert(key, value)?;
        }
        if rest.is_empty() { Ok(context) } else { Err(lengths()) }
    }
}

/// A text after its two-byte length; `None` when the bytes end before it does.
fn text<'a>(rest: &mut &'a [u8]) -> Option<Result<&'a str, std::str::Utf8Error>> {
    let (length, after) = rest.split_first_chunk()?;
    let (text, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    *rest = after;
    Some(std::str::from_utf8(text))
}

/// Two bytes of length. [`EncryptionContext::insert`] lets nothing longer in.
fn length_bytes(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::{ContextError, EncryptionContext};

    #[test]
    fn an_empty_context_is_zero_bytes() {
        assert_eq!(EncryptionContext::new().to_bytes(), b"");
        assert_eq!(EncryptionContext::parse(b""), Ok(EncryptionContext::new()));
        assert_eq!(EncryptionContext::parse(&[0, 0]), Err(ContextError::ZeroCount));
    }

    #[test]
    fn pairs_are_written_in_the_order_of_their_keys_bytes() {
        let context = EncryptionContext::from_pairs([("b", "1"), ("ä", "3"), ("a", "2")]).unwrap();
        assert_eq!(context.to_bytes(), b"\0\x03\0\x01a\0\x012\0\x01b\0\x011\0\x02\xc3\xa4\0\x013");
        assert_eq!(EncryptionContext::parse(&context.to_bytes()), Ok(context));
    }

    #[test]
    fn every_other_form_of_a_context_is_refused() {
        for (bytes, error) in [
            (&b"\0\x02\0\x01b\0\0\0\x01a\0\0"[..], ContextError::NotSorted),
            (b"\0\x02\0\x01a\0\0\0\x01a\0\x011", ContextError::DuplicateKey("a".into())),
            (b"\0\x01\0\0\0\0", ContextError::EmptyKey),
            (b"\0\x01\0\x01\xff\0\0", ContextError::NotUtf8),
            (b"\0\x01\0\x01a\0\0\0", ContextError::Lengths(8)),
            (b"\0\x02\0\x01a\0\0", ContextError::Lengths(7)),
            (b"\0", ContextError::Lengths(1)),
        ] {
            assert_eq!(EncryptionContext::parse(bytes), Err(error));
        }
    }

    #[test]
    fn a_context_that_no_header_can_hold_is_refused() {
        let mut context = EncryptionContext::new();
        assert_eq!(context.insert("a", "x".repeat(65_530)), Err(ContextError::TooLong));
        assert_eq!(context.insert("a", "x".repeat(65_528)), Ok(()));
        assert_eq!(context.insert("b", ""), Err(ContextError::TooLong));
    }
}
