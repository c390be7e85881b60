//! Dialling, from either side.

use std::{io, time::Duration};

use tokio::{net::UnixStream, time::timeout};
use tokio_vsock::{VsockAddr, VsockStream};

use crate::{Address, HandshakeError, Stream, handshake, path_of_port};

/// Time for a connection, its handshake included, unless the caller says otherwise.
pub const DIAL_DEADLINE: Duration = handshake::HANDSHAKE_DEADLINE;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The socket could not be connected.
    #[error("cannot connect to {address}: {error}")]
    Connect {
        /// Where to.
        address: Address,
        /// What the system said.
        error: io::Error,
    },
    /// The hybrid handshake failed.
    #[error("cannot connect to {address}: {error}")]
    Handshake {
        /// Where to.
        address: Address,
        /// What went wrong.
        error: HandshakeError,
    },
    /// The deadline passed.
    #[error("cannot connect to {address}: no connection within {} ms", deadline.as_millis())]
    Deadline {
        /// Where to.
        address: Address,
        /// How long was waited.
        deadline: Duration,
    },
}

/// The parent dials the enclave at `address`: vsock, or the monitor's socket and `CONNECT PORT`.
pub async fn dial_enclave(address: &Address) -> Result<Stream, DialError> {
    dial_enclave_within(address, DIAL_DEADLINE).await
}

/// [`dial_enclave`] with another deadline.
pub async fn dial_enclave_within(address: &Address, deadline: Duration) -> Result<Stream, DialError> {
    let dialled = timeout(deadline, async {
        match address {
            Address::Vsock { cid, port } => vsock(address, *cid, *port).await,
            Address::Unix { path, port } => {
                let mut stream = UnixStream::connect(path).await.map_err(|error| refused(address, error))?;
                handshake::ask(&mut stream, *port)
                    .await
                    .map_err(|error| DialError::Handshake { address: address.clone(), error })?;
                Ok(Stream::Unix(stream))
            }
        }
    });
    dialled.await.unwrap_or_else(|_| Err(DialError::Deadline { address: address.clone(), deadline }))
}

/// The enclave dials its parent at `address`: vsock, or `PATH_PORT` without a handshake.
pub async fn dial_parent(address: &Address) -> Result<Stream, DialError> {
    dial_parent_within(address, DIAL_DEADLINE).await
}

/// [`dial_parent`] with another deadline.
pub async fn dial_parent_within(address: &Address, deadline: Duration) -> Result<Stream, DialError> {
    let dialled = timeout(deadline, async {
        match address {
            Address::Vsock { cid, port } => vsock(address, *cid, *port).await,
            Address::Unix { path, port } => {
                let stream = UnixStream::connect(path_of_port(path, *port)).await;
                stream.map(Stream::Unix).map_err(|error| refused(address, error))
            }
        }
    });
    dialled.await.unwrap_or_else(|_| Err(DialError::Deadline { address: address.clone(), deadline }))
}

async fn vsock(address: &Address, cid: u32, port: u32) -> Result<Stream, DialError> {
    let stream = VsockStream::connect(VsockAddr::new(cid, port)).await;
    stream.map(Stream::Vsock).map_err(|error| refused(address, error))
}

fn refused(address: &Address, error: io::Error) -> DialError {
    DialError::Connect { address: address.clone(), error }
}
