//! HTTP/2 (h2c) on the door.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use address::{Listener, Stream};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Service, routes};

/// The connections of the parent.
pub(super) struct Connections {
    open: JoinSet<()>,
    drain: watch::Sender<bool>,
}

impl Default for Connections {
    fn default() -> Self {
        Self { open: JoinSet::new(), drain: watch::Sender::new(false) }
    }
}

impl Connections {
    /// Takes connections; returns only when the listening socket is beyond hope.
    pub(super) async fn accept(&mut self, listener: &mut Listener, service: &Arc<Service>) {
        let mut failures = 0_u32;
        loop {
            tokio::select! {
                Some(_) = self.open.join_next() => {}
                accepted = listener.accept(), if self.open.len() < CONNECTIONS_MAX => match accepted {
                    Ok(stream) => {
                        failures = 0;
                        self.open.spawn(connection(stream, Arc::clone(service), self.drain.subscribe()));
                    }
                    Err(_) if failures < ACCEPT_FAILURES_MAX => {
                        failures += 1;
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                    Err(_) => return,
                },
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Lets every connection finish its streams, for at most `patience`.
    pub(super) async fn drain(&mut self, patience: Duration) {
        self.drain.send_replace(true);
        let all = async { while self.open.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(patience, all).await;
        self.open.shutdown().await;
    }
}

async fn connection(stream: Stream, service: Arc<Service>, mut drain: watch::Receiver<bool>) {
    let handle = service_fn(move |request| {
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(routes::answer(service, request).await) }
    });
    let serving = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_frame_size(FRAME_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(RESETS_PENDING_MAX)
        .max_local_error_reset_streams(RESETS_LOCAL_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_DEADLINE)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), handle);
    tokio::pin!(serving);
    tokio::select! {
        _ = &mut serving => return,
        _ = drain.wait_for(|drain| *drain) => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}

/// There is one peer, the parent; it needs one connection and may keep a few.
const CONNECTIONS_MAX: usize = 32;
const STREAMS_MAX: u32 = 320;
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// Single vsock writes above 32 KiB have corrupted data on real enclaves.
const FRAME_BYTES: u32 = 16 * 1024;
const STREAM_WINDOW_BYTES: u32 = 128 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 2 << 20;
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// CVE-2023-44487 (rapid reset) and its kin: streams that are reset before or while they are served.
const RESETS_PENDING_MAX: usize = 64;
const RESETS_LOCAL_MAX: usize = 256;
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_DEADLINE: Duration = Duration::from_secs(20);
const ACCEPT_FAILURES_MAX: u32 = 100;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
