//! The whole path in one process: `enclave::serve` with a security module that really signs, a KMS that really checks,
//! and a parent of a few lines. What stands outside the enclave is a fake at the wire; the enclave itself is the shipped
//! library.
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

use std::time::Duration;

use http::StatusCode;
use sealing::message::Suite;
use serde_json::{Value, json};
use stand::{Ask, Stand};

fn question(stream: bool) -> Value {
    json!({"model": "subrosa-intake", "stream": stream, "temperature": 0, "max_tokens": 40,
        "messages": [{"role": "user", "content": "Patient reports chest pain since Monday, takes aspirin."}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_request_is_answered_under_the_reply_key_and_under_the_customers_key() {
    let stand = Stand::start().await;
    for under_reply_key in [true, false] {
        for suite in [Suite::Commit, Suite::CommitSigned] {
            let ask = Ask { under_reply_key, suite, answer_suite: suite, ..Ask::chat(&question(false)) };
            let answer = stand.ask(ask).await.unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
            let body: Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!(body["object"], "chat.completion");
            assert!(!body["choices"][0]["message"]["content"].as_str().unwrap().is_empty());
            assert_eq!(answer.body.len() % 4096, 0, "whole frames");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_events_in_frames_and_says_the_same() {
    let stand = Stand::start().await;
    let whole = stand.ask(Ask::chat(&question(false))).await.unwrap();
    let whole: Value = serde_json::from_slice(&whole.body).unwrap();
    let answer = stand.ask(Ask::chat(&question(true))).await.unwrap();
    assert_eq!((answer.status, answer.body.len() % 512), (200, 0));
    let pieces = joined(&events(&answer), "/choices/0/delta/content");
    let content: String = pieces.iter().map(|piece| piece.as_str().unwrap()).collect();
    assert_eq!(Some(content.as_str()), whole["choices"][0]["message"]["content"].as_str());
}

/// The data of all events but the last, which says that it is.
fn events(answer: &stand::Answer) -> Vec<Value> {
    let text = answer.text();
    let chunks: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let (last, chunks) = chunks.split_last().unwrap();
    assert_eq!(*last, "[DONE]");
    chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect()
}

/// All of `field` that a stream brings, one after the other.
fn joined(events: &[Value], pointer: &str) -> Vec<Value> {
    let found = events.iter().filter_map(|event| event.pointer(pointer));
    found.flat_map(|value| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_has_the_form_that_was_asked_for_streamed_or_not_and_the_same_seed_gives_the_same() {
    let stand = Stand::start().await;
    let schema = json!({"type": "object", "properties": {
        "urgent": {"type": "boolean"}, "days": {"type": "integer", "minimum": 1, "maximum": 30},
        "note": {"anyOf": [{"type": "string", "maxLength": 12}, {"type": "null"}]}},
        "required": ["urgent", "days", "note"], "additionalProperties": false});
    let ask = |stream: bool, seed: u64| {
        let mut question = question(stream);
        let format = json!({"type": "json_schema", "json_schema": {"name": "note", "strict": true, "schema": schema}});
        for (name, value) in
            [("response_format", format), ("temperature", json!(1)), ("seed", json!(seed)), ("max_tokens", json!(200))]
        {
            question[name] = value;
        }
        Ask::chat(&question)
    };
    for seed in 0..3 {
        let whole = stand.ask(ask(false, seed)).await.unwrap();
        assert_eq!(whole.status, 200, "{}", whole.text());
        let whole: Value = serde_json::from_slice(&whole.body).unwrap();
        let content = whole["choices"][0]["message"]["content"].as_str().unwrap();
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
        let value: Value = serde_json::from_str(content).unwrap();
        assert!(value["urgent"].is_boolean() && (1..=30).contains(&value["days"].as_i64().unwrap()), "{content}");
        assert!(value["note"].is_null() || value["note"].as_str().unwrap().chars().count() <= 12, "{content}");
        for _ in 0..2 {
            let streamed = events(&stand.ask(ask(true, seed)).await.unwrap());
            let pieces = joined(&streamed, "/choices/0/delta/content");
            assert_eq!(pieces.iter().map(|piece| piece.as_str().unwrap()).collect::<String>(), content);
        }
    }
    let mut grammar = question(false);
    grammar["structured_outputs"] = json!({"grammar": "start: \"yes\" | \"no\""});
    let answer: Value = serde_json::from_slice(&stand.ask(Ask::chat(&grammar)).await.unwrap().body).unwrap();
    assert!(["yes", "no"].contains(&answer["choices"][0]["message"]["content"].as_str().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_that_cannot_be_followed_is_refused_by_name_before_a_stream_begins() {
    let stand = Stand::start().await;
    for stream in [false, true] {
        let mut question = question(stream);
        question["response_format"] = json!({"type": "json_schema", "json_schema": {"schema": {"type": "array", "uniqueItems": true, "title": "a secret"}}});
        let answer = stand.ask(Ask::chat(&question)).await.unwrap();
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((answer.status, body["error"]["code"].as_str()), (400, Some("invalid-request")));
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains("\"uniqueItems\"") && !message.contains("secret"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn log_probabilities_come_with_every_token_streamed_or_not_in_a_size_that_does_not_show_the_tokens() {
    let stand = Stand::start().await;
    for (top, frames_of_a_token) in [(0, 1), (20, 5)] {
        let ask = |stream: bool, content: &str| {
            let mut question = question(stream);
            question["logprobs"] = json!(true);
            question["top_logprobs"] = json!(top);
            question["stop"] = json!("\u{1}");
            question["messages"][0]["content"] = json!(content);
            Ask::chat(&question)
        };
        for content in ["Patient reports chest pain since Monday, takes aspirin.", "Antidisestablishmentarianism"] {
            let whole = stand.ask(ask(false, content)).await.unwrap();
            let document: Value = serde_json::from_slice(&whole.body).unwrap();
            let entries = document["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
            let count = document["usage"]["completion_tokens"].as_u64().unwrap() as usize;
            assert_eq!(entries.len(), count);
            let told: Vec<u8> = joined(&entries, "/bytes").iter().map(|byte| byte.as_u64().unwrap() as u8).collect();
            assert_eq!(
                document["choices"][0]["message"]["content"].as_str().unwrap(),
                String::from_utf8(told).unwrap()
            );
            assert!(entries.iter().all(|entry| entry["top_logprobs"].as_array().unwrap().len() == top));
            assert!(entries.iter().all(|entry| (-9999.0..=0.0).contains(&entry["logprob"].as_f64().unwrap())));
            // Greedy: the likeliest is the one.
            assert!(top == 0 || entries.iter().all(|entry| entry["top_logprobs"][0]["token"] == entry["token"]));
            // Whole frames of 4,096 for the text, and 96 bytes for each of a token's alternatives.
            let text = whole.body.len() - count * 96 * (top + 1);
            assert!(text < 2 * 4096, "{} bytes for {count} tokens", whole.body.len());

            let streamed = stand.ask(ask(true, content)).await.unwrap();
            assert_eq!(joined(&events(&streamed), "/choices/0/logprobs/content"), entries);
            // The role, each token, the end.
            assert_eq!(streamed.body.len(), 512 * (1 + count * frames_of_a_token + 1));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_salt_changes_nothing_that_is_said() {
    let stand = Stand::start().await;
    let mut question = question(false);
    // More than a page of tokens, of which the second request computes a few only.
    question["messages"][0]["content"] = json!("Patient reports chest pain since Monday, takes aspirin. ".repeat(8));
    let mut said = Vec::new();
    for salt in [Value::Null, json!("s"), json!("s"), json!("t")] {
        question["cache_salt"] = salt;
        let answer = stand.ask(Ask::chat(&question)).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        said.push((body["choices"].clone(), body["usage"].clone()));
    }
    assert!(said.iter().all(|one| *one == said[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_an_open_request_are_sealed() {
    let stand = Stand::start().await;
    let unknown = json!({"model": "other", "messages": [{"role": "user", "content": "x"}]});
    let now = stand::now();
    const WRONG_ENCLAVE: &[(&str, &str)] = &[("Subrosa-Enclave", "i-00000000000000000-enc0000000000000000")];
    let long = json!({"model": "subrosa-intake", "messages": [{"role": "user", "content": "word ".repeat(9000)}]});
    for (ask, status, code) in [
        (Ask::chat(&unknown), 404, "unknown-model"),
        (Ask::chat(&json!({"model": 5})), 400, "invalid-request"),
        (Ask::chat(&long), 413, "context-too-long"),
        (Ask { expires: now - 1, ..Ask::chat(&question(false)) }, 410, "expired"),
        (Ask { expires: now + 2000, ..Ask::chat(&question(false)) }, 400, "invalid-request"),
        (Ask { headers: WRONG_ENCLAVE, ..Ask::chat(&question(false)) }, 409, "wrong-enclave"),
        (
            Ask { raw: Some(b"not HTTP at all".to_vec()), under_reply_key: false, ..Ask::chat(&question(false)) },
            400,
            "invalid-request",
        ),
    ] {
        let answer = stand.ask(ask).await.unwrap();
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((answer.status, body["error"]["code"].as_str()), (status, Some(code)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_models_are_listed() {
    let stand = Stand::start().await;
    let answer = stand.ask(Ask::models()).await.unwrap();
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(body["data"][0]["id"], "subrosa-intake");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_message_cannot_be_opened() {
    let stand = Stand::start().await;
    let sealed = stand.seal(&Ask::chat(&question(false))).await;
    assert_eq!(stand.post(sealed.message.clone()).await.0, StatusCode::OK);
    let (status, body) = stand.post(sealed.message).await;
    assert_eq!((status, body.as_slice()), (StatusCode::BAD_REQUEST, br#"{"refusal":"cannot-open"}"#.as_slice()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_cut_or_lengthened_message_cannot_be_opened() {
    let stand = Stand::start().await;
    let message = stand.seal(&Ask::chat(&question(false))).await.message;
    let mut variants: Vec<Vec<u8>> = (0..message.len())
        .step_by(61)
        .map(|at| {
            let mut changed = message.clone();
            changed[at] ^= 1;
            changed
        })
        .collect();
    variants.push(message[..message.len() - 1].to_vec());
    variants.push([message.as_slice(), b"x"].concat());
    variants.push(Vec::new());
    for variant in variants {
        assert_eq!(stand.post(variant).await.0, StatusCode::BAD_REQUEST);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_data_key_under_another_tenants_context_cannot_be_opened() {
    let stand = Stand::start().await;
    let ask = Ask::chat(&question(false));
    assert_eq!(stand.ask(ask).await.unwrap().status, 200);
    // The same key and the same encrypted data key, with another tenant in the header: the cache must not hit, and KMS
    // refuses the context.
    let moved = stand.seal_with_foreign_context(&Ask::chat(&question(false)), "other-clinic").await;
    assert_eq!(stand.post(moved).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_carry_the_clients_nonce_and_the_keysets_digest_and_no_key() {
    let stand = Stand::start().await;
    let (status, body) = stand.get(&format!("/v1/attestation?nonce={}", "ab".repeat(32))).await;
    assert_eq!(status, StatusCode::OK);
    let body: Value = serde_json::from_slice(&body).unwrap();
    let document = attestation::Document::parse(&stand::base64(&body["document"])).unwrap();
    let keyset = attestation::keyset::Keyset::parse(&stand::base64(&body["keyset"])).unwrap();
    assert_eq!(document.nonce(), Some([0xab; 32].as_slice()));
    assert_eq!(document.user_data(), Some(keyset.digest().as_bytes().as_slice()));
    assert_eq!(document.public_key(), None);
    let locked: Vec<u8> = document.pcrs().keys().copied().filter(|index| *index > 15).collect();
    assert_eq!(locked, [16, 17]);
    for bad in [
        "",
        "?nonce=",
        "?nonce=ab",
        "?nonce=zz",
        "?user_data=abababababababababababababababab",
        &format!("?nonce={}", "ab".repeat(65)),
    ] {
        assert_eq!(stand.get(&format!("/v1/attestation{bad}")).await.0, StatusCode::BAD_REQUEST, "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn outer_requests_that_are_wrong_are_told_apart() {
    let stand = Stand::start().await;
    assert_eq!(stand.get("/v1/status").await.0, StatusCode::OK);
    assert_eq!(stand.get("/v1/other").await.0, StatusCode::NOT_FOUND);
    assert_eq!(stand.post_as("text/plain", b"x".to_vec()).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(stand.post(vec![2; (1 << 20) + 1]).await.0, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_kms_with_plaintext_or_of_another_key_is_refused() {
    for lie in [
        simulator::kms::Lie::Plaintext,
        simulator::kms::Lie::PlaintextBeside,
        simulator::kms::Lie::OtherKeyId,
        simulator::kms::Lie::OtherPlaintext,
        simulator::kms::Lie::GarbageEnvelope,
        simulator::kms::Lie::Nothing,
    ] {
        let stand = Stand::start().await;
        let message = stand.seal(&Ask::chat(&question(false))).await.message;
        stand.kms.faults().lie_next(1, "Decrypt", lie);
        assert_eq!(stand.post(message).await.0, StatusCode::BAD_REQUEST);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_frees_its_place() {
    let stand = Stand::start_with(json!({"concurrent_requests": 1})).await;
    for _ in 0..3 {
        let sealed = stand.seal(&Ask::chat(&question(true))).await;
        stand.post_and_leave(sealed.message).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(stand.ask(Ask::chat(&question(false))).await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_of_the_enclave_is_attested_and_a_warm_key_needs_none() {
    let stand = Stand::start().await;
    stand.kms.journal().clear();
    assert_eq!(stand.ask(Ask { under_reply_key: false, ..Ask::chat(&question(false)) }).await.unwrap().status, 200);
    let calls: Vec<_> = stand.kms.journal().entries().into_iter().filter(|call| call.attested).collect();
    let operations: Vec<&str> = calls.iter().map(|call| call.operation.as_str()).collect();
    assert_eq!(operations, ["Decrypt", "GenerateDataKey"]);
    assert!(calls.iter().all(|call| call.outcome == "ok"));
    assert_eq!(calls[1].context["subrosa:purpose"], "answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kms_has_just_refused_costs_no_second_call() {
    let stand = Stand::start().await;
    let mut message = stand.seal(&Ask::chat(&question(false))).await.message;
    // The tenant in the header, which is the context that KMS checks.
    let at = message.windows(8).position(|window| window == b"clinic-7").unwrap();
    message[at] = b'k';
    stand.kms.journal().clear();
    for _ in 0..3 {
        assert_eq!(stand.post(message.clone()).await.0, StatusCode::BAD_REQUEST);
    }
    let calls: Vec<String> = stand.kms.journal().of("Decrypt").into_iter().map(|call| call.outcome).collect();
    assert_eq!(calls, ["InvalidCiphertextException"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn throttling_and_broken_connections_of_kms_are_survived() {
    let stand = Stand::start().await;
    stand.kms.faults().throttle_next(1);
    let sealed = stand.seal(&Ask::chat(&question(false))).await;
    stand.kms.faults().throttle_next(2);
    assert_eq!(stand.post(sealed.message).await.0, StatusCode::OK);
    let sealed = stand.seal(&Ask::chat(&question(false))).await;
    stand.kms.faults().drop_next(1);
    assert_eq!(stand.post(sealed.message).await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_past_its_share_is_told_so_in_a_sealed_answer() {
    let stand = Stand::start_with(json!({"tenant_concurrent_requests": 1})).await;
    let asks: Vec<_> = (0..4).map(|_| stand.ask(Ask::chat(&question(false)))).collect();
    let mut statuses = Vec::new();
    for answer in futures_util::future::join_all(asks).await {
        statuses.push(answer.unwrap().status);
    }
    assert!(statuses.contains(&200) && statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_at_once_are_all_answered() {
    let stand = Stand::start_with(json!({"tenant_concurrent_requests": 64})).await;
    let asks: Vec<_> = (0..64)
        .map(|index| stand.ask(Ask { under_reply_key: index % 2 == 0, ..Ask::chat(&question(index % 3 == 0)) }))
        .collect();
    for answer in futures_util::future::join_all(asks).await {
        assert_eq!(answer.unwrap().status, 200);
    }
}
