//! What the enclave itself sees of the policies of its keys (docs/PROTOCOL.md, section 7).

use std::time::Duration;

use serde_json::{Value, json};
use subrosa_client::completion::CompletionError;
use subrosa_client::key_policy::KeyPolicyVerdict;
use subrosa_client::{AnswerError, AskError};
use tests::stack::{ADMINISTRATOR, APPLICATION, Options, Stack};

use crate::{question, stack};

/// The verdict that an answer carries.
async fn verdict(stack: &Stack) -> Result<KeyPolicyVerdict, AskError> {
    let answer = stack.client().build().unwrap().ask(question()).await?;
    let complete = answer.finish().await?;
    Ok(complete.key_policy().expect("every answer carries one").clone())
}

/// Changes a key's policy as its administrator.
async fn change(stack: &Stack, key: &str, change: impl FnOnce(&mut Vec<Value>)) {
    let kms = stack.kms_as(&ADMINISTRATOR);
    let policy = kms.get_key_policy().key_id(key).send().await.unwrap().policy.unwrap();
    let mut policy: Value = serde_json::from_str(&policy).unwrap();
    change(policy["Statement"].as_array_mut().unwrap());
    kms.put_key_policy().key_id(key).policy(policy.to_string()).send().await.unwrap();
}

fn without_denies_and_with_one_decrypt_more(statements: &mut Vec<Value>) {
    statements.retain(|statement| statement["Effect"] == "Allow");
    statements.push(json!({
        "Sid": "Support", "Effect": "Allow", "Principal": {"AWS": APPLICATION.arn()}, "Action": "kms:Decrypt", "Resource": "*",
    }));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_enclave_says_what_the_policies_of_its_keys_leave_open() {
    let mut stack = stack().await;
    let good = verdict(&stack).await.unwrap();
    assert_eq!(good.open(), Some(0), "{:?}", good);
    let could = good.to_json()["could_open"].to_string();
    assert!(could.contains(&ADMINISTRATOR.arn()), "the administrators may change the policy: {could}");
    assert_eq!(model_key_verdict(&stack).await.open(), Some(0));

    let (customer_key, model_key) = (stack.customer_key.clone(), stack.model_key.clone());
    change(&stack, &customer_key, without_denies_and_with_one_decrypt_more).await;
    change(&stack, &model_key, without_denies_and_with_one_decrypt_more).await;
    // A verdict is five minutes old at most; a new enclave has none yet.
    stack.kill_enclave().await.unwrap();
    let program = tests::programs::path("simulated-enclave").unwrap();
    stack.start_enclave(&program, false).unwrap();
    stack.serves_within(Duration::from_secs(60)).await.unwrap();

    let open = verdict(&stack).await.unwrap();
    assert!(open.open() > Some(0), "{:?}", open);
    let ways = open.to_json()["open"].to_string();
    assert!(ways.contains("Support") && ways.contains(&APPLICATION.arn()), "{ways}");
    assert!(model_key_verdict(&stack).await.open() > Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_key_policy_is_refused_where_the_configuration_says_so() {
    let options = Options { key_policies: Some("refuse"), ..Options::new().unwrap() };
    let mut stack = Stack::start(options).await.unwrap();
    let customer_key = stack.customer_key.clone();
    change(&stack, &customer_key, without_denies_and_with_one_decrypt_more).await;
    let error = verdict(&stack).await.expect_err("somebody else could read the question");
    let AskError::Answer(AnswerError::Completion(CompletionError::Refused(refusal))) = &error else {
        panic!("{error}")
    };
    assert_eq!(refusal.code, "key-policy-open");
    assert!(refusal.message.contains("by Support"), "{}", refusal.message);

    let model_key = stack.model_key.clone();
    change(&stack, &model_key, without_denies_and_with_one_decrypt_more).await;
    stack.kill_enclave().await.unwrap();
    let program = tests::programs::path("simulated-enclave").unwrap();
    stack.start_enclave(&program, false).unwrap();
    let ended = stack.hypervisor.ended(Duration::from_secs(60)).await.unwrap();
    assert!(!ended.success());
    assert!(stack.console().contains(r#"{"event":"ended","reason":"key-policy-open"}"#), "{}", stack.console());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_the_enclave_may_not_read_is_not_called_closed() {
    let stack = stack().await;
    let customer_key = stack.customer_key.clone();
    change(&stack, &customer_key, |statements| statements.retain(|one| one["Sid"] != "EnclaveReadsPolicy")).await;
    let verdict = verdict(&stack).await.unwrap();
    assert_eq!(verdict.open(), None);
    assert_eq!(verdict.to_json()["status"], "not-visible");
}

/// The tunnel and the credentials are the parent's: it can keep the enclave from reading a policy, or the grants beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_that_the_parent_withholds_is_told_as_such_and_refused_where_it_is_required() {
    let stack = stack().await;
    for (operation, status) in [("GetKeyPolicy", "unavailable"), ("ListGrants", "checked")] {
        let fault = format!(r#"{{"kind":"drop","times":100,"operation":"{operation}"}}"#);
        stack.kms.faults().push(serde_json::from_str(&fault).unwrap());
        let withheld = verdict(&stack).await.unwrap();
        stack.kms.faults().clear();
        assert_eq!(withheld.to_json()["status"], status);
        if status == "checked" {
            assert_eq!(withheld.to_json()["grants_seen"], false);
            assert!(withheld.to_line().contains("NOT seen"), "{}", withheld.to_line());
        }
    }

    let options = Options { key_policies: Some("require"), ..Options::new().unwrap() };
    let stack = Stack::start(options).await.unwrap();
    stack.kms.faults().push(serde_json::from_str(r#"{"kind":"drop","times":100,"operation":"GetKeyPolicy"}"#).unwrap());
    let error = verdict(&stack).await.expect_err("what was not read may be open");
    let AskError::Answer(AnswerError::Completion(CompletionError::Refused(refusal))) = &error else {
        panic!("{error}")
    };
    assert_eq!(refusal.code, "key-policy-open");
    assert!(refusal.message.contains("not judged by the enclave (unavailable)"), "{}", refusal.message);
    stack.kms.faults().clear();
    assert_eq!(verdict(&stack).await.unwrap().open(), Some(0), "asked again, and read");
}

/// From the keyset that the enclave's document binds.
async fn model_key_verdict(stack: &Stack) -> KeyPolicyVerdict {
    let output = tokio::process::Command::new(tests::programs::path("subrosa").unwrap())
        .args(["verify", "--json", "--url", &stack.direct_url(), "--danger-root"])
        .arg(stack.attestation_root())
        .args(["--pcr", &format!("0={}", hex::encode(stack.measured.pcrs[&0]))])
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let verdicts = &report["keyset"]["model_key_policy"];
    assert_eq!(verdicts.as_array().map(Vec::len), Some(1), "{report}");
    assert_eq!(verdicts[0]["key"], Value::from(stack.model_key.as_str()));
    KeyPolicyVerdict::read(&verdicts[0].to_string())
}
