//! Where `exposure` finds nothing open, the evaluator lets nothing through; and what it finds, the evaluator does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "tests stop at the first surprise"
)]

use std::collections::BTreeMap;

use kms_policies::arn::KeyArn;
use kms_policies::exposure::{Expectation, KeyKind, Kind, assess};
use kms_policies::{Caller, Policy, Recipient, Request, evaluate};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use serde_json::{Value, json};

const KEY: &str = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const ENCLAVE: &str = "arn:aws:iam::444455556666:role/Enclave";
const READER: &str = "arn:aws:iam::111122223333:role/Reader";

const CALLERS: [&str; 10] = [
    "arn:aws:sts::444455556666:assumed-role/Enclave/i-1",
    READER,
    "arn:aws:sts::111122223333:assumed-role/Reader/s",
    "arn:aws:iam::111122223333:root",
    "arn:aws:iam::111122223333:role/Stranger",
    "arn:aws:iam::111122223333:user/Stranger",
    "arn:aws:iam::444455556666:role/Other",
    "arn:aws:iam::777788889999:role/Outside",
    "arn:aws:iam::777788889999:root",
    "arn:aws:sts::111122223333:federated-user/Someone",
];

const CONTEXTS: [&[(&str, &str)]; 10] = [
    &[],
    &[("subrosa:purpose", "inference"), ("subrosa:tenant", "ward-7")],
    &[("subrosa:purpose", "answer"), ("subrosa:tenant", "ward-7")],
    &[("subrosa:purpose", "answer"), ("subrosa:tenant", "ward-8")],
    &[("Subrosa:Purpose", "inference")],
    &[("subrosa:purpose", "Inference")],
    &[("subrosa:purpose", "ANSWER")],
    &[("subrosa:purpose", "inference"), ("extra", "x")],
    &[("subrosa:tenant", "ward-7")],
    &[("other", "y")],
];

fn recipients() -> Vec<Option<Recipient>> {
    let enclave = |values: [u8; 4]| {
        let mut pcrs: BTreeMap<u8, [u8; 48]> = (0..16).map(|index| (index, [0; 48])).collect();
        pcrs.extend([0, 1, 2, 8].into_iter().zip(values.map(|value| [value; 48])));
        Some(Recipient { pcrs, nitro_tpm_pcrs: BTreeMap::new() })
    };
    let tpm = (0..24).map(|index| (index, [0xaa; 48])).collect();
    vec![
        None,
        enclave([0, 0, 0, 0]),
        enclave([0xbb, 0xaa, 0xaa, 0]),
        enclave([0xbb, 0xbb, 0xbb, 8]),
        enclave([0xcc, 0xcc, 0xcc, 0]),
        enclave([0xab, 0xcd, 0x12, 8]),
        Some(Recipient { pcrs: BTreeMap::new(), nitro_tpm_pcrs: tpm }),
    ]
}

fn expectation() -> Expectation {
    Expectation {
        kind: KeyKind::ModelPack,
        images: vec![[0, 1, 2].map(|index| (index, [0xaa; 48])).into()],
        enclave_roles: vec![ENCLAVE.to_owned()],
        key: Some(KeyArn::parse(KEY).unwrap()),
        ..Expectation::default()
    }
}

/// A call without the accepted image that the evaluator lets through.
fn leak(policy: &Policy, action: &str) -> Option<Request> {
    leaks(policy, action).into_iter().next()
}

