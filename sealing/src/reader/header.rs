//! The header: every length checked as soon as it has arrived, nothing believed until it is authenticated.

use subtle::ConstantTimeEq;

use super::body::BodyReader;
use super::error::OpenError;
use crate::frame::TAG_LENGTH;
use crate::message::{
    ContextError, DataKey, EncryptedDataKey, EncryptionContext, Limits, MessageId, SIGNATURE_KEY, Suite,
};
use crate::schedule::{COMMITMENT_LENGTH, Schedule, header_tag};
use crate::signature::{COMPRESSED_POINT_LENGTH, Verifier, public_key};

/// Collects the bytes of a header. Give it what arrives until it is [`Progress::Done`].
pub struct HeaderReader {
    limits: Limits,
    arrived: Vec<u8>,
    /// How many bytes must be there before parsing can get further than it has got.
    needed: usize,
}

/// Whether the header is whole.
pub enum Progress {
    /// It is not; all that was given has been taken.
    More(HeaderReader),
    /// It is; what was not part of it has been left.
    Done(UnverifiedHeader),
}

/// What a header says. From [`BodyReader::header`] it is authenticated; from [`UnverifiedHeader`] it is a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    suite: Suite,
    message_id: MessageId,
    context: EncryptionContext,
    encrypted_data_keys: Vec<EncryptedDataKey>,
    framing: Framing,
}

/// How the content is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Into frames of exactly this many bytes, the last of at most as many.
    Framed(u32),
    /// Not at all (legacy): one block of at most the bytes that [`Limits::unframed`] allows.
    Unframed {
        /// The reader's limit.
        at_most: u32,
    },
}

/// A whole header that nobody has vouched for: enough to find the data key, not to act upon.
pub struct UnverifiedHeader {
    header: Header,
    /// As it arrived, tag included: what is authenticated and signed are bytes, not their meaning.
    bytes: Vec<u8>,
    commitment: [u8; COMMITMENT_LENGTH],
    signature_key: Option<[u8; COMPRESSED_POINT_LENGTH]>,
}

/// Why a header is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Another version of the format, or no message at all.
    #[error("expected message format version 2, found {0}")]
    Version(u8),
    /// A suite without key commitment, or none that exists.
    #[error("algorithm suite {0:#06x} is refused; 0x0478 and 0x0578 are accepted")]
    Suite(u16),
    /// More bytes than the limit.
    #[error("the header is longer than {limit} bytes")]
    TooLong {
        /// The reader's limit.
        limit: usize,
    },
    /// A malformed encryption context.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// No encrypted data key, or more than the limit.
    #[error("the message has {found} encrypted data keys, expected 1 to {limit}")]
    EncryptedDataKeys {
        /// How many the header says there are.
        found: u16,
        /// The reader's limit.
        limit: u16,
    },
    /// A field of an encrypted data key that is too long.
    #[error("the {field} of an encrypted data key has {found} bytes, at most {limit} are accepted")]
    EncryptedDataKeyLength {
        /// Which field.
        field: &'static str,
        /// Its length, as the header says.
        found: u16,
        /// The limit.
        limit: u16,
    },
    /// A provider id that is not text.
    #[error("the provider id of an encrypted data key is not UTF-8")]
    ProviderId,
    /// A content type other than 1 and 2.
    #[error("content type {0} does not exist")]
    ContentType(u8),
    /// A frame length outside the limits.
    #[error("the frame length is {found}, expected {least} to {most}")]
    FrameLength {
        /// What the header says.
        found: u32,
        /// The least that is accepted.
        least: u32,
        /// The most that is accepted.
        most: u32,
    },
    /// Unframed content that was not asked for.
    #[error("the content is not framed; such legacy messages are opened on request only")]
    Unframed,
    /// Unframed content with a frame length.
    #[error("the content is not framed, but its frame length is {0}; it must be zero")]
    UnframedFrameLength(u32),
    /// A signed suite without a key to verify with, an unsigned one with it, or one that is not a key.
    #[error("aws-crypto-public-key must be a compressed P-384 point in base64 under 0x0578, and absent under 0x0478")]
    SignatureKey,
}

impl HeaderReader {
    /// A reader that accepts headers within `limits`.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, arrived: Vec::new(), needed: 1 }
    }

    /// Takes bytes of the header off `input`; what comes after the header stays there.
    ///
    /// # Errors
    /// [`HeaderError`], as soon as the bytes that arrived cannot become an acceptable header.
    pub fn push(mut self, input: &mut &[u8]) -> Result<Progress, HeaderError> {
        loop {
            let missing = self.needed.saturating_sub(self.arrived.len()).min(input.len());
            let (now, later) = input.split_at_checked(missing).unwrap_or((input, &[]));
            self.arrived.extend_from_slice(now);
            *input = later;
            if self.arrived.len() < self.needed {
                return Ok(Progress::More(self));
            }
            match parse(&self.arrived, &self.limits) {
                Ok(parts) => return Ok(Progress::Done(parts.check(self.arrived.clone())?)),
                Err(Stop::Needs(needed)) => self.needed = needed,
                Err(Stop::Refused(error)) => return Err(error),
            }
        }
    }
}

