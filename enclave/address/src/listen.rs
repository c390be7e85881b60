//! Listening, from either side.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixSocket, UnixStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};

use crate::{
    Address, Stream,
    handshake::{self, HANDSHAKE_DEADLINE},
    path_of_port,
};

/// Most `CONNECT` handshakes under way at once; beyond that connections wait in the socket's backlog.
pub const MAX_PENDING_HANDSHAKES: usize = 64;

/// Why nothing can listen there.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The system refused.
    #[error("cannot listen on {place}: {error}")]
    Io {
        /// A port or a path.
        place: String,
        /// What the system said.
        error: io::Error,
    },
    /// Something that is not a socket has the name; it is left alone.
    #[error("cannot listen on {}: a file that is not a socket has this name; move it away", path.display())]
    NotASocket {
        /// The name.
        path: PathBuf,
    },
    /// Another process listens there.
    #[error("cannot listen on {}: another process does", path.display())]
    InUse {
        /// The name.
        path: PathBuf,
    },
}

/// The parent listens for what its enclave sends to the port of `address`: on vsock from that CID alone, or on the
/// socket `PATH_PORT`, mode 0600.
pub async fn listen_for_enclave(address: &Address) -> Result<Listener, ListenError> {
    Ok(match address {
        Address::Vsock { cid, port } => Listener { kind: bind_vsock(*cid, *port)? },
        Address::Unix { path, port } => {
            let (socket, file) = bind_unix(path_of_port(path, *port)).await?;
            Listener { kind: Kind::Unix { socket, _file: file } }
        }
    })
}

/// The enclave listens for its parent on the port of `address`: on vsock from that CID alone (in general
/// [`PARENT_CID`](crate::PARENT_CID)). On a Unix address it plays the monitor: it listens on PATH, mode 0600, and
/// serves whoever sends `CONNECT PORT`.
pub async fn listen_for_parent(address: &Address) -> Result<Listener, ListenError> {
    Ok(match address {
        Address::Vsock { cid, port } => Listener { kind: bind_vsock(*cid, *port)? },
        Address::Unix { path, port } => {
            let (socket, file) = bind_unix(path.clone()).await?;
            let monitor =
                Monitor { socket, port: *port, assigned: FIRST_ASSIGNED, pending: JoinSet::new(), _file: file };
            Listener { kind: Kind::Monitor(Box::new(monitor)) }
        }
    })
}

/// Hands out connections of the one peer. The socket file of a Unix listener goes with it.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Vsock { socket: VsockListener, peer: u32 },
    Unix { _file: SocketFile, socket: UnixListener },
    Monitor(Box<Monitor>),
}

impl Listener {
    /// The next connection. Strangers and failed handshakes are dropped without a word; an error is one of the
    /// listening socket. Cancelling this loses no connection.
    pub async fn accept(&mut self) -> io::Result<Stream> {
        match &mut self.kind {
            Kind::Vsock { socket, peer } => loop {
                let (stream, from) = socket.accept().await?;
                if from.cid() == *peer {
                    return Ok(Stream::Vsock(stream));
                }
            },
            Kind::Unix { socket, .. } => Ok(Stream::Unix(socket.accept().await?.0)),
            Kind::Monitor(monitor) => monitor.accept().await,
        }
    }
}

/// The host side of hybrid vsock, played by a simulated enclave.
#[derive(Debug)]
struct Monitor {
    // Declared first, dropped first: the name goes before the socket stops to accept.
    _file: SocketFile,
    socket: UnixListener,
    port: u32,
    assigned: u32,
    pending: JoinSet<Option<UnixStream>>,
}

impl Monitor {
    /// Handshakes run beside each other, so that a slow peer holds up nobody.
    async fn accept(&mut self) -> io::Result<Stream> {
        loop {
            tokio::select! {
                Some(shaken) = self.pending.join_next() => {
                    if let Ok(Some(stream)) = shaken {
                        return Ok(Stream::Unix(stream));
                    }
                }
                accepted = self.socket.accept(), if self.pending.len() < MAX_PENDING_HANDSHAKES => {
                    let (mut stream, _) = accepted?;
                    let (port, assigned) = (self.port, self.assigned);
                    self.assigned = assigned.wrapping_add(1).max(FIRST_ASSIGNED);
                    self.pending.spawn(async move {
                        let shaken = timeout(HANDSHAKE_DEADLINE, handshake::answer(&mut stream, port, assigned)).await;
                        matches!(shaken, Ok(Ok(()))).then_some(stream)
                    });
                }
            }
        }
    }
}

fn bind_vsock(peer: u32, port: u32) -> Result<Kind, ListenError> {
    let socket = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))
        .map_err(|error| ListenError::Io { place: format!("vsock port {port}"), error })?;
    Ok(Kind::Vsock { socket, peer })
}

/// Binds `path` with mode 0600: the mode is set between bind and listen, so nobody can connect before.
async fn bind_unix(path: PathBuf) -> Result<(UnixListener, SocketFile), ListenError> {
    remove_stale(&path).await?;
    let bound = (|| {
        let socket = UnixSocket::new_stream()?;
        socket.bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        let file = SocketFile::of(&path)?;
        Ok((socket.listen(BACKLOG)?, file))
    })();
    bound.map_err(|error| ListenError::Io { place: path.display().to_string(), error })
}

/// Removes a socket that nobody listens on; leaves everything else.
async fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let failed = |error| ListenError::Io { place: path.display().to_string(), error };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(ListenError::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    for _ in 0..PROBES {
        return match timeout(PROBE_DEADLINE, UnixStream::connect(path)).await {
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // Its listener is going away at this moment.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                sleep(PROBE_PAUSE).await;
                continue;
            }
            Ok(Err(error)) => Err(failed(error)),
            Ok(Ok(_)) | Err(_) => Err(ListenError::InUse { path: path.to_owned() }),
        };
    }
    Err(ListenError::InUse { path: path.to_owned() })
}

/// The name of a bound socket, removed on drop if it is still the same one.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            // Nothing can be done about a failure here; the next start removes what is stale.
            drop(fs::remove_file(&self.path));
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;
/// How long a socket of the same name may take to show that somebody listens.
const PROBE_DEADLINE: Duration = Duration::from_millis(500);
/// How often, and with what pause, a socket is looked at whose listener is just going away.
const PROBES: u32 = 5;
const PROBE_PAUSE: Duration = Duration::from_millis(20);
/// Firecracker counts its host-side ports from 1 << 30.
const FIRST_ASSIGNED: u32 = 1 << 30;