/// All calls of the table, without the accepted image, that the evaluator lets through.
fn leaks(policy: &Policy, action: &str) -> Vec<Request> {
    let mut found = Vec::new();
    let mut request = Request::new(Caller::parse(CALLERS[0]).unwrap(), action, KeyArn::parse(KEY).unwrap());
    request.iam_allows = true;
    for caller in CALLERS {
        request.caller = Caller::parse(caller).unwrap();
        for context in CONTEXTS {
            request.encryption_context = context.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            for recipient in recipients() {
                for via in [None, Some("s3.us-east-1.amazonaws.com"), Some("rds.us-east-1.amazonaws.com")] {
                    request.recipient.clone_from(&recipient);
                    request.via_service = via.map(str::to_owned);
                    if evaluate(policy, &request).is_allow() {
                        found.push(request.clone());
                    }
                }
            }
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_evaluator_lets_through_without_the_image_is_an_open_path(text in any_policy()) {
        let Ok(policy) = Policy::parse(&text) else { return Ok(()) };
        let found = assess(&text, None, &expectation());
        // Nor does the evaluator disagree with a path that was found: that, too, would be `TooComplex`.
        prop_assert!(found.open.iter().all(|finding| finding.kind != Kind::TooComplex), "{text}");
        if let Some(request) = leak(&policy, "kms:Decrypt") {
            prop_assert!(!found.is_closed(), "{text}\n{request:?}");
        }
        let mut unattested = leak(&policy, "kms:ReEncryptFrom");
        if let Some(request) = &mut unattested {
            request.recipient = None;
            if evaluate(&policy, request).is_allow() {
                prop_assert!(!found.is_closed(), "{text}\n{request:?}");
            }
        }
    }

    #[test]
    fn of_a_customers_key_only_answers_leave_without_the_image_and_only_to_those_who_are_named(text in any_policy()) {
        let Ok(policy) = Policy::parse(&text) else { return Ok(()) };
        let expectation = Expectation { kind: KeyKind::Customer, ..expectation() };
        let found = assess(&text, None, &expectation);
        prop_assert!(found.open.iter().all(|finding| finding.kind != Kind::TooComplex), "{text}");
        let is_by_purpose = |request: &Request| {
            let mut purpose = request.encryption_context.iter().filter(|(key, _)| key.eq_ignore_ascii_case("subrosa:purpose"));
            let is_answer = purpose.next().is_some_and(|(_, purpose)| purpose == "answer");
            is_answer && found.by_purpose.iter().any(|holder| holder.may == "read answers" && holder.principal == request.caller.principal_arn())
        };
        for request in leaks(&policy, "kms:Decrypt").iter().filter(|request| !is_by_purpose(request)) {
            prop_assert!(!found.is_closed(), "{text}\n{request:?}");
        }
    }

    #[test]
    fn no_text_makes_it_panic_and_no_broken_policy_is_closed(text in ".{0,200}") {
        prop_assert!(!assess(&text, None, &expectation()).is_closed());
    }

    #[test]
    fn a_policy_that_is_not_understood_is_never_better_than_the_same_that_is(text in any_policy(), at in 0_usize..6) {
        // An unknown condition on a statement: an Allow opens no less than if it held, a Deny closes no more than if it did not.
        let Ok(_) = Policy::parse(&text) else { return Ok(()) };
        let value: Value = serde_json::from_str(&text).unwrap();
        let count = value["Statement"].as_array().unwrap().len();
        let at = at % count;
        let mut unknown = value.clone();
        unknown["Statement"][at]["Condition"]["IpAddress"] = json!({"aws:SourceIp": "192.0.2.0/24"});
        let mut worst = value.clone();
        if worst["Statement"][at]["Effect"] == "Deny" {
            worst["Statement"].as_array_mut().unwrap().remove(at);
        }
        let is_closed = |value: &Value| assess(&value.to_string(), None, &expectation()).is_closed();
        if count > 1 || value["Statement"][at]["Effect"] == "Allow" {
            prop_assert_eq!(is_closed(&unknown), is_closed(&worst));
        }
    }
}

/// Policies of a grammar that is rich in what opens and closes.
fn any_policy() -> impl Strategy<Value = String> {
    let pick = |words: &'static [&'static str]| proptest::sample::select(words);
    let (aa, bb, zero): (String, String, String) = ("aa".repeat(48), "BB".repeat(48), "00".repeat(48));
    let register = proptest::sample::select(vec![aa, bb, zero, "a*".to_owned(), "*".to_owned(), "??b*".to_owned()]);
    let strings = pick(&[
        "StringEquals",
        "StringNotEquals",
        "StringEqualsIgnoreCase",
        "StringNotEqualsIgnoreCase",
        "StringLike",
        "StringNotLike",
        "StringEqualsIfExists",
        "StringNotLikeIfExists",
        "ForAllValues:StringEquals",
        "ForAnyValue:StringNotEqualsIgnoreCase",
    ]);
    let attested = (
        strings.clone(),
        pick(&[
            "kms:RecipientAttestation:PCR0",
            "kms:RecipientAttestation:ImageSha384",
            "kms:RecipientAttestation:PCR1",
            "kms:RecipientAttestation:PCR8",
            "kms:RecipientAttestation:NitroTPMPCR4",
        ]),
        proptest::collection::vec(register, 1..3),
    );
    let context = (
        strings,
        pick(&["kms:EncryptionContext:subrosa:purpose", "kms:EncryptionContext:subrosa:tenant", "kms:ViaService"]),
        proptest::collection::vec(
            pick(&["inference", "answer", "Answer", "ward-?", "*", "", "s3.*", "in*ce"]).prop_map(str::to_owned),
            1..3,
        ),
    );
    let keys = (
        pick(&[
            "ForAllValues:StringEquals",
            "ForAnyValue:StringLike",
            "ForAllValues:StringNotLike",
            "ForAnyValue:StringEqualsIfExists",
        ]),
        Just("kms:EncryptionContextKeys"),
        proptest::collection::vec(
            pick(&["subrosa:purpose", "subrosa:tenant", "Subrosa:*", "*", "extra"]).prop_map(str::to_owned),
            1..3,
        ),
    );
    let null = (
        Just("Null"),
        pick(&["kms:RecipientAttestation:PCR0", "kms:EncryptionContextKeys", "kms:EncryptionContext:subrosa:purpose"]),
        proptest::collection::vec(pick(&["true", "false"]).prop_map(str::to_owned), 1..2),
    );
    let caller = (
        pick(&["ArnLike", "ArnNotLike", "StringLike", "ArnNotEquals", "ArnLikeIfExists"]),
        Just("aws:PrincipalArn"),
        proptest::collection::vec(
            pick(&[
                "arn:aws:iam::*:role/*er",
                "arn:aws:iam::111122223333:*",
                READER,
                "arn:aws:iam::*:user/*",
                "arn:aws:iam::*:*",
                "arn:aws:iam::7777888899??:*",
                "arn:aws:sts::111122223333:federated-user/*",
            ])
            .prop_map(str::to_owned),
            1..3,
        ),
    );
    let account = (
        pick(&["StringEquals", "StringNotEquals", "StringLike", "StringNotLike"]),
        pick(&["kms:CallerAccount", "aws:PrincipalAccount"]),
        proptest::collection::vec(pick(&["111122223333", "444455556666", "1*", "7*9"]).prop_map(str::to_owned), 1..3),
    );
    let condition = proptest::collection::vec(
        prop_oneof![4 => attested, 3 => context, 1 => keys, 1 => null, 4 => caller, 1 => account],
        0..4,
    );
    let principal = pick(&[
        "*",
        "*",
        "111122223333",
        "arn:aws:iam::444455556666:root",
        READER,
        ENCLAVE,
        "arn:aws:sts::111122223333:assumed-role/Reader/s",
        "arn:aws:sts::111122223333:assumed-role/Reader/subrosa-anyone",
        "arn:aws:sts::444455556666:assumed-role/Enclave/Subrosa-Anyone",
        "arn:aws:iam::111122223333:role/subrosa-anyone",
    ]);
    let action = pick(&["kms:*", "kms:Decrypt", "kms:Decrypt", "kms:De*", "kms:ReEncrypt*", "kms:PutKeyPolicy"]);
    let one = (
        prop::bool::weighted(0.55),
        prop::bool::weighted(0.1),
        proptest::collection::vec(principal, 1..3),
        proptest::collection::vec(action, 1..3),
        condition,
    );
    proptest::collection::vec(one, 1..6).prop_map(|statements| {
        let statements: Vec<Value> = statements
            .into_iter()
            .map(|(deny, not, principals, actions, conditions)| {
                let mut block = json!({});
                for (operator, key, values) in conditions {
                    block[operator][key] = json!(values);
                }
                let member = if not { "NotAction" } else { "Action" };
                let effect = if deny { "Deny" } else { "Allow" };
                json!({"Effect": effect, "Principal": {"AWS": principals}, member: actions, "Resource": "*", "Condition": block})
            })
            .collect();
        json!({"Version": "2012-10-17", "Statement": statements}).to_string()
    })
}

#[test]
fn the_grammar_makes_both_open_and_closed_policies() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut open, mut closed, mut leaks, mut unexplained) = (0, 0, 0, 0);
    for _ in 0..1_000 {
        let text = any_policy().new_tree(&mut runner).unwrap().current();
        let Ok(policy) = Policy::parse(&text) else { continue };
        let found = assess(&text, None, &expectation());
        assert!(found.open.iter().all(|finding| finding.kind != Kind::TooComplex), "{text}");
        if found.is_closed() {
            closed += 1
        } else {
            open += 1
        }
        let leaked = leak(&policy, "kms:Decrypt").is_some();
        leaks += i32::from(leaked);
        unexplained += i32::from(
            !leaked
                && found.open.iter().any(|finding| finding.path == "kms:Decrypt" && finding.kind == Kind::Unattested),
        );
    }
    println!("open {open}, closed {closed}, leaks {leaks}, found but not in the table of calls {unexplained}");
    assert!(open > 150 && closed > 150 && leaks > 100, "{open} {closed} {leaks}");
}

