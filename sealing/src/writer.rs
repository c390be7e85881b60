//! Writing a message, streaming: the header first, then each frame as soon as it is full.
//!
//! ```
//! # use sealing::{SystemRandom, message::{DataKey, EncryptionContext, Suite}, raw_aes::{Keyring, WrappingKey}};
//! # use sealing::writer::{MessageWriter, SealParameters};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut random = SystemRandom::new();
//! let context = EncryptionContext::from_pairs([("subrosa:purpose", "inference")])?;
//! let parameters = SealParameters::begin(Suite::CommitSigned, context, 4_096, &mut random)?;
//! let data_key = DataKey::generate(&mut random)?;
//! let keyring = Keyring::reply(WrappingKey::generate(&mut random)?);
//! let encrypted = keyring.wrap(&data_key, parameters.context(), &mut random)?;
//! let mut writer = MessageWriter::new(parameters, vec![encrypted], &data_key)?;
//! let mut message = writer.header().to_vec();
//! writer.write(b"a question", &mut message)?;
//! writer.finish(&mut message)?;
//! # Ok(()) }
//! ```

use ring::aead::{Aad, LessSafeKey};
use zeroize::Zeroize;

use crate::frame::{Content, Counter, REGULAR_HEAD_LENGTH, SEQUENCE_END, Sequence, TAG_LENGTH};
use crate::message::{
    ContextError, DataKey, EncryptedDataKey, EncryptionContext, MAX_FRAME_LENGTH, MessageId, RESERVED_PREFIX,
    SIGNATURE_KEY, Suite,
};
use crate::random::{Random, RandomError};
use crate::reader::{FORMAT_VERSION, FRAMED};
use crate::schedule::{Schedule, header_tag};
use crate::secret::SecretBytes;
use crate::signature::Signer;

/// What a new message will say of itself, before its data key is encrypted.
///
/// It comes first because the keys that encrypt the data key authenticate the whole [`context`](Self::context), which
/// under 0x0578 holds a public key made here.
pub struct SealParameters {
    suite: Suite,
    message_id: MessageId,
    context: EncryptionContext,
    frame_length: u32,
    signer: Option<Signer>,
}

/// Writes one message.
pub struct MessageWriter {
    header: Vec<u8>,
    message_id: MessageId,
    key: LessSafeKey,
    counter: Counter,
    frame_length: usize,
    /// Plaintext that does not fill a frame yet.
    pending: SecretBytes,
    signer: Option<Signer>,
}

/// What surrounds a frame that was sealed where it lies.
pub struct SealedFrame {
    head: [u8; REGULAR_HEAD_LENGTH],
    tag: [u8; TAG_LENGTH],
}

/// Why a message cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// A context that no message can have.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// A frame length outside what is written.
    #[error("the frame length must be 1 to 16777216, not {0}")]
    FrameLength(u32),
    /// No encrypted data key, or more than the count can say.
    #[error("a message needs 1 to 65535 encrypted data keys, not {0}")]
    EncryptedDataKeys(usize),
    /// A field of an encrypted data key that is too long.
    #[error("a field of an encrypted data key has {0} bytes, at most 65535 fit")]
    EncryptedDataKeyLength(usize),
    /// Not one whole frame to be sealed in place.
    #[error(
        "sealing in place takes exactly one frame of {expected} bytes and nothing waiting; this has {found}, {waiting} wait"
    )]
    NotOneFrame {
        /// Bytes given.
        found: usize,
        /// The frame length.
        expected: usize,
        /// Bytes written before that do not fill a frame yet.
        waiting: usize,
    },
    /// More frames than the format can number.
    #[error("the message has more frames than the format can number; choose longer frames")]
    TooManyFrames,
    /// No randomness.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The cryptographic library refused.
    #[error("the cryptographic library refused to {0}")]
    Refused(&'static str),
}

impl SealParameters {
    /// Decides everything of a header but the encrypted data keys: draws the message id and, for 0x0578, a key pair that
    /// signs this message alone and whose public half joins the context.
    ///
    /// # Errors
    /// [`SealError::Context`] when the context uses a reserved key or gets too long, [`SealError::FrameLength`],
    /// [`SealError::Random`].
    pub fn begin(
        suite: Suite,
        context: EncryptionContext,
        frame_length: u32,
        random: &mut dyn Random,
    ) -> Result<Self, SealError> {
        if !(1..=MAX_FRAME_LENGTH).contains(&frame_length) {
            return Err(SealError::FrameLength(frame_length));
        }
        if let Some((key, _)) = context.iter().find(|(key, _)| key.starts_with(RESERVED_PREFIX)) {
            return Err(ContextError::Reserved(key.to_owned()).into());
        }
        let mut message_id = [0; 32];
        random.fill(&mut message_id)?;
        let mut context = context;
        let signer = if suite.is_signed() {
            let signer = Signer::generate(random).ok_or(SealError::Refused("make a signing key"))?;
            context.insert(SIGNATURE_KEY, signer.public_key())?;
            Some(signer)
        } else {
            None
        };
        Ok(Self { suite, message_id: MessageId::from_bytes(message_id), context, frame_length, signer })
    }

