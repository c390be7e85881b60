//! Is it the code that I want? And the two formulas that make a measurement.

use std::collections::BTreeMap;

use ring::digest::{Context, SHA384};

use crate::Pcr;
use crate::document::{Document, Fingerprint};

/// The reference values of a relying party.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// For each register that matters the values that are accepted (several while a release rolls over).
    pub pcrs: BTreeMap<u8, Vec<Pcr>>,
    /// Accept an enclave in debug mode, whose console the parent reads and whose PCR0 to PCR2 are zero.
    pub danger_allow_debug: bool,
}

/// Proof that a document's registers hold accepted values.
#[derive(Clone, Debug)]
pub struct Measured {
    document: Fingerprint,
}

impl Measured {
    pub(crate) fn document(&self) -> Fingerprint {
        self.document
    }
}

/// Compares the registers of a document with the reference values.
///
/// Debug mode is refused first; then, that nothing is expected is an error too: a check of nothing is no check.
pub fn check(document: &Document, expected: &Expected) -> Result<Measured, MeasurementError> {
    let Expected { pcrs, danger_allow_debug } = expected;
    if !danger_allow_debug {
        refuse_debug(document)?;
    }
    if pcrs.is_empty() {
        return Err(MeasurementError::NothingExpected);
    }
    for (&index, accepted) in pcrs {
        if accepted.is_empty() {
            return Err(MeasurementError::NoValue { index });
        }
        // Zero is what every debug enclave of anybody has in PCR0 to PCR2.
        if index <= 2 && !danger_allow_debug && accepted.contains(&ZERO) {
            return Err(MeasurementError::ZeroExpected { index });
        }
        let found = document.pcrs().get(&index).ok_or(MeasurementError::Missing { index })?;
        if !accepted.contains(found) {
            return Err(MeasurementError::Mismatch { index, found: *found, accepted: accepted.clone() });
        }
    }
    Ok(Measured { document: document.fingerprint() })
}

/// Refuses a document of an enclave in debug mode, and nothing else.
pub fn refuse_debug(document: &Document) -> Result<(), MeasurementError> {
    if document.is_debug() { Err(MeasurementError::Debug) } else { Ok(()) }
}

/// The measurement of a content: SHA384(48 zero bytes || SHA384(content)), as PCR0, PCR1, PCR2 and PCR8 are made.
#[must_use]
pub fn h48(content: &[u8]) -> Pcr {
    h48_of_parts(&[content])
}

/// [`h48`] of a content in several pieces.
#[must_use]
pub fn h48_of_parts(parts: &[&[u8]]) -> Pcr {
    extend(&ZERO, &sha384(parts))
}

/// The new value of a register: SHA384(old || data). The data is taken as it is, not hashed first.
#[must_use]
pub fn extend(old: &Pcr, data: &[u8]) -> Pcr {
    sha384(&[old, data])
}

pub(crate) fn sha384(parts: &[&[u8]]) -> [u8; 48] {
    let mut context = Context::new(&SHA384);
    parts.iter().for_each(|part| context.update(part));
    let mut digest = [0; 48];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

/// Why the code is not the expected code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MeasurementError {
    /// The enclave runs in debug mode.
    #[error("the enclave runs in debug mode: PCR0, PCR1 and PCR2 are zero, its parent can read it")]
    Debug,
    /// A register is not in the document.
    #[error("PCR{index} is not in the document: it is not locked")]
    Missing {
        /// The register.
        index: u8,
    },
    /// A register holds another value.
    #[error("PCR{index} is {}, expected {}", Hex(found), accepted.iter().map(|pcr| Hex(pcr).to_string()).collect::<Vec<_>>().join(" or "))]
    Mismatch {
        /// The register.
        index: u8,
        /// What it holds.
        found: Pcr,
        /// What was accepted.
        accepted: Vec<Pcr>,
    },
    /// The reference values name no register.
    #[error("no register is expected to have any value: name at least PCR0")]
    NothingExpected,
    /// The reference values name a register and no value.
    #[error("no value is accepted for PCR{index}")]
    NoValue {
        /// The register.
        index: u8,
    },
    /// The reference values accept what debug enclaves have.
    #[error("the expected value of PCR{index} is zero, which every debug enclave has")]
    ZeroExpected {
        /// The register.
        index: u8,
    },
}

struct Hex<'a>(&'a Pcr);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// A register that was never extended.
pub const ZERO: Pcr = [0; 48];

#[cfg(test)]
mod tests {
    use super::*;

    /// PCR4 of `evervault-2022-10-signed` and the instance in its module id.
    #[test]
    fn extending_a_zero_register_by_the_instance_gives_the_hardwares_pcr4() {
        let pcr4 = extend(&ZERO, b"i-020b6af9246d90e92");
        assert_eq!(
            Hex(&pcr4).to_string(),
            "1f442c86d494a88185642086d904ed89f62fb66ee9997d7b1a4f040faab3bba4244c768a584e5778195b3afc715637c6"
        );
    }

    #[test]
    fn a_measurement_is_a_zero_register_extended_by_the_digest() {
        let mut digest = [0; 48];
        digest.copy_from_slice(ring::digest::digest(&SHA384, b"content").as_ref());
        assert_eq!(h48(b"content"), extend(&ZERO, &digest));
        assert_eq!(h48_of_parts(&[b"con", b"tent"]), h48(b"content"));
    }
}
