//! A model pack: an archive whose manifest the configuration names by its digest.
//!
//! docs/PROTOCOL.md, section 10. The archive comes from the parent inside a sealed message, so it is read as it streams:
//! the manifest first, whose digest is checked before a word of it is believed; then each file of the manifest in its
//! order, of the stated size and digest; then zeros, and the true end. Memory is bounded by the manifest, and the
//! manifest by the configuration. [`PackReader::finish`] alone makes a [`Pack`], and its caller first proves that the
//! message has ended: nothing acts upon a file before that.

mod tar;

use std::collections::VecDeque;

use ring::digest;
use serde::Deserialize;

use tar::{BLOCK_BYTES, Header, TarError};

/// A pack that was read to its end, every digest checked.
pub struct Pack {
    manifest_sha384: [u8; 48],
    files: Vec<(String, Vec<u8>)>,
}

impl Pack {
    /// SHA-384 of the bytes of `manifest.json`: what the configuration names and PCR16 is extended with.
    pub fn manifest_sha384(&self) -> &[u8; 48] {
        &self.manifest_sha384
    }

    /// Takes one file out.
    pub fn take(&mut self, path: &str) -> Option<Vec<u8>> {
        let at = self.files.iter().position(|(name, _)| name == path)?;
        Some(self.files.swap_remove(at).1)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, content)| content.len() as u64).sum()
    }
}

/// Reads a pack as it arrives, in pieces of any size.
pub struct PackReader {
    manifest_sha384: [u8; 48],
    bytes_max: u64,
    room: u64,
    state: State,
    /// A partial block: at most 512 bytes.
    block: Vec<u8>,
    expected: VecDeque<FileMember>,
    files: Vec<(String, Vec<u8>)>,
}

enum State {
    /// Before the header of the manifest.
    Manifest,
    /// Inside the manifest.
    ManifestContent { left: usize, content: Vec<u8> },
    /// Before a file's header, or before the end.
    Header,
    /// Inside a file.
    Content { file: FileMember, content: Vec<u8> },
    /// Zeros up to the next whole block.
    Padding { left: usize },
    /// After the first zero block.
    End { zeros: usize },
    /// After an error: nothing more is read.
    Failed,
}

impl PackReader {
    /// A reader for the pack whose manifest has this digest, and whose files have at most `bytes_max` bytes in all: so many are
    /// allowed. `room` is how many bytes of memory there are for them.
    pub fn new(manifest_sha384: [u8; 48], bytes_max: u64, room: u64) -> Self {
        Self {
            manifest_sha384,
            bytes_max,
            room,
            state: State::Manifest,
            block: Vec::new(),
            expected: VecDeque::new(),
            files: Vec::new(),
        }
    }

    /// Reads the next piece. After an error the reader refuses everything.
    pub fn push(&mut self, mut piece: &[u8]) -> Result<(), PackError> {
        while !piece.is_empty() {
            let state = std::mem::replace(&mut self.state, State::Failed);
            self.state = self.step(state, &mut piece)?;
        }
        Ok(())
    }

    /// The true end has been proven by the caller: the pack, if it is whole.
    pub fn finish(self) -> Result<Pack, PackError> {
        let Self { manifest_sha384, bytes_max: _, room: _, state, block, expected, files } = self;
        match state {
            // POSIX: "at the end of the archive ... two 512-byte blocks filled with binary zeros".
            State::End { zeros } if zeros >= 2 * BLOCK_BYTES && block.is_empty() && expected.is_empty() => {
                Ok(Pack { manifest_sha384, files })
            }
            _ => Err(PackError::Incomplete),
        }
    }

