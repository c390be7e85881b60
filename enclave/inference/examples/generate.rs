//! Asks a model something by hand: `cargo run --release -p inference --example generate -- --model FILE "a question"`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command for people to try")]

use std::error::Error;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use inference::{Cancel, LoadOptions, Message, Model, Role, Sampling};

/// Asks a model something.
#[derive(Parser)]
struct Arguments {
    /// GGUF file.
    #[arg(long)]
    model: PathBuf,
    /// What to ask.
    question: String,
    /// Instructions in front of it.
    #[arg(long)]
    system: Option<String>,
    /// Most tokens of the answer; as many as fit, if not given.
    #[arg(long)]
    max_tokens: Option<usize>,
    /// 0 takes the likeliest token always.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Only the so many likeliest tokens; 0 for all.
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Only the likeliest tokens that together reach this probability.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads of the engine; 0 for one per core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Print the prompt's tokens.
    #[arg(long)]
    show_tokens: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let options = LoadOptions { threads: arguments.threads };
    let model = Model::load(&std::fs::read(&arguments.model)?, &options)?;
    let mut messages = Vec::new();
    messages.extend(arguments.system.as_deref().map(|content| Message { role: Role::System, content }));
    messages.push(Message { role: Role::User, content: &arguments.question });
    let prompt = model.prompt(&messages)?;
    if arguments.show_tokens {
        eprintln!("{:?}", prompt.tokens());
    }
    let Arguments { temperature, top_k, top_p, seed, .. } = arguments;
    let sampling = Sampling { temperature, top_k, top_p, seed, ..Sampling::greedy() };
    let max_tokens = arguments.max_tokens.unwrap_or(usize::MAX).min(model.room_after(&prompt));
    let start = Instant::now();
    let mut first = None;
    let finished = model.generate(&prompt, &sampling, max_tokens, &Cancel::new(), &mut |token| {
        first.get_or_insert_with(|| start.elapsed());
        print!("{}", token.text);
        match std::io::stdout().flush() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    let (first, total) = (first.unwrap_or_default().as_secs_f64(), start.elapsed().as_secs_f64());
    eprintln!(
        "\n[{} {:?}: {} prompt tokens in {:.1} ms, then {} tokens, {:.1} a second]",
        model.name(),
        finished.reason,
        finished.prompt_tokens,
        first * 1e3,
        finished.completion_tokens,
        finished.completion_tokens.saturating_sub(1) as f64 / (total - first)
    );
    Ok(())
}
