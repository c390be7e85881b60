//! The server itself: TLS, HTTP/1.1, one request after the other.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::error::KmsError;
use super::faults::{FaultKind, Lie};
use super::journal::Entry;
use super::operations::Call;
use super::sigv4::{Received, authenticate};
use super::{Service, now_millis, random_uuid};

/// Serves connections until it is dropped.
pub(super) async fn serve(listener: TcpListener, acceptor: TlsAcceptor, service: Arc<Service>) {
    // Dropped with this future, so that no connection outlives the handle.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // An error here (too many open files) is the machine's and passes.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (acceptor, service) = (acceptor.clone(), Arc::clone(&service));
        connections.spawn(async move {
            let Ok(Ok(stream)) = timeout(HANDSHAKE_TIME, acceptor.accept(stream)).await else { return };
            let answer = service_fn(move |request| {
                let service = Arc::clone(&service);
                async move { service.answer(request).await }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(IDLE_TIME);
            // What ends a connection badly is the client's leaving, or a fault that was asked for.
            let _ = builder.serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Dropped> {
        let (head, body) = request.into_parts();
        let body = match timeout(BODY_TIME, Limited::new(body, MAX_BODY).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            _ => {
                return Ok(respond(&Err(KmsError::new(
                    "RequestEntityTooLargeException",
                    "the request is too large or came too slowly",
                ))));
            }
        };
        let target = head.headers.get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let operation = target.strip_prefix("TrentService.").unwrap_or_default().to_owned();
        let mut entry = Entry { at_ms: now_millis(), operation: operation.clone(), ..Entry::default() };
        let (delay, fault) = self.faults.take(&operation);
        tokio::time::sleep(delay).await;
        let lie = match &fault {
            Some(FaultKind::Lie(lie)) => Some(*lie),
            _ => None,
        };
        entry.fault = fault.as_ref().and_then(|kind| serde_json::to_string(kind).ok());
        let outcome = match fault {
            Some(FaultKind::Drop) => {
                entry.outcome = "dropped".to_owned();
                self.journal.add(entry);
                return Err(Dropped);
            }
            Some(FaultKind::Throttle) => Err(KmsError::throttled()),
            Some(FaultKind::Internal) => {
                Err(KmsError::internal("The request was rejected because an internal exception occurred."))
            }
            Some(FaultKind::Unavailable) => {
                Err(KmsError { status: 500, code: "KeyUnavailableException", message: String::new() })
            }
            Some(FaultKind::Lie(_) | FaultKind::Delay { .. }) | None => self.call(&head, &body, lie, &mut entry),
        };
        match &outcome {
            Ok(_) => "ok".clone_into(&mut entry.outcome),
            Err(error) => {
                error.code.clone_into(&mut entry.outcome);
                entry.message.clone_from(&error.message);
            }
        }
        self.journal.add(entry);
        Ok(respond(&outcome))
    }

    fn call(
        &self,
        head: &http::request::Parts,
        body: &[u8],
        lie: Option<Lie>,
        entry: &mut Entry,
    ) -> Result<serde_json::Value, KmsError> {
        let path_and_query = head.uri.path_and_query().map_or("/", |path| path.as_str());
        if head.method != Method::POST || path_and_query != "/" {
            return Err(KmsError { status: 404, code: "UnknownOperationException", message: String::new() });
        }
        let received = Received {
            method: head.method.as_str(),
            path_and_query,
            headers: &head.headers,
            body,
            now_ms: entry.at_ms,
        };
        let authenticated = authenticate(&received, &self.principals(), &self.regions)?;
        entry.principal = Some(authenticated.principal.caller.arn().to_owned());
        let operation = entry.operation.clone();
        let mut call = Call {
            principal: authenticated.principal,
            region: authenticated.region,
            lie,
            entry: std::mem::take(entry),
        };
        let outcome = self.operate(&operation, body, &mut call);
        *entry = call.entry;
        outcome
    }
}

fn respond(outcome: &Result<serde_json::Value, KmsError>) -> Response<Full<Bytes>> {
    let (status, body) = match outcome {
        Ok(value) => (200, value.to_string()),
        Err(error) => (error.status, error.body().to_string()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert("content-type", http::HeaderValue::from_static("application/x-amz-json-1.1"));
    if let Some(id) = random_uuid().ok().and_then(|id| http::HeaderValue::from_str(&id).ok()) {
        headers.insert("x-amzn-requestid", id);
    }
    if let Err(error) = outcome {
        headers.insert("x-amzn-errortype", http::HeaderValue::from_static(error.code));
    }
    response
}

/// The fault that ends a connection without an answer.
#[derive(Debug, Error)]
#[error("the connection is dropped on request")]
pub(super) struct Dropped;

/// Requests are small: the largest is an attestation document of 256 KiB in base64.
const MAX_BODY: usize = 1 << 20;
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
const BODY_TIME: Duration = Duration::from_secs(30);
const IDLE_TIME: Duration = Duration::from_secs(120);
