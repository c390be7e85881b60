//! A model pack: an archive whose manifest the configuration names by its digest.
//!
//! docs/PROTOCOL.md, section 10. The archive comes from the parent inside a sealed message, so it is read as it streams:
//! the manifest first, whose digest is checked before a word of it is believed; then each file of the manifest in its
//! order, of the stated size and digest; then zeros, and the true end. Nothing of a file is held: the reader's caller gets
//! the one file that it wants part by part, long before its digest is known. [`PackReader::finish`] alone makes a
//! [`Checked`], and its caller first proves that the message has ended: what was made of the parts waits for both.

mod tar;

use std::collections::VecDeque;

use ring::digest;
use serde::Deserialize;

use tar::{BLOCK_BYTES, Header, TarError};

/// Proof that a pack was read to its end, every digest checked.
pub struct Checked {
    manifest_sha384: [u8; 48],
    bytes: u64,
}

impl Checked {
    /// SHA-384 of the bytes of `manifest.json`: what the configuration names and PCR16 is extended with.
    pub fn manifest_sha384(&self) -> &[u8; 48] {
        &self.manifest_sha384
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The next bytes of the wanted file. Whether they are those that the manifest means is known with [`Checked`].
pub struct Part<'a> {
    /// Never empty.
    pub bytes: &'a [u8],
    /// Bytes of the whole file.
    pub of: u64,
}

/// Reads a pack as it arrives, in pieces of any size.
pub struct PackReader {
    manifest_sha384: [u8; 48],
    bytes_max: u64,
    wanted: &'static str,
    state: State,
    /// A partial block: at most 512 bytes.
    block: Vec<u8>,
    expected: VecDeque<FileMember>,
    bytes: u64,
}

enum State {
    /// Before the header of the manifest.
    Manifest,
    /// Inside the manifest.
    ManifestContent { left: usize, content: Vec<u8> },
    /// Before a file's header, or before the end.
    Header,
    /// Inside a file.
    Content { file: FileMember, left: u64, digest: Box<digest::Context> },
    /// Zeros up to the next whole block.
    Padding { left: usize },
    /// After the first zero block.
    End { zeros: usize },
    /// After an error: nothing more is read.
    Failed,
}

impl PackReader {
    /// A reader for the pack whose manifest has this digest, and whose files have at most `bytes_max` bytes in all: so many
    /// are allowed. Of its files, `wanted` is handed out.
    pub fn new(manifest_sha384: [u8; 48], bytes_max: u64, wanted: &'static str) -> Self {
        Self {
            manifest_sha384,
            bytes_max,
            wanted,
            state: State::Manifest,
            block: Vec::new(),
            expected: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Takes bytes off `piece` until there is a part of the wanted file; `None` when the piece is used up. Call it until it
    /// returns `None`. After an error the reader refuses everything.
    pub fn push<'p>(&mut self, piece: &mut &'p [u8]) -> Result<Option<Part<'p>>, PackError> {
        while !piece.is_empty() {
            let state = std::mem::replace(&mut self.state, State::Failed);
            let (state, part) = self.step(state, piece)?;
            self.state = state;
            if part.is_some() {
                return Ok(part);
            }
        }
        Ok(None)
    }

    /// The true end has been proven by the caller: the proof that the pack is whole, if it is.
    pub fn finish(self) -> Result<Checked, PackError> {
        let Self { manifest_sha384, bytes_max: _, wanted: _, state, block, expected, bytes } = self;
        match state {
            // POSIX: "at the end of the archive ... two 512-byte blocks filled with binary zeros".
            State::End { zeros } if zeros >= 2 * BLOCK_BYTES && block.is_empty() && expected.is_empty() => {
                Ok(Checked { manifest_sha384, bytes })
            }
            _ => Err(PackError::Incomplete),
        }
    }

    fn step<'p>(&mut self, state: State, piece: &mut &'p [u8]) -> Result<(State, Option<Part<'p>>), PackError> {
        let next = match state {
            State::Manifest => match self.header(piece)? {
                None => State::Manifest,
                Some(Some(Header { path, size })) if path == MANIFEST_PATH => {
                    let left = usize::try_from(size).unwrap_or(usize::MAX);
                    if left == 0 || left > MANIFEST_BYTES_MAX {
                        return Err(PackError::ManifestSize { limit: MANIFEST_BYTES_MAX });
                    }
                    State::ManifestContent { left, content: Vec::with_capacity(left) }
                }
                Some(_) => return Err(PackError::ManifestFirst),
            },
            State::ManifestContent { left, mut content } => {
                let taken = take(piece, left);
                content.extend_from_slice(taken);
                if taken.len() < left {
                    State::ManifestContent { left: left - taken.len(), content }
                } else {
                    self.read_manifest(&content)?;
                    after(content.len() as u64)
                }
            }
            State::Header => match self.header(piece)? {
                None => State::Header,
                Some(header) => match (header, self.expected.pop_front()) {
                    (None, None) => State::End { zeros: BLOCK_BYTES },
                    (None, Some(_)) => return Err(PackError::Missing),
                    (Some(_), None) => return Err(PackError::Extra),
                    (Some(Header { path, size }), Some(file)) => {
                        if path != file.path || size != file.size {
                            return Err(PackError::NotInOrder);
                        }
                        return self.content(file, size, Box::new(digest::Context::new(&digest::SHA384)), piece);
                    }
                },
            },
            State::Content { file, left, digest } => return self.content(file, left, digest, piece),
            State::Padding { left } => {
                let taken = take(piece, left);
                all_zero(taken)?;
                if taken.len() < left { State::Padding { left: left - taken.len() } } else { State::Header }
            }
            State::End { zeros } => {
                let taken = take(piece, RECORD_BYTES.saturating_sub(zeros));
                if taken.is_empty() {
                    return Err(PackError::Trailing);
                }
                all_zero(taken)?;
                State::End { zeros: zeros + taken.len() }
            }
            State::Failed => return Err(PackError::Incomplete),
        };
        Ok((next, None))
    }

