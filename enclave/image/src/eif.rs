//! The enclave image file, version 4.
//!
//! Source: the definitions of aws-nitro-enclaves-image-format 0.8.1. All numbers are big-endian. A header of 548 bytes, then
//! each section behind a header of 12 bytes: kernel, command line, metadata, ramdisks, signature.

use attestation::Pcr;
use attestation::measurement::h48_of_parts;

/// An image before it is written.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The kernel, a bzImage.
    pub kernel: &'a [u8],
    /// Its command line.
    pub cmdline: &'a str,
    /// JSON; not measured.
    pub metadata: &'a [u8],
    /// At least one.
    pub ramdisks: &'a [Vec<u8>],
}

/// Why an image cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EifError {
    /// The header has room for 32 sections.
    #[error("an image has 1 to 28 ramdisks, not {0}")]
    Ramdisks(usize),
    /// The command line cannot hold a zero.
    #[error("the kernel's command line has a zero byte")]
    Cmdline,
}

impl Parts<'_> {
    /// What the security module will report as PCR0: SHA384(48 zero bytes || SHA384(kernel || command line || all ramdisks)).
    #[must_use]
    pub fn pcr0(&self) -> Pcr {
        let Self { kernel, cmdline, metadata: _, ramdisks } = self;
        let mut parts = vec![*kernel, cmdline.as_bytes()];
        parts.extend(ramdisks.iter().map(Vec::as_slice));
        h48_of_parts(&parts)
    }

    /// The whole file.
    pub fn write(&self, signature: Option<&[u8]>) -> Result<Vec<u8>, EifError> {
        let Self { kernel, cmdline, metadata, ramdisks } = *self;
        if ramdisks.is_empty() || ramdisks.len() > RAMDISKS_MAX {
            return Err(EifError::Ramdisks(ramdisks.len()));
        }
        if cmdline.contains('\0') {
            return Err(EifError::Cmdline);
        }
        let mut sections = vec![(KERNEL, kernel), (CMDLINE, cmdline.as_bytes()), (METADATA, metadata)];
        sections.extend(ramdisks.iter().map(|ramdisk| (RAMDISK, ramdisk.as_slice())));
        sections.extend(signature.map(|signature| (SIGNATURE, signature)));
        let mut file = header(&sections);
        for (kind, content) in &sections {
            file.extend_from_slice(&kind.to_be_bytes());
            file.extend_from_slice(&0_u16.to_be_bytes());
            file.extend_from_slice(&(content.len() as u64).to_be_bytes());
            file.extend_from_slice(content);
        }
        // "it contains the crc for everything except the bytes representing this field": the last of the header.
        let mut crc = crc32fast::Hasher::new();
        let (before, after) = (HEADER_BYTES - size_of::<u32>(), HEADER_BYTES);
        crc.update(file.get(..before).unwrap_or_default());
        crc.update(file.get(after..).unwrap_or_default());
        if let Some(field) = file.get_mut(before..after) {
            field.copy_from_slice(&crc.finalize().to_be_bytes());
        }
        Ok(file)
    }
}

/// The header with a checksum of zero.
fn header(sections: &[(u16, &[u8])]) -> Vec<u8> {
    let (mut offsets, mut sizes) = ([0_u64; SECTIONS_MAX], [0_u64; SECTIONS_MAX]);
    let mut offset = HEADER_BYTES as u64;
    for ((_, content), (place, size)) in sections.iter().zip(offsets.iter_mut().zip(&mut sizes)) {
        *place = offset;
        *size = content.len() as u64;
        offset += SECTION_HEADER_BYTES + *size;
    }
    let count = u16::try_from(sections.len()).unwrap_or(u16::MAX);
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend_from_slice(b".eif");
    header.extend_from_slice(&VERSION.to_be_bytes());
    header.extend_from_slice(&X86_64.to_be_bytes());
    header.extend_from_slice(&DEFAULT_MEMORY.to_be_bytes());
    header.extend_from_slice(&DEFAULT_CPUS.to_be_bytes());
    header.extend_from_slice(&0_u16.to_be_bytes());
    header.extend_from_slice(&count.to_be_bytes());
    for field in offsets.into_iter().chain(sizes) {
        header.extend_from_slice(&field.to_be_bytes());
    }
    header.extend_from_slice(&0_u32.to_be_bytes());
    header.extend_from_slice(&0_u32.to_be_bytes());
    header
}

/// The version with metadata.
const VERSION: u16 = 4;
/// Flags: bit 0 is set for aarch64.
const X86_64: u16 = 0;
/// What a loader takes that is told nothing else, as AWS's builder writes it.
const DEFAULT_MEMORY: u64 = 1 << 30;
const DEFAULT_CPUS: u64 = 2;
const HEADER_BYTES: usize = 548;
const SECTION_HEADER_BYTES: u64 = 12;
const SECTIONS_MAX: usize = 32;
/// Kernel, command line, metadata and signature take four of the sections.
const RAMDISKS_MAX: usize = SECTIONS_MAX - 4;
const KERNEL: u16 = 1;
const CMDLINE: u16 = 2;
const RAMDISK: u16 = 3;
const SIGNATURE: u16 = 4;
const METADATA: u16 = 5;
