//! The sections behind the header: which there are, and in which order.

use std::fmt;

use super::header::{Header, ImageError};

/// What a section holds. The numbers are `EifSectionType` of AWS's crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 1: the kernel.
    Kernel,
    /// 2: its command line.
    CommandLine,
    /// 3: a ramdisk.
    Ramdisk,
    /// 4: the signature, since version 3.
    Signature,
    /// 5: the metadata, since version 4.
    Metadata,
}

/// One section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section<'a> {
    kind: Kind,
    offset: usize,
    content: &'a [u8],
}

impl<'a> Section<'a> {
    /// What it holds.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where its header begins in the file.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Its bytes.
    #[must_use]
    pub fn content(&self) -> &'a [u8] {
        self.content
    }
}

/// Kernel, command line, at least one ramdisk; at most one signature and one metadata.
///
/// Kernel and command line come first, as AWS's tools write them: registers are made in the order of the file. The place of
/// signature and metadata changes no register.
#[derive(Clone, Debug)]
pub(super) struct Sections<'a> {
    all: Vec<Section<'a>>,
    kernel: &'a [u8],
    command_line: &'a [u8],
}

impl<'a> Sections<'a> {
    pub(super) fn parse(bytes: &'a [u8], header: &Header) -> Result<Self, ImageError> {
        let mut all: Vec<Section<'a>> = Vec::with_capacity(header.table().len());
        for (index, &(offset, size)) in header.table().iter().enumerate() {
            let section = read(bytes, index, offset, size)?;
            let kind = section.kind;
            if !kind.may_repeat() && all.iter().any(|other| other.kind == kind) {
                return Err(ImageError::Duplicate { index, kind });
            }
            if header.version() < kind.since() {
                return Err(ImageError::TooNew { kind, version: header.version() });
            }
            if size > kind.limit() {
                return Err(ImageError::TooLarge { kind, size, limit: kind.limit() });
            }
            all.push(section);
        }
        let kernel = expect(&all, 0, Kind::Kernel)?;
        let command_line = expect(&all, 1, Kind::CommandLine)?;
        if !all.iter().any(|section| section.kind == Kind::Ramdisk) {
            return Err(ImageError::Missing { kind: Kind::Ramdisk });
        }
        Ok(Self { all, kernel, command_line })
    }

    pub(super) fn all(&self) -> &[Section<'a>] {
        &self.all
    }

    pub(super) fn kernel(&self) -> &'a [u8] {
        self.kernel
    }

    pub(super) fn command_line(&self) -> &'a [u8] {
        self.command_line
    }

    pub(super) fn ramdisks(&self) -> impl Iterator<Item = &'a [u8]> {
        self.all.iter().filter(|section| section.kind == Kind::Ramdisk).map(|section| section.content)
    }

    pub(super) fn signature(&self) -> Option<&'a [u8]> {
        self.only(Kind::Signature)
    }

    pub(super) fn metadata(&self) -> Option<&'a [u8]> {
        self.only(Kind::Metadata)
    }

    fn only(&self, kind: Kind) -> Option<&'a [u8]> {
        self.all.iter().find(|section| section.kind == kind).map(|section| section.content)
    }
}

/// A section's own header: type and flags of 16 bits, length of 64, big-endian.
fn read(bytes: &[u8], index: usize, offset: usize, size: usize) -> Result<Section<'_>, ImageError> {
    let (expected, length) = (size as u64, bytes.len() as u64);
    let cut_off = || ImageError::OutOfRange { index, offset: offset as u64, size: expected, length };
    let rest = bytes.get(offset..).ok_or_else(cut_off)?;
    let (kind, rest) = rest.split_first_chunk::<2>().ok_or_else(cut_off)?;
    let (flags, rest) = rest.split_first_chunk::<2>().ok_or_else(cut_off)?;
    let (found, rest) = rest.split_first_chunk::<8>().ok_or_else(cut_off)?;
    let kind = Kind::of(u16::from_be_bytes(*kind))
        .ok_or(ImageError::UnknownSection { index, found: u16::from_be_bytes(*kind) })?;
    if *flags != [0; 2] {
        return Err(ImageError::SectionFlags { index, found: u16::from_be_bytes(*flags) });
    }
    let found = u64::from_be_bytes(*found);
    if found != expected {
        return Err(ImageError::SectionSize { index, found, expected });
    }
    Ok(Section { kind, offset, content: rest.get(..size).ok_or_else(cut_off)? })
}

fn expect<'a>(all: &[Section<'a>], index: usize, expected: Kind) -> Result<&'a [u8], ImageError> {
    match all.get(index) {
        None => Err(ImageError::Missing { kind: expected }),
        Some(section) if section.kind == expected => Ok(section.content),
        Some(section) => Err(ImageError::Order { index, found: section.kind, expected }),
    }
}

impl Kind {
    fn of(number: u16) -> Option<Self> {
        match number {
            1 => Some(Self::Kernel),
            2 => Some(Self::CommandLine),
            3 => Some(Self::Ramdisk),
            4 => Some(Self::Signature),
            5 => Some(Self::Metadata),
            _ => None,
        }
    }

    fn may_repeat(self) -> bool {
        self == Self::Ramdisk
    }

    /// The version of the format that brought it.
    fn since(self) -> u16 {
        match self {
            Self::Kernel | Self::CommandLine | Self::Ramdisk => 1,
            Self::Signature => 3,
            Self::Metadata => 4,
        }
    }

    /// Sections that are taken as they are have no limit but the file's.
    fn limit(self) -> usize {
        match self {
            Self::Kernel | Self::Ramdisk => usize::MAX,
            Self::CommandLine => MAX_COMMAND_LINE,
            Self::Signature => MAX_SIGNATURE,
            Self::Metadata => MAX_METADATA,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Kernel => "kernel",
            Self::CommandLine => "command line",
            Self::Ramdisk => "ramdisk",
            Self::Signature => "signature",
            Self::Metadata => "metadata section",
        })
    }
}

/// Length of a section's own header in bytes.
pub(super) const SECTION_HEADER_LENGTH: usize = 12;
/// Ours: twice what Linux takes on any architecture of Nitro (`COMMAND_LINE_SIZE` is 2048 on x86 and arm64).
const MAX_COMMAND_LINE: usize = 4096;
/// Ours: a certificate of 16 KiB, each byte of which takes two in the section, and its signature fit twice.
const MAX_SIGNATURE: usize = 64 * 1024;
/// Ours: `nitro-cli` takes at most 4096 bytes of the user's; the rest describes a container image.
const MAX_METADATA: usize = 1024 * 1024;
