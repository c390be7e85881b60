//! `subrosa pack`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use subrosa_client::pack::{self, Entry, PackError};

use super::exit::{Exit, Failure};
use super::output::{Output, print, progress};
use super::seal::joined;

/// Make a model pack: the archive that `subrosa seal` then seals for the enclave.
#[derive(Args)]
#[command(after_help = HELP)]
pub(crate) struct Pack {
    /// The model's name.
    #[arg(long)]
    name: String,
    /// Where the pack goes; it appears under this name only when it is whole.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The result as one JSON object.
    #[arg(long)]
    json: bool,
    /// The files, in order. A single GGUF file is packed as model.gguf, others by their own names; NAME=FILE names one.
    #[arg(required = true, value_name = "[NAME=]FILE")]
    files: Vec<String>,
}

impl Pack {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let Self { name, output, json, files } = self;
        let entries: Vec<Entry> = files.iter().map(|file| entry(file)).collect();
        let total =
            entries.iter().map(|entry| std::fs::metadata(&entry.file).map_or(0, |file| file.len())).sum::<u64>();
        let mut out = Output::create(Some(&output), true)?;
        let model = name.clone();
        let work = tokio::task::spawn_blocking(move || {
            let bar = progress(Some(total * 2), "packing");
            let packed = pack::write(&model, &entries, &mut out, |more| bar.inc(more)).map_err(failure)?;
            out.commit()?;
            bar.finish_and_clear();
            Ok(packed)
        });
        let packed = joined(work).await?;
        let digest = hex::encode(packed.manifest_sha384);
        if json {
            let manifest: serde_json::Value = serde_json::from_slice(&packed.manifest).unwrap_or_default();
            return print(
                &json!({"name": name, "manifest_sha384": digest, "bytes": packed.bytes, "manifest": manifest})
                    .to_string(),
            );
        }
        print(&digest)
    }
}

fn entry(argument: &str) -> Entry {
    if let Some((name, file)) = argument.split_once('=') {
        return Entry { name: name.to_owned(), file: PathBuf::from(file) };
    }
    let file = PathBuf::from(argument);
    let own = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let name = if own.ends_with(".gguf") { "model.gguf".to_owned() } else { own };
    Entry { name, file }
}

fn failure(error: PackError) -> Failure {
    let exit = match error {
        PackError::Name { .. } | PackError::Twice(_) | PackError::NoFile => Exit::Usage,
        PackError::TooLarge { .. } | PackError::Read { .. } | PackError::Changed { .. } | PackError::Write(_) => {
            Exit::Other
        }
    };
    Failure::new(exit, error)
}

const HELP: &str = "\
Prints the SHA-384 of the pack's manifest: the digest that the enclave's configuration names (`manifest_sha384`). The
same files always make the same pack.

Example:
  subrosa pack --name subrosa-intake intake.gguf -o pack.tar
  subrosa seal --kms-key ARN --context subrosa:purpose=model-pack --context subrosa:model=subrosa-intake \\
      --context subrosa:version=1 pack.tar -o subrosa-intake";
