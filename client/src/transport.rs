//! HTTP to the parent: one attempt, every wait with a deadline, every length with a bound.
//!
//! Nothing is ever sent twice: a sealed request that was lost may still have been run, and the enclave refuses a replay.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use http::uri::Scheme;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::builderstates::WantsSchemes;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::{Instant, timeout};

/// The way to one parent.
#[derive(Clone, Debug)]
pub struct Transport {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
    deadlines: Deadlines,
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// For the connection.
    pub connect: Duration,
    /// From sending the request to the head of the answer.
    pub head: Duration,
    /// Between two pieces of the answer.
    pub idle: Duration,
    /// For everything together.
    pub total: Duration,
}

/// The body of an answer, piece by piece.
#[derive(Debug)]
pub struct Body {
    incoming: Incoming,
    idle: Duration,
    end: Instant,
}

impl Transport {
    /// Reads the parent's URL. `http2` speaks HTTP/2 without negotiation on `http://` (h2c).
    ///
    /// # Errors
    /// When the URL is not `http://HOST[:PORT][/PREFIX]` or `https://...`, or the platform has no TLS roots for `https`.
    pub fn new(url: &str, deadlines: Deadlines, http2: bool) -> Result<Self, TransportError> {
        let wrong = |what: &'static str| TransportError::Url { url: printable(url, 200), what };
        let uri: Uri = url.parse().map_err(|_| wrong("is not a URL"))?;
        let secure = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err(wrong("does not begin with http:// or https://")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("names no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("holds a user name: the parent knows no users"));
        }
        if uri.query().is_some() {
            return Err(wrong("has a query"));
        }
        let scheme = if secure { "https" } else { "http" };
        let base = format!("{scheme}://{authority}{}", uri.path().trim_end_matches('/'));

        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(deadlines.connect));
        let connector = tls(secure)?.https_or_http().enable_all_versions().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .retry_canceled_requests(false)
            .http1_max_buf_size(MAX_HEAD)
            .http2_max_header_list_size(MAX_HEAD as u32)
            .http2_only(http2)
            .build(connector);
        Ok(Self { client, base, deadlines })
    }

    /// `POST /v1/sealed` (docs/PROTOCOL.md section 2): sends a sealed message and returns the body of the sealed answer.
    ///
    /// # Errors
    /// When the parent cannot be reached, is too slow, or answers with anything but 200 and the media type of a message.
    pub async fn post_sealed(&self, message: Bytes) -> Result<Body, TransportError> {
        let end = self.deadlines.end();
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}/v1/sealed", self.base))
            .header(CONTENT_TYPE, SEALED)
            .header(ACCEPT, SEALED)
            .body(Full::new(message))
            .map_err(|_| TransportError::Protocol("the request could not be written".to_owned()))?;
        let response = self.send(request, end).await?;
        let media_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if media_type != SEALED {
            return Err(TransportError::MediaType(printable(media_type, 80)));
        }
        Ok(Body { incoming: response.into_body(), idle: self.deadlines.idle, end })
    }

    /// `GET /v1/attestation?nonce=HEX`: the body as it came, at most [`MAX_EVIDENCE`] bytes.
    ///
    /// # Errors
    /// As for [`post_sealed`](Self::post_sealed).
    pub async fn attestation(&self, nonce: &[u8]) -> Result<Vec<u8>, TransportError> {
        let end = self.deadlines.end();
        let request = Request::builder()
            .uri(format!("{}/v1/attestation?nonce={}", self.base, hex::encode(nonce)))
            .header(ACCEPT, "application/json")
            .body(Full::default())
            .map_err(|_| TransportError::Protocol("the request could not be written".to_owned()))?;
        let response = self.send(request, end).await?;
        let body = Body { incoming: response.into_body(), idle: self.deadlines.idle, end };
        body.collect(MAX_EVIDENCE).await
    }

    async fn send(&self, request: Request<Full<Bytes>>, end: Instant) -> Result<Response<Incoming>, TransportError> {
        let wait = self.deadlines.head.min(end.saturating_duration_since(Instant::now()));
        let response = match timeout(wait, self.client.request(request)).await {
            Err(_) => return Err(TransportError::TimedOut { what: "an answer", after: wait }),
            Ok(Err(error)) if error.is_connect() => {
                return Err(TransportError::Connect { base: self.base.clone(), detail: chain(&error) });
            }
            Ok(Err(error)) => return Err(TransportError::Protocol(chain(&error))),
            Ok(Ok(response)) => response,
        };
        if response.status() == StatusCode::OK { Ok(response) } else { Err(self.refused(response, end).await) }
    }

    /// Reads an outer refusal (docs/PROTOCOL.md section 8). It is the parent's word: shown, never believed.
    async fn refused(&self, response: Response<Incoming>, end: Instant) -> TransportError {
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse::<u32>().ok());
        let body =
            Body { incoming: response.into_body(), idle: REFUSAL_WAIT, end: end.min(Instant::now() + REFUSAL_WAIT) };
        let code = body.collect(MAX_REFUSAL).await.ok().and_then(|body| refusal_code(&body));
        TransportError::Refused { status, code, retry_after }
    }
}

