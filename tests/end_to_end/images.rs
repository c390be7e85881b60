use std::time::Duration;

use aws_sdk_kms::error::ProvideErrorMetadata;
use aws_sdk_kms::primitives::Blob;
use tests::by_hand::ByHand;
use tests::programs;
use tests::stack::{ENCLAVE, Options, Stack, TENANT};

use crate::{NOTE, stack};

/// A stack whose keys are for the true program, started with another program or in debug mode.
async fn refused(change: impl FnOnce(&mut Options)) -> Stack {
    let mut options = Options::new().unwrap();
    options.ready_within = None;
    change(&mut options);
    Stack::start(options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_image_gets_no_key() {
    let folder = tempfile::tempdir().unwrap();
    let changed = folder.path().join("changed");
    let mut bytes = std::fs::read(programs::path("simulated-enclave").unwrap()).unwrap();
    let text = b"called `Option::unwrap()` on a `None` value";
    let at = bytes.windows(text.len()).position(|window| window == text).expect("a text of the standard library");
    bytes[at] ^= 0x20;
    std::fs::write(&changed, bytes).unwrap();
    let stack = refused(|options| options.program = changed).await;
    let denied = || {
        let calls = stack.kms.journal().of("Decrypt");
        async move { calls.iter().any(|call| call.outcome == "AccessDeniedException") }
    };
    programs::until("KMS is asked", Duration::from_secs(30), denied, || stack.console()).await.unwrap();
    for call in stack.kms.journal().of("Decrypt") {
        assert!(call.attested && call.outcome == "AccessDeniedException", "{call:?}");
        assert_ne!(call.pcr0.as_deref(), Some(hex::encode(stack.measured.pcrs[&0]).as_str()));
    }
    assert_eq!(tests::stack::status(&format!("{}/readyz", stack.direct_url())).await, Some(503));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debug_enclave_gets_no_key() {
    let mut stack = refused(|options| options.debug = true).await;
    let status = stack.hypervisor.ended(Duration::from_secs(30)).await.unwrap();
    assert!(!status.success());
    assert!(stack.console().contains("debug"), "{}", stack.console());
    // Its own model key apart (nobody attested has asked for that either), KMS has decrypted nothing.
    assert!(stack.kms.journal().of("Decrypt").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn unattested_decrypt_gets_no_key() {
    let stack = stack().await;
    let message = ByHand::asking(NOTE).seal(&stack).await.unwrap();
    let (blob, context) = encrypted_data_key(&message);
    let kms = stack.kms_as(&ENCLAVE);
    let call = kms
        .decrypt()
        .key_id(&stack.customer_key)
        .ciphertext_blob(Blob::new(blob))
        .set_encryption_context(Some(context));
    let refusal = call.send().await.expect_err("the parent has the role and no attestation");
    assert_eq!(refusal.code(), Some("AccessDeniedException"));
    for attempt in [
        kms.put_key_policy().key_id(&stack.customer_key).policy("{}").send().await.is_err(),
        kms.create_grant().key_id(&stack.customer_key).grantee_principal(ENCLAVE.arn()).send().await.is_err(),
        kms.generate_data_key()
            .key_id(&stack.customer_key)
            .number_of_bytes(32)
            .encryption_context("subrosa:tenant", TENANT)
            .encryption_context("subrosa:purpose", "answer")
            .send()
            .await
            .is_err(),
    ] {
        assert!(attempt);
    }
}

fn encrypted_data_key(message: &[u8]) -> (Vec<u8>, std::collections::HashMap<String, String>) {
    use sealing::message::Limits;
    use sealing::reader::{HeaderReader, Progress};
    let Progress::Done(header) = HeaderReader::new(Limits::request()).push(&mut &message[..]).unwrap() else {
        panic!("a whole header")
    };
    let context = header.context().iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    (header.encrypted_data_keys()[0].ciphertext.clone(), context)
}
