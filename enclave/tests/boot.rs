//! Boot: what ends it, what it waits for, and what it never does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "a test"
)]

#[path = "stand/mod.rs"]
mod stand;

use std::sync::atomic::Ordering;
use std::time::Duration;

use enclave::ServeError;
use enclave::boot::PackFault;
use enclave::kms::KmsError;
use enclave::log::KmsCode;
use enclave::pack::PackError;
use serde_json::json;
use stand::{Ask, Stand, Twist};

#[tokio::test(flavor = "multi_thread")]
async fn a_debug_mode_enclave_ends_before_it_speaks_to_kms() {
    let mut stand = Stand::serve(Twist { debug: true, ..Twist::default() }).await;
    assert!(matches!(stand.end().await, ServeError::DebugMode));
    assert_eq!(stand.tunnelled.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_register_that_is_locked_before_we_came_ends_boot() {
    let mut stand = Stand::serve(Twist { lock_pcr17: true, ..Twist::default() }).await;
    assert!(matches!(stand.end().await, ServeError::Pcr { index: 17, .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_with_an_unknown_member_ends_boot() {
    let configuration = |document: String| document.replacen('{', r#"{"endpoint":"https://kms.example","#, 1);
    let mut stand = Stand::serve(Twist { configuration, ..Twist::default() }).await;
    assert!(matches!(stand.end().await, ServeError::Configuration(_)));
    assert_eq!(stand.tunnelled.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_is_not_the_configured_one_ends_boot() {
    let version = |document: String| document.replace(r#""version":"1""#, r#""version":"2""#);
    let mut stand = Stand::serve(Twist { configuration: version, ..Twist::default() }).await;
    assert!(matches!(stand.end().await, ServeError::Pack(PackFault::Header(_))));

    let manifest = |document: String| {
        let at = document.find("manifest_sha384\":\"").unwrap() + 18;
        let other = if &document[at..=at] == "0" { "1" } else { "0" };
        [&document[..at], other, &document[at + 1..]].concat()
    };
    let mut stand = Stand::serve(Twist { configuration: manifest, ..Twist::default() }).await;
    assert!(matches!(stand.end().await, ServeError::Pack(PackFault::Archive(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_was_changed_or_cut_ends_boot() {
    let flip = |mut pack: Vec<u8>| {
        let middle = pack.len() / 2;
        pack[middle] ^= 1;
        pack
    };
    let cut = |pack: Vec<u8>| pack[..pack.len() - 40].to_vec();
    for pack in [flip as fn(Vec<u8>) -> Vec<u8>, cut] {
        let mut stand = Stand::serve(Twist { pack, ..Twist::default() }).await;
        assert!(matches!(stand.end().await, ServeError::Pack(PackFault::Open(_))));
    }
}

/// The supplier's key sealed it, so every frame is authentic, and a model that can be computed with was made of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_not_the_one_of_the_manifest_is_dropped_at_its_last_byte() {
    let model = |mut model: Vec<u8>| {
        *model.last_mut().unwrap() ^= 1;
        model
    };
    let mut stand = Stand::serve(Twist { model, ..Twist::default() }).await;
    let ended = stand.end().await;
    assert!(matches!(ended, ServeError::Pack(PackFault::Archive(PackError::Digest))), "{ended}");
    assert!(address::dial_enclave(&stand.door()).await.is_err(), "nothing serves it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_larger_than_allowed_ends_boot() {
    let mut stand = Stand::serve(Twist { limits: json!({"model_pack_bytes": 1000}), ..Twist::default() }).await;
    assert!(matches!(stand.end().await, ServeError::Pack(PackFault::Archive(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_key_that_kms_denies_ends_boot_with_what_kms_said() {
    let mut stand = Stand::serve(Twist { deny_model_key: true, ..Twist::default() }).await;
    let ended = stand.end().await;
    assert!(
        matches!(ended, ServeError::ModelPackKey(KmsError::Refused { code: KmsCode::AccessDeniedException })),
        "{ended}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_comes_late_is_waited_for() {
    let stand = Stand::serve(Twist { parent_after: Duration::from_millis(700), ..Twist::default() }).await;
    stand.wait().await;
    assert_eq!(stand.ask(Ask::models()).await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_breaks_off_is_resumed_where_it_broke() {
    let stand = Stand::serve(Twist { cut_pack_at: Some(1_500_000), ..Twist::default() }).await;
    stand.wait().await;
    assert_eq!(stand.ask(Ask::models()).await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_who_plays_kms_without_the_images_roots_gets_no_request() {
    let stand = Stand::serve(Twist { foreign_roots: true, ..Twist::default() }).await;
    let calls = stand.kms.journal().entries().len();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!stand.served.is_finished(), "it waits for the real one");
    assert!(stand.tunnelled.load(Ordering::Relaxed) >= 2);
    assert_eq!(stand.kms.journal().entries().len(), calls, "and sends nothing");
}
