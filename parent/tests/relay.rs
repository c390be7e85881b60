//! The relay: streaming, back-pressure, and what becomes visible when something breaks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::StatusCode;
use support::{
    Enclave, Feed, Pieces, Place, ends, get, h1, h2, h2_connection, outcome, piece, post, raw, read, sealed,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

/// An enclave whose answers the test feeds.
async fn fed(place: &Place) -> (Enclave, mpsc::Receiver<Feed>) {
    let (feeds, fed) = mpsc::channel(16);
    let enclave = Enclave::start(place, move |request| {
        let feeds = feeds.clone();
        async move {
            let (feed, pieces) = Pieces::new();
            feeds.send(feed).await.unwrap();
            // Requests are read away, so that only the answer is of interest.
            tokio::spawn(request.into_body().collect());
            sealed(pieces)
        }
    });
    (enclave.await, fed)
}

#[tokio::test]
async fn a_sealed_message_and_its_answer_pass_unchanged_by_both_versions_of_http() {
    let place = Place::new();
    let _enclave = Enclave::echo(&place).await;
    let parent = place.parent(|_| {}).await;
    let message: Vec<u8> = (0..300_000_u32).map(|n| (n * 7 % 251) as u8).collect();
    for version in [1, 2] {
        let request = post(parent.at, Pieces::whole(message.clone()));
        let response = if version == 1 { h1(parent.at, request).await } else { h2(parent.at, request).await }.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], support::SEALED);
        assert!(response.headers().contains_key("x-request-id"));
        assert!(read(response).await.unwrap() == message);
    }
    assert_eq!(parent.metric(&outcome("answered")).await, 2);
    assert_eq!(parent.metric("request_bytes_total").await, 600_000);
    assert_eq!(parent.metric("answer_bytes_total").await, 600_000);
    assert_eq!(parent.metric("enclave_connects_total").await, 1);
}

#[tokio::test]
async fn the_first_bytes_of_an_answer_arrive_before_the_rest_exists() {
    let place = Place::new();
    let (_enclave, mut feeds) = fed(&place).await;
    let parent = place.parent(|_| {}).await;
    for version in [1, 2] {
        let request = post(parent.at, Pieces::whole("q"));
        let response = if version == 1 { h1(parent.at, request).await } else { h2(parent.at, request).await }.unwrap();
        let feed = feeds.recv().await.unwrap();
        let mut body = response.into_body();
        for token in ["one", "two", "three"] {
            feed.send(Ok(Bytes::from(token))).await.unwrap();
            assert_eq!(piece(&mut body).await, token);
        }
        drop(feed);
        ends(&mut body).await;
    }
}

#[tokio::test]
async fn an_answer_may_begin_before_its_request_has_ended() {
    let place = Place::new();
    let _enclave = Enclave::echo(&place).await;
    let parent = place.parent(|_| {}).await;
    for version in [1, 2] {
        let (feed, pieces) = Pieces::new();
        // Less than a kibibyte would wait for more.
        feed.send(Ok(Bytes::from_static(&[1; 1024]))).await.unwrap();
        let request = post(parent.at, pieces);
        let response = if version == 1 { h1(parent.at, request).await } else { h2(parent.at, request).await }.unwrap();
        let mut body = response.into_body();
        assert_eq!(piece(&mut body).await, &[1; 1024][..]);
        feed.send(Ok(Bytes::from_static(&[2; 1024]))).await.unwrap();
        assert_eq!(piece(&mut body).await, &[2; 1024][..]);
        drop(feed);
        ends(&mut body).await;
    }
}

/// An enclave that produces as fast as it is let, and counts.
async fn gushing(place: &Place) -> (Enclave, Arc<AtomicUsize>) {
    let produced = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&produced);
    let enclave = Enclave::start(place, move |request| {
        let count = Arc::clone(&count);
        async move {
            let small = request.into_body().collect().await.unwrap().to_bytes() == "small";
            if small {
                return sealed(Pieces::whole("answer"));
            }
            let (feed, pieces) = Pieces::new();
            tokio::spawn(async move {
                while feed.send(Ok(Bytes::from_static(&[7; 4096]))).await.is_ok() {
                    count.fetch_add(4096, SeqCst);
                }
            });
            sealed(pieces)
        }
    });
    (enclave.await, produced)
}

