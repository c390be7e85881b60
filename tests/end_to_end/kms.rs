use std::time::{Duration, Instant};

use simulator::kms::Lie;
use tests::by_hand::{ByHand, post};

use crate::{NOTE, ask, stack};

#[tokio::test(flavor = "multi_thread")]
async fn a_lying_kms_is_refused() {
    let stack = stack().await;
    for lie in
        [Lie::Plaintext, Lie::PlaintextBeside, Lie::OtherKeyId, Lie::OtherPlaintext, Lie::GarbageEnvelope, Lie::Nothing]
    {
        let message = ByHand::asking(NOTE).seal(&stack).await.unwrap();
        stack.kms.faults().lie_next(10, "Decrypt", lie);
        let (status, body) = post(&stack.url(), message).await.unwrap();
        assert_eq!((status, &body[..]), (400, &br#"{"refusal":"cannot-open"}"#[..]), "{lie:?}");
        stack.kms.faults().clear();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttling_or_slow_kms_delays_and_a_dead_one_refuses() {
    let stack = stack().await;
    let right = ask(&stack).await.unwrap();
    // The client's own call comes first, so faults are set on `Decrypt`, which only the enclave calls.
    stack.kms.faults().push(serde_json::from_str(r#"{"kind":"throttle","times":1,"operation":"Decrypt"}"#).unwrap());
    assert_eq!(ask(&stack).await.unwrap(), right, "throttled once, and tried again");
    stack
        .kms
        .faults()
        .push(serde_json::from_str(r#"{"kind":{"delay":{"millis":1500}},"times":1,"operation":"Decrypt"}"#).unwrap());
    assert_eq!(ask(&stack).await.unwrap(), right, "slow, and waited for");

    stack.kms.faults().push(serde_json::from_str(r#"{"kind":"drop","times":100,"operation":"Decrypt"}"#).unwrap());
    let since = Instant::now();
    ask(&stack).await.expect_err("no KMS, no key");
    assert!(since.elapsed() < Duration::from_secs(30), "{:?}", since.elapsed());
    stack.kms.faults().clear();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(ask(&stack).await.unwrap(), right, "KMS is back, and so is the service");
}
