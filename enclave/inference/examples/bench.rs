//! Measures the engine: `cargo run --release -p inference --example bench -- --model FILE --threads 1 --prefill 128,512
//! --decode 64 --depth 0,1024 --sequences 1 --json`. One JSON object a line.
//!
//! `--extract 128 --copied 1,0.7,0` measures answers that their prompt contains, with and without speculation: the model
//! answers once, and is then asked again with its own answer in the prompt, of which the share `--copied` is left as it
//! was. With 0 every two tokens of the answer stand in the prompt, but with another third: each guess is wrong. That the
//! model says the same with all that in front of it, is checked; tests/inference-bench/successor.py makes one that does.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a tool of the workshop: it may stop at the first thing that is wrong"
)]

use std::error::Error;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use clap::Parser;
use inference::{Asker, Cancel, KvMemory, LoadOptions, Model, PrefixScope, Prompt, Queued, Sampling};
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
    /// Prompt lengths to measure again, with keys and values of all but the last tokens kept from the first time.
    #[arg(long, value_delimiter = ',')]
    again: Vec<usize>,
    /// Answer lengths to measure.
    #[arg(long, value_delimiter = ',', default_value = "64")]
    decode: Vec<usize>,
    /// Tokens in front of the answers.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    depth: Vec<usize>,
    /// Sequences at the same time.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    sequences: Vec<usize>,
    /// Answer lengths to measure for an answer that its prompt contains; nothing else is measured then.
    #[arg(long, value_delimiter = ',')]
    extract: Vec<usize>,
    /// Shares of such an answer that the prompt has as it will be said.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    copied: Vec<f64>,
    /// Rounds; the median is given.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// JSON, one object a line.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let options = LoadOptions { threads: arguments.threads };
    let mut file = std::fs::File::open(&arguments.model)?;
    let bytes = usize::try_from(file.metadata()?.len())?;
    let model = Model::read(&mut file, bytes, &options)?.within(&KvMemory::new(KEPT))?;
    // Buffers grow, caches fill.
    decode_time(&model, 16, 2);
    for &length in &arguments.extract {
        for &copied in &arguments.copied {
            extract(&arguments, &model, length, copied);
        }
    }
    if !arguments.extract.is_empty() {
        return Ok(());
    }
    for &sequences in &arguments.sequences {
        if sequences > 1 {
            for &length in &arguments.decode {
                let rate = median(arguments.rounds, || batch_rate(&model, sequences, length));
                report(&arguments, &model, "batch", length, 0, sequences, rate);
            }
            continue;
        }
        for &length in &arguments.prefill {
            let rate = || length as f64 / first_token(&model, length, &Asker::NOBODY).as_secs_f64();
            let rate = median(arguments.rounds, rate);
            report(&arguments, &model, "prefill", length, 0, 1, rate);
        }
        for &length in &arguments.again {
            first_token(&model, length, &KEEPING);
            let rate = || length as f64 / first_token(&model, length, &KEEPING).as_secs_f64();
            report(&arguments, &model, "again", length, 0, 1, median(arguments.rounds, rate));
        }
        for &length in &arguments.decode {
            for &depth in &arguments.depth {
                let rate = || length as f64 / decode_time(&model, depth, length).as_secs_f64();
                report(&arguments, &model, "decode", length, depth, 1, median(arguments.rounds, rate));
            }
        }
    }
    Ok(())
}

