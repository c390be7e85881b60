//! The body of an outer answer: a few bytes, or a sealed message as it is made.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use inference::Cancel;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// Whole, or streamed from whoever makes it.
pub(crate) enum AnswerBody {
    /// Known bytes.
    Whole(Option<Bytes>),
    /// Pieces of a sealed message, up to [`Piece::End`].
    Stream(PieceReceiver),
}

/// What travels from the maker of an answer to the connection.
pub(crate) enum Piece {
    /// Bytes of the message.
    Bytes(Bytes),
    /// The message is whole. Without this the stream is reset, so that nobody takes a part for a whole even without
    /// looking at the final frame.
    End,
}

/// The connection's side. When it is dropped (the client went away), the maker is told to stop.
pub(crate) struct PieceReceiver {
    pieces: mpsc::Receiver<Piece>,
    cancel: Cancel,
    ended: bool,
}

/// The maker's side.
pub(crate) struct PieceSender {
    pieces: mpsc::Sender<Piece>,
    runtime: Handle,
    stall_deadline: Duration,
}

/// Nobody reads any more, or nobody read for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody reads the answer")]
pub(crate) struct NobodyReads;

impl AnswerBody {
    /// These bytes.
    pub(crate) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()))
    }

    /// A channel of a few pieces: a client that reads slowly slows its own answer down and nothing else.
    pub(crate) fn stream(cancel: Cancel) -> (PieceSender, Self) {
        let (sender, pieces) = mpsc::channel(PIECES);
        let receiver = PieceReceiver { pieces, cancel, ended: false };
        let sender = PieceSender { pieces: sender, runtime: Handle::current(), stall_deadline: STALL_DEADLINE };
        (sender, Self::Stream(receiver))
    }
}

impl PieceSender {
    /// Hands over a piece from a blocking thread; waits while the client reads, up to the stall deadline.
    pub(crate) fn send(&self, piece: Piece) -> Result<(), NobodyReads> {
        let piece = match self.pieces.try_send(piece) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(NobodyReads),
            Err(mpsc::error::TrySendError::Full(piece)) => piece,
        };
        let sent = self.runtime.block_on(tokio::time::timeout(self.stall_deadline, self.pieces.send(piece)));
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(NobodyReads),
        }
    }

    /// Returns when the client has gone.
    pub(crate) async fn closed(&self) {
        self.pieces.closed().await;
    }

    /// Whether the client has gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.pieces.is_closed()
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(receiver) if receiver.ended => Poll::Ready(None),
            Self::Stream(receiver) => receiver.pieces.poll_recv(cx).map(|piece| match piece {
                Some(Piece::Bytes(bytes)) => Some(Ok(Frame::data(bytes))),
                Some(Piece::End) => {
                    receiver.ended = true;
                    None
                }
                None => {
                    receiver.ended = true;
                    Some(Err(std::io::Error::other("the answer ended before its end")))
                }
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Stream(receiver) => receiver.ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

impl Drop for PieceReceiver {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// About 35 KiB of an answer of 512-byte frames.
const PIECES: usize = 64;
/// docs/PROTOCOL.md knows no such client: one that takes nothing for so long has gone, whatever its socket says.
const STALL_DEADLINE: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn an_answer_that_loses_its_maker_is_an_error_and_not_an_end() {
        let (sender, mut body) = AnswerBody::stream(Cancel::new());
        assert!(sender.send(Piece::Bytes(Bytes::from_static(b"half"))).is_ok());
        drop(sender);
        assert!(body.frame().await.unwrap().is_ok());
        assert!(body.frame().await.unwrap().is_err());
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn an_answer_that_is_whole_ends() {
        let (sender, mut body) = AnswerBody::stream(Cancel::new());
        assert!(sender.send(Piece::End).is_ok());
        drop(sender);
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn a_reader_that_goes_away_stops_the_maker() {
        let cancel = Cancel::new();
        let (sender, body) = AnswerBody::stream(cancel.clone());
        drop(body);
        assert!(cancel.is_cancelled() && sender.is_closed());
        assert_eq!(sender.send(Piece::End), Err(NobodyReads));
    }

    #[tokio::test]
    async fn a_reader_that_stops_reading_stops_the_maker() {
        let (mut sender, body) = AnswerBody::stream(Cancel::new());
        sender.stall_deadline = Duration::from_millis(20);
        let maker = tokio::task::spawn_blocking(move || {
            let pieces = (0..).take_while(|_| sender.send(Piece::Bytes(Bytes::from_static(b"x"))).is_ok());
            pieces.count()
        });
        assert_eq!(maker.await.unwrap(), PIECES);
        drop(body);
    }
}
