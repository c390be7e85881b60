//! `subrosa measure`.

use std::path::{Path, PathBuf};

use attestation::certificate::{Certificate, Name, Validity};
use attestation::document::UnixMillis;
use attestation::image::{Algorithm, Architecture, CONFIGURATION_PATH, Image, Kind, Measurements, Signature};
use clap::Args;
use serde_json::Value;
use subrosa_client::image::describe::Metadata;
use subrosa_client::image::file::{check, read};
use subrosa_client::image::{Description, ImageConfiguration};
use subrosa_client::live;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::arguments::time;
use super::exit::{Exit, Failure};
use super::output::{note, print};

/// Compute the measurements of an enclave image file (EIF), and show who signed it and what it is configured for.
#[derive(Args)]
#[command(after_help = HELP)]
pub(crate) struct Measure {
    /// The image, at most 4 GiB.
    #[arg(value_name = "IMAGE.eif")]
    image: PathBuf,
    /// The time as of which the signing certificate is judged, for example 2026-11-21T10:00:00Z. Default: now.
    #[arg(long, value_name = "RFC3339", value_parser = time)]
    at: Option<UnixMillis>,
    /// The object that `nitro-cli describe-eif` prints. PCR8 is in it only if the signature is good.
    #[arg(long)]
    json: bool,
}

impl Measure {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Self { image: path, at, json } = self;
        let bytes = read(&path)?;
        let image =
            Image::parse(&bytes).map_err(|error| Failure::new(Exit::Other, format!("{}: {error}", path.display())))?;
        let at = at.unwrap_or_else(live::now);
        let report = Report::of(&path, &image, i64::try_from(at.seconds()).unwrap_or(i64::MAX));
        for warning in report.warnings() {
            note(&format!("subrosa: WARNING: {warning}"));
        }
        if json {
            let description = Description::of(&image, report.metadata.clone().ok().flatten());
            let text = description.to_json().map_err(|error| Failure::new(Exit::Other, error))?;
            print(&text)?;
        } else {
            print(&report.text())?;
        }
        check(&path, &image)?;
        match report.configuration {
            Err(error) => Err(Failure::new(Exit::Other, format!("{}: {error}", path.display()))),
            Ok(_) => Ok(()),
        }
    }
}

/// What is told.
struct Report<'a> {
    path: &'a Path,
    image: &'a Image<'a>,
    at: i64,
    metadata: Result<Option<Metadata>, String>,
    configuration: Result<Option<ImageConfiguration>, String>,
}

impl<'a> Report<'a> {
    fn of(path: &'a Path, image: &'a Image<'a>, at: i64) -> Self {
        let configuration = match image.configuration() {
            Ok(Some(bytes)) => ImageConfiguration::parse(bytes).map(Some).map_err(|error| error.to_string()),
            Ok(None) => Ok(None),
            Err(error) => Err(error.to_string()),
        };
        Self { path, image, at, metadata: Metadata::of(image), configuration }
    }

