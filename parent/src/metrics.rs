//! What the parent counts: only what it could see anyway, in Prometheus's text format.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// All counters of one parent.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    exchanges: [[AtomicU64; Outcome::ALL.len()]; Route::ALL.len()],
    pub(crate) request_bytes: AtomicU64,
    pub(crate) answer_bytes: AtomicU64,
    pub(crate) connections: Arc<Gauge>,
    pub(crate) connections_total: AtomicU64,
    pub(crate) connections_refused: AtomicU64,
    pub(crate) under_way: Arc<Gauge>,
    pub(crate) enclave_connects: AtomicU64,
    pub(crate) enclave_connect_failures: AtomicU64,
    pub(crate) host_requests: AtomicU64,
    pub(crate) host_failures: AtomicU64,
    pub(crate) tunnels: Arc<Gauge>,
    pub(crate) tunnels_total: AtomicU64,
    pub(crate) tunnel_failures: AtomicU64,
    pub(crate) tunnel_bytes_up: AtomicU64,
    pub(crate) tunnel_bytes_down: AtomicU64,
}

impl Metrics {
    pub(crate) fn count(&self, route: Route, outcome: Outcome) {
        if let Some(counter) = self.exchanges.get(route as usize).and_then(|row| row.get(outcome as usize)) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// Prometheus text exposition format, version 0.0.4.
    pub(crate) fn text(&self) -> String {
        let mut text = String::with_capacity(4096);
        head(&mut text, "requests_total", "counter", "Requests that concern the enclave, by path and outcome.");
        for (route, row) in Route::ALL.iter().zip(&self.exchanges) {
            for (outcome, count) in Outcome::ALL.iter().zip(row) {
                let labels = format!("{{path=\"{}\",outcome=\"{}\"}}", route.name(), outcome.name());
                line(&mut text, "requests_total", &labels, count.load(Relaxed));
            }
        }
        let rest: [(&str, &str, &str, u64); 15] = [
            ("request_bytes_total", "counter", "Bytes of sealed requests taken.", self.request_bytes.load(Relaxed)),
            (
                "answer_bytes_total",
                "counter",
                "Bytes of the enclave's answers passed on.",
                self.answer_bytes.load(Relaxed),
            ),
            ("connections", "gauge", "Connections of clients.", self.connections.get()),
            ("connections_total", "counter", "Connections of clients so far.", self.connections_total.load(Relaxed)),
            (
                "connections_refused_total",
                "counter",
                "Connections beyond the limit.",
                self.connections_refused.load(Relaxed),
            ),
            ("requests_under_way", "gauge", "Requests under way to the enclave.", self.under_way.get()),
            (
                "enclave_connects_total",
                "counter",
                "Connections made to the enclave.",
                self.enclave_connects.load(Relaxed),
            ),
            (
                "enclave_connect_failures_total",
                "counter",
                "Connections to the enclave that failed.",
                self.enclave_connect_failures.load(Relaxed),
            ),
            (
                "host_requests_total",
                "counter",
                "Requests of the enclave to its host.",
                self.host_requests.load(Relaxed),
            ),
            ("host_failures_total", "counter", "Those answered with an error.", self.host_failures.load(Relaxed)),
            ("tunnel_connections", "gauge", "Connections in the KMS tunnel.", self.tunnels.get()),
            (
                "tunnel_connections_total",
                "counter",
                "Connections in the KMS tunnel so far.",
                self.tunnels_total.load(Relaxed),
            ),
            ("tunnel_failures_total", "counter", "Connections to KMS that failed.", self.tunnel_failures.load(Relaxed)),
            ("tunnel_bytes_up_total", "counter", "Bytes carried to KMS.", self.tunnel_bytes_up.load(Relaxed)),
            ("tunnel_bytes_down_total", "counter", "Bytes carried from KMS.", self.tunnel_bytes_down.load(Relaxed)),
        ];
        for (name, kind, help, value) in rest {
            head(&mut text, name, kind, help);
            line(&mut text, name, "", value);
        }
        text
    }
}

/// A request path that concerns the enclave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Sealed,
    Attestation,
}

impl Route {
    const ALL: [Self; 2] = [Self::Sealed, Self::Attestation];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sealed => "sealed",
            Self::Attestation => "attestation",
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The enclave's 2xx answer was passed on to its end.
    Answered,
    /// The enclave refused.
    RefusedByEnclave,
    /// The parent refused.
    Refused,
    /// The enclave broke off, or fell silent, in its answer.
    Cut,
    /// The client went away.
    Cancelled,
    /// The client stopped reading.
    Stalled,
}

impl Outcome {
    const ALL: [Self; 6] =
        [Self::Answered, Self::RefusedByEnclave, Self::Refused, Self::Cut, Self::Cancelled, Self::Stalled];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::RefusedByEnclave => "refused-by-enclave",
            Self::Refused => "refused",
            Self::Cut => "cut",
            Self::Cancelled => "cancelled",
            Self::Stalled => "stalled",
        }
    }
}

/// How many of something there are now.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicU64);

impl Gauge {
    /// One more, until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> Present {
        self.0.fetch_add(1, Relaxed);
        Present(Arc::clone(self))
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One of a [`Gauge`].
#[derive(Debug)]
pub(crate) struct Present(Arc<Gauge>);

impl Drop for Present {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String cannot fail.
    let _ = write!(text, "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}\n");
}

fn line(text: &mut String, name: &str, labels: &str, value: u64) {
    let _ = writeln!(text, "{PREFIX}{name}{labels} {value}");
}

const PREFIX: &str = "subrosa_parent_";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_stands_under_its_own_name() {
        let metrics = Metrics::default();
        for (place, route) in Route::ALL.into_iter().enumerate() {
            assert_eq!(route as usize, place);
        }
        for (place, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, place);
        }
        metrics.count(Route::Sealed, Outcome::Cut);
        let present = metrics.connections.enter();
        let text = metrics.text();
        assert!(text.contains("subrosa_parent_requests_total{path=\"sealed\",outcome=\"cut\"} 1\n"), "{text}");
        assert!(text.contains("subrosa_parent_connections 1\n"));
        drop(present);
        assert!(metrics.text().contains("subrosa_parent_connections 0\n"));
    }
}
