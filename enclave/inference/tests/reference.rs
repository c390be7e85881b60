//! The engine comes to the same as Hugging Face transformers: logits, greedy answers, chat prompts. The files in
//! `fixtures/` and the program that made them with transformers stand side by side.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "in a test, the first thing that is wrong ends it"
)]

use std::ops::ControlFlow;
use std::path::PathBuf;

use inference::{Cancel, LoadOptions, Message, Model, Role, Sampling};
use serde_json::Value;

fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn reference() -> Value {
    serde_json::from_slice(&fixture("reference.json")).unwrap()
}

fn model(name: &str) -> Model {
    Model::load(&fixture(&format!("reference-{name}.gguf")), &LoadOptions::default()).unwrap()
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|number| number.as_u64().unwrap() as u32).collect()
}

fn logits_agree(name: &str, bound: f32) {
    let model = model(name);
    let reference = reference();
    let cases = reference["models"][name].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    for case in cases {
        let tokens = numbers(&case["tokens"]);
        let logits = model.logits(&model.prompt_of_tokens(&tokens).unwrap()).unwrap();
        let expected = case["logits"].as_array().unwrap();
        assert_eq!(logits.len(), expected.len());
        for (id, (ours, theirs)) in logits.iter().zip(expected).enumerate() {
            let theirs = theirs.as_f64().unwrap() as f32;
            assert!((ours - theirs).abs() < bound, "{} tokens, logit {id}: {ours}, not {theirs}", tokens.len());
        }
    }
}

#[test]
fn logits_are_those_of_transformers() {
    logits_agree("plain", 1e-3);
}

#[test]
fn logits_are_those_of_transformers_with_tied_output_and_llama_3_frequencies() {
    // Beside weights of 16 bits keys and values have 16 too.
    logits_agree("scaled", 5e-3);
}

#[test]
fn logits_are_those_of_transformers_with_biases_and_rotated_halves() {
    logits_agree("qwen2", 1e-3);
}

#[test]
fn logits_are_those_of_transformers_with_norms_of_heads() {
    logits_agree("qwen3", 1e-3);
}

#[test]
fn greedy_answers_are_those_of_transformers() {
    let reference = reference();
    for name in ["plain", "scaled", "qwen2", "qwen3"] {
        let model = model(name);
        for case in reference["models"][name].as_array().unwrap() {
            let prompt = model.prompt_of_tokens(&numbers(&case["tokens"])).unwrap();
            let expected = numbers(&case["greedy"]);
            let mut answer: Vec<(usize, u32)> = Vec::new();
            let finished = model.generate(&prompt, &Sampling::greedy(), expected.len(), &Cancel::new(), &mut |token| {
                answer.push((token.count, token.id));
                ControlFlow::Continue(())
            });
            answer.dedup();
            let answer: Vec<u32> = answer.into_iter().map(|(_, id)| id).collect();
            // An answer ends where the model ends it: that token is not part of it.
            let end = expected.iter().position(|&id| id == END).unwrap_or(expected.len());
            assert_eq!(answer, expected[..end]);
            assert_eq!(finished.unwrap().completion_tokens, end);
        }
    }
}

#[test]
fn chat_prompts_are_those_of_transformers() {
    let model = model("plain");
    let reference = reference();
    let conversations = reference["conversations"].as_array().unwrap();
    assert!(!conversations.is_empty());
    for conversation in conversations {
        let messages: Vec<Message<'_>> = conversation["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| Message {
                role: match message["role"].as_str().unwrap() {
                    "system" => Role::System,
                    "user" => Role::User,
                    "assistant" => Role::Assistant,
                    other => panic!("role {other}"),
                },
                content: message["content"].as_str().unwrap(),
            })
            .collect();
        assert_eq!(model.prompt(&messages).unwrap().tokens(), numbers(&conversation["tokens"]));
    }
}

/// `<|eot_id|>` in the reference vocabulary.
const END: u32 = 3;