/// Waits until a counter rests, and returns it.
async fn at_rest(counter: &AtomicUsize) -> usize {
    let mut last = usize::MAX;
    loop {
        let now = counter.load(SeqCst);
        if now == last {
            return now;
        }
        last = now;
        sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_stop_reading_stall_the_enclave_and_nobody_else() {
    let place = Place::new();
    let (_enclave, produced) = gushing(&place).await;
    let parent = place.parent(|_| {}).await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        stalled.push(h2(parent.at, post(parent.at, Pieces::whole("large"))).await.unwrap());
    }
    let produced = at_rest(&produced).await;
    // A stream's window on either side, send buffers and a piece under way: bounded, however long nobody reads.
    assert!(produced > 0 && produced < 20 * (512 << 10), "{produced} bytes for 20 clients that do not read");
    let started = Instant::now();
    for _ in 0..5 {
        let response = h1(parent.at, post(parent.at, Pieces::whole("small"))).await.unwrap();
        assert_eq!(read(response).await.unwrap(), b"answer");
    }
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_client_that_stops_reading_is_given_up_and_its_request_cancelled() {
    for version in [1, 2] {
        let place = Place::new();
        let (_enclave, produced) = gushing(&place).await;
        let parent = place.parent(|settings| settings.deadlines.stalled = Duration::from_millis(300)).await;
        let request = post(parent.at, Pieces::whole("large"));
        let response = if version == 1 { h1(parent.at, request).await } else { h2(parent.at, request).await }.unwrap();
        parent.metric_becomes("requests_under_way", 0).await;
        assert!(produced.load(SeqCst) > 0);
        // What was already on its way may still be read; then it ends with an error, not as if it were whole.
        assert!(read(response).await.is_err());
    }
}

#[tokio::test]
async fn an_enclave_that_stops_reading_stalls_the_client() {
    let place = Place::new();
    let enclave = Enclave::start(&place, |request| async move {
        // Holds the body, reads nothing of it.
        sleep(Duration::from_secs(30)).await;
        drop(request);
        sealed(Pieces::whole(""))
    });
    let _enclave = enclave.await;
    let parent = place.parent(|settings| settings.limits.body_bytes = 1 << 30).await;
    let (feed, pieces) = Pieces::new();
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    tokio::spawn(async move {
        while feed.send(Ok(Bytes::from_static(&[7; 4096]))).await.is_ok() {
            count.fetch_add(4096, SeqCst);
        }
    });
    let at = parent.at;
    let request = tokio::spawn(async move { h2(at, post(at, pieces)).await });
    sleep(Duration::from_millis(100)).await;
    let sent = at_rest(&sent).await;
    assert!(sent > 0 && sent < 4 << 20, "{sent} bytes taken for an enclave that does not read");
    request.abort();
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_the_enclaves_work() {
    let place = Place::new();
    let (_enclave, mut feeds) = fed(&place).await;
    let parent = place.parent(|_| {}).await;
    for version in [1, 2] {
        let at = parent.at;
        let client = tokio::spawn(async move {
            let request = post(at, Pieces::whole("q"));
            let response = if version == 1 { h1(at, request).await } else { h2(at, request).await }.unwrap();
            let mut body = response.into_body();
            loop {
                piece(&mut body).await;
            }
        });
        let feed = feeds.recv().await.unwrap();
        feed.send(Ok(Bytes::from("token"))).await.unwrap();
        sleep(Duration::from_millis(50)).await;
        client.abort();
        timeout(Duration::from_secs(5), feed.closed()).await.expect("the enclave was not told");
        parent.metric_becomes(&outcome("cancelled"), version).await;
    }
}

#[tokio::test]
async fn a_client_that_goes_away_before_its_answer_cancels_the_enclaves_work() {
    let place = Place::new();
    let (working, mut works) = mpsc::channel::<()>(1);
    let enclave = Enclave::start(&place, move |_request| {
        let working = working.clone();
        async move {
            working.send(()).await.unwrap();
            // Dropped with the stream, which the receiver sees.
            sleep(Duration::from_secs(60)).await;
            drop(working);
            sealed(Pieces::whole(""))
        }
    });
    let enclave = enclave.await;
    let parent = place.parent(|_| {}).await;
    let at = parent.at;
    let client = tokio::spawn(async move { h1(at, post(at, Pieces::whole("q"))).await });
    works.recv().await.unwrap();
    client.abort();
    parent.metric_becomes(&outcome("cancelled"), 1).await;
    parent.metric_becomes("requests_under_way", 0).await;
    drop(enclave);
}

#[tokio::test]
async fn an_enclave_that_dies_in_its_answer_leaves_a_visible_cut() {
    let place = Place::new();
    let parent = place.parent(|_| {}).await;
    for version in [1, 2] {
        let (enclave, mut feeds) = fed(&place).await;
        wait_for_enclave(parent.at).await;
        let request = post(parent.at, Pieces::whole("q"));
        let response = if version == 1 { h1(parent.at, request).await } else { h2(parent.at, request).await }.unwrap();
        let feed = feeds.recv().await.unwrap();
        feed.send(Ok(Bytes::from("half"))).await.unwrap();
        let mut body = response.into_body();
        assert_eq!(piece(&mut body).await, "half");
        enclave.die().await;
        let end = timeout(Duration::from_secs(5), body.frame()).await.unwrap();
        assert!(matches!(end, Some(Err(_))), "HTTP/{version} shows a clean end");
        parent.metric_becomes(&outcome("cut"), version).await;
    }
}

#[tokio::test]
async fn a_cut_answer_never_has_its_last_chunk() {
    let place = Place::new();
    let (enclave, mut feeds) = fed(&place).await;
    let parent = place.parent(|_| {}).await;
    let mut stream = TcpStream::connect(parent.at).await.unwrap();
    let head = format!(
        "POST /v1/sealed HTTP/1.1\r\nhost: x\r\ncontent-type: {}\r\ncontent-length: 1\r\n\r\nq",
        support::SEALED
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let feed = feeds.recv().await.unwrap();
    feed.send(Ok(Bytes::from("half"))).await.unwrap();
    let mut first = [0; 4096];
    let mut read = String::new();
    while !read.contains("half") {
        let length = timeout(Duration::from_secs(5), stream.read(&mut first)).await.unwrap().unwrap();
        read.push_str(std::str::from_utf8(&first[..length]).unwrap());
    }
    enclave.die().await;
    read.push_str(&support::raw_rest(&mut stream).await);
    assert!(read.contains("transfer-encoding: chunked") && read.contains("half"), "{read}");
    assert!(!read.contains("\r\n0\r\n"), "{read}");
}

#[tokio::test]
async fn a_stream_reset_by_the_enclave_is_a_cut_whatever_its_code() {
    for reason in [h2::Reason::NO_ERROR, h2::Reason::CANCEL, h2::Reason::INTERNAL_ERROR] {
        let place = Place::new();
        let (_enclave, mut feeds) = fed(&place).await;
        let parent = place.parent(|_| {}).await;
        for version in [1, 2] {
            let request = post(parent.at, Pieces::whole("q"));
            let response =
                if version == 1 { h1(parent.at, request).await } else { h2(parent.at, request).await }.unwrap();
            let feed = feeds.recv().await.unwrap();
            feed.send(Ok(Bytes::from("half"))).await.unwrap();
            let mut body = response.into_body();
            assert_eq!(piece(&mut body).await, "half");
            feed.send(Err(reason.into())).await.unwrap();
            let end = timeout(Duration::from_secs(5), body.frame()).await.unwrap();
            assert!(matches!(end, Some(Err(_))), "{reason:?} over HTTP/{version} shows a clean end");
        }
    }
}

#[tokio::test]
async fn a_request_reset_by_its_client_is_never_whole_for_the_enclave() {
    let place = Place::new();
    let ends = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&ends);
    let enclave = Enclave::start(&place, move |request| {
        let seen = Arc::clone(&seen);
        async move {
            let (feed, pieces) = Pieces::new();
            tokio::spawn(async move {
                let mut body = request.into_body();
                while let Some(frame) = body.frame().await {
                    let Ok(frame) = frame else {
                        return seen.lock().unwrap().push("cut");
                    };
                    feed.send(Ok(frame.into_data().unwrap())).await.unwrap();
                }
                let end = if http_body::Body::is_end_stream(&body) { "whole" } else { "reset" };
                seen.lock().unwrap().push(end);
            });
            sealed(pieces)
        }
    });
    let _enclave = enclave.await;
    let parent = place.parent(|_| {}).await;
    let mut connection = h2_connection(parent.at).await;
    for reason in [h2::Reason::NO_ERROR, h2::Reason::CANCEL, h2::Reason::INTERNAL_ERROR] {
        let (feed, pieces) = Pieces::new();
        feed.send(Ok(Bytes::from_static(&[1; 1024]))).await.unwrap();
        let mut body = connection.send_request(post(parent.at, pieces)).await.unwrap().into_body();
        assert_eq!(piece(&mut body).await, &[1; 1024][..]);
        feed.send(Err(reason.into())).await.unwrap();
    }
    let started = Instant::now();
    while ends.lock().unwrap().len() < 3 && started.elapsed() < Duration::from_secs(5) {
        sleep(Duration::from_millis(20)).await;
    }
    let ends = ends.lock().unwrap();
    assert!(ends.len() == 3 && !ends.contains(&"whole"), "{ends:?}");
}

#[tokio::test]
async fn a_hung_enclave_costs_a_deadline() {
    let place = Place::new();
    let enclave = Enclave::start(&place, |_| async {
        sleep(Duration::from_secs(60)).await;
        sealed(Pieces::whole(""))
    });
    let enclave = enclave.await;
    let parent = place
        .parent(|settings| {
            settings.deadlines.first_byte = Duration::from_millis(200);
            settings.deadlines.idle = Duration::from_millis(200);
        })
        .await;
    let response = h1(parent.at, post(parent.at, Pieces::whole("q"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(read(response).await.unwrap(), br#"{"refusal":"timeout"}"#);
    enclave.die().await;

    let (_enclave, mut feeds) = fed(&place).await;
    wait_for_enclave(parent.at).await;
    let response = h1(parent.at, post(parent.at, Pieces::whole("q"))).await.unwrap();
    let feed = feeds.recv().await.unwrap();
    feed.send(Ok(Bytes::from("half"))).await.unwrap();
    // Then silence.
    assert!(timeout(Duration::from_secs(5), read(response)).await.unwrap().is_err());
    parent.metric_becomes(&outcome("cut"), 1).await;
}

#[tokio::test]
async fn an_enclave_that_freezes_altogether_is_noticed_by_its_silence_to_pings() {
    let place = Place::new();
    // Accepts and shakes hands, then says nothing at all.
    let mut listener = address::listen_for_parent(&place.door()).await.unwrap();
    let frozen = tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(listener.accept().await.unwrap());
        }
    });
    let parent = place.parent(|settings| settings.deadlines.ping = Duration::from_millis(200)).await;
    let response = h1(parent.at, post(parent.at, Pieces::whole("q"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(read(response).await.unwrap(), br#"{"refusal":"enclave-unavailable"}"#);
    frozen.abort();
}

async fn wait_for_enclave(at: std::net::SocketAddr) {
    for _ in 0..200 {
        if get(at, "/readyz").await.0 == 200 {
            return;
        }
        sleep(Duration::from_millis(25)).await;
    }
    panic!("the parent does not find the enclave");
}

#[tokio::test]
async fn an_absent_enclave_is_said_and_found_when_it_comes() {
    let place = Place::new();
    let parent = place.parent(|_| {}).await;
    let response = h1(parent.at, post(parent.at, Pieces::whole("q"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(read(response).await.unwrap(), br#"{"refusal":"enclave-unavailable"}"#);
    assert_eq!(get(parent.at, "/readyz").await, (503, r#"{"refusal":"enclave-unavailable"}"#.to_owned()));
    assert_eq!(get(parent.at, "/healthz").await.0, 200);

    let enclave = Enclave::echo(&place).await;
    wait_for_enclave(parent.at).await;
    let response = h1(parent.at, post(parent.at, Pieces::whole("q"))).await.unwrap();
    assert_eq!(read(response).await.unwrap(), b"q");
    assert_eq!(enclave.requests(), 1);
}

#[tokio::test]
async fn requests_lost_with_an_enclave_are_said_to_be_lost_and_never_sent_again() {
    let place = Place::new();
    let parent = place.parent(|_| {}).await;
    let (arrived, mut arrivals) = mpsc::channel(16);
    let first = Enclave::start(&place, move |_| {
        let arrived = arrived.clone();
        async move {
            arrived.send(()).await.unwrap();
            sleep(Duration::from_secs(60)).await;
            sealed(Pieces::whole(""))
        }
    });
    let first = first.await;
    let at = parent.at;
    let asked: Vec<_> =
        (0..5).map(|_| tokio::spawn(async move { h1(at, post(at, Pieces::whole("q"))).await.unwrap() })).collect();
    for _ in 0..5 {
        arrivals.recv().await.unwrap();
    }
    first.die().await;
    let second = Enclave::echo(&place).await;
    for asked in asked {
        let response = timeout(Duration::from_secs(5), asked).await.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
        assert_eq!(read(response).await.unwrap(), br#"{"refusal":"enclave-unavailable"}"#);
    }
    wait_for_enclave(parent.at).await;
    assert_eq!(second.requests(), 0);
    let response = h1(at, post(at, Pieces::whole("again"))).await.unwrap();
    assert_eq!(read(response).await.unwrap(), b"again");
    assert_eq!(second.requests(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_ten_restarts_each_request_has_one_clear_end() {
    let place = Place::new();
    let parent = place.parent(|_| {}).await;
    let at = parent.at;
    let client = tokio::spawn(async move {
        let (mut answered, mut refused) = (0, 0);
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            let response =
                timeout(Duration::from_secs(5), h1(at, post(at, Pieces::whole("q")))).await.unwrap().unwrap();
            match response.status().as_u16() {
                // Whole, or visibly cut: never anything between.
                200 => match read(response).await {
                    Ok(body) => {
                        assert_eq!(body, b"q");
                        answered += 1;
                    }
                    Err(_) => refused += 1,
                },
                502 | 503 => refused += 1,
                other => panic!("{other}"),
            }
            sleep(Duration::from_millis(5)).await;
        }
        (answered, refused)
    });
    for _ in 0..10 {
        let enclave = Enclave::echo(&place).await;
        sleep(Duration::from_millis(200)).await;
        enclave.die().await;
        sleep(Duration::from_millis(50)).await;
    }
    let (answered, refused) = client.await.unwrap();
    assert!(answered > 10 && refused > 0, "{answered} answered, {refused} refused");
}

#[tokio::test]
async fn an_enclaves_refusal_passes_with_its_code() {
    let place = Place::new();
    let enclave = Enclave::start(&place, |_| async {
        let mut response = hyper::Response::new(Pieces::whole(r#"{"refusal":"cannot-open"}"#));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        response.headers_mut().insert("content-type", "application/json".parse().unwrap());
        response.headers_mut().insert("set-cookie", "a=b".parse().unwrap());
        response
    });
    let _enclave = enclave.await;
    let parent = place.parent(|_| {}).await;
    let response = h1(parent.at, post(parent.at, Pieces::whole("q"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert!(!response.headers().contains_key("set-cookie"));
    assert_eq!(read(response).await.unwrap(), br#"{"refusal":"cannot-open"}"#);
    assert_eq!(parent.metric(&outcome("refused-by-enclave")).await, 1);
}

#[tokio::test]
async fn an_attestation_request_passes_with_its_nonce_and_nothing_else() {
    let place = Place::new();
    let enclave = Enclave::start(&place, |request| async move {
        hyper::Response::new(Pieces::whole(request.uri().path_and_query().unwrap().to_string()))
    });
    let enclave = enclave.await;
    let parent = place.parent(|_| {}).await;
    let nonce = "ab".repeat(16);
    let path = format!("/v1/attestation?nonce={nonce}");
    assert_eq!(get(parent.at, &path).await, (200, path.clone()));
    for path in ["/v1/attestation".to_owned(), "/v1/attestation?nonce=00".to_owned(), format!("{path}&x=1")] {
        assert_eq!(get(parent.at, &path).await, (400, r#"{"refusal":"bad-request"}"#.to_owned()));
    }
    assert_eq!(enclave.requests(), 1);
    let ten = format!("GET {path} HTTP/1.0\r\n\r\n");
    assert!(raw(parent.at, ten.as_bytes()).await.contains(r#"{"refusal":"bad-request"}"#));
}
