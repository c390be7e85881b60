//! The two ramdisks of an image: what every image of a release shares, and what its operator decides.
//!
//! PCR1 is made of kernel, command line and the first ramdisk, PCR2 of the second: images that differ in their image
//! configuration alone have the same PCR1.

use std::io::Write;

use flate2::{Compression, GzBuilder};

use crate::newc::{Archive, NewcError, pad};

/// What goes into an image beside the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// The enclave's program, a static ELF file: it becomes `/init`.
    pub program: &'a [u8],
    /// `nsm.ko`, for a kernel that has no driver of its own for the security module.
    pub nsm_module: Option<&'a [u8]>,
    /// `/etc/subrosa/image.toml`.
    pub image_configuration: &'a [u8],
}

/// Why there are no ramdisks.
#[derive(Debug, thiserror::Error)]
pub enum RamdiskError {
    /// The archive cannot hold it.
    #[error(transparent)]
    Newc(#[from] NewcError),
    /// The compressor failed.
    #[error("the ramdisk cannot be compressed: {0}")]
    Gzip(#[from] std::io::Error),
}

/// The ramdisks, in their order, each a multiple of four bytes long.
///
/// The first is compressed; the second is not, so that whoever reads an image sees its configuration without unpacking anything.
pub fn ramdisks(contents: &Contents<'_>) -> Result<[Vec<u8>; 2], RamdiskError> {
    let Contents { program, nsm_module, image_configuration } = contents;
    let mut system = Archive::default();
    for directory in ["dev", "proc", "sys", "etc", "etc/subrosa"] {
        system.directory(directory)?;
    }
    // Without it the kernel gives the first program no console.
    system.device("dev/console", 5, 1)?;
    system.file("init", 0o755, program)?;
    if let Some(module) = nsm_module {
        system.file("nsm.ko", 0o644, module)?;
    }
    let mut configuration = Archive::default();
    configuration.file("etc/subrosa/image.toml", 0o644, image_configuration)?;
    Ok([compressed(&system.finish())?, configuration.finish()])
}

/// gzip without a name, with time 0.
fn compressed(archive: &[u8]) -> std::io::Result<Vec<u8>> {
    // 255: "unknown" (RFC 1952, section 2.3.1), whatever system this runs on.
    let mut encoder = GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::best());
    encoder.write_all(archive)?;
    let mut bytes = encoder.finish()?;
    pad(&mut bytes);
    Ok(bytes)
}
