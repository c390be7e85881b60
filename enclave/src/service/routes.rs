//! The three paths of the door (docs/PROTOCOL.md, section 2) and the outer refusals (section 8).

use std::sync::Arc;

use attestation::nsm::ClientNonce;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;

use super::{AnswerBody, Service};
use crate::attester::AttesterError;
use crate::log::{self, Event, Refusal};
use crate::request;

/// Answers one outer request.
pub(super) async fn answer(service: Arc<Service>, request: Request<Incoming>) -> Response<AnswerBody> {
    let answered = match (request.method().clone(), request.uri().path()) {
        _ if service.is_draining() => Err(Refusal::NotReady),
        (Method::POST, "/v1/sealed") => sealed(service, request).await,
        (Method::GET, "/v1/attestation") => attestation(&service, request.uri().query()).await,
        (Method::GET, "/v1/status") => Ok(json(StatusCode::OK, r#"{"status":"serving"}"#)),
        _ => Err(Refusal::NotFound),
    };
    answered.unwrap_or_else(refused)
}

async fn sealed(service: Arc<Service>, request: Request<Incoming>) -> Result<Response<AnswerBody>, Refusal> {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    if content_type.is_none_or(|value| value != MESSAGE_TYPE) {
        return Err(Refusal::BadRequest);
    }
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if let Some(length) = length {
        let length: usize = length.parse().map_err(|_| Refusal::BadRequest)?;
        if length > service.configuration.limits.sealed_request_bytes {
            return Err(Refusal::TooLarge);
        }
    }
    let body = request::answer(service, request.into_body()).await?;
    Ok(response(StatusCode::OK, MESSAGE_TYPE, body))
}

/// A document for a client. Of what it sends only the nonce reaches the security module, and only as `nonce`.
async fn attestation(service: &Service, query: Option<&str>) -> Result<Response<AnswerBody>, Refusal> {
    let nonce = query.and_then(|query| query.strip_prefix("nonce=")).ok_or(Refusal::BadRequest)?;
    let nonce = hex::decode(nonce).map_err(|_| Refusal::BadRequest)?;
    let nonce = ClientNonce::new(&nonce).map_err(|_| Refusal::BadRequest)?;
    let keyset = service.keyset();
    let attested = service.attester.for_client(nonce, &keyset.digest()).await.map_err(|error| match error {
        AttesterError::Busy => Refusal::Busy,
        AttesterError::Module | AttesterError::Drift { .. } => Refusal::NotReady,
    })?;
    let (document, keyset) = (STANDARD.encode(attested.bytes), STANDARD.encode(keyset.to_cbor()));
    let body = format!(r#"{{"document":"{document}","keyset":"{keyset}"}}"#);
    Ok(json(StatusCode::OK, body))
}

/// The parent's view of a refusal: one code, nothing else.
fn refused(code: Refusal) -> Response<AnswerBody> {
    log::write(Event::Refused { code });
    let (status, name, again) = match code {
        Refusal::CannotOpen => (StatusCode::BAD_REQUEST, "cannot-open", false),
        Refusal::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", false),
        Refusal::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy", true),
        Refusal::NotReady => (StatusCode::SERVICE_UNAVAILABLE, "not-ready", true),
        Refusal::SlowRequest => (StatusCode::REQUEST_TIMEOUT, "timeout", false),
        Refusal::Timeout => (StatusCode::GATEWAY_TIMEOUT, "timeout", true),
        Refusal::NotFound => (StatusCode::NOT_FOUND, "not-found", false),
        Refusal::BadRequest => (StatusCode::BAD_REQUEST, "bad-request", false),
    };
    let mut response = json(status, format!(r#"{{"refusal":"{name}"}}"#));
    if again {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn json(status: StatusCode, body: impl Into<bytes::Bytes>) -> Response<AnswerBody> {
    response(status, "application/json", AnswerBody::whole(body))
}

fn response(status: StatusCode, content_type: &'static str, body: AnswerBody) -> Response<AnswerBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

const MESSAGE_TYPE: &str = "application/vnd.aws-encryption-sdk";
