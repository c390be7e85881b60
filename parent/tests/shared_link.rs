//! All clients share one link to the enclave and its places: none can spoil it for the others, or take them all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod support;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{StatusCode, header::CONTENT_LENGTH};
use support::{Enclave, Pieces, Place, h1, h2_connection, post, raw, read, sealed};
use tokio::time::{sleep, timeout};

#[tokio::test]
async fn uploads_that_end_in_an_empty_frame_do_not_wear_out_the_link() {
    let place = Place::new();
    let _enclave = Enclave::echo(&place).await;
    let parent = place.parent(|_| {}).await;
    let mut client = h2_connection(parent.at).await;
    // h2 ends a connection at its 101st empty DATA frame. hyper ends a body that does not announce its end with one.
    for n in 0..120 {
        client.ready().await.unwrap();
        let response = client.send_request(post(parent.at, Pieces::whole("q"))).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "request {n}");
        assert_eq!(read(response).await.unwrap(), b"q", "request {n}");
    }
    assert_eq!(parent.metric("enclave_connects_total").await, 1);
}

#[tokio::test]
async fn a_length_written_with_twenty_digits_is_sent_on_as_the_number_it_is() {
    let place = Place::new();
    let enclave = Enclave::start(&place, |request| async move {
        let length = request.headers()[CONTENT_LENGTH].to_str().unwrap().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        sealed(Pieces::whole(format!("{length} {}", body.len())))
    });
    let _enclave = enclave.await;
    let parent = place.parent(|_| {}).await;
    let head =
        format!("POST /v1/sealed HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {}\r\n", support::SEALED);
    let answer = raw(parent.at, format!("{head}content-length: 00000000000000000003\r\n\r\nabc").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\r\n3 3\r\n"), "{answer}");
}

#[tokio::test]
async fn single_bytes_reach_the_enclave_gathered() {
    let place = Place::new();
    let enclave = Enclave::start(&place, |request| async move {
        // Frames that are not read yet are those that count.
        sleep(Duration::from_millis(500)).await;
        let (mut frames, mut bytes, mut body) = (0, 0, request.into_body());
        while let Some(frame) = body.frame().await {
            frames += 1;
            bytes += frame.unwrap().into_data().unwrap().len();
        }
        sealed(Pieces::whole(format!("{bytes} bytes, few frames: {}", frames <= 5)))
    });
    let _enclave = enclave.await;
    let parent = place.parent(|_| {}).await;
    let (feed, pieces) = Pieces::new();
    tokio::spawn(async move {
        for _ in 0..4000 {
            feed.send(Ok(Bytes::from_static(b"x"))).await.unwrap();
        }
    });
    // Over HTTP/1.1, where nothing limits tiny chunks.
    let response = h1(parent.at, post(parent.at, pieces)).await.unwrap();
    assert_eq!(read(response).await.unwrap(), b"4000 bytes, few frames: true");
    assert_eq!(parent.metric("enclave_connects_total").await, 1);
}

#[tokio::test]
async fn one_connection_cannot_take_all_places_at_the_enclave() {
    let place = Place::new();
    let enclave = Enclave::start(&place, |request| async move {
        if request.into_body().collect().await.unwrap().to_bytes() == "greedy" {
            std::future::pending::<()>().await;
        }
        sealed(Pieces::whole("answer"))
    });
    let _enclave = enclave.await;
    let parent = place.parent(|settings| settings.limits.requests = 16).await;
    let greedy = h2_connection(parent.at).await;
    // What does not fit may be refused or wait; both keep it from the enclave.
    let requests = (0..40).map(|_| {
        let (mut client, request) = (greedy.clone(), post(parent.at, Pieces::whole("greedy")));
        tokio::spawn(async move { client.send_request(request).await.map(drop) })
    });
    let requests: Vec<_> = requests.collect();
    parent.metric_becomes("requests_under_way", 2).await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(parent.metric("requests_under_way").await, 2);
    let modest = timeout(Duration::from_secs(5), h1(parent.at, post(parent.at, Pieces::whole("q"))));
    assert_eq!(read(modest.await.unwrap().unwrap()).await.unwrap(), b"answer");
    drop(requests);
}
