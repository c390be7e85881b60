//! What the enclave itself sees of the policies of the keys that it uses: who could get plaintext out of them, and how.
//!
//! KMS answers `GetKeyPolicy` and `ListGrants` only within the key's own account ("Cross-account use: No", KMS API), over the
//! enclave's own TLS. For a key of another account the verdict is `not-visible`: there its owner runs `subrosa policy check`. A
//! verdict is a statement about one moment, and about key policy and grants alone: IAM policies are outside it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use attestation::Pcr;
use attestation::measurement::{ZERO, extend};
use kms_policies::Caller;
use kms_policies::exposure::{Assessment, Expectation, Finding, KeyKind, Kind, Registers, assess};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::configuration::OnOpenPolicy;
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
        /// Ways to plaintext that need no accepted image, and are open now. Accepted are this image, and those that the configuration
        /// names.
        open: Vec<Path>,
        /// Who reads answers because the policy says so.
        readers: Vec<String>,
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
        let Assessment { digest, grants_seen, open, could_open, weaknesses: _, by_purpose } = assessment;
        let could_open: BTreeSet<&String> = could_open.iter().flat_map(|found| &found.principals).collect();
        let readers = by_purpose.iter().filter(|holder| holder.may == "read answers").map(|holder| &holder.principal);
        let readers: BTreeSet<&String> = readers.collect();
        Self::Checked {
            policy_sha384: hex::encode(digest.0),
            checked_at,
            grants_seen,
            open: open.iter().map(Path::new).collect(),
            readers: readers.into_iter().map(|name| plain(name)).collect(),
            could_open: could_open.into_iter().map(|name| plain(name)).collect(),
        }
    }

    /// Whether a service under this setting may go on.
    pub fn is_acceptable(&self, setting: OnOpenPolicy) -> bool {
        let (is_open, is_whole) = match self {
            Self::Checked { open, grants_seen, .. } => (!open.is_empty(), *grants_seen),
            Self::NotVisible { .. } | Self::Unavailable { .. } => (false, false),
        };
        match setting {
            OnOpenPolicy::Report => true,
            OnOpenPolicy::Refuse => !is_open,
            OnOpenPolicy::Require => !is_open && is_whole,
        }
    }

    /// The verdict as JSON in visible ASCII, of at most `bytes_max` bytes: names are left out where they do not fit, the number of
    /// ways never is.
    pub fn to_text(&self, bytes_max: usize) -> String {
        let whole = serde_json::to_string(self).unwrap_or_default();
        if whole.len() <= bytes_max {
            return whole;
        }
        let Self::Checked { policy_sha384, checked_at, grants_seen, open, readers, could_open } = self else {
            return whole;
        };
        let short = serde_json::json!({
            "status": "checked", "policy_sha384": policy_sha384, "checked_at": checked_at, "grants_seen": grants_seen,
            "open": open.len(), "readers": readers.len(), "could_open": could_open.len(),
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

/// The code that may have the keys, and whose credentials the parent holds.
#[derive(Clone, Debug)]
pub(crate) struct Accepted {
    /// PCR0 to PCR2, 16 and 17 of this enclave, as far as they are final.
    pub(crate) own: Registers,
    /// PCR3: SHA384(48 zero bytes || ARN of the parent's role). Zero where it has none.
    pub(crate) role: Pcr,
    /// PCR0 of other accepted images.
    pub(crate) others: Vec<Pcr>,
}

impl Accepted {
    fn images(&self) -> Vec<Registers> {
        let others = self.others.iter().map(|value| Registers::from([(0, *value)]));
        std::iter::once(self.own.clone()).chain(others).collect()
    }

    /// The role of the parent's instance, and sessions of it, as far as the policy names them: the module measured the role's ARN.
    fn roles_of(&self, policy: &str) -> Vec<String> {
        let policy = serde_json::from_str(policy).unwrap_or_default();
        let is_ours = |arn: &str| extend(&ZERO, arn.as_bytes()) == self.role;
        let names_ours =
            |text: &&str| is_ours(text) || Caller::parse(text).is_ok_and(|caller| is_ours(caller.principal_arn()));
        strings(&policy).into_iter().filter(names_ours).map(str::to_owned).collect()
    }
}

/// Every string of a document. (Its nesting is bounded: serde_json reads 128 levels.)
fn strings(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(values) => values.iter().flat_map(strings).collect(),
        Value::Object(members) => members.values().flat_map(strings).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => Vec::new(),
    }
}

/// Asks KMS, judges, and remembers for [`KEEP`].
pub(crate) struct KeyPolicies {
    kms: Arc<Kms>,
    clock: Arc<dyn Clock>,
    /// Who this enclave is, and which other images are accepted beside it.
    accepted: Accepted,
    /// Judging takes up to a second of a core for the worst of policies, and is not to be had many times at once.
    judging: Arc<Semaphore>,
    seen: Mutex<BTreeMap<KeyArn, Arc<Seen>>>,
}

/// One key's verdict. Whoever holds the lock asks; the others wait for what comes of it.
type Seen = tokio::sync::Mutex<Option<(Instant, Arc<Verdict>)>>;

impl KeyPolicies {
    pub(crate) fn new(kms: Arc<Kms>, clock: Arc<dyn Clock>, accepted: Accepted) -> Self {
        Self { kms, clock, accepted, judging: Arc::new(Semaphore::new(JUDGES)), seen: Mutex::default() }
    }

    /// The verdict on a customer's key: not older than [`KEEP`], and there within [`DEADLINE`].
    pub(crate) async fn of_customer(&self, key: &KeyArn) -> Arc<Verdict> {
        let seen = self.seen(key);
        let asking = async {
            let mut seen = seen.lock().await;
            if let Some((when, verdict)) = &*seen
                && when.elapsed() < KEEP
            {
                return Arc::clone(verdict);
            }
            let verdict = Arc::new(self.ask(key, KeyKind::Customer).await);
            // What could not be asked is asked again with the next request.
            let is_known = !matches!(*verdict, Verdict::Unavailable { .. });
            *seen = is_known.then(|| (Instant::now(), Arc::clone(&verdict)));
            verdict
        };
        let unavailable = |_| Arc::new(Verdict::Unavailable { checked_at: self.clock.unix_seconds() });
        tokio::time::timeout(DEADLINE, asking).await.unwrap_or_else(unavailable)
    }

    /// The verdict on the key of a model pack, now.
    pub(crate) async fn of_model_pack(&self, key: &KeyArn) -> Verdict {
        self.ask(key, KeyKind::ModelPack).await
    }

    async fn ask(&self, key: &KeyArn, kind: KeyKind) -> Verdict {
        let read = self.kms.key_policy(key).await;
        let checked_at = self.clock.unix_seconds();
        let KeyPolicy { text, grants } = match read {
            Ok(policy) => policy,
            Err(KmsError::Refused { .. }) => return Verdict::NotVisible { checked_at },
            Err(_) => return Verdict::Unavailable { checked_at },
        };
        let expectation = Expectation {
            kind,
            images: self.accepted.images(),
            enclave_roles: self.accepted.roles_of(&text),
            key: kms_policies::arn::KeyArn::parse(key.as_str()).ok(),
            ..Expectation::default()
        };
        let Ok(judge) = Arc::clone(&self.judging).acquire_owned().await else {
            return Verdict::Unavailable { checked_at };
        };
        let judging = move || {
            // Held until the work is over, also when nobody waits for it any more.
            let _judge = judge;
            assess(&text, grants.as_deref(), &expectation)
        };
        let judged = tokio::task::spawn_blocking(judging).await;
        judged.map_or(Verdict::Unavailable { checked_at }, |assessment| Verdict::new(assessment, checked_at))
    }

    fn seen(&self, key: &KeyArn) -> Arc<Seen> {
        let mut all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = all.get(key) {
            return Arc::clone(seen);
        }
        let seen = Arc::default();
        if all.len() >= KEYS_MAX {
            let is_fresh = |seen: &Option<(Instant, _)>| seen.as_ref().is_some_and(|(when, _)| when.elapsed() < KEEP);
            all.retain(|_, seen| seen.try_lock().map_or(true, |seen| is_fresh(&seen)));
        }
        // A service with more live keys than that asks again for some of them.
        if all.len() < KEYS_MAX {
            all.insert(key.clone(), Arc::clone(&seen));
        }
        seen
    }
}

/// An answer does not wait for it for longer.
const DEADLINE: Duration = Duration::from_secs(5);
/// A key is asked about on first use and then every five minutes, as long as a data key is cached.
const KEEP: Duration = Duration::from_secs(300);
const JUDGES: usize = 2;
const KEYS_MAX: usize = 4096;
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
            readers: Vec::new(),
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
    fn what_is_refused_depends_on_what_is_known() {
        let mut without_grants = checked(0);
        if let Verdict::Checked { grants_seen, .. } = &mut without_grants {
            *grants_seen = false;
        }
        let not_visible = Verdict::NotVisible { checked_at: 0 };
        let unavailable = Verdict::Unavailable { checked_at: 0 };
        for (verdict, refuse, require) in [
            (&checked(1), false, false),
            (&checked(0), true, true),
            (&without_grants, true, false),
            (&not_visible, true, false),
            (&unavailable, true, false),
        ] {
            assert!(verdict.is_acceptable(OnOpenPolicy::Report));
            assert_eq!(verdict.is_acceptable(OnOpenPolicy::Refuse), refuse, "{verdict:?}");
            assert_eq!(verdict.is_acceptable(OnOpenPolicy::Require), require, "{verdict:?}");
        }
    }

    #[test]
    fn the_parents_role_is_known_by_what_the_module_measured() {
        let role = "arn:aws:iam::111122223333:role/parent";
        let accepted = Accepted { own: Registers::new(), role: extend(&ZERO, role.as_bytes()), others: vec![[7; 48]] };
        let policy = format!(r#"{{"Principal":{{"AWS":["arn:aws:iam::111122223333:role/other","{role}"]}}}}"#);
        assert_eq!(accepted.roles_of(&policy), [role]);
        let escaped = policy.replace('/', r"\/");
        assert_eq!(accepted.roles_of(&escaped), [role], "however it is written");
        let session = "arn:aws:sts::111122223333:assumed-role/parent/i-0abc";
        assert_eq!(accepted.roles_of(&format!(r#"{{"Principal":{{"AWS":"{session}"}}}}"#)), [session]);
        assert_eq!(accepted.roles_of("{}"), Vec::<String>::new());
        assert_eq!(accepted.images().len(), 2);
    }
}