    /// What a reader must not overlook. Damage, a bad signature and a bad configuration are failures instead.
    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(Ok(signature)) = self.image.signature() {
            let when = match signature.certificate().validity_at(self.at) {
                Validity::Valid => None,
                Validity::NotYetValid => Some("is NOT YET VALID"),
                Validity::Expired => Some("has EXPIRED"),
            };
            warnings.extend(when.map(|when| {
                format!("the signing certificate {when} as of {}: nitro-cli starts no such image", rfc3339(self.at))
            }));
        }
        if let Err(error) = &self.metadata {
            warnings.push(format!("the metadata is not what AWS's tools write: {}", plain(error)));
        }
        let configuration = self.configuration.as_ref().ok().and_then(Option::as_ref);
        for root in configuration.iter().flat_map(|configuration| configuration.roots()) {
            if root.amazon().is_none() {
                warnings.push(format!(
                    "this image trusts a root that is NOT AMAZON'S, {} (SHA-256 {}): whoever holds its key can \
                     answer in KMS's name",
                    distinguished(root.certificate().subject()),
                    hex::encode(root.certificate().sha256())
                ));
            }
        }
        warnings
    }

    fn text(&self) -> String {
        let mut lines = self.file_lines();
        let Measurements { pcr0, pcr1, pcr2, pcr8 } = self.image.measurements();
        for (index, value) in [(0, pcr0), (1, pcr1), (2, pcr2)].into_iter().chain(pcr8.map(|pcr8| (8, pcr8))) {
            lines.push(line(&format!("PCR{index}"), hex::encode(value)));
        }
        match self.image.signature() {
            None => lines.push(line("signature", "none: PCR8 of its enclaves is zero")),
            Some(Ok(signature)) => lines.extend(self.signature_lines(signature)),
            Some(Err(error)) => lines.push(line("signature", format!("NOT GOOD: {error}"))),
        }
        lines.extend(self.metadata_lines());
        lines.extend(self.configuration_lines());
        lines.join("\n")
    }

    fn file_lines(&self) -> Vec<String> {
        let header = self.image.header();
        let sections = self.image.sections();
        let length: usize = sections.last().map_or(0, |last| last.offset() + SECTION_HEADER + last.content().len());
        let architecture = match header.architecture() {
            Architecture::X86_64 => "x86_64",
            Architecture::Aarch64 => "aarch64",
        };
        let verdict = if self.image.is_intact() { "as the header states" } else { "NOT what the header states" };
        let (memory, cpus) = (header.default_memory(), header.default_cpus());
        let mut lines = vec![
            line("file", format!("{}, {length} bytes", self.path.display())),
            line("format", format!("EIF version {}, {architecture}", header.version())),
            line("asks for", format!("{memory} bytes of memory, {cpus} CPUs (nitro-cli decides)")),
            line("CRC32", format!("{:08x}, {verdict}", self.image.crc32())),
        ];
        for (index, section) in sections.iter().enumerate() {
            let what = match section.kind() {
                Kind::CommandLine => format!(": {}", plain(&String::from_utf8_lossy(section.content()))),
                _ => String::new(),
            };
            let (kind, bytes, offset) = (section.kind(), section.content().len(), section.offset());
            lines.push(line(&format!("section {index}"), format!("{kind}, {bytes} bytes at byte {offset}{what}")));
        }
        lines
    }

    fn signature_lines(&self, signature: &Signature) -> Vec<String> {
        let certificate = signature.certificate();
        let validity = match certificate.validity_at(self.at) {
            Validity::Valid => "valid",
            Validity::NotYetValid => "NOT YET VALID",
            Validity::Expired => "EXPIRED",
        };
        let how = match signature.algorithm() {
            Algorithm::Es384 => "good (ES384)".to_owned(),
            other => format!("good ({}; AWS documents P-384 keys only)", other.name()),
        };
        let (from, until) = (rfc3339(certificate.not_before()), rfc3339(certificate.not_after()));
        vec![
            line(
                "signature",
                format!("{how}: this key signed this PCR0. Names and times are claims; PCR8 is the certificate"),
            ),
            line("certificate", distinguished(certificate.subject())),
            line("", format!("issued by {}", distinguished(certificate.issuer()))),
            line("", format!("from {from} until {until}: {validity} as of {}", rfc3339(self.at))),
            line("", format!("SHA-256 {}", hex::encode(certificate.sha256()))),
        ]
    }

    fn metadata_lines(&self) -> Vec<String> {
        let metadata = match &self.metadata {
            Ok(Some(metadata)) => metadata,
            Ok(None) => return vec![line("metadata", "none")],
            Err(_) => return vec![line("metadata", "not readable")],
        };
        let Metadata { image_name, image_version, build_metadata: build, docker_info, custom_metadata } = metadata;
        let mut lines = vec![
            line("metadata", format!("{} {} (not measured: a claim)", plain(image_name), plain(image_version))),
            line(
                "",
                format!(
                    "built {} by {} {}",
                    plain(&build.build_time),
                    plain(&build.build_tool),
                    plain(&build.build_tool_version)
                ),
            ),
            line("", format!("{} {}", plain(&build.operating_system), plain(&build.kernel_version))),
        ];
        for (name, value) in [("container", docker_info), ("custom", custom_metadata)] {
            if !is_empty(value) {
                lines.push(line("", format!("{name}: {}", plain(&value.to_string()))));
            }
        }
        lines
    }

    fn configuration_lines(&self) -> Vec<String> {
        let configuration = match &self.configuration {
            Ok(Some(configuration)) => configuration,
            Ok(None) => return vec![line("configured", format!("not an image of Subrosa's: no {CONFIGURATION_PATH}"))],
            Err(error) => return vec![line("configured", format!("NOT READABLE: {error}"))],
        };
        let mut lines = vec![line("configured", format!("release {}", configuration.release()))];
        for root in configuration.roots() {
            let whose = root.amazon().map_or_else(|| "NOT AMAZON'S".to_owned(), |name| format!("is {name}"));
            lines.push(line("KMS root", root_line(root.certificate(), &whose)));
        }
        lines
    }
}

fn root_line(certificate: &Certificate, whose: &str) -> String {
    format!("{}: {whose}, {}", hex::encode(certificate.sha256()), distinguished(certificate.subject()))
}

fn line(label: &str, text: impl AsRef<str>) -> String {
    let label = if label.is_empty() { String::new() } else { format!("{label}:") };
    format!("{label:<13} {}", text.as_ref())
}

/// `commonName=Amazon Root CA 1, organizationName=Amazon`.
fn distinguished(name: &Name) -> String {
    let attributes: Vec<String> = name.iter().map(|(name, value)| format!("{name}={}", plain(value))).collect();
    if attributes.is_empty() { "(no name)".to_owned() } else { attributes.join(", ") }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(members) => members.is_empty(),
        _ => false,
    }
}

/// A stranger's text, which must not steer the terminal.
fn plain(text: &str) -> String {
    let escaped = |character: char| match character {
        '"' | '\'' => character.to_string(),
        other => other.escape_debug().to_string(),
    };
    text.chars().map(escaped).collect()
}

fn rfc3339(second: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp(second).ok();
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{second} seconds since 1970"))
}

/// The header that each section has of its own.
const SECTION_HEADER: usize = 12;

const HELP: &str = "\
The values are computed from the file alone, without AWS's tools: PCR0 is the whole image, PCR1 what
boots (kernel, command line, first ramdisk), PCR2 the other ramdisks, PCR8 the signing certificate.
Take them from an image of your own build. Metadata is in no register.
Of Subrosa's images the release number and the TLS roots for KMS are shown, with a warning at any
root that is not one of Amazon's. They are what is in the file; that the program uses them is what
PCR1 says.

Examples:
  subrosa measure target/eif/subrosa.eif
  subrosa measure --json subrosa.eif > eif.json && subrosa verify --url URL --measurements eif.json

Exit code 1: the file is damaged or not an image of the right form; 5: its signature is not good,
or is for another image.";
