//! What the header of a message says, and the limits on it.

mod context;
mod data_key;
mod limits;

pub use context::{ContextError, EncryptionContext, RESERVED_PREFIX, SIGNATURE_KEY};
pub use data_key::{DataKey, DataKeyLengthError, EncryptedDataKey};
pub use limits::{DEFAULT_FRAME_LENGTH, Limits, MAX_FRAME_LENGTH};

/// The algorithm suites that are read and written: the two that commit to their data key.
///
/// "We recommend using a default algorithm suite ... with key commitment" (AWS Encryption SDK developer guide,
/// *Supported algorithm suites*). Suites without commitment are refused: a message under them can be made to open to
/// different plaintexts under different keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Suite {
    /// 0x0478: AES-256-GCM, HKDF-SHA512, key commitment.
    Commit,
    /// 0x0578: the same, and an ECDSA P-384 signature with SHA-384 over the whole message in a footer.
    CommitSigned,
}

impl Suite {
    /// The two bytes that name the suite in a header.
    #[must_use]
    pub fn id(self) -> u16 {
        match self {
            Self::Commit => 0x0478,
            Self::CommitSigned => 0x0578,
        }
    }

    /// The suite of this id, if it is one of the two.
    #[must_use]
    pub fn from_id(id: u16) -> Option<Self> {
        [Self::Commit, Self::CommitSigned].into_iter().find(|suite| suite.id() == id)
    }

    /// Whether a message under this suite ends in a signature.
    #[must_use]
    pub fn is_signed(self) -> bool {
        self == Self::CommitSigned
    }
}

/// The 32 random bytes that name a message, and salt its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId([u8; 32]);

impl MessageId {
    /// The message id with these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// 64 lower-case hexadecimal digits.
impl std::fmt::Display for MessageId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}
