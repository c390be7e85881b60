//! The first 548 bytes: what the file says of itself, and where its sections are.
//!
//! All integers are big-endian. Source of the layout: `EifHeader` in AWS's `aws-nitro-enclaves-image-format` 0.8.1.

use super::sections::{Kind, SECTION_HEADER_LENGTH};

/// A header whose table of sections fits the length of the file: back to back, from the header to the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    version: u16,
    architecture: Architecture,
    default_memory: u64,
    default_cpus: u64,
    /// Offset and length of each section; the offset is that of its own header, which the length does not count.
    table: Vec<(usize, usize)>,
    crc32: u32,
}

/// The processor that an image is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// 64-bit x86.
    X86_64,
    /// 64-bit ARM.
    Aarch64,
}

impl Header {
    /// Reads the header from the first [`HEADER_LENGTH`] bytes of a file of `length` bytes; more bytes are not looked at.
    ///
    /// Call this before the rest of a file is read: it refuses what is not an image, and lengths that do not fit.
    ///
    /// # Errors
    /// When a field has no known meaning, or the sections do not fill the file exactly.
    pub fn parse(bytes: &[u8], length: u64) -> Result<Self, ImageError> {
        let mut fields = Fields(bytes.get(..HEADER_LENGTH).ok_or(ImageError::NoHeader { length: bytes.len() as u64 })?);
        if fields.take::<4>()? != MAGIC {
            return Err(ImageError::NotAnImage);
        }
        let version = fields.u16()?;
        if !VERSIONS.contains(&version) {
            return Err(ImageError::Version { found: version });
        }
        let architecture = match fields.u16()? {
            0 => Architecture::X86_64,
            FLAG_AARCH64 => Architecture::Aarch64,
            found => return Err(ImageError::HeaderFlags { found }),
        };
        let (default_memory, default_cpus) = (fields.u64()?, fields.u64()?);
        if fields.u16()? != 0 {
            return Err(ImageError::Reserved);
        }
        let count = fields.u16()?;
        let places = (fields.u64s()?, fields.u64s()?);
        if fields.u32()? != 0 {
            return Err(ImageError::Reserved);
        }
        let crc32 = fields.u32()?;
        let table = table(usize::from(count), &places, length)?;
        Ok(Self { version, architecture, default_memory, default_cpus, table, crc32 })
    }

    /// The version of the format: 2 to 4.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.version
    }

    /// The processor it is for.
    #[must_use]
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// Memory in bytes that the image asks for. `nitro-cli` decides without it.
    #[must_use]
    pub fn default_memory(&self) -> u64 {
        self.default_memory
    }

    /// CPUs that the image asks for. `nitro-cli` decides without it.
    #[must_use]
    pub fn default_cpus(&self) -> u64 {
        self.default_cpus
    }

    /// The checksum that the header states.
    #[must_use]
    pub fn crc32(&self) -> u32 {
        self.crc32
    }

    pub(super) fn table(&self) -> &[(usize, usize)] {
        &self.table
    }
}

/// The CRC32 (ISO-HDLC) of everything but the field that holds it, the last of the header.
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(bytes.get(..CRC_OFFSET).unwrap_or(bytes));
    hasher.update(bytes.get(HEADER_LENGTH..).unwrap_or_default());
    hasher.finalize()
}

type Places = ([u64; MAX_SECTIONS], [u64; MAX_SECTIONS]);

fn table(count: usize, (offsets, sizes): &Places, length: u64) -> Result<Vec<(usize, usize)>, ImageError> {
    if count > MAX_SECTIONS {
        return Err(ImageError::TooManySections { found: count });
    }
    let mut table = Vec::with_capacity(count);
    let mut end = HEADER_LENGTH as u64;
    for (index, (&offset, &size)) in offsets.iter().zip(sizes).enumerate() {
        if index >= count {
            if (offset, size) != (0, 0) {
                return Err(ImageError::UnusedEntry { index });
            }
            continue;
        }
        if offset < end {
            return Err(ImageError::Overlap { index, offset, end });
        }
        if offset > end {
            return Err(ImageError::Gap { index, offset, end });
        }
        let after = offset.checked_add(SECTION_HEADER_LENGTH as u64).and_then(|start| start.checked_add(size));
        end = after.filter(|end| *end <= length).ok_or(ImageError::OutOfRange { index, offset, size, length })?;
        let fits = |value| usize::try_from(value).map_err(|_| ImageError::OutOfRange { index, offset, size, length });
        table.push((fits(offset)?, fits(size)?));
    }
    if end < length { Err(ImageError::Trailing { count: length - end }) } else { Ok(table) }
}

/// The header's bytes that have not been read yet.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], ImageError> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(ImageError::NoHeader { length: 0 })?;
        self.0 = rest;
        Ok(*field)
    }

    fn u16(&mut self) -> Result<u16, ImageError> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, ImageError> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, ImageError> {
        self.take().map(u64::from_be_bytes)
    }

    fn u64s(&mut self) -> Result<[u64; MAX_SECTIONS], ImageError> {
        let mut values = [0; MAX_SECTIONS];
        for value in &mut values {
            *value = self.u64()?;
        }
        Ok(values)
    }
}

