//! The images that are booted: the shipped one, and those that differ from it in what a test is about.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use attestation::Pcr;
use attestation::image::Image;

use crate::parts::{Parts, output};

/// What an image is written from.
pub(crate) struct Recipe<'a> {
    /// The program that becomes `/init`.
    pub(crate) program: &'a Path,
    /// The file that becomes `/etc/subrosa/image.toml`.
    pub(crate) configuration: &'a Path,
    /// PEM files of a key and its certificate.
    pub(crate) signer: Option<(PathBuf, PathBuf)>,
}

impl Recipe<'_> {
    /// Writes the image with the shipped kernel and command line.
    pub(crate) fn write(&self, parts: &Parts, to: &Path) -> io::Result<()> {
        let mut command = Command::new(&parts.writer);
        command.arg("build").arg("--program").arg(self.program).arg("--kernel").arg(&parts.kernel);
        command.arg("--image-config").arg(self.configuration).arg("--output").arg(to);
        if let Some((key, certificate)) = &self.signer {
            command.arg("--sign-key").arg(key).arg("--sign-certificate").arg(certificate);
        }
        output(&mut command).map(drop)
    }
}

/// Registers 0 to 2 and, of a signed image, 8: what `subrosa measure` shows.
pub(crate) fn measured(image: &Path) -> io::Result<Vec<(u8, Pcr)>> {
    let bytes = fs::read(image)?;
    let measurements = Image::parse(&bytes).map_err(io::Error::other)?.measurements();
    let mut registers = vec![(0, measurements.pcr0), (1, measurements.pcr1), (2, measurements.pcr2)];
    registers.extend(measurements.pcr8.map(|pcr8| (8, pcr8)));
    Ok(registers)
}

/// The image with one byte of its configuration changed: `release = 1` becomes `release = 2`.
pub(crate) fn with_one_byte_changed(image: &Path, to: &Path) -> io::Result<()> {
    let mut bytes = fs::read(image)?;
    let found = bytes.windows(RELEASE.len()).position(|window| window == RELEASE);
    let at = found.ok_or_else(|| io::Error::other("the second ramdisk holds no `release = 1`"))? + RELEASE.len() - 1;
    if let Some(byte) = bytes.get_mut(at) {
        *byte = b'2';
    }
    // Whoever changes an image can mend its checksum, too: it is against accidents. It leaves itself out.
    let crc = Image::parse(&bytes).map_err(io::Error::other)?.crc32();
    if let Some(field) = bytes.get_mut(CRC) {
        field.copy_from_slice(&crc.to_be_bytes());
    }
    fs::write(to, bytes)
}

const RELEASE: &[u8] = b"release = 1";
/// The last field of the header of 548 bytes.
const CRC: std::ops::Range<usize> = 544..548;
