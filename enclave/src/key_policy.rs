//! What the enclave itself sees of the policies of the keys that it uses: who could get plaintext out of them, and how.
//!
//! KMS answers `GetKeyPolicy` and `ListGrants` only within the key's own account ("Cross-account use: No", KMS API), over the
//! enclave's own TLS. For a key of another account the verdict is `not-visible`: there its owner runs `subrosa policy check`. A
//! verdict is a statement about one moment, and about key policy and grants alone: IAM policies are outside it.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kms_policies::exposure::{Assessment, Expectation, Finding, KeyKind, Kind, Registers, assess};
use serde::Serialize;

use crate::kms::arn::KeyArn;
use crate::kms::{KeyPolicy, Kms, KmsError};
use crate::platform::Clock;

/// What was found out about one key's policy, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "status", rename_all = "kebab-case")]
pub enum Verdict {
    /// The policy was read.
    Checked {
        /// SHA-384 of the policy's text, in hexadecimal.
        policy_sha384: String,
        /// Unix seconds.
        checked_at: u64,
        /// Whether the grants were read too. Without them, what they open is not seen.
        grants_seen: bool,
        /// Ways to plaintext that need no accepted image, and are open now.
        open: Vec<Path>,
        /// Other images to which the policy gives the key. (Another release, while one follows the other.)
        other_images: usize,
        /// Who could open a way.
        could_open: Vec<String>,
    },
    /// KMS does not show the policy to this role.
    NotVisible {
        /// Unix seconds.
        checked_at: u64,
    },
    /// KMS could not be asked.
    Unavailable {
        /// Unix seconds.
        checked_at: u64,
    },
}

/// One way to plaintext.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Path {
    /// What it is.
    pub kind: Kind,
    /// By which statement.
    pub statement: String,
    /// Who.
    pub principals: Vec<String>,
}

impl Verdict {
    fn new(assessment: Assessment, checked_at: u64) -> Self {
        let Assessment { digest, grants_seen, open, could_open, weaknesses: _, by_purpose: _ } = assessment;
        let (other, open): (Vec<_>, Vec<_>) = open.into_iter().partition(|found| found.kind == Kind::OtherImage);
        let could_open = could_open.iter().flat_map(|found| &found.principals);
        let could_open: std::collections::BTreeSet<&String> = could_open.collect();
        Self::Checked {
            policy_sha384: hex::encode(digest.0),
            checked_at,
            grants_seen,
            open: open.iter().map(Path::new).collect(),
            other_images: other.len(),
            could_open: could_open.into_iter().map(|name| plain(name)).collect(),
        }
    }

    /// Whether there is a way to plaintext now.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Checked { open, .. } if !open.is_empty())
    }

    /// The verdict as JSON in visible ASCII, of at most `bytes_max` bytes: names are left out where they do not fit, the number of
    /// ways never is.
    pub fn to_text(&self, bytes_max: usize) -> String {
        let whole = serde_json::to_string(self).unwrap_or_default();
        if whole.len() <= bytes_max {
            return whole;
        }
        let Self::Checked { policy_sha384, checked_at, grants_seen, open, other_images, could_open } = self else {
            return whole;
        };
        let short = serde_json::json!({
            "status": "checked", "policy_sha384": policy_sha384, "checked_at": checked_at, "grants_seen": grants_seen,
            "open": open.len(), "other_images": other_images, "could_open": could_open.len(),
        });
        short.to_string()
    }
}

impl Path {
    fn new(finding: &Finding) -> Self {
        let Finding { kind, statement, principals, path: _, reason: _, fix: _ } = finding;
        Self {
            kind: *kind,
            statement: plain(statement),
            principals: principals.iter().map(|name| plain(name)).collect(),
        }
    }
}

/// Words of a stranger's policy, fit for a header field: visible ASCII, and not too many of them.
fn plain(text: &str) -> String {
    let visible = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    text.chars().take(NAME_CHARACTERS_MAX).map(visible).collect()
}

/// The verdicts on the keys of the model packs, as the keyset holds them: a JSON list, each with its key.
pub(crate) fn to_keyset_text(verdicts: &BTreeMap<KeyArn, Verdict>) -> String {
    let room = KEYSET_BYTES_MAX / verdicts.len().max(1);
    let entries = verdicts.iter().map(|(key, verdict)| {
        let key = serde_json::Value::from(key.as_str());
        let head = format!("{{\"key\":{key},");
        let verdict = verdict.to_text(room.saturating_sub(head.len()));
        // Both are objects: the head of one goes before the members of the other.
        format!("{head}{}", verdict.strip_prefix('{').unwrap_or_default())
    });
    format!("[{}]", entries.collect::<Vec<_>>().join(","))
}

/// Asks KMS, judges, and remembers for [`KEEP`].
pub(crate) struct KeyPolicies {
    kms: Arc<Kms>,
    clock: Arc<dyn Clock>,
    /// What this enclave is: PCR0 to PCR2, 16 and 17, as far as they are final.
    measurements: Registers,
    seen: Mutex<BTreeMap<KeyArn, (Instant, Arc<Verdict>)>>,
    most: NonZeroUsize,
}

