//! The simulated KMS: an HTTPS server on loopback that an unmodified aws-sdk-kms or boto3 talks to.
//!
//! It speaks the AWS JSON 1.1 protocol (`X-Amz-Target: TrentService.Decrypt`), checks the SigV4 signature of every request, evaluates
//! the key policy with the crate `kms-policies` against caller, encryption context and the *verified* attestation document, and answers
//! a call with `Recipient` by `CiphertextForRecipient` in the two BER layouts of the real service. It fails as KMS fails, and on
//! request ([`Faults`]) it throttles, delays, breaks and lies.
//!
//! What a test may ask afterwards stands in the [`Journal`]: who called what, with which context, attested or not, and how it ended.
//!
//! ```no_run
//! # async fn example(root_pem: Vec<u8>, folder: std::path::PathBuf) -> Result<(), Box<dyn std::error::Error>> {
//! use simulator::kms::{Principals, Server, Settings};
//! let principals = Principals::parse(r#"{"AKIAEXAMPLE": {"secret": "s", "arn": "arn:aws:iam::111122223333:role/R", "iam_allows": true}}"#)?;
//! let kms = Server::start(Settings::on_loopback(folder, root_pem, principals)).await?;
//! println!("{} (CA: {})", kms.url(), kms.ca_path().display());
//! # Ok(()) }
//! ```

mod authorization;
mod blob;
mod control;
mod envelope;
mod error;
mod faults;

mod journal;
mod operations;
mod principals;
mod recipient;
mod server;
mod sigv4;
mod store;
mod tls;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use attestation::chain::{TrustAnchor, TrustAnchorError};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::notary::Notary;

pub use faults::{Fault, FaultKind, Faults, Layout, Lie};
pub use journal::{Entry, Journal};
pub use principals::{Principal, Principals, PrincipalsError};
pub use store::StoreError;
pub use tls::TlsError;

/// What a simulated KMS needs to know.
pub struct Settings {
    /// Where to serve HTTPS; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where to serve the plain-HTTP control interface, if anywhere.
    pub control: Option<SocketAddr>,
    /// Where keys, grants and the CA are kept; made if missing. What an earlier run left there is used again.
    pub state: PathBuf,
    /// The root certificate that attestation documents must chain to, in PEM.
    pub attestation_root_pem: Vec<u8>,
    /// Who may sign requests.
    pub principals: Principals,
    /// The regions served; the first is where a request without another is answered.
    pub regions: Vec<String>,
    /// Where enclaves run under QEMU, whose documents nobody signs: who signs them on arrival. Every other document is
    /// then refused. Usually `None`.
    pub danger_notary: Option<Notary>,
}

impl Settings {
    /// A free port of 127.0.0.1, region us-east-1, no control interface.
    pub fn on_loopback(state: PathBuf, attestation_root_pem: Vec<u8>, principals: Principals) -> Self {
        let listen = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let regions = vec!["us-east-1".to_owned()];
        Self { listen, control: None, state, attestation_root_pem, principals, regions, danger_notary: None }
    }
}

/// Why a simulated KMS did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// An address could not be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// An address that others could reach.
    #[error("{0} is not a loopback address: a simulated KMS holds keys in a file and must not be reachable")]
    NotLoopback(SocketAddr),
    /// The attestation root could not be read.
    #[error("attestation root: {0}")]
    Root(#[from] TrustAnchorError),
    /// No region was named.
    #[error("at least one region is needed")]
    NoRegion,
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The folder of keys.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Starts simulated KMS servers.
pub struct Server;

impl Server {
    /// Starts serving on the current tokio runtime; it serves until the handle is dropped.
    pub async fn start(settings: Settings) -> Result<Handle, StartError> {
        let Settings { listen, control, state, attestation_root_pem, principals, regions, danger_notary } = settings;
        if regions.is_empty() {
            return Err(StartError::NoRegion);
        }
        let anchor = TrustAnchor::danger_from_pem(&attestation_root_pem)?;
        let tls = tls::Identity::load_or_make(&state, &regions)?;
        let service = Arc::new(Service {
            store: Mutex::new(store::Store::open(&state)?),
            principals: Mutex::new(principals),
            faults: Faults::default(),
            journal: Journal::default(),
            anchor,
            regions,
            notary: danger_notary,
        });
        let mut tasks = JoinSet::new();
        let listener = bind(listen).await?;
        let address = local_address(&listener, listen)?;
        tasks.spawn(server::serve(listener, tls.acceptor, Arc::clone(&service)));
        let mut control_address = None;
        if let Some(control) = control {
            let listener = bind(control).await?;
            control_address = Some(local_address(&listener, control)?);
            tasks.spawn(control::serve(listener, Arc::clone(&service)));
        }
        Ok(Handle { service, address, control_address, ca_pem: tls.ca_pem, ca_path: tls.ca_path, _tasks: tasks })
    }
}

/// A running simulated KMS; dropping it ends it at once.
pub struct Handle {
    service: Arc<Service>,
    address: SocketAddr,
    control_address: Option<SocketAddr>,
    ca_pem: String,
    ca_path: PathBuf,
    _tasks: JoinSet<()>,
}

impl Handle {
    /// `https://localhost:PORT`.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT` of the control interface, if there is one.
    pub fn control_url(&self) -> Option<String> {
        self.control_address.map(|address| format!("http://{address}"))
    }

    /// The certificate of the CA that signed the server's certificate, in PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The file that holds [`Handle::ca_pem`].
    pub fn ca_path(&self) -> &Path {
        &self.ca_path
    }

    /// What shall go wrong.
    pub fn faults(&self) -> &Faults {
        &self.service.faults
    }

    /// What was called.
    pub fn journal(&self) -> &Journal {
        &self.service.journal
    }

    /// Adds or replaces somebody who may sign requests.
    pub fn set_principal(&self, access_key_id: &str, principal: Principal) {
        self.service.principals().insert(access_key_id, principal);
    }
}

/// What all connections share.
struct Service {
    store: Mutex<store::Store>,
    principals: Mutex<Principals>,
    faults: Faults,
    journal: Journal,
    anchor: TrustAnchor,
    regions: Vec<String>,
    notary: Option<Notary>,
}

impl Service {
    fn store(&self) -> MutexGuard<'_, store::Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn principals(&self) -> MutexGuard<'_, Principals> {
        self.principals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    if !address.ip().is_loopback() {
        return Err(StartError::NotLoopback(address));
    }
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
}

fn local_address(listener: &TcpListener, asked: SocketAddr) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|source| StartError::Listen { address: asked, source })
}

/// Milliseconds since the epoch, by this machine's clock.
fn now_millis() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Fills a buffer from the operating system's generator.
fn random(out: &mut [u8]) -> Result<(), error::KmsError> {
    aws_lc_rs::rand::fill(out).map_err(|_| error::KmsError::internal("no randomness"))
}

/// A random UUID, version 4 (RFC 9562, section 5.4): what key ids and request ids look like.
fn random_uuid() -> Result<String, error::KmsError> {
    let mut bytes = [0_u8; 16];
    random(&mut bytes)?;
    let value = (u128::from_be_bytes(bytes) & !(0xF << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let digits = format!("{value:032x}");
    let mut out = String::with_capacity(36);
    for (i, digit) in digits.chars().enumerate() {
        if [8, 12, 16, 20].contains(&i) {
            out.push('-');
        }
        out.push(digit);
    }
    Ok(out)
}