/// Why a file is not an image that is understood in one way only. `index` counts sections from 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Shorter than a header.
    #[error("the file has {length} bytes, the header of an EIF alone has {HEADER_LENGTH}; was it cut off?")]
    NoHeader {
        /// Bytes there.
        length: u64,
    },
    /// Another first four bytes.
    #[error("not an enclave image: the file does not begin with `.eif`")]
    NotAnImage,
    /// A version that is not known, or has no checksum.
    #[error("EIF version {found}, expected {} to {}", VERSIONS.start(), VERSIONS.end())]
    Version {
        /// The version.
        found: u16,
    },
    /// A flag other than that of the architecture.
    #[error("the header has flags {found:#06x}, expected 0 (x86_64) or {FLAG_AARCH64} (aarch64)")]
    HeaderFlags {
        /// All flags.
        found: u16,
    },
    /// A field without a meaning holds something.
    #[error("a reserved field of the header is not zero")]
    Reserved,
    /// More sections than the table can hold.
    #[error("the header announces {found} sections, at most {MAX_SECTIONS} are possible")]
    TooManySections {
        /// The number.
        found: usize,
    },
    /// The table holds something behind its last section.
    #[error("the header's table has an entry {index}, which is no section")]
    UnusedEntry {
        /// The entry.
        index: usize,
    },
    /// A section begins inside what is before it.
    #[error("section {index} begins at byte {offset}, inside what ends at byte {end}")]
    Overlap {
        /// The section.
        index: usize,
        /// Where it begins.
        offset: u64,
        /// Where it should begin.
        end: u64,
    },
    /// Bytes that belong to no section.
    #[error("section {index} begins at byte {offset}, but the one before it ends at byte {end}")]
    Gap {
        /// The section.
        index: usize,
        /// Where it begins.
        offset: u64,
        /// Where it should begin.
        end: u64,
    },
    /// A section ends behind the end of the file.
    #[error("section {index} has {size} bytes from byte {offset}, the file has {length} bytes; was it cut off?")]
    OutOfRange {
        /// The section.
        index: usize,
        /// Where it begins.
        offset: u64,
        /// Its length.
        size: u64,
        /// The file's length.
        length: u64,
    },
    /// Bytes behind the last section.
    #[error("{count} bytes follow the last section")]
    Trailing {
        /// How many.
        count: u64,
    },
    /// A type that is not known.
    #[error("section {index} has the unknown type {found}")]
    UnknownSection {
        /// The section.
        index: usize,
        /// The type.
        found: u16,
    },
    /// A flag on a section: none has a meaning.
    #[error("section {index} has flags {found:#06x}, expected none")]
    SectionFlags {
        /// The section.
        index: usize,
        /// All flags.
        found: u16,
    },
    /// The section's own header has another length than the table.
    #[error("section {index} has {found} bytes by its own header, {expected} by the file's")]
    SectionSize {
        /// The section.
        index: usize,
        /// By its own header.
        found: u64,
        /// By the file's header.
        expected: u64,
    },
    /// A second section of a type that may be there once.
    #[error("section {index} is a second {kind}")]
    Duplicate {
        /// The section.
        index: usize,
        /// Its type.
        kind: Kind,
    },
    /// The file does not begin with kernel and command line.
    #[error("section {index} is a {found}, expected the {expected}")]
    Order {
        /// The section.
        index: usize,
        /// Its type.
        found: Kind,
        /// The type that belongs there.
        expected: Kind,
    },
    /// A section without which nothing boots.
    #[error("there is no {kind}")]
    Missing {
        /// Its type.
        kind: Kind,
    },
    /// A section longer than any real one.
    #[error("the {kind} has {size} bytes, at most {limit} are allowed")]
    TooLarge {
        /// Its type.
        kind: Kind,
        /// Its length.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// A section that its version of the format does not have.
    #[error("a {kind} in EIF version {version}, which has none")]
    TooNew {
        /// Its type.
        kind: Kind,
        /// The version.
        version: u16,
    },
}

/// Length of the header in bytes.
pub const HEADER_LENGTH: usize = 548;
/// Entries of the header's table (`MAX_NUM_SECTIONS`).
pub const MAX_SECTIONS: usize = 32;

const MAGIC: [u8; 4] = *b".eif";
/// Version 2 brought the checksum, 3 the signature, 4 the metadata; the header is the same in all of them.
const VERSIONS: std::ops::RangeInclusive<u16> = 2..=4;
/// `EIF_HDR_ARCH_ARM64`.
const FLAG_AARCH64: u16 = 1;
/// The checksum is the header's last field.
const CRC_OFFSET: usize = HEADER_LENGTH - 4;
