//! Bounds at the front door: sizes, numbers and time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod support;

use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use support::{Enclave, Pieces, Place, get, h1, h2, outcome, post, raw, raw_rest, read, sealed};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

fn head(rest: &str) -> String {
    format!("POST /v1/sealed HTTP/1.1\r\nhost: x\r\ncontent-type: {}\r\n{rest}\r\n", support::SEALED)
}

#[tokio::test]
async fn a_request_said_to_be_too_large_is_refused_before_it_is_sent_on() {
    let place = Place::new();
    let enclave = Enclave::echo(&place).await;
    let parent = place.parent(|settings| settings.limits.body_bytes = 1000).await;
    let answer = raw(parent.at, head("content-length: 1001\r\nexpect: 100-continue\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains(r#"{"refusal":"too-large"}"#), "{answer}");
    assert!(!answer.contains("100 Continue"));
    assert_eq!(enclave.requests(), 0);
    let exact = h1(parent.at, post(parent.at, Pieces::whole(vec![1; 1000]))).await.unwrap();
    assert_eq!(read(exact).await.unwrap().len(), 1000);
}

#[tokio::test]
async fn a_request_that_turns_out_too_large_is_refused_and_cut_for_the_enclave() {
    let place = Place::new();
    let enclave = Enclave::start(&place, |request| async move {
        use http_body_util::BodyExt as _;
        assert!(request.into_body().collect().await.is_err(), "the enclave took it for whole");
        sealed(Pieces::whole("never"))
    });
    let _enclave = enclave.await;
    let parent = place.parent(|settings| settings.limits.body_bytes = 10_000).await;
    for version in [1, 2] {
        let (feed, pieces) = Pieces::new();
        tokio::spawn(async move { while feed.send(Ok(Bytes::from_static(&[7; 999]))).await.is_ok() {} });
        let request = post(parent.at, pieces);
        let response = if version == 1 { h1(parent.at, request).await } else { h2(parent.at, request).await }.unwrap();
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE, "HTTP/{version}");
        assert_eq!(read(response).await.unwrap(), br#"{"refusal":"too-large"}"#);
    }
    assert_eq!(parent.metric(&outcome("refused")).await, 2);
}

#[tokio::test]
async fn a_large_upload_reads_its_refusal_instead_of_a_reset() {
    let place = Place::new();
    let parent = place.parent(|_| {}).await;
    // 7 MiB said and sent, to a parent without an enclave, by clients that read only when all is sent.
    for _ in 0..5 {
        let mut message = head("content-length: 7340032\r\nconnection: close\r\n").into_bytes();
        message.resize(message.len() + 7_340_032, b'x');
        let mut stream = TcpStream::connect(parent.at).await.unwrap();
        stream.write_all(&message).await.expect("the connection was reset before all was sent");
        let answer = raw_rest(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer:?}");
    }
}

#[tokio::test]
async fn what_is_not_a_sealed_message_is_refused_at_the_door() {
    let place = Place::new();
    let enclave = Enclave::echo(&place).await;
    let parent = place.parent(|_| {}).await;
    let sealed = format!("content-type: {}\r\n", support::SEALED);
    for (request, status, code) in [
        ("POST /v1/sealed HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nq".to_owned(), "400", "bad-request"),
        (
            "POST /v1/sealed HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\ncontent-length: 1\r\n\r\nq".to_owned(),
            "400",
            "bad-request",
        ),
        (format!("POST /v1/sealed HTTP/1.1\r\nhost: x\r\n{sealed}content-length: 0\r\n\r\n"), "400", "bad-request"),
        (format!("POST /v1/sealed HTTP/1.1\r\nhost: x\r\n{sealed}\r\n"), "400", "bad-request"),
        (format!("POST /v1/sealed?x HTTP/1.1\r\nhost: x\r\n{sealed}content-length: 1\r\n\r\nq"), "400", "bad-request"),
        (format!("POST /v1/sealed HTTP/1.0\r\n{sealed}content-length: 1\r\n\r\nq"), "400", "bad-request"),
        ("GET /v1/sealed HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), "404", "not-found"),
        ("POST /v1/attestation HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".to_owned(), "404", "not-found"),
        ("GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), "404", "not-found"),
        ("GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), "404", "not-found"),
        ("GET /v1/configuration HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), "404", "not-found"),
        ("GET /v1/credentials HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), "404", "not-found"),
    ] {
        let request = request.replace("host: x\r\n", "host: x\r\nconnection: close\r\n");
        let answer = raw(parent.at, request.as_bytes()).await;
        let (starts, json) = (format!(" {status} "), format!(r#"{{"refusal":"{code}"}}"#));
        assert!(answer.contains(&starts) && answer.ends_with(&json), "{request}\n{answer}");
    }
    assert_eq!(enclave.requests(), 0);
}

#[tokio::test]
async fn requests_beyond_the_limit_are_told_that_it_is_busy_and_fit_later() {
    let place = Place::new();
    let enclave = Enclave::start(&place, |_| async {
        sleep(Duration::from_millis(400)).await;
        sealed(Pieces::whole("answer"))
    });
    let _enclave = enclave.await;
    let parent = place.parent(|settings| settings.limits.requests = 2).await;
    let at = parent.at;
    let held: Vec<_> =
        (0..2).map(|_| tokio::spawn(async move { h1(at, post(at, Pieces::whole("q"))).await.unwrap() })).collect();
    parent.metric_becomes("requests_under_way", 2).await;
    let response = h1(at, post(at, Pieces::whole("q"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(read(response).await.unwrap(), br#"{"refusal":"busy"}"#);
    for held in held {
        assert_eq!(read(held.await.unwrap()).await.unwrap(), b"answer");
    }
    parent.metric_becomes("requests_under_way", 0).await;
    assert_eq!(read(h1(at, post(at, Pieces::whole("q"))).await.unwrap()).await.unwrap(), b"answer");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_so() {
    let place = Place::new();
    let parent = place.parent(|settings| settings.limits.connections = 2).await;
    let held = [TcpStream::connect(parent.at).await.unwrap(), TcpStream::connect(parent.at).await.unwrap()];
    sleep(Duration::from_millis(100)).await;
    let answer = raw(parent.at, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with(r#"{"refusal":"busy"}"#), "{answer}");
    drop(held);
    sleep(Duration::from_millis(100)).await;
    assert_eq!(get(parent.at, "/healthz").await.0, 200);
}

#[tokio::test]
async fn whoever_dawdles_before_a_request_is_dropped() {
    let place = Place::new();
    let parent = place.parent(|settings| settings.deadlines.header = Duration::from_millis(300)).await;
    // Nothing at all; half of a head; the first half of HTTP/2's preface; all of it and an empty SETTINGS, no stream.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for said in [&b""[..], b"GET /hea", b"PRI * HTTP/2", preface] {
        let mut stream = TcpStream::connect(parent.at).await.unwrap();
        stream.write_all(said).await.unwrap();
        let started = Instant::now();
        raw_rest(&mut stream).await;
        let took = started.elapsed();
        assert!(took > Duration::from_millis(200) && took < Duration::from_secs(4), "{took:?} for {said:?}");
    }
    // A byte now and then does not help.
    let mut stream = TcpStream::connect(parent.at).await.unwrap();
    let started = Instant::now();
    while stream.write_all(b"a").await.is_ok() && started.elapsed() < Duration::from_secs(5) {
        sleep(Duration::from_millis(50)).await;
    }
    assert!(started.elapsed() < Duration::from_secs(3));
    parent.metric_becomes("connections", 1).await;
}

#[tokio::test]
async fn a_connection_with_a_request_under_way_does_not_count_as_resting() {
    let place = Place::new();
    let enclave = Enclave::start(&place, |_| async {
        sleep(Duration::from_millis(900)).await;
        sealed(Pieces::whole("answer"))
    });
    let _enclave = enclave.await;
    let parent = place.parent(|settings| settings.deadlines.header = Duration::from_millis(200)).await;
    for version in [1, 2] {
        let request = post(parent.at, Pieces::whole("q"));
        let response = if version == 1 { h1(parent.at, request).await } else { h2(parent.at, request).await }.unwrap();
        assert_eq!(read(response).await.unwrap(), b"answer");
    }
}

#[tokio::test]
async fn a_client_that_drips_its_body_runs_out_of_patience_in_all() {
    let place = Place::new();
    let _enclave = Enclave::start(&place, |request| async move {
        use http_body_util::BodyExt as _;
        assert!(request.into_body().collect().await.is_err(), "the enclave took it for whole");
        sealed(Pieces::whole("never"))
    })
    .await;
    let parent = place.parent(|settings| settings.deadlines.upload = Duration::from_millis(500)).await;
    for version in [1, 2] {
        let (feed, pieces) = Pieces::new();
        tokio::spawn(async move {
            while feed.send(Ok(Bytes::from_static(b"x"))).await.is_ok() {
                sleep(Duration::from_millis(100)).await;
            }
        });
        let request = post(parent.at, pieces);
        let answer = async { if version == 1 { h1(parent.at, request).await } else { h2(parent.at, request).await } };
        let response = timeout(Duration::from_secs(5), answer).await.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
        assert_eq!(read(response).await.unwrap(), br#"{"refusal":"timeout"}"#);
    }
}

#[tokio::test]
async fn heads_beyond_the_limits_are_refused() {
    let place = Place::new();
    let parent = place.parent(|_| {}).await;
    let long = format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(40_000));
    assert!(raw(parent.at, long.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    let many: String = (0..100).map(|n| format!("x{n}: y\r\n")).collect();
    let many = format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{many}\r\n");
    assert!(raw(parent.at, many.as_bytes()).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn metrics_tell_what_was_counted_in_prometheus_form() {
    let place = Place::new();
    let _enclave = Enclave::echo(&place).await;
    let parent = place.parent(|_| {}).await;
    let mut request = post(parent.at, Pieces::whole("q"));
    assert_eq!(request.method(), Method::POST);
    request.headers_mut().insert("x-request-id", "client's own".parse().unwrap());
    let response = h1(parent.at, request).await.unwrap();
    assert_ne!(response.headers()["x-request-id"], "client's own");
    read(response).await.unwrap();
    let (status, text) = get(parent.at, "/metrics").await;
    assert_eq!(status, 200);
    for line in text.lines() {
        let sample = line.rsplit_once(' ').is_some_and(|(_, value)| value.parse::<u64>().is_ok());
        assert!(line.starts_with("# ") || (line.starts_with("subrosa_parent_") && sample), "{line}");
    }
    assert!(text.contains("subrosa_parent_requests_total{path=\"sealed\",outcome=\"answered\"} 1\n"));
}
