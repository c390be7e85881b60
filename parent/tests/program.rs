//! The program itself: what it says, what it never says, and how it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod support;

use std::{
    os::unix::net::UnixDatagram,
    process::{Output, Stdio},
    time::Duration,
};

use address::dial_parent;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use support::{Enclave, Pieces, Place, get, h1, post, read};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

fn program(place: &Place) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_subrosa-parent"));
    command
        .env_clear()
        .kill_on_drop(true)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .args(["--listen", "127.0.0.1:0", "--enclave", &place.door().to_string(), "--model-packs"])
        .arg(place.packs())
        .arg("--configuration")
        .arg(place.folder.path().join("configuration.json"));
    command
}

/// Starts it with JSON logs, and returns where it listens and what it logged so far.
async fn start(command: &mut Command) -> (Child, std::net::SocketAddr, tokio::task::JoinHandle<String>) {
    let mut child = command.args(["--json-logs", "--log", "debug"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut log = String::new();
    let at = loop {
        let line = timeout(Duration::from_secs(10), lines.next_line()).await.unwrap().unwrap().expect("it ended early");
        let record: serde_json::Value = serde_json::from_str(&line).unwrap();
        log.push_str(&line);
        if let Some(listen) = record["fields"]["listen"].as_str() {
            break listen.parse().unwrap();
        }
    };
    let rest = tokio::spawn(async move {
        while let Some(line) = lines.next_line().await.unwrap() {
            serde_json::from_str::<serde_json::Value>(&line).expect("a line of the log is not JSON");
            log.push_str(&line);
            log.push('\n');
        }
        log
    });
    (child, at, rest)
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()), signal).unwrap();
}

async fn output(command: &mut Command) -> Output {
    timeout(Duration::from_secs(10), command.output()).await.unwrap().unwrap()
}

#[tokio::test]
async fn help_teaches_on_stdout_and_errors_go_to_stderr_with_their_code() {
    let place = Place::new();
    let help = output(Command::new(env!("CARGO_BIN_EXE_subrosa-parent")).arg("--help")).await;
    let text = String::from_utf8(help.stdout).unwrap();
    assert_eq!(help.status.code(), Some(0));
    for taught in ["vsock:16:5000", "unix:", "--kms-endpoint", "--max-body", "SIGTERM", "Exit codes", "/readyz"] {
        assert!(text.contains(taught), "{taught} is not in\n{text}");
    }
    let usage = output(program(&place).args(["--enclave", "tcp:1:2"])).await;
    assert_eq!(usage.status.code(), Some(2));
    let cannot = output(program(&place).args(["--region", "no/region"])).await;
    let said = String::from_utf8(cannot.stderr).unwrap();
    assert_eq!(cannot.status.code(), Some(1));
    assert!(said.starts_with("subrosa-parent: expected a region"), "{said}");
    assert!(cannot.stdout.is_empty());
}

#[tokio::test]
async fn both_signals_end_it_with_success_after_its_requests() {
    for stop in [Signal::SIGTERM, Signal::SIGINT] {
        let place = Place::new();
        let enclave = Enclave::start(&place, |_| async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            support::sealed(Pieces::whole("answer"))
        });
        let _enclave = enclave.await;
        let (mut child, at, _log) = start(&mut program(&place)).await;
        let asked = tokio::spawn(async move { read(h1(at, post(at, Pieces::whole("q"))).await.unwrap()).await });
        tokio::time::sleep(Duration::from_millis(200)).await;
        signal(&child, stop);
        assert_eq!(asked.await.unwrap().unwrap(), b"answer");
        let status = timeout(Duration::from_secs(5), child.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(0));
    }
}

#[tokio::test]
async fn no_log_has_a_byte_of_a_body_or_a_credential() {
    let place = Place::new();
    let _enclave = Enclave::echo(&place).await;
    let mut command = program(&place);
    command.envs([
        ("AWS_ACCESS_KEY_ID", "AKIDMARKER"),
        ("AWS_SECRET_ACCESS_KEY", "secret-marker"),
        ("AWS_SESSION_TOKEN", "token-marker"),
    ]);
    let (mut child, at, log) = start(&mut command).await;
    let body = "body-marker ".repeat(1000);
    assert_eq!(read(h1(at, post(at, Pieces::whole(body.clone()))).await.unwrap()).await.unwrap(), body.as_bytes());
    let nonce = "feedc0de".repeat(4);
    assert_eq!(get(at, &format!("/v1/attestation?nonce={nonce}")).await.0, 200);
    let mut stream = dial_parent(&place.door().with_port(8000)).await.unwrap();
    stream.write_all(b"GET /v1/credentials HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    for marker in ["AKIDMARKER", "secret-marker", "token-marker", "Expiration"] {
        assert!(answer.contains(marker), "the default chain gave {answer}");
    }
    signal(&child, Signal::SIGTERM);
    child.wait().await.unwrap();
    let log = log.await.unwrap();
    assert!(log.contains(r#""request_bytes":12000"#) && log.contains(r#""outcome":"answered""#), "{log}");
    for marker in ["marker", "MARKER", "feedc0de"] {
        assert!(!log.contains(marker), "{log}");
    }
}

#[tokio::test]
async fn systemd_is_told_when_it_is_ready_and_when_it_stops() {
    let place = Place::new();
    let name = place.folder.path().join("notify");
    let socket = UnixDatagram::bind(&name).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (mut child, _, _log) = start(program(&place).env("NOTIFY_SOCKET", &name)).await;
    let mut read = [0; 64];
    let length = socket.recv(&mut read).unwrap();
    assert_eq!(&read[..length], b"READY=1");
    signal(&child, Signal::SIGTERM);
    let length = socket.recv(&mut read).unwrap();
    assert_eq!(&read[..length], b"STOPPING=1");
    child.wait().await.unwrap();
}
