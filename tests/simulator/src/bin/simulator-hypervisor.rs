//! Starts one simulated enclave and is its hypervisor until it ends.
//!
//! Prints one line of JSON on standard output when the enclave runs, and ends with it: by its exit status, or 137 if it
//! was killed. SIGTERM and SIGINT kill the enclave, as terminating one on Nitro does.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command's output")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use serde_json::json;
use simulator::authority::Authority;
use simulator::hypervisor::{Console, DEFAULT_INSTANCE_ID, DEFAULT_REGION, EnclaveSpec, HypervisorError, Image, start};
use simulator::nsm::Registers;
use tokio::signal::unix::{SignalKind, signal};

/// Starts a simulated Nitro enclave: measures it, runs the measured bytes, and signs its attestation documents.
#[derive(Parser)]
#[command(name = "simulator-hypervisor", version)]
struct Arguments {
    /// Folder of the simulated certificate authority; made if it is not there
    #[arg(long, value_name = "DIR", required_unless_present = "measure_only")]
    authority: Option<PathBuf>,
    /// The enclave program, an ELF file
    #[arg(long, value_name = "FILE")]
    program: PathBuf,
    /// The image configuration
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// Path of the hybrid vsock socket
    #[arg(long, value_name = "PATH", required_unless_present = "measure_only")]
    vsock: Option<PathBuf>,
    /// Start in debug mode: PCR0, PCR1 and PCR2 are zero
    #[arg(long)]
    debug_mode: bool,
    /// Append the enclave's console to a file instead of standard error
    #[arg(long, value_name = "FILE")]
    console: Option<PathBuf>,
    /// Print the measurements and start nothing
    #[arg(long)]
    measure_only: bool,
    /// Machine-readable output (the only kind there is)
    #[arg(long)]
    json: bool,
    /// Identifier of the simulated parent instance
    #[arg(long, value_name = "ID", default_value = DEFAULT_INSTANCE_ID)]
    instance_id: String,
    /// ARN of the parent's role, for PCR3
    #[arg(long, value_name = "ARN")]
    role_arn: Option<String>,
    /// Region in the names of the certificates
    #[arg(long, value_name = "NAME", default_value = DEFAULT_REGION)]
    region: String,
    /// How far the NSM's clock is ahead of this machine's, in seconds (a fault to test with)
    #[arg(long, value_name = "SECONDS", default_value_t = 0, allow_negative_numbers = true)]
    clock_offset: i64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("simulator-hypervisor: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<ExitCode, HypervisorError> {
    let Arguments {
        authority,
        program,
        image,
        vsock,
        debug_mode,
        console,
        measure_only,
        json: _,
        instance_id,
        role_arn,
        region,
        clock_offset,
    } = arguments;
    let (Some(authority), Some(vsock), false) = (authority, vsock, measure_only) else {
        let Registers { pcr0, pcr1, pcr2, role_arn: _ } = Image::read(&program, &image)?.measure(role_arn);
        println!("{}", json!({ "pcr0": hex::encode(pcr0), "pcr1": hex::encode(pcr1), "pcr2": hex::encode(pcr2) }));
        return Ok(ExitCode::SUCCESS);
    };
    // Before the enclave starts, so that no signal finds nobody.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let authority = Arc::new(Authority::open_or_create(&authority)?);
    let spec = EnclaveSpec {
        program,
        image_configuration: image,
        vsock,
        debug: debug_mode,
        instance_id,
        role_arn,
        region,
        console: console.map_or(Console::StandardError, Console::File),
        clock_offset_millis: clock_offset.saturating_mul(1000),
    };
    let enclave = start(authority, &spec)?;
    let Registers { pcr0, pcr1, pcr2, role_arn: _ } = enclave.registers();
    println!(
        "{}",
        json!({
            "pcr0": hex::encode(pcr0),
            "pcr1": hex::encode(pcr1),
            "pcr2": hex::encode(pcr2),
            "pid": enclave.pid(),
            "module_id": enclave.module_id(),
        })
    );
    let process = enclave.process();
    let mut ended = tokio::task::spawn_blocking(move || process.wait());
    let status = tokio::select! {
        status = &mut ended => status,
        _ = terminate.recv() => { enclave.kill()?; ended.await }
        _ = interrupt.recv() => { enclave.kill()?; ended.await }
    };
    let status = status.map_err(std::io::Error::other)??;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(KILLED);
    Ok(ExitCode::from(code))
}

/// 128 + SIGKILL, as shells report it.
const KILLED: u8 = 137;
