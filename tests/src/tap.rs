//! Recording forwarders: what stands on every link of the parent and keeps each byte that passes.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// One forwarder. It ends, with every connection through it, when it is dropped.
pub struct Tap {
    name: String,
    recording: Recording,
    accepting: JoinHandle<()>,
}

impl Tap {
    /// Listens on a free port of the loopback interface and forwards each connection to `to`.
    pub async fn tcp(name: &str, to: SocketAddr) -> io::Result<(Tap, SocketAddr)> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let recording = Recording::default();
        let record = recording.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let record = record.clone();
                tokio::spawn(async move {
                    if let Ok(far) = TcpStream::connect(to).await {
                        forward(near, far, record).await;
                    }
                });
            }
        });
        Ok((Tap { name: name.to_owned(), recording, accepting }, address))
    }

    /// Listens on the socket `at` and forwards each connection to the socket `to`, which need not be there yet.
    pub fn unix(name: &str, at: &Path, to: &Path) -> io::Result<Tap> {
        let listener = UnixListener::bind(at)?;
        let recording = Recording::default();
        let (record, to) = (recording.clone(), PathBuf::from(to));
        let accepting = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (record, to) = (record.clone(), to.clone());
                tokio::spawn(async move {
                    if let Ok(far) = UnixStream::connect(to).await {
                        forward(near, far, record).await;
                    }
                });
            }
        });
        Ok(Tap { name: name.to_owned(), recording, accepting })
    }

    /// What this link is called in reports.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Everything that has passed so far: each connection and direction as one run of bytes.
    pub fn recorded(&self) -> Vec<Vec<u8>> {
        self.recording.streams().iter().map(|stream| lock(stream).clone()).collect()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

type Run = Arc<Mutex<Vec<u8>>>;

#[derive(Clone, Default)]
struct Recording(Arc<Mutex<Vec<Run>>>);

impl Recording {
    fn begin(&self) -> Run {
        let run = Run::default();
        lock(&self.0).push(run.clone());
        run
    }

    fn streams(&self) -> Vec<Run> {
        lock(&self.0).clone()
    }
}

async fn forward<S: AsyncRead + AsyncWrite, T: AsyncRead + AsyncWrite>(near: S, far: T, record: Recording) {
    let ((near_read, near_write), (far_read, far_write)) = (split(near), split(far));
    tokio::join!(copy(near_read, far_write, record.begin()), copy(far_read, near_write, record.begin()));
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, run: Run) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let Some(bytes) = buffer.get(..length) else { break };
        lock(&run).extend_from_slice(bytes);
        if to.write_all(bytes).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
