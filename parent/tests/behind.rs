//! What the enclave finds at its parent: host services and the tunnel to KMS.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod support;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use address::{Stream, dial_parent};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use parent::{Parent, StartError};
use support::{CONFIGURATION, Place, write};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{Instant, sleep, timeout},
};

/// What the host services answer to a head, to the end.
async fn ask(place: &Place, head: &str) -> (String, Vec<u8>) {
    let mut stream = dial_parent(&place.door().with_port(8000)).await.unwrap();
    stream.write_all(format!("{head}host: parent\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut read = Vec::new();
    timeout(Duration::from_secs(10), stream.read_to_end(&mut read)).await.unwrap().unwrap();
    let end = read.windows(4).position(|window| window == b"\r\n\r\n").expect("no head in the answer") + 4;
    let body = read.split_off(end);
    (String::from_utf8(read).unwrap(), body)
}

async fn ask_for(place: &Place, path: &str) -> (String, Vec<u8>) {
    ask(place, &format!("GET {path} HTTP/1.1\r\n")).await
}

#[tokio::test]
async fn the_configuration_is_handed_over_byte_by_byte_as_it_stands_now() {
    let place = Place::new();
    let _parent = place.parent(|_| {}).await;
    let (head, body) = ask_for(&place, "/v1/configuration").await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("content-type: application/json\r\n"), "{head}");
    assert_eq!(body, CONFIGURATION.as_bytes());
    write(place.folder.path(), "configuration.json", b"  not even JSON");
    assert_eq!(ask_for(&place, "/v1/configuration").await.1, b"  not even JSON");
    write(place.folder.path(), "configuration.json", &vec![b' '; 262_145]);
    assert!(ask_for(&place, "/v1/configuration").await.0.starts_with("HTTP/1.1 503 "));
}

#[tokio::test]
async fn credentials_have_the_container_form_and_are_not_to_be_stored() {
    let place = Place::new();
    let expiry = SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
    let credentials = Credentials::new("AKIDEXAMPLE", "secret", Some("token".into()), Some(expiry), "test");
    let provider = SharedCredentialsProvider::new(credentials);
    let _parent = place.parent(|settings| settings.credentials = Some(provider)).await;
    let (head, body) = ask_for(&place, "/v1/credentials").await;
    assert!(head.contains("cache-control: no-store\r\n"), "{head}");
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        body,
        serde_json::json!({"AccessKeyId": "AKIDEXAMPLE", "SecretAccessKey": "secret", "Token": "token",
            "Expiration": "2096-10-02T07:06:40Z"})
    );
}

#[derive(Debug)]
struct Hung;

impl aws_credential_types::provider::ProvideCredentials for Hung {
    fn provide_credentials<'a>(&'a self) -> aws_credential_types::provider::future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        aws_credential_types::provider::future::ProvideCredentials::new(std::future::pending())
    }
}

