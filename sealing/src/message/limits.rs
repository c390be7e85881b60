//! Limits on what a reader accepts, checked before anything is allocated.

use std::ops::RangeInclusive;

/// What a reader accepts of a header. Each limit is checked as soon as the length in question has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the header in all, with its tag.
    pub header: usize,
    /// Number of encrypted data keys.
    pub encrypted_data_keys: u16,
    /// Bytes of the ciphertext of one encrypted data key.
    pub encrypted_data_key: u16,
    /// Bytes of plaintext in one frame.
    pub frame_length: RangeInclusive<u32>,
    /// `None` refuses unframed content. `Some(bytes)` reads it when it is not longer: all of it is held in memory,
    /// because nothing of it is authenticated before its end.
    pub unframed: Option<u32>,
}

impl Limits {
    /// A sealed request (`docs/PROTOCOL.md`, section 4).
    #[must_use]
    pub fn request() -> Self {
        Self {
            header: 8_192,
            encrypted_data_keys: 4,
            encrypted_data_key: 6_144,
            frame_length: 128..=65_536,
            unframed: None,
        }
    }

    /// A sealed answer: 512 bytes in streams, 4,096 otherwise (`docs/PROTOCOL.md`, section 4).
    #[must_use]
    pub fn answer() -> Self {
        Self { frame_length: 128..=65_536, ..Self::request() }
    }

    /// A sealed model pack (`docs/PROTOCOL.md`, section 4: "at most 1 MiB").
    #[must_use]
    pub fn model_pack() -> Self {
        Self { frame_length: 128..=1_048_576, ..Self::request() }
    }

    /// A file of anybody's making, for a command line: what the stock SDKs write by default and well beyond.
    #[must_use]
    pub fn file() -> Self {
        Self { header: 65_536, encrypted_data_keys: 64, frame_length: 1..=MAX_FRAME_LENGTH, ..Self::request() }
    }
}

/// The longest frame that is written here, and that [`Limits::file`] reads: 16 MiB. The format itself allows 4 GiB.
pub const MAX_FRAME_LENGTH: u32 = 16 * 1024 * 1024;

/// "The default frame length is 4,096 bytes" (AWS Encryption SDK developer guide, *Framed data*).
pub const DEFAULT_FRAME_LENGTH: u32 = 4_096;
