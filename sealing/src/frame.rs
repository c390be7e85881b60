//! Sequence numbers, and what of a frame is authenticated beside its content.

use ring::aead::Nonce;

use crate::message::MessageId;

/// The sequence number of one frame. Made by [`Counter`] only, each once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sequence(u32);

/// Counts frames. Its only moves: the next regular frame, or the last.
pub(crate) struct Counter(Sequence);

/// Which of the three forms of content a frame is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Regular,
    Final,
    SingleBlock,
}

/// "The sequence number end is an indicator for the final frame. The value is encoded as the 4 bytes FF FF FF FF"
/// (AWS Encryption SDK developer guide, *Message format*, *Framed data*).
pub(crate) const SEQUENCE_END: [u8; 4] = [0xFF; 4];

/// AES-GCM's IV as both suites use it.
pub(crate) const IV_LENGTH: usize = 12;

/// AES-GCM's tag as both suites use it.
pub(crate) const TAG_LENGTH: usize = 16;

/// What comes before the content of a regular frame: sequence number, IV.
pub(crate) const REGULAR_HEAD_LENGTH: usize = 4 + IV_LENGTH;

/// There is no sequence number for another regular frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exhausted;

impl Counter {
    /// "Frames must start at sequence number 1" (*Message format*, *Framed data*).
    pub(crate) fn new() -> Self {
        Self(Sequence(1))
    }

    /// The number that comes next, without taking it.
    pub(crate) fn next(&self) -> Sequence {
        self.0
    }

    /// Takes the next number for a regular frame. 0xFFFFFFFF marks the end and can be none.
    pub(crate) fn regular(&mut self) -> Result<Sequence, Exhausted> {
        let Sequence(now) = self.0;
        if now == u32::MAX {
            return Err(Exhausted);
        }
        self.0 = Sequence(now.saturating_add(1));
        Ok(Sequence(now))
    }

    /// Takes the next number for the final frame; there is none after it.
    pub(crate) fn last(self) -> Sequence {
        self.0
    }

    #[cfg(test)]
    pub(crate) fn at(sequence: u32) -> Self {
        Self(Sequence(sequence))
    }
}

impl Sequence {
    /// The number of the only block of unframed content: "SingleBlock ... sequence number 1" (*Body AAD*).
    pub(crate) const SINGLE_BLOCK: Self = Self(1);

    pub(crate) fn to_bytes(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }

    /// The frame's IV: the sequence number, padded on the left to 12 bytes. The keys of a message are its own, so no
    /// IV is used twice under one key. Zero is the header's.
    pub(crate) fn iv(self) -> [u8; IV_LENGTH] {
        (u128::from(self.0) << 96 >> 96).to_be_bytes().last_chunk().copied().unwrap_or([0; IV_LENGTH])
    }

    pub(crate) fn nonce(self) -> Nonce {
        Nonce::assume_unique_for_key(self.iv())
    }
}

impl Content {
    /// Body AAD: message id, what kind of content, sequence number, length of the content in 8 bytes
    /// (AWS Encryption SDK developer guide, *Body additional authenticated data (AAD)*).
    pub(crate) fn aad(self, message: &MessageId, sequence: Sequence, length: usize) -> Vec<u8> {
        let kind: &[u8] = match self {
            Self::Regular => b"AWSKMSEncryptionClient Frame",
            Self::Final => b"AWSKMSEncryptionClient Final Frame",
            Self::SingleBlock => b"AWSKMSEncryptionClient Single Block",
        };
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        [&message.as_bytes()[..], kind, &sequence.to_bytes(), &length.to_be_bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::{Counter, Exhausted};

    #[test]
    fn frames_are_numbered_from_one_without_gaps() {
        let mut counter = Counter::new();
        let numbers: Vec<_> = (0..3).map(|_| counter.regular().unwrap().to_bytes()).collect();
        assert_eq!(numbers, [[0, 0, 0, 1], [0, 0, 0, 2], [0, 0, 0, 3]]);
        assert_eq!(counter.next().iv(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4]);
        assert_eq!(counter.last().to_bytes(), [0, 0, 0, 4]);
    }

    #[test]
    fn the_mark_of_the_end_is_never_the_number_of_a_regular_frame() {
        let mut counter = Counter::at(u32::MAX - 1);
        assert!(counter.regular().is_ok());
        assert_eq!(counter.regular().map(|_| ()), Err(Exhausted));
        assert_eq!(counter.last().iv(), [0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
    }
}
