//! How it is said: AWS Encryption SDK messages, and the HTTP messages inside them.
//!
//! Sans I/O: bytes and randomness are arguments, time is never asked for. Nothing here knows a socket, a KMS or an enclave.
//!
//! * [`message`]: what a header says (suite, message id, encryption context, encrypted data keys) and the limits on it;
//! * [`reader`]: header, then frames as they are authenticated, then the proof of the true end;
//! * [`writer`]: the other way;
//! * [`raw_aes`]: wrapping a data key under a key that two parties already share;
//! * [`http`]: the one request or answer that a message carries, and the padding that makes its length say little.
//!
//! The format is the [AWS Encryption SDK message format][format], version 2, with the two key-committing suites.
//!
//! [format]: https://docs.aws.amazon.com/encryption-sdk/latest/developer-guide/message-format.html

mod frame;
pub mod http;
pub mod message;
mod random;
pub mod raw_aes;
pub mod reader;
mod schedule;
mod secret;
mod signature;
pub mod writer;

pub use random::{Random, RandomError, SystemRandom};
pub use secret::SecretBytes;
