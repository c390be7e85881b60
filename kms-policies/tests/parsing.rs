//! A policy is read whole or refused; nothing that is not understood is skipped, and no input makes the reader panic.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests stop at the first surprise"
)]

use kms_policies::{MAX_POLICY_BYTES, ParseError, Policy};
use proptest::prelude::*;
use serde_json::{Value, json};

fn statement() -> Value {
    json!({"Sid": "s", "Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::111122223333:role/R"}, "Action": "kms:Decrypt", "Resource": "*"})
}

fn policy_of(statement: Value) -> String {
    json!({"Version": "2012-10-17", "Statement": [statement]}).to_string()
}

/// The plain statement with one member set, or with it removed.
fn with(member: &str, value: Option<Value>) -> String {
    let mut statement = statement();
    match value {
        Some(value) => drop(statement.as_object_mut().unwrap().insert(member.to_owned(), value)),
        None => drop(statement.as_object_mut().unwrap().remove(member)),
    }
    policy_of(statement)
}

fn refusal(text: &str) -> String {
    match Policy::parse(text) {
        Ok(policy) => panic!("taken: {text}: {policy:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_plain_policy_is_taken_as_list_and_as_single_statement() {
    assert_eq!(Policy::parse(&policy_of(statement())).unwrap().statements().len(), 1);
    assert_eq!(
        Policy::parse(&json!({"Version": "2012-10-17", "Id": "i", "Statement": statement()}).to_string()).unwrap().id(),
        Some("i")
    );
}

#[test]
fn what_is_not_understood_is_refused_with_its_place() {
    let condition = |operator: &str, key: &str, value: Value| with("Condition", Some(json!({operator: {key: value}})));
    let tenant = "kms:EncryptionContext:t";
    for (text, part) in [
        (with("NotPrincipal", Some(json!("*"))), "NotPrincipal"),
        (with("Principal", None), "Principal is missing"),
        (with("Principal", Some(json!("arn:aws:iam::111122223333:role/R"))), "expected *"),
        (with("Principal", Some(json!({}))), "empty"),
        (with("Principal", Some(json!({"AWS": []}))), "empty"),
        (with("Principal", Some(json!({"AWS": "arn:aws:iam::111122223333:role/*"}))), "wildcard"),
        (with("Principal", Some(json!({"AWS": "arn:aws:iam::111122223333:group/g"}))), "principal"),
        (with("Principal", Some(json!({"AWS": "AIDACKCEVSQ6C2EXAMPLE"}))), "principal"),
        (with("Principal", Some(json!({"Federated": "x"}))), "Federated"),
        (with("Principal", Some(json!({"CanonicalUser": "x"}))), "CanonicalUser"),
        (with("Principal", Some(json!({"Service": "KMS"}))), "service"),
        (with("Principal", Some(json!({"AWS": 111_122_223_333_u64}))), "a string"),
        (with("Effect", Some(json!("allow"))), "neither Allow nor Deny"),
        (with("Effect", None), "Effect is missing"),
        (with("Action", None), "Action"),
        (with("NotAction", Some(json!("kms:Encrypt"))), "exactly one of"),
        (with("Action", Some(json!("s3:GetObject"))), "s3:GetObject"),
        (with("Action", Some(json!([]))), "empty"),
        (with("Resource", None), "Resource"),
        (with("Resource", Some(json!("key/1"))), "key/1"),
        (with("Resource", Some(json!("arn:aws:kms:us-east-1:${aws:x}:key/a"))), "resource"),
        (with("Comment", Some(json!("x"))), "Comment"),
        (condition("DateLessThan", "aws:CurrentTime", json!("2026-01-01")), "operator"),
        (condition("IpAddress", "aws:SourceIp", json!("10.0.0.0/8")), "operator"),
        (condition("StringEquals", "aws:SourceVpc", json!("x")), "condition key"),
        (condition("StringEquals", "kms:RecipientAttestation", json!("x")), "condition key"),
        (condition("StringEquals", "kms:RecipientAttestation:PCR32", json!("x")), "condition key"),
        (condition("StringEquals", "kms:RecipientAttestation:PCR00", json!("x")), "condition key"),
        (condition("StringEquals", "kms:EncryptionContext:", json!("x")), "condition key"),
        (condition("NullIfExists", tenant, json!("true")), "operator"),
        (condition("ForAllValues:Null", tenant, json!("true")), "operator"),
        (condition("ForSomeValues:StringEquals", tenant, json!("x")), "operator"),
        (condition("stringequals", tenant, json!("x")), "operator"),
        (condition("StringEquals", "kms:EncryptionContextKeys", json!("x")), "ForAllValues"),
        (condition("StringEquals", tenant, json!("${aws:username}")), "variables"),
        (condition("StringEquals", tenant, json!([])), "empty"),
        (condition("StringEquals", tenant, json!({"a": 1})), "a string"),
        (condition("StringEquals", tenant, json!(null)), "a string"),
        (condition("NumericEquals", tenant, json!("ten")), "type"),
        (condition("NumericEquals", tenant, json!("inf")), "type"),
        (condition("Null", tenant, json!("yes")), "type"),
        (condition("ArnLike", "aws:PrincipalArn", json!("*")), "type"),
        (with("Condition", Some(json!({"StringEquals": {}}))), "empty"),
        (with("Condition", Some(json!([]))), "an object"),
        (json!({"Version": "2008-10-17", "Statement": statement()}).to_string(), "2008-10-17"),
        (json!({"Statement": statement()}).to_string(), "Version is missing"),
        (json!({"Version": "2012-10-17"}).to_string(), "Statement is missing"),
        (json!({"Version": "2012-10-17", "Statement": []}).to_string(), "empty"),
        (json!({"Version": "2012-10-17", "Statement": [statement(), statement()]}).to_string(), "twice"),
        (json!({"Version": "2012-10-17", "Statement": statement(), "Extra": 1}).to_string(), "Extra"),
        ("[]".to_owned(), "an object"),
        (String::new(), "JSON"),
        (policy_of(statement()) + "x", "JSON"),
    ] {
        let message = refusal(&text);
        assert!(message.contains(part), "{text}\n  gave {message:?}, without {part:?}");
    }
}

#[test]
fn a_member_that_stands_twice_is_refused_at_every_depth() {
    let plain = policy_of(statement());
    for (from, to) in [
        ("\"Effect\":\"Allow\"", "\"Effect\":\"Deny\",\"Effect\":\"Allow\""),
        ("\"Version\":", "\"Version\":\"2012-10-17\",\"Version\":"),
        ("{\"AWS\":", "{\"AWS\":\"*\",\"AWS\":"),
    ] {
        let doubled = plain.replacen(from, to, 1);
        assert_ne!(doubled, plain);
        assert!(refusal(&doubled).contains("twice"), "{doubled}");
    }
}

#[test]
fn a_policy_longer_than_kms_takes_is_refused_unread() {
    let text = " ".repeat(MAX_POLICY_BYTES + 1);
    assert!(matches!(Policy::parse(&text), Err(ParseError::TooLong(_))));
    let deep = "[".repeat(MAX_POLICY_BYTES);
    assert!(matches!(Policy::parse(&deep), Err(ParseError::Json(_))));
}

#[test]
fn what_is_written_is_read_back_the_same() {
    let rich = json!({"Version": "2012-10-17", "Id": "id", "Statement": [
        {"Effect": "Deny", "Principal": {"AWS": ["*", "111122223333"], "Service": "s3.amazonaws.com"}, "NotAction": ["kms:A", "kms:B*"], "NotResource": "arn:aws:kms:*:*:key/*",
         "Condition": {"ForAnyValue:StringLikeIfExists": {"kms:EncryptionContextKeys": ["a", "b"]}, "Null": {"kms:RecipientAttestation:PCR0": false},
                       "StringNotEqualsIgnoreCase": {"kms:RecipientAttestation:PCR1": "00", "kms:EncryptionContext:K:x": "v"}}},
        {"Sid": "second", "Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"}]});
    let policy = Policy::parse(&rich.to_string()).unwrap();
    assert_eq!(Policy::parse(&policy.to_json()).unwrap(), policy);
    assert_eq!(
        serde_json::from_str::<Value>(&policy.to_json()).unwrap()["Statement"][0]["Condition"]["Null"]["kms:RecipientAttestation:PCR0"],
        json!("false")
    );
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in ".{0,400}") {
        let _ = Policy::parse(&text);
    }

    #[test]
    fn no_damage_to_a_policy_makes_the_reader_panic(at in 0usize..1000, byte in any::<u8>(), cut in 0usize..1000) {
        let mut text = with("Condition", Some(json!({"ForAnyValue:StringLike": {"kms:EncryptionContextKeys": ["a", "b"]}, "Null": {"kms:RecipientAttestation:PCR0": false}}))).into_bytes();
        let at = at % text.len();
        text[at] = byte;
        text.truncate(cut % text.len() + 1);
        let _ = Policy::parse(&String::from_utf8_lossy(&text));
    }

    #[test]
    fn whatever_is_taken_is_written_and_read_back_the_same(json in any_policy()) {
        if let Ok(policy) = Policy::parse(&json.to_string()) {
            prop_assert_eq!(Policy::parse(&policy.to_json()).unwrap(), policy);
        }
    }
}

/// Policies of the right shape with words from a small pool, most of them legal.
fn any_policy() -> impl Strategy<Value = Value> {
    let pick = |words: &'static [&'static str]| proptest::sample::select(words);
    let operator = pick(&[
        "StringEquals",
        "StringNotEquals",
        "Null",
        "ForAllValues:StringLike",
        "ForAnyValue:StringEqualsIfExists",
        "Bool",
        "ArnLike",
        "NumericLessThan",
        "Nonsense",
    ]);
    let key = pick(&[
        "kms:EncryptionContext:a",
        "kms:EncryptionContextKeys",
        "kms:RecipientAttestation:PCR3",
        "aws:PrincipalArn",
        "kms:ViaService",
        "x",
    ]);
    let value = pick(&["true", "12", "arn:aws:iam::111122223333:role/R", "a*", ""]);
    let condition = proptest::collection::vec((operator, key, proptest::collection::vec(value, 1..3)), 0..3);
    let principal =
        pick(&["*", "111122223333", "arn:aws:iam::111122223333:root", "arn:aws:iam::111122223333:role/R", "bad"]);
    let action = pick(&["kms:*", "*", "kms:Decrypt", "kms:ReEncrypt*", "iam:x"]);
    let one = (
        any::<bool>(),
        any::<bool>(),
        proptest::collection::vec(principal, 1..3),
        proptest::collection::vec(action, 1..3),
        condition,
    );
    proptest::collection::vec(one, 1..4).prop_map(|statements| {
        let statements: Vec<Value> = statements.into_iter().map(|(deny, not, principals, actions, conditions)| {
            let mut block = json!({});
            for (operator, key, values) in conditions {
                block[operator][key] = json!(values);
            }
            let member = if not { "NotAction" } else { "Action" };
            json!({"Effect": if deny { "Deny" } else { "Allow" }, "Principal": {"AWS": principals}, member: actions, "Resource": "*", "Condition": block})
        }).collect();
        json!({"Version": "2012-10-17", "Statement": statements})
    })
}