    fn step(&mut self, state: State, piece: &mut &[u8]) -> Result<State, PackError> {
        match state {
            State::Manifest => {
                let Some(header) = self.header(piece)? else { return Ok(State::Manifest) };
                let Some(Header { path, size }) = header else { return Err(PackError::ManifestFirst) };
                if path != MANIFEST_PATH {
                    return Err(PackError::ManifestFirst);
                }
                let left = usize::try_from(size).unwrap_or(usize::MAX);
                if left == 0 || left > MANIFEST_BYTES_MAX {
                    return Err(PackError::ManifestSize { limit: MANIFEST_BYTES_MAX });
                }
                Ok(State::ManifestContent { left, content: Vec::with_capacity(left) })
            }
            State::ManifestContent { left, mut content } => {
                let taken = take(piece, left);
                content.extend_from_slice(taken);
                if taken.len() < left {
                    return Ok(State::ManifestContent { left: left - taken.len(), content });
                }
                self.read_manifest(&content)?;
                Ok(after(content.len()))
            }
            State::Header => {
                let Some(header) = self.header(piece)? else { return Ok(State::Header) };
                match (header, self.expected.pop_front()) {
                    (None, None) => Ok(State::End { zeros: BLOCK_BYTES }),
                    (None, Some(_)) => Err(PackError::Missing),
                    (Some(_), None) => Err(PackError::Extra),
                    (Some(Header { path, size }), Some(file)) => {
                        if path != file.path || size != file.size {
                            return Err(PackError::NotInOrder);
                        }
                        let mut content = Vec::new();
                        let length = usize::try_from(size).map_err(|_| PackError::Memory)?;
                        content.try_reserve_exact(length).map_err(|_| PackError::Memory)?;
                        self.content(file, content, piece)
                    }
                }
            }
            State::Content { file, content } => self.content(file, content, piece),
            State::Padding { left } => {
                let taken = take(piece, left);
                all_zero(taken)?;
                Ok(if taken.len() < left { State::Padding { left: left - taken.len() } } else { State::Header })
            }
            State::End { zeros } => {
                let taken = take(piece, RECORD_BYTES.saturating_sub(zeros));
                if taken.is_empty() {
                    return Err(PackError::Trailing);
                }
                all_zero(taken)?;
                Ok(State::End { zeros: zeros + taken.len() })
            }
            State::Failed => Err(PackError::Incomplete),
        }
    }

    /// A whole header: `None` until its 512 bytes are here, `Some(None)` for a zero block.
    fn header(&mut self, piece: &mut &[u8]) -> Result<Option<Option<Header>>, PackError> {
        self.block.extend_from_slice(take(piece, BLOCK_BYTES - self.block.len()));
        let Ok(block) = <&[u8; BLOCK_BYTES]>::try_from(self.block.as_slice()) else { return Ok(None) };
        let header = Header::parse(block)?;
        self.block.clear();
        Ok(Some(header))
    }

    fn content(&mut self, file: FileMember, mut content: Vec<u8>, piece: &mut &[u8]) -> Result<State, PackError> {
        let size = usize::try_from(file.size).map_err(|_| PackError::Memory)?;
        content.extend_from_slice(take(piece, size - content.len()));
        if content.len() < size {
            return Ok(State::Content { file, content });
        }
        let FileMember { path, size: _, sha384 } = file;
        if !is_digest(&content, &sha384)? {
            return Err(PackError::Digest);
        }
        let next = after(content.len());
        self.files.push((path, content));
        Ok(next)
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
            total = total.checked_add(file.size).ok_or(PackError::TooLarge { limit: self.bytes_max })?;
        }
        if total > self.bytes_max {
            return Err(PackError::TooLarge { limit: self.bytes_max });
        }
        if total > self.room {
            return Err(PackError::NoRoom { needed: total, available: self.room });
        }
        self.expected = files.into();
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

fn after(length: usize) -> State {
    match length % BLOCK_BYTES {
        0 => State::Header,
        part => State::Padding { left: BLOCK_BYTES - part },
    }
}

fn is_digest(content: &[u8], hex_digest: &str) -> Result<bool, PackError> {
    let mut expected = [0; 48];
    hex::decode_to_slice(hex_digest, &mut expected).map_err(|_| PackError::Manifest)?;
    Ok(digest::digest(&digest::SHA384, content).as_ref() == expected)
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
    /// The manifest announces more than this machine's memory holds.
    #[error("the files have {needed} bytes, and {available} bytes of memory are free: give the enclave more memory")]
    NoRoom {
        /// Bytes of the files.
        needed: u64,
        /// Bytes of memory.
        available: u64,
    },
    /// This machine has not enough memory.
    #[error("there is not enough memory for the pack")]
    Memory,
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
mod tests;
