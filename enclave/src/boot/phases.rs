//! The phases of boot.

use std::collections::BTreeMap;
use std::sync::Arc;

use address::Address;
use attestation::Pcr;
use attestation::measurement;
use attestation::nsm::{Nsm, NsmError};
use inference::Model;
use kms_policies::exposure::Registers;

use super::patience::Patience;
use super::{ServeError, entropy, packs};
use crate::attester::Attester;
use crate::configuration::{Configuration, DOCUMENT_BYTES_MAX, OnOpenPolicy};
use crate::credentials::RoleCredentials;
use crate::host::HostServices;
use crate::image::ImageConfiguration;
use crate::key_policy::{Accepted, KeyPolicies, Verdict};
use crate::kms::Kms;
use crate::kms::arn::KeyArn;
use crate::kms::connector::Tunnel;
use crate::log::{self, Event, Hash, Service};
use crate::platform::{Clock, Platform};
use crate::recipient::RecipientKey;

/// Nothing is known, not even the time.
pub struct Cold {
    platform: Platform,
}

/// The module answers, its randomness is mixed in, its time and ours agree, the user PCRs are untouched.
pub struct Attested {
    platform: Platform,
    attester: Attester,
    module_id: String,
    measurements: Registers,
    role: Pcr,
    debug: bool,
}

/// The configuration is measured into PCR17, which is locked. Never in debug mode.
pub struct Configured {
    platform: Platform,
    attester: Attester,
    module_id: String,
    measurements: Registers,
    role: Pcr,
    configuration: Configuration,
}

/// There are credentials, and a TLS handshake with KMS has succeeded.
pub struct Keyed {
    parts: Parts,
}

/// The models are loaded; PCR16 is extended and locked. This is what the service is made of.
pub struct Loaded {
    /// What outlives boot.
    pub(crate) parts: Parts,
    /// The models, by the name that requests use.
    pub(crate) models: BTreeMap<String, LoadedModel>,
    /// What the policies of their keys leave open, by key.
    pub(crate) key_policies: BTreeMap<KeyArn, Verdict>,
}

/// What outlives boot.
pub(crate) struct Parts {
    pub(crate) listener: Address,
    pub(crate) host: HostServices,
    pub(crate) nsm: Arc<dyn Nsm>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) image: ImageConfiguration,
    pub(crate) attester: Attester,
    pub(crate) module_id: String,
    /// PCR0 to PCR2, from our own document.
    pub(crate) measurements: Registers,
    /// PCR3, which names the parent's role.
    pub(crate) role: Pcr,
    pub(crate) configuration: Configuration,
    pub(crate) kms: Arc<Kms>,
}

/// A model, and what it was measured as.
pub(crate) struct LoadedModel {
    pub(crate) model: Model,
    pub(crate) manifest_sha384: [u8; 48],
}

impl Parts {
    /// Which code may have the keys.
    pub(crate) fn accepted(&self) -> Accepted {
        let Self { measurements, role, configuration, .. } = self;
        Accepted { own: measurements.clone(), role: *role, others: configuration.accepted_images.clone() }
    }
}

impl Cold {
    /// The first phase.
    pub fn new(platform: Platform) -> Self {
        Self { platform }
    }

    /// Randomness, time, and who we are.
    pub async fn attest(self) -> Result<Attested, ServeError> {
        let Self { platform } = self;
        let _mixed = on_nsm(&platform.nsm, |nsm| Ok(entropy::mix(nsm))).await??;
        for index in [PCR_PACKS, PCR_CONFIGURATION] {
            let (locked, value) = on_nsm(&platform.nsm, move |nsm| nsm.describe_pcr(index.into())).await?;
            if locked || value != measurement::ZERO {
                return Err(ServeError::Pcr {
                    index: index.into(),
                    expected: "zero and not locked, as a start leaves it",
                });
            }
        }
        let attester = Attester::start(Arc::clone(&platform.nsm), Arc::clone(&platform.clock));
        // A document for a key that is dropped at once: it is never sent, but it tells the module's time, our module id
        // and our own measurements. The attester refuses it if the clocks differ.
        let key = tokio::task::spawn_blocking(RecipientKey::generate)
            .await
            .map_err(|_| ServeError::Internal)?
            .map_err(|_| ServeError::Internal)?;
        let document = attester.for_kms(key.spki()).await?.document;
        let debug = document.is_debug();
        if debug {
            log::write(Event::DangerDebugMode);
        }
        let role = document.pcrs().get(&PCR_ROLE).copied().unwrap_or(measurement::ZERO);
        let measurements = document.pcrs().iter().filter(|(index, _)| **index <= 2);
        let measurements = measurements.map(|(index, value)| (*index, *value)).collect();
        Ok(Attested { platform, attester, module_id: document.module_id().to_owned(), measurements, role, debug })
    }
}

