//! One connection of a client (or of the enclave, to the host services): served, and given up when it rests too long.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep, sleep_until},
};

/// Whether requests are under way on a connection, and since when not.
#[derive(Debug)]
pub(crate) struct Activity {
    started: Instant,
    under_way: AtomicUsize,
    resting_since: AtomicU64,
}

impl Activity {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { started: Instant::now(), under_way: AtomicUsize::new(0), resting_since: AtomicU64::new(0) })
    }

    /// A request is under way until the guard is dropped.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        self.under_way.fetch_add(1, Relaxed);
        Busy(Arc::clone(self))
    }

    /// Resolves when no request was under way for `limit`. This bounds what hyper's own timeouts leave open: the time
    /// until the HTTP version shows, and HTTP/2 connections without streams.
    pub(crate) async fn rested_for(&self, limit: Duration) {
        loop {
            let now = Instant::now();
            let since = if self.under_way.load(Relaxed) > 0 {
                now
            } else {
                self.started + Duration::from_millis(self.resting_since.load(Relaxed))
            };
            if now >= since + limit {
                return;
            }
            sleep_until(since + limit).await;
        }
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        let elapsed = u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.resting_since.store(elapsed, Relaxed);
        self.0.under_way.fetch_sub(1, Relaxed);
    }
}

/// A stream whose peer must take what is written within a deadline: against peers that never read.
pub(crate) struct Attended<S> {
    stream: S,
    deadline: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Attended<S> {
    pub(crate) fn new(stream: S, deadline: Duration) -> Self {
        Self { stream, deadline, waiting: None }
    }

    /// Passes on what is ready; what is not, only until the deadline.
    fn attend<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waiting = None;
            return polled;
        }
        let deadline = self.deadline;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(deadline)));
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer stopped reading")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Attended<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Attended<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.attend(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.attend(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.attend(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.attend(cx, polled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn a_peer_that_never_reads_is_given_up() {
        let (near, _far) = tokio::io::duplex(16);
        let mut near = Attended::new(near, Duration::from_millis(50));
        let error = near.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn rest_is_counted_only_between_requests() {
        let activity = Activity::new();
        let limit = Duration::from_millis(50);
        let busy = activity.busy();
        assert!(tokio::time::timeout(Duration::from_millis(200), activity.rested_for(limit)).await.is_err());
        drop(busy);
        let before = Instant::now();
        activity.rested_for(limit).await;
        assert!(before.elapsed() >= limit);
    }
}
