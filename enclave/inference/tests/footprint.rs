//! What loading and answering really take, against the plan. Each model is measured in a process of its own: a peak is a
//! process's, and what an allocator keeps of an earlier model would hide part of the next.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "in a test, the first thing that is wrong ends it"
)]

#[path = "making/mod.rs"]
mod making;
#[path = "memory/mod.rs"]
mod memory;

use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use candle_core::quantized::GgmlDType;
use inference::{Cancel, LoadOptions, Model, Plan, Sampling};
use making::{Shape, random_model};
use memory::{reset_peak, resident};

/// Loads and answers in this process, and holds both against the plan.
fn measure(file: &Path, prompt: usize) {
    let plan = Plan::from_header(&std::fs::read(file).unwrap()).unwrap();
    let mut file = std::fs::File::open(file).unwrap();
    let bytes = usize::try_from(file.metadata().unwrap().len()).unwrap();
    assert_eq!(plan.file_bytes, bytes);
    // "Resident memory at most 1.1x the file": of the weights, whose formats hardly grow.
    assert!(plan.weights_bytes as f64 <= 1.1 * bytes as f64, "{} bytes of weights", plan.weights_bytes);
    let options = LoadOptions { threads: 2 };
    reset_peak();
    let before = resident("VmRSS");
    let model = Model::read(&mut file, bytes, &options).unwrap();
    let peak = resident("VmHWM") - before;
    // No answer is of a given form here.
    let most = plan.bytes_to_load() - plan.form_bytes as u64;
    println!("load: peak {peak}, planned {most}, file {bytes}");
    assert!(peak <= most + SLACK, "loading took {peak} bytes; the plan says {most}");
    // The file passes through, whatever its size.
    let fixed = (plan.loading_bytes + plan.vocabulary_bytes) as u64 + SLACK;
    assert!(fixed < 32 << 20, "buffers of {fixed} bytes");
    assert!(peak as f64 <= 1.1 * bytes as f64 + fixed as f64, "loading {bytes} bytes took {peak}");

    let prompt: Vec<u32> = (0..prompt as u32).map(|index| index % 250 + 4).collect();
    let prompt = model.prompt_of_tokens(&prompt).unwrap();
    let tokens = prompt.len() + 8;
    let receive = &mut |_: inference::Token<'_>| ControlFlow::Continue(());
    // What takes most: a choice among all tokens, and guesses.
    let sampling = Sampling { temperature: 1.0, speculate: true, ..Sampling::greedy() };
    model.generate(&prompt, &sampling, 8, &Cancel::new(), receive).unwrap();
    // The first products order the weights anew, which the plan counts as weights.
    let peak = resident("VmHWM") - before;
    let kv = plan.sequence_bytes(tokens);
    let lasting = (plan.weights_bytes + plan.vocabulary_bytes) as u64;
    let most = lasting + kv + plan.activations.bytes(1, tokens, 2);
    println!(
        "answer: peak {peak}, planned {most}, of it {} for weights and {kv} for keys and values",
        plan.weights_bytes
    );
    assert!(peak <= most + SLACK, "weights and an answer took {peak} bytes; the plan says {most}");
    assert!(most <= 2 * peak, "the plan asks for {most} bytes, where {peak} were taken");
}

#[test]
#[ignore = "one model in a process of its own, started by the test below"]
fn of_one_model() {
    let argument = |name| std::env::var(name).expect("the other test says which");
    measure(Path::new(&argument("FOOTPRINT_FILE")), argument("FOOTPRINT_PROMPT").parse().unwrap());
}

#[test]
fn loading_and_answering_take_what_the_plan_says_and_no_more() {
    let wide = Shape { vocabulary: 900, context: 4096, feed_forward: 2048, ..Shape::TINY };
    let folder = tempfile::tempdir().unwrap();
    for (name, shape, prompt) in [
        ("dense", wide, 3000),
        ("blocks", Shape { kind: GgmlDType::Q8_0, layers: 10, width: 512, ..wide }, 600),
        // Matrices of a little more than two huge pages: each on pages of its own would take a third more.
        // As many tokens as Qwen has. Held as text by text, they would take more than the plan says.
        ("words", Shape { kind: GgmlDType::Q8_0, vocabulary: 151_936, tied: true, ..wide }, 600),
        ("odd", Shape { kind: GgmlDType::Q4K, layers: 8, width: 1024, feed_forward: 7680, ..wide }, 600),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, random_model(&shape, 1).to_bytes()).unwrap();
        let measured = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "of_one_model", "--ignored", "--nocapture"])
            .env("FOOTPRINT_FILE", &path)
            .env("FOOTPRINT_PROMPT", prompt.to_string())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&measured.stdout);
        println!("{name}: {said}");
        assert!(measured.status.success() && said.contains("1 passed"), "{name}: {said}");
    }
}

/// What the allocator, stacks and code that runs for the first time may add.
const SLACK: u64 = 8 << 20;