impl Body {
    /// The next bytes, or `None` at the end that HTTP reports (which is no evidence that the answer ends here).
    ///
    /// # Errors
    /// When a deadline passes or the connection breaks.
    pub async fn next(&mut self) -> Result<Option<Bytes>, TransportError> {
        loop {
            let wait = self.idle.min(self.end.saturating_duration_since(Instant::now()));
            let frame = match timeout(wait, self.incoming.frame()).await {
                Err(_) => return Err(TransportError::TimedOut { what: "the rest of the answer", after: wait }),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(TransportError::Cut(chain(&error))),
                Ok(Some(Ok(frame))) => frame,
            };
            // Trailers say nothing that we would believe.
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    async fn collect(mut self, limit: usize) -> Result<Vec<u8>, TransportError> {
        let mut all = Vec::new();
        while let Some(bytes) = self.next().await? {
            if all.len().saturating_add(bytes.len()) > limit {
                return Err(TransportError::TooLarge { limit });
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            // The enclave's own limit on a request is 120 s (docs/PROTOCOL.md section 9).
            head: Duration::from_secs(150),
            idle: Duration::from_secs(60),
            total: Duration::from_secs(600),
        }
    }
}

impl Deadlines {
    fn end(&self) -> Instant {
        let now = Instant::now();
        now.checked_add(self.total).unwrap_or_else(|| now + FAR)
    }

    /// All deadlines cut to `total`.
    #[must_use]
    pub fn within(total: Duration) -> Self {
        let usual = Self::default();
        Self { connect: usual.connect.min(total), head: usual.head.min(total), idle: usual.idle.min(total), total }
    }
}

/// Why there is no answer. All of it is said by the network or by the parent, and proves nothing about the enclave.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The URL cannot be used.
    #[error("the URL {url} {what}; write http://HOST:PORT or https://HOST")]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// No TLS roots for `https`.
    #[error("TLS cannot be used: {0}; install the platform's CA certificates, or name a file of them in SSL_CERT_FILE")]
    Tls(String),
    /// Nothing answers there.
    #[error("{base} cannot be reached ({detail}); check the address, and that subrosa-parent runs")]
    Connect {
        /// The parent's URL.
        base: String,
        /// What the system said.
        detail: String,
    },
    /// A deadline passed.
    #[error("waited {} s for {what}; the enclave may be busy, or someone delays it", after.as_secs())]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The connection ended in the middle.
    #[error("the connection broke in the middle of the answer ({0})")]
    Cut(String),
    /// What came is not HTTP, or more of it than the limits.
    #[error("what came is not a proper HTTP answer ({0})")]
    Protocol(String),
    /// A refusal by the parent, or one that the parent passes on.
    #[error(
        "refused with HTTP {status}{}{}; this is the parent's word, no evidence about the enclave",
        code.as_deref().map(|code| format!(", `{code}`{}", advice(code))).unwrap_or_default(),
        retry_after.map(|seconds| format!(" (it says: try again in {seconds} s)")).unwrap_or_default()
    )]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The refusal code, if it looks like one.
        code: Option<String>,
        /// Seconds, if the parent named them.
        retry_after: Option<u32>,
    },
    /// 200, but not a sealed message.
    #[error("the answer has the media type `{0}`, not that of a sealed message; is this URL a subrosa-parent?")]
    MediaType(String),
    /// More bytes than the limit.
    #[error("the answer is longer than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
}

impl TransportError {
    /// Whether somebody refused, rather than nobody having answered properly.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}

/// The media type of a sealed message (docs/PROTOCOL.md section 2).
pub const SEALED: &str = "application/vnd.aws-encryption-sdk";

/// A document (16 KiB) and a keyset in base64, with room.
pub const MAX_EVIDENCE: usize = 128 * 1024;

/// What a code means for the reader (docs/PROTOCOL.md section 8).
fn advice(code: &str) -> &'static str {
    match code {
        "cannot-open" => {
            " (the request could not be opened: check the key ARN, its key policy, the tenant, and that the image is the one the policy names)"
        }
        "too-large" => " (the request is longer than the service takes)",
        "busy" => " (too many requests at once)",
        "not-ready" => " (the enclave does not serve yet, or is shutting down)",
        "enclave-unavailable" => " (no enclave answers behind this parent)",
        "timeout" => " (the service gave up waiting)",
        "not-found" => " (no such path: is the URL right?)",
        _ => "",
    }
}

fn refusal_code(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Refusal {
        refusal: String,
    }
    let Refusal { refusal } = serde_json::from_slice(body).ok()?;
    let plain =
        (1..=40).contains(&refusal.len()) && refusal.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    plain.then_some(refusal)
}

/// TLS only hides the traffic's shape from the network between; without `https` no root is read or consulted.
fn tls(secure: bool) -> Result<HttpsConnectorBuilder<WantsSchemes>, TransportError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    if secure {
        return HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(provider)
            .map_err(|error| TransportError::Tls(error.to_string()));
    }
    let configuration = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TransportError::Tls(error.to_string()))?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    Ok(HttpsConnectorBuilder::new().with_tls_config(configuration))
}

/// An error with what caused it, on one line and fit for a terminal.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    printable(&text, 300)
}

/// Text from outside, cut and without anything that could steer a terminal.
fn printable(text: &str, limit: usize) -> String {
    text.chars().take(limit).map(|character| if character.is_control() { '?' } else { character }).collect()
}

/// Head of an outer answer: far above what parent and proxies send.
const MAX_HEAD: usize = 64 * 1024;
const MAX_REFUSAL: usize = 4096;
/// In place of a duration that no clock can add.
const FAR: Duration = Duration::from_secs(30 * 365 * 86_400);
const REFUSAL_WAIT: Duration = Duration::from_secs(5);
