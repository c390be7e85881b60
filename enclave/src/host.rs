//! What the enclave asks of its parent on port 8000, over HTTP/1.1: configuration, credentials, model packs.
//!
//! docs/PROTOCOL.md, section 3. Every answer is untrusted, bounded and has a deadline. One connection for one request:
//! they are few.

use std::time::Duration;

use address::{Address, DialError};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use zeroize::Zeroizing;

/// The parent's host services.
#[derive(Clone, Debug)]
pub struct HostServices {
    address: Address,
}

impl HostServices {
    /// The services at this address.
    pub fn new(address: Address) -> Self {
        Self { address }
    }

    /// `GET PATH`: the whole body, if it has at most `bytes_max` bytes. The buffer is wiped when it is dropped.
    pub async fn get(&self, path: &str, bytes_max: usize) -> Result<Zeroizing<Vec<u8>>, HostError> {
        let whole = async {
            let mut download = self.open(path, 0).await?;
            let mut body = Zeroizing::new(Vec::new());
            while let Some(piece) = download.next().await? {
                if body.len() + piece.len() > bytes_max {
                    return Err(HostError::TooLarge { limit: bytes_max });
                }
                body.extend_from_slice(&piece);
            }
            Ok(body)
        };
        timeout(ANSWER_DEADLINE, whole).await.map_err(|_| HostError::Deadline)?
    }

    /// `GET PATH` with `Range: bytes=OFFSET-` when the offset is not 0: a body of any length, piece by piece.
    pub async fn open(&self, path: &str, offset: u64) -> Result<Download, HostError> {
        let exchange = async {
            let stream = address::dial_parent(&self.address).await?;
            let (mut sender, connection) = http1::Builder::new()
                .max_buf_size(READ_BUFFER_BYTES)
                .max_headers(HEADERS_MAX)
                .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
                .await?;
            let connection = tokio::spawn(connection);
            let mut request = Request::get(path).header(header::HOST, "parent");
            if offset > 0 {
                request = request.header(header::RANGE, format!("bytes={offset}-"));
            }
            let request = request.body(Empty::new()).map_err(|_| HostError::Path)?;
            let (head, body) = sender.send_request(request).await?.into_parts();
            Ok::<_, HostError>((Download { body, left: None, sender, connection: AbortOnDrop(connection) }, head))
        };
        let (mut download, head) = timeout(ANSWER_DEADLINE, exchange).await.map_err(|_| HostError::Deadline)??;
        let expected = if offset > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        if head.status != expected {
            return Err(HostError::Status { status: head.status.as_u16() });
        }
        // RFC 9110, section 14.4: what begins elsewhere than asked would be appended in the wrong place.
        if offset > 0 {
            let range = head.headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
            if !range.is_some_and(|range| range.starts_with(&format!("bytes {offset}-"))) {
                return Err(HostError::Range);
            }
        }
        download.left = head
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok())
            .and_then(|length| length.parse().ok());
        Ok(download)
    }
}

/// The body of an answer.
pub struct Download {
    body: Incoming,
    left: Option<u64>,
    #[expect(
        dead_code,
        reason = "while the sender lives, the connection does not close itself before the body is read"
    )]
    sender: http1::SendRequest<Empty<Bytes>>,
    #[expect(dead_code, reason = "ends the connection's task with the download")]
    connection: AbortOnDrop,
}

impl Download {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, HostError> {
        loop {
            match timeout(PIECE_DEADLINE, self.body.frame()).await.map_err(|_| HostError::Deadline)? {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(piece) = frame?.into_data()
                        && !piece.is_empty()
                    {
                        self.left = self.left.map(|left| left.saturating_sub(piece.len() as u64));
                        return Ok(Some(piece));
                    }
                }
            }
        }
    }

    /// Bytes that the parent still promises, if it said how many.
    pub fn promised(&self) -> Option<u64> {
        self.left
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<Result<(), hyper::Error>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why the parent gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The parent cannot be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection broke, or what came is not HTTP/1.1.
    #[error("the parent's answer broke off: {0}")]
    Http(#[from] hyper::Error),
    /// Another status than the expected one.
    #[error("the parent answered with status {status}")]
    Status {
        /// The status.
        status: u16,
    },
    /// Another range than the one asked for.
    #[error("the parent answered with another range than the one asked for")]
    Range,
    /// More bytes than the protocol allows.
    #[error("the parent's answer is larger than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// No answer in time.
    #[error("the parent did not answer in time")]
    Deadline,
    /// A path that is no path.
    #[error("the path cannot be asked for")]
    Path,
}

/// From the dial to the last byte of a small answer; for a pack, to its head.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// Between two pieces of a pack.
const PIECE_DEADLINE: Duration = Duration::from_secs(15);
const READ_BUFFER_BYTES: usize = 64 * 1024;
const HEADERS_MAX: usize = 32;

#[cfg(test)]
pub(crate) mod tests {
    use bytes::BytesMut;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    /// A parent that answers each connection with the next of these bytes, whatever it is asked.
    pub(crate) fn parent(answers: Vec<Vec<u8>>) -> (tempfile::TempDir, Address) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("door");
        let listener = UnixListener::bind(format!("{}_8000", path.display())).unwrap();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = BytesMut::new();
                while !request.ends_with(b"\r\n\r\n") {
                    stream.read_buf(&mut request).await.unwrap();
                }
                stream.write_all(&answer).await.unwrap();
            }
        });
        let address = format!("unix:{}:8000", path.display()).parse().unwrap();
        (folder, address)
    }

    pub(crate) fn answer(body: &str) -> Vec<u8> {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[tokio::test]
    async fn a_body_within_its_limit_is_read() {
        let (_folder, address) = parent(vec![answer("hello")]);
        assert_eq!(HostServices::new(address).get("/x", 5).await.unwrap().as_slice(), b"hello");
    }

    #[tokio::test]
    async fn a_body_past_its_limit_is_refused() {
        let (_folder, address) = parent(vec![answer("hello!")]);
        let error = HostServices::new(address).get("/x", 5).await.unwrap_err();
        assert!(matches!(error, HostError::TooLarge { limit: 5 }));
    }

    #[tokio::test]
    async fn a_body_cut_short_is_an_error_and_not_a_shorter_body() {
        let (_folder, address) = parent(vec![b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhell".to_vec()]);
        assert!(matches!(HostServices::new(address).get("/x", 50).await, Err(HostError::Http(_))));
    }

    #[tokio::test]
    async fn a_range_that_begins_elsewhere_is_refused() {
        let wrong = b"HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-4/5\r\ncontent-length: 5\r\n\r\nhello";
        let (_folder, address) = parent(vec![wrong.to_vec(), answer("hello")]);
        let host = HostServices::new(address);
        assert!(matches!(host.open("/x", 3).await, Err(HostError::Range)));
        assert!(matches!(host.open("/x", 3).await, Err(HostError::Status { status: 200 })));
    }

    #[tokio::test]
    async fn a_parent_that_is_not_there_is_an_error() {
        let host = HostServices::new("unix:/nonexistent/door:8000".parse().unwrap());
        assert!(matches!(host.get("/x", 5).await, Err(HostError::Dial(_))));
    }
}
