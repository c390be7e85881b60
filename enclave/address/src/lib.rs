//! Addresses of the enclave's door: vsock and hybrid vsock over Unix sockets.
//!
//! One [`Address`] names one channel between a parent and its enclave, and both sides write it the same way:
//! on vsock the CID is always that of the *peer*, on a hybrid Unix socket the path is that of the monitor's socket.
//!
//! | | parent | enclave |
//! | --- | --- | --- |
//! | dials | [`dial_enclave`]: vsock connect, or PATH and `CONNECT PORT` | [`dial_parent`]: vsock connect, or `PATH_PORT` |
//! | listens | [`listen_for_enclave`]: vsock PORT, or `PATH_PORT` | [`listen_for_parent`]: vsock PORT, or PATH and `CONNECT PORT` |
//!
//! Listeners on vsock hand out connections of the one CID in their address and drop all others.
//! Everything that waits has a deadline, and no single write exceeds [`MAX_WRITE`].

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

mod dial;
mod handshake;
mod listen;
mod stream;

pub use dial::{DIAL_DEADLINE, DialError, dial_enclave, dial_enclave_within, dial_parent, dial_parent_within};
pub use handshake::{HANDSHAKE_DEADLINE, HandshakeError, MAX_LINE};
pub use listen::{ListenError, Listener, MAX_PENDING_HANDSHAKES, listen_for_enclave, listen_for_parent};
pub use stream::{MAX_WRITE, Stream};

/// The port on which an enclave serves its parent (`docs/PROTOCOL.md`, section 1).
pub const ENCLAVE_PORT: u32 = 5000;
/// The parent's port for host services.
pub const HOST_SERVICES_PORT: u32 = 8000;
/// The parent's port for the blind tunnel to KMS.
pub const KMS_TUNNEL_PORT: u32 = 8443;
/// The CID under which an enclave reaches its parent instance (AWS: "The parent instance's CID is always 3").
pub const PARENT_CID: u32 = 3;

/// One end of a channel between parent and enclave: `vsock:CID:PORT` or `unix:PATH:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A vsock connection with the peer `cid`.
    Vsock {
        /// Context identifier of the peer.
        cid: u32,
        /// Port at whoever listens.
        port: u32,
    },
    /// Hybrid vsock: the monitor's Unix socket, as Firecracker and vhost-device-vsock have it.
    Unix {
        /// Path of the monitor's socket.
        path: PathBuf,
        /// Port at whoever listens.
        port: u32,
    },
}

impl Address {
    /// The port of this address.
    pub const fn port(&self) -> u32 {
        match self {
            Self::Vsock { port, .. } | Self::Unix { port, .. } => *port,
        }
    }

    /// The same peer, another port.
    #[must_use]
    pub fn with_port(&self, port: u32) -> Self {
        match self {
            Self::Vsock { cid, .. } => Self::Vsock { cid: *cid, port },
            Self::Unix { path, .. } => Self::Unix { path: path.clone(), port },
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(rest) = text.strip_prefix("vsock:") {
            let (cid, port) = rest.split_once(':').ok_or(AddressError::NoPort)?;
            let cid = decimal(cid).filter(|cid| *cid != ANY).ok_or(AddressError::Cid)?;
            return Ok(Self::Vsock { cid, port: parse_port(port)? });
        }
        if let Some(rest) = text.strip_prefix("unix:") {
            // The path may itself contain colons: the port stands behind the last one.
            let (path, port) = rest.rsplit_once(':').ok_or(AddressError::NoPort)?;
            let port = parse_port(port)?;
            if path.is_empty() || path.contains('\0') || path.len() > MAX_PATH {
                return Err(AddressError::Path { length: path.len() });
            }
            return Ok(Self::Unix { path: PathBuf::from(path), port });
        }
        Err(AddressError::Scheme)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock { cid, port } => write!(out, "vsock:{cid}:{port}"),
            Self::Unix { path, port } => write!(out, "unix:{}:{port}", path.display()),
        }
    }
}

