//! The end of a parent: in order, bounded, and nothing lost without a word.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod support;

use std::time::Duration;

use bytes::Bytes;
use support::{Enclave, Pieces, Place, ends, get, h1, h2, piece, post, read, sealed};
use tokio::{
    net::TcpStream,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

#[tokio::test]
async fn requests_under_way_end_before_the_parent_does() {
    for version in [1, 2] {
        let place = Place::new();
        let (feeds, mut fed) = mpsc::channel(1);
        let enclave = Enclave::start(&place, move |_| {
            let feeds = feeds.clone();
            async move {
                let (feed, pieces) = Pieces::new();
                feeds.send(feed).await.unwrap();
                sealed(pieces)
            }
        });
        let _enclave = enclave.await;
        let mut parent = place.parent(|_| {}).await;
        let request = post(parent.at, Pieces::whole("q"));
        let response = if version == 1 { h1(parent.at, request).await } else { h2(parent.at, request).await }.unwrap();
        let feed = fed.recv().await.unwrap();
        let mut body = response.into_body();
        feed.send(Ok(Bytes::from("before"))).await.unwrap();
        assert_eq!(piece(&mut body).await, "before");
        parent.stop();
        sleep(Duration::from_millis(200)).await;
        assert!(TcpStream::connect(parent.at).await.is_err(), "still accepts");
        feed.send(Ok(Bytes::from("after"))).await.unwrap();
        assert_eq!(piece(&mut body).await, "after");
        drop(feed);
        ends(&mut body).await;
        parent.stopped(Duration::from_secs(5)).await;
    }
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_the_end() {
    let place = Place::new();
    let _enclave = Enclave::echo(&place).await;
    let mut parent = place.parent(|_| {}).await;
    let _silent = TcpStream::connect(parent.at).await.unwrap();
    let _idle = support::h2_connection(parent.at).await;
    assert_eq!(read(h1(parent.at, post(parent.at, Pieces::whole("q"))).await.unwrap()).await.unwrap(), b"q");
    parent.stop();
    parent.stopped(Duration::from_secs(3)).await;
}

#[tokio::test]
async fn an_answer_that_does_not_end_in_time_is_visibly_cut() {
    let place = Place::new();
    let enclave = Enclave::start(&place, |_| async {
        let (feed, pieces) = Pieces::new();
        tokio::spawn(async move {
            while feed.send(Ok(Bytes::from("token"))).await.is_ok() {
                sleep(Duration::from_millis(20)).await;
            }
        });
        sealed(pieces)
    });
    let _enclave = enclave.await;
    let mut parent = place.parent(|settings| settings.deadlines.drain = Duration::from_millis(300)).await;
    let mut bodies = Vec::new();
    for version in [1, 2] {
        let request = post(parent.at, Pieces::whole("q"));
        bodies.push(if version == 1 { h1(parent.at, request).await } else { h2(parent.at, request).await }.unwrap());
    }
    let stopped = Instant::now();
    parent.stop();
    for body in bodies {
        assert!(timeout(Duration::from_secs(5), read(body)).await.unwrap().is_err());
    }
    parent.stopped(Duration::from_secs(2)).await;
    assert!(stopped.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_leaving_parent_says_so_and_serves_until_it_goes() {
    let place = Place::new();
    let _enclave = Enclave::echo(&place).await;
    let mut parent = place.parent(|settings| settings.deadlines.lame_duck = Duration::from_millis(700)).await;
    assert_eq!(get(parent.at, "/readyz").await.0, 200);
    parent.stop();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(get(parent.at, "/readyz").await, (503, r#"{"refusal":"not-ready"}"#.to_owned()));
    assert_eq!(get(parent.at, "/healthz").await.0, 200);
    assert_eq!(read(h1(parent.at, post(parent.at, Pieces::whole("q"))).await.unwrap()).await.unwrap(), b"q");
    parent.stopped(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn the_enclaves_sockets_go_with_the_parent() {
    let place = Place::new();
    let mut parent = place.parent(|_| {}).await;
    let socket = |port: u32| place.folder.path().join(format!("enclave.sock_{port}"));
    assert!(socket(8000).exists() && socket(8443).exists());
    parent.stop();
    parent.stopped(Duration::from_secs(3)).await;
    assert!(!socket(8000).exists() && !socket(8443).exists());
    // And a new one finds the place free.
    place.parent(|_| {}).await;
}