impl Header {
    /// The algorithm suite.
    #[must_use]
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// The message id.
    #[must_use]
    pub fn message_id(&self) -> &MessageId {
        &self.message_id
    }

    /// The encryption context, with the signature's public key if there is one.
    #[must_use]
    pub fn context(&self) -> &EncryptionContext {
        &self.context
    }

    /// The data key under one or more keys: at least one.
    #[must_use]
    pub fn encrypted_data_keys(&self) -> &[EncryptedDataKey] {
        &self.encrypted_data_keys
    }

    /// How the content is cut.
    #[must_use]
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// The frame length; 0 when the content is not framed.
    #[must_use]
    pub fn frame_length(&self) -> u32 {
        match self.framing {
            Framing::Framed(length) => length,
            Framing::Unframed { .. } => 0,
        }
    }
}

impl UnverifiedHeader {
    /// What the header claims.
    #[must_use]
    pub fn claims(&self) -> &Header {
        &self.header
    }

    /// The algorithm suite that it claims.
    #[must_use]
    pub fn suite(&self) -> Suite {
        self.header.suite
    }

    /// The message id that it claims.
    #[must_use]
    pub fn message_id(&self) -> &MessageId {
        &self.header.message_id
    }

    /// The encryption context that it claims.
    #[must_use]
    pub fn context(&self) -> &EncryptionContext {
        &self.header.context
    }

    /// The encrypted data keys.
    #[must_use]
    pub fn encrypted_data_keys(&self) -> &[EncryptedDataKey] {
        &self.header.encrypted_data_keys
    }

    /// The frame length that it claims; 0 when the content is not framed.
    #[must_use]
    pub fn frame_length(&self) -> u32 {
        self.header.frame_length()
    }

    /// The header as it arrived.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Checks that the header commits to `data_key`, and was written by somebody who knew it.
    ///
    /// # Errors
    /// [`OpenError::Commitment`] for another data key, [`OpenError::Header`] for a changed header.
    pub fn authenticate(self, data_key: &DataKey) -> Result<BodyReader, OpenError> {
        let Self { header, bytes, commitment, signature_key } = self;
        let schedule =
            Schedule::derive(header.suite, &header.message_id, data_key).map_err(|_| OpenError::Commitment)?;
        if !bool::from(schedule.commitment.ct_eq(&commitment)) {
            return Err(OpenError::Commitment);
        }
        let (body, tag) = bytes.split_last_chunk::<TAG_LENGTH>().ok_or(OpenError::Header)?;
        let expected = header_tag(&schedule.content_key, body).map_err(|_| OpenError::Header)?;
        if !bool::from(expected.ct_eq(tag)) {
            return Err(OpenError::Header);
        }
        let verifier = signature_key.map(|key| {
            let mut verifier = Verifier::new(key);
            verifier.update(&bytes);
            verifier
        });
        Ok(BodyReader::new(header, schedule.content_key, verifier))
    }
}

/// The fields of a header, cut but not yet read.
struct Parts<'a> {
    suite: Suite,
    message_id: [u8; 32],
    context: &'a [u8],
    /// Provider id, provider info, ciphertext.
    encrypted_data_keys: Vec<[&'a [u8]; 3]>,
    framing: Framing,
    commitment: [u8; COMMITMENT_LENGTH],
}

enum Stop {
    /// So many bytes in all must be there to get further.
    Needs(usize),
    Refused(HeaderError),
}

impl From<HeaderError> for Stop {
    fn from(error: HeaderError) -> Self {
        Self::Refused(error)
    }
}

