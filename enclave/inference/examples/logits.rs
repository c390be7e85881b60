//! The logits of what may follow given tokens, for comparison with other engines:
//! `cargo run --release -p inference --example logits -- --model FILE --tokens 1,2,3 --json`.
#![allow(clippy::print_stdout, reason = "a command for people to try")]

use std::error::Error;
use std::path::PathBuf;

use clap::Parser;
use inference::{LoadOptions, Model};

/// The logits of what may follow given tokens.
#[derive(Parser)]
struct Arguments {
    /// GGUF file.
    #[arg(long)]
    model: PathBuf,
    /// Token ids.
    #[arg(long, value_delimiter = ',', required = true)]
    tokens: Vec<u32>,
    /// All logits as a JSON array, instead of the ten largest as text.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let model = Model::load(&std::fs::read(&arguments.model)?, &LoadOptions::default())?;
    let logits = model.logits(&model.prompt_of_tokens(&arguments.tokens)?)?;
    if arguments.json {
        println!("{}", serde_json::to_string(&logits)?);
        return Ok(());
    }
    let mut ranked: Vec<(usize, f32)> = logits.into_iter().enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    for (token, logit) in ranked.iter().take(10) {
        println!("{token:>8} {logit:>12.5}");
    }
    Ok(())
}