    /// The whole encryption context: give exactly this to whoever encrypts the data key.
    #[must_use]
    pub fn context(&self) -> &EncryptionContext {
        &self.context
    }

    /// The id of the message to be.
    #[must_use]
    pub fn message_id(&self) -> &MessageId {
        &self.message_id
    }

    /// The suite of the message to be.
    #[must_use]
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// The header up to its tag (AWS Encryption SDK developer guide, *Message format*, *Header structure*, version 2).
    fn header_body(&self, keys: &[EncryptedDataKey], commitment: &[u8]) -> Result<Vec<u8>, SealError> {
        let count = u16::try_from(keys.len())
            .ok()
            .filter(|count| *count > 0)
            .ok_or(SealError::EncryptedDataKeys(keys.len()))?;
        let context = self.context.to_bytes();
        let context_length = u16::try_from(context.len()).map_err(|_| ContextError::TooLong)?;
        let mut header = vec![FORMAT_VERSION];
        header.extend_from_slice(&self.suite.id().to_be_bytes());
        header.extend_from_slice(self.message_id.as_bytes());
        header.extend_from_slice(&context_length.to_be_bytes());
        header.extend_from_slice(&context);
        header.extend_from_slice(&count.to_be_bytes());
        for EncryptedDataKey { provider_id, provider_info, ciphertext } in keys {
            for field in [provider_id.as_bytes(), provider_info, ciphertext] {
                let length = u16::try_from(field.len()).map_err(|_| SealError::EncryptedDataKeyLength(field.len()))?;
                header.extend_from_slice(&length.to_be_bytes());
                header.extend_from_slice(field);
            }
        }
        header.push(FRAMED);
        header.extend_from_slice(&self.frame_length.to_be_bytes());
        header.extend_from_slice(commitment);
        Ok(header)
    }
}

impl SealedFrame {
    /// Goes out before the frame.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// Goes out after the frame.
    #[must_use]
    pub fn tag(&self) -> &[u8] {
        &self.tag
    }
}

impl MessageWriter {
    /// A writer of the message that `parameters` describe. `encrypted_data_keys` all hold `data_key`, under the
    /// parameters' whole context.
    ///
    /// # Errors
    /// [`SealError::EncryptedDataKeys`] for none, [`SealError::EncryptedDataKeyLength`].
    pub fn new(
        parameters: SealParameters,
        encrypted_data_keys: Vec<EncryptedDataKey>,
        data_key: &DataKey,
    ) -> Result<Self, SealError> {
        let schedule = Schedule::derive(parameters.suite, &parameters.message_id, data_key)
            .map_err(|_| SealError::Refused("derive keys"))?;
        let mut header = parameters.header_body(&encrypted_data_keys, &schedule.commitment)?;
        let tag = header_tag(&schedule.content_key, &header).map_err(|_| SealError::Refused("seal the header"))?;
        header.extend_from_slice(&tag);
        let SealParameters { suite: _, message_id, context: _, frame_length, mut signer } = parameters;
        if let Some(signer) = &mut signer {
            signer.update(&header);
        }
        let frame_length = usize::try_from(frame_length).map_err(|_| SealError::FrameLength(frame_length))?;
        Ok(Self {
            header,
            message_id,
            key: schedule.content_key,
            counter: Counter::new(),
            frame_length,
            pending: SecretBytes::new(),
            signer,
        })
    }

    /// The header: the first bytes of the message.
    #[must_use]
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// The id of this message.
    #[must_use]
    pub fn message_id(&self) -> &MessageId {
        &self.message_id
    }

    /// Takes plaintext and appends to `out` every frame that it fills; the rest waits. Whole frames' worth of plaintext is
    /// copied once, into `out`, and sealed there.
    ///
    /// # Errors
    /// [`SealError::TooManyFrames`]. `out` holds only whole frames then, and the message can no longer be finished well.
    pub fn write(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
        let mut rest = plaintext;
        if !self.pending.is_empty() {
            let missing = self.frame_length.saturating_sub(self.pending.len());
            let (now, later) = rest.split_at_checked(missing).unwrap_or((rest, &[]));
            self.pending.extend(now);
            rest = later;
            if self.pending.len() < self.frame_length {
                return Ok(());
            }
            let full = std::mem::take(&mut self.pending);
            self.regular(full.as_bytes(), out)?;
        }
        let mut frames = rest.chunks_exact(self.frame_length);
        frames.by_ref().try_for_each(|frame| self.regular(frame, out))?;
        self.pending.extend(frames.remainder());
        Ok(())
    }

