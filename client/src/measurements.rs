//! Expected PCR values from the command line and from the measurements that `nitro-cli` prints.

use std::collections::BTreeMap;
use std::str::FromStr;

use attestation::Pcr;
use serde_json::Value;

/// One `N=HEX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcrArgument {
    /// 0 to 31.
    pub index: u8,
    /// The expected value.
    pub value: Pcr,
}

impl FromStr for PcrArgument {
    type Err = MeasurementsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (index, value) = text.split_once('=').ok_or(MeasurementsError::NoEquals)?;
        let index = index.parse().ok().filter(|index| *index < PCRS).ok_or(MeasurementsError::Index)?;
        Ok(Self { index, value: pcr(index, value)? })
    }
}

/// Joins arguments into what to expect: several values for one PCR mean any of them.
#[must_use]
pub fn join(arguments: impl IntoIterator<Item = PcrArgument>) -> BTreeMap<u8, Vec<Pcr>> {
    let mut expected: BTreeMap<u8, Vec<Pcr>> = BTreeMap::new();
    for PcrArgument { index, value } in arguments {
        expected.entry(index).or_default().push(value);
    }
    expected
}

/// The registers of one image.
pub type Image = BTreeMap<u8, Pcr>;

/// Reads the object that `nitro-cli build-enclave` and `describe-eif` print, or only its `Measurements`:
/// `{"Measurements": {"HashAlgorithm": ..., "PCR0": "<96 hex>", ...}}`; or several of them, as `subrosa rotate plan` writes them:
/// `{"Images": [{"Name": ..., "Measurements": {...}}, ...]}`.
///
/// # Errors
/// When it is not JSON, an image names no PCR, or a value is not 48 bytes in hex.
pub fn parse_images(json: &[u8]) -> Result<Vec<Image>, MeasurementsError> {
    let value: Value = serde_json::from_slice(json).map_err(|error| MeasurementsError::Json(error.to_string()))?;
    match value.get("Images") {
        None => Ok(vec![parse_image(&value)?]),
        Some(images) => {
            let images = images.as_array().filter(|images| (1..=MAX_IMAGES).contains(&images.len()));
            images.ok_or(MeasurementsError::Images)?.iter().map(parse_image).collect()
        }
    }
}

/// The registers that all of these images have: one that some of them lack (PCR8 of an image without signature) would refuse those.
#[must_use]
pub fn shared(images: &[Image]) -> Vec<PcrArgument> {
    let in_all = |index: &u8| images.iter().all(|image| image.contains_key(index));
    let all = images.iter().flatten().filter(|(index, _)| in_all(index));
    all.map(|(index, value)| PcrArgument { index: *index, value: *value }).collect()
}

fn parse_image(value: &Value) -> Result<Image, MeasurementsError> {
    let measurements = value.get("Measurements").unwrap_or(value).as_object().ok_or(MeasurementsError::NoPcr)?;
    let mut found = Image::new();
    for (name, value) in measurements {
        let Some(index) = name.strip_prefix("PCR") else { continue };
        let index = index.parse().ok().filter(|index| *index < PCRS).ok_or(MeasurementsError::Index)?;
        found.insert(index, pcr(index, value.as_str().unwrap_or_default())?);
    }
    if found.is_empty() { Err(MeasurementsError::NoPcr) } else { Ok(found) }
}

/// Why a measurement cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MeasurementsError {
    /// No `=`.
    #[error("write N=HEX, for example 0=4b4d5b36...")]
    NoEquals,
    /// Not a PCR of an enclave.
    #[error("a PCR's index is a number from 0 to 31")]
    Index,
    /// Not 48 bytes in hex.
    #[error("the value of PCR{index} is not 96 hex digits (SHA-384), it has {length}")]
    Value {
        /// The PCR.
        index: u8,
        /// Characters found.
        length: usize,
    },
    /// Not JSON.
    #[error("the measurements are not JSON ({0})")]
    Json(String),
    /// JSON without a PCR.
    #[error("the measurements hold no PCR; give what `nitro-cli describe-eif` prints")]
    NoPcr,
    /// A list of images that is none, or too long.
    #[error("`Images` must be a list of 1 to {MAX_IMAGES} images")]
    Images,
}

fn pcr(index: u8, text: &str) -> Result<Pcr, MeasurementsError> {
    let mut value = [0; size_of::<Pcr>()];
    hex::decode_to_slice(text, &mut value)
        .map_err(|_| MeasurementsError::Value { index, length: text.chars().count() })?;
    Ok(value)
}

/// The NSM of an enclave has 32 PCRs.
const PCRS: u8 = 32;
/// More releases than anybody keeps in service at once.
const MAX_IMAGES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_values_for_one_pcr_are_alternatives() {
        let argument = |text: String| text.parse::<PcrArgument>().unwrap();
        let expected = join([argument(format!("0={}", "aa".repeat(48))), argument(format!("0={}", "BB".repeat(48)))]);
        assert_eq!(expected[&0], [[0xaa; 48], [0xbb; 48]]);
    }

    #[test]
    fn a_value_of_another_length_is_refused() {
        for text in ["0=aa", "0=", "0", "32=aa", "x=aa", "=aa"] {
            assert!(text.parse::<PcrArgument>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_output_of_describe_eif_is_read() {
        let value = "ab".repeat(48);
        let json = format!(
            r#"{{"EifVersion":4,"Measurements":{{"HashAlgorithm":"Sha384 {{ ... }}","PCR0":"{value}","PCR2":"{value}"}}}}"#
        );
        let found = parse_images(json.as_bytes()).unwrap();
        assert_eq!(found[0].keys().collect::<Vec<_>>(), [&0, &2]);
        assert!(parse_images(b"{\"Measurements\":{}}").is_err());
        assert!(parse_images(b"{\"PCR0\":\"00\"}").is_err());
    }

    #[test]
    fn of_several_images_only_what_all_have_is_compared() {
        let (one, two) = ("ab".repeat(48), "cd".repeat(48));
        let json = format!(
            r#"{{"Images":[{{"Name":"a","Measurements":{{"PCR0":"{one}","PCR8":"{one}"}}}},{{"Measurements":{{"PCR0":"{two}"}}}}]}}"#
        );
        let images = parse_images(json.as_bytes()).unwrap();
        assert_eq!(images.len(), 2);
        assert_eq!(join(shared(&images)), BTreeMap::from([(0, vec![[0xab; 48], [0xcd; 48]])]));
        for wrong in [r#"{"Images":[]}"#, r#"{"Images":{}}"#, r#"{"Images":[{}]}"#] {
            assert!(parse_images(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
