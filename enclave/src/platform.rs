//! What the two mains give to the one library: doors, the security module, the time, and the image's own file.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use address::Address;
use attestation::nsm::Nsm;

use crate::image::ImageConfiguration;

/// All that the service needs from the machine it runs on. Boot and the KMS client are built inside.
pub struct Platform {
    /// The enclave's own door (port 5000 in production). It is opened in `Serving`, not before.
    pub listener: Address,
    /// The parent's two doors.
    pub dialler: Dialler,
    /// The security module. Its calls block, like the device's.
    pub nsm: Arc<dyn Nsm>,
    /// The wall clock: expiry of requests, certificates, signatures. Deadlines use the monotonic clock.
    pub clock: Arc<dyn Clock>,
    /// `/etc/subrosa/image.toml`, already parsed.
    pub image: ImageConfiguration,
}

/// Where the enclave reaches its parent.
#[derive(Clone, Debug)]
pub struct Dialler {
    /// HTTP/1.1 host services: configuration, credentials, model packs (port 8000).
    pub host_services: Address,
    /// The blind tunnel to KMS (port 8443).
    pub kms_tunnel: Address,
}

impl Dialler {
    /// Both doors at the ports of the protocol: `vsock:3:PORT` or `unix:PATH:PORT`, whatever port `parent` names.
    pub fn at(parent: &Address) -> Self {
        Self {
            host_services: parent.with_port(address::HOST_SERVICES_PORT),
            kms_tunnel: parent.with_port(address::KMS_TUNNEL_PORT),
        }
    }
}

/// The wall clock.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The time of day, as this enclave believes it.
    fn now(&self) -> SystemTime;

    /// Milliseconds since 1970; 0 before it.
    fn unix_millis(&self) -> u64 {
        let since = self.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Seconds since 1970; 0 before it.
    fn unix_seconds(&self) -> u64 {
        self.unix_millis() / 1000
    }
}

/// The kernel's clock (kvm-clock on Nitro, which the parent cannot set).
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}
