//! What an operator may set, with the defaults.

use std::{
    fs::File,
    io::{self, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use address::{Address, HOST_SERVICES_PORT, KMS_TUNNEL_PORT};
use aws_credential_types::provider::SharedCredentialsProvider;
use serde::Deserialize;

/// Everything a [`Parent`](crate::Parent) needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// The enclave's door.
    pub enclave: Address,
    /// The port on which the enclave finds the host services.
    pub host_port: u32,
    /// The port on which the enclave finds the tunnel to KMS.
    pub kms_port: u32,
    /// The configuration document, handed to the enclave as it stands.
    pub configuration: PathBuf,
    /// The folder of sealed model packs.
    pub model_packs: PathBuf,
    /// The AWS region; without one, that of the configuration document.
    pub region: Option<String>,
    /// The one destination of the KMS tunnel, `HOST:PORT`; without one, `kms.REGION.amazonaws.com:443`.
    pub kms_endpoint: Option<String>,
    /// Where credentials come from; without one, the default chain of the AWS SDK.
    pub credentials: Option<SharedCredentialsProvider>,
    /// Bounds on numbers and sizes.
    pub limits: Limits,
    /// Bounds on time.
    pub deadlines: Deadlines,
}

impl Settings {
    /// These four, and defaults for the rest.
    pub fn new(listen: SocketAddr, enclave: Address, configuration: PathBuf, model_packs: PathBuf) -> Self {
        Self {
            listen,
            enclave,
            host_port: HOST_SERVICES_PORT,
            kms_port: KMS_TUNNEL_PORT,
            configuration,
            model_packs,
            region: None,
            kms_endpoint: None,
            credentials: None,
            limits: Limits::default(),
            deadlines: Deadlines::default(),
        }
    }
}

/// Bounds on numbers and sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of clients at once; further ones are answered 503 `busy`.
    pub connections: usize,
    /// Requests under way to the enclave at once; further ones are answered 503 `busy`.
    pub requests: usize,
    /// Bytes of one sealed request; more is answered 413 `too-large`.
    pub body_bytes: u64,
    /// Connections of the enclave to the host services at once; further ones wait.
    pub host_connections: usize,
    /// Connections of the enclave to KMS at once; further ones wait.
    pub tunnel_connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 1024, requests: 256, body_bytes: 1 << 20, host_connections: 32, tunnel_connections: 64 }
    }
}

/// Bounds on time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// To connect to the enclave, its handshake included.
    pub connect: Duration,
    /// For a request's head, and for a connection without any request.
    pub header: Duration,
    /// Time in which a client may keep us waiting for its request's body, in all.
    pub upload: Duration,
    /// From the last byte that the enclave took to the first of its answer.
    pub first_byte: Duration,
    /// Between two pieces of the enclave's answer.
    pub idle: Duration,
    /// How long a client may stop reading before its answer is cut.
    pub stalled: Duration,
    /// Between two pings to the enclave, and as long again for their answer.
    pub ping: Duration,
    /// For the enclave's word on whether it serves.
    pub status: Duration,
    /// For credentials from their source.
    pub credentials: Duration,
    /// Without a byte in either direction of a KMS connection.
    pub tunnel_idle: Duration,
    /// After the signal to stop: `/readyz` says 503, requests are still taken, so that balancers can notice.
    pub lame_duck: Duration,
    /// After that: no new connections, and requests under way may end.
    pub drain: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: address::DIAL_DEADLINE,
            header: Duration::from_secs(30),
            upload: Duration::from_secs(60),
            first_byte: Duration::from_secs(120),
            idle: Duration::from_secs(60),
            stalled: Duration::from_secs(60),
            ping: Duration::from_secs(15),
            status: Duration::from_secs(2),
            credentials: Duration::from_secs(10),
            tunnel_idle: Duration::from_secs(90),
            lame_duck: Duration::ZERO,
            drain: Duration::from_secs(30),
        }
    }
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read the configuration document {}: {error}", path.display())]
    Configuration {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Larger than the enclave takes.
    #[error("the configuration document has more than {MAX_CONFIGURATION} bytes, the most that an enclave takes")]
    ConfigurationTooLarge,
    /// Not JSON with a region.
    #[error("the configuration document names no region: {error}; mend it, or set --region")]
    NoRegion {
        /// What the parser said.
        error: serde_json::Error,
    },
    /// Not a region's name.
    #[error("expected a region of 1 to 32 letters, digits and hyphens, such as eu-central-1, found {0:?}")]
    Region(String),
    /// Not `HOST:PORT`.
    #[error("expected the KMS endpoint as HOST:PORT, such as kms.eu-central-1.amazonaws.com:443, found {0:?}")]
    KmsEndpoint(String),
    /// A limit that lets nothing through, or more than a semaphore or window can count.
    #[error("limits must be 1 to {MAX_LIMIT}")]
    Limit,
}

/// Settings, checked, with what follows from them.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    pub(crate) settings: Settings,
    pub(crate) region: String,
    pub(crate) kms: KmsEndpoint,
}

