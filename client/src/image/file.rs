//! An image file, read whole and within a limit.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use attestation::image::{HEADER_LENGTH, Header, Image, ImageError, Measurements, SignatureError};

use crate::measurements::PcrArgument;

/// Reads an image file into memory, once: so much memory as the file has bytes, and none for what is no image.
///
/// # Errors
/// When it cannot be read, is larger than [`MAX_IMAGE`], or its header does not fit it.
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let wrong = |error: io::Error| FileError::Read { path: path.to_owned(), error };
    let form = |error| FileError::Form { path: path.to_owned(), error };
    let mut file = File::open(path).map_err(wrong)?;
    let metadata = file.metadata().map_err(wrong)?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile(path.to_owned()));
    }
    let length = metadata.len();
    if length > MAX_IMAGE {
        return Err(FileError::TooLarge { path: path.to_owned(), length });
    }
    let mut bytes = Vec::new();
    file.by_ref().take(HEADER_LENGTH as u64).read_to_end(&mut bytes).map_err(wrong)?;
    Header::parse(&bytes, length).map_err(form)?;
    let rest = usize::try_from(length).unwrap_or(usize::MAX).saturating_sub(bytes.len());
    bytes.try_reserve_exact(rest).map_err(|_| FileError::Memory { path: path.to_owned(), length })?;
    // A file that grows meanwhile is refused by the parser, as one with bytes behind its last section.
    file.take(rest as u64 + 1).read_to_end(&mut bytes).map_err(wrong)?;
    Ok(bytes)
}

/// The measurements of an image of one's own: intact, and if it is signed, then well.
#[derive(Clone, Debug)]
pub struct TrustedImage {
    measurements: Measurements,
}

impl TrustedImage {
    /// Reads and measures a file.
    ///
    /// # Errors
    /// When it cannot be read, is not an image, has another checksum than it states, or a signature that is not good.
    pub fn measure(path: &Path) -> Result<Self, FileError> {
        let bytes = read(path)?;
        let image = Image::parse(&bytes).map_err(|error| FileError::Form { path: path.to_owned(), error })?;
        check(path, &image)?;
        Ok(Self { measurements: image.measurements() })
    }

    /// PCR0, PCR1, PCR2, and PCR8 of a signed image.
    #[must_use]
    pub fn pcrs(&self) -> Vec<PcrArgument> {
        let Measurements { pcr0, pcr1, pcr2, pcr8 } = self.measurements;
        let signed = pcr8.map(|value| (8, value));
        [(0, pcr0), (1, pcr1), (2, pcr2)]
            .into_iter()
            .chain(signed)
            .map(|(index, value)| PcrArgument { index, value })
            .collect()
    }

    /// Whether it is signed.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        self.measurements.pcr8.is_some()
    }
}

/// That the image is what its header states and what its signature signs.
///
/// # Errors
/// When either is not so.
pub fn check(path: &Path, image: &Image<'_>) -> Result<(), FileError> {
    if !image.is_intact() {
        let (stated, found) = (image.header().crc32(), image.crc32());
        return Err(FileError::Damaged { path: path.to_owned(), stated, found });
    }
    match image.signature() {
        None | Some(Ok(_)) => Ok(()),
        Some(Err(error)) => Err(FileError::Signature { path: path.to_owned(), error: Box::new(error.clone()) }),
    }
}

/// Why a file is not an image whose measurements may be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{} cannot be read: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A folder, a pipe or a device.
    #[error("{} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// Larger than the limit.
    #[error("{} has {length} bytes, at most {MAX_IMAGE} are read: an enclave needs four times its image in memory", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        length: u64,
    },
    /// The memory is not there.
    #[error("{} has {length} bytes, for which there is no memory", path.display())]
    Memory {
        /// The file.
        path: PathBuf,
        /// Its length.
        length: u64,
    },
    /// Not an image.
    #[error("{}: {error}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: ImageError,
    },
    /// Another checksum.
    #[error("{} is damaged: its CRC32 is {found:08x}, its header states {stated:08x}; get it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// By the header.
        stated: u32,
        /// By the bytes.
        found: u32,
    },
    /// Not signed well.
    #[error("{}: {error}", path.display())]
    Signature {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: Box<SignatureError>,
    },
}

impl FileError {
    /// Whether a signature is what is wrong, and not the file.
    #[must_use]
    pub fn is_about_signature(&self) -> bool {
        matches!(self, Self::Signature { .. })
    }
}

/// 4 GiB. `nitro-cli` runs no enclave with less memory than four times its image (`ENCLAVE_MEMORY_EIF_SIZE_RATIO`): this is
/// one of 16 GiB. Subrosa's own images have some 10 MB, because models do not stand in them.
pub const MAX_IMAGE: u64 = 4 << 30;