#[tokio::test]
async fn a_source_of_credentials_that_hangs_costs_its_deadline() {
    let place = Place::new();
    let _parent = place
        .parent(|settings| {
            settings.credentials = Some(SharedCredentialsProvider::new(Hung));
            settings.deadlines.credentials = Duration::from_millis(200);
        })
        .await;
    let started = Instant::now();
    let (head, body) = ask_for(&place, "/v1/credentials").await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!(body, br#"{"refusal":"not-ready"}"#);
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_model_pack_is_sent_whole_or_from_any_offset() {
    let place = Place::new();
    let pack: Vec<u8> = (0..1_000_003_u32).map(|n| (n * 31 % 253) as u8).collect();
    write(&place.packs(), "subrosa-intake.sealed", &pack);
    write(&place.packs(), "empty", b"");
    let _parent = place.parent(|_| {}).await;
    let path = "/v1/model-packs/subrosa-intake.sealed";
    let (head, body) = ask_for(&place, path).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("content-length: 1000003\r\n"), "{head}");
    assert!(body == pack);
    for offset in [0, 1, 131_071, 131_072, 1_000_002] {
        let (head, body) = ask(&place, &format!("GET {path} HTTP/1.1\r\nrange: bytes={offset}-\r\n")).await;
        assert!(head.starts_with("HTTP/1.1 206 "), "{head}");
        assert!(head.contains(&format!("content-range: bytes {offset}-1000002/1000003\r\n")), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", pack.len() - offset)), "{head}");
        assert!(body == pack[offset..]);
    }
    let (head, _) = ask(&place, &format!("GET {path} HTTP/1.1\r\nrange: bytes=1000003-\r\n")).await;
    assert!(head.starts_with("HTTP/1.1 416 ") && head.contains("content-range: bytes */1000003\r\n"), "{head}");
    let (head, body) = ask(&place, &format!("GET {path} HTTP/1.1\r\nrange: bytes=5-\r\nif-range: \"x\"\r\n")).await;
    assert!(head.starts_with("HTTP/1.1 200 ") && body.len() == pack.len(), "{head}");
    let (head, body) = ask_for(&place, "/v1/model-packs/empty").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && body.is_empty(), "{head}");
}

#[tokio::test]
async fn no_path_leads_out_of_the_model_packs() {
    let place = Place::new();
    write(place.folder.path(), "secret", b"secret");
    write(&place.packs(), "pack", b"pack");
    std::os::unix::fs::symlink(place.folder.path().join("secret"), place.packs().join("link")).unwrap();
    let parent = place.parent(|_| {}).await;
    let paths = [
        "/v1/model-packs/../secret",
        "/v1/model-packs/..%2fsecret",
        "/v1/model-packs/%2e%2e/secret",
        "/v1/model-packs//pack",
        "/v1/model-packs/./pack",
        "/v1/model-packs/pack/",
        "/v1/model-packs/PACK",
        "/v1/model-packs/link",
        "/v1/model-packs/",
        "/v1/model-packs",
        "/v1/sealed",
        "/metrics",
        "/",
    ];
    for path in paths {
        let (head, body) = ask_for(&place, path).await;
        assert!(head.starts_with("HTTP/1.1 404 "), "{path}: {head}");
        assert_eq!(body, br#"{"refusal":"not-found"}"#);
    }
    assert!(ask(&place, "POST /v1/configuration HTTP/1.1\r\n").await.0.starts_with("HTTP/1.1 404 "));
    assert_eq!(parent.metric("host_failures_total").await, paths.len() as u64 + 1);
}

#[tokio::test]
async fn a_pack_that_shrinks_while_it_is_sent_is_visibly_cut() {
    let place = Place::new();
    write(&place.packs(), "pack", &vec![7; 8 << 20]);
    let _parent = place.parent(|_| {}).await;
    let mut stream = dial_parent(&place.door().with_port(8000)).await.unwrap();
    stream.write_all(b"GET /v1/model-packs/pack HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut read = vec![0; 1000];
    stream.read_exact(&mut read).await.unwrap();
    std::fs::OpenOptions::new().write(true).open(place.packs().join("pack")).unwrap().set_len(1).unwrap();
    timeout(Duration::from_secs(10), stream.read_to_end(&mut read)).await.unwrap().unwrap();
    assert!(read.starts_with(b"HTTP/1.1 200 OK\r\n") && read.len() < 8 << 20);
}

#[tokio::test]
async fn an_enclave_that_stops_reading_a_pack_is_given_up() {
    let place = Place::new();
    write(&place.packs(), "pack", &vec![7; 8 << 20]);
    let parent = place
        .parent(|settings| {
            settings.limits.host_connections = 1;
            settings.deadlines.stalled = Duration::from_millis(200);
        })
        .await;
    let mut stalled = dial_parent(&place.door().with_port(8000)).await.unwrap();
    stalled.write_all(b"GET /v1/model-packs/pack HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    // The one place is taken; the next connection waits until the first is given up.
    assert_eq!(ask_for(&place, "/v1/configuration").await.1, CONFIGURATION.as_bytes());
    assert_eq!(parent.metric("host_requests_total").await, 2);
}

/// A destination that answers each connection with what it read to its end, reversed.
async fn destination() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, SeqCst);
            tokio::spawn(async move {
                let mut read = Vec::new();
                stream.read_to_end(&mut read).await.unwrap();
                read.reverse();
                stream.write_all(&read).await.unwrap();
            });
        }
    });
    (at, taken)
}

async fn tunnel(place: &Place) -> Stream {
    dial_parent(&place.door().with_port(8443)).await.unwrap()
}

