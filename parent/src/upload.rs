//! The body of a request on its way to the enclave: counted, bounded in size and patience, and never gathered beyond a
//! frame.
//!
//! The link is shared by all clients, and HTTP/2 implementations end a connection whose peer sends many empty or tiny DATA
//! frames (RFC 9113, section 10.5: "endpoints that don't monitor use of these features expose themselves to a risk of
//! denial of service"). So the frames on the link are the parent's own, whatever the client's are.

use std::{
    mem::take,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use hyper::{Version, body::Incoming};
use tokio::{
    runtime::Handle,
    sync::Notify,
    time::{Instant, Sleep, sleep, sleep_until, timeout},
};

/// What the parent sends to the enclave.
pub(crate) enum Outgoing {
    /// A request without a body.
    Empty,
    /// A client's body.
    Upload(Upload),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Upload(upload) => upload.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Upload(upload) => upload.from.is_none(),
        }
    }
}

/// A client's body. Pulled frame by frame as the enclave takes it, so that back-pressure reaches the client.
pub(crate) struct Upload {
    /// Until the end was seen.
    from: Option<Incoming>,
    /// Taken from the client, too little for a frame so far.
    gathered: BytesMut,
    version: Version,
    linger: bool,
    left: u64,
    patience: Duration,
    waiting_since: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    watch: Arc<UploadWatch>,
}

impl Upload {
    /// At most `limit` bytes, for which the client may keep us waiting `patience` in all. `linger`: see [`linger`].
    pub(crate) fn new(
        from: Incoming,
        version: Version,
        lingering: bool,
        limit: u64,
        patience: Duration,
        bytes: Arc<AtomicU64>,
    ) -> (Self, Arc<UploadWatch>) {
        let watch = Arc::new(UploadWatch::new(bytes));
        let upload = Self {
            from: Some(from),
            gathered: BytesMut::new(),
            version,
            linger: lingering,
            left: limit,
            patience,
            waiting_since: None,
            timer: Box::pin(sleep(patience)),
            watch: Arc::clone(&watch),
        };
        (upload, watch)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        loop {
            let Some(from) = self.from.as_mut() else { return Poll::Ready(None) };
            let Poll::Ready(frame) = Pin::new(&mut *from).poll_frame(cx) else {
                return if self.gathered.len() < LEAST_FRAME { self.wait(cx) } else { self.pass_on() };
            };
            if let Some(since) = self.waiting_since.take() {
                self.patience = self.patience.saturating_sub(since.elapsed());
            }
            self.watch.progress();
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => {
                    let Some(left) = self.left.checked_sub(data.len() as u64) else {
                        return self.fail(UploadError::TooLarge);
                    };
                    self.left = left;
                    self.watch.bytes.fetch_add(data.len() as u64, Relaxed);
                    self.gathered.extend_from_slice(&data);
                    if self.gathered.len() >= FULL_FRAME {
                        return self.pass_on();
                    }
                }
                // Trailers say nothing in this protocol.
                Some(Ok(Err(_trailers))) => {}
                Some(Err(_)) => return self.fail(UploadError::Gone),
                // hyper reports a stream that was reset with NO_ERROR as ended; what was reset is not whole.
                None if self.version == Version::HTTP_2 && !from.is_end_stream() => {
                    return self.fail(UploadError::Gone);
                }
                None => {
                    self.from = None;
                    return if self.gathered.is_empty() { Poll::Ready(None) } else { self.pass_on() };
                }
            }
        }
    }

    fn pass_on(&mut self) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        Poll::Ready(Some(Ok(Frame::data(take(&mut self.gathered).freeze()))))
    }

    /// Nothing from the client yet: its patience runs.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        if self.waiting_since.is_none() {
            let now = Instant::now();
            self.waiting_since = Some(now);
            self.timer.as_mut().reset(now + self.patience);
            self.watch.waiting.store(true, Relaxed);
        }
        match self.timer.as_mut().poll(cx) {
            Poll::Ready(()) => self.fail(UploadError::Slow),
            Poll::Pending => Poll::Pending,
        }
    }

    fn fail(&mut self, error: UploadError) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        self.watch.fail(error);
        Poll::Ready(Some(Err(error)))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(from) = self.from.take().filter(|_| self.linger) {
            linger(from);
        }
    }
}

