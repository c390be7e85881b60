//! The keyset: everything that a client which verifies a document relies on, bound by one digest in its `user_data`.
//!
//! Normative text: `docs/PROTOCOL.md`, section 7. One keyset has one encoding: a CBOR map of nine text keys in the order
//! of the fields below, shortest heads, absent values null, models in ascending order of their names.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use serde_bytes::Bytes;
use subtle::ConstantTimeEq;

use crate::Verified;
use crate::cbor::{CborError, Reader};
use crate::measurement::sha384;

/// What an enclave publishes beside its attestation document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyset {
    /// Format of the keyset: 1.
    pub version: u64,
    /// The key configuration of Oblivious HTTP (RFC 9458, section 3), if the enclave offers it.
    pub ohttp_key_configuration: Option<Vec<u8>>,
    /// The public key that signs receipts, if the enclave offers them.
    pub receipt_key: Option<Vec<u8>>,
    /// SHA-384 of the manifest of each model, by the name that requests use.
    pub models: BTreeMap<String, [u8; 48]>,
    /// SHA-384 of the configuration of the guardrails, if there are any.
    pub guardrails: Option<[u8; 48]>,
    /// SHA-384 of the configuration document that was measured into PCR17.
    pub configuration: [u8; 48],
    /// The release number of the image. Clients keep a floor.
    pub release: u64,
    /// What the enclave found when it looked at the policy of the model pack's key.
    pub model_key_policy: Option<String>,
    /// Unix seconds after which a client does not rely on this keyset any more.
    pub not_after: u64,
}

impl Keyset {
    /// The one encoding.
    #[must_use]
    pub fn to_cbor(&self) -> Vec<u8> {
        let Self {
            version,
            ohttp_key_configuration,
            receipt_key,
            models,
            guardrails,
            configuration,
            release,
            model_key_policy,
            not_after,
        } = self;
        let wire = Wire {
            version: *version,
            ohttp_key_configuration: ohttp_key_configuration.as_deref().map(Bytes::new),
            receipt_key: receipt_key.as_deref().map(Bytes::new),
            models,
            guardrails: guardrails.as_ref().map(|digest| Bytes::new(digest)),
            configuration: Bytes::new(configuration),
            release: *release,
            model_key_policy: model_key_policy.as_deref(),
            not_after: *not_after,
        };
        #[expect(
            clippy::expect_used,
            reason = "integers, text, bytes and a map of text, into memory: nothing can fail"
        )]
        serde_cbor::to_vec(&wire).expect("a keyset is plain data")
    }

    /// Reads the one encoding, and refuses every other.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeysetError> {
        if bytes.len() > MAX_KEYSET {
            return Err(KeysetError::TooLarge { found: bytes.len() });
        }
        let mut reader = Reader::new(bytes);
        let count = reader.map(FIELD_COUNT)?;
        if count != FIELD_COUNT {
            return Err(KeysetError::FieldCount { found: count });
        }
        let version = field(&mut reader, "version", Reader::unsigned)?;
        if version != VERSION {
            return Err(KeysetError::Version { found: version });
        }
        let keyset = Self {
            version,
            ohttp_key_configuration: field(&mut reader, "ohttp_key_configuration", |reader| {
                reader.optional_bytes(MAX_KEY)
            })?
            .map(<[u8]>::to_vec),
            receipt_key: field(&mut reader, "receipt_key", |reader| reader.optional_bytes(MAX_KEY))?
                .map(<[u8]>::to_vec),
            models: models(&mut reader)?,
            guardrails: field(&mut reader, "guardrails", |reader| reader.optional_bytes(DIGEST_LENGTH))?
                .map(to_digest)
                .transpose()?,
            configuration: to_digest(field(&mut reader, "configuration", |reader| reader.bytes(DIGEST_LENGTH))?)?,
            release: field(&mut reader, "release", Reader::unsigned)?,
            model_key_policy: field(&mut reader, "model_key_policy", |reader| {
                if reader.is_null() { Ok(None) } else { reader.text(MAX_TEXT).map(Some) }
            })?
            .map(str::to_owned),
            not_after: field(&mut reader, "not_after", Reader::unsigned)?,
        };
        reader.end()?;
        Ok(keyset)
    }

    /// What `user_data` of a client's document holds.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.to_cbor())
    }
}

/// Reads a keyset that a verified document binds: `user_data` is its digest and there is no `public_key`.
pub fn of_verified(verified: &Verified, keyset: &[u8]) -> Result<Keyset, KeysetError> {
    let document = verified.document();
    // Only a document for KMS has one, and such a document was not made for a client.
    if document.public_key().is_some() {
        return Err(KeysetError::ForeignPurpose);
    }
    let bound = document.user_data().ok_or(KeysetError::NotBound)?;
    if !bool::from(Digest::of(keyset).0.as_slice().ct_eq(bound)) {
        return Err(KeysetError::NotBound);
    }
    Keyset::parse(keyset)
}

/// SHA-384("subrosa keyset v1" || keyset).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest([u8; DIGEST_LENGTH]);

impl Digest {
    /// The digest of an encoded keyset.
    #[must_use]
    pub fn of(keyset: &[u8]) -> Self {
        Self(sha384(&[LABEL, keyset]))
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; DIGEST_LENGTH] {
        &self.0
    }
}

#[derive(Serialize)]
struct Wire<'a> {
    version: u64,
    ohttp_key_configuration: Option<&'a Bytes>,
    receipt_key: Option<&'a Bytes>,
    #[serde(serialize_with = "serialize_models")]
    models: &'a BTreeMap<String, [u8; 48]>,
    guardrails: Option<&'a Bytes>,
    configuration: &'a Bytes,
    release: u64,
    model_key_policy: Option<&'a str>,
    not_after: u64,
}