#[tokio::test]
async fn the_tunnel_carries_bytes_both_ways_with_half_closes_and_counts_them() {
    let place = Place::new();
    let (at, taken) = destination().await;
    let parent = place.parent(|settings| settings.kms_endpoint = Some(at.to_string())).await;
    let sent: Vec<u8> = (0..200_000_u32).map(|n| (n % 241) as u8).collect();
    let mut stream = tunnel(&place).await;
    stream.write_all(&sent).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answered = Vec::new();
    timeout(Duration::from_secs(5), stream.read_to_end(&mut answered)).await.unwrap().unwrap();
    answered.reverse();
    assert!(answered == sent);
    assert_eq!(taken.load(SeqCst), 1);
    parent.metric_becomes("tunnel_connections", 0).await;
    assert_eq!(parent.metric("tunnel_bytes_up_total").await, 200_000);
    assert_eq!(parent.metric("tunnel_bytes_down_total").await, 200_000);
}

#[tokio::test]
async fn nothing_said_in_the_tunnel_chooses_another_destination() {
    let place = Place::new();
    let (at, _) = destination().await;
    let (other, other_taken) = destination().await;
    let _parent = place.parent(|settings| settings.kms_endpoint = Some(at.to_string())).await;
    for said in [
        format!("CONNECT {other} HTTP/1.1\r\nhost: {other}\r\n\r\n"),
        format!("GET http://{other}/ HTTP/1.1\r\nhost: {other}\r\n\r\n"),
        format!("PROXY TCP4 127.0.0.1 127.0.0.1 1 {}\r\n", other.port()),
        format!("\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01{other}"),
    ] {
        let mut stream = tunnel(&place).await;
        stream.write_all(said.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answered = String::new();
        stream.read_to_string(&mut answered).await.unwrap();
        assert_eq!(answered.chars().rev().collect::<String>(), said);
    }
    assert_eq!(other_taken.load(SeqCst), 0);
}

#[tokio::test]
async fn an_unreachable_kms_closes_the_tunnel_at_once() {
    let place = Place::new();
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let parent = place.parent(|settings| settings.kms_endpoint = Some(free.to_string())).await;
    let mut stream = tunnel(&place).await;
    let mut read = Vec::new();
    timeout(Duration::from_secs(5), stream.read_to_end(&mut read)).await.unwrap().unwrap();
    assert!(read.is_empty());
    assert_eq!(parent.metric("tunnel_failures_total").await, 1);
}

#[tokio::test]
async fn idle_tunnels_are_closed_and_lively_ones_are_not() {
    let place = Place::new();
    let (at, _) = destination().await;
    let _parent = place
        .parent(|settings| {
            settings.kms_endpoint = Some(at.to_string());
            settings.deadlines.tunnel_idle = Duration::from_millis(300);
        })
        .await;
    let (mut idle, mut lively) = (tunnel(&place).await, tunnel(&place).await);
    for _ in 0..8 {
        lively.write_all(b"x").await.unwrap();
        sleep(Duration::from_millis(100)).await;
    }
    let mut read = Vec::new();
    timeout(Duration::from_millis(100), idle.read_to_end(&mut read)).await.expect("still open").unwrap();
    lively.shutdown().await.unwrap();
    lively.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, b"xxxxxxxx");
}

#[tokio::test]
async fn tunnels_beyond_the_limit_wait() {
    let place = Place::new();
    let (at, taken) = destination().await;
    let _parent = place
        .parent(|settings| {
            settings.kms_endpoint = Some(at.to_string());
            settings.limits.tunnel_connections = 2;
        })
        .await;
    let first = tunnel(&place).await;
    let _second = tunnel(&place).await;
    let mut third = tunnel(&place).await;
    sleep(Duration::from_millis(200)).await;
    assert_eq!(taken.load(SeqCst), 2);
    drop(first);
    third.write_all(b"abc").await.unwrap();
    third.shutdown().await.unwrap();
    let mut read = String::new();
    timeout(Duration::from_secs(5), third.read_to_string(&mut read)).await.unwrap().unwrap();
    assert_eq!(read, "cba");
}

#[tokio::test]
async fn what_cannot_work_is_said_at_the_start() {
    let place = Place::new();
    let mut settings = place.settings();
    settings.model_packs = place.folder.path().join("absent");
    assert!(matches!(Parent::bind(settings).await, Err(StartError::ModelPacks { .. })));
    let mut settings = place.settings();
    settings.configuration = place.folder.path().join("absent");
    assert!(matches!(Parent::bind(settings).await, Err(StartError::Settings(_))));
    let mut settings = place.settings();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    settings.listen = taken.local_addr().unwrap();
    assert!(matches!(Parent::bind(settings).await, Err(StartError::Listen { .. })));
    let _parent = place.parent(|_| {}).await;
    assert!(matches!(Parent::bind(place.settings()).await, Err(StartError::ListenForEnclave(_))));
}
