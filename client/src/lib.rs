//! The customer's side of Subrosa: seal a prompt, check who will open it, read the answer as it comes.
//!
//! Everything between this library and the enclave is untrusted: what the parent says (status, headers, refusals) is a
//! hint and never evidence, and no byte of an answer is released before it is known to belong to the request.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use subrosa_client::{Client, Request, aws};
//!
//! let kms = aws::kms_client().await?;
//! let client = Client::builder("http://127.0.0.1:8080")
//!     .kms(kms)
//!     .key("arn:aws:kms:us-east-1:111122223333:key/0d990263-da56-4c63-9736-4d1c0a24a2f1")
//!     .tenant("acme")
//!     .build()?;
//! let mut answer = client.ask(Request::user("What is wrong with this patient?")).await?;
//! while let Some(piece) = answer.next().await {
//!     print!("{}", piece?.text);
//! }
//! let complete = answer.finish().await?;
//! println!("\n{:?}", complete.usage());
//! # Ok(())
//! # }
//! ```

pub mod answer;
pub mod appraisal;
pub mod aws;
pub mod client;
pub mod completion;
pub mod data_key;
pub mod doctor;
pub mod evidence;
pub mod files;
pub mod image;
pub mod key_policy;
pub mod live;
pub mod measurements;
pub mod pack;
pub mod registers;
pub mod request;
pub mod rotation;
pub mod sizing;
pub mod transport;

pub use answer::{Answer, AnswerError, Complete, Piece};
pub use client::{AskError, BuildError, Client, ClientBuilder};
pub use request::{AnswerUnder, Message, Request};
