//! The decision: does a policy let a call through?

use crate::arn::KeyArn;
use crate::pattern;
use crate::policy::{Actions, Effect, Policy, Principal, Resources, Statement};
use crate::request::{Caller, Request};

/// What a key policy says about a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// A statement allows the call and none denies it.
    Allow {
        /// The statement that allows.
        sid: Option<String>,
    },
    /// No statement allows the call. (A grant may still do so.)
    ImplicitDeny,
    /// A statement denies the call; nothing can outweigh that.
    ExplicitDeny {
        /// The statement that denies.
        sid: Option<String>,
    },
}

impl Decision {
    /// Whether the call may proceed.
    pub fn is_allow(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }
}

/// Evaluates a key policy.
///
/// IAM reference, "Policy evaluation logic": an explicit deny in any statement overrides every allow; without an allow the call is
/// denied. KMS developer guide, "Key policies": a principal named in the key policy needs no IAM policy in the key's own account; an
/// account principal hands the decision to that account's IAM policies; a caller from another account always needs both.
pub fn evaluate(policy: &Policy, request: &Request) -> Decision {
    let applying =
        |effect| policy.statements.iter().find(|statement| statement.effect == effect && statement.applies_to(request));
    if let Some(statement) = applying(Effect::Deny) {
        return Decision::ExplicitDeny { sid: statement.sid.clone() };
    }
    match applying(Effect::Allow) {
        Some(statement) => Decision::Allow { sid: statement.sid.clone() },
        None => Decision::ImplicitDeny,
    }
}

impl Statement {
    pub(crate) fn applies_to(&self, request: &Request) -> bool {
        let Self { sid: _, effect, principals, actions, resources, conditions } = self;
        principals.iter().any(|principal| principal.matches(request, *effect))
            && actions.contain(&request.action)
            && resources.contain(&request.key)
            && conditions.iter().all(|condition| condition.holds(request, *effect))
    }
}

impl Principal {
    pub(crate) fn matches(&self, request: &Request, effect: Effect) -> bool {
        match self.names(&request.caller) {
            None => false,
            Some(_) if effect == Effect::Deny => true,
            Some(Named::Itself) => request.iam_allows || request.caller.account() == request.key.account(),
            Some(Named::ByAccount) => request.iam_allows,
        }
    }

    fn names(&self, caller: &Caller) -> Option<Named> {
        match self {
            Self::Anyone => Some(Named::Itself),
            Self::Account { account, .. } if caller.account() != account => None,
            Self::Account { .. } => Some(if caller.is_account_root() { Named::Itself } else { Named::ByAccount }),
            Self::Arn(arn) => (arn == caller.arn() || arn == caller.principal_arn()).then_some(Named::Itself),
            Self::Service(name) => (caller.service_name() == Some(name)).then_some(Named::Itself),
        }
    }
}

/// How a principal element names a caller.
enum Named {
    Itself,
    ByAccount,
}

impl Actions {
    pub(crate) fn contain(&self, action: &str) -> bool {
        match self {
            Self::Only(patterns) => patterns.iter().any(|pattern| pattern.matches(action)),
            Self::AllBut(patterns) => !patterns.iter().any(|pattern| pattern.matches(action)),
        }
    }
}

impl Resources {
    pub(crate) fn contain(&self, key: &KeyArn) -> bool {
        let named = |patterns: &[String]| patterns.iter().any(|p| p == "*" || pattern::arn_matches(p, key.as_str()));
        match self {
            Self::Only(patterns) => named(patterns),
            Self::AllBut(patterns) => !named(patterns),
        }
    }
}
