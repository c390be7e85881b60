//! A parent on loopback, and an enclave played by a small HTTP/2 server behind the same door.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "shared by several test programs, of which each uses a part"
)]

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use address::{Address, listen_for_parent};
use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use hyper::{Method, Request, Response, Uri, body::Incoming, client::conn, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parent::{Parent, Settings};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, oneshot},
    task::{JoinHandle, JoinSet},
    time::timeout,
};

pub const SEALED: &str = "application/vnd.aws-encryption-sdk";
pub const CONFIGURATION: &str = r#"{"version":1,"region":"eu-central-1","models":[]}"#;

/// A folder with what a parent needs.
pub struct Place {
    pub folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("packs")).unwrap();
        std::fs::write(folder.path().join("configuration.json"), CONFIGURATION).unwrap();
        Self { folder }
    }

    pub fn packs(&self) -> PathBuf {
        self.folder.path().join("packs")
    }

    pub fn door(&self) -> Address {
        Address::Unix { path: self.folder.path().join("enclave.sock"), port: 5000 }
    }

    pub fn settings(&self) -> Settings {
        let configuration = self.folder.path().join("configuration.json");
        Settings::new(([127, 0, 0, 1], 0).into(), self.door(), configuration, self.packs())
    }

    /// A running parent; its settings as `change` leaves them.
    pub async fn parent(&self, change: impl FnOnce(&mut Settings)) -> Running {
        let mut settings = self.settings();
        change(&mut settings);
        let parent = Parent::bind(settings).await.unwrap();
        let at = parent.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(parent.run(async { drop(stopped.await) }));
        Running { at, stop: Some(stop), task }
    }
}

