//! Asking the security module for documents: one call at a time, KMS before clients, the clock compared each time.
//!
//! The device serialises calls anyway and blocks while it works, so one worker makes them on a blocking thread. A
//! document for KMS stands in somebody's way to an answer; a document for a client can be asked for by anybody, so
//! those are rate-limited and wait behind.

use std::sync::Arc;
use std::time::Duration;

use attestation::document::Document;
use attestation::keyset;
use attestation::nsm::{ClientNonce, DocumentRequest, Nsm, RsaPublicKey};
use tokio::sync::{mpsc, oneshot, watch};

use crate::kms::rate::TokenBucket;
use crate::log::{self, Event};
use crate::platform::Clock;

/// A handle to the worker. The worker ends when the last handle is dropped.
#[derive(Clone)]
pub struct Attester {
    kms: mpsc::Sender<Job>,
    clients: mpsc::Sender<Job>,
    clients_rate: Arc<std::sync::Mutex<TokenBucket>>,
    drifted: watch::Receiver<bool>,
}

struct Job {
    request: DocumentRequest,
    reply: oneshot::Sender<Result<Attested, AttesterError>>,
}

/// A document, and what it says.
pub struct Attested {
    /// The bytes, as the module signed them.
    pub bytes: Vec<u8>,
    /// The same, parsed.
    pub document: Document,
}

impl Attester {
    /// Starts the worker.
    pub fn start(nsm: Arc<dyn Nsm>, clock: Arc<dyn Clock>) -> Self {
        let (kms, kms_jobs) = mpsc::channel(KMS_QUEUE);
        let (clients, client_jobs) = mpsc::channel(CLIENT_QUEUE);
        let (drift, drifted) = watch::channel(false);
        tokio::spawn(work(nsm, clock, kms_jobs, client_jobs, drift));
        let rate = TokenBucket::new(CLIENT_BURST, CLIENT_INTERVAL);
        Self { kms, clients, clients_rate: Arc::new(std::sync::Mutex::new(rate)), drifted }
    }

    /// A document for KMS with this key. It is seen inside TLS only.
    pub async fn for_kms(&self, spki: &[u8]) -> Result<Attested, AttesterError> {
        let key = RsaPublicKey::from_spki_der(spki).map_err(|_| AttesterError::Module)?;
        let (reply, answer) = oneshot::channel();
        let job = Job { request: DocumentRequest::for_kms(&key), reply };
        self.kms.send(job).await.map_err(|_| AttesterError::Module)?;
        answer.await.map_err(|_| AttesterError::Module)?
    }

    /// A document for a client: its nonce, and the digest of our keyset.
    pub async fn for_client(&self, nonce: ClientNonce, keyset: &keyset::Digest) -> Result<Attested, AttesterError> {
        let now = std::time::Instant::now();
        let admitted = match self.clients_rate.lock() {
            Ok(mut bucket) => bucket.take(now),
            Err(poisoned) => poisoned.into_inner().take(now),
        };
        if !admitted {
            return Err(AttesterError::Busy);
        }
        let (reply, answer) = oneshot::channel();
        let job = Job { request: DocumentRequest::for_client(nonce, keyset), reply };
        self.clients.try_send(job).map_err(|_| AttesterError::Busy)?;
        answer.await.map_err(|_| AttesterError::Module)?
    }

    /// Returns once the clock and the module's timestamps have been seen too far apart.
    pub async fn drifted(&self) {
        let mut drifted = self.drifted.clone();
        if drifted.wait_for(|drifted| *drifted).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn work(
    nsm: Arc<dyn Nsm>,
    clock: Arc<dyn Clock>,
    mut kms: mpsc::Receiver<Job>,
    mut clients: mpsc::Receiver<Job>,
    drift: watch::Sender<bool>,
) {
    loop {
        let job = tokio::select! {
            biased;
            Some(job) = kms.recv() => job,
            Some(job) = clients.recv() => job,
            else => return,
        };
        let Job { request, reply } = job;
        // Nobody waits for it any more.
        if reply.is_closed() {
            continue;
        }
        let nsm = Arc::clone(&nsm);
        let made = tokio::task::spawn_blocking(move || nsm.document(&request)).await;
        let attested = match made {
            Ok(Ok(bytes)) => read(bytes, &*clock),
            Ok(Err(_)) | Err(_) => Err(AttesterError::Module),
        };
        match &attested {
            Err(AttesterError::Module) => log::write(Event::ModuleFailed),
            Err(AttesterError::Drift { millis }) => {
                log::write(Event::ClockDrift { millis: *millis });
                drift.send_replace(true);
            }
            Ok(_) | Err(AttesterError::Busy) => {}
        }
        let _ = reply.send(attested);
    }
}

/// Parses a document of our own module, and compares its time with ours: certificates, signatures and expiries depend
/// on the clock, and the module's is the one that others believe.
fn read(bytes: Vec<u8>, clock: &dyn Clock) -> Result<Attested, AttesterError> {
    let document = Document::parse(&bytes).map_err(|_| AttesterError::Module)?;
    let millis = clock.unix_millis().abs_diff(document.timestamp().0);
    if millis > DRIFT_MILLIS_MAX { Err(AttesterError::Drift { millis }) } else { Ok(Attested { bytes, document }) }
}

/// Why there is no document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttesterError {
    /// The module failed, or gave something that is no document.
    #[error("the security module gave no document")]
    Module,
    /// Too many documents for clients.
    #[error("too many attestation documents are being asked for")]
    Busy,
    /// The clock is wrong.
    #[error("the clock and the security module are {millis} ms apart")]
    Drift {
        /// Milliseconds between them.
        millis: u64,
    },
}

/// The same as the client's tolerance for a document from the future.
const DRIFT_MILLIS_MAX: u64 = 60_000;
const KMS_QUEUE: usize = 64;
const CLIENT_QUEUE: usize = 8;
/// Documents for clients: a burst, then one per interval. The device takes a few milliseconds for one.
const CLIENT_BURST: u32 = 32;
const CLIENT_INTERVAL: Duration = Duration::from_millis(100);
