//! Evaluates the demonstration model through this engine: `cargo run --release -p inference --example evaluate --
//! --model FILE --held-out FILE.jsonl [--at-least 0.95] [--json]`.
//!
//! Each line of the held-out file is `{"note": "...", "fields": {"complaint": "...", "onset": "...", "medication":
//! "...", "allergy": "...", "urgency": "..."}}`. The answer is read line by line as `field: value`; a field counts if
//! its value is exact.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command for people to try")]

use std::collections::BTreeMap;
use std::error::Error;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use inference::{Cancel, LoadOptions, Message, Model, Role, Sampling};
use serde::{Deserialize, Serialize};

/// Evaluates the demonstration model.
#[derive(Parser)]
struct Arguments {
    /// GGUF file.
    #[arg(long)]
    model: PathBuf,
    /// Notes and their true fields, one JSON object a line.
    #[arg(long)]
    held_out: PathBuf,
    /// Exit with 1 if a smaller share of fields is exact.
    #[arg(long)]
    at_least: Option<f64>,
    /// Threads of the engine; 0 for one per core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Most answers with a wrong field that are shown on stderr.
    #[arg(long, default_value_t = 3)]
    show: usize,
    /// Let the engine guess what is copied from the note: another pace, the same answers.
    #[arg(long)]
    speculate: bool,
    /// The figures as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Case {
    note: String,
    fields: BTreeMap<String, String>,
}

#[derive(Default, Serialize)]
struct Figures {
    notes: usize,
    fields: usize,
    exact: usize,
    share: f64,
    notes_exact: usize,
    by_field: BTreeMap<String, f64>,
    seconds_per_note: f64,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments = Arguments::parse();
    let options = LoadOptions { threads: arguments.threads };
    let model = Model::load(&std::fs::read(&arguments.model)?, &options)?;
    let lines = std::fs::read_to_string(&arguments.held_out)?;
    let cases: Vec<Case> =
        lines.lines().filter(|line| !line.trim().is_empty()).map(serde_json::from_str).collect::<Result<_, _>>()?;
    let figures = evaluate(&model, &cases, &arguments)?;
    if arguments.json {
        println!("{}", serde_json::to_string(&figures)?);
    } else {
        println!("{} notes, {} fields: {:.2} % exact", figures.notes, figures.fields, 100.0 * figures.share);
        for (field, share) in &figures.by_field {
            println!("  {field:<12} {:>6.2} %", 100.0 * share);
        }
        println!("  whole note   {:>6.2} %", 100.0 * figures.notes_exact as f64 / figures.notes.max(1) as f64);
        println!("{:.1} ms a note", 1e3 * figures.seconds_per_note);
    }
    let enough = arguments.at_least.is_none_or(|bar| figures.fields > 0 && figures.share >= bar);
    Ok(if enough { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn evaluate(model: &Model, cases: &[Case], arguments: &Arguments) -> Result<Figures, Box<dyn Error>> {
    let start = Instant::now();
    let mut figures = Figures { notes: cases.len(), ..Figures::default() };
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut shown = 0;
    for (index, case) in cases.iter().enumerate() {
        let answer = answer(model, &case.note, arguments.speculate)?;
        let said = fields(&answer);
        let mut all = true;
        for (field, value) in &case.fields {
            let exact = said.get(field.as_str()) == Some(&value.as_str());
            let (right, total) = counts.entry(field).or_default();
            *right += usize::from(exact);
            *total += 1;
            all &= exact;
        }
        figures.notes_exact += usize::from(all);
        if !all && shown < arguments.show {
            shown += 1;
            eprintln!("\r--- note {}\n{}\n--- answer\n{answer}\n--- true\n{:?}", index + 1, case.note, case.fields);
        }
        if (index + 1) % 10 == 0 || index + 1 == cases.len() {
            eprint!("\r{} of {} notes", index + 1, cases.len());
        }
    }
    eprintln!();
    figures.exact = counts.values().map(|(right, _)| right).sum();
    figures.fields = counts.values().map(|(_, total)| total).sum();
    figures.share = figures.exact as f64 / figures.fields.max(1) as f64;
    let share = |(right, total): (usize, usize)| right as f64 / total as f64;
    figures.by_field = counts.into_iter().map(|(field, count)| (field.to_owned(), share(count))).collect();
    figures.seconds_per_note = start.elapsed().as_secs_f64() / cases.len().max(1) as f64;
    Ok(figures)
}

fn answer(model: &Model, note: &str, speculate: bool) -> Result<String, Box<dyn Error>> {
    let prompt = model.prompt(&[Message { role: Role::User, content: note }])?;
    let mut answer = String::new();
    let room = model.room_after(&prompt);
    let sampling = Sampling { speculate, ..Sampling::greedy() };
    model.generate(&prompt, &sampling, room, &Cancel::new(), &mut |token| {
        answer.push_str(token.text);
        ControlFlow::Continue(())
    })?;
    Ok(answer)
}

fn fields(answer: &str) -> BTreeMap<&str, &str> {
    answer.lines().filter_map(|line| line.split_once(':')).map(|(field, value)| (field.trim(), value.trim())).collect()
}