impl KeyPolicies {
    pub(crate) fn new(kms: Arc<Kms>, clock: Arc<dyn Clock>, measurements: Registers) -> Self {
        Self { kms, clock, measurements, seen: Mutex::default(), most: KEYS_MAX }
    }

    /// The verdict on a customer's key: not older than [`KEEP`].
    pub(crate) async fn of_customer(&self, key: &KeyArn) -> Arc<Verdict> {
        if let Some(verdict) = self.remembered(key) {
            return verdict;
        }
        let verdict = Arc::new(self.ask(key, KeyKind::Customer).await);
        self.remember(key, &verdict);
        verdict
    }

    /// The verdict on the key of a model pack, now.
    pub(crate) async fn of_model_pack(&self, key: &KeyArn) -> Verdict {
        self.ask(key, KeyKind::ModelPack).await
    }

    async fn ask(&self, key: &KeyArn, kind: KeyKind) -> Verdict {
        let read = tokio::time::timeout(DEADLINE, self.kms.key_policy(key)).await.unwrap_or(Err(KmsError::Timeout));
        let checked_at = self.clock.unix_seconds();
        let KeyPolicy { text, grants } = match read {
            Ok(policy) => policy,
            Err(KmsError::Refused { .. }) => return Verdict::NotVisible { checked_at },
            Err(_) => return Verdict::Unavailable { checked_at },
        };
        let expectation = Expectation {
            kind,
            images: vec![self.measurements.clone()],
            key: kms_policies::arn::KeyArn::parse(key.as_str()).ok(),
            ..Expectation::default()
        };
        // Up to a tenth of a second of a core for the worst of policies.
        let judged = tokio::task::spawn_blocking(move || assess(&text, grants.as_deref(), &expectation)).await;
        judged.map_or(Verdict::Unavailable { checked_at }, |assessment| Verdict::new(assessment, checked_at))
    }

    fn remembered(&self, key: &KeyArn) -> Option<Arc<Verdict>> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(key).filter(|(when, _)| when.elapsed() < KEEP).map(|(_, verdict)| Arc::clone(verdict))
    }

    fn remember(&self, key: &KeyArn, verdict: &Arc<Verdict>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= self.most.get() {
            seen.retain(|_, (when, _)| when.elapsed() < KEEP);
        }
        // A service with more live keys than that asks again for some of them.
        if seen.len() < self.most.get() {
            seen.insert(key.clone(), (Instant::now(), Arc::clone(verdict)));
        }
    }
}

/// An answer does not wait for it for longer.
const DEADLINE: Duration = Duration::from_secs(5);
/// A key is asked about on first use and then every five minutes, as long as a data key is cached.
const KEEP: Duration = Duration::from_secs(300);
const KEYS_MAX: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
const NAME_CHARACTERS_MAX: usize = 160;
/// docs/PROTOCOL.md, section 6: the field of the answer's head.
pub(crate) const FIELD_BYTES_MAX: usize = 2048;
/// docs/PROTOCOL.md, section 7: 8,192, less what joins the entries.
const KEYSET_BYTES_MAX: usize = 8100;

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(ways: usize) -> Verdict {
        let way = Path { kind: Kind::Unattested, statement: "#1".to_owned(), principals: vec!["p".repeat(160)] };
        Verdict::Checked {
            policy_sha384: "ab".repeat(48),
            checked_at: 1_800_000_000,
            grants_seen: true,
            open: vec![way; ways],
            other_images: 0,
            could_open: vec!["arn:aws:iam::111122223333:role/security".to_owned()],
        }
    }

    #[test]
    fn names_are_left_out_where_they_do_not_fit_and_numbers_never_are() {
        let short = checked(1).to_text(FIELD_BYTES_MAX);
        assert!(short.contains("\"unattested\"") && short.contains("role/security"), "{short}");
        let long = checked(100).to_text(FIELD_BYTES_MAX);
        assert!(long.len() <= FIELD_BYTES_MAX);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&long).unwrap()["open"], 100);
    }

    #[test]
    fn the_keysets_text_holds_every_key_whatever_their_policies_say() {
        let key = |n: usize| {
            let text = format!("arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890{n:02}");
            KeyArn::parse(&text).unwrap()
        };
        let verdicts = (0..16).map(|n| (key(n), checked(100))).collect();
        let text = to_keyset_text(&verdicts);
        assert!(text.len() <= 8192, "{}", text.len());
        let read: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(read.len(), 16);
        assert!(read.iter().all(|verdict| verdict["key"].is_string() && verdict["open"] == 100));
    }

    #[test]
    fn words_of_a_policy_cannot_break_out_of_a_header_field() {
        assert_eq!(plain("a\r\nSubrosa-Padding: x\u{1b}[2J\u{e9}"), "a??Subrosa-Padding: x?[2J?");
        assert_eq!(plain(&"x".repeat(1000)).len(), NAME_CHARACTERS_MAX);
    }

    #[test]
    fn only_a_way_that_is_open_now_is_open() {
        assert!(checked(1).is_open());
        assert!(!checked(0).is_open());
        assert!(!Verdict::NotVisible { checked_at: 0 }.is_open());
        assert!(!Verdict::Unavailable { checked_at: 0 }.is_open());
    }
}