/// Reads on for a moment what a refused client still sends over HTTP/1.1, so that closing the connection does not reset
/// it before the client has read its refusal (RFC 9112, section 9.6: "lingering close").
pub(crate) fn linger(mut rest: Incoming) {
    let Ok(runtime) = Handle::try_current() else { return };
    runtime.spawn(timeout(LINGER_TIME, async move {
        let mut left = LINGER_BYTES;
        while let Some(Ok(frame)) = rest.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    }));
}

/// Why a body was not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("the request has more bytes than the limit")]
    TooLarge,
    #[error("the client kept us waiting for its request")]
    Slow,
    #[error("the client went away in its request")]
    Gone,
}

/// An upload, seen from the side that waits for the answer.
#[derive(Debug)]
pub(crate) struct UploadWatch {
    bytes: Arc<AtomicU64>,
    started: Instant,
    progressed: AtomicU64,
    waiting: AtomicBool,
    failure: OnceLock<UploadError>,
    failed: Notify,
}

impl UploadWatch {
    fn new(bytes: Arc<AtomicU64>) -> Self {
        Self {
            bytes,
            started: Instant::now(),
            progressed: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            failure: OnceLock::new(),
            failed: Notify::new(),
        }
    }

    /// For a request without a body.
    pub(crate) fn none() -> Self {
        Self::new(Arc::default())
    }

    pub(crate) fn failure(&self) -> Option<UploadError> {
        self.failure.get().copied()
    }

    /// Resolves when the body failed.
    pub(crate) async fn failed(&self) -> UploadError {
        loop {
            if let Some(error) = self.failure() {
                return error;
            }
            self.failed.notified().await;
        }
    }

    /// Resolves when it was the enclave's turn for `limit` without a break.
    pub(crate) async fn enclave_silent_for(&self, limit: Duration) {
        loop {
            let now = Instant::now();
            let since = if self.waiting.load(Relaxed) {
                now
            } else {
                self.started + Duration::from_millis(self.progressed.load(Relaxed))
            };
            if now >= since + limit {
                return;
            }
            sleep_until(since + limit).await;
        }
    }

    fn progress(&self) {
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.progressed.store(elapsed, Relaxed);
        self.waiting.store(false, Relaxed);
    }

    fn fail(&self, error: UploadError) {
        // Only the first reason counts.
        let _ = self.failure.set(error);
        self.failed.notify_one();
    }
}

/// RFC 9113, section 4.2: all implementations accept frames of 2^14 octets.
const FULL_FRAME: usize = 1 << 14;
/// What is passed on of a client that pauses. h2 counts frames below 256 bytes against their connection; only the last
/// frame of a request may be one.
const LEAST_FRAME: usize = 1024;
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use hyper::{Request, Response, server::conn::http2, service::service_fn};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::sync::mpsc;

    /// How an upload ends whose client says "half" and then `last`: with END_STREAM, or with a reset.
    async fn end_after(last: Option<h2::Reason>) -> Result<(), UploadError> {
        let (near, far) = tokio::io::duplex(1 << 16);
        let (ends, mut end) = mpsc::channel(1);
        tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(
            TokioIo::new(far),
            service_fn(move |request: Request<Incoming>| {
                let ends = ends.clone();
                let (version, patience) = (request.version(), Duration::from_secs(5));
                let (mut upload, _) = Upload::new(request.into_body(), version, false, 100, patience, Arc::default());
                // Beside the answer, so that nothing but the upload itself can notice.
                tokio::spawn(async move {
                    let ended = loop {
                        match std::future::poll_fn(|cx| upload.poll(cx)).await {
                            Some(Ok(_)) => {}
                            Some(Err(error)) => break Err(error),
                            None => break Ok(()),
                        }
                    };
                    ends.send(ended).await
                });
                std::future::pending::<Result<Response<String>, Infallible>>()
            }),
        ));
        let (client, connection) = h2::client::handshake(near).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder().method("POST").uri("http://parent/").body(()).unwrap();
        let (_answer, mut body) = client.ready().await.unwrap().send_request(request, false).unwrap();
        body.send_data(Bytes::from("half"), last.is_none()).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        if let Some(reason) = last {
            body.send_reset(reason);
        }
        end.recv().await.unwrap()
    }

    #[tokio::test]
    async fn an_upload_that_was_reset_is_not_whole_whatever_the_code() {
        for reason in [h2::Reason::NO_ERROR, h2::Reason::CANCEL, h2::Reason::INTERNAL_ERROR] {
            assert_eq!(end_after(Some(reason)).await, Err(UploadError::Gone), "{reason:?}");
        }
        assert_eq!(end_after(None).await, Ok(()));
    }
}
