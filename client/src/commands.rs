//! The command line: one file per subcommand, one exit code per kind of failure.

mod arguments;
mod ask;
mod doctor;
mod exit;
mod measure;
mod open;
mod output;
mod pack;
mod plan;
mod policy;
mod rotate;
mod seal;
mod verify;

use std::future::Future;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use exit::{Exit, Failure};

/// Ask a model a question that the owner of the machine cannot read, and check that before you ask.
#[derive(Parser)]
#[command(name = "subrosa", version, max_term_width = 110, after_help = HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Ask(Box<ask::Ask>),
    Verify(verify::Verify),
    Measure(measure::Measure),
    Seal(seal::Seal),
    Open(open::Open),
    /// Key policies: render them from the templates, and check who could get plaintext by them.
    #[command(subcommand)]
    Policy(policy::Policy),
    /// From one release to the next, without a key that is open too wide or shut too early.
    #[command(subcommand)]
    Rotate(rotate::Rotate),
    Pack(pack::Pack),
    Plan(plan::Plan),
    Doctor(Box<doctor::Doctor>),
}

/// Runs the command and says how it went.
pub(crate) fn run() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::new(Exit::Other, format!("the runtime cannot be started: {error}")).report(),
    };
    let result = runtime.block_on(async {
        match command {
            // It watches for signals itself: it has last words of its own.
            Command::Ask(ask) => ask.run().await,
            Command::Verify(verify) => unless_interrupted(verify.run()).await,
            Command::Measure(measure) => measure.run(),
            Command::Seal(seal) => unless_interrupted(seal.run()).await,
            Command::Open(open) => unless_interrupted(open.run()).await,
            Command::Policy(policy) => policy.run(),
            Command::Rotate(rotate) => rotate.run(),
            Command::Pack(pack) => unless_interrupted(pack.run()).await,
            Command::Plan(plan) => plan.run(),
            Command::Doctor(doctor) => unless_interrupted(doctor.run()).await,
        }
    });
    // A thread that still waits for standard input must not keep an interrupted command alive.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Runs `work` until it ends, or until somebody ends it: then nothing half-made stays behind.
async fn unless_interrupted(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::select! {
        // What has ended is not interrupted any more.
        biased;
        result = work => result,
        failure = interrupted() => {
            output::remove_unfinished();
            Err(failure)
        }
    }
}

/// Watches for Ctrl-C and SIGTERM from this call on, not only from the first poll, and waits for one.
fn interrupted() -> impl Future<Output = Failure> {
    let watched = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    async move {
        let (Ok(mut interrupt), Ok(mut terminate)) = watched else {
            return Failure::new(Exit::Other, "signals cannot be watched");
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Failure::interrupted()
    }
}

const HELP: &str = "\
Exit codes: 0 good; 1 other (also: an answer or a file that is not whole); 2 usage; 3 network;
4 refusal; 5 attestation or measurement mismatch; 130 interrupted.
Results go to standard output, everything else to standard error.

AWS settings are the usual ones: AWS_REGION, AWS_PROFILE, credentials from the environment, a
profile, a container or an instance; AWS_ENDPOINT_URL_KMS and AWS_CA_BUNDLE for an endpoint of
your own. AWS SSO and credential_process profiles are not supported.";