    /// A whole header: `None` until its 512 bytes are here, `Some(None)` for a zero block.
    fn header(&mut self, piece: &mut &[u8]) -> Result<Option<Option<Header>>, PackError> {
        self.block.extend_from_slice(take(piece, BLOCK_BYTES - self.block.len()));
        let Ok(block) = <&[u8; BLOCK_BYTES]>::try_from(self.block.as_slice()) else { return Ok(None) };
        let header = Header::parse(block)?;
        self.block.clear();
        Ok(Some(header))
    }

    /// Bytes of a file; with its last ones its digest is checked, before they are handed out.
    fn content<'p>(
        &self,
        file: FileMember,
        left: u64,
        mut digest: Box<digest::Context>,
        piece: &mut &'p [u8],
    ) -> Result<(State, Option<Part<'p>>), PackError> {
        let bytes = take(piece, usize::try_from(left).unwrap_or(usize::MAX));
        digest.update(bytes);
        let (left, of) = (left - bytes.len() as u64, file.size);
        let part = (file.path == self.wanted && !bytes.is_empty()).then_some(Part { bytes, of });
        if left > 0 {
            return Ok((State::Content { file, left, digest }, part));
        }
        if digest.finish().as_ref() != sha384(&file)? {
            return Err(PackError::Digest);
        }
        Ok((after(of), part))
    }

    fn read_manifest(&mut self, content: &[u8]) -> Result<(), PackError> {
        if digest::digest(&digest::SHA384, content).as_ref() != self.manifest_sha384 {
            return Err(PackError::ManifestDigest);
        }
        let Manifest { version, name, files } = serde_json::from_slice(content).map_err(|_| PackError::Manifest)?;
        if version != 1 || name.is_empty() || files.is_empty() || files.len() > FILES_MAX {
            return Err(PackError::Manifest);
        }
        let mut total = 0_u64;
        for (at, file) in files.iter().enumerate() {
            let again = files.iter().take(at).any(|earlier| earlier.path == file.path);
            if !tar::is_path(&file.path) || file.path == MANIFEST_PATH || again {
                return Err(PackError::Manifest);
            }
            sha384(file)?;
            total = total.checked_add(file.size).ok_or(PackError::TooLarge { limit: self.bytes_max })?;
        }
        if total > self.bytes_max {
            return Err(PackError::TooLarge { limit: self.bytes_max });
        }
        (self.expected, self.bytes) = (files.into(), total);
        Ok(())
    }
}

fn take<'a>(piece: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = piece.split_at(count.min(piece.len()));
    *piece = rest;
    taken
}

fn all_zero(bytes: &[u8]) -> Result<(), PackError> {
    if bytes.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(PackError::Padding) }
}

fn after(length: u64) -> State {
    match length % BLOCK_BYTES as u64 {
        0 => State::Header,
        part => State::Padding { left: BLOCK_BYTES - part as usize },
    }
}

fn sha384(file: &FileMember) -> Result<[u8; 48], PackError> {
    let mut digest = [0; 48];
    hex::decode_to_slice(&file.sha384, &mut digest).map_err(|_| PackError::Manifest)?;
    Ok(digest)
}

/// Why a pack is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// A block of the archive is not as it must be.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The first member is not `manifest.json`.
    #[error("the archive must begin with manifest.json")]
    ManifestFirst,
    /// An empty or huge manifest.
    #[error("manifest.json must have 1 to {limit} bytes")]
    ManifestSize {
        /// The limit, in bytes.
        limit: usize,
    },
    /// Another manifest than the configured one.
    #[error("manifest.json is not the one that the configuration names")]
    ManifestDigest,
    /// A manifest of another form.
    #[error("manifest.json is not of the form of docs/PROTOCOL.md, section 10")]
    Manifest,
    /// More bytes than the configuration allows.
    #[error("the files have more than {limit} bytes in all")]
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// A file of another name, size or place than the manifest says.
    #[error("a file differs from the manifest in name, size or order")]
    NotInOrder,
    /// A file with other bytes than the manifest says.
    #[error("a file's digest is not the manifest's")]
    Digest,
    /// A file that the manifest does not list.
    #[error("the archive has a file that the manifest does not list")]
    Extra,
    /// The archive ends before the last file of the manifest.
    #[error("a file of the manifest is missing")]
    Missing,
    /// Padding that is not zero.
    #[error("padding must be zero")]
    Padding,
    /// Bytes after the end of the archive.
    #[error("unexpected bytes after the end of the archive")]
    Trailing,
    /// The message ended before the archive.
    #[error("the archive is cut short")]
    Incomplete,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    version: u64,
    name: String,
    files: Vec<FileMember>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileMember {
    path: String,
    size: u64,
    sha384: String,
}

const MANIFEST_PATH: &str = "manifest.json";
const MANIFEST_BYTES_MAX: usize = 64 * 1024;
const FILES_MAX: usize = 64;
/// POSIX archives end at a multiple of the record size; tar and Python's tarfile write records of 20 blocks. So zeros
/// may follow the two zero blocks, but fewer than a record.
const RECORD_BYTES: usize = 20 * BLOCK_BYTES;

#[cfg(test)]
pub(crate) mod tests;