fn statement(effect: &str, principal: &str, condition: Value) -> Value {
    json!({"Effect": effect, "Principal": {"AWS": principal}, "Action": "kms:Decrypt", "Resource": "*", "Condition": condition})
}

fn is_closed(statements: &[Value]) -> bool {
    assess(&json!({"Version": "2012-10-17", "Statement": statements}).to_string(), None, &expectation()).is_closed()
}

#[test]
fn a_deny_of_the_name_that_stands_for_everyone_else_closes_nothing() {
    let session = |n: &str| format!("arn:aws:sts::111122223333:assumed-role/Reader/subrosa-anyone{n}");
    let role = |n: &str| format!("arn:aws:iam::111122223333:role/subrosa-anyone{n}");
    let allows = [READER, "arn:aws:iam::111122223333:root"];
    for allow in allows {
        let mut statements = vec![statement("Allow", allow, json!({}))];
        for n in ["", "-1", "-2", "-3"] {
            statements.push(statement("Deny", &session(n), json!({})));
            statements.push(statement("Deny", &role(n), json!({})));
            statements.push(statement("Deny", "*", json!({"ArnEquals": {"aws:PrincipalArn": role(n)}})));
            assert!(!is_closed(&statements), "{allow} {n}");
        }
    }
}

#[test]
fn a_pattern_of_callers_that_are_not_probed_is_taken_to_hold_and_denies_nobody() {
    let condition = |operator: &str, values: &[&str]| json!({operator: {"aws:PrincipalArn": values}});
    for (operator, values) in [
        ("StringLike", &["arn:aws:iam::12345678901?:role/x"][..]),
        ("ArnLike", &["arn:aws:iam::1234*:role/x"]),
        ("ArnNotLike", &["arn:aws:iam::9*:*", "arn:aws:iam::111122223333:*", "arn:aws:iam::444455556666:*"]),
        ("StringLike", &["arn:aws-cn:iam::*:role/x"]),
        ("StringLike", &["arn:aws-iso:iam::123456789012:role/x"]),
        ("StringLike", &["arn:aws*:iam::123456789012:role/x"]),
        ("StringEqualsIgnoreCase", &["ARN:AWS:IAM::123456789012:ROLE/X"]),
        ("StringLike", &["arn:aws:sts::123456789012:federated-user/x"]),
        ("ArnNotLike", &["arn:aws:iam::*:*"]),
        ("StringLike", &["*:role/x"]),
    ] {
        assert!(!is_closed(&[statement("Allow", "*", condition(operator, values))]), "{operator} {values:?}");
    }
    let all = statement("Allow", "*", json!({}));
    for (operator, values) in [
        ("ArnLike", &["arn:aws:iam::*:*"][..]),
        ("StringLike", &["arn:aws:iam::1???????????:*", "arn:aws:iam::4*", "arn:aws:iam::9*", "arn:aws:sts::*"]),
        ("ArnNotLike", &["arn:aws:iam::12345678901?:role/x"]),
        ("StringNotLike", &["arn:aws:sts::123456789012:federated-user/x"]),
    ] {
        assert!(
            !is_closed(&[all.clone(), statement("Deny", "*", condition(operator, values))]),
            "{operator} {values:?}"
        );
    }
    // What is understood still counts.
    let reader = statement("Allow", READER, json!({}));
    assert!(is_closed(&[reader, statement("Deny", "*", condition("ArnLike", &["arn:aws:iam::*:role/Rea*"]))]));
}

