//! Grants: what `ListGrants` says beside the policy.

use std::collections::BTreeMap;

use serde::Deserialize;
use thiserror::Error;

use crate::Caller;
use crate::arn::Parts;
use crate::condition::{Comparison, Condition, ConditionKey, Operator, Quantifier};
use crate::exposure::reading::Source;
use crate::pattern::ActionPattern;
use crate::policy::{Actions, Effect, Principal, Resources, Statement};

/// A grant on the key, as KMS's `ListGrants` names its parts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Grant {
    /// Its id.
    pub grant_id: String,
    /// Who may act on it: an ARN, or a service.
    #[serde(default)]
    pub grantee_principal: String,
    /// What may be done: `Decrypt`.
    #[serde(default)]
    pub operations: Vec<String>,
    /// Under which encryption contexts.
    #[serde(default)]
    pub constraints: Option<Constraints>,
}

/// Under which encryption contexts a grant may be used. A grant cannot demand attestation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Constraints {
    /// The context is exactly this.
    #[serde(default)]
    pub encryption_context_equals: Option<BTreeMap<String, String>>,
    /// The context holds at least this.
    #[serde(default)]
    pub encryption_context_subset: Option<BTreeMap<String, String>>,
}

/// Why a text was not taken as the grants of a key.
#[derive(Debug, Error)]
pub enum GrantsError {
    /// More than a key can have.
    #[error("the grants have {0} bytes; at most {MAX_GRANTS_BYTES} are read")]
    TooLong(usize),
    /// Not what `ListGrants` answers.
    #[error("expected what `aws kms list-grants` prints ({{\"Grants\": [...]}}): {0}")]
    Json(#[from] serde_json::Error),
    /// Only a part of the list.
    #[error("the list is truncated: a grant that is not in it would be overlooked; fetch all pages")]
    Truncated,
}

impl Grant {
    /// Reads what `aws kms list-grants` prints, all pages of it.
    ///
    /// # Errors
    /// When it is anything else, or says that there are more.
    pub fn list(json: &str) -> Result<Vec<Self>, GrantsError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Listed {
            grants: Vec<Grant>,
            #[serde(default)]
            truncated: bool,
            #[serde(default)]
            next_token: Option<String>,
        }
        if json.len() > MAX_GRANTS_BYTES {
            return Err(GrantsError::TooLong(json.len()));
        }
        let Listed { grants, truncated, next_token } = serde_json::from_str(json)?;
        if truncated || next_token.is_some() { Err(GrantsError::Truncated) } else { Ok(grants) }
    }

    /// The grant as the statement that it amounts to. KMS developer guide, "Grants": a grant allows, and cannot deny; an explicit deny
    /// in a policy takes precedence.
    pub(super) fn source(&self) -> Source {
        let Self { grant_id, grantee_principal, operations, constraints } = self;
        let mut assumed = Vec::new();
        let principal = match (Caller::parse(grantee_principal), Parts::split(grantee_principal)) {
            (Ok(caller), Ok(parts)) if caller.is_account_root() => {
                Principal::Account { account: parts.account.to_owned(), text: grantee_principal.clone() }
            }
            (Ok(_), _) => Principal::Arn(grantee_principal.clone()),
            _ => Principal::Service(grantee_principal.clone()),
        };
        let mut actions: Vec<ActionPattern> = Vec::new();
        for operation in operations {
            if let Some(action) = ActionPattern::parse(&format!("kms:{operation}")) {
                actions.push(action);
            } else {
                assumed.push(format!("operation {operation:?} is not understood and may be any"));
                actions.extend(ActionPattern::parse("*"));
            }
        }
        let mut conditions = Vec::new();
        let Constraints { encryption_context_equals, encryption_context_subset } =
            constraints.clone().unwrap_or_default();
        let equals = |(key, value): (&String, &String)| Condition {
            operator: Operator { quantifier: None, comparison: Comparison::StringEquals, if_exists: false },
            key: ConditionKey::EncryptionContext(key.to_ascii_lowercase()),
            key_name: format!("kms:EncryptionContext:{key}"),
            values: vec![value.clone()],
        };
        if let Some(exact) = &encryption_context_equals {
            conditions.extend(exact.iter().map(equals));
            if !exact.is_empty() {
                conditions.push(Condition {
                    operator: Operator {
                        quantifier: Some(Quantifier::ForAll),
                        comparison: Comparison::StringEquals,
                        if_exists: false,
                    },
                    key: ConditionKey::EncryptionContextKeys,
                    key_name: "kms:EncryptionContextKeys".into(),
                    values: exact.keys().cloned().collect(),
                });
            }
        }
        conditions.extend(encryption_context_subset.iter().flatten().map(equals));
        Source {
            label: format!("grant {grant_id}"),
            statement: Statement {
                sid: None,
                effect: Effect::Allow,
                principals: vec![principal],
                actions: Actions::Only(actions),
                resources: Resources::Only(vec!["*".into()]),
                conditions,
            },
            assumed,
            has_not_resource: false,
        }
    }
}

/// KMS developer guide, "Resource quotas": 50,000 grants on a key. This many bytes hold about 2,000; a Subrosa key needs none.
pub const MAX_GRANTS_BYTES: usize = 1024 * 1024;
