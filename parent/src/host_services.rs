//! What the enclave asks of its host: `docs/PROTOCOL.md`, section 3. HTTP/1.1, `GET` only.

use std::{
    convert::Infallible,
    io,
    path::PathBuf,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use address::{Listener, Stream};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, IF_RANGE, RANGE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{sync::Semaphore, task::JoinSet, time::sleep};

use crate::{
    connection::Attended,
    credentials::Credentials,
    metrics::Metrics,
    model_packs::{Asked, Pack, PackError, Range},
    refusal::Refusal,
    settings::{Checked, read_configuration},
};

/// All that the enclave may ask for.
pub(crate) struct HostServices {
    configuration: PathBuf,
    model_packs: PathBuf,
    credentials: Credentials,
    connections: usize,
    header: Duration,
    stalled: Duration,
    metrics: Arc<Metrics>,
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

impl HostServices {
    pub(crate) fn new(checked: &Checked, metrics: Arc<Metrics>) -> Self {
        let settings = &checked.settings;
        let deadlines = &settings.deadlines;
        Self {
            configuration: settings.configuration.clone(),
            model_packs: settings.model_packs.clone(),
            credentials: Credentials::new(settings.credentials.clone(), checked.region.clone(), deadlines.credentials),
            connections: settings.limits.host_connections,
            header: deadlines.header,
            stalled: deadlines.stalled,
            metrics,
        }
    }

    /// Serves the enclave until the future is dropped.
    pub(crate) async fn serve(self, mut listener: Listener) {
        let services = Arc::new(self);
        let places = Arc::new(Semaphore::new(services.connections));
        let mut open = JoinSet::new();
        // Nobody closes the semaphore.
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            match listener.accept().await {
                Ok(stream) => {
                    let connection = Arc::clone(&services).connection(stream);
                    open.spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection of the enclave");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
            while open.try_join_next().is_some() {}
        }
    }

    async fn connection(self: Arc<Self>, stream: Stream) {
        let io = TokioIo::new(Attended::new(stream, self.stalled));
        let header = self.header;
        let service = service_fn(move |request| {
            let services = Arc::clone(&self);
            async move { Ok::<_, Infallible>(services.answer(request).await) }
        });
        let connection = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(header)
                .max_headers(MAX_HEADERS)
                .max_buf_size(MAX_HEAD)
                .serve_connection(io, service)
        );
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection of the enclave ended with an error");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        self.metrics.host_requests.fetch_add(1, Relaxed);
        let path = request.uri().path();
        let response = if request.method() != Method::GET {
            refusal(Refusal::NotFound)
        } else if path == "/v1/configuration" {
            self.configuration().await
        } else if path == "/v1/credentials" {
            self.credentials().await
        } else if let Some(name) = path.strip_prefix("/v1/model-packs/") {
            self.model_pack(name, request.headers()).await
        } else {
            refusal(Refusal::NotFound)
        };
        let status = response.status();
        if status.is_client_error() || status.is_server_error() {
            self.metrics.host_failures.fetch_add(1, Relaxed);
        }
        // The path is the enclave's choice of a public name; it is logged only where it was found.
        let known = if status.is_success() { path } else { "-" };
        tracing::info!(path = known, status = status.as_u16(), "host service");
        response
    }

    /// Read anew each time, so that a restarted enclave gets the document as it stands.
    async fn configuration(&self) -> Response<Body> {
        let path = self.configuration.clone();
        match blocking(move || read_configuration(&path)).await {
            Some(Ok(document)) => json(document),
            Some(Err(error)) => {
                tracing::error!(%error, "no configuration document for the enclave");
                refusal(Refusal::NotReady)
            }
            None => refusal(Refusal::NotReady),
        }
    }

    async fn credentials(&self) -> Response<Body> {
        match self.credentials.document().await {
            Ok(document) => json(document),
            Err(error) => {
                tracing::error!(%error, "no AWS credentials for the enclave");
                refusal(Refusal::NotReady)
            }
        }
    }

    async fn model_pack(&self, name: &str, headers: &HeaderMap) -> Response<Body> {
        let (folder, name) = (self.model_packs.clone(), name.to_owned());
        // RFC 9110, section 13.1.5: without a matching validator, and we give none, `If-Range` voids `Range`.
        let range =
            headers.get(RANGE).filter(|_| !headers.contains_key(IF_RANGE)).map(|value| value.as_bytes().to_vec());
        let opened = blocking(move || {
            let pack = Pack::open(&folder, &name)?;
            let length = pack.length;
            Ok(match Asked::parse(range.as_deref(), length) {
                Asked::Whole => Opened::Whole(pack.body(Range { from: 0, length })?, length),
                Asked::Part(range) => Opened::Part(pack.body(range)?, range, length),
                Asked::Unsatisfiable => Opened::Unsatisfiable(length),
            })
        });
        match opened.await {
            Some(Ok(Opened::Whole(body, length))) => pack_response(StatusCode::OK, body, length, None),
            Some(Ok(Opened::Part(body, Range { from, length }, whole))) => {
                let range = format!("bytes {from}-{}/{whole}", from + length - 1);
                pack_response(StatusCode::PARTIAL_CONTENT, body, length, Some(range))
            }
            Some(Ok(Opened::Unsatisfiable(whole))) => {
                let mut response = refusal(Refusal::BadRequest);
                *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
                insert(&mut response, CONTENT_RANGE, format!("bytes */{whole}"));
                response
            }
            Some(Err(PackError::NotFound)) => refusal(Refusal::NotFound),
            Some(Err(error)) => {
                tracing::error!(%error, "a model pack cannot be read");
                refusal(Refusal::NotReady)
            }
            None => refusal(Refusal::NotReady),
        }
    }
}

enum Opened {
    Whole(crate::model_packs::PackBody, u64),
    Part(crate::model_packs::PackBody, Range, u64),
    Unsatisfiable(u64),
}

fn pack_response(
    status: StatusCode,
    body: crate::model_packs::PackBody,
    length: u64,
    range: Option<String>,
) -> Response<Body> {
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/vnd.aws-encryption-sdk"));
    response.headers_mut().insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    if let Some(range) = range {
        insert(&mut response, CONTENT_RANGE, range);
    }
    response
}

fn insert(response: &mut Response<Body>, name: hyper::header::HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        response.headers_mut().insert(name, value);
    }
}

fn json(document: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(document));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn refusal(refusal: Refusal) -> Response<Body> {
    let mut response = json(refusal.json());
    *response.status_mut() = refusal.status();
    response
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// Files are read on threads that may wait. None if the runtime is going down.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 32;
/// After a failure such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
