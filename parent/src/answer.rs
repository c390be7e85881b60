//! The enclave's answer on its way to the client: piece by piece, and either whole or visibly cut.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::{sync::mpsc, time::timeout};

use crate::{exchange::Exchange, metrics::Outcome, settings::Deadlines};

/// The answer ended before its end. As an error of the body it makes HTTP itself show that: a missing last chunk, a
/// missing byte of `Content-Length`, or a reset stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer was cut before its end")]
pub(crate) struct Cut;

/// Starts to carry `from` and returns the body for the client.
///
/// The task beside it holds at most one piece, sees at once when the client goes away, and gives up a client that stops
/// reading: a body that nobody polls could not.
pub(crate) fn carry(from: Incoming, exchange: Exchange, deadlines: &Deadlines) -> Answer {
    let (to, pieces) = mpsc::channel(1);
    tokio::spawn(pump(from, to, exchange, *deadlines));
    Answer { pieces, ended: false }
}

/// A body that is whole only if its end was said.
pub(crate) struct Answer {
    pieces: mpsc::Receiver<Piece>,
    ended: bool,
}

enum Piece {
    Data(Bytes),
    End,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.pieces.poll_recv(cx).map(|piece| match piece {
            Some(Piece::Data(data)) => Some(Ok(Frame::data(data))),
            Some(Piece::End) => {
                self.ended = true;
                None
            }
            // The task went without a word: whatever the reason, this is no end.
            None => {
                self.ended = true;
                Some(Err(Cut))
            }
        })
    }
}

async fn pump(mut from: Incoming, to: mpsc::Sender<Piece>, mut exchange: Exchange, deadlines: Deadlines) {
    loop {
        let frame = tokio::select! {
            biased;
            () = to.closed() => return exchange.ended(Outcome::Cancelled),
            frame = timeout(deadlines.idle, from.frame()) => frame,
        };
        let piece = match frame {
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) if !data.is_empty() => Piece::Data(data),
                Ok(_) | Err(_) => continue,
            },
            // hyper reports a stream that was reset with NO_ERROR as ended; only END_STREAM is an end.
            Ok(None) if from.is_end_stream() => Piece::End,
            Ok(None | Some(Err(_))) | Err(_) => return exchange.ended(Outcome::Cut),
        };
        let (bytes, end) = match &piece {
            Piece::Data(data) => (data.len(), false),
            Piece::End => (0, true),
        };
        match timeout(deadlines.stalled, to.send(piece)).await {
            Ok(Ok(())) => exchange.passed_on(bytes),
            Ok(Err(_closed)) => return exchange.ended(Outcome::Cancelled),
            Err(_) => return exchange.ended(Outcome::Stalled),
        }
        if end {
            return exchange.complete();
        }
    }
}
