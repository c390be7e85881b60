//! What the enclave says on its console: a closed enum of integers and hashes, one JSON line each.
//!
//! The parent reads the console, so a string would be a leak, and so would a reason that the parent could not count
//! itself: a request that cannot be opened is `cannot-open` here too, and cache hits, verdicts and sealed errors are not
//! logged at all. `Event` is `Copy` and names no string type; a test reads this file to keep it so.

use std::io::Write;

use serde::{Serialize, Serializer};

/// Writes one event to standard output. A console that is gone is nobody's problem.
pub fn write(event: Event) {
    if let Ok(mut line) = serde_json::to_vec(&event) {
        line.push(b'\n');
        let _ = std::io::stdout().lock().write_all(&line);
    }
}

/// Everything that can be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Event {
    /// A phase of boot has been reached.
    Boot {
        /// The phase.
        phase: Phase,
    },
    /// PCR0 to PCR2 are zero: this enclave's memory is open to its parent, and no key policy should know it.
    DangerDebugMode,
    /// Something that boot needs is not there yet; it is asked for again.
    Waiting {
        /// What for.
        service: Service,
        /// How many times it has been asked for.
        attempts: u64,
        /// Milliseconds until the next time.
        again_in_ms: u64,
    },
    /// The configuration document, measured into PCR17.
    Configured {
        /// SHA-384 of the document.
        sha384: Hash<48>,
    },
    /// KMS refused the model-pack key.
    KeyRefused {
        /// What KMS said.
        code: KmsCode,
    },
    /// A model pack was opened, checked and loaded.
    PackLoaded {
        /// SHA-384 of its manifest.
        manifest_sha384: Hash<48>,
        /// Bytes of its files.
        bytes: u64,
    },
    /// A model pack was refused.
    PackRefused {
        /// SHA-384 of the manifest that the configuration names.
        manifest_sha384: Hash<48>,
    },
    /// A model pack, or the model in it, needs more memory than is left. The parent knows the size of the pack, and gave the memory.
    NoRoom {
        /// Bytes it needs.
        needed_bytes: u64,
        /// Bytes that are free.
        available_bytes: u64,
    },
    /// Requests are taken from now on.
    Serving {
        /// The release number of the image.
        release: u64,
        /// The port.
        port: u64,
        /// The models.
        models: u64,
    },
    /// An outer refusal was sent.
    Refused {
        /// The code that the parent saw.
        code: Refusal,
    },
    /// A sealed answer was sent to its end.
    Answered {
        /// SHA-256 over key ARN and tenant, both of which the parent sees.
        tenant: Hash<32>,
        /// Frames, the final one included.
        frames: u64,
    },
    /// A sealed answer ended early: its reader went away or stopped reading, or its time was over.
    Abandoned {
        /// SHA-256 over key ARN and tenant.
        tenant: Hash<32>,
    },
    /// The clock and the security module's timestamps are too far apart.
    ClockDrift {
        /// Milliseconds between them.
        millis: u64,
    },
    /// The security module or the random number generator failed.
    ModuleFailed,
    /// The service has ended by itself.
    Ended {
        /// Why.
        reason: EndReason,
    },
    /// Something panicked. What it said is not written: it could quote a prompt.
    Panicked,
    /// No more requests are taken.
    Stopping {
        /// Connections that are still open.
        connections: u64,
    },
}

/// A phase of boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Nothing is known.
    Cold,
    /// The module answers, its randomness is mixed in, the clock agrees.
    Attested,
    /// PCR17 is extended and locked.
    Configured,
    /// KMS was reached.
    Keyed,
    /// The model packs are open; PCR16 is locked.
    Loaded,
    /// The door is open.
    Serving,
}

/// What boot waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// `GET /v1/configuration`.
    Configuration,
    /// `GET /v1/credentials`.
    Credentials,
    /// The tunnel to KMS, up to the end of the TLS handshake.
    Kms,
    /// `GET /v1/model-packs/NAME`.
    ModelPack,
    /// KMS, for the data key of a model pack.
    ModelPackKey,
}

/// What KMS said, as far as this log can tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum KmsCode {
    /// The key policy or IAM says no.
    AccessDeniedException,
    /// Another key, ciphertext or encryption context.
    InvalidCiphertextException,
    /// A malformed, badly signed or expired attestation document, or another bad parameter.
    ValidationException,
    /// The key does not exist.
    NotFoundException,
    /// The key is disabled or its state does not allow the call.
    KeyUnusable,
    /// The answer broke the rules: `Plaintext`, another ARN, an envelope that does not open.
    RuleBroken,
    /// Anything else.
    Other,
}

/// Why the service has ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndReason {
    /// `/etc/subrosa/image.toml` is missing or wrong.
    Image,
    /// The machine could not be set up, or this is no enclave.
    Machine,
    /// The security module is missing, or failed.
    Module,
    /// There is no randomness.
    Entropy,
    /// PCR16 or PCR17 is not what it should be.
    Pcr,
    /// The configuration document is wrong.
    Configuration,
    /// PCR0 to PCR2 are zero.
    DebugMode,
    /// KMS gives no data key for a model pack.
    ModelPackKey,
    /// The policy of a model pack's key is open, and the configuration says that it must not be.
    KeyPolicyOpen,
    /// A model pack is not the configured one.
    ModelPack,
    /// There is too little memory for a model.
    Memory,
    /// The door could not be opened.
    Listen,
    /// The clock is wrong.
    ClockDrift,
    /// Something of our own failed.
    Internal,
}

/// The codes of outer refusals (docs/PROTOCOL.md, section 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// The message could not be opened; one code on purpose.
    CannotOpen,
    /// More bytes than the limit.
    TooLarge,
    /// A concurrency, rate or quota limit.
    Busy,
    /// Not serving.
    NotReady,
    /// The request did not come in time.
    SlowRequest,
    /// The answer could not be made in time.
    Timeout,
    /// No such path.
    NotFound,
    /// The outer request itself is wrong.
    BadRequest,
}

/// A hash, written in hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash<const N: usize>(pub [u8; N]);

impl<const N: usize> Serialize for Hash<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_has_no_string_field() {
        let source = include_str!("log.rs");
        let fields: Vec<&str> = source
            .split("mod tests")
            .next()
            .unwrap()
            .lines()
            .map(str::trim)
            .filter(|line| !line.starts_with("//") && line.ends_with(',') && line.contains(": "))
            .collect();
        assert!(fields.len() >= 12, "the reader of this test found the fields: {fields:?}");
        for field in fields {
            let kind = field.split(": ").nth(1).unwrap().trim_end_matches(',');
            let allowed = ["u64", "Hash<32>", "Hash<48>", "Phase", "Service", "KmsCode", "Refusal", "EndReason"];
            assert!(allowed.contains(&kind), "{field}");
        }
        const fn is_copy<T: Copy>() {}
        const { is_copy::<Event>() };
    }

    #[test]
    fn an_event_is_one_json_object() {
        let event = Event::Waiting { service: Service::Kms, attempts: 3, again_in_ms: 400 };
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(json, r#"{"event":"waiting","service":"kms","attempts":3,"again-in-ms":400}"#);
        let refused = serde_json::to_string(&Event::KeyRefused { code: KmsCode::AccessDeniedException }).unwrap();
        assert_eq!(refused, r#"{"event":"key-refused","code":"AccessDeniedException"}"#);
    }
}
