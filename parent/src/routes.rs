//! What the front door answers: `docs/PROTOCOL.md`, section 2.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use http_body_util::BodyExt as _;
use hyper::{
    Method, Request, Response, StatusCode, Uri, Version,
    body::{Body as _, Incoming},
    header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderName, HeaderValue, RETRY_AFTER},
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    answer::carry,
    connection::Busy,
    exchange::{Exchange, RequestIds},
    link::{Link, LinkError},
    metrics::{Metrics, Route},
    readiness::Readiness,
    refusal::Refusal,
    response::{Body, full},
    settings::{Deadlines, Limits, Settings},
    upload::{Outgoing, Upload, UploadError, UploadWatch, linger},
};

/// All that a request of a client may need.
pub(crate) struct Routes {
    link: Link,
    readiness: Readiness,
    metrics: Arc<Metrics>,
    permits: Arc<Semaphore>,
    ids: RequestIds,
    limits: Limits,
    deadlines: Deadlines,
    leaving: CancellationToken,
}

impl Routes {
    /// `leaving` is cancelled when the parent was told to stop.
    pub(crate) fn new(settings: &Settings, metrics: Arc<Metrics>, leaving: CancellationToken) -> Self {
        Self {
            link: Link::new(settings, Arc::clone(&metrics)),
            readiness: Readiness::new(settings.deadlines.status),
            metrics,
            permits: Arc::new(Semaphore::new(settings.limits.requests)),
            ids: RequestIds::new(),
            limits: settings.limits,
            deadlines: settings.deadlines,
            leaving,
        }
    }

    /// Answers one request.
    pub(crate) async fn answer(&self, request: Request<Incoming>, busy: Busy) -> Response<Body> {
        let (head, body) = request.into_parts();
        match (&head.method, head.uri.path()) {
            (&Method::POST, "/v1/sealed") => self.sealed(head, body, busy).await,
            (&Method::GET, "/v1/attestation") => self.attestation(head.version, &head.uri, busy).await,
            (&Method::GET | &Method::HEAD, "/healthz") => full(StatusCode::OK, TEXT, "ok\n"),
            (&Method::GET | &Method::HEAD, "/readyz") => self.ready().await,
            (&Method::GET | &Method::HEAD, "/metrics") => full(StatusCode::OK, PROMETHEUS, self.metrics.text()),
            _ => Refusal::NotFound.response(),
        }
    }

