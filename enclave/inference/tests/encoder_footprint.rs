//! What loading an encoder and embedding with it really take, against the plan. Measured in a process of its own: a peak is a
//! process's.
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

#[path = "encoding/mod.rs"]
mod encoding;
#[path = "memory/mod.rs"]
mod memory;

use std::fs::File;
use std::path::Path;
use std::process::Command;

use encoding::{Files, Tensor, safetensors};
use inference::{Cancel, EmbedOptions, Encoder, EncoderPlan, LoadOptions, MAX_TEXT_BYTES, MAX_TEXTS};
use memory::{reset_peak, resident};
use serde_json::json;

/// Larger than what an allocator and a stack add: 20 MB of words, 19 MB of layers.
fn large() -> Files {
    let (vocabulary, positions, width, feed_forward, layers) = (20_000, 512, 256, 1_024, 6);
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[usize]| {
        let elements: usize = shape.iter().product();
        // Small numbers of either sign.
        let bytes =
            (0..elements).flat_map(|index| ((index * 7_919 % 201) as f32 / 2_000.0 - 0.05).to_le_bytes()).collect();
        tensors.push(Tensor { name, dtype: "F32", shape: shape.to_vec(), bytes });
    };
    add("embeddings.word_embeddings.weight".to_owned(), &[vocabulary, width]);
    add("embeddings.position_embeddings.weight".to_owned(), &[positions, width]);
    add("embeddings.token_type_embeddings.weight".to_owned(), &[2, width]);
    let mut pair = |name: String, outputs: usize, inputs: Option<usize>| {
        add(format!("{name}.weight"), &[vec![outputs], inputs.into_iter().collect()].concat());
        add(format!("{name}.bias"), &[outputs]);
    };
    pair("embeddings.LayerNorm".to_owned(), width, None);
    for layer in 0..layers {
        for (part, outputs, inputs) in [
            ("attention.self.query", width, Some(width)),
            ("attention.self.key", width, Some(width)),
            ("attention.self.value", width, Some(width)),
            ("attention.output.dense", width, Some(width)),
            ("attention.output.LayerNorm", width, None),
            ("intermediate.dense", feed_forward, Some(width)),
            ("output.dense", width, Some(feed_forward)),
            ("output.LayerNorm", width, None),
        ] {
            pair(format!("encoder.layer.{layer}.{part}"), outputs, inputs);
        }
    }
    let config = json!({
        "model_type": "bert", "vocab_size": vocabulary, "max_position_embeddings": positions, "type_vocab_size": 2,
        "hidden_size": width, "num_attention_heads": 8, "intermediate_size": feed_forward, "num_hidden_layers": layers,
    });
    let mut files = Files { weights: safetensors(&tensors), config: config.to_string().into_bytes(), ..Files::tiny() };
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&files.tokenizer).unwrap();
    let tokens = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    for id in tokens.len()..vocabulary {
        tokens.insert(format!("token{id}"), id.into());
    }
    files.tokenizer = serde_json::to_vec(&tokenizer).unwrap();
    files
}

#[test]
#[ignore = "in a process of its own, started by the test below"]
fn of_one_encoder() {
    let folder = std::env::var("FOOTPRINT_FOLDER").expect("the other test says which");
    let read = |name: &str| std::fs::read(Path::new(&folder).join(name)).unwrap();
    let (config, tokenizer, header) = (read("config.json"), read("tokenizer.json"), read("header"));
    let files = Files { weights: Vec::new(), config, tokenizer, ..Files::tiny() };
    let plan = EncoderPlan::from_header(&header, &files.config).unwrap();
    assert!(
        plan.weights_bytes as f64 <= 1.1 * plan.file_bytes as f64 + 256.0 * 20_000.0,
        "{} bytes",
        plan.weights_bytes
    );
    let mut weights = File::open(Path::new(&folder).join("model.safetensors")).unwrap();

    let before = resident("VmRSS");
    reset_peak();
    let encoder = Encoder::read(&mut weights, plan.file_bytes, &files.borrowed(), &LoadOptions { threads: 2 }).unwrap();
    let (peak, most) = (resident("VmHWM") - before, (plan.weights_bytes + plan.loading_bytes) as u64);
    println!("load: peak {peak}, planned {most}");
    assert!(peak <= most + SLACK && most <= 2 * peak, "loading took {peak} bytes; the plan says {most}");

    let long = "word ".repeat(2_000);
    let longest = "a ".repeat(MAX_TEXT_BYTES / 2);
    // Which are taken apart into three.
    let odd = "\u{1d160}".repeat(MAX_TEXT_BYTES / 4);
    for (texts, tokens) in
        [(vec![&*odd], 3), (vec![&*longest], 512), (vec![&*long; 6], 512), (vec!["fox"; MAX_TEXTS], 3)]
    {
        let before = resident("VmRSS");
        reset_peak();
        let options = EmbedOptions { truncate: true, ..EmbedOptions::default() };
        let embeddings = encoder.embed(&texts, &options, &Cancel::new()).unwrap();
        assert_eq!(embeddings[0].tokens(), tokens);
        let (peak, most) = (resident("VmHWM") - before, plan.computing_bytes(texts.len(), tokens, 2));
        println!("{} texts of {tokens}: peak {peak}, planned {most}", texts.len());
        assert!(peak <= most + SLACK, "embedding took {peak} bytes; the plan says {most}");
    }
}

#[test]
fn loading_and_embedding_take_what_the_plan_says_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let files = large();
    let header = 8 + u64::from_le_bytes(files.weights[..8].try_into().unwrap()) as usize;
    for (name, bytes) in [
        ("model.safetensors", &files.weights[..]),
        ("header", &files.weights[..header]),
        ("config.json", &files.config),
        ("tokenizer.json", &files.tokenizer),
    ] {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let measured = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "of_one_encoder", "--ignored", "--nocapture"])
        .env("FOOTPRINT_FOLDER", folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&measured.stdout);
    println!("{said}");
    assert!(measured.status.success() && said.contains("1 passed"), "{said}");
}

/// What the allocator, the tokenizer, stacks and code that runs for the first time may add.
const SLACK: u64 = 6 << 20;
