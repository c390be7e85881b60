//! KMS key policies: templates as data, renderer and evaluator.
//!
//! Three people use this crate. A customer renders the policy of their key from a template ([`templates`]); an auditor reads a policy
//! and asks what it allows ([`Policy::parse`], [`evaluate`]), or who comes to plaintext by it ([`exposure`]); the simulated KMS decides every call by the same [`evaluate`].
//!
//! What is understood is understood as AWS documents it. What is not understood (a condition key, an operator, a policy variable,
//! `NotPrincipal`) is refused when the policy is read: an evaluator that skips what it does not know would answer wrongly.
//!
//! Outside the model, because nothing of it is written in a key policy: service control policies, permission boundaries and session
//! policies. What the caller's own IAM policies say is an input ([`Request::iam_allows`]).

pub mod arn;
pub mod attested_key;
mod condition;
mod evaluate;
pub mod exposure;
mod json;
mod parse;
mod pattern;
mod policy;
mod request;
pub mod templates;
pub mod warnings;

pub use condition::{Comparison, Condition, ConditionKey, Operator, Quantifier};
pub use evaluate::{Decision, evaluate};
pub use parse::{MAX_POLICY_BYTES, ParseError};
pub use pattern::ActionPattern;
pub use policy::{Actions, Effect, Policy, Principal, Resources, Statement};
pub use request::{Caller, Recipient, Request};

/// The value of one platform configuration register: a SHA-384 digest.
pub type Pcr = [u8; 48];
