//! Arguments that several subcommands share.

use std::collections::BTreeMap;
use std::env;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use attestation::Pcr;
use attestation::chain::TrustAnchor;
use attestation::document::UnixMillis;
use clap::Args;
use sealing::message::{EncryptionContext, Suite};
use sealing::raw_aes::{Keyring, WrappingKey};
use subrosa_client::aws;
use subrosa_client::data_key::{KeySource, KmsKey};
use subrosa_client::image::TrustedImage;
use subrosa_client::measurements::{Image, PcrArgument, join, parse_images, shared};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use super::exit::{Exit, Failure};

/// The key of a file: exactly one of these.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct KeyArguments {
    /// A KMS key: the full key ARN, under the usual AWS settings.
    #[arg(long, value_name = "ARN")]
    kms_key: Option<String>,
    /// A raw AES key of the Encryption SDK: NAMESPACE/NAME=HEX with 64 hex digits. NAMESPACE/NAME=@FILE reads the key
    /// (64 hex digits or 32 bytes) from a file, NAMESPACE/NAME=$VARIABLE (64 hex digits) from the environment: arguments
    /// are seen by everyone who may list processes.
    #[arg(long, value_name = "NAMESPACE/NAME=HEX", value_parser = secret)]
    raw_aes: Option<Secret>,
}

/// Text that is not shown: no `Debug`, and never part of an error.
#[derive(Clone)]
pub(crate) struct Secret(Zeroizing<String>);

/// Measurements that are accepted.
#[derive(Args)]
pub(crate) struct MeasurementArguments {
    /// An accepted PCR value, 96 hex digits. Repeat for other PCRs; several values for one PCR mean any of them.
    #[arg(long = "pcr", value_name = "N=HEX")]
    pcrs: Vec<PcrArgument>,
    /// Accepted PCR values from the JSON that `nitro-cli build-enclave` or `describe-eif` prints, or from an allow-list of
    /// `subrosa rotate plan`. Repeat for any of several images.
    #[arg(long, value_name = "FILE")]
    measurements: Vec<PathBuf>,
    /// Accepted PCR values of an enclave image file of your own build, computed here. Repeat for any of several images.
    #[arg(long = "image", value_name = "FILE.eif")]
    images: Vec<PathBuf>,
}

impl KeyArguments {
    pub(crate) async fn source(self) -> Result<KeySource, Failure> {
        match self {
            Self { kms_key: Some(arn), .. } => Ok(KeySource::Kms(KmsKey::new(aws::kms_client().await?, arn))),
            Self { raw_aes: Some(secret), .. } => Ok(KeySource::Raw(secret.keyring()?)),
            Self { kms_key: None, raw_aes: None } => Err(Failure::usage("give --kms-key or --raw-aes")),
        }
    }
}

impl Secret {
    /// No message of this function may quote what it was given.
    fn keyring(&self) -> Result<Keyring, Failure> {
        let form = || Failure::usage("--raw-aes: write NAMESPACE/NAME=HEX (64 hex digits), ...=@FILE or ...=$VARIABLE");
        let (names, key) = self.0.rsplit_once('=').ok_or_else(form)?;
        let (namespace, name) = names.split_once('/').ok_or_else(form)?;
        let key = if let Some(path) = key.strip_prefix('@') {
            key_of_file(&Zeroizing::new(read_bounded(Path::new(path), MAX_KEY_FILE)?))
        } else if let Some(variable) = key.strip_prefix('$') {
            let value = Zeroizing::new(env::var(variable).map_err(|_| {
                Failure::usage(format!("--raw-aes: the environment has no variable {variable} of plain text"))
            })?);
            key_of_hex(value.as_bytes())
        } else {
            key_of_hex(key.as_bytes())
        };
        let key = key.ok_or_else(|| {
            Failure::usage("--raw-aes: the key is not 64 hex digits (AES-256), nor 32 bytes in a file")
        })?;
        Keyring::new(namespace, name, key).map_err(|error| Failure::usage(format!("--raw-aes: {error}")))
    }
}

impl MeasurementArguments {
    /// All values of all kinds.
    ///
    /// What some images have and others lack (PCR8 of a signed image) is not among them: it would refuse those others.
    pub(crate) fn read(&self) -> Result<Vec<PcrArgument>, Failure> {
        Ok(self.pcrs.iter().copied().chain(shared(&self.files()?)).collect())
    }

    /// The images, each with its own values.
    ///
    /// Values given by `--pcr` are one more image if there is but one for each register; else each PCR0 is one, which covers all of
    /// an image. A single PCR16 or PCR17 is that of all images.
    pub(crate) fn images(&self) -> Result<Vec<Image>, Failure> {
        let mut images = self.files()?;
        let (extended, of_image): (Vec<PcrArgument>, _) =
            self.pcrs.iter().partition(|pcr| [PCR_OF_MODELS, PCR_OF_CONFIGURATION].contains(&pcr.index));
        let lists = join(of_image);
        if lists.values().all(|values| values.len() == 1) {
            let one: Image = lists.iter().filter_map(|(index, values)| Some((*index, *values.first()?))).collect();
            images.extend((!one.is_empty()).then_some(one));
        } else {
            images.extend(lists.get(&0).into_iter().flatten().map(|digest| Image::from([(0, *digest)])));
        }
        for (index, values) in join(extended) {
            if let [value] = values.as_slice() {
                for image in &mut images {
                    image.entry(index).or_insert(*value);
                }
            }
        }
        Ok(images)
    }

