//! Why a message does not open.

use super::header::HeaderError;

/// Why a message does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// A header that is malformed or outside the limits.
    #[error(transparent)]
    Malformed(#[from] HeaderError),
    /// The caller had no data key for this header.
    #[error("there is no data key for this message")]
    Key,
    /// The header commits to another data key.
    #[error("the message was not sealed with this data key")]
    Commitment,
    /// The header was changed.
    #[error("the header is not authentic")]
    Header,
    /// A frame out of its place.
    #[error("a frame is missing, repeated or out of order: expected number {expected}, found {found}")]
    Sequence {
        /// The number that comes next.
        expected: u32,
        /// The number that came.
        found: u32,
    },
    /// An IV that is not the frame's number.
    #[error("the IV of frame {0} is not the one of its number")]
    Iv(u32),
    /// A final frame longer than the frame length, or unframed content longer than the limit.
    #[error("the last piece of content is longer than allowed: {found} bytes, at most {most}")]
    Length {
        /// The length it says it has.
        found: u64,
        /// The frame length, or the reader's limit.
        most: u64,
    },
    /// A changed frame.
    #[error("frame {0} is not authentic")]
    Frame(u32),
    /// More frames than the format can number.
    #[error("the message has more frames than the format can number")]
    TooManyFrames,
    /// A footer that says it is longer than any signature.
    #[error("the footer says that the signature has {0} bytes, expected 8 to 104")]
    SignatureLength(u16),
    /// A signature by another key, or of other bytes.
    #[error("the signature is not good")]
    Signature,
    /// Bytes after the end.
    #[error("there are bytes after the end of the message")]
    TrailingBytes,
    /// The end did not come.
    #[error("the message is incomplete: its end did not come")]
    Incomplete,
    /// A message that was refused before.
    #[error("the message was already refused")]
    AlreadyRefused,
    /// More plaintext than the caller wants to hold.
    #[error("the message holds more than {most} bytes")]
    TooMuchPlaintext {
        /// The caller's limit.
        most: usize,
    },
    /// The end of another message, or frames left out.
    #[error("what was held is not the whole message that ended")]
    NotThisMessage,
}
