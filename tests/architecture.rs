//! The walls between the packages, read from `cargo tree`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::collections::BTreeSet;
use std::process::Command;

/// Every package below `package`, itself left out, normal dependencies only: what its programs link.
fn linked_by(package: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--offline",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
            "--package",
            package,
        ])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo tree runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).unwrap();
    names.lines().filter_map(|line| line.split(' ').next()).filter(|name| *name != package).map(str::to_owned).collect()
}

const OURS: [&str; 13] = [
    "address",
    "attestation",
    "enclave",
    "inference",
    "kernels",
    "kms-policies",
    "model-header",
    "parent",
    "sealing",
    "simulator",
    "subrosa-client",
    "tests",
    "vectors",
];

fn ours(package: &str) -> BTreeSet<String> {
    linked_by(package).into_iter().filter(|name| OURS.contains(&name.as_str())).collect()
}

fn names(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(ToString::to_string).collect()
}

#[test]
fn leaves_know_nothing_of_each_other() {
    for leaf in ["address", "attestation", "kernels", "kms-policies", "model-header", "sealing", "vectors"] {
        assert_eq!(ours(leaf), names(&[]), "{leaf}");
    }
}

#[test]
fn the_engine_knows_its_kernels_and_its_models_header_and_nothing_else_of_ours() {
    assert_eq!(ours("inference"), names(&["kernels", "model-header"]));
}

#[test]
fn the_parent_can_name_no_part_that_reads_messages_or_documents() {
    assert_eq!(ours("parent"), names(&["address"]));
}

#[test]
fn the_client_links_neither_the_enclave_nor_the_parent() {
    assert_eq!(ours("subrosa-client"), names(&["attestation", "kms-policies", "model-header", "sealing"]));
}

#[test]
fn the_client_plans_without_the_engine() {
    let below = linked_by("subrosa-client");
    for forbidden in ["inference", "kernels", "candle-core", "tokenizers", "rayon"] {
        assert!(!below.contains(forbidden), "the client links {forbidden}");
    }
}

#[test]
fn the_enclave_links_its_leaves_alone() {
    let mine = ours("enclave");
    let leaves = ["address", "attestation", "inference", "kernels", "kms-policies", "model-header", "sealing"];
    assert!(mine.is_subset(&names(&leaves)), "{mine:?}");
}

#[test]
fn no_shipped_program_links_the_simulator() {
    for shipped in ["enclave", "parent", "subrosa-client"] {
        assert!(!linked_by(shipped).contains("simulator"), "{shipped}");
    }
    assert_eq!(ours("simulator"), names(&["attestation", "kms-policies"]));
}

#[test]
fn the_model_can_name_no_socket_no_key_and_no_security_module() {
    let below = linked_by("inference");
    for forbidden in [
        "tokio",
        "hyper",
        "rustls",
        "ring",
        "aws-lc-rs",
        "aws-sdk-kms",
        "aws-nitro-enclaves-nsm-api",
        "tokio-vsock",
        "vsock",
        "socket2",
        "mio",
        "reqwest",
        "ureq",
    ] {
        assert!(!below.contains(forbidden), "inference links {forbidden}");
    }
}

#[test]
fn the_pure_leaves_link_no_runtime_and_no_driver() {
    for leaf in ["attestation", "sealing", "kms-policies", "model-header"] {
        let below = linked_by(leaf);
        for forbidden in ["tokio", "hyper", "mio", "socket2", "nix"] {
            assert!(!below.contains(forbidden), "{leaf} links {forbidden}");
        }
    }
}

#[test]
fn the_root_stays_small_enough_to_read() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let visible = std::fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.') && name != "target")
        .collect::<Vec<_>>();
    assert!(visible.len() <= 18, "{visible:?}");
}
