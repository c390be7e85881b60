//! Who could get plaintext out of a key, and how: what an auditor asks of a key policy, and the enclave of its own keys.
//!
//! [`assess`] takes any policy, also one that [`crate::Policy::parse`] refuses, and answers three things: paths that are open now,
//! without the attested code; who could open one; and what is weaker than it should be. It searches all calls that the policy can tell
//! apart (callers, operations, registers, encryption contexts), with each condition decided by the crate's own evaluator. So where
//! nothing is found open, [`crate::evaluate`] lets nothing through; the tests compare the two. What is not understood is taken to open.
//!
//! Outside, because nothing of it is written in a key policy or a grant: the IAM policies of the accounts (whoever may need one is taken
//! to have it), service control policies, the origin of the key material, and what happens after this moment. Key policies of
//! asymmetric and HMAC keys are not the subject: `DeriveSharedSecret`, `Sign` and the like cannot open what a symmetric key sealed.

mod expectation;
mod finding;
mod glob;
mod grant;
mod lints;
mod paths;
mod reading;
mod search;
mod space;
mod weaknesses;
mod world;

use std::collections::BTreeSet;

use ring::digest::{SHA384, digest};
use serde::{Serialize, Serializer};

pub use expectation::{Expectation, KeyKind, Registers};
pub use finding::{Finding, Holder, Kind};
pub use grant::{Constraints, Grant, GrantsError, MAX_GRANTS_BYTES};

use expectation::ZERO;
use reading::Reading;
use search::Exhausted;
use world::World;

/// What a policy and the grants beside it leave open, as far as they tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Assessment {
    /// SHA-384 of the policy's text, as received.
    #[serde(serialize_with = "hexadecimal")]
    pub digest: Digest,
    /// Whether grants were given. Without them, what they open is not seen.
    pub grants_seen: bool,
    /// Paths to plaintext that are open now, without the attested code.
    pub open: Vec<Finding>,
    /// Who could open one.
    pub could_open: Vec<Finding>,
    /// What is open to nobody, but weaker than it should be.
    pub weaknesses: Vec<Finding>,
    /// Who comes to plaintext because that is what the key is for.
    pub by_purpose: BTreeSet<Holder>,
}

/// A SHA-384 digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub [u8; 48]);

/// Judges a policy, as `GetKeyPolicy` returned it, and the grants, as `ListGrants` did.
///
/// It never fails: what cannot be read or decided is an open path of kind [`Kind::NotUnderstood`] or [`Kind::TooComplex`]. Time and
/// memory are bounded, whatever the text.
pub fn assess(policy_text: &str, grants: Option<&[Grant]>, expectation: &Expectation) -> Assessment {
    let mut assessment = Assessment { grants_seen: grants.is_some(), ..Assessment::default() };
    if let Ok(digest) = digest(&SHA384, policy_text.as_bytes()).as_ref().try_into() {
        assessment.digest = Digest(digest);
    }
    let Reading { mut sources, not_counted, unreadable } = reading::read(policy_text, expectation.key.as_ref());
    for (statement, reason) in unreadable {
        assessment.open.push(not_understood(statement, reason));
    }
    for (statement, reason) in not_counted {
        assessment.weaknesses.push(Finding {
            kind: Kind::NotCounted,
            statement,
            principals: BTreeSet::new(),
            path: "-".into(),
            reason: format!("this Deny is not counted: {reason}"),
            fix: "write it with conditions that are understood, or do not rely on it".into(),
        });
    }
    for image in expectation.images.iter().filter(|image| image.get(&0).is_none_or(|value| *value == ZERO)) {
        assessment.weaknesses.push(Finding {
            kind: Kind::BadExpectation,
            statement: "policy".into(),
            principals: BTreeSet::new(),
            path: "-".into(),
            reason: format!(
                "an expected image of {} registers has no PCR0, or a zero one: it is not accepted",
                image.len()
            ),
            fix: "give the measurements of an image that was built for production".into(),
        });
    }
    let grants = grants.unwrap_or_default();
    sources.extend(grants.iter().take(MAX_GRANTS).map(Grant::source));
    if grants.len() > MAX_GRANTS || search(sources, expectation, &mut assessment).is_err() {
        assessment.open.push(Finding {
            kind: Kind::TooComplex,
            statement: "policy".into(),
            principals: BTreeSet::new(),
            path: "any".into(),
            reason:
                "the policy and its grants cannot be decided within bounds: too many statements, patterns or grants"
                    .into(),
            fix: "write a simpler policy; revoke grants that nobody needs".into(),
        });
    }
    assessment
}

impl Assessment {
    /// Whether no path is open now.
    pub fn is_closed(&self) -> bool {
        self.open.is_empty()
    }
}

fn search(
    sources: Vec<reading::Source>,
    expectation: &Expectation,
    assessment: &mut Assessment,
) -> Result<(), Exhausted> {
    let mut budget = BUDGET;
    lints::find(&sources, assessment);
    let world = World::new(sources, expectation, &mut budget)?;
    paths::find(&world, expectation, assessment, &mut budget)?;
    weaknesses::find(&world, expectation, assessment, &mut budget)
}

fn not_understood(statement: String, reason: String) -> Finding {
    Finding {
        kind: Kind::NotUnderstood,
        statement,
        principals: BTreeSet::from(["*".to_owned()]),
        path: "any".into(),
        reason: format!("it cannot be evaluated, and may allow anything: {reason}"),
        fix: "write it as AWS documents it, or leave it out".into(),
    }
}

impl Default for Digest {
    fn default() -> Self {
        Self([0; 48])
    }
}

fn hexadecimal<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(digest.0))
}

/// Steps of a search, each a few nanoseconds: a good policy takes some ten thousand.
const BUDGET: u32 = 10_000_000;
/// A Subrosa key needs no grant. KMS developer guide, "Resource quotas": at most 50,000.
const MAX_GRANTS: usize = 200;
