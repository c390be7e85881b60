//! Sealing and opening files and streams of any length, in constant memory.
//!
//! Plaintext that [`open`] has written is authentic, but until it returns an [`Opened`] nobody knows whether it is all of
//! it: write to a place that nobody reads yet, or tell the reader.

use std::io::{self, Read, Write};

use sealing::message::{EncryptionContext, Limits, Suite};
use sealing::reader::{End, Header, HeaderReader, OpenError, Progress};
use sealing::writer::{MessageWriter, SealError, SealParameters};
use sealing::{SecretBytes, SystemRandom};

use crate::data_key::{DataKeyError, KeySource};

/// How to seal.
#[derive(Clone, Debug)]
pub struct SealOptions {
    /// 0x0478, or 0x0578 with a signature.
    pub suite: Suite,
    /// The encryption context, without reserved keys.
    pub context: EncryptionContext,
    /// Bytes of plaintext in a frame.
    pub frame_length: u32,
}

/// A message that was sealed to its end.
#[derive(Debug)]
pub struct Sealed {
    /// Its header, as a reader sees it.
    pub header: Header,
    /// Bytes of plaintext.
    pub plaintext: u64,
    /// Bytes of the message.
    pub message: u64,
}

/// A message that was opened to its true end.
pub struct Opened {
    /// Its header, authenticated.
    pub header: Header,
    /// The proof.
    pub end: End,
}

/// Seals everything that `input` holds. `progress` is told of every piece of plaintext.
///
/// # Errors
/// [`FileError`]; what `out` holds then is no message.
pub fn seal(
    input: &mut impl Read,
    out: &mut impl Write,
    keys: &KeySource,
    options: SealOptions,
    runtime: &tokio::runtime::Handle,
    mut progress: impl FnMut(u64),
) -> Result<Sealed, FileError> {
    let SealOptions { suite, context, frame_length } = options;
    let parameters = SealParameters::begin(suite, context, frame_length, &mut SystemRandom::new())?;
    let (key, wrapped) = runtime.block_on(keys.generate(parameters.context()))?;
    let mut writer = MessageWriter::new(parameters, vec![wrapped], &key)?;
    let header = read_back(writer.header())?;
    out.write_all(writer.header()).map_err(FileError::Write)?;
    let (mut plaintext, mut message) = (0_u64, writer.header().len() as u64);
    let mut buffer = buffer();
    let mut frames = Vec::new();
    while let Some(read) = read_some(input, &mut buffer)? {
        writer.write(read, &mut frames)?;
        out.write_all(&frames).map_err(FileError::Write)?;
        plaintext += read.len() as u64;
        message += frames.len() as u64;
        frames.clear();
        progress(read.len() as u64);
    }
    writer.finish(&mut frames)?;
    out.write_all(&frames).map_err(FileError::Write)?;
    message += frames.len() as u64;
    Ok(Sealed { header, plaintext, message })
}

/// Opens the one message that `input` holds and writes its plaintext, frame by frame as they are authenticated.
/// `required` must be part of its encryption context. `progress` is told of every piece of the message.
///
/// # Errors
/// [`FileError`]; what `out` holds then is authentic but not whole, or its signature is not good.
pub fn open(
    input: &mut impl Read,
    out: &mut impl Write,
    keys: &KeySource,
    required: &EncryptionContext,
    runtime: &tokio::runtime::Handle,
    mut progress: impl FnMut(u64),
) -> Result<Opened, FileError> {
    let mut buffer = buffer();
    let mut reader = HeaderReader::new(Limits { unframed: Some(MAX_UNFRAMED), ..Limits::file() });
    let (mut body, mut rest) = loop {
        let mut read: &[u8] = read_some(input, &mut buffer)?.ok_or(OpenError::Incomplete)?;
        progress(read.len() as u64);
        match reader.push(&mut read).map_err(OpenError::from)? {
            Progress::More(more) => reader = more,
            Progress::Done(header) => {
                check_context(header.context(), required)?;
                let key = runtime.block_on(keys.unwrap(header.encrypted_data_keys(), header.context()))?;
                break (header.authenticate(&key)?, SecretBytes::from_vec(read.to_vec()));
            }
        }
    };
    // Frames are opened where they lie: the plaintext in `buffer` and `rest` is wiped with them, or overwritten.
    let mut at_hand: &mut [u8] = rest.as_mut_bytes();
    loop {
        while let Some(frame) = body.push_in_place(&mut at_hand)? {
            out.write_all(frame.as_bytes()).map_err(FileError::Write)?;
        }
        match read_some(input, &mut buffer)? {
            Some(read) => at_hand = read,
            None => break,
        }
        progress(at_hand.len() as u64);
    }
    rest.clear();
    let header = body.header().clone();
    let end = body.finish()?;
    Ok(Opened { header, end })
}

/// Why a file was not sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The input cannot be read.
    #[error("the input cannot be read: {0}")]
    Read(#[source] io::Error),
    /// The output cannot be written.
    #[error("the output cannot be written: {0}")]
    Write(#[source] io::Error),
    /// The message is not good.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The message cannot be made.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// No data key.
    #[error(transparent)]
    Key(#[from] DataKeyError),
    /// The encryption context lacks what was demanded.
    #[error("the message's encryption context has {found} for `{key}`, expected `{expected}`")]
    Context {
        /// The key.
        key: String,
        /// The demanded value.
        expected: String,
        /// What is there.
        found: String,
    },
}

fn check_context(context: &EncryptionContext, required: &EncryptionContext) -> Result<(), FileError> {
    for (key, expected) in required.iter() {
        let found = context.get(key);
        if found != Some(expected) {
            let found = found.map_or_else(|| "nothing".to_owned(), |found| format!("{found:?}"));
            return Err(FileError::Context { key: key.to_owned(), expected: expected.to_owned(), found });
        }
    }
    Ok(())
}

/// The header that was written, as a reader understands it: what nobody could open is never written out.
fn read_back(mut bytes: &[u8]) -> Result<Header, FileError> {
    match HeaderReader::new(Limits::file()).push(&mut bytes).map_err(OpenError::from)? {
        Progress::Done(header) => Ok(header.claims().clone()),
        Progress::More(_) => Err(OpenError::Incomplete.into()),
    }
}

fn read_some<'a>(input: &mut impl Read, buffer: &'a mut SecretBytes) -> Result<Option<&'a mut [u8]>, FileError> {
    let count = loop {
        match input.read(buffer.as_mut_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other.map_err(FileError::Read)?,
        }
    };
    Ok(buffer.as_mut_bytes().get_mut(..count).filter(|read| !read.is_empty()))
}

fn buffer() -> SecretBytes {
    let mut buffer = SecretBytes::with_capacity(BUFFER);
    buffer.extend_with(0, BUFFER);
    buffer
}

const BUFFER: usize = 256 * 1024;
/// Unframed messages are legacy and held in memory whole: nothing of them is authentic before their end.
pub const MAX_UNFRAMED: u32 = 64 * 1024 * 1024;
/// Of files: long frames cost the least, and 64 KiB is what every SDK reads.
pub const FILE_FRAME_LENGTH: u32 = 65_536;
