//! Reading a message: header, then frames as they are authenticated, then the proof of the true end.
//!
//! ```text
//! HeaderReader --bytes--> UnverifiedHeader --data key--> BodyReader --bytes--> Provisional, Provisional, ...
//!                                                                 --finish--> End
//! ```
//! Each phase consumes the one before. A [`Provisional`] is authentic, but whether the message goes on, and whether its
//! signature is good, is known only with [`End`]: nothing may be done because of it until then. To act on a whole
//! message, hold its frames in a [`Held`] and let the `End` turn that into [`Plaintext`].
//!
//! ```
//! # use sealing::{message::{DataKey, Limits}, reader::{HeaderReader, Held, OpenError, Plaintext, Progress}};
//! fn open(chunks: &[&[u8]], key: &DataKey) -> Result<Plaintext, OpenError> {
//!     let mut reader = HeaderReader::new(Limits::request());
//!     let mut chunks = chunks.iter();
//!     let (mut body, mut rest) = loop {
//!         let mut rest: &[u8] = chunks.next().ok_or(OpenError::Incomplete)?;
//!         match reader.push(&mut rest)? {
//!             Progress::More(more) => reader = more,
//!             Progress::Done(header) => break (header.authenticate(key)?, rest),
//!         }
//!     };
//!     let mut held = Held::new(&body, 1_048_576);
//!     loop {
//!         while let Some(frame) = body.push(&mut rest)? {
//!             held.add(&frame)?;
//!         }
//!         match chunks.next() {
//!             Some(chunk) => rest = chunk,
//!             None => return held.confirm(&body.finish()?),
//!         }
//!     }
//! }
//! ```

mod body;
mod error;
mod header;
mod held;

pub use body::{BodyReader, End, Provisional};
pub use error::OpenError;
pub use header::{Framing, Header, HeaderError, HeaderReader, Progress, UnverifiedHeader};
pub use held::{Held, Plaintext};

pub(crate) use header::{FORMAT_VERSION, FRAMED};

use crate::message::{DataKey, Limits};

/// Opens one whole message that lies in memory. `key` is asked for the data key once the header is read; what it sees is
/// not yet authenticated.
///
/// # Errors
/// [`OpenError`] for a message that is not exactly one good message within `limits` and `most` bytes of plaintext; its
/// [`Key`](OpenError::Key) when `key` gives none.
pub fn open_whole(
    limits: Limits,
    message: &[u8],
    most: usize,
    key: impl FnOnce(&UnverifiedHeader) -> Option<DataKey>,
) -> Result<(Header, Plaintext), OpenError> {
    let mut rest = message;
    let Progress::Done(header) = HeaderReader::new(limits).push(&mut rest)? else {
        return Err(OpenError::Incomplete);
    };
    let key = key(&header).ok_or(OpenError::Key)?;
    let mut body = header.authenticate(&key)?;
    let mut held = Held::new(&body, most);
    while let Some(frame) = body.push(&mut rest)? {
        held.add(&frame)?;
    }
    let header = body.header().clone();
    let plaintext = held.confirm(&body.finish()?)?;
    Ok((header, plaintext))
}
