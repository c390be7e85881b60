//! The evaluator does what the IAM reference says of each operator, principal and action.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests stop at the first surprise"
)]

use std::collections::BTreeMap;

use kms_policies::arn::KeyArn;
use kms_policies::{Caller, Decision, Policy, Recipient, Request, evaluate};
use serde_json::{Value, json};

const KEY: &str = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const ROLE: &str = "arn:aws:iam::111122223333:role/R";

fn request(caller: &str) -> Request {
    Request::new(Caller::parse(caller).unwrap(), "kms:Decrypt", KeyArn::parse(KEY).unwrap())
}

fn with_context(pairs: &[(&str, &str)]) -> Request {
    let mut request = request(ROLE);
    request.encryption_context = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    request
}

fn policy(statements: Value) -> Policy {
    Policy::parse(&json!({"Version": "2012-10-17", "Statement": statements}).to_string()).unwrap()
}

fn allowed(statements: Value, request: &Request) -> bool {
    evaluate(&policy(statements), request).is_allow()
}

/// Whether an otherwise open `Allow` with this condition lets the request through; and, the same question asked the other way round,
/// whether a `Deny` with this condition stops it. The two must agree.
fn holds(condition: Value, request: &Request) -> bool {
    let statement = |effect: &str, sid: &str| json!({"Sid": sid, "Effect": effect, "Principal": "*", "Action": "*", "Resource": "*", "Condition": condition});
    let by_allow = allowed(statement("Allow", "a"), request);
    let open = json!({"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"});
    let by_deny = !allowed(json!([open, statement("Deny", "d")]), request);
    assert_eq!(by_allow, by_deny, "{condition}");
    by_allow
}

#[test]
fn positive_comparisons_need_the_key_and_negated_ones_hold_without_it() {
    let (present, absent) = (with_context(&[("k", "red")]), with_context(&[]));
    let key = "kms:EncryptionContext:k";
    for (operator, value, when_present, when_absent) in [
        ("StringEquals", "red", true, false),
        ("StringEquals", "Red", false, false),
        ("StringEqualsIgnoreCase", "RED", true, false),
        ("StringLike", "r?*", true, false),
        ("StringLike", "r?", false, false),
        ("StringNotEquals", "red", false, true),
        ("StringNotEquals", "Red", true, true),
        ("StringNotEqualsIgnoreCase", "RED", false, true),
        ("StringNotLike", "r*", false, true),
        ("StringNotLike", "b*", true, true),
        ("StringEqualsIfExists", "blue", false, true),
        ("StringEqualsIfExists", "red", true, true),
        ("StringEqualsIgnoreCaseIfExists", "RED", true, true),
        ("StringLikeIfExists", "b*", false, true),
        ("StringNotEqualsIfExists", "red", false, true),
        ("Null", "true", false, true),
        ("Null", "false", true, false),
    ] {
        let condition = json!({operator: {key: value}});
        assert_eq!(holds(condition.clone(), &present), when_present, "{condition}, present");
        assert_eq!(holds(condition.clone(), &absent), when_absent, "{condition}, absent");
    }
}

#[test]
fn values_are_ored_and_negated_values_nored() {
    let red = with_context(&[("k", "red")]);
    assert!(holds(json!({"StringEquals": {"kms:EncryptionContext:k": ["blue", "red"]}}), &red));
    assert!(!holds(json!({"StringNotEquals": {"kms:EncryptionContext:k": ["blue", "red"]}}), &red));
    assert!(holds(json!({"StringNotEquals": {"kms:EncryptionContext:k": ["blue", "green"]}}), &red));
}

#[test]
fn keys_and_operators_are_anded_negated_ones_too() {
    let request = with_context(&[("a", "1"), ("b", "2")]);
    let both = |a: &str, b: &str| json!({"StringEquals": {"kms:EncryptionContext:a": a, "kms:EncryptionContext:b": b}});
    assert!(holds(both("1", "2"), &request));
    assert!(!holds(both("1", "3"), &request));
    // The trap of the issue: one statement with two negated lines denies only what differs in both.
    let negated =
        |a: &str, b: &str| json!({"StringNotEquals": {"kms:EncryptionContext:a": a, "kms:EncryptionContext:b": b}});
    assert!(!holds(negated("1", "3"), &request));
    assert!(holds(negated("3", "3"), &request));
    let mixed =
        json!({"StringEquals": {"kms:EncryptionContext:a": "1"}, "StringNotEquals": {"kms:EncryptionContext:b": "2"}});
    assert!(!holds(mixed, &request));
}

