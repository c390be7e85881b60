//! Measures the engine: `cargo run --release -p inference --example bench -- --model FILE --threads 1 --prefill 128,512
//! --decode 64 --depth 0,1024 --sequences 1 --json`. One JSON object a line.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a tool of the workshop: it may stop at the first thing that is wrong"
)]

use std::error::Error;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use clap::Parser;
use inference::{BLOCK_THREADS_VARIABLE, Cancel, LoadOptions, Model, Sampling};
use serde_json::json;

/// Measures the engine.
#[derive(Parser)]
struct Arguments {
    /// GGUF file.
    #[arg(long)]
    model: PathBuf,
    /// Threads of the engine.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Prompt lengths to measure.
    #[arg(long, value_delimiter = ',', default_value = "128,512")]
    prefill: Vec<usize>,
    /// Answer lengths to measure.
    #[arg(long, value_delimiter = ',', default_value = "64")]
    decode: Vec<usize>,
    /// Tokens in front of the answers.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    depth: Vec<usize>,
    /// Sequences at the same time.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    sequences: Vec<usize>,
    /// Rounds; the median is given.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// JSON, one object a line.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments = Arguments::parse();
    // candle reads the size of its pool from the environment that the process starts with.
    let threads = arguments.threads.to_string();
    if std::env::var(BLOCK_THREADS_VARIABLE).ok().as_ref() != Some(&threads) {
        let mut again = Command::new(std::env::current_exe()?);
        let status = again.args(std::env::args_os().skip(1)).env(BLOCK_THREADS_VARIABLE, threads).status()?;
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let options = LoadOptions { threads: arguments.threads, ..LoadOptions::default() };
    let model = Model::load(&std::fs::read(&arguments.model)?, &options)?;
    // The first products pack the weights.
    decode_time(&model, 16, 2);
    for &sequences in &arguments.sequences {
        for &length in &arguments.prefill {
            let report = |seconds: f64| report(&arguments, &model, "prefill", length, 0, sequences, seconds);
            report(median(arguments.rounds, || together(sequences, || prefill_time(&model, length))));
        }
        for &length in &arguments.decode {
            for &depth in &arguments.depth {
                let report = |seconds: f64| report(&arguments, &model, "decode", length, depth, sequences, seconds);
                report(median(arguments.rounds, || together(sequences, || decode_time(&model, depth, length))));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// From the start to the first token.
fn prefill_time(model: &Model, length: usize) -> Duration {
    let start = Instant::now();
    run(model, length, 1, &mut || ());
    start.elapsed()
}

/// From the first token of the answer to the last. A model that ends its answer early is timed for as far as it goes,
/// and the time stretched to the whole length.
fn decode_time(model: &Model, depth: usize, length: usize) -> Duration {
    let mut times = Vec::with_capacity(length + 1);
    run(model, depth.max(1), length + 1, &mut || times.push(Instant::now()));
    let (first, last) = times.first().zip(times.last()).expect("at least one token");
    assert!(times.len() > 1, "the answer ended at once: nothing to time");
    (*last - *first).mul_f64(length as f64 / (times.len() - 1) as f64)
}

fn run(model: &Model, prompt: usize, answer: usize, on_token: &mut dyn FnMut()) {
    let tokens: Vec<u32> = (0..prompt).map(|index| 4 + (index * 7919 % (model.vocabulary() - 4)) as u32).collect();
    let prompt = model.prompt_of_tokens(&tokens).expect("the model has room for the prompt");
    let mut last = 0;
    let generated = model.generate(&prompt, &Sampling::greedy(), answer, &Cancel::new(), &mut |token| {
        if token.count > last {
            last = token.count;
            on_token();
        }
        ControlFlow::Continue(())
    });
    generated.expect("the model has room for the answer");
}

/// The longest time of several that start at the same moment.
fn together(sequences: usize, work: impl Fn() -> Duration + Sync) -> f64 {
    let barrier = Barrier::new(sequences);
    let timed = || {
        barrier.wait();
        work()
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..sequences).map(|_| scope.spawn(timed)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap().as_secs_f64()).fold(0.0, f64::max)
    })
}

fn median(rounds: usize, measure: impl Fn() -> f64) -> f64 {
    let mut times: Vec<f64> = (0..rounds.max(1)).map(|_| measure()).collect();
    times.sort_by(f64::total_cmp);
    times.swap_remove(times.len() / 2)
}

fn report(arguments: &Arguments, model: &Model, test: &str, n: usize, depth: usize, sequences: usize, seconds: f64) {
    let rate = (n * sequences) as f64 / seconds;
    let kernel = if model.uses_block_threads() { "candle-blocks" } else { "candle-f32" };
    let threads = arguments.threads;
    let rss = resident_mib();
    if arguments.json {
        let line = json!({
            "test": test, "n": n, "depth": depth, "sequences": sequences, "threads": threads,
            "tokens_per_second": rate, "rss_mib": rss, "kernel": kernel,
        });
        println!("{line}");
    } else {
        println!(
            "{test:>8} {n:>5} at depth {depth:>5}, {sequences} sequences, {threads} threads: {rate:>9.1} tokens/s, {rss} MiB, {kernel}"
        );
    }
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}
