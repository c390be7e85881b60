//! Whatever the policy, the judgement comes within bounds of time; and a policy of an ordinary kind is decided.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "tests stop at the first surprise"
)]

use std::time::{Duration, Instant};

use kms_policies::MAX_POLICY_BYTES;
use kms_policies::exposure::{Expectation, Grant, Kind, assess};
use serde_json::{Value, json};

fn expectation() -> Expectation {
    Expectation {
        images: vec![[0, 1, 2].map(|index| (index, [0xaa; 48])).into()],
        enclave_roles: vec!["arn:aws:iam::444455556666:role/Enclave".into()],
        ..Expectation::default()
    }
}

/// Judges it, and says whether it was decided.
fn judged(name: &str, statements: Vec<Value>, grants: &[Grant]) -> bool {
    let text = json!({"Version": "2012-10-17", "Statement": statements}).to_string();
    assert!(text.len() <= MAX_POLICY_BYTES, "{name}: {}", text.len());
    let begin = Instant::now();
    let found = assess(&text, Some(grants), &expectation());
    let took = begin.elapsed();
    println!("{name}: {} statements, {took:?}", statements.len());
    // Alone on a core it is well under a second; tests share one.
    assert!(took < Duration::from_secs(20), "{name}: {took:?}");
    found.open.iter().all(|finding| finding.kind != Kind::TooComplex)
}

fn statement(effect: &str, principal: Value, condition: Value) -> Value {
    json!({"Effect": effect, "Principal": principal, "Action": "kms:Decrypt", "Resource": "*", "Condition": condition})
}

#[test]
fn hostile_policies_are_judged_in_bounded_time() {
    let wild = |n: usize| format!("*{}*{}*{}*", n % 7, n % 11, n % 13);
    let context = |n: usize| json!({"StringLike": {"kms:EncryptionContext:a": wild(n)}});
    judged("wildcards", (0..150).map(|n| statement("Allow", json!("*"), context(n))).collect(), &[]);
    judged(
        "denies over many keys",
        (0..120)
            .map(|n| {
                let key = |m: usize| format!("kms:EncryptionContext:k{}", (n * m) % 17);
                statement(
                    if n == 0 { "Allow" } else { "Deny" },
                    json!("*"),
                    json!({"StringNotEquals": {key(3): "a", key(5): "b", key(7): "c"}}),
                )
            })
            .collect(),
        &[],
    );
    judged(
        "principals",
        (0..250).map(|n| statement("Allow", json!({"AWS": format!("{n:012}")}), json!({}))).collect(),
        &[],
    );
    judged("everyone, many times", (0..220).map(|_| statement("Allow", json!("*"), json!({}))).collect(), &[]);
    let arn = |n: usize| json!({"ArnLike": {"aws:PrincipalArn": format!("arn:aws:iam::*:role/*{n}*{}*", n % 5)}});
    judged("patterns of principals", (0..150).map(|n| statement("Deny", json!("*"), arn(n))).collect(), &[]);
    let grants: Vec<Grant> = (0..5_000).map(|n| Grant { grant_id: n.to_string(), ..Grant::default() }).collect();
    assert!(
        !judged("grants", vec![statement("Allow", json!("*"), json!({}))], &grants),
        "too many are not judged in part"
    );
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(10_000));
    assert!(!assess(&deep, None, &expectation()).is_closed());
    assert!(!assess(&" ".repeat(MAX_POLICY_BYTES + 1), None, &expectation()).is_closed());
}

#[test]
fn large_policies_of_an_ordinary_kind_are_decided() {
    let roles: Vec<String> = (0..60).map(|n| format!("arn:aws:iam::111122223333:role/service-{n}")).collect();
    let tenants: Vec<String> = (0..80).map(|n| format!("tenant-{n}")).collect();
    let images: Vec<String> = (0..10).map(|n| format!("{n:096x}")).collect();
    let patterns: Vec<String> = (0..8).map(|n| format!("arn:aws:iam::11112222333{n}:role/team-{n}/*")).collect();
    let decided = judged(
        "ordinary",
        vec![
            statement(
                "Allow",
                json!({"AWS": roles}),
                json!({"StringEquals": {"kms:EncryptionContext:subrosa:tenant": tenants}}),
            ),
            statement(
                "Deny",
                json!("*"),
                json!({"StringNotEqualsIgnoreCase": {"kms:RecipientAttestation:PCR0": images}}),
            ),
            statement("Deny", json!("*"), json!({"ArnNotLike": {"aws:PrincipalArn": patterns}})),
            statement(
                "Deny",
                json!("*"),
                json!({"StringNotLike": {"kms:ViaService": ["s3.*.amazonaws.com", "rds.*"]}}),
            ),
        ],
        &[],
    );
    assert!(decided);
}
