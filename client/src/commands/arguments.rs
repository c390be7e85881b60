//! Arguments that several subcommands share.

use std::env;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use attestation::chain::TrustAnchor;
use clap::Args;
use sealing::message::{EncryptionContext, Suite};
use sealing::raw_aes::{Keyring, WrappingKey};
use subrosa_client::aws;
use subrosa_client::data_key::{KeySource, KmsKey};
use subrosa_client::measurements::{PcrArgument, parse_eif};
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
    /// Accepted PCR values from the JSON that `nitro-cli build-enclave` or `describe-eif` prints.
    #[arg(long, value_name = "FILE")]
    measurements: Option<PathBuf>,
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
    /// All values of both kinds.
    pub(crate) fn read(&self) -> Result<Vec<PcrArgument>, Failure> {
        let mut pcrs = self.pcrs.clone();
        if let Some(path) = &self.measurements {
            let json = read_bounded(path, MAX_MEASUREMENTS)?;
            pcrs.extend(parse_eif(&json).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?);
        }
        Ok(pcrs)
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

const MAX_KEY_FILE: u64 = 4096;
const MAX_MEASUREMENTS: u64 = 64 * 1024;
const MAX_ROOT: u64 = 64 * 1024;
