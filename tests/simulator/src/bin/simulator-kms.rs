//! `simulator-kms`: the simulated KMS as a program of its own.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use simulator::authority::{Authority, AuthorityError};
use simulator::kms::{Principals, PrincipalsError, Server, Settings, StartError};
use simulator::notary::Notary;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};

/// A simulated KMS on loopback. Prints one line of JSON ({"url", "port", "control", "ca"}) when it serves, and serves until SIGINT or
/// SIGTERM.
#[derive(Parser)]
struct Arguments {
    /// Where to serve HTTPS.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where to serve the plain-HTTP control interface (journal, faults).
    #[arg(long)]
    control: Option<SocketAddr>,
    /// Folder for keys and CA.
    #[arg(long)]
    state: PathBuf,
    /// Root certificate that attestation documents must chain to (PEM).
    #[arg(long)]
    attestation_root: PathBuf,
    /// Who may sign requests (JSON).
    #[arg(long)]
    principals: PathBuf,
    /// A region to serve; may be given several times.
    #[arg(long = "region", default_value = "us-east-1")]
    regions: Vec<String>,
    /// Folder of the authority that signs the unsigned documents of enclaves under QEMU as they arrive; all others are refused.
    #[arg(long)]
    danger_notary: Option<PathBuf>,
}

#[derive(Debug, Error)]
enum RunError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Principals(#[from] PrincipalsError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("cannot run: {0}")]
    System(#[from] std::io::Error),
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "simulator-kms: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), RunError> {
    let Arguments { listen, control, state, attestation_root, principals, regions, danger_notary } = arguments;
    let read = |path: PathBuf| fs::read(&path).map_err(|source| RunError::File { path, source });
    let attestation_root_pem = read(attestation_root)?;
    let principals = Principals::parse(&String::from_utf8_lossy(&read(principals)?))?;
    let danger_notary = match (danger_notary, regions.first()) {
        (Some(folder), Some(region)) => Some(Notary::new(Arc::new(Authority::open_or_create(&folder)?), region)),
        _ => None,
    };
    let settings = Settings { listen, control, state, attestation_root_pem, principals, regions, danger_notary };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let kms = Server::start(settings).await?;
        let ready = serde_json::json!({"url": kms.url(), "port": kms.address().port(), "control": kms.control_url(), "ca": kms.ca_path()});
        let mut out = std::io::stdout();
        writeln!(out, "{ready}").and_then(|()| out.flush())?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok(())
    })
}
