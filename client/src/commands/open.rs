//! `subrosa open`.

use std::path::PathBuf;

use clap::Args;
use subrosa_client::files;
use tokio::runtime::Handle;

use super::arguments::{KeyArguments, context, pair};
use super::exit::Failure;
use super::output::{Output, print, progress};
use super::seal::{describe, joined, open_input, write_header};

/// Open a sealed file or stream: an AWS Encryption SDK message of suite 0478 or 0578.
#[derive(Args)]
#[command(after_help = HELP)]
pub(crate) struct Open {
    #[command(flatten)]
    key: KeyArguments,
    /// A pair that the message's encryption context must have. Repeat for more.
    #[arg(long = "context", value_name = "KEY=VALUE", value_parser = pair)]
    context: Vec<(String, String)>,
    /// Write the message's header as JSON to this file, once the message is verified to its end.
    #[arg(long, value_name = "FILE")]
    json_header: Option<PathBuf>,
    /// Where the plaintext goes; it appears under this name only when the message's end, and for 0578 its signature, is
    /// verified. Default: standard output, which gets provisional plaintext.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// What was opened, as one JSON object on standard output.
    #[arg(long, requires = "output")]
    json: bool,
    /// What to open. Default, and `-`: standard input.
    input: Option<PathBuf>,
}

impl Open {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let Self { key, context: pairs, json_header, output, json, input } = self;
        let required = context(pairs)?;
        let keys = key.source().await?;
        let (mut source, total) = open_input(input)?;
        let mut out = Output::create(output.as_deref(), false)?;
        let (runtime, streamed) = (Handle::current(), output.is_none());
        let work = tokio::task::spawn_blocking(move || {
            let bar = progress(total, "opening");
            let opened = files::open(&mut source, &mut out, &keys, &required, &runtime, |more| bar.inc(more));
            bar.finish_and_clear();
            let opened = opened.map_err(|error| explain(error.into(), streamed))?;
            out.commit()?;
            if let Some(path) = json_header {
                write_header(&path, &opened.header)?;
            }
            if json {
                print(&describe(&opened.header, &[("plaintext_bytes", opened.end.length())]).to_string())?;
            }
            Ok(())
        });
        joined(work).await
    }
}

/// What the reader of standard output must know: it may hold part of a message that is not good.
fn explain(failure: Failure, streamed: bool) -> Failure {
    let what = if streamed {
        "discard what was written to standard output, it is not a whole verified message"
    } else {
        "nothing was written"
    };
    Failure::new(failure.exit(), format!("{}; {what}", failure.message()))
}

const HELP: &str = "\
Examples:
  subrosa open --kms-key arn:aws:kms:us-east-1:111122223333:key/... --context project=rose notes.sealed -o notes.txt
  subrosa open --raw-aes team/backup=@backup.key < folder.sealed | tar x     (see below)

To standard output each frame is written as soon as it is authenticated. It is PROVISIONAL: only exit code 0 says that
the message was whole, unchanged to its end and, for 0578, signed. Use -o wherever that matters.
Unframed messages of older SDKs are opened up to 64 MiB. Exit code 1: not a good message; 4: KMS refused; 3: KMS away.
AWS SSO and credential_process profiles are not supported; otherwise AWS settings are the usual ones.";
