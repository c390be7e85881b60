//! One request that concerns the enclave, from its head to the last byte of its answer: counted and logged once.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::OwnedSemaphorePermit;

use crate::{
    connection::Busy,
    metrics::{Metrics, Outcome, Present, Route},
    refusal::Refusal,
};

/// What is known of a request that no log or counter may know more of: no byte of a body ever comes here.
#[derive(Debug)]
pub(crate) struct Exchange {
    id: RequestId,
    route: Route,
    started: Instant,
    status: u16,
    answer_bytes: u64,
    request_bytes: Arc<AtomicU64>,
    outcome: Outcome,
    metrics: Arc<Metrics>,
    // What the request holds while it lasts.
    _under_way: Present,
    _busy: Busy,
    permit: Option<OwnedSemaphorePermit>,
}

impl Exchange {
    /// Begins; unless told otherwise it ends as [`Outcome::Cancelled`], because a request that is dropped half-way was
    /// dropped by its client.
    pub(crate) fn begin(id: RequestId, route: Route, metrics: &Arc<Metrics>, busy: Busy) -> Self {
        Self {
            id,
            route,
            started: Instant::now(),
            status: 0,
            answer_bytes: 0,
            request_bytes: Arc::new(AtomicU64::new(0)),
            outcome: Outcome::Cancelled,
            metrics: Arc::clone(metrics),
            _under_way: metrics.under_way.enter(),
            _busy: busy,
            permit: None,
        }
    }

    pub(crate) fn hold(&mut self, permit: OwnedSemaphorePermit) {
        self.permit = Some(permit);
    }

    pub(crate) fn id(&self) -> RequestId {
        self.id
    }

    pub(crate) fn request_bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.request_bytes)
    }

    pub(crate) fn answering(&mut self, status: u16) {
        self.status = status;
    }

    pub(crate) fn passed_on(&mut self, bytes: usize) {
        self.answer_bytes += bytes as u64;
        self.metrics.answer_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn refused(mut self, refusal: Refusal) {
        self.status = refusal.status().as_u16();
        self.outcome = Outcome::Refused;
    }

    pub(crate) fn ended(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// The enclave's answer reached its true end.
    pub(crate) fn complete(mut self) {
        self.outcome = if self.status < 400 { Outcome::Answered } else { Outcome::RefusedByEnclave };
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let request_bytes = self.request_bytes.load(Relaxed);
        self.metrics.request_bytes.fetch_add(request_bytes, Relaxed);
        self.metrics.count(self.route, self.outcome);
        tracing::info!(
            request = %self.id,
            path = self.route.name(),
            outcome = self.outcome.name(),
            status = self.status,
            request_bytes,
            answer_bytes = self.answer_bytes,
            milliseconds = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "request"
        );
    }
}

/// Names a request in logs and in the header `x-request-id`. A counter that starts at the time of the start: it tells
/// requests apart and is good for nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestId(u64);

impl fmt::Display for RequestId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:016x}", self.0)
    }
}

/// Makes [`RequestId`]s.
#[derive(Debug)]
pub(crate) struct RequestIds(AtomicU64);

impl RequestIds {
    pub(crate) fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(AtomicU64::new(since.as_secs() << 32 | u64::from(since.subsec_nanos()) >> 8 << 8))
    }

    pub(crate) fn next(&self) -> RequestId {
        RequestId(self.0.fetch_add(1, Relaxed))
    }
}
