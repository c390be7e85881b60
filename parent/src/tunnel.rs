//! The blind tunnel: bytes between the enclave and KMS, to one destination, unread.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use address::{Listener, Stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes},
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    metrics::Metrics,
    settings::{Checked, KmsEndpoint},
};

/// Where it leads, and its bounds.
pub(crate) struct Tunnel {
    to: KmsEndpoint,
    connections: usize,
    connect: Duration,
    idle: Duration,
    metrics: Arc<Metrics>,
}

impl Tunnel {
    pub(crate) fn new(checked: &Checked, metrics: Arc<Metrics>) -> Self {
        let settings = &checked.settings;
        Self {
            to: checked.kms.clone(),
            connections: settings.limits.tunnel_connections,
            connect: settings.deadlines.connect,
            idle: settings.deadlines.tunnel_idle,
            metrics,
        }
    }

    /// Carries until the future is dropped.
    pub(crate) async fn serve(self, mut listener: Listener) {
        let tunnel = Arc::new(self);
        let places = Arc::new(Semaphore::new(tunnel.connections));
        let mut open = JoinSet::new();
        // Nobody closes the semaphore.
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            match listener.accept().await {
                Ok(stream) => {
                    let connection = Arc::clone(&tunnel).connection(stream);
                    open.spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection for KMS");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
            while open.try_join_next().is_some() {}
        }
    }

    async fn connection(self: Arc<Self>, enclave: Stream) {
        let _present = self.metrics.tunnels.enter();
        self.metrics.tunnels_total.fetch_add(1, Relaxed);
        // Resolved for each connection: KMS's addresses change.
        let connected = timeout(self.connect, TcpStream::connect((self.to.host.as_str(), self.to.port))).await;
        let kms = match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(kms) => kms,
            Err(error) => {
                self.metrics.tunnel_failures.fetch_add(1, Relaxed);
                tracing::warn!(host = %self.to.host, port = self.to.port, %error, "cannot connect to KMS");
                return;
            }
        };
        // A failure costs time, not correctness.
        let _ = kms.set_nodelay(true);
        let seen = Seen::new();
        let (up, down) = (&self.metrics.tunnel_bytes_up, &self.metrics.tunnel_bytes_down);
        let mut enclave = Metered { stream: enclave, seen: &seen, read: up };
        let mut kms = Metered { stream: kms, seen: &seen, read: down };
        tokio::select! {
            carried = copy_bidirectional_with_sizes(&mut enclave, &mut kms, BUFFER, BUFFER) => {
                if let Err(error) = carried {
                    tracing::debug!(%error, "a connection to KMS broke");
                }
            }
            () = seen.nothing_for(self.idle) => tracing::debug!("closed an idle connection to KMS"),
        }
    }
}

/// When a byte was last seen.
struct Seen {
    started: Instant,
    last: AtomicU64,
}

impl Seen {
    fn new() -> Self {
        Self { started: Instant::now(), last: AtomicU64::new(0) }
    }

    fn now(&self) {
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(elapsed, Relaxed);
    }

    async fn nothing_for(&self, limit: Duration) {
        loop {
            let until = self.started + Duration::from_millis(self.last.load(Relaxed)) + limit;
            if Instant::now() >= until {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// A stream that counts what is read from it and notes each byte's time.
struct Metered<'a, S> {
    stream: S,
    seen: &'a Seen,
    read: &'a AtomicU64,
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<'_, S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, into))?;
        self.read.fetch_add((into.filled().len() - before) as u64, Relaxed);
        self.seen.now();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.seen.now();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

const BUFFER: usize = address::MAX_WRITE;
/// After a failure such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