/// A parent that serves.
pub struct Running {
    pub at: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Running {
    /// Tells it to stop; [`Running::stopped`] waits for that.
    pub fn stop(&mut self) {
        drop(self.stop.take());
    }

    pub async fn stopped(&mut self, within: Duration) {
        timeout(within, &mut self.task).await.expect("the parent did not stop in time").unwrap();
    }

    pub async fn metric(&self, name: &str) -> u64 {
        let text = get(self.at, "/metrics").await.1;
        let line = text.lines().find(|line| line.starts_with(&format!("subrosa_parent_{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    /// Waits until a metric has a value.
    pub async fn metric_becomes(&self, name: &str, value: u64) {
        for _ in 0..200 {
            if self.metric(name).await == value {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{name} is {}, expected {value}", self.metric(name).await);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn outcome(outcome: &str) -> String {
    format!("requests_total{{path=\"sealed\",outcome=\"{outcome}\"}}")
}

/// An enclave that does with requests as told. Dropping it is its death: all its connections break.
pub struct Enclave {
    task: JoinHandle<()>,
    pub requests: Arc<AtomicUsize>,
}

impl Enclave {
    pub async fn start<F, A>(place: &Place, act: F) -> Self
    where
        F: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Response<Pieces>> + Send + 'static,
    {
        let mut listener = listen_for_parent(&place.door()).await.unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let stream = listener.accept().await.unwrap();
                let (act, count) = (act.clone(), Arc::clone(&count));
                let service = service_fn(move |request: Request<Incoming>| {
                    let act = act.clone();
                    if request.uri().path() != "/v1/status" {
                        count.fetch_add(1, SeqCst);
                    }
                    async move {
                        if request.uri().path() == "/v1/status" {
                            return Ok::<_, Infallible>(Response::new(Pieces::whole("")));
                        }
                        Ok(act(request).await)
                    }
                });
                let connection = http2::Builder::new(Tied)
                    .timer(TokioTimer::new())
                    .max_concurrent_streams(1000)
                    .serve_connection(TokioIo::new(stream), service);
                open.spawn(connection);
            }
        });
        Self { task, requests }
    }

    /// Answers every request with its own body.
    pub async fn echo(place: &Place) -> Self {
        Self::start(place, |request| async { sealed(Pieces::from(request.into_body())) }).await
    }

    pub fn requests(&self) -> usize {
        self.requests.load(SeqCst)
    }

    pub async fn die(self) {
        self.task.abort();
        while !self.task.is_finished() {
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for Enclave {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// hyper runs the streams of an HTTP/2 server on this.
#[derive(Clone)]
struct Tied;

impl<F> hyper::rt::Executor<F> for Tied
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        TokioExecutor::new().execute(task);
    }
}

pub fn sealed(body: Pieces) -> Response<Pieces> {
    Response::builder().header("content-type", SEALED).body(body).unwrap()
}

/// A body that a test feeds, piece by piece.
pub struct Pieces(mpsc::Receiver<Result<Bytes, h2::Error>>);

pub type Feed = mpsc::Sender<Result<Bytes, h2::Error>>;

impl Pieces {
    pub fn new() -> (Feed, Self) {
        let (feed, pieces) = mpsc::channel(1);
        (feed, Self(pieces))
    }

    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        let (feed, pieces) = mpsc::channel(1);
        feed.try_send(Ok(bytes.into())).unwrap();
        Self(pieces)
    }

    fn from(mut body: Incoming) -> Self {
        let (feed, pieces) = Self::new();
        tokio::spawn(async move {
            while let Some(Ok(frame)) = body.frame().await {
                if let Ok(data) = frame.into_data()
                    && feed.send(Ok(data)).await.is_err()
                {
                    return;
                }
            }
        });
        pieces
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

/// Sends over HTTP/1.1.
pub async fn h1(at: SocketAddr, request: Request<Pieces>) -> hyper::Result<Response<Incoming>> {
    let stream = TcpStream::connect(at).await.unwrap();
    let (mut sender, connection) = conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    sender.send_request(request).await
}

pub type H2 = conn::http2::SendRequest<Pieces>;

/// An HTTP/2 connection.
pub async fn h2_connection(at: SocketAddr) -> H2 {
    let stream = TcpStream::connect(at).await.unwrap();
    // hyper's own windows are 2 MiB a stream; a test of back-pressure wants to see the parent's.
    let (sender, connection) = conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(65_535)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

/// Sends over HTTP/2.
pub async fn h2(at: SocketAddr, request: Request<Pieces>) -> hyper::Result<Response<Incoming>> {
    h2_connection(at).await.send_request(request).await
}

pub fn post(at: SocketAddr, body: Pieces) -> Request<Pieces> {
    let uri: Uri = format!("http://{at}/v1/sealed").parse().unwrap();
    let request = Request::builder().method(Method::POST).uri(uri).header("host", at.to_string());
    request.header("content-type", SEALED).body(body).unwrap()
}

/// Status and text of a GET over HTTP/1.1.
pub async fn get(at: SocketAddr, path: &str) -> (u16, String) {
    let uri: Uri = format!("http://{at}{path}").parse().unwrap();
    let request = Request::builder().uri(uri).header("host", at.to_string()).body(Pieces::whole("")).unwrap();
    let response = h2(at, request).await.unwrap();
    let status = response.status().as_u16();
    (status, String::from_utf8(read(response).await.unwrap()).unwrap())
}

pub async fn read(response: Response<Incoming>) -> hyper::Result<Vec<u8>> {
    Ok(response.into_body().collect().await?.to_bytes().to_vec())
}

/// The next piece of a body.
pub async fn piece(body: &mut Incoming) -> Bytes {
    let frame = timeout(Duration::from_secs(5), body.frame()).await.expect("no piece in time");
    frame.unwrap().unwrap().into_data().unwrap()
}

/// A body ends here, cleanly.
pub async fn ends(body: &mut Incoming) {
    while let Some(frame) = timeout(Duration::from_secs(5), body.frame()).await.expect("no end in time") {
        assert!(frame.unwrap().into_data().unwrap().is_empty());
    }
}

/// Sends bytes and reads all that comes back until the end.
pub async fn raw(at: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    // The parent may refuse before it has read everything.
    let _ = stream.write_all(bytes).await;
    raw_rest(&mut stream).await
}

pub async fn raw_rest(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let end = timeout(Duration::from_secs(10), stream.read_to_end(&mut read)).await;
    // A reset after the answer is an end as well.
    let _ = end.expect("the connection was not closed in time");
    String::from_utf8_lossy(&read).into_owned()
}

pub fn write(folder: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(folder.join(name), bytes).unwrap();
}
