//! What is measured, and the sealed memory that runs.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use attestation::measurement::{h48, h48_of_parts};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::nsm::Registers;

/// An enclave program and the file beside it, read once: these bytes are measured and these bytes run.
pub struct Image {
    program: Vec<u8>,
    configuration: Vec<u8>,
}

impl Image {
    /// Reads both files.
    pub fn read(program: &Path, configuration: &Path) -> Result<Self, ImageError> {
        let read = |path: &Path| fs::read(path).map_err(|error| ImageError::Read { path: path.to_owned(), error });
        let image = Self { program: read(program)?, configuration: read(configuration)? };
        // A script would be opened again by its interpreter, under a name that is gone by then.
        if image.program.starts_with(ELF) { Ok(image) } else { Err(ImageError::NotElf { path: program.to_owned() }) }
    }

    /// PCR0 = H48(program || configuration), PCR1 = H48(program), PCR2 = H48(configuration).
    #[must_use]
    pub fn measure(&self, role_arn: Option<String>) -> Registers {
        let Self { program, configuration } = self;
        Registers {
            pcr0: h48_of_parts(&[program, configuration]),
            pcr1: h48(program),
            pcr2: h48(configuration),
            role_arn,
        }
    }

    pub(super) fn sealed_program(&self) -> Result<OwnedFd, ImageError> {
        sealed("enclave", &self.program)
    }

    pub(super) fn sealed_configuration(&self) -> Result<OwnedFd, ImageError> {
        sealed("image.toml", &self.configuration)
    }
}

/// A file in memory that nobody can change any more, this process included.
fn sealed(name: &str, bytes: &[u8]) -> Result<OwnedFd, ImageError> {
    let memory = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).map_err(io::Error::from)?;
    let mut file = File::from(memory);
    file.write_all(bytes)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(io::Error::from)?;
    Ok(file.into())
}

/// Why there is nothing to start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A file cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The program is not an ELF file.
    #[error("{}: not an ELF program", path.display())]
    NotElf {
        /// Which.
        path: PathBuf,
    },
    /// The memory to run from could not be made.
    #[error("sealed memory: {0}")]
    Memory(#[from] io::Error),
}

const ELF: &[u8] = b"\x7fELF";