/// Why a text is not an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither of the two forms.
    #[error("expected vsock:CID:PORT or unix:PATH:PORT, for example vsock:16:5000")]
    Scheme,
    /// The part behind the last colon is missing.
    #[error("the address has no port: write vsock:CID:PORT or unix:PATH:PORT")]
    NoPort,
    /// Not a decimal number of 0..=4294967294.
    #[error("the CID must be a decimal number below 4294967295, without sign or leading zeros")]
    Cid,
    /// Not a decimal number of 1..=4294967294.
    #[error("the port must be a decimal number of 1 to 4294967294, without sign or leading zeros")]
    Port,
    /// Empty, too long, or with a NUL.
    #[error("the path of a unix address must have 1 to {MAX_PATH} bytes and no NUL, found {length} bytes")]
    Path {
        /// Its length in bytes.
        length: usize,
    },
}

/// `PATH_PORT`: where the parent listens for what the enclave sends to `port`
/// (Firecracker, docs/vsock.md: "Guest-initiated connections": the host listens on `PATH_PORT`).
pub(crate) fn path_of_port(path: &Path, port: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("_{port}"));
    PathBuf::from(name)
}

/// Only the canonical form, so that an address has one spelling.
pub(crate) fn decimal(text: &str) -> Option<u32> {
    let canonical = text == "0" || (!text.starts_with('0') && !text.is_empty());
    (canonical && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

fn parse_port(text: &str) -> Result<u32, AddressError> {
    decimal(text).filter(|port| *port != 0 && *port != ANY).ok_or(AddressError::Port)
}

/// vsock(7): `VMADDR_CID_ANY` and `VMADDR_PORT_ANY` are -1; neither names a peer.
const ANY: u32 = u32::MAX;
/// unix(7): `sun_path` has 108 bytes; one is for the NUL, and 11 are for `_4294967294` in `PATH_PORT`.
const MAX_PATH: usize = 96;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Address, AddressError> {
        text.parse()
    }

    #[test]
    fn both_forms_are_read_and_written_the_same() {
        assert_eq!(parse("vsock:16:5000"), Ok(Address::Vsock { cid: 16, port: 5000 }));
        assert_eq!(parse("unix:/run/a:b:8443"), Ok(Address::Unix { path: "/run/a:b".into(), port: 8443 }));
        for text in ["vsock:0:1", "vsock:4294967294:4294967294", "unix:x:1", "unix:/run/a:b:8443"] {
            assert_eq!(parse(text).map(|address| address.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn each_malformed_address_is_refused_for_its_own_reason() {
        let long = format!("unix:{}:1", "p".repeat(MAX_PATH + 1));
        for (text, error) in [
            ("", AddressError::Scheme),
            ("tcp:1:2", AddressError::Scheme),
            ("VSOCK:1:2", AddressError::Scheme),
            ("vsock:16", AddressError::NoPort),
            ("unix:16", AddressError::NoPort),
            ("vsock::1", AddressError::Cid),
            ("vsock:+3:1", AddressError::Cid),
            ("vsock:03:1", AddressError::Cid),
            ("vsock:4294967295:1", AddressError::Cid),
            ("vsock:4294967299:1", AddressError::Cid),
            ("vsock:3:", AddressError::Port),
            ("vsock:3:0", AddressError::Port),
            ("vsock:3:5000 ", AddressError::Port),
            ("vsock:3:1:2", AddressError::Port),
            ("vsock:3:4294967295", AddressError::Port),
            ("unix:/run/x:", AddressError::Port),
            ("unix::1", AddressError::Path { length: 0 }),
            ("unix:a\0b:1", AddressError::Path { length: 3 }),
            (long.as_str(), AddressError::Path { length: MAX_PATH + 1 }),
        ] {
            assert_eq!(parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn another_port_keeps_the_peer() {
        let address = Address::Unix { path: "/run/e".into(), port: 5000 };
        assert_eq!(address.with_port(8000).to_string(), "unix:/run/e:8000");
        assert_eq!(Address::Vsock { cid: 16, port: 5000 }.with_port(8443).port(), 8443);
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_accepted_has_one_spelling(text in "(vsock|unix)?:?.{0,40}") {
            if let Ok(address) = parse(&text) {
                prop_assert_eq!(address.to_string(), text);
            }
        }

        #[test]
        fn every_vsock_address_survives_its_text(cid in 0..u32::MAX, port in 1..u32::MAX) {
            let address = Address::Vsock { cid, port };
            prop_assert_eq!(parse(&address.to_string()), Ok(address));
        }

        #[test]
        fn every_unix_address_survives_its_text(path in "[^\0]{1,24}", port in 1..u32::MAX) {
            let address = Address::Unix { path: path.into(), port };
            prop_assert_eq!(parse(&address.to_string()), Ok(address));
        }
    }
}
