//! Who may sign requests: what IAM and STS know, as a table.

use std::collections::BTreeMap;

use kms_policies::arn::ArnError;
use kms_policies::{ActionPattern, Caller};
use serde::Deserialize;
use thiserror::Error;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

/// Access key ids and whom they belong to.
#[derive(Clone, Default)]
pub struct Principals(BTreeMap<String, Principal>);

/// Somebody who may sign requests.
#[derive(Clone)]
pub struct Principal {
    pub(super) secret: Zeroizing<String>,
    pub(super) session: Option<Session>,
    pub(super) caller: Caller,
    pub(super) iam_allows: Vec<ActionPattern>,
}

/// What temporary credentials have beside their secret.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) token: Zeroizing<String>,
    pub(super) expires_ms: u64,
}

/// Why a table of principals was not taken.
#[derive(Debug, Error)]
pub enum PrincipalsError {
    /// Not JSON of the documented form.
    #[error("principals: {0}")]
    Json(#[from] serde_json::Error),
    /// An ARN.
    #[error("principal {id}: {source}")]
    Arn {
        /// The access key id.
        id: String,
        /// What is wrong.
        source: ArnError,
    },
    /// A time that is not RFC 3339.
    #[error("principal {id}: expires {value:?} is not an RFC 3339 time")]
    Expires {
        /// The access key id.
        id: String,
        /// What stands there.
        value: String,
    },
    /// An action that is not one of KMS's.
    #[error("principal {id}: iam_allows {value:?} is neither * nor kms:NAME")]
    Action {
        /// The access key id.
        id: String,
        /// What stands there.
        value: String,
    },
}

impl Principals {
    /// Reads a table: `{"ACCESS_KEY_ID": {"secret", "arn", "session_token"?, "expires"?, "role_arn"?, "iam_allows"?}}`.
    ///
    /// `iam_allows` is a list of action patterns, or true or false for all or nothing (nothing, if it is left out). `role_arn` is for a
    /// role session whose role has a path. `expires` (RFC 3339) goes with `session_token`; without it the session does not end.
    pub fn parse(json: &str) -> Result<Self, PrincipalsError> {
        let records: BTreeMap<String, Record> = serde_json::from_str(json)?;
        let mut table = Self::default();
        for (id, record) in records {
            let principal = record.read(&id)?;
            table.insert(&id, principal);
        }
        Ok(table)
    }

    /// Adds or replaces an entry.
    pub fn insert(&mut self, access_key_id: &str, principal: Principal) {
        self.0.insert(access_key_id.to_owned(), principal);
    }

    pub(super) fn get(&self, access_key_id: &str) -> Option<&Principal> {
        self.0.get(access_key_id)
    }

    pub(super) fn merge(&mut self, others: Self) {
        self.0.extend(others.0);
    }
}

impl Principal {
    /// Somebody with a long-term secret and the right, by IAM, to everything. `arn` as for [`Caller::parse`].
    pub fn new(arn: &str, secret: &str) -> Result<Self, ArnError> {
        let everything = ActionPattern::parse("*").into_iter().collect();
        Ok(Self {
            secret: Zeroizing::new(secret.to_owned()),
            session: None,
            caller: Caller::parse(arn)?,
            iam_allows: everything,
        })
    }

    /// The same with a session token, good until `expires_ms` (milliseconds since the epoch).
    pub fn with_session(mut self, token: &str, expires_ms: u64) -> Self {
        self.session = Some(Session { token: Zeroizing::new(token.to_owned()), expires_ms });
        self
    }

    /// The same with other IAM rights.
    pub fn with_iam(mut self, iam_allows: Vec<ActionPattern>) -> Self {
        self.iam_allows = iam_allows;
        self
    }

    pub(super) fn iam_allows(&self, action: &str) -> bool {
        self.iam_allows.iter().any(|pattern| pattern.matches(action))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    secret: String,
    arn: String,
    #[serde(default)]
    role_arn: Option<String>,
    #[serde(default)]
    session_token: Option<String>,
    #[serde(default)]
    expires: Option<String>,
    #[serde(default)]
    iam_allows: IamAllows,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum IamAllows {
    All(bool),
    Patterns(Vec<String>),
}

impl Default for IamAllows {
    fn default() -> Self {
        Self::All(false)
    }
}

impl Record {
    fn read(self, id: &str) -> Result<Principal, PrincipalsError> {
        let Self { secret, arn, role_arn, session_token, expires, iam_allows } = self;
        let caller = match role_arn {
            Some(role) => Caller::assumed_role(&role, arn.rsplit('/').next().unwrap_or_default()),
            None => Caller::parse(&arn),
        };
        let caller = caller.map_err(|source| PrincipalsError::Arn { id: id.to_owned(), source })?;
        let expires_ms = match expires {
            None => u64::MAX,
            Some(value) => match OffsetDateTime::parse(&value, &Rfc3339) {
                Ok(time) => u64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0),
                Err(_) => return Err(PrincipalsError::Expires { id: id.to_owned(), value }),
            },
        };
        let patterns = match iam_allows {
            IamAllows::All(true) => vec!["*".to_owned()],
            IamAllows::All(false) => vec![],
            IamAllows::Patterns(patterns) => patterns,
        };
        let read =
            |value: String| ActionPattern::parse(&value).ok_or(PrincipalsError::Action { id: id.to_owned(), value });
        Ok(Principal {
            secret: Zeroizing::new(secret),
            session: session_token.map(|token| Session { token: Zeroizing::new(token), expires_ms }),
            caller,
            iam_allows: patterns.into_iter().map(read).collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_with_its_sessions_and_rights() {
        let table = Principals::parse(
            r#"{"A": {"secret": "s", "arn": "arn:aws:sts::111122223333:assumed-role/R/x", "role_arn": "arn:aws:iam::111122223333:role/p/R",
                      "session_token": "t", "expires": "2026-01-01T00:00:00Z", "iam_allows": ["kms:Generate*"]},
                "B": {"secret": "s", "arn": "arn:aws:iam::111122223333:user/u", "iam_allows": true}}"#,
        )
        .unwrap();
        let a = table.get("A").unwrap();
        assert_eq!(a.caller.principal_arn(), "arn:aws:iam::111122223333:role/p/R");
        assert_eq!(a.session.as_ref().unwrap().expires_ms, 1_767_225_600_000);
        assert!(a.iam_allows("kms:GenerateDataKey") && !a.iam_allows("kms:Decrypt"));
        assert!(table.get("B").unwrap().iam_allows("kms:Decrypt"));
    }

    #[test]
    fn a_table_with_anything_unknown_is_refused() {
        for record in [
            r#"{"secret": "s", "arn": "x"}"#,
            r#"{"secret": "s", "arn": "arn:aws:iam::111122223333:user/u", "extra": 1}"#,
            r#"{"secret": "s", "arn": "arn:aws:iam::111122223333:user/u", "iam_allows": ["s3:*"]}"#,
            r#"{"secret": "s", "arn": "arn:aws:iam::111122223333:user/u", "expires": "soon"}"#,
            r#"{"arn": "arn:aws:iam::111122223333:user/u"}"#,
        ] {
            assert!(Principals::parse(&format!(r#"{{"A": {record}}}"#)).is_err(), "{record}");
        }
    }
}
