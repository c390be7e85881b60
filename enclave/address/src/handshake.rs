//! The handshake of hybrid vsock: `CONNECT PORT\n`, answered by `OK NUMBER\n`.
//!
//! `docs/PROTOCOL.md`, section 1: "read byte by byte to `\n` (at most 32 bytes, within 5 s)". Byte by byte, because
//! whatever follows the newline belongs to the connection.

use std::{io, time::Duration};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::decimal;

/// Longest line of the handshake, its newline included.
pub const MAX_LINE: usize = 32;
/// Time for the whole handshake.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// Why the far side of a hybrid socket is not taken for a monitor (or its client).
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The stream failed.
    #[error("the hybrid vsock handshake failed: {0}")]
    Io(#[from] io::Error),
    /// It ended before a newline came: a monitor does this where nothing listens on the port.
    #[error("the peer closed the connection in the handshake: nothing listens on that port")]
    Closed,
    /// No newline within [`MAX_LINE`] bytes.
    #[error("expected a handshake line of at most {MAX_LINE} bytes")]
    TooLong,
    /// Not `OK NUMBER`, or not `CONNECT PORT`.
    #[error("expected `OK NUMBER` or `CONNECT PORT`, found another line")]
    Line,
    /// `CONNECT` for a port that is not served here.
    #[error("nothing is served on port {port}")]
    OtherPort {
        /// The port that was asked for.
        port: u32,
    },
    /// [`HANDSHAKE_DEADLINE`] passed.
    #[error("no handshake within the deadline")]
    Deadline,
}

/// Asks the monitor for `port`. Bounded by the caller's deadline.
pub(crate) async fn ask<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, port: u32) -> Result<(), HandshakeError> {
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let line = read_line(stream).await?;
    // Firecracker, docs/vsock.md: "OK [assigned_hostside_port]".
    line.strip_prefix("OK ").and_then(decimal).ok_or(HandshakeError::Line).map(drop)
}

/// Answers, as a monitor, a `CONNECT` for `port` with `OK assigned`, and nothing to any other.
pub(crate) async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    port: u32,
    assigned: u32,
) -> Result<(), HandshakeError> {
    let line = read_line(stream).await?;
    let asked = line.strip_prefix("CONNECT ").and_then(decimal).ok_or(HandshakeError::Line)?;
    if asked != port {
        return Err(HandshakeError::OtherPort { port: asked });
    }
    stream.write_all(format!("OK {assigned}\n").as_bytes()).await?;
    Ok(())
}

/// A line without its newline.
async fn read_line<S: AsyncRead + Unpin>(stream: &mut S) -> Result<String, HandshakeError> {
    let mut line = String::with_capacity(MAX_LINE);
    for _ in 0..MAX_LINE {
        let mut byte = [0_u8; 1];
        if stream.read(&mut byte).await? == 0 {
            return Err(HandshakeError::Closed);
        }
        let [byte] = byte;
        match byte {
            b'\n' => return Ok(line),
            b' '..=b'~' => line.push(char::from(byte)),
            _ => return Err(HandshakeError::Line),
        }
    }
    Err(HandshakeError::TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::duplex;

    async fn ask_a_peer_that_says(said: &[u8]) -> Result<Vec<u8>, HandshakeError> {
        let (mut near, mut far) = duplex(4096);
        far.write_all(said).await.unwrap();
        far.shutdown().await.unwrap();
        ask(&mut near, 5000).await?;
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        let mut asked = vec![0; 13];
        far.read_exact(&mut asked).await.unwrap();
        assert_eq!(asked, b"CONNECT 5000\n");
        Ok(rest)
    }

    #[tokio::test]
    async fn bytes_after_the_newline_belong_to_the_connection() {
        assert_eq!(ask_a_peer_that_says(b"OK 1073741824\nOK 7\n").await.unwrap(), b"OK 7\n");
    }

    #[tokio::test]
    async fn an_answer_without_newline_is_refused() {
        assert!(matches!(ask_a_peer_that_says(b"OK 12").await, Err(HandshakeError::Closed)));
        assert!(matches!(ask_a_peer_that_says(b"").await, Err(HandshakeError::Closed)));
    }

    #[tokio::test]
    async fn an_answer_longer_than_the_bound_is_refused_without_reading_on() {
        let mut said = b"OK ".to_vec();
        said.resize(4000, b'1');
        assert!(matches!(ask_a_peer_that_says(&said).await, Err(HandshakeError::TooLong)));
    }

    #[tokio::test]
    async fn anything_but_ok_and_a_number_is_refused() {
        for said in ["NO 12\n", "OK\n", "OK \n", "OK  1\n", "OK -1\n", "OK 1 \n", "OK 99999999999\n", "ok 1\n", "\n"] {
            assert!(matches!(ask_a_peer_that_says(said.as_bytes()).await, Err(HandshakeError::Line)), "{said:?}");
        }
        assert!(matches!(ask_a_peer_that_says(b"OK \xff\n").await, Err(HandshakeError::Line)));
    }

    #[tokio::test]
    async fn a_monitor_serves_its_own_port_and_no_other() {
        for (said, served) in [("CONNECT 5000\n", true), ("CONNECT 22\n", false), ("CONNECT  5000\n", false)] {
            let (mut near, mut far) = duplex(64);
            far.write_all(said.as_bytes()).await.unwrap();
            assert_eq!(answer(&mut near, 5000, 9).await.is_ok(), served, "{said:?}");
            drop(near);
            let mut answered = String::new();
            far.read_to_string(&mut answered).await.unwrap();
            assert_eq!(answered, if served { "OK 9\n" } else { "" });
        }
    }

    proptest! {
        #[test]
        fn no_line_of_a_peer_panics_and_only_the_two_words_pass(said in proptest::collection::vec(any::<u8>(), 0..64)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let passed = runtime.block_on(ask_a_peer_that_says(&said)).is_ok();
            prop_assert!(!passed || said.starts_with(b"OK "));
        }
    }
}
