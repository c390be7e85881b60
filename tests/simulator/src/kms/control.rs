//! The control interface: plain HTTP on loopback, for tests in other processes.
//!
//! | request | does |
//! | --- | --- |
//! | `GET /journal`, `DELETE /journal` | the calls so far, as a list; forget them |
//! | `GET /faults`, `POST /faults`, `DELETE /faults` | what is pending; ask for one ([`Fault`]); forget all, layout and clock too |
//! | `PUT /layout` | `"alternate"`, `"constructed"` or `"primitive"` |
//! | `PUT /attestation-clock-ahead` | seconds by which the clock that judges attestation documents runs ahead |
//! | `PUT /principals` | adds to the table of principals, in the form of its file |
//! | `GET /keys` | the ARNs of all keys |

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::faults::Fault;
use super::principals::Principals;
use super::{Layout, Service};

/// Serves the control interface until it is dropped.
pub(super) async fn serve(listener: TcpListener, service: Arc<Service>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let service = Arc::clone(&service);
        connections.spawn(async move {
            let answer = service_fn(move |request| {
                let service = Arc::clone(&service);
                async move { Ok::<_, Infallible>(service.control(request).await) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(IDLE_TIME);
            let _ = builder.serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

impl Service {
    async fn control(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let outcome = match Limited::new(body, MAX_BODY).collect().await {
            Ok(body) => self.command(&head.method, head.uri.path(), &body.to_bytes()),
            Err(error) => Err(error.to_string()),
        };
        let (status, body) = match outcome {
            Ok(Some(value)) => (StatusCode::OK, value),
            Ok(None) => (StatusCode::NOT_FOUND, json!({"error": "no such command"})),
            Err(error) => (StatusCode::BAD_REQUEST, json!({"error": error})),
        };
        let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
        *response.status_mut() = status;
        response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
        response
    }

    /// Runs a command; `None` if there is no such one.
    fn command(&self, method: &Method, path: &str, body: &[u8]) -> Result<Option<Value>, String> {
        let done = Ok(Some(json!({})));
        match (method.as_str(), path) {
            ("GET", "/journal") => Ok(Some(json!(self.journal.entries()))),
            ("DELETE", "/journal") => {
                self.journal.clear();
                done
            }
            ("GET", "/faults") => Ok(Some(json!(self.faults.pending()))),
            ("POST", "/faults") => {
                self.faults.push(read::<Fault>(body)?);
                done
            }
            ("DELETE", "/faults") => {
                self.faults.clear();
                done
            }
            ("PUT", "/layout") => {
                self.faults.set_layout(read::<Layout>(body)?);
                done
            }
            ("PUT", "/attestation-clock-ahead") => {
                self.faults.set_attestation_clock_ahead(Duration::from_secs(read::<u32>(body)?.into()));
                done
            }
            ("PUT", "/principals") => {
                let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
                self.principals().merge(Principals::parse(text).map_err(|error| error.to_string())?);
                done
            }
            ("GET", "/keys") => Ok(Some(json!(self.store().arns()))),
            _ => Ok(None),
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

const MAX_BODY: usize = 1 << 20;
const IDLE_TIME: Duration = Duration::from_secs(120);