#[test]
fn quantifiers_range_over_the_values_of_the_request() {
    let keys = "kms:EncryptionContextKeys";
    let (none, one, two) = (with_context(&[]), with_context(&[("a", "")]), with_context(&[("a", ""), ("B", "")]));
    for (operator, values, expected) in [
        ("ForAllValues:StringEquals", json!(["a"]), [true, true, false]),
        ("ForAllValues:StringEquals", json!(["a", "B"]), [true, true, true]),
        ("ForAllValues:StringEquals", json!(["a", "b"]), [true, true, false]),
        ("ForAllValues:StringEqualsIgnoreCase", json!(["A", "b"]), [true, true, true]),
        ("ForAnyValue:StringEquals", json!(["B"]), [false, false, true]),
        ("ForAnyValue:StringNotEquals", json!(["a"]), [false, false, true]),
        ("ForAllValues:StringNotEquals", json!(["B"]), [true, true, false]),
        ("ForAnyValue:StringEqualsIfExists", json!(["B"]), [true, false, true]),
        ("Null", json!("true"), [true, false, false]),
    ] {
        for (request, expected) in [&none, &one, &two].into_iter().zip(expected) {
            assert_eq!(holds(json!({operator: {keys: values}}), request), expected, "{operator} {values} {request:?}");
        }
    }
}

#[test]
fn numbers_booleans_and_arns_are_compared_as_such() {
    let request = with_context(&[("n", "10")]);
    let n = "kms:EncryptionContext:n";
    for (operator, value, expected) in [
        ("NumericEquals", json!(10), true),
        ("NumericEquals", json!("10.0"), true),
        ("NumericNotEquals", json!(10), false),
        ("NumericLessThan", json!(9), false),
        ("NumericLessThan", json!(11), true),
        ("NumericLessThanEquals", json!(10), true),
        ("NumericGreaterThan", json!(9), true),
        ("NumericGreaterThanEquals", json!(11), false),
    ] {
        assert_eq!(holds(json!({operator: {n: value}}), &request), expected, "{operator} {value}");
    }
    assert!(!holds(json!({"NumericLessThan": {n: 11}}), &with_context(&[("n", "ten")])));
    let role = "aws:PrincipalArn";
    assert!(holds(json!({"ArnEquals": {role: ROLE}}), &request));
    assert!(holds(json!({"ArnLike": {role: "arn:aws:iam::*:role/?"}}), &request));
    assert!(!holds(json!({"ArnLike": {role: "arn:aws:iam::*:user/*"}}), &request));
    assert!(holds(json!({"ArnNotLike": {role: "arn:aws:iam::*:user/*"}}), &request));
    assert!(!holds(json!({"ArnNotEquals": {role: ROLE}}), &request));
    let mut put = request.clone();
    put.bypass_policy_lockout_safety_check = Some(true);
    assert!(holds(json!({"Bool": {"kms:BypassPolicyLockoutSafetyCheck": true}}), &put));
    assert!(!holds(json!({"Bool": {"kms:BypassPolicyLockoutSafetyCheck": "False"}}), &put));
    assert!(holds(json!({"BoolIfExists": {"kms:BypassPolicyLockoutSafetyCheck": "false"}}), &request));
}

#[test]
fn each_condition_key_reads_its_part_of_the_request() {
    let mut request = request("arn:aws:sts::111122223333:assumed-role/R/session");
    let pcrs = BTreeMap::from([(0, [0xAB; 48]), (16, [1; 48])]);
    request.recipient = Some(Recipient { pcrs, nitro_tpm_pcrs: BTreeMap::from([(7, [2; 48])]) });
    request.via_service = Some("s3.us-east-1.amazonaws.com".into());
    request.grantee_principal = Some(ROLE.into());
    request.grant_operations = vec!["Decrypt".into(), "Encrypt".into()];
    for (key, value) in [
        ("kms:RecipientAttestation:PCR0", "ab".repeat(48)),
        ("kms:RecipientAttestation:ImageSha384", "ab".repeat(48)),
        ("KMS:recipientattestation:pcr16", "01".repeat(48)),
        ("kms:RecipientAttestation:NitroTPMPCR7", "02".repeat(48)),
        ("kms:ViaService", "s3.us-east-1.amazonaws.com".into()),
        ("kms:CallerAccount", "111122223333".into()),
        ("kms:GranteePrincipal", ROLE.into()),
        ("aws:PrincipalArn", ROLE.into()),
        ("aws:PrincipalAccount", "111122223333".into()),
    ] {
        assert!(holds(json!({"StringEquals": {key: value}}), &request), "{key}");
        assert!(!holds(json!({"StringEquals": {key: "other"}}), &request), "{key}");
    }
    assert!(holds(json!({"StringEqualsIgnoreCase": {"kms:RecipientAttestation:PCR0": "AB".repeat(48)}}), &request));
    assert!(holds(json!({"ForAllValues:StringEquals": {"kms:GrantOperations": ["Decrypt", "Encrypt"]}}), &request));
    assert!(!holds(json!({"ForAllValues:StringEquals": {"kms:GrantOperations": "Decrypt"}}), &request));
    assert!(holds(json!({"Null": {"kms:RecipientAttestation:PCR1": true}}), &request));
}