#[test]
fn a_deny_of_one_example_leaves_the_others_of_its_pattern() {
    for condition in [
        json!({"ArnLike": {"aws:PrincipalArn": "arn:aws:iam::123456789012:role/a*"}}),
        json!({"StringLike": {"kms:CallerAccount": "12345*"}}),
    ] {
        let mut statements = vec![statement("Allow", "*", condition)];
        for _ in 0..3 {
            let text = json!({"Version": "2012-10-17", "Statement": statements}).to_string();
            let found = assess(&text, None, &expectation());
            assert!(!found.is_closed(), "{text}");
            let shown = found.open[0].principals.iter().next().unwrap();
            let named = shown.rsplit(' ').next().unwrap();
            statements.push(statement("Deny", named, json!({})));
        }
    }
}

#[test]
fn whoever_seals_a_key_of_his_choice_as_an_answers_forges_answers() {
    let of = |purpose: &str| json!({"StringEquals": {"kms:EncryptionContext:subrosa:purpose": purpose}});
    let customer = Expectation { kind: KeyKind::Customer, ..expectation() };
    let kinds = |action: &str, condition: Value, expectation: &Expectation| -> (Vec<Kind>, Vec<Kind>) {
        let mut allow = statement("Allow", READER, condition);
        allow["Action"] = json!(action);
        let text = json!({"Version": "2012-10-17", "Statement": [allow]}).to_string();
        let found = assess(&text, None, expectation);
        let kinds =
            |findings: &[kms_policies::exposure::Finding]| findings.iter().map(|finding| finding.kind).collect();
        (kinds(&found.open), kinds(&found.could_open))
    };
    for action in ["kms:Encrypt", "kms:ReEncryptTo"] {
        assert_eq!(kinds(action, json!({}), &customer), (vec![Kind::AnswerKeys], vec![]), "{action}");
        assert_eq!(kinds(action, of("answer"), &customer), (vec![Kind::AnswerKeys], vec![]), "{action}");
        assert_eq!(kinds(action, of("inference"), &customer), (vec![], vec![]), "{action}");
        assert_eq!(kinds(action, json!({}), &expectation()), (vec![], vec![]), "{action}");
    }
    for operation in ["Encrypt", "ReEncryptTo"] {
        let only = json!({"ForAllValues:StringEquals": {"kms:GrantOperations": [operation]}});
        assert_eq!(kinds("kms:CreateGrant", only.clone(), &customer), (vec![], vec![Kind::CreateGrant]));
        assert_eq!(kinds("kms:CreateGrant", only, &expectation()), (vec![], vec![]));
    }
}

#[test]
fn what_the_enclaves_own_account_may_change_is_open_now() {
    for (account, is_open) in [("444455556666", true), ("111122223333", false)] {
        let account = format!("arn:aws:iam::{account}:root");
        let is_root = json!({"ArnLike": {"aws:PrincipalArn": account}});
        for (action, condition, kind) in [
            ("kms:PutKeyPolicy", json!({}), Kind::PutKeyPolicy),
            ("kms:PutKeyPolicy", is_root, Kind::PutKeyPolicy),
            ("kms:CreateGrant", json!({}), Kind::CreateGrant),
            ("kms:ImportKeyMaterial", json!({}), Kind::ImportKeyMaterial),
        ] {
            let mut allow = statement("Allow", &account, condition);
            allow["Action"] = json!(action);
            let text = json!({"Version": "2012-10-17", "Statement": [allow]}).to_string();
            let found = assess(&text, None, &expectation());
            let (with, without) = if is_open { (found.open, found.could_open) } else { (found.could_open, found.open) };
            assert_eq!(with.iter().map(|finding| finding.kind).collect::<Vec<_>>(), [kind], "{text}");
            assert!(without.is_empty(), "{text}");
        }
    }
}
