//! `make demo`: the whole path on this machine, with real parts; then what is refused, each with its reason; then a search of everything
//! the parent carried, kept or remembered for prompt, answer and weights.

mod ask;
mod leaks;
mod refusals;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use tests::stack::{Options, Stack};

/// The whole path: a sealed prompt goes in, a sealed answer comes out, and nobody in between could read either.
#[derive(Parser)]
struct Arguments {
    /// The clinical intake note to ask about: a text file of your own, if you like
    #[arg(long, value_name = "FILE", default_value = "tests/demo-model/note.txt")]
    note: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    match demonstrate(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo: FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn demonstrate(arguments: Arguments) -> io::Result<()> {
    let begun = Instant::now();
    let note = std::fs::read_to_string(&arguments.note)
        .map_err(|error| io::Error::other(format!("{}: {error}", arguments.note.display())))?;
    let note = note.trim();
    title("Start: keys and policies in the simulated KMS, measurement, sealed model pack, parent and enclave");
    let options = Options::new()?;
    let model = std::fs::read(&options.model)?;
    progress("making keys, sealing the model pack, starting parent and enclave")?;
    let mut stack = Stack::start(options).await?;
    done(begun);
    for (index, value) in &stack.measured.pcrs {
        println!("  PCR{index:<2} {}", hex::encode(value));
    }
    println!("  parent: process {}, enclave: process {}", shown(stack.parent.pid()), shown(stack.enclave_pid()));

    title("Check before you ask: is this the code I want, now?");
    ask::verify(&stack).await?;

    title("Ask: seal the note under a data key of the customer's KMS key, send it, stream the answer");
    println!("{}\n", indented(note));
    ask::by_command(&stack, note).await?;

    title("Ask again, and search the parent's memory while the answer streams");
    let (answer, memory) = leaks::ask_and_watch(&stack, note, &model).await?;

    title("What is refused");
    refusals::show(&mut stack, note).await?;

    title(
        "Search every link, log, file and the parent's memory for every 12-byte window of prompt, answer and weights",
    );
    leaks::search(&stack, note, &answer, &model, memory).await?;

    stack.parent.stop(std::time::Duration::from_secs(30)).await?;
    println!("\ndemo: everything held, in {:.1} s.", begun.elapsed().as_secs_f64());
    Ok(())
}

fn title(text: &str) {
    println!("\n== {text}");
}

/// A line for what takes longer than a moment; [`done`] ends it.
fn progress(text: &str) -> io::Result<()> {
    print!("  {text} ... ");
    io::stdout().flush()
}

fn done(since: Instant) {
    println!("{:.1} s", since.elapsed().as_secs_f64());
}

fn shown(pid: Option<u32>) -> String {
    pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string())
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  | {line}")).collect::<Vec<_>>().join("\n")
}
