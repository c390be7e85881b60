use std::collections::BTreeMap;
use std::time::Duration;

use attestation::chain::{TrustAnchor, verify_signature};
use attestation::document::{Document, UnixMillis};
use attestation::freshness::{self, Freshness, FreshnessError};
use attestation::measurement::{self, Expected};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tests::by_hand::get;
use tests::stack::Stack;

use crate::stack;

const NONCE: &str = "00112233445566778899aabbccddeeff";

async fn document(stack: &Stack, nonce: &str) -> (Document, Vec<u8>) {
    let (status, body) = get(&format!("{}/v1/attestation?nonce={nonce}", stack.url())).await.unwrap();
    assert_eq!(status, 200);
    let body: Value = serde_json::from_slice(&body).unwrap();
    let decoded = |name: &str| STANDARD.decode(body[name].as_str().unwrap()).unwrap();
    (Document::parse(&decoded("document")).unwrap(), decoded("keyset"))
}

fn now() -> UnixMillis {
    UnixMillis(u64::try_from(time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_replayed_or_foreign_document_is_refused() {
    let stack = stack().await;
    let (document, keyset) = document(&stack, NONCE).await;
    let nonce = hex::decode(NONCE).unwrap();
    let root = TrustAnchor::danger_from_pem(&std::fs::read(stack.attestation_root()).unwrap()).unwrap();

    // It is good for who asked, now, under the simulation's root.
    let asked = Freshness {
        now: now(),
        max_age: Some(Duration::from_secs(300)),
        nonce: Some(&nonce),
        max_ahead: Duration::from_secs(60),
    };
    verify_signature(&document, &root, now(), Duration::ZERO).unwrap();
    freshness::check(&document, &asked).unwrap();
    let expected: BTreeMap<_, _> = stack.measured.pcrs.iter().map(|(index, value)| (*index, vec![*value])).collect();
    measurement::check(&document, &Expected { pcrs: expected, danger_allow_debug: false }).unwrap();
    let keyset = attestation::keyset::Keyset::parse(&keyset).unwrap();
    assert_eq!(document.user_data(), Some(&keyset.digest().as_bytes()[..]));
    assert_eq!(document.public_key(), None);

    // Foreign: its root is not AWS's. Replayed: another nonce. Stale: six minutes later.
    assert!(verify_signature(&document, &TrustAnchor::aws(), now(), Duration::ZERO).is_err());
    let replayed = Freshness { nonce: Some(&[7; 16]), ..asked };
    assert!(matches!(freshness::check(&document, &replayed), Err(FreshnessError::ForeignNonce)));
    let stale = Freshness { now: UnixMillis(now().0 + 360_000), ..asked };
    assert!(matches!(freshness::check(&document, &stale), Err(FreshnessError::Stale { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_from_outside_reaches_public_key_or_user_data() {
    let stack = stack().await;
    let (first, _) = document(&stack, NONCE).await;
    let url = format!("{}/v1/attestation", stack.url());
    for query in [
        "nonce=00112233445566778899aabbccddeeff&user_data=41414141",
        "nonce=00112233445566778899aabbccddeeff&public_key=4141",
        "nonce=00",
        "nonce=zz",
        "",
        &format!("nonce={}", "00".repeat(65)),
    ] {
        let (status, body) = get(&format!("{url}?{query}")).await.unwrap();
        if status == 200 {
            let body: Value = serde_json::from_slice(&body).unwrap();
            let document = Document::parse(&STANDARD.decode(body["document"].as_str().unwrap()).unwrap()).unwrap();
            assert_eq!(document.user_data(), first.user_data(), "{query}");
            assert_eq!(document.public_key(), None, "{query}");
        } else {
            assert!((400..500).contains(&status), "{query}: {status}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_verifies_a_live_enclave_and_holds_the_release_floor() {
    let stack = stack().await;
    let (url, root) = (stack.url(), stack.attestation_root().display().to_string());
    let pcr0 = format!("0={}", hex::encode(stack.measured.pcrs[&0]));
    let other = format!("0={}", "11".repeat(48));
    let cases: [(&[&str], i32); 5] = [
        (&["--danger-root", &root, "--pcr", &pcr0, "--min-release", "1"], 0),
        (&["--danger-root", &root, "--pcr", &pcr0, "--min-release", "99"], 5),
        (&["--danger-root", &root, "--pcr", &other], 5),
        (&["--pcr", &pcr0], 5),
        (&["--pcr", "0=00"], 2),
    ];
    for (arguments, exit) in cases {
        let output = tokio::process::Command::new(tests::programs::path("subrosa").unwrap())
            .args(["verify", "--json", "--url", &url])
            .args(arguments)
            .output()
            .await
            .unwrap();
        assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        if exit != 2 {
            let verdict: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(verdict["verdict"], if exit == 0 { "good" } else { "failed" }, "{arguments:?}");
        }
        if exit == 0 {
            let verdict: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(verdict["keyset"]["release"], 1);
            assert_eq!(verdict["measurements"]["image_pinned"], true);
            assert_eq!((&verdict["aws_root"], &verdict["debug_mode"]), (&Value::Bool(false), &Value::Bool(false)));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_pins_an_image_seals_nothing_for_another() {
    let stack = stack().await;
    let root = std::fs::read(stack.attestation_root()).unwrap();
    let verification = |pcr0: attestation::Pcr| subrosa_client::live::Verification {
        anchor: TrustAnchor::danger_from_pem(&root).unwrap(),
        ..subrosa_client::live::Verification::of(BTreeMap::from([(0, vec![pcr0])]))
    };
    stack.kms.journal().clear();
    let other = stack.client().verification(verification([0x11; 48])).build().unwrap();
    assert!(other.ask(crate::question()).await.is_err());
    assert!(stack.kms.journal().of("GenerateDataKey").is_empty(), "not even a data key was made");
    let right = stack.client().verification(verification(stack.measured.pcrs[&0])).build().unwrap();
    crate::text(right.ask(crate::question()).await.unwrap()).await.unwrap();
}
