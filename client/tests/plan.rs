//! `subrosa plan`, as a command: what it prints, and how it ends.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests stop at the first surprise"
)]

use std::process::{Command, Output};

use serde_json::Value;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/demo-model/subrosa-intake.gguf");

fn plan(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_subrosa")).env_clear().arg("plan").args(arguments).output().unwrap()
}

fn json(arguments: &[&str]) -> (Value, Option<i32>) {
    let output = plan(&[arguments, &["--json"]].concat());
    (serde_json::from_slice(&output.stdout).unwrap(), output.status.code())
}

#[test]
fn the_plan_says_what_is_needed_and_what_has_room_for_it() {
    let (plan, code) = json(&[MODEL, "--sequences", "8", "--context", "256"]);
    assert_eq!(code, Some(0));
    assert_eq!((&plan["sequences"], &plan["context"]), (&8.into(), &256.into()));
    let needed = plan["needed_mib"].as_u64().unwrap();
    let moments = plan["moments"].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap());
    assert_eq!(needed, moments.max().unwrap().div_ceil(2 << 20) * 2);
    assert_eq!(plan["allocator"]["memory_mib"], needed);
    assert_eq!(plan["allocator_yaml"], format!("---\nmemory_mib: {needed}\ncpu_count: 2\n"));
    let types = plan["instance_types"].as_array().unwrap();
    assert!(types.iter().any(|instance| instance["type"] == "m5.xlarge"), "{types:?}");
    assert_eq!(plan["image"]["assumed"], true);
}

#[test]
fn what_a_given_memory_holds_fits_it_and_one_token_more_does_not() {
    // With a longer context than its own, so that keys and values take most.
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("long.gguf");
    let mut file = std::fs::read(MODEL).unwrap();
    let key = b"llama.context_length";
    let value = file.windows(key.len()).position(|window| window == key).unwrap() + key.len() + size_of::<u32>();
    file[value..value + 4].copy_from_slice(&8192_u32.to_le_bytes());
    std::fs::write(&model, file).unwrap();
    let model = model.to_str().unwrap();
    let (all, _) = json(&[model, "--sequences", "64"]);
    let less = (all["needed_mib"].as_u64().unwrap() - 20).to_string();
    let (fitting, code) = json(&[model, "--sequences", "64", "--memory", &less]);
    assert_eq!(code, Some(0));
    let longest = fitting["given"]["longest_context"].as_u64().unwrap();
    assert_eq!(fitting["context"], longest);
    assert!(longest < all["model"]["context_length"].as_u64().unwrap());
    let (more, code) = json(&[model, "--sequences", "64", "--memory", &less, "--context", &(longest + 1).to_string()]);
    assert_eq!((code, &more["given"]["fits"]), (Some(1), &false.into()));
}

#[test]
fn memory_that_is_not_enough_is_an_error_that_says_how_much_would_be() {
    let output = plan(&[MODEL, "--memory", "64"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("64 MiB are not enough") && said.contains("needs"), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("allocator.yaml"), "the plan is printed all the same");
}

#[test]
fn wrong_arguments_and_wrong_files_are_told_apart() {
    for (arguments, code) in [
        (vec![MODEL, "--context", "0"], 2),
        (vec![MODEL, "--context", "513"], 2),
        (vec![MODEL, "--sequences", "257"], 2),
        (vec!["/nowhere.gguf"], 1),
        (vec![concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")], 1),
        (vec![MODEL, "--image", MODEL], 1),
    ] {
        let output = plan(&arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!output.stderr.is_empty());
    }
}
