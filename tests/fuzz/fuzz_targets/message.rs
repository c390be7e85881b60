//! Messages: any bytes as a header, and any change to a good message, whole and in pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealing::message::{DataKey, EncryptedDataKey, EncryptionContext, Limits, Suite};
use sealing::reader::{HeaderReader, Held, OpenError, Progress, open_whole};
use sealing::writer::{MessageWriter, SealParameters};
use sealing::{Random, RandomError};

fuzz_target!(|data: &[u8]| {
    let Some((mode, data)) = data.split_first() else { return };
    if mode & 1 == 0 {
        any_bytes(data, usize::from(mode >> 1));
    } else {
        a_changed_message(data, usize::from(mode >> 1));
    }
});

fn limits() -> Limits {
    Limits { unframed: Some(10_000), frame_length: 1..=65_536, ..Limits::file() }
}

fn key() -> DataKey {
    DataKey::from_bytes([42; 32])
}

/// Bytes that nobody sealed open to nothing, and whether and why does not depend on how they arrive.
fn any_bytes(data: &[u8], size: usize) {
    let whole = open_whole(limits(), data, 65_536, |_| Some(key())).err();
    assert!(whole.is_some());
    assert_eq!(open_pieces(data, size).err(), whole);
    // What is read of a header is exactly what the header's bytes say.
    let mut rest = data;
    if let Ok(Progress::Done(header)) = HeaderReader::new(limits()).push(&mut rest) {
        assert_eq!(header.as_bytes(), &data[..data.len() - rest.len()]);
        let context = header.context().to_bytes();
        assert_eq!(EncryptionContext::parse(&context).as_ref(), Ok(header.context()));
    }
}

/// The first bytes choose a message and a place; what follows is written over it there.
fn a_changed_message(data: &[u8], size: usize) {
    let [suite, length, frame_length, high, low, keep, change @ ..] = data else { return };
    let suite = if suite & 1 == 0 { Suite::Commit } else { Suite::CommitSigned };
    let message = seal(suite, usize::from(*length), u32::from(*frame_length) + 1);
    let at = usize::from(u16::from_be_bytes([*high, *low])) % (message.len() + 1);
    let mut changed = [&message[..at], change].concat();
    if keep & 1 == 0 {
        changed.extend_from_slice(message.get(at + change.len()..).unwrap_or_default());
    }
    let whole = open_whole(limits(), &changed, 65_536, |_| Some(key())).err();
    assert_eq!(whole.is_none(), changed == message, "{whole:?}");
    assert_eq!(open_pieces(&changed, size).err(), whole);
}

fn seal(suite: Suite, length: usize, frame_length: u32) -> Vec<u8> {
    let context = EncryptionContext::from_pairs([("subrosa:tenant", "acme")]).unwrap();
    let parameters = SealParameters::begin(suite, context, frame_length, &mut Counting(1)).unwrap();
    let encrypted = EncryptedDataKey { provider_id: "fuzz".into(), provider_info: vec![], ciphertext: vec![0; 48] };
    let mut writer = MessageWriter::new(parameters, vec![encrypted], &key()).unwrap();
    let mut message = writer.header().to_vec();
    writer.write(&vec![7; length], &mut message).unwrap();
    writer.finish(&mut message).unwrap();
    message
}

fn open_pieces(message: &[u8], size: usize) -> Result<Vec<u8>, OpenError> {
    let mut pieces = message.chunks(size + 1);
    let mut reader = HeaderReader::new(limits());
    let (header, mut rest) = loop {
        let mut rest = pieces.next().ok_or(OpenError::Incomplete)?;
        match reader.push(&mut rest)? {
            Progress::More(more) => reader = more,
            Progress::Done(header) => break (header, rest),
        }
    };
    let mut body = header.authenticate(&key())?;
    let mut held = Held::new(&body, 65_536);
    loop {
        while let Some(frame) = body.push(&mut rest)? {
            held.add(&frame)?;
        }
        match pieces.next() {
            Some(piece) => rest = piece,
            None => return Ok(held.confirm(&body.finish()?)?.as_bytes().to_vec()),
        }
    }
}

/// The same "random" bytes in every run, so that what is found can be found again.
struct Counting(u8);

impl Random for Counting {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), RandomError> {
        out.iter_mut().for_each(|byte| {
            *byte = self.0;
            self.0 = self.0.wrapping_add(1);
        });
        Ok(())
    }
}
