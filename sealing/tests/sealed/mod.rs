//! Messages of our own making, whole and in parts.

use sealing::SystemRandom;
use sealing::message::{DataKey, EncryptedDataKey, EncryptionContext, Suite};
use sealing::writer::{MessageWriter, SealParameters};

/// The frame length of [`seal`].
pub(crate) const FRAME: usize = 64;

/// A message in its parts.
pub(crate) struct Message {
    pub(crate) header: Vec<u8>,
    pub(crate) frames: Vec<Vec<u8>>,
    pub(crate) footer: Vec<u8>,
    pub(crate) plaintext: Vec<u8>,
}

impl Message {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        [&self.header[..], &self.frames.concat(), &self.footer].concat()
    }
}

/// The data key of every message here: so that what must not depend on it is seen not to.
pub(crate) fn key() -> DataKey {
    DataKey::from_bytes([42; 32])
}

pub(crate) fn seal(suite: Suite, length: usize) -> Message {
    seal_with(suite, length, FRAME)
}

pub(crate) fn writer(suite: Suite, frame_length: usize) -> MessageWriter {
    let context =
        EncryptionContext::from_pairs([("subrosa:tenant", "acme"), ("subrosa:purpose", "inference")]).unwrap();
    let frame_length = u32::try_from(frame_length).unwrap();
    let parameters = SealParameters::begin(suite, context, frame_length, &mut SystemRandom::new()).unwrap();
    let encrypted = EncryptedDataKey { provider_id: "test".into(), provider_info: vec![1], ciphertext: vec![2; 40] };
    MessageWriter::new(parameters, vec![encrypted], &key()).unwrap()
}

pub(crate) fn seal_with(suite: Suite, length: usize, frame_length: usize) -> Message {
    let plaintext: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
    let mut writer = writer(suite, frame_length);
    let header = writer.header().to_vec();
    let mut frames = Vec::new();
    let mut out = Vec::new();
    let mut pieces = plaintext.chunks_exact(frame_length);
    for piece in pieces.by_ref() {
        writer.write(piece, &mut out).unwrap();
        assert_eq!(out.len(), 16 + frame_length + 16, "a full frame goes out at once");
        frames.push(std::mem::take(&mut out));
    }
    writer.write(pieces.remainder(), &mut out).unwrap();
    assert!(out.is_empty(), "less than a frame waits");
    writer.finish(&mut out).unwrap();
    let footer = out.split_off(24 + pieces.remainder().len() + 16);
    frames.push(out);
    Message { header, frames, footer, plaintext }
}