fn serialize_models<S: Serializer>(models: &&BTreeMap<String, [u8; 48]>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(models.iter().map(|(name, digest)| (name, Bytes::new(digest))))
}

fn field<'a, T>(
    reader: &mut Reader<'a>,
    name: &'static str,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, CborError>,
) -> Result<T, KeysetError> {
    if reader.text(MAX_NAME)? != name {
        return Err(KeysetError::Field { expected: name });
    }
    Ok(read(reader)?)
}

fn models(reader: &mut Reader<'_>) -> Result<BTreeMap<String, [u8; 48]>, KeysetError> {
    let count = field(reader, "models", |reader| reader.map(MAX_MODELS))?;
    let mut models = BTreeMap::new();
    for _ in 0..count {
        let name = reader.text(MAX_TEXT)?;
        if models.last_key_value().is_some_and(|(last, _): (&String, _)| last.as_str() >= name) {
            return Err(KeysetError::ModelOrder);
        }
        models.insert(name.to_owned(), to_digest(reader.bytes(DIGEST_LENGTH)?)?);
    }
    Ok(models)
}

fn to_digest(bytes: &[u8]) -> Result<[u8; DIGEST_LENGTH], KeysetError> {
    bytes.try_into().map_err(|_| KeysetError::DigestLength { found: bytes.len() })
}

/// Why bytes are not the keyset that a client may rely on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeysetError {
    /// More bytes than a keyset may have.
    #[error("the keyset has {found} bytes, at most {MAX_KEYSET} are allowed")]
    TooLarge {
        /// Bytes given.
        found: usize,
    },
    /// Not strict CBOR of the expected types and lengths.
    #[error("malformed keyset: {0}")]
    Cbor(#[from] CborError),
    /// A version that this reader does not know.
    #[error("the keyset has version {found}, expected {VERSION}")]
    Version {
        /// Its version.
        found: u64,
    },
    /// Too few fields.
    #[error("the keyset has {found} fields, expected {FIELD_COUNT}")]
    FieldCount {
        /// How many.
        found: usize,
    },
    /// Another field than expected.
    #[error("field {expected} is not in its place in the keyset")]
    Field {
        /// The field that belongs here.
        expected: &'static str,
    },
    /// Names of models twice or out of order.
    #[error("the models of the keyset are not in ascending order of their names")]
    ModelOrder,
    /// A digest of the wrong length.
    #[error("a digest in the keyset has {found} bytes, expected 48")]
    DigestLength {
        /// Its length.
        found: usize,
    },
    /// The document binds another keyset, or none.
    #[error("the attestation document does not bind this keyset")]
    NotBound,
    /// The document was made for KMS.
    #[error("the attestation document has a public key: it was not made for a client")]
    ForeignPurpose,
}

/// Domain separation of [`Digest`].
const LABEL: &[u8] = b"subrosa keyset v1";
const VERSION: u64 = 1;
const FIELD_COUNT: usize = 9;
const DIGEST_LENGTH: usize = 48;
/// Limits of `docs/PROTOCOL.md` section 7.
const MAX_KEYSET: usize = 65_536;
const MAX_NAME: usize = 32;
const MAX_KEY: usize = 8192;
const MAX_MODELS: usize = 64;
const MAX_TEXT: usize = 8192;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keyset() -> Keyset {
        Keyset {
            version: 1,
            ohttp_key_configuration: Some(vec![1, 2, 3]),
            receipt_key: None,
            models: BTreeMap::from([("b".to_owned(), [2; 48]), ("a".to_owned(), [1; 48])]),
            guardrails: Some([3; 48]),
            configuration: [4; 48],
            release: 7,
            model_key_policy: Some("locked".to_owned()),
            not_after: 1_800_000_000,
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        assert_eq!(Keyset::parse(&keyset().to_cbor()), Ok(keyset()));
        let bare = Keyset {
            ohttp_key_configuration: None,
            models: BTreeMap::new(),
            guardrails: None,
            model_key_policy: None,
            ..keyset()
        };
        assert_eq!(Keyset::parse(&bare.to_cbor()), Ok(bare));
    }

    #[test]
    fn a_keyset_has_one_encoding() {
        let bytes = keyset().to_cbor();
        // Every byte string that parses is the one that would be written.
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                if let Ok(parsed) = Keyset::parse(&changed) {
                    assert_eq!(parsed.to_cbor(), changed);
                    assert_ne!(parsed.digest(), keyset().digest());
                }
            }
            assert!(Keyset::parse(&bytes[..at]).is_err());
        }
        assert_eq!(
            Keyset::parse(&[&bytes[..], &[0]].concat()),
            Err(KeysetError::Cbor(CborError::Trailing { count: 1 }))
        );
        assert_eq!(Keyset::parse(&[0; MAX_KEYSET + 1]), Err(KeysetError::TooLarge { found: MAX_KEYSET + 1 }));
    }

    #[test]
    fn models_out_of_order_or_twice_are_refused() {
        for (first, second) in [(b"b", b"a"), (b"a", b"a")] {
            let mut bytes = keyset().to_cbor();
            let at = bytes.windows(2).position(|window| window == [0x61, b'a']).unwrap();
            bytes[at + 1] = first[0];
            let at = at + bytes[at + 2..].windows(2).position(|window| window == [0x61, b'b']).unwrap() + 2;
            bytes[at + 1] = second[0];
            assert_eq!(Keyset::parse(&bytes), Err(KeysetError::ModelOrder));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Keyset::parse(&bytes);
        }
    }
}
