//! HTTP/2 (h2c) on the door.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use address::{Listener, Stream};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{AnswerBody, Service, routes};

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
                        let service = Arc::clone(service);
                        let answer = move |request| routes::answer(Arc::clone(&service), request);
                        self.open.spawn(connection(stream, answer, self.drain.subscribe()));
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

async fn connection<F>(stream: Stream, answer: impl Fn(Request<Incoming>) -> F, mut drain: watch::Receiver<bool>)
where
    F: Future<Output = Response<AnswerBody>> + Send + 'static,
{
    let handle = service_fn(move |request| {
        let answering = answer(request);
        async move { Ok::<_, Infallible>(answering.await) }
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
const STREAM_WINDOW_BYTES: u32 = 16 * 1024;
/// As much as all streams together may leave unread, so that those that wait for KMS hold up no other upload.
const CONNECTION_WINDOW_BYTES: u32 = STREAMS_MAX * STREAM_WINDOW_BYTES;
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// CVE-2023-44487 (rapid reset) and its kin: streams that are reset before or while they are served.
const RESETS_PENDING_MAX: usize = 64;
const RESETS_LOCAL_MAX: usize = 256;
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_DEADLINE: Duration = Duration::from_secs(20);
const ACCEPT_FAILURES_MAX: u32 = 100;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{BodyExt, Empty};
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn a_panic_ends_its_stream_and_nothing_else() {
        let (inside, outside) = UnixStream::pair().unwrap();
        let answer = |request: Request<Incoming>| async move {
            assert_ne!(request.uri().path(), "/panic", "on purpose");
            Response::new(AnswerBody::whole(Bytes::from_static(b"here")))
        };
        let drain = watch::Sender::new(false);
        let serving = tokio::spawn(connection(Stream::Unix(inside), answer, drain.subscribe()));
        let (mut sender, client) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(outside)).await.unwrap();
        tokio::spawn(client);
        let get = |path: &str| Request::get(format!("http://e{path}")).body(Empty::<Bytes>::new()).unwrap();
        assert!(sender.send_request(get("/panic")).await.is_err());
        let answer = sender.send_request(get("/")).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "here");
        drain.send_replace(true);
        serving.await.unwrap();
    }
}
