//! What was found, in words.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

/// One way to plaintext, or one weakness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// The statement that lets it through: its `Sid`, `#N` for the Nth, `grant ID`, or `policy`.
    pub statement: String,
    /// Who: ARNs, services, `account N`, or `*`.
    pub principals: BTreeSet<String>,
    /// The chain of actions.
    pub path: String,
    /// Why it is so.
    pub reason: String,
    /// How to mend it.
    pub fix: String,
}

/// Someone who comes to plaintext by the key's own purpose.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Holder {
    /// Who.
    pub principal: String,
    /// What they may do.
    pub may: &'static str,
    /// By which statement.
    pub statement: String,
}

/// The kinds of findings; their names stand in the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Plaintext without attestation.
    Unattested,
    /// Answers for somebody who is not named to read them.
    AnswersReadable,
    /// Data keys for answers, in plaintext, without the attested image: who has one forges answers.
    AnswerKeys,
    /// The ciphertext can be moved under another key.
    ReEncrypt,
    /// Plaintext for any enclave in debug mode, whose memory the parent reads.
    DebugEnclave,
    /// Plaintext for another image.
    OtherImage,
    /// Plaintext for a NitroTPM machine that is not expected.
    NitroTpm,
    /// It is not understood, and may allow anything.
    NotUnderstood,
    /// Deciding would take too long.
    TooComplex,
    /// May change the policy.
    PutKeyPolicy,
    /// May give the key on.
    CreateGrant,
    /// May make a copy of a multi-Region key under a policy of their own.
    ReplicateKey,
    /// May bring key material that they know.
    ImportKeyMaterial,
    /// Whoever administers IAM in the enclave's account can take this role.
    SharedAccount,
    /// Nothing denies it: one more statement, or a grant, would open it.
    NotDenied,
    /// The statement does not bind a register; the rest of the policy does.
    RegisterNotBound,
    /// PCR16 is not bound: any model.
    ModelNotPinned,
    /// PCR17 is not bound: any configuration.
    ConfigurationNotPinned,
    /// One accepted image passes with the models or the configuration of another.
    MixedImages,
    /// The statement does not bind the encryption context.
    ContextNotBound,
    /// Everyone, or a whole account, is allowed an operation with the key.
    BroadPrincipal,
    /// An accepted image could not work with the key.
    ImageRefused,
    /// Nobody is left for one of the key's roles.
    RoleEmpty,
    /// A register is compared with zero.
    ZeroRegister,
    /// A register is compared by wildcard.
    WildcardRegister,
    /// `IfExists` lets a call through that lacks the key.
    IfExists,
    /// A `Null` condition demands that there be no attestation.
    NullAttestation,
    /// A set operator on a key with one value.
    SetOperator,
    /// The value can never be equal.
    NeverMatches,
    /// The operation has no `Recipient`, so the condition never holds.
    NoRecipient,
    /// Every operation is allowed.
    BroadAction,
    /// What is not named is allowed.
    AllBut,
    /// A part was not understood, and was assumed to open; that opened nothing.
    Assumed,
    /// A `Deny` was not understood, and is not counted.
    NotCounted,
    /// An accepted image has no usable PCR0.
    BadExpectation,
}

impl Kind {
    /// The name in the output.
    pub fn name(self) -> String {
        // Every unit variant is a string.
        serde_json::to_value(self).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, statement, principals, path, reason, fix } = self;
        write!(f, "{} in {}", kind.name(), Plain(statement))?;
        if !principals.is_empty() {
            let names: Vec<String> = principals.iter().map(|name| Plain(name).to_string()).collect();
            write!(f, "\n  who:  {}", names.join(", "))?;
        }
        write!(f, "\n  path: {}\n  why:  {}\n  fix:  {}", Plain(path), Plain(reason), Plain(fix))
    }
}

/// Words from a stranger's policy: they must not steer the terminal.
struct Plain<'a>(&'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            ' '..='~' => write!(f, "{c}"),
            c => write!(f, "{}", c.escape_unicode()),
        })
    }
}
