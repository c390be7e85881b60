//! Holding a whole message back until its end is proven.

use super::body::{BodyReader, End, Provisional};
use super::error::OpenError;
use crate::message::MessageId;
use crate::secret::SecretBytes;

/// Frames of one message, kept where nobody can act on them.
pub struct Held {
    message_id: MessageId,
    most: usize,
    bytes: SecretBytes,
}

/// A whole message, proven to be whole. Wiped on drop; cannot be printed or cloned.
pub struct Plaintext(SecretBytes);

impl Held {
    /// Holds at most `most` bytes of the message that `body` reads.
    #[must_use]
    pub fn new(body: &BodyReader, most: usize) -> Self {
        Self { message_id: *body.header().message_id(), most, bytes: SecretBytes::new() }
    }

    /// Adds the next frame.
    ///
    /// # Errors
    /// [`OpenError::TooMuchPlaintext`] past the limit, [`OpenError::NotThisMessage`] for a frame of another message.
    pub fn add(&mut self, frame: &Provisional<'_>) -> Result<(), OpenError> {
        if *frame.message_id() != self.message_id {
            return Err(OpenError::NotThisMessage);
        }
        if self.bytes.len().saturating_add(frame.as_bytes().len()) > self.most {
            return Err(OpenError::TooMuchPlaintext { most: self.most });
        }
        self.bytes.extend(frame.as_bytes());
        Ok(())
    }

    /// How many bytes are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether none are.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Releases the message, against the proof that it ended here.
    ///
    /// # Errors
    /// [`OpenError::NotThisMessage`] when the proof is another message's, or a frame was not added.
    pub fn confirm(self, end: &End) -> Result<Plaintext, OpenError> {
        if *end.message_id() != self.message_id || u64::try_from(self.bytes.len()) != Ok(end.length()) {
            return Err(OpenError::NotThisMessage);
        }
        Ok(Plaintext(self.bytes))
    }
}

impl Plaintext {
    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}
