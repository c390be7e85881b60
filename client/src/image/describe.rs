//! The object that `nitro-cli describe-eif` prints, member by member and in its order.

use std::collections::BTreeMap;

use attestation::certificate::{Certificate, Name};
use attestation::image::{Image, Measurements};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::macros::format_description;

/// What `nitro-cli` (1.4) calls `EifDescribeInfo`.
///
/// One thing differs, on purpose: PCR8 is there only if the signature is good, and so is the certificate.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Description {
    eif_version: u16,
    measurements: BTreeMap<&'static str, String>,
    is_signed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    signing_certificate: Option<SigningCertificate>,
    #[serde(rename = "CheckCRC")]
    check_crc: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    signature_check: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<ShownMetadata>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct SigningCertificate {
    issuer_name: BTreeMap<String, String>,
    algorithm: String,
    not_before: String,
    not_after: String,
    signature: String,
}

#[derive(Clone, Debug, Serialize)]
struct ShownMetadata {
    #[serde(flatten)]
    build: BuildMetadata,
    #[serde(rename = "DockerInfo")]
    docker_info: Value,
    #[serde(flatten)]
    custom: Map<String, Value>,
}

/// The metadata of an image, as AWS's tools write it. It is in no register: everybody may write anything there.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Metadata {
    /// The image's name.
    pub image_name: String,
    /// The image's version.
    pub image_version: String,
    /// How it was built.
    pub build_metadata: BuildMetadata,
    /// Of the container image that it was made from.
    pub docker_info: Value,
    /// Whatever the builder added.
    pub custom_metadata: Value,
}

/// How an image was built, by its own word.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct BuildMetadata {
    /// When.
    pub build_time: String,
    /// With which tool.
    pub build_tool: String,
    /// Of which version.
    pub build_tool_version: String,
    /// Of the kernel.
    pub operating_system: String,
    /// Of the kernel.
    pub kernel_version: String,
}

impl Metadata {
    /// The metadata of an image; none if it has none.
    ///
    /// # Errors
    /// When it is not JSON of the shape that AWS's tools write: the parser's words.
    pub fn of(image: &Image<'_>) -> Result<Option<Self>, String> {
        image.metadata().map(|json| serde_json::from_slice(json).map_err(|error| error.to_string())).transpose()
    }
}

impl Description {
    /// Describes an image, with the metadata that was read from it.
    #[must_use]
    pub fn of(image: &Image<'_>, metadata: Option<Metadata>) -> Self {
        let Measurements { pcr0, pcr1, pcr2, pcr8 } = image.measurements();
        let mut measurements = BTreeMap::from([
            ("HashAlgorithm", HASH_ALGORITHM.to_owned()),
            ("PCR0", hex::encode(pcr0)),
            ("PCR1", hex::encode(pcr1)),
            ("PCR2", hex::encode(pcr2)),
        ]);
        measurements.extend(pcr8.map(|pcr8| ("PCR8", hex::encode(pcr8))));
        let signature = image.signature();
        let (image_name, image_version, metadata) = match metadata {
            Some(metadata) => {
                let Metadata { image_name, image_version, build_metadata, docker_info, custom_metadata } = metadata;
                let custom = custom(custom_metadata);
                let shown = ShownMetadata { build: build_metadata, docker_info, custom };
                (Some(image_name), Some(image_version), Some(shown))
            }
            None => (None, None, None),
        };
        Self {
            eif_version: image.header().version(),
            measurements,
            is_signed: signature.is_some(),
            signing_certificate: signature.and_then(Result::ok).map(|good| SigningCertificate::of(good.certificate())),
            check_crc: image.is_intact(),
            signature_check: signature.map(|verdict| verdict.is_ok()),
            image_name,
            image_version,
            metadata,
        }
    }

    /// The text that is printed. Control characters in it, which could steer a terminal, are escaped.
    ///
    /// # Errors
    /// None that could happen: the members are text and JSON.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        let json = serde_json::to_string_pretty(self)?;
        // Outside of strings there are none but ends of lines; inside, JSON has escaped those below 32.
        let escaped = |character: char| match character {
            '\n' => character.to_string(),
            control if control.is_control() => format!("\\u{:04x}", u32::from(control)),
            other => other.to_string(),
        };
        Ok(json.chars().map(escaped).collect())
    }
}

impl SigningCertificate {
    fn of(certificate: &Certificate) -> Self {
        let signature: Vec<String> = certificate.signature().iter().map(|byte| format!("{byte:02X}")).collect();
        Self {
            issuer_name: issuer(certificate.issuer()),
            algorithm: certificate.signature_algorithm().to_owned(),
            not_before: time(certificate.not_before()),
            not_after: time(certificate.not_after()),
            signature: signature.join(":"),
        }
    }
}

/// `nitro-cli` keeps one value for each name, the last, and prints it as Rust's `Debug` without its quotes.
fn issuer(name: &Name) -> BTreeMap<String, String> {
    name.iter().map(|(name, value)| (name.clone(), format!("{value:?}").replace('"', ""))).collect()
}

/// A time as OpenSSL's `ASN1_TIME_print` writes it: `Nov  1 10:00:00 2026 GMT`.
#[must_use]
pub fn time(seconds: i64) -> String {
    let format =
        format_description!("[month repr:short] [day padding:space] [hour]:[minute]:[second] [year padding:none] GMT");
    let at = OffsetDateTime::from_unix_timestamp(seconds).ok();
    at.and_then(|at| at.format(format).ok()).unwrap_or_else(|| format!("{seconds} seconds since 1970"))
}

/// `nitro-cli` writes the members of the builder's object among its own, which win here; anything else has no place.
fn custom(value: Value) -> Map<String, Value> {
    let Value::Object(mut members) = value else { return Map::new() };
    for own in ["BuildTime", "BuildTool", "BuildToolVersion", "OperatingSystem", "KernelVersion", "DockerInfo"] {
        members.remove(own);
    }
    members
}

/// What `nitro-cli` prints: the `Debug` of a hasher.
const HASH_ALGORITHM: &str = "Sha384 { ... }";