    /// Seals one whole frame where it lies, without a copy: what goes out is [`SealedFrame::head`], `frame`,
    /// [`SealedFrame::tag`].
    ///
    /// # Errors
    /// [`SealError::NotOneFrame`] when `frame` has not exactly the frame length, or plaintext from
    /// [`write`](Self::write) waits to go out first; [`SealError::TooManyFrames`]. `frame` is unchanged then.
    pub fn seal_in_place(&mut self, frame: &mut [u8]) -> Result<SealedFrame, SealError> {
        let (found, expected) = (frame.len(), self.frame_length);
        if found != expected || !self.pending.is_empty() {
            return Err(SealError::NotOneFrame { found, expected, waiting: self.pending.len() });
        }
        let sequence = self.counter.regular().map_err(|_| SealError::TooManyFrames)?;
        let head = regular_head(sequence);
        let aad = Aad::from(Content::Regular.aad(&self.message_id, sequence, found));
        let Ok(tag) = self.key.seal_in_place_separate_tag(sequence.nonce(), aad, frame) else {
            frame.zeroize();
            return Err(SealError::Refused("seal a frame"));
        };
        let tag: [u8; TAG_LENGTH] = tag.as_ref().try_into().map_err(|_| SealError::Refused("seal a frame"))?;
        if let Some(signer) = &mut self.signer {
            [&head[..], frame, &tag].iter().for_each(|part| signer.update(part));
        }
        Ok(SealedFrame { head, tag })
    }

    /// Appends the final frame, which may be empty, and under 0x0578 the signature.
    ///
    /// # Errors
    /// [`SealError::Refused`] when the signature cannot be made.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), SealError> {
        let sequence = self.counter.last();
        let start = out.len();
        let length = u32::try_from(self.pending.len()).map_err(|_| SealError::TooManyFrames)?;
        out.extend_from_slice(&SEQUENCE_END);
        out.extend_from_slice(&sequence.to_bytes());
        out.extend_from_slice(&sequence.iv());
        out.extend_from_slice(&length.to_be_bytes());
        seal(&self.key, &self.message_id, Content::Final, sequence, self.pending.as_bytes(), out)?;
        if let Some(mut signer) = self.signer.take() {
            signer.update(out.get(start..).unwrap_or_default());
            let signature = signer.sign().ok_or(SealError::Refused("sign the message"))?;
            let length = u16::try_from(signature.len()).map_err(|_| SealError::Refused("sign the message"))?;
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(&signature);
        }
        Ok(())
    }

    fn regular(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
        let sequence = self.counter.regular().map_err(|_| SealError::TooManyFrames)?;
        let start = out.len();
        out.extend_from_slice(&regular_head(sequence));
        seal(&self.key, &self.message_id, Content::Regular, sequence, plaintext, out)?;
        if let Some(signer) = &mut self.signer {
            signer.update(out.get(start..).unwrap_or_default());
        }
        Ok(())
    }
}

/// Sequence number, IV.
fn regular_head(sequence: Sequence) -> [u8; REGULAR_HEAD_LENGTH] {
    let mut head = [0; REGULAR_HEAD_LENGTH];
    head.iter_mut().zip(sequence.to_bytes().into_iter().chain(sequence.iv())).for_each(|(to, from)| *to = from);
    head
}

/// Appends the sealed plaintext and its tag to `out`. Room is made first, so that no plaintext is ever left in an
/// allocation that was given back.
fn seal(
    key: &LessSafeKey,
    message: &MessageId,
    content: Content,
    sequence: Sequence,
    plaintext: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), SealError> {
    let aad = content.aad(message, sequence, plaintext.len());
    out.reserve(plaintext.len().saturating_add(TAG_LENGTH));
    let start = out.len();
    out.extend_from_slice(plaintext);
    let place = out.get_mut(start..).unwrap_or_default();
    match key.seal_in_place_separate_tag(sequence.nonce(), Aad::from(aad), place) {
        Ok(tag) => {
            out.extend_from_slice(tag.as_ref());
            Ok(())
        }
        Err(ring::error::Unspecified) => {
            place.zeroize();
            out.truncate(start);
            Err(SealError::Refused("seal a frame"))
        }
    }
}