#[test]
fn names_of_condition_keys_ignore_case_and_an_ambiguous_context_fails_closed() {
    assert!(holds(
        json!({"StringEquals": {"KMS:encryptioncontext:Colour": "red"}}),
        &with_context(&[("COLOUR", "red")])
    ));
    let ambiguous = with_context(&[("colour", "red"), ("Colour", "blue")]);
    let statement = |effect: &str, operator: &str| json!({"Effect": effect, "Principal": "*", "Action": "*", "Resource": "*", "Condition": {operator: {"kms:EncryptionContext:colour": "red"}}});
    let open = json!({"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"});
    for operator in ["StringEquals", "StringNotEquals"] {
        assert!(!allowed(statement("Allow", operator), &ambiguous), "{operator}");
        assert!(!allowed(json!([open, statement("Deny", operator)]), &ambiguous), "{operator}");
    }
}

#[test]
fn an_explicit_deny_wins_wherever_it_stands() {
    let allow = json!({"Sid": "yes", "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"});
    let deny = json!({"Sid": "no", "Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*"});
    let request = request(ROLE);
    assert_eq!(evaluate(&policy(json!([allow])), &request), Decision::Allow { sid: Some("yes".into()) });
    for statements in [json!([allow, deny]), json!([deny, allow])] {
        assert_eq!(evaluate(&policy(statements), &request), Decision::ExplicitDeny { sid: Some("no".into()) });
    }
    let elsewhere = json!({"Effect": "Allow", "Principal": "*", "Action": "kms:Encrypt", "Resource": "*"});
    assert_eq!(evaluate(&policy(elsewhere), &request), Decision::ImplicitDeny);
}

#[test]
fn principals_match_sessions_by_role_accounts_by_delegation_and_services_never() {
    let allow =
        |principal: Value| json!({"Effect": "Allow", "Principal": principal, "Action": "kms:*", "Resource": "*"});
    let session = "arn:aws:sts::111122223333:assumed-role/R/s1";
    let plain = request(session);
    assert!(allowed(allow(json!({"AWS": ROLE})), &plain));
    assert!(allowed(allow(json!({"AWS": [session, "arn:aws:iam::111122223333:role/Other"]})), &plain));
    assert!(!allowed(allow(json!({"AWS": "arn:aws:sts::111122223333:assumed-role/R/s2"})), &plain));
    assert!(!allowed(allow(json!({"AWS": "arn:aws:iam::111122223333:role/Other"})), &plain));
    assert!(!allowed(allow(json!({"Service": "kms.amazonaws.com"})), &plain));
    assert!(allowed(allow(json!("*")), &plain) && allowed(allow(json!({"AWS": "*"})), &plain));
    let mut with_iam = plain.clone();
    with_iam.iam_allows = true;
    for root in ["arn:aws:iam::111122223333:root", "111122223333"] {
        assert!(!allowed(allow(json!({"AWS": root})), &plain), "the account delegates to IAM, and IAM says no");
        assert!(allowed(allow(json!({"AWS": root})), &with_iam));
        assert!(
            allowed(allow(json!({"AWS": root})), &request("arn:aws:iam::111122223333:root")),
            "the root user is the account itself"
        );
    }
    let other_account = "arn:aws:iam::444455556666:root";
    assert!(!allowed(allow(json!({"AWS": other_account})), &with_iam));
    let deny = json!([allow(json!("*")), {"Effect": "Deny", "Principal": {"AWS": "111122223333"}, "Action": "*", "Resource": "*"}]);
    assert!(!allowed(deny, &plain), "a denied account denies everyone in it, whatever IAM says");
}

#[test]
fn a_caller_from_another_account_needs_the_key_policy_and_iam() {
    let foreign = "arn:aws:iam::444455556666:role/R";
    let statement = json!({"Effect": "Allow", "Principal": {"AWS": foreign}, "Action": "kms:*", "Resource": "*"});
    let mut request = request(foreign);
    assert!(!allowed(statement.clone(), &request));
    request.iam_allows = true;
    assert!(allowed(statement, &request));
}

#[test]
fn actions_and_resources_and_their_negations_select_what_they_say() {
    let statement = |member: &str, value: Value| {
        let mut statement = json!({"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"});
        let object = statement.as_object_mut().unwrap();
        object.remove(member.trim_start_matches("Not"));
        object.insert(member.to_owned(), value);
        statement
    };
    for (member, value, expected) in [
        ("Action", json!("kms:*"), true),
        ("Action", json!(["kms:Encrypt", "kms:decrypt"]), true),
        ("Action", json!("kms:De*"), true),
        ("Action", json!("kms:ReEncrypt*"), false),
        ("NotAction", json!("kms:ReEncrypt*"), true),
        ("NotAction", json!(["kms:ReEncrypt*", "kms:D?crypt"]), false),
        ("Resource", json!(KEY), true),
        ("Resource", json!("arn:aws:kms:*:111122223333:key/*"), true),
        ("Resource", json!("arn:aws:kms:us-west-2:111122223333:key/*"), false),
        ("NotResource", json!(KEY), false),
        ("NotResource", json!("arn:aws:kms:us-west-2:111122223333:key/*"), true),
    ] {
        assert_eq!(allowed(statement(member, value.clone()), &request(ROLE)), expected, "{member} {value}");
    }
}
