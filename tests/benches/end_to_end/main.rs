//! What the whole path costs: the same answers through client, parent and enclave, and from the engine alone, by turns.
//!
//! One interleaved run, because only figures of the same minutes compare: each round asks the system, then the engine.
//! (criterion measures one thing to its end before the next, so it is not used here.) Both sides compute with one thread
//! on the same CPU, the last one this process may use; client, parent and KMS go where the scheduler puts them.
//! Connections are warm and so is the data key: the client's KMS is a stand-in that always returns one data key of the
//! simulated KMS, which the enclave therefore finds in its cache. The links are not recorded. The simulated enclave is
//! no virtual machine: what the hardware's vsock adds is not in these figures.
//!
//! `SUBROSA_BENCH_MODEL=FILE` names the large model; otherwise one of random weights (0.51 B) is made and kept in the
//! target folder. `SUBROSA_BENCH_ROUNDS` and `SUBROSA_BENCH_TOKENS` change the length.

mod engine;
mod load;
#[path = "../../../enclave/inference/tests/making/mod.rs"]
mod making;
mod system;

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::Engine;
use load::Load;
use system::System;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// One answer.
struct Timing {
    /// From the question to the first text.
    first: Duration,
    /// From the question to the proven end.
    total: Duration,
    tokens: usize,
}

fn main() -> Outcome<()> {
    system::become_enclave_if_asked()?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        small().await?;
        large().await
    })
}

/// The demonstration model: what a token and the start of an answer cost in microseconds.
async fn small() -> Outcome<()> {
    let model = tests::programs::project().join("tests/demo-model/subrosa-intake.gguf");
    let note = std::fs::read_to_string(tests::programs::project().join("tests/demo-model/note.txt"))?;
    let (system, engine) = (System::start(&model).await?, Engine::load(&model)?);
    let most = 256;
    for _ in 0..3 {
        system.ask(&note, most).await?;
        engine.ask(&note, most)?;
    }
    let mut key_calls = Vec::new();
    let load = Load::begin(&system.processes());
    let (mut through, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..number("SUBROSA_BENCH_ROUNDS", 3) * 10 {
        key_calls.push(system.time_of_key_call().await?);
        through.push(system.ask(&note, most).await?);
        alone.push(engine.ask(&note, most)?);
    }
    expect_same_length(&through, &alone)?;
    println!("demonstration model, {} rounds of {} tokens; {load}", through.len(), alone[0].tokens);
    let microseconds = |seconds: f64| seconds * 1e6;
    let each = |timing: &Timing| microseconds(timing.seconds_per_token());
    println!(
        "  a token:         alone {:>7.0} µs, added by the system {:>7.0} µs",
        median(&alone, each),
        added(&through, &alone, each)
    );
    let first = |timing: &Timing| microseconds(timing.first.as_secs_f64());
    let key_call = median(&key_calls, |time| microseconds(time.as_secs_f64()));
    let first_added = added(&through, &alone, first);
    println!(
        "  the first token: alone {:>7.0} µs, added by the system {:>7.0} µs, and {key_call:.0} µs for the client's call to the stand-in for KMS",
        median(&alone, first),
        first_added - key_call
    );
    Ok(())
}

/// A model of at least 0.5 B weights: tokens per second through the system, against the engine alone.
async fn large() -> Outcome<()> {
    let model = match std::env::var_os("SUBROSA_BENCH_MODEL") {
        Some(file) => PathBuf::from(file),
        None => random_model(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("random-0.5b.gguf"))?,
    };
    let (system, engine) = (System::start(&model).await?, Engine::load(&model)?);
    let prompt = engine.question_of(PROMPT_TOKENS)?;
    system.ask("warm", 2).await?;
    engine.ask("warm", 2)?;
    let most = number("SUBROSA_BENCH_TOKENS", 48);
    let load = Load::begin(&system.processes());
    let (mut through, mut alone) = (Vec::new(), Vec::new());
    for round in 1..=number("SUBROSA_BENCH_ROUNDS", 3) {
        through.push(system.ask(&prompt, most).await?);
        alone.push(engine.ask(&prompt, most)?);
        if let (Some(through), Some(alone)) = (through.last(), alone.last()) {
            println!("  round {round}: system {through}; engine alone {alone}");
        }
    }
    expect_same_length(&through, &alone)?;
    println!(
        "{}, {PROMPT_TOKENS} tokens of prompt, {most} of answer, {} rounds; {load}",
        model.file_name().unwrap_or_default().display(),
        through.len()
    );
    for (what, rate) in [
        ("whole answer, prompt included", Timing::answers_per_second as fn(&Timing) -> f64),
        ("after the first token", Timing::tokens_per_second_after_the_first as fn(&Timing) -> f64),
    ] {
        let (through, alone) = (median(&through, rate), median(&alone, rate));
        let share = 100.0 * through / alone;
        println!(
            "  {what}: system {through:.2} tokens/s, engine alone {alone:.2} tokens/s: {share:.2} % (at least 97 % is demanded)"
        );
    }
    Ok(())
}

impl Timing {
    fn seconds_per_token(&self) -> f64 {
        (self.total - self.first).as_secs_f64() / (self.tokens.saturating_sub(1)).max(1) as f64
    }

    fn tokens_per_second_after_the_first(&self) -> f64 {
        1.0 / self.seconds_per_token()
    }

    /// Tokens of the answer per second, the prompt's time included.
    fn answers_per_second(&self) -> f64 {
        self.tokens as f64 / self.total.as_secs_f64()
    }
}

impl std::fmt::Display for Timing {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{:.3} s to the first text, {:.3} s in all", self.first.as_secs_f64(), self.total.as_secs_f64())
    }
}

/// Figures compare only if both wrote the same number of tokens.
fn expect_same_length(through: &[Timing], alone: &[Timing]) -> Outcome<()> {
    let tokens = alone.first().ok_or("no rounds")?.tokens;
    match through.iter().chain(alone).find(|timing| timing.tokens != tokens) {
        Some(other) => Err(format!("answers of {tokens} and of {} tokens do not compare", other.tokens).into()),
        None => Ok(()),
    }
}

/// The median of the differences, round by round.
fn added(through: &[Timing], alone: &[Timing], of: impl Fn(&Timing) -> f64) -> f64 {
    let differences: Vec<f64> = through.iter().zip(alone).map(|(through, alone)| of(through) - of(alone)).collect();
    median(&differences, |difference| *difference)
}

fn median<T>(all: &[T], of: impl Fn(&T) -> f64) -> f64 {
    let mut all: Vec<f64> = all.iter().map(of).collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn random_model(file: &Path) -> Outcome<PathBuf> {
    if !file.is_file() {
        println!("making {} (once)", file.display());
        let shape = making::Shape::named("0.5b").ok_or("no such shape")?;
        let unfinished = file.with_extension("unfinished");
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&unfinished)?);
        making::random_model(&shape, 1).write(&mut out)?;
        out.flush()?;
        std::fs::rename(unfinished, file)?;
    }
    Ok(file.to_owned())
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

const PROMPT_TOKENS: usize = 512;