/// From the start to the first token.
fn first_token(model: &Model, length: usize, asker: &Asker) -> Duration {
    let prompt = prompt(model, length);
    let start = Instant::now();
    let queued = model.submit(asker, &prompt, &Sampling::greedy(), 1, &Cancel::new());
    let begun = queued.and_then(Queued::begin).expect("the model has room for the prompt").expect("nobody cancels it");
    begun.receive(&mut |_| ControlFlow::Continue(())).expect("the model answers");
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

fn prompt(model: &Model, length: usize) -> Prompt {
    let tokens: Vec<u32> = (0..length).map(|index| 4 + (index * 7919 % (model.vocabulary() - 4)) as u32).collect();
    model.prompt_of_tokens(&tokens).expect("the model has room for the prompt")
}

fn run(model: &Model, prompt: usize, answer: usize, on_token: &mut dyn FnMut()) {
    let prompt = self::prompt(model, prompt);
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

/// Tokens a second of so many answers at the same time, from when all of them have begun until the last one ends.
fn batch_rate(model: &Model, sequences: usize, length: usize) -> f64 {
    let barrier = Barrier::new(sequences);
    let timed = || {
        barrier.wait();
        let mut times = Vec::with_capacity(length + 1);
        run(model, BATCH_PROMPT, length + 1, &mut || times.push(Instant::now()));
        times
    };
    let times: Vec<Vec<Instant>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..sequences).map(|_| scope.spawn(timed)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let begun = *times.iter().filter_map(|times| times.first()).max().unwrap();
    let ended = *times.iter().filter_map(|times| times.last()).max().unwrap();
    let tokens = times.iter().flatten().filter(|time| **time > begun).count();
    tokens as f64 / (ended - begun).as_secs_f64()
}

/// The pace of an answer that its prompt contains, without and with speculation, in turn.
fn extract(arguments: &Arguments, model: &Model, length: usize, copied: f64) {
    let question: Vec<u32> = (0..16).map(|index| token(model, index)).collect();
    let (answer, _) = answered(model, &question, length + 1, false);
    let prompt = [passage(model, &answer, copied), question].concat();
    let (mut plain, mut ahead) = (Vec::new(), Vec::new());
    let before = model.guesses();
    for _ in 0..arguments.rounds.max(1) {
        for (speculate, rates) in [(false, &mut plain), (true, &mut ahead)] {
            let (said, time) = answered(model, &prompt, length + 1, speculate);
            assert!(said == answer, "with its own answer in front of it, this model gives another one");
            rates.push(length as f64 / time.as_secs_f64());
        }
    }
    let after = model.guesses();
    let (made, right) = ((after.0 - before.0) as f64, (after.1 - before.1) as f64);
    let answers = (length * arguments.rounds.max(1)) as f64;
    for (speculation, mut rates) in [(false, plain), (true, ahead)] {
        rates.sort_by(f64::total_cmp);
        let (rate, depth) = (rates.swap_remove(rates.len() / 2), prompt.len());
        let [guessed, accepted] = if speculation { [made / answers, right / made.max(1.0)] } else { [0.0, 0.0] };
        if arguments.json {
            let line = json!({
                "test": "extract", "n": length, "depth": depth, "sequences": 1, "threads": arguments.threads,
                "copied": copied, "speculation": speculation, "tokens_per_second": rate,
                "guessed": guessed, "accepted": accepted, "rss_mib": resident_mib(), "kernel": model.kernel(),
            });
            println!("{line}");
        } else {
            println!(
                " extract {length:>5} at depth {depth:>5}, {copied:.2} copied, speculation {speculation:<5}: {rate:>9.1} tokens/s, {guessed:.2} guessed a token, {:.0} % of them right",
                100.0 * accepted
            );
        }
    }
}

/// The answer with some of its tokens replaced; with none copied, each two of its tokens and then another than will follow.
fn passage(model: &Model, answer: &[u32], copied: f64) -> Vec<u32> {
    let other = |index: usize| {
        let other = token(model, 1000 + index);
        if answer.contains(&other) { token(model, 5000 + index) } else { other }
    };
    if copied <= 0.0 {
        let pairs = answer.windows(2).enumerate();
        return pairs.flat_map(|(index, pair)| [pair[0], pair[1], other(index)]).collect();
    }
    // Not every third token, say, but a piece and then something else, as in an answer that fills in fields.
    let replaced = |index: usize| (index % PIECE) as f64 >= copied * PIECE as f64;
    answer.iter().enumerate().map(|(index, &id)| if replaced(index) { other(index) } else { id }).collect()
}

/// The tokens of an answer, and the time from the first to the last.
fn answered(model: &Model, prompt: &[u32], length: usize, speculate: bool) -> (Vec<u32>, Duration) {
    let prompt = model.prompt_of_tokens(prompt).expect("the model has room for the prompt");
    let (mut tokens, mut times) = (Vec::with_capacity(length), Vec::with_capacity(length));
    let sampling = Sampling { speculate, ..Sampling::greedy() };
    let generated = model.generate(&prompt, &sampling, length, &Cancel::new(), &mut |token| {
        if token.count > tokens.len() {
            tokens.push(token.id);
            times.push(Instant::now());
        }
        ControlFlow::Continue(())
    });
    generated.expect("the model has room for the answer");
    assert_eq!(tokens.len(), length, "the model ended its answer early");
    (tokens, times[length - 1] - times[0])
}

/// Any ordinary token.
fn token(model: &Model, index: usize) -> u32 {
    4 + (index * 7919 % (model.vocabulary() * 9 / 10 - 4)) as u32
}

fn median(rounds: usize, measure: impl Fn() -> f64) -> f64 {
    let mut times: Vec<f64> = (0..rounds.max(1)).map(|_| measure()).collect();
    times.sort_by(f64::total_cmp);
    times.swap_remove(times.len() / 2)
}

fn report(arguments: &Arguments, model: &Model, test: &str, n: usize, depth: usize, sequences: usize, rate: f64) {
    let kernel = model.kernel();
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

/// Tokens of a piece of an answer, of which the first ones are copied.
const PIECE: usize = 20;
/// Memory for answers, and for what `--again` needs kept.
const KEPT: u64 = 64 << 30;
const KEEPING: Asker = Asker { prefixes: Some(PrefixScope([1; 32])), ..Asker::NOBODY };
/// Tokens in front of answers that run at the same time, as many as llama-batched-bench is asked for in the comparison.
const BATCH_PROMPT: usize = 32;
