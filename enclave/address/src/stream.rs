//! One stream type for both kinds of socket, with bounded writes.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};
use tokio_vsock::VsockStream;

/// Most bytes handed to one `write`: single vsock writes above 32 KiB have corrupted data on real enclaves
/// (rust-vsock and nitro-cli reports); 16 KiB is also HTTP/2's default frame size.
pub const MAX_WRITE: usize = 16 * 1024;

/// A byte stream between parent and enclave.
#[derive(Debug)]
pub enum Stream {
    /// AF_VSOCK.
    Vsock(VsockStream),
    /// A hybrid Unix socket, after its handshake.
    Unix(UnixStream),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Vsock(stream) => Pin::new(stream).poll_read(cx, into),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }
}

// `poll_write_vectored` stays the default, which writes one slice through `poll_write` and so keeps the bound.
impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let bytes = bytes.get(..MAX_WRITE).unwrap_or(bytes);
        match self.get_mut() {
            Self::Vsock(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Vsock(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Vsock(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn no_single_write_is_longer_than_the_bound_and_nothing_is_lost() {
        let (near, far) = UnixStream::pair().unwrap();
        let mut near = Stream::Unix(near);
        let sent: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        assert_eq!(near.write(&sent).await.unwrap(), MAX_WRITE);
        assert!(near.write_vectored(&[io::IoSlice::new(&sent), io::IoSlice::new(&sent)]).await.unwrap() <= MAX_WRITE);
        drop(near);
        let mut received = Vec::new();
        Stream::Unix(far).read_to_end(&mut received).await.unwrap();
        assert_eq!(received[..MAX_WRITE], sent[..MAX_WRITE]);
    }
}
