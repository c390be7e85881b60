//! The one HTTP/2 connection to the enclave, shared by all requests and made anew when it is lost.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use address::{Address, Stream, dial_enclave_within};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{sync::Mutex, time::Instant};

use crate::{
    metrics::Metrics,
    settings::{Deadlines, Settings},
    upload::Outgoing,
};

/// The way to the enclave.
pub(crate) struct Link {
    address: Address,
    deadlines: Deadlines,
    requests: usize,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

struct State {
    sender: Option<SendRequest<Outgoing>>,
    failures: u32,
    not_before: Instant,
}

/// Why a request got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LinkError {
    /// It was not sent.
    #[error("no enclave answers")]
    Absent,
    /// It was sent, at least in part. It is never sent again: the enclave may have acted on it.
    #[error("the enclave was lost")]
    Lost,
}

impl Link {
    pub(crate) fn new(settings: &Settings, metrics: Arc<Metrics>) -> Self {
        Self {
            address: settings.enclave.clone(),
            deadlines: settings.deadlines,
            requests: settings.limits.requests,
            metrics,
            state: Mutex::new(State { sender: None, failures: 0, not_before: Instant::now() }),
        }
    }

    /// Sends once. Dropping the future resets the stream, so that the enclave stops working on it.
    pub(crate) async fn send(&self, request: Request<Outgoing>) -> Result<Response<Incoming>, LinkError> {
        let mut sender = self.sender().await?;
        sender.try_send_request(request).await.map_err(|mut error| match error.take_message() {
            Some(_unsent) => LinkError::Absent,
            None => LinkError::Lost,
        })
    }

    /// Whether the last connection still stands, as far as is known.
    pub(crate) async fn connected(&self) -> bool {
        self.state.lock().await.sender.as_ref().is_some_and(|sender| !sender.is_closed())
    }

    /// The shared connection; where there is none, dials, one at a time. After a failure further requests fail at once
    /// until the back-off has passed.
    async fn sender(&self) -> Result<SendRequest<Outgoing>, LinkError> {
        let mut state = self.state.lock().await;
        if let Some(sender) = state.sender.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        state.sender = None;
        if Instant::now() < state.not_before {
            return Err(LinkError::Absent);
        }
        match self.connect().await {
            Ok(sender) => {
                self.metrics.enclave_connects.fetch_add(1, Relaxed);
                tracing::info!(enclave = %self.address, "connected to the enclave");
                state.failures = 0;
                // An enclave that accepts and dies at once must not be dialled in a tight loop either.
                state.not_before = Instant::now() + FIRST_BACK_OFF;
                state.sender = Some(sender.clone());
                Ok(sender)
            }
            Err(error) => {
                self.metrics.enclave_connect_failures.fetch_add(1, Relaxed);
                if state.failures == 0 {
                    tracing::warn!(enclave = %self.address, error, "no enclave answers");
                }
                let back_off = FIRST_BACK_OFF.saturating_mul(1 << state.failures.min(8)).min(LONGEST_BACK_OFF);
                state.failures = state.failures.saturating_add(1);
                state.not_before = Instant::now() + back_off;
                Err(LinkError::Absent)
            }
        }
    }

    async fn connect(&self) -> Result<SendRequest<Outgoing>, String> {
        let stream =
            dial_enclave_within(&self.address, self.deadlines.connect).await.map_err(|error| error.to_string())?;
        let (sender, connection) = self
            .builder()
            .handshake::<TokioIo<Stream>, Outgoing>(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        tokio::spawn(async move {
            match connection.await {
                Ok(()) => tracing::info!("the connection to the enclave ended"),
                Err(error) => tracing::warn!(%error, "the connection to the enclave broke"),
            }
        });
        Ok(sender)
    }

    /// The windows are what an answer that is not read may occupy here; the connection's window is large enough for all
    /// of them, so that clients that stop reading cannot hold up the answers of others.
    fn builder(&self) -> http2::Builder<TokioExecutor> {
        let requests = u32::try_from(self.requests).unwrap_or(u32::MAX);
        let connection_window = requests.saturating_mul(STREAM_WINDOW).clamp(65_535, MAX_WINDOW);
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(connection_window)
            .initial_max_send_streams(self.requests)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(MAX_HEADER_LIST)
            .keep_alive_interval(self.deadlines.ping)
            .keep_alive_timeout(self.deadlines.ping)
            .keep_alive_while_idle(true);
        builder
    }
}

/// Bytes of one answer that may be on their way while its client does not read.
pub(crate) const STREAM_WINDOW: u32 = 32 * 1024;
/// RFC 9113, section 6.9.1: "2^31-1 octets".
const MAX_WINDOW: u32 = (1 << 31) - 1;
const SEND_BUFFER: usize = 64 * 1024;
const MAX_HEADER_LIST: u32 = 16 * 1024;
const FIRST_BACK_OFF: Duration = Duration::from_millis(50);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(1);
