//! A hostile relay before the parent: it changes requests and answers as it likes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::by_hand::post;

/// What the relay does: it is given the sealed request and, when it asks for it, the true answer.
pub type Trick = dyn Fn(&[u8], Option<Bytes>) -> Bytes + Send + Sync;

/// A running relay; it ends when this is dropped.
pub struct Relay {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Relay {
    /// Answers every sealed request by `trick`; with `behind`, the request is first sent there and its answer handed on.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(
        behind: Option<String>,
        trick: impl Fn(&[u8], Option<Bytes>) -> Bytes + Send + Sync + 'static,
    ) -> io::Result<Relay> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (trick, behind): (Arc<Trick>, _) = (Arc::new(trick), Arc::new(behind));
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (trick, behind) = (trick.clone(), behind.clone());
                let service = service_fn(move |request| answer(request, trick.clone(), behind.clone()));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Ok(Relay { address, accepting })
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn answer(
    request: Request<Incoming>,
    trick: Arc<Trick>,
    behind: Arc<Option<String>>,
) -> io::Result<Response<Full<Bytes>>> {
    let message = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
    let truth = match behind.as_ref() {
        Some(url) => Some(post(url, message.clone()).await?.1),
        None => None,
    };
    let body = trick(&message, truth);
    Response::builder()
        .header("content-type", "application/vnd.aws-encryption-sdk")
        .body(Full::new(body))
        .map_err(io::Error::other)
}
