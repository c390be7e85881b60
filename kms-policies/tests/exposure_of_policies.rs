//! Policies as files (`policies/*.json`), each with what must be found in it (`policies.json`).
//!
//! Of each policy the table names every open path and everyone who could open one, and some weaknesses, as `KIND STATEMENT`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests stop at the first surprise"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use kms_policies::arn::KeyArn;
use kms_policies::exposure::{Assessment, Expectation, Finding, Grant, KeyKind, Registers, assess};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    file: String,
    kind: String,
    #[serde(rename = "note")]
    _note: String,
    open: BTreeSet<String>,
    could_open: BTreeSet<String>,
    weaknesses: BTreeSet<String>,
    #[serde(default)]
    grants: Value,
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests"))
}

fn cases() -> Vec<Case> {
    serde_json::from_str(&fs::read_to_string(folder().join("policies.json")).unwrap()).unwrap()
}

fn expectation(kind: &str) -> Expectation {
    let image = |more: &[(u8, u8)]| -> Registers {
        [(0, 0xaa), (1, 0xa1), (2, 0xa2)].iter().chain(more).map(|(index, byte)| (*index, [*byte; 48])).collect()
    };
    let base = Expectation {
        images: vec![image(&[])],
        enclave_roles: vec!["arn:aws:iam::444455556666:role/Enclave".into()],
        key: Some(
            KeyArn::parse("arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab").unwrap(),
        ),
        ..Expectation::default()
    };
    match kind {
        "model-pack" => Expectation { kind: KeyKind::ModelPack, ..base },
        "customer" => base,
        "customer-of-ward-7" => {
            Expectation { context: BTreeMap::from([("subrosa:tenant".into(), "ward-7".into())]), ..base }
        }
        "customer-pinned" => Expectation { images: vec![image(&[(16, 0x16), (17, 0x17)])], ..base },
        other => panic!("{other}"),
    }
}

fn assessed(case: &Case) -> Assessment {
    let text = fs::read_to_string(folder().join("policies").join(&case.file).with_extension("json")).unwrap();
    let grants = match &case.grants {
        Value::Null => Vec::new(),
        grants => Grant::list(&serde_json::json!({"Grants": grants}).to_string()).unwrap(),
    };
    assess(&text, Some(&grants), &expectation(&case.kind))
}

fn names(findings: &[Finding]) -> BTreeSet<String> {
    findings.iter().map(|finding| format!("{} {}", finding.kind.name(), finding.statement)).collect()
}

#[test]
fn each_policy_has_the_findings_that_the_table_states() {
    let mut wrong = Vec::new();
    for case in cases() {
        let found = assessed(&case);
        let (open, could_open, weaknesses) = (names(&found.open), names(&found.could_open), names(&found.weaknesses));
        if open != case.open || could_open != case.could_open || !case.weaknesses.is_subset(&weaknesses) {
            let stated = format!("{:?}\n    {:?}\n    {:?}", case.open, case.could_open, case.weaknesses);
            wrong.push(format!(
                "{}\n    {open:?}\n    {could_open:?}\n    {weaknesses:?}\n  stated\n    {stated}",
                case.file
            ));
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_file_is_in_the_table_and_there_are_at_least_forty() {
    let files: BTreeSet<String> = fs::read_dir(folder().join("policies"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(files, cases().into_iter().map(|case| case.file).collect());
    assert!(files.len() >= 40);
}

#[test]
fn every_finding_names_its_statement_its_reason_and_a_fix() {
    for case in cases() {
        let found = assessed(&case);
        for finding in found.open.iter().chain(&found.could_open).chain(&found.weaknesses) {
            assert!(
                !finding.statement.is_empty() && !finding.reason.is_empty() && !finding.fix.is_empty(),
                "{finding}"
            );
        }
        assert!(found.open.iter().chain(&found.could_open).all(|f| !f.principals.is_empty()), "{}", case.file);
    }
}
