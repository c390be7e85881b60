//! Between client and parent: has the notary sign the one thing that nobody has signed, and hands on all the rest.
//!
//! So the commands run unchanged against an enclave under QEMU, with the notary's authority as their `--danger-root`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, header};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use simulator::notary::Notary;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

type Forward = Client<HttpConnector, Incoming>;

/// A running relay; it ends when this is dropped.
pub(crate) struct NotaryRelay {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl NotaryRelay {
    /// Before the parent at `behind`.
    pub(crate) async fn start(behind: String, notary: Notary) -> io::Result<NotaryRelay> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (behind, notary) = (Arc::new(behind), Arc::new(notary));
        let forward: Forward = Client::builder(TokioExecutor::new()).build_http();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (behind, notary, forward) = (behind.clone(), notary.clone(), forward.clone());
                let service = service_fn(move |request| {
                    let (behind, notary, forward) = (behind.clone(), notary.clone(), forward.clone());
                    async move { pass(request, &behind, &notary, &forward).await }
                });
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
            }
        });
        Ok(NotaryRelay { address, accepting })
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for NotaryRelay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(
    mut request: Request<Incoming>,
    behind: &str,
    notary: &Notary,
    forward: &Forward,
) -> io::Result<Response<Either<Incoming, Full<Bytes>>>> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    *request.uri_mut() = format!("{behind}{path}").parse().map_err(io::Error::other)?;
    request.headers_mut().remove(header::HOST);
    let answer = forward.request(request).await.map_err(io::Error::other)?;
    if !path.starts_with("/v1/attestation") || !answer.status().is_success() {
        return Ok(answer.map(Either::Left));
    }
    let (mut head, body) = answer.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    head.headers.remove(header::CONTENT_LENGTH);
    Ok(Response::from_parts(head, Either::Right(Full::new(signed(&body, notary)?))))
}

/// The same evidence, its document signed.
pub(crate) fn signed(evidence: &[u8], notary: &Notary) -> io::Result<Bytes> {
    let mut evidence: Value = serde_json::from_slice(evidence)?;
    let document = evidence.get("document").and_then(Value::as_str).ok_or_else(|| io::Error::other("no document"))?;
    let document = STANDARD.decode(document).map_err(io::Error::other)?;
    let document = STANDARD.encode(notary.sign(&document).map_err(io::Error::other)?);
    if let Some(evidence) = evidence.as_object_mut() {
        evidence.insert("document".to_owned(), Value::String(document));
    }
    Ok(evidence.to_string().into())
}
