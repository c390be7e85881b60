//! `subrosa seal`.

use std::fs::File;
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use clap::Args;
use sealing::message::{MAX_FRAME_LENGTH, Suite};
use sealing::reader::Header;
use serde_json::{Value, json};
use subrosa_client::files::{self, FILE_FRAME_LENGTH, SealOptions};
use tokio::runtime::Handle;

use super::arguments::{KeyArguments, context, pair, suite};
use super::exit::{Exit, Failure};
use super::output::{Output, print, progress};

/// Seal a file or a stream: an AWS Encryption SDK message that any of its SDKs opens.
#[derive(Args)]
#[command(after_help = HELP)]
pub(crate) struct Seal {
    #[command(flatten)]
    key: KeyArguments,
    /// A pair of the encryption context: authenticated, and visible to everyone. Repeat for more.
    #[arg(long = "context", value_name = "KEY=VALUE", value_parser = pair)]
    context: Vec<(String, String)>,
    /// Bytes of plaintext in each frame.
    #[arg(long, value_name = "N", default_value_t = FILE_FRAME_LENGTH, value_parser = clap::value_parser!(u32).range(FRAME_LENGTHS))]
    frame_length: u32,
    /// 0478, or 0578 with a signature over the whole message.
    #[arg(long, default_value = "0478", value_parser = suite)]
    suite: Suite,
    /// Write the message's header as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json_header: Option<PathBuf>,
    /// Where the message goes; it appears under this name only when it is whole. Default: standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// What was sealed, as one JSON object on standard output.
    #[arg(long, requires = "output")]
    json: bool,
    /// What to seal. Default, and `-`: standard input.
    input: Option<PathBuf>,
}

impl Seal {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let Self { key, context: pairs, frame_length, suite, json_header, output, json, input } = self;
        let options = SealOptions { suite, context: context(pairs)?, frame_length };
        let keys = key.source().await?;
        let (mut source, total) = open_input(input)?;
        let mut out = Output::create(output.as_deref(), true)?;
        let runtime = Handle::current();
        let work = tokio::task::spawn_blocking(move || {
            let bar = progress(total, "sealing");
            let sealed = files::seal(&mut source, &mut out, &keys, options, &runtime, |more| bar.inc(more));
            bar.finish_and_clear();
            let sealed = sealed?;
            out.commit()?;
            if let Some(path) = json_header {
                write_header(&path, &sealed.header)?;
            }
            if json {
                let lengths = [("plaintext_bytes", sealed.plaintext), ("message_bytes", sealed.message)];
                print(&describe(&sealed.header, &lengths).to_string())?;
            }
            Ok(())
        });
        joined(work).await
    }
}

/// Standard input, or the named file with its length.
pub(super) fn open_input(input: Option<PathBuf>) -> Result<(Box<dyn Read + Send>, Option<u64>), Failure> {
    match input.filter(|path| path.as_os_str() != "-") {
        None => Ok((Box::new(io::stdin()), None)),
        Some(path) => {
            let wrong = |error| Failure::new(Exit::Other, format!("{} cannot be read: {error}", path.display()));
            let file = File::open(&path).map_err(wrong)?;
            let metadata = file.metadata().map_err(wrong)?;
            Ok((Box::new(file), metadata.is_file().then_some(metadata.len())))
        }
    }
}

/// Writes what a header says to a file.
pub(super) fn write_header(path: &Path, header: &Header) -> Result<(), Failure> {
    let mut out = Output::create(Some(path), true)?;
    out.write_line(&format!("{:#}", describe(header, &[])))?;
    out.commit()
}

/// What a header says, as JSON, and these lengths.
pub(super) fn describe(header: &Header, lengths: &[(&str, u64)]) -> Value {
    let keys: Vec<Value> = header
        .encrypted_data_keys()
        .iter()
        .map(|key| {
            json!({
                "provider_id": key.provider_id,
                // Text for KMS, where it is the key ARN; that of a raw keyring holds an IV.
                "provider_info": str::from_utf8(&key.provider_info).ok(),
                "provider_info_hex": hex::encode(&key.provider_info),
                "ciphertext_length": key.ciphertext.len(),
            })
        })
        .collect();
    let mut described = json!({
        "suite": format!("{:#06x}", header.suite().id()),
        "message_id": header.message_id().to_string(),
        "encryption_context": header.context().as_map(),
        "encrypted_data_keys": keys,
        "frame_length": header.frame_length(),
    });
    if let Some(members) = described.as_object_mut() {
        members.extend(lengths.iter().map(|(name, length)| ((*name).to_owned(), (*length).into())));
    }
    described
}

pub(super) async fn joined<T>(work: tokio::task::JoinHandle<Result<T, Failure>>) -> Result<T, Failure> {
    work.await.unwrap_or_else(|error| Err(Failure::new(Exit::Other, format!("the work ended badly: {error}"))))
}

const FRAME_LENGTHS: RangeInclusive<i64> = 1..=MAX_FRAME_LENGTH as i64;

const HELP: &str = "\
Examples:
  subrosa seal --kms-key arn:aws:kms:us-east-1:111122223333:key/... --context project=rose notes.txt -o notes.sealed
  tar c folder | subrosa seal --raw-aes team/backup=@backup.key > folder.sealed
  subrosa seal --kms-key ARN --context subrosa:purpose=model-pack --context subrosa:model=subrosa-intake \\
      --context subrosa:version=1 pack.tar -o subrosa-intake

Whoever opens it should demand the context that they expect: `subrosa open --context KEY=VALUE`.
AWS SSO and credential_process profiles are not supported; otherwise AWS settings are the usual ones.";