    /// The lists for a key policy: as [`Self::read`], but without PCR8 of files, for PCR0 covers what the signer signed.
    pub(crate) fn lists(&self) -> Result<BTreeMap<u8, Vec<Pcr>>, Failure> {
        let of_files = shared(&self.files()?).into_iter().filter(|pcr| pcr.index != PCR_OF_SIGNER);
        let mut lists = join(self.pcrs.iter().copied().chain(of_files));
        for values in lists.values_mut() {
            values.sort_unstable();
            values.dedup();
        }
        Ok(lists)
    }

    fn files(&self) -> Result<Vec<Image>, Failure> {
        let mut images = Vec::new();
        for path in &self.measurements {
            let json = read_bounded(path, MAX_MEASUREMENTS)?;
            images.extend(parse_images(&json).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?);
        }
        for path in &self.images {
            images.push(TrustedImage::measure(path)?.pcrs().iter().map(|pcr| (pcr.index, pcr.value)).collect());
        }
        Ok(images)
    }
}

/// The trust anchor: AWS's root, or one from a file.
pub(crate) fn anchor(danger_root: Option<&Path>) -> Result<TrustAnchor, Failure> {
    let Some(path) = danger_root else { return Ok(TrustAnchor::aws()) };
    let pem = read_bounded(path, MAX_ROOT)?;
    TrustAnchor::danger_from_pem(&pem)
        .map_err(|error| Failure::usage(format!("--danger-root {}: {error}", path.display())))
}

/// `0478`, `0x0478`, `0578` or `0x0578`.
pub(crate) fn suite(text: &str) -> Result<Suite, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let id = u16::from_str_radix(digits, 16).ok();
    id.and_then(Suite::from_id).ok_or_else(|| "the suites are 0478 and 0578 (with signature)".to_owned())
}

/// Seconds.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_secs).map_err(|_| "expected whole seconds".to_owned())
}

/// A time in RFC 3339.
pub(crate) fn time(text: &str) -> Result<UnixMillis, String> {
    let at = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| "expected a time like 2026-11-21T10:00:00Z")?;
    let millis = at.unix_timestamp_nanos() / 1_000_000;
    u64::try_from(millis).map(UnixMillis).map_err(|_| "expected a time after 1970".to_owned())
}

/// `KEY=VALUE`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// The pairs as an encryption context.
pub(crate) fn context(pairs: Vec<(String, String)>) -> Result<EncryptionContext, Failure> {
    EncryptionContext::from_pairs(pairs).map_err(|error| Failure::usage(format!("--context: {error}")))
}

/// Reads a file, or standard input for `-`, of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    let wrong =
        |error: std::io::Error| Failure::new(Exit::Other, format!("{} cannot be read: {error}", path.display()));
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(limit.saturating_add(1)).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut bytes))
    };
    read.map_err(wrong)?;
    if bytes.len() as u64 > limit {
        return Err(Failure::new(Exit::Other, format!("{} is larger than {limit} bytes", path.display())));
    }
    Ok(bytes)
}

fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret(Zeroizing::new(text.to_owned())))
}

/// Exactly 64 hex digits. Text of 32 characters is never taken as 32 bytes: it is a passphrase, or half a key.
fn key_of_hex(text: &[u8]) -> Option<WrappingKey> {
    let mut key = Zeroizing::new([0; WrappingKey::LENGTH]);
    hex::decode_to_slice(text, &mut *key).ok()?;
    Some(WrappingKey::from_bytes(*key))
}

/// A file's 32 bytes as they are, or 64 hex digits with or without an end of line.
fn key_of_file(content: &[u8]) -> Option<WrappingKey> {
    let text = content.trim_ascii();
    // 32 hex digits are a key of 128 bits in hex; as bytes they would be an AES-256 key that has only those 128 bits.
    if content.len() == WrappingKey::LENGTH && !text.iter().all(u8::is_ascii_hexdigit) {
        return WrappingKey::from_slice(content).ok();
    }
    key_of_hex(text)
}

/// AWS, "Cryptographic attestation": PCR8 holds the signing certificate of the image.
pub(crate) const PCR_OF_SIGNER: u8 = 8;
/// docs/PROTOCOL.md, section 10.
pub(crate) const PCR_OF_MODELS: u8 = 16;
/// docs/PROTOCOL.md, section 9.
pub(crate) const PCR_OF_CONFIGURATION: u8 = 17;
const MAX_KEY_FILE: u64 = 4096;
const MAX_MEASUREMENTS: u64 = 64 * 1024;
const MAX_ROOT: u64 = 64 * 1024;
