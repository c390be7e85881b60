//! What the parent says itself when it carries nothing: `docs/PROTOCOL.md`, section 8.

use hyper::{
    Response, StatusCode,
    header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};

use crate::response::{Body, full};

/// A refusal of the parent's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// 413: more bytes than the limit.
    TooLarge,
    /// 503: as many requests or connections as allowed are under way.
    Busy,
    /// 503: not serving yet, or draining.
    NotReady,
    /// 503: no enclave answers; the request was not sent.
    EnclaveAbsent,
    /// 502: the enclave was lost after the request had been sent; it may or may not have acted on it.
    EnclaveLost,
    /// 504: the enclave did not answer in time.
    EnclaveSlow,
    /// 408: the client did not send in time.
    ClientSlow,
    /// 404.
    NotFound,
    /// 400: the outer request itself is wrong.
    BadRequest,
}

impl Refusal {
    pub(crate) const fn status(self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Busy | Self::NotReady | Self::EnclaveAbsent => StatusCode::SERVICE_UNAVAILABLE,
            Self::EnclaveLost => StatusCode::BAD_GATEWAY,
            Self::EnclaveSlow => StatusCode::GATEWAY_TIMEOUT,
            Self::ClientSlow => StatusCode::REQUEST_TIMEOUT,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::BadRequest => StatusCode::BAD_REQUEST,
        }
    }

    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::TooLarge => "too-large",
            Self::Busy => "busy",
            Self::NotReady => "not-ready",
            Self::EnclaveAbsent | Self::EnclaveLost => "enclave-unavailable",
            Self::EnclaveSlow | Self::ClientSlow => "timeout",
            Self::NotFound => "not-found",
            Self::BadRequest => "bad-request",
        }
    }

    /// Seconds after which another try may fare better.
    const fn retry_after(self) -> Option<&'static str> {
        match self {
            Self::Busy | Self::NotReady | Self::EnclaveAbsent | Self::EnclaveLost => Some("1"),
            Self::TooLarge | Self::EnclaveSlow | Self::ClientSlow | Self::NotFound | Self::BadRequest => None,
        }
    }

    pub(crate) fn json(self) -> String {
        format!(r#"{{"refusal":"{}"}}"#, self.code())
    }

    pub(crate) fn response(self) -> Response<Body> {
        let mut response = full(self.status(), "application/json", self.json());
        if let Some(seconds) = self.retry_after() {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        response
    }

    /// The same as bytes of HTTP/1.1, for a connection that is not even served.
    pub(crate) fn bytes(self) -> String {
        let (status, json) = (self.status(), self.json());
        let retry = self.retry_after().map(|seconds| format!("{RETRY_AFTER}: {seconds}\r\n")).unwrap_or_default();
        format!(
            "HTTP/1.1 {} {}\r\n{CONTENT_TYPE}: application/json\r\ncontent-length: {}\r\n{retry}connection: close\r\n\r\n{json}",
            status.as_str(),
            status.canonical_reason().unwrap_or_default(),
            json.len(),
        )
    }
}