impl Attested {
    /// Fetches the configuration, measures it into PCR17 and locks that, before a word of it is acted upon.
    ///
    /// A debug-mode enclave ends here: it has done all its self-checks, and must not get to a key.
    pub async fn configure(self) -> Result<Configured, ServeError> {
        let Self { platform, attester, module_id, mut measurements, role, debug } = self;
        let host = HostServices::new(platform.dialler.host_services.clone());
        let mut patience = Patience::new(Service::Configuration);
        let document = loop {
            match host.get("/v1/configuration", DOCUMENT_BYTES_MAX).await {
                Ok(document) => break document,
                Err(_) => patience.pause().await,
            }
        };
        let configuration = Configuration::parse(&document)?;
        // docs/PROTOCOL.md, section 9: PCR17 := SHA384(PCR17 || SHA384(document)), locked.
        let value = extend_and_lock(&platform.nsm, PCR_CONFIGURATION, vec![configuration.sha384]).await?;
        measurements.insert(PCR_CONFIGURATION, value);
        log::write(Event::Configured { sha384: Hash(configuration.sha384) });
        if debug {
            log::write(Event::DangerDebugMode);
            return Err(ServeError::DebugMode);
        }
        Ok(Configured { platform, attester, module_id, measurements, role, configuration })
    }
}

impl Configured {
    /// Gets credentials and shakes hands with KMS.
    pub async fn reach_kms(self) -> Result<Keyed, ServeError> {
        let Self { platform, attester, module_id, measurements, role, configuration } = self;
        let Platform { listener, dialler, nsm, clock, image } = platform;
        let host = HostServices::new(dialler.host_services);
        let region = &configuration.region;
        let tunnel = Tunnel::new(dialler.kms_tunnel, &region.kms_host(), image.root_store()?, Arc::clone(&clock))?;
        let credentials = RoleCredentials::new(host.clone(), Arc::clone(&clock));
        let kms = Kms::new(region, tunnel, credentials.clone(), attester.clone(), Arc::clone(&clock));
        let mut patience = Patience::new(Service::Credentials);
        while credentials.current().await.is_err() {
            patience.pause().await;
        }
        let mut patience = Patience::new(Service::Kms);
        let _reached = loop {
            match kms.reach().await {
                Ok(reached) => break reached,
                Err(_) => patience.pause().await,
            }
        };
        let kms = Arc::new(kms);
        let parts =
            Parts { listener, host, nsm, clock, image, attester, module_id, measurements, role, configuration, kms };
        Ok(Keyed { parts })
    }
}

impl Keyed {
    /// Opens, checks and loads every model pack, in order of name; measures them into PCR16 and locks it, also when
    /// there is none.
    pub async fn load(self) -> Result<Loaded, ServeError> {
        let Self { mut parts } = self;
        let key_policies = self::key_policies(&parts).await?;
        let mut models = BTreeMap::new();
        for (name, source) in &parts.configuration.models {
            let model = packs::load(&parts, name, source).await?;
            models.insert(name.clone(), model);
        }
        let manifests = models.values().map(|loaded: &LoadedModel| loaded.manifest_sha384).collect();
        let value = extend_and_lock(&parts.nsm, PCR_PACKS, manifests).await?;
        parts.measurements.insert(PCR_PACKS, value);
        Ok(Loaded { parts, models, key_policies })
    }
}

/// What the policies of the model packs' keys leave open now, before the packs are opened under them.
async fn key_policies(parts: &Parts) -> Result<BTreeMap<KeyArn, Verdict>, ServeError> {
    let policies = KeyPolicies::new(Arc::clone(&parts.kms), Arc::clone(&parts.clock), parts.accepted());
    let mut verdicts = BTreeMap::new();
    for source in parts.configuration.models.values() {
        if !verdicts.contains_key(&source.key_arn) {
            let mut verdict = policies.of_model_pack(&source.key_arn).await;
            let mut patience = Patience::new(Service::Kms);
            while parts.configuration.key_policies != OnOpenPolicy::Report
                && matches!(verdict, Verdict::Unavailable { .. })
            {
                patience.pause().await;
                verdict = policies.of_model_pack(&source.key_arn).await;
            }
            if !verdict.is_acceptable(parts.configuration.key_policies) {
                return Err(ServeError::KeyPolicyOpen);
            }
            verdicts.insert(source.key_arn.clone(), verdict);
        }
    }
    Ok(verdicts)
}

/// Extends a register that is zero with each of `data`, locks it, checks that it is what it should be now, and returns that.
async fn extend_and_lock(nsm: &Arc<dyn Nsm>, index: u8, data: Vec<[u8; 48]>) -> Result<Pcr, ServeError> {
    let index = u16::from(index);
    let expected = data.iter().fold(measurement::ZERO, |value, data| measurement::extend(&value, data));
    let (locked, value) = on_nsm(nsm, move |nsm| {
        for data in &data {
            nsm.extend_pcr(index, data)?;
        }
        nsm.lock_pcr(index)?;
        nsm.describe_pcr(index)
    })
    .await?;
    if locked && value == expected {
        Ok(value)
    } else {
        Err(ServeError::Pcr { index, expected: "locked, with the value that was just extended" })
    }
}

/// The module's calls block.
async fn on_nsm<T: Send + 'static>(
    nsm: &Arc<dyn Nsm>,
    call: impl FnOnce(&dyn Nsm) -> Result<T, NsmError> + Send + 'static,
) -> Result<T, ServeError> {
    let nsm = Arc::clone(nsm);
    let result = tokio::task::spawn_blocking(move || call(&*nsm)).await.map_err(|_| ServeError::Internal)?;
    Ok(result?)
}

/// AWS Nitro Enclaves User Guide, "PCR3": the IAM role of the parent instance.
const PCR_ROLE: u8 = 3;
/// docs/PROTOCOL.md, section 10: loaded packs.
const PCR_PACKS: u8 = 16;
/// docs/PROTOCOL.md, section 9: the configuration document.
const PCR_CONFIGURATION: u8 = 17;
