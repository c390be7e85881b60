//! Memory of a parent per idle and per active connection, printed as JSON.
//!
//! `cargo run --release -p parent --example connections [-- IDLE ACTIVE]`
//!
//! The parent is the shipped program, a process of its own, so that its resident set is the parent's alone. Idle
//! connections are kept alive after one request. Active ones are half-way through a streamed answer, with the enclave
//! ready to send more and the client not reading: the most that an active connection can hold.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a measuring program"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{fs, net::SocketAddr, path::PathBuf, process::Stdio, time::Duration};

use bytes::Bytes;
use support::{Enclave, Pieces, Place, sealed};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::{sleep, timeout},
};

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>().expect("a number of connections"));
    let (idle, active) = (arguments.next().unwrap_or(1000), arguments.next().unwrap_or(200));
    let place = Place::new();
    let _enclave = Enclave::start(&place, |_| async {
        let (feed, pieces) = Pieces::new();
        tokio::spawn(async move { while feed.send(Ok(Bytes::from_static(&[7; 512]))).await.is_ok() {} });
        sealed(pieces)
    })
    .await;
    let (at_rest, per_idle) = measure(&place, idle, async |at, count| idle_connections(at, count).await).await;
    let (_, per_active) = measure(&place, active, async |at, count| active_connections(at, count).await).await;
    println!(
        "{}",
        serde_json::json!({
            "resident_bytes_at_rest": at_rest,
            "idle_connections": idle,
            "bytes_per_idle_connection": per_idle,
            "active_connections": active,
            "bytes_per_active_connection": per_active,
        })
    );
}

/// A fresh parent's resident set at rest, and what each of `count` connections adds to it.
async fn measure(
    place: &Place,
    count: usize,
    connect: impl AsyncFn(SocketAddr, usize) -> Vec<TcpStream>,
) -> (u64, u64) {
    let (mut child, at) = start(place, count).await;
    // One first, so that what is made once is not counted.
    drop(connect(at, 1).await);
    sleep(Duration::from_secs(1)).await;
    let rest = resident(&child);
    let held = connect(at, count).await;
    let with = settled(&child).await;
    drop(held);
    child.kill().await.unwrap();
    (rest, with.saturating_sub(rest) / count.max(1) as u64)
}

async fn start(place: &Place, connections: usize) -> (Child, SocketAddr) {
    let mut child = Command::new(program())
        .args(["--listen", "127.0.0.1:0", "--enclave", &place.door().to_string(), "--json-logs"])
        .args(["--max-connections", &(connections + 8).to_string(), "--max-requests", &(connections + 8).to_string()])
        .arg("--model-packs")
        .arg(place.packs())
        .arg("--configuration")
        .arg(place.folder.path().join("configuration.json"))
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("build it first: cargo build --release -p parent");
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let at = loop {
        let line = lines.next_line().await.unwrap().expect("the parent ended");
        let record: serde_json::Value = serde_json::from_str(&line).unwrap();
        if let Some(listen) = record["fields"]["listen"].as_str() {
            break listen.parse().unwrap();
        }
    };
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (child, at)
}

/// The shipped program, beside this one's folder.
fn program() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    this.parent().and_then(|examples| examples.parent()).unwrap().join("subrosa-parent")
}

async fn idle_connections(at: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: parent\r\n\r\n").await.unwrap();
        let mut answer = [0; 512];
        assert!(stream.read(&mut answer).await.unwrap() > 0);
        held.push(stream);
    }
    held
}

async fn active_connections(at: SocketAddr, count: usize) -> Vec<TcpStream> {
    let head = format!(
        "POST /v1/sealed HTTP/1.1\r\nhost: parent\r\ncontent-type: {}\r\ncontent-length: 1\r\n\r\nq",
        support::SEALED
    );
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut first = [0; 512];
        let read = timeout(Duration::from_secs(10), stream.read(&mut first)).await.unwrap().unwrap();
        assert!(first[..read].starts_with(b"HTTP/1.1 200 "));
        held.push(stream);
    }
    held
}

/// The resident set once it no longer grows.
async fn settled(child: &Child) -> u64 {
    let mut last = 0;
    loop {
        sleep(Duration::from_millis(500)).await;
        let now = resident(child);
        if now <= last {
            return now;
        }
        last = now;
    }
}

/// proc(5): VmRSS, in kB.
fn resident(child: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
