//! Which measurements does this image have? Reads an enclave image file (EIF) and computes its PCRs, as the hypervisor does.
//!
//! The format and the formulas are those of AWS's crate `aws-nitro-enclaves-image-format` (0.8.1), which `nitro-cli` uses.
//! This reader is stricter: what two readers could understand differently is refused. An image comes from anywhere:
//! nothing is allocated by its word, and the contents of kernel and ramdisks are bytes without a meaning, but for
//! [`Image::configuration`].
//!
//! | register | content |
//! | --- | --- |
//! | PCR0 | kernel, command line, all ramdisks |
//! | PCR1 | kernel, command line, the first ramdisk |
//! | PCR2 | all ramdisks but the first |
//! | PCR8 | the signing certificate |
//!
//! The contents of a register are joined without their lengths, so a register does not say where one section ends and the
//! next begins. The metadata is in no register.

mod configuration;
mod header;
mod sections;
mod signature;

use ring::digest::{Context, SHA384};

use crate::Pcr;
use crate::measurement::{ZERO, extend};

pub use configuration::{ConfigurationError, MAX_CONFIGURATION, PATH as CONFIGURATION_PATH};
pub use header::{Architecture, HEADER_LENGTH, Header, ImageError, MAX_SECTIONS};
pub use sections::{Kind, Section};
pub use signature::{Algorithm, Signature, SignatureError};

use sections::Sections;

/// An image of the right form, measured.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    header: Header,
    sections: Sections<'a>,
    crc32: u32,
    measurements: Measurements,
    signature: Option<Result<Signature, SignatureError>>,
}

/// The registers that an image decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measurements {
    /// The whole image: kernel, command line and all ramdisks.
    pub pcr0: Pcr,
    /// What boots: kernel, command line and the first ramdisk.
    pub pcr1: Pcr,
    /// The ramdisks after the first.
    pub pcr2: Pcr,
    /// The signing certificate, only of an image whose signature is good.
    pub pcr8: Option<Pcr>,
}

impl<'a> Image<'a> {
    /// Reads a whole file, computes its checksum and its measurements and verifies its signature.
    ///
    /// A wrong checksum and a bad signature are no errors here, but verdicts: [`Self::is_intact`], [`Self::signature`].
    ///
    /// # Errors
    /// When the form is not exactly that of an EIF of version 2 to 4.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let header = Header::parse(bytes, length)?;
        let sections = Sections::parse(bytes, &header)?;
        let mut measurements = measure(&sections);
        let signature = sections.signature().map(|section| signature::verify(section, &measurements.pcr0));
        if let Some(Ok(signature)) = &signature {
            measurements.pcr8 = Some(signature.pcr8());
        }
        Ok(Self { crc32: header::crc32(bytes), header, sections, measurements, signature })
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// All sections, in the order of the file.
    #[must_use]
    pub fn sections(&self) -> &[Section<'a>] {
        self.sections.all()
    }

    /// The CRC32 of the file as it is.
    #[must_use]
    pub fn crc32(&self) -> u32 {
        self.crc32
    }

    /// Whether the file has the checksum that its header states. A damaged file fails this; a forged one need not.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.crc32 == self.header.crc32()
    }

    /// The registers of an enclave that runs this image.
    #[must_use]
    pub fn measurements(&self) -> Measurements {
        self.measurements
    }

    /// The signature: none; good; or bad, and then no enclave has a PCR8 by it.
    #[must_use]
    pub fn signature(&self) -> Option<Result<&Signature, &SignatureError>> {
        self.signature.as_ref().map(Result::as_ref)
    }

    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> &'a [u8] {
        self.sections.kernel()
    }

    /// The kernel's command line, as it stands there.
    #[must_use]
    pub fn command_line(&self) -> &'a [u8] {
        self.sections.command_line()
    }

    /// The ramdisks, at least one.
    pub fn ramdisks(&self) -> impl Iterator<Item = &'a [u8]> {
        self.sections.ramdisks()
    }

    /// The metadata: usually JSON, never measured, so it proves nothing.
    #[must_use]
    pub fn metadata(&self) -> Option<&'a [u8]> {
        self.sections.metadata()
    }

    /// The image configuration of Subrosa's own images: the bytes of `etc/subrosa/image.toml` in the last ramdisk.
    ///
    /// None for the images of other people. What is shown here is what the program of PCR1 reads.
    ///
    /// # Errors
    /// When the file is there, but anything else is beside it: more in its ramdisk, or another ramdisk than the program's. A kernel
    /// reads all ramdisks as one, so that a file in one of them can swallow the next.
    pub fn configuration(&self) -> Result<Option<&'a [u8]>, ConfigurationError> {
        let Some(found) = self.ramdisks().last().map_or(Ok(None), configuration::find)? else { return Ok(None) };
        match self.ramdisks().count() {
            configuration::RAMDISKS => Ok(Some(found)),
            count => Err(ConfigurationError::Ramdisks { count }),
        }
    }
}

fn measure(sections: &Sections<'_>) -> Measurements {
    let mut all = Context::new(&SHA384);
    all.update(sections.kernel());
    all.update(sections.command_line());
    let mut ramdisks = sections.ramdisks();
    if let Some(first) = ramdisks.next() {
        all.update(first);
    }
    let boot = all.clone();
    let mut application = Context::new(&SHA384);
    for ramdisk in ramdisks {
        all.update(ramdisk);
        application.update(ramdisk);
    }
    Measurements { pcr0: register(all), pcr1: register(boot), pcr2: register(application), pcr8: None }
}

/// [`crate::measurement::h48`] of what was given to a context.
fn register(content: Context) -> Pcr {
    let mut digest = [0; 48];
    digest.copy_from_slice(content.finish().as_ref());
    extend(&ZERO, &digest)
}