    async fn sealed(&self, head: hyper::http::request::Parts, body: Incoming, busy: Busy) -> Response<Body> {
        let exchange = Exchange::begin(self.ids.next(), Route::Sealed, &self.metrics, busy);
        // A client that waits for "100 Continue" has sent nothing that would have to be read away.
        let lingering = head.version < Version::HTTP_2 && !head.headers.contains_key(EXPECT);
        if let Err(refusal) = self.admissible(&head, &body) {
            if lingering {
                linger(body);
            }
            return refuse(exchange, refusal);
        }
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static("http://enclave/v1/sealed");
        if let Some(value) = head.headers.get(CONTENT_TYPE) {
            request.headers_mut().insert(CONTENT_TYPE, value.clone());
        }
        // The number, never the client's way to write it: HTTP/1.1 takes any count of leading zeros, h2 no more than 19
        // digits, and what it refuses it counts against the link.
        if let Some(length) = body.size_hint().exact() {
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        let (limit, patience) = (self.limits.body_bytes, self.deadlines.upload);
        let (upload, watch) = Upload::new(body, head.version, lingering, limit, patience, exchange.request_bytes());
        self.relay(request.map(|()| Outgoing::Upload(upload)), &watch, exchange).await
    }

    fn admissible(&self, head: &hyper::http::request::Parts, body: &Incoming) -> Result<(), Refusal> {
        // HTTP/1.0 ends a streamed answer by closing: a cut one would look whole.
        if head.version < Version::HTTP_11 || head.uri.query().is_some() {
            return Err(Refusal::BadRequest);
        }
        let content_type = head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        if !content_type.is_some_and(|found| found.eq_ignore_ascii_case(SEALED)) {
            return Err(Refusal::BadRequest);
        }
        let length = body.size_hint();
        if length.exact() == Some(0) {
            return Err(Refusal::BadRequest);
        }
        if length.lower() > self.limits.body_bytes { Err(Refusal::TooLarge) } else { Ok(()) }
    }

    async fn attestation(&self, version: Version, uri: &Uri, busy: Busy) -> Response<Body> {
        let exchange = Exchange::begin(self.ids.next(), Route::Attestation, &self.metrics, busy);
        let uri = match nonce(uri.query()) {
            Some(nonce) if version >= Version::HTTP_11 => {
                format!("http://enclave/v1/attestation?nonce={nonce}").parse().map_err(|_| Refusal::BadRequest)
            }
            _ => Err(Refusal::BadRequest),
        };
        match uri {
            Ok(uri) => {
                let mut request = Request::new(Outgoing::Empty);
                *request.uri_mut() = uri;
                self.relay(request, &UploadWatch::none(), exchange).await
            }
            Err(refusal) => refuse(exchange, refusal),
        }
    }

    /// Sends the request once and passes the answer on as it comes.
    async fn relay(&self, request: Request<Outgoing>, upload: &UploadWatch, mut exchange: Exchange) -> Response<Body> {
        match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => exchange.hold(permit),
            Err(_) => return refuse(exchange, Refusal::Busy),
        }
        let answer = tokio::select! {
            biased;
            answer = self.link.send(request) => answer.map_err(|error| match (upload.failure(), error) {
                (Some(failure), _) => blame(failure),
                (None, LinkError::Absent) => Refusal::EnclaveAbsent,
                (None, LinkError::Lost) => Refusal::EnclaveLost,
            }),
            failure = upload.failed() => Err(blame(failure)),
            () = upload.enclave_silent_for(self.deadlines.first_byte) => Err(Refusal::EnclaveSlow),
        };
        let (head, body) = match answer {
            Ok(answer) => answer.into_parts(),
            Err(refusal) => return refuse(exchange, refusal),
        };
        exchange.answering(head.status.as_u16());
        let id = exchange.id().to_string();
        let mut response = Response::new(carry(body, exchange, &self.deadlines).boxed_unsync());
        *response.status_mut() = head.status;
        for name in PASSED_ON {
            if let Some(value) = head.headers.get(&name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
        if let Ok(id) = HeaderValue::try_from(id) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        response
    }

    async fn ready(&self) -> Response<Body> {
        if self.leaving.is_cancelled() {
            return Refusal::NotReady.response();
        }
        match self.readiness.check(&self.link).await {
            Ok(()) => full(StatusCode::OK, TEXT, "ready\n"),
            Err(refusal) => refusal.response(),
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn deadlines(&self) -> &Deadlines {
        &self.deadlines
    }

    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// A connection beyond the limit is told so, without being served.
    pub(crate) fn turn_away(&self) -> String {
        self.metrics.connections_refused.fetch_add(1, Relaxed);
        Refusal::Busy.bytes()
    }
}

fn refuse(exchange: Exchange, refusal: Refusal) -> Response<Body> {
    let mut response = refusal.response();
    if let Ok(id) = HeaderValue::try_from(exchange.id().to_string()) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    exchange.refused(refusal);
    response
}

const fn blame(failure: UploadError) -> Refusal {
    match failure {
        UploadError::TooLarge => Refusal::TooLarge,
        UploadError::Slow => Refusal::ClientSlow,
        // Nobody reads this; the client is gone.
        UploadError::Gone => Refusal::BadRequest,
    }
}

/// `nonce=HEX` of 16 to 64 bytes, and nothing else.
fn nonce(query: Option<&str>) -> Option<&str> {
    let hex = query?.strip_prefix("nonce=")?;
    let whole = hex.len().is_multiple_of(2) && (32..=128).contains(&hex.len());
    (whole && hex.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(hex)
}

const SEALED: &[u8] = b"application/vnd.aws-encryption-sdk";
const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The headers of the enclave that concern a client.
const PASSED_ON: [HeaderName; 3] = [CONTENT_TYPE, CONTENT_LENGTH, RETRY_AFTER];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_16_to_64_bytes_of_hex_and_nothing_else() {
        for length in [32, 34, 128] {
            assert!(nonce(Some(&format!("nonce={}", "aF".repeat(length / 2)))).is_some());
        }
        let digits = "0".repeat(32);
        for query in [
            String::new(),
            digits.clone(),
            "nonce=".to_owned(),
            format!("nonce={}", &digits[1..]),
            format!("nonce={digits}0"),
            format!("nonce={digits}&x=1"),
            format!("x=1&nonce={digits}"),
            format!("nonce={}g0", &digits[2..]),
            format!("nonce={}", "0".repeat(130)),
        ] {
            assert_eq!(nonce(Some(&query)), None, "{query:?}");
        }
        assert_eq!(nonce(None), None);
    }
}
