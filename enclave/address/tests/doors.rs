//! Both sides of the door over real Unix sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::{fs, io::ErrorKind, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use address::{Address, DialError, HandshakeError, ListenError, Stream, dial_enclave, dial_enclave_within};
use address::{dial_parent, listen_for_enclave, listen_for_parent};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    time::{Instant, sleep, timeout},
};

fn at(folder: &Path, port: u32) -> Address {
    Address::Unix { path: folder.join("enclave.sock"), port }
}

async fn passes(mut one: Stream, mut other: Stream) {
    one.write_all(b"hello").await.unwrap();
    let mut read = [0; 5];
    other.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"hello");
}

#[tokio::test]
async fn the_parent_reaches_the_enclave_through_its_monitor() {
    let folder = tempfile::tempdir().unwrap();
    let mut listener = listen_for_parent(&at(folder.path(), 5000)).await.unwrap();
    let (dialled, accepted) =
        tokio::join!(async { dial_enclave(&at(folder.path(), 5000)).await.unwrap() }, listener.accept());
    passes(dialled, accepted.unwrap()).await;
}

#[tokio::test]
async fn the_enclave_reaches_the_parent_at_path_and_port() {
    let folder = tempfile::tempdir().unwrap();
    let mut listener = listen_for_enclave(&at(folder.path(), 8000)).await.unwrap();
    assert!(folder.path().join("enclave.sock_8000").exists());
    let dialled = dial_parent(&at(folder.path(), 8000)).await.unwrap();
    passes(dialled, listener.accept().await.unwrap()).await;
}

#[tokio::test]
async fn the_monitor_refuses_other_ports() {
    let folder = tempfile::tempdir().unwrap();
    let mut listener = listen_for_parent(&at(folder.path(), 5000)).await.unwrap();
    let accepting = tokio::spawn(async move { listener.accept().await });
    let error = dial_enclave(&at(folder.path(), 22)).await.unwrap_err();
    assert!(matches!(error, DialError::Handshake { error: HandshakeError::Closed, .. }), "{error}");
    accepting.abort();
}

#[tokio::test]
async fn silent_peers_of_the_monitor_do_not_hold_up_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut listener = listen_for_parent(&at(folder.path(), 5000)).await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(UnixStream::connect(folder.path().join("enclave.sock")).await.unwrap());
    }
    let started = Instant::now();
    let (dialled, accepted) =
        tokio::join!(async { dial_enclave(&at(folder.path(), 5000)).await.unwrap() }, listener.accept());
    assert!(started.elapsed() < Duration::from_secs(2));
    passes(dialled, accepted.unwrap()).await;
}

#[tokio::test]
async fn a_monitor_that_never_answers_costs_the_deadline_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("enclave.sock")).unwrap();
    let slow = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // One byte at a time keeps the connection lively; the deadline is for the whole handshake all the same.
        for byte in b"OK 12345678901234" {
            sleep(Duration::from_millis(50)).await;
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
        }
        sleep(Duration::from_secs(60)).await;
    });
    let deadline = Duration::from_millis(200);
    let started = Instant::now();
    let error = dial_enclave_within(&at(folder.path(), 5000), deadline).await.unwrap_err();
    assert!(matches!(error, DialError::Deadline { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(2));
    slow.abort();
}

#[tokio::test]
async fn a_socket_is_for_its_owner_alone_and_goes_with_its_listener() {
    let folder = tempfile::tempdir().unwrap();
    for monitor in [false, true] {
        let address = at(folder.path(), 8000);
        let (listener, path) = if monitor {
            (listen_for_parent(&address).await.unwrap(), folder.path().join("enclave.sock"))
        } else {
            (listen_for_enclave(&address).await.unwrap(), folder.path().join("enclave.sock_8000"))
        };
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(listener);
        assert!(!path.exists());
    }
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    // Dropping a plain listener leaves its file, as a crash does.
    drop(UnixListener::bind(folder.path().join("enclave.sock_8000")).unwrap());
    let mut listener = listen_for_enclave(&at(folder.path(), 8000)).await.unwrap();
    let dialled = dial_parent(&at(folder.path(), 8000)).await.unwrap();
    passes(dialled, listener.accept().await.unwrap()).await;
}

#[tokio::test]
async fn a_socket_in_use_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let _listener = listen_for_enclave(&at(folder.path(), 8000)).await.unwrap();
    let error = listen_for_enclave(&at(folder.path(), 8000)).await.unwrap_err();
    assert!(matches!(error, ListenError::InUse { .. }), "{error}");
    assert!(dial_parent(&at(folder.path(), 8000)).await.is_ok());
}

#[tokio::test]
async fn what_is_not_a_socket_is_never_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("enclave.sock_8000");
    let target = folder.path().join("target");
    drop(UnixListener::bind(&target).unwrap());
    for link in [false, true] {
        if link {
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink(&target, &path).unwrap();
        } else {
            fs::write(&path, "precious").unwrap();
        }
        let error = listen_for_enclave(&at(folder.path(), 8000)).await.unwrap_err();
        assert!(matches!(error, ListenError::NotASocket { .. }), "{error}");
        assert!(fs::symlink_metadata(&path).is_ok());
    }
    assert!(target.exists());
}

#[tokio::test]
async fn a_cancelled_accept_loses_no_connection() {
    let folder = tempfile::tempdir().unwrap();
    let mut listener = listen_for_parent(&at(folder.path(), 5000)).await.unwrap();
    let mut raw = UnixStream::connect(folder.path().join("enclave.sock")).await.unwrap();
    raw.write_all(b"CONN").await.unwrap();
    assert!(timeout(Duration::from_millis(50), listener.accept()).await.is_err());
    raw.write_all(b"ECT 5000\n").await.unwrap();
    let accepted = timeout(Duration::from_secs(2), listener.accept()).await.unwrap().unwrap();
    let mut ok = [0; 14];
    raw.read_exact(&mut ok).await.unwrap();
    assert_eq!(&ok, b"OK 1073741824\n");
    passes(Stream::Unix(raw), accepted).await;
}

#[tokio::test]
async fn nobody_there_is_an_error_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for error in [
        dial_enclave(&at(folder.path(), 5000)).await.unwrap_err(),
        dial_parent(&at(folder.path(), 8000)).await.unwrap_err(),
    ] {
        assert!(matches!(&error, DialError::Connect { error, .. } if error.kind() == ErrorKind::NotFound), "{error}");
    }
}
