//! Serving: the door, its caps, and what requests share.
//!
//! HTTP/2 is attack surface before anything is authenticated, so everything on it is capped: connections, streams,
//! header lists, resets, idle time, bodies. A panic in one stream ends that stream.

mod body;
mod routes;
mod server;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use attestation::keyset::Keyset;
use inference::{KvMemory, Model};
use tokio::sync::Semaphore;

use crate::attester::Attester;
use crate::boot::{Loaded, ServeError};
use crate::cache::{CacheLimits, DataKeyCache};
use crate::configuration::Configuration;
use crate::key_policy::{self, KeyPolicies};
use crate::kms::Kms;
use crate::log::{self, Event};
use crate::memory;
use crate::platform::Clock;
use crate::replay::{Quota, ReplaySet};
use crate::tenant::Shares;

pub(crate) use body::{AnswerBody, Piece, PieceSender};

/// What all requests share.
pub(crate) struct Service {
    pub(crate) configuration: Configuration,
    pub(crate) kms: Arc<Kms>,
    pub(crate) attester: Attester,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) module_id: String,
    pub(crate) models: BTreeMap<String, Arc<inference::Model>>,
    /// Requests that are being uploaded and opened: four for each that may be in work.
    pub(crate) uploads: Arc<Semaphore>,
    /// Sealed requests in work at once, from where they are open to the last byte of their answer.
    pub(crate) requests: Arc<Semaphore>,
    /// How many of them are each tenant's.
    pub(crate) shares: Arc<Shares>,
    /// Prompts that are made ready for the engine at once.
    pub(crate) preparing: Arc<Semaphore>,
    /// What customers' key policies leave open.
    pub(crate) key_policies: KeyPolicies,
    model_key_policy: String,
    manifests: BTreeMap<String, [u8; 48]>,
    memory: KvMemory,
    release: u64,
    cache: Mutex<DataKeyCache>,
    replays: Mutex<ReplaySet>,
    draining: AtomicBool,
}

impl Service {
    fn new(loaded: Loaded) -> Result<(Self, address::Address), ServeError> {
        let Loaded { parts, models, key_policies } = loaded;
        let accepted = parts.accepted();
        let crate::boot::Parts {
            listener,
            host: _,
            nsm: _,
            clock,
            image,
            attester,
            module_id,
            measurements: _,
            role: _,
            configuration,
            kms,
        } = parts;
        let manifests = models.iter().map(|(name, loaded)| (name.clone(), loaded.manifest_sha384)).collect();
        // Half of what is available now, which is after the models were loaded: the other half is for what steps take, for messages,
        // and for what an estimate forgets.
        let for_forms = models.values().map(|loaded| loaded.model.form_bytes()).fold(0, u64::saturating_add);
        let memory = KvMemory::new(memory::available().saturating_sub(for_forms) / 2);
        let within = |model: Model| model.within(&memory).map(Arc::new).map_err(|_| ServeError::Internal);
        let models = models.into_iter().map(|(name, loaded)| Ok((name, within(loaded.model)?)));
        let models = models.collect::<Result<_, ServeError>>()?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let service = Self {
            uploads: Arc::new(Semaphore::new(configuration.limits.concurrent_requests.saturating_mul(4))),
            requests: Arc::new(Semaphore::new(configuration.limits.concurrent_requests)),
            shares: Arc::default(),
            preparing: Arc::new(Semaphore::new(cores)),
            memory,
            key_policies: KeyPolicies::new(Arc::clone(&kms), Arc::clone(&clock), accepted),
            model_key_policy: key_policy::to_keyset_text(&key_policies),
            configuration,
            kms,
            attester,
            clock,
            module_id,
            models,
            manifests,
            release: image.release(),
            cache: Mutex::new(DataKeyCache::new(CacheLimits::default())),
            replays: Mutex::new(ReplaySet::new(Quota::default())),
            draining: AtomicBool::new(false),
        };
        Ok((service, listener))
    }

    /// What a client's document binds: one digest over everything that it relies on.
    pub(crate) fn keyset(&self) -> Keyset {
        Keyset {
            version: 1,
            ohttp_key_configuration: None,
            receipt_key: None,
            models: self.manifests.clone(),
            guardrails: None,
            configuration: self.configuration.sha384,
            release: self.release,
            model_key_policy: Some(self.model_key_policy.clone()),
            not_after: self.clock.unix_seconds().saturating_add(KEYSET_SECONDS),
        }
    }

    pub(crate) fn cache(&self) -> MutexGuard<'_, DataKeyCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn replays(&self) -> MutexGuard<'_, ReplaySet> {
        self.replays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// The last phase: opens the door and serves until `shutdown`, or until the clock can no longer be believed.
pub(crate) async fn run(loaded: Loaded, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
    let (service, address) = Service::new(loaded)?;
    let service = Arc::new(service);
    let mut listener = address::listen_for_parent(&address).await?;
    log::write(Event::Boot { phase: log::Phase::Serving });
    log::write(Event::Serving {
        release: service.release,
        port: address.port().into(),
        models: service.models.len() as u64,
    });
    let sweeper = tokio::spawn(sweep(Arc::clone(&service)));
    let mut connections = server::Connections::default();
    tokio::pin!(shutdown);
    let ended = tokio::select! {
        () = connections.accept(&mut listener, &service) => Ok(()),
        () = service.attester.drifted() => Err(ServeError::ClockDrift),
        () = &mut shutdown => Ok(()),
    };
    drop(listener);
    service.draining.store(true, Ordering::Relaxed);
    log::write(Event::Stopping { connections: connections.len() as u64 });
    // With a wrong clock nothing more is answered; on an ordinary shutdown what was begun is finished.
    let patience = if ended.is_ok() { DRAIN } else { Duration::ZERO };
    connections.drain(patience).await;
    sweeper.abort();
    ended
}

/// Keys, and keys and values of prompts, that are too old are wiped also when nobody asks for anything.
async fn sweep(service: Arc<Service>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        service.cache().sweep(Instant::now());
        service.memory.sweep(Instant::now());
    }
}

/// How long a client may rely on a keyset: a day, as it is made anew with every document.
const KEYSET_SECONDS: u64 = 86_400;
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// How long requests in work are waited for at shutdown.
const DRAIN: Duration = Duration::from_secs(20);