impl Checked {
    pub(crate) fn new(settings: Settings) -> Result<Self, SettingsError> {
        let Limits { connections, requests, body_bytes, host_connections, tunnel_connections } = settings.limits;
        let counts = [connections, requests, host_connections, tunnel_connections];
        if body_bytes == 0 || counts.iter().any(|count| !(1..=MAX_LIMIT).contains(count)) {
            return Err(SettingsError::Limit);
        }
        let document = read_configuration(&settings.configuration)?;
        let region = match &settings.region {
            Some(region) => region.clone(),
            None => {
                serde_json::from_slice::<Regional>(&document).map_err(|error| SettingsError::NoRegion { error })?.region
            }
        };
        if !(1..=32).contains(&region.len()) || !region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(SettingsError::Region(region));
        }
        let kms = match &settings.kms_endpoint {
            Some(text) => KmsEndpoint::parse(text)?,
            // docs/PROTOCOL.md, section 3: "the KMS endpoint of the configured region and to nothing else".
            // AWS General Reference, "KMS endpoints": China has a suffix of its own.
            None => {
                let suffix = if region.starts_with("cn-") { ".cn" } else { "" };
                KmsEndpoint { host: format!("kms.{region}.amazonaws.com{suffix}"), port: 443 }
            }
        };
        Ok(Self { settings, region, kms })
    }
}

/// The one place the tunnel leads to. The name is resolved for each connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KmsEndpoint {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl KmsEndpoint {
    fn parse(text: &str) -> Result<Self, SettingsError> {
        let parsed = text.rsplit_once(':').and_then(|(host, port)| {
            let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            let host = bare.unwrap_or(host);
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-.".contains(&b) || (bare.is_some() && b == b':');
            let port = port.parse().ok().filter(|port| *port != 0)?;
            (!host.is_empty() && host.bytes().all(allowed)).then(|| Self { host: host.to_owned(), port })
        });
        parsed.ok_or_else(|| SettingsError::KmsEndpoint(text.to_owned()))
    }
}

/// The document's bytes, at most [`MAX_CONFIGURATION`]. Blocking.
pub(crate) fn read_configuration(path: &Path) -> Result<Vec<u8>, SettingsError> {
    let mut document = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_CONFIGURATION + 1).read_to_end(&mut document))
        .map_err(|error| SettingsError::Configuration { path: path.to_owned(), error })?;
    if document.len() as u64 > MAX_CONFIGURATION {
        return Err(SettingsError::ConfigurationTooLarge);
    }
    Ok(document)
}

/// All that the parent reads of the configuration document; the enclave judges the rest.
#[derive(Deserialize)]
struct Regional {
    region: String,
}

/// docs/PROTOCOL.md, section 3: "at most 262,144 bytes".
const MAX_CONFIGURATION: u64 = 262_144;
/// Keeps windows (32 KiB each) below HTTP/2's 2^31-1.
const MAX_LIMIT: usize = 32_768;

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(document: &str, change: impl FnOnce(&mut Settings)) -> Result<Checked, SettingsError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("configuration.json");
        std::fs::write(&path, document).unwrap();
        let enclave = Address::Vsock { cid: 16, port: 5000 };
        let mut settings = Settings::new(([127, 0, 0, 1], 0).into(), enclave, path, folder.path().into());
        change(&mut settings);
        Checked::new(settings)
    }

    #[test]
    fn the_tunnel_leads_to_kms_of_the_configured_region() {
        let checked = checked(r#"{"version":1,"region":"eu-central-1","models":[]}"#, |_| {}).unwrap();
        assert_eq!(checked.kms, KmsEndpoint { host: "kms.eu-central-1.amazonaws.com".into(), port: 443 });
        let checked = self::checked(r#"{"version":1,"region":"cn-north-1","models":[]}"#, |_| {}).unwrap();
        assert_eq!(checked.kms, KmsEndpoint { host: "kms.cn-north-1.amazonaws.com.cn".into(), port: 443 });
    }

    #[test]
    fn a_region_that_would_name_another_host_is_refused() {
        for region in ["", "eu.evil.example/", "us-east-1.evil", "a b", &"a".repeat(33)] {
            let refused = checked("{}", |settings| settings.region = Some(region.to_owned()));
            assert!(matches!(refused, Err(SettingsError::Region(_))), "{region:?}");
        }
        assert!(matches!(checked("{}", |_| {}), Err(SettingsError::NoRegion { .. })));
    }

    #[test]
    fn a_kms_endpoint_is_one_host_and_one_port() {
        for (text, host) in
            [("127.0.0.1:8443", "127.0.0.1"), ("[::1]:8443", "::1"), ("kms.example:8443", "kms.example")]
        {
            assert_eq!(KmsEndpoint::parse(text).unwrap(), KmsEndpoint { host: host.into(), port: 8443 });
        }
        for text in ["", "kms", "kms:", ":443", "kms:0", "kms:70000", "https://kms:443", "a:b:443", "a@b:443"] {
            assert!(KmsEndpoint::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_configuration_document_beyond_the_limit_is_refused() {
        let padded = format!(r#"{{"region":"x"{}}}"#, " ".repeat(MAX_CONFIGURATION as usize));
        assert!(matches!(checked(&padded, |_| {}), Err(SettingsError::ConfigurationTooLarge)));
    }

    #[test]
    fn limits_that_let_nothing_through_are_refused() {
        let changes: [fn(&mut Limits); 4] =
            [|l| l.connections = 0, |l| l.requests = 0, |l| l.body_bytes = 0, |l| l.requests = 1 << 20];
        for change in changes {
            let refused = checked(r#"{"region":"x"}"#, |settings| change(&mut settings.limits));
            assert!(matches!(refused, Err(SettingsError::Limit)));
        }
    }
}
