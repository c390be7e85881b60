//! Asking the security module for documents: one call at a time, KMS before clients, the clock compared each time.
//!
//! The device serialises calls anyway and blocks while it works, so one worker makes them on a blocking thread. A
//! document for KMS stands in somebody's way to an answer; a document for a client can be asked for by anybody, so
//! those are rate-limited and wait behind.

use std::sync::Arc;
use std::time::Duration;

use attestation::document::OwnDocument;
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
    /// The bytes, as the module gave them: whether it signed them is for KMS and clients to find out.
    pub bytes: Vec<u8>,
    /// The same, parsed.
    pub document: OwnDocument,
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
    let document = OwnDocument::parse(&bytes).map_err(|_| AttesterError::Module)?;
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::SystemTime;

    use attestation::keyset::Digest;
    use attestation::nsm::{Exchange, NsmError};
    use aws_nitro_enclaves_nsm_api::api::{Request, Response};

    use super::*;
    use crate::platform::SystemClock;
    use crate::recipient::RecipientKey;

    /// A module that remembers what it was asked for, takes its time, and gives what is no document.
    #[derive(Default)]
    struct Slow(Arc<Mutex<Vec<&'static str>>>);

    impl Exchange for Slow {
        fn exchange(&self, request: Request) -> Result<Response, NsmError> {
            std::thread::sleep(Duration::from_millis(50));
            let Request::Attestation { public_key, .. } = request else { return Err(NsmError::Unexpected) };
            self.0.lock().unwrap().push(if public_key.is_some() { "kms" } else { "client" });
            Ok(Response::Attestation { document: b"no document".to_vec() })
        }
    }

    fn nonce() -> ClientNonce {
        ClientNonce::new(&[7; 16]).unwrap()
    }

    #[tokio::test]
    async fn documents_for_kms_go_before_documents_for_clients() {
        let module = Slow::default();
        let asked = Arc::clone(&module.0);
        let attester = Attester::start(Arc::new(module), Arc::new(SystemClock));
        let key = RecipientKey::generate().unwrap();
        let clients = (0..4).map(|_| {
            let attester = attester.clone();
            tokio::spawn(async move { attester.for_client(nonce(), &Digest::of(b"")).await.err() })
        });
        let clients: Vec<_> = clients.collect();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(attester.for_kms(key.spki()).await.err(), Some(AttesterError::Module));
        for client in clients {
            assert_eq!(client.await.unwrap(), Some(AttesterError::Module), "what is no document is refused");
        }
        assert_eq!(*asked.lock().unwrap(), ["client", "kms", "client", "client", "client"]);
    }

    #[tokio::test]
    async fn clients_are_refused_past_their_rate() {
        let attester = Attester::start(Arc::new(Slow::default()), Arc::new(SystemClock));
        let all = (0..CLIENT_BURST + 8).map(|_| {
            let attester = attester.clone();
            tokio::spawn(async move { attester.for_client(nonce(), &Digest::of(b"")).await.err() })
        });
        let mut busy = 0;
        for answer in all.collect::<Vec<_>>() {
            busy += usize::from(answer.await.unwrap() == Some(AttesterError::Busy));
        }
        assert!(busy >= 8, "{busy}");
    }

    #[derive(Debug)]
    struct Wrong;

    impl Clock for Wrong {
        fn now(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH + Duration::from_secs(1)
        }
    }

    #[tokio::test]
    async fn a_clock_that_is_far_from_the_modules_is_reported() {
        use simulator::authority::Authority;
        use simulator::nsm::{Module, ModuleSettings, Registers};
        let now = attestation::UnixMillis(SystemClock.unix_millis());
        let registers = Registers { pcr0: [1; 48], pcr1: [2; 48], pcr2: [3; 48], role_arn: None };
        let settings = ModuleSettings {
            region: "us-east-1".into(),
            instance_id: "i-0123456789abcdef0".into(),
            registers,
            debug: false,
        };
        let module = Module::new(Arc::new(Authority::ephemeral().unwrap()), &settings, now).unwrap();
        struct Simulated(Mutex<Module>, attestation::UnixMillis);
        impl Exchange for Simulated {
            fn exchange(&self, request: Request) -> Result<Response, NsmError> {
                Ok(self.0.lock().unwrap().handle(request, self.1))
            }
        }
        let module = Arc::new(Simulated(Mutex::new(module), now));
        let key = RecipientKey::generate().unwrap();
        let good = Attester::start(module.clone(), Arc::new(SystemClock));
        assert!(good.for_kms(key.spki()).await.is_ok());
        let bad = Attester::start(module, Arc::new(Wrong));
        assert!(matches!(bad.for_kms(key.spki()).await, Err(AttesterError::Drift { .. })));
        tokio::time::timeout(Duration::from_secs(5), bad.drifted()).await.unwrap();
    }
}