/// Cuts a header into its fields, in their order (AWS Encryption SDK developer guide, *Message format*, *Header structure*,
/// version 2).
fn parse<'a>(arrived: &'a [u8], limits: &Limits) -> Result<Parts<'a>, Stop> {
    let mut cursor = Cursor { arrived, at: 0, limit: limits.header };
    let [version] = cursor.array()?;
    if version != FORMAT_VERSION {
        return Err(HeaderError::Version(version).into());
    }
    let suite = cursor.u16()?;
    let suite = Suite::from_id(suite).ok_or(HeaderError::Suite(suite))?;
    let message_id = cursor.array()?;
    let context = cursor.u16()?;
    let context = cursor.take(context.into())?;
    let found = cursor.u16()?;
    let limit = limits.encrypted_data_keys;
    if !(1..=limit).contains(&found) {
        return Err(HeaderError::EncryptedDataKeys { found, limit }.into());
    }
    let mut encrypted_data_keys = Vec::new();
    for _ in 0..found {
        encrypted_data_keys.push([
            cursor.field("provider id", MAX_PROVIDER_ID_LENGTH)?,
            cursor.field("provider info", MAX_PROVIDER_INFO_LENGTH)?,
            cursor.field("ciphertext", limits.encrypted_data_key)?,
        ]);
    }
    let [content_type] = cursor.array()?;
    let frame_length = u32::from_be_bytes(cursor.array()?);
    let framing = framing(content_type, frame_length, limits)?;
    let commitment = cursor.array()?;
    cursor.take(TAG_LENGTH)?;
    Ok(Parts { suite, message_id, context, encrypted_data_keys, framing, commitment })
}

fn framing(content_type: u8, frame_length: u32, limits: &Limits) -> Result<Framing, HeaderError> {
    match (content_type, limits.unframed) {
        (FRAMED, _) if frame_length == 0 || !limits.frame_length.contains(&frame_length) => {
            let (least, most) = (*limits.frame_length.start(), *limits.frame_length.end());
            Err(HeaderError::FrameLength { found: frame_length, least, most })
        }
        (FRAMED, _) => Ok(Framing::Framed(frame_length)),
        // "For nonframed data, this value must be 0" (*Header structure*, *Frame length*).
        (UNFRAMED, _) if frame_length != 0 => Err(HeaderError::UnframedFrameLength(frame_length)),
        (UNFRAMED, Some(at_most)) => Ok(Framing::Unframed { at_most }),
        (UNFRAMED, None) => Err(HeaderError::Unframed),
        (other, _) => Err(HeaderError::ContentType(other)),
    }
}

impl Parts<'_> {
    /// Reads the fields that have an inside.
    fn check(self, bytes: Vec<u8>) -> Result<UnverifiedHeader, HeaderError> {
        let Self { suite, message_id, context, encrypted_data_keys, framing, commitment } = self;
        let context = EncryptionContext::parse(context)?;
        let signature_key = match (suite.is_signed(), context.get(SIGNATURE_KEY)) {
            (true, Some(text)) => Some(public_key(text).ok_or(HeaderError::SignatureKey)?),
            (false, None) => None,
            (true, None) | (false, Some(_)) => return Err(HeaderError::SignatureKey),
        };
        let encrypted_data_keys = encrypted_data_keys
            .into_iter()
            .map(|[provider_id, provider_info, ciphertext]| {
                Ok(EncryptedDataKey {
                    provider_id: str::from_utf8(provider_id).map_err(|_| HeaderError::ProviderId)?.to_owned(),
                    provider_info: provider_info.to_vec(),
                    ciphertext: ciphertext.to_vec(),
                })
            })
            .collect::<Result<_, HeaderError>>()?;
        let message_id = MessageId::from_bytes(message_id);
        let header = Header { suite, message_id, context, encrypted_data_keys, framing };
        Ok(UnverifiedHeader { header, bytes, commitment, signature_key })
    }
}

struct Cursor<'a> {
    arrived: &'a [u8],
    at: usize,
    limit: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Stop> {
        let end = self.at.saturating_add(length);
        if end > self.limit {
            return Err(HeaderError::TooLong { limit: self.limit }.into());
        }
        let taken = self.arrived.get(self.at..end).ok_or(Stop::Needs(end))?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| Stop::Needs(self.at.saturating_add(N)))
    }

    fn u16(&mut self) -> Result<u16, Stop> {
        self.array().map(u16::from_be_bytes)
    }

    fn field(&mut self, field: &'static str, limit: u16) -> Result<&'a [u8], Stop> {
        let found = self.u16()?;
        if found > limit {
            return Err(HeaderError::EncryptedDataKeyLength { field, found, limit }.into());
        }
        self.take(found.into())
    }
}

pub(crate) const FORMAT_VERSION: u8 = 2;

/// Content type 1: "Nonframed data".
const UNFRAMED: u8 = 1;

/// Content type 2: "Framed data".
pub(crate) const FRAMED: u8 = 2;

/// Ours. `aws-kms`, or the namespace of a raw keyring.
const MAX_PROVIDER_ID_LENGTH: u16 = 128;

/// "KeyId: ... Maximum length of 2048" (KMS API reference, *Decrypt*); key names of raw keyrings are shorter.
const MAX_PROVIDER_INFO_LENGTH: u16 = 2_048;
