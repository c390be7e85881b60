//! Weaknesses that can be read off a statement: what the search does not ask for, and why it found what it found.

use std::collections::BTreeSet;

use crate::condition::{Comparison, Condition, ConditionKey};
use crate::exposure::Assessment;
use crate::exposure::finding::{Finding, Kind};
use crate::exposure::reading::Source;
use crate::policy::{Actions, Effect};

/// Adds what can be read off the statements.
pub(super) fn find(sources: &[Source], assessment: &mut Assessment) {
    for source in sources {
        let mut add = |kind, path: &str, reason: String, fix: &str| {
            let finding = Finding {
                kind,
                statement: source.label.clone(),
                principals: BTreeSet::new(),
                path: path.to_owned(),
                reason,
                fix: fix.to_owned(),
            };
            if !assessment.weaknesses.contains(&finding) {
                assessment.weaknesses.push(finding);
            }
        };
        let allows = source.statement.effect == Effect::Allow;
        if let (false, assumed) = (source.assumed.is_empty(), source.assumed.join("; ")) {
            add(Kind::Assumed, "-", format!("not all of it is understood: {assumed}"), "write it as AWS documents it");
        }
        if allows && matches!(source.statement.actions, Actions::AllBut(_)) {
            add(
                Kind::AllBut,
                "-",
                "NotAction in an Allow: it allows every operation that is not named".into(),
                "name the operations",
            );
        }
        if allows && ["kms:Decrypt", "kms:SomethingNew"].iter().all(|action| source.statement.actions.contain(action)) {
            add(
                Kind::BroadAction,
                "-",
                "it allows every operation, also those that KMS gets later".into(),
                "name the operations",
            );
        }
        if allows && source.has_not_resource {
            add(Kind::AllBut, "-", "NotResource in an Allow".into(), "write \"Resource\": \"*\", which is this key");
        }
        for condition in &source.statement.conditions {
            for (kind, reason, fix) in of_condition(condition, allows) {
                add(kind, &condition.key_name, reason, fix);
            }
        }
        let is_attested =
            source.statement.conditions.iter().any(|condition| is_register(condition) && !is_null(condition));
        if allows && is_attested {
            for action in WITHOUT_RECIPIENT.iter().filter(|action| names(&source.statement.actions, action)) {
                let reason = format!("{action} has no Recipient: under this condition it is never allowed");
                add(Kind::NoRecipient, action, reason, "leave it out");
            }
        }
    }
}

fn of_condition(condition: &Condition, allows: bool) -> Vec<(Kind, String, &'static str)> {
    use Comparison::*;
    let Condition { operator, key, key_name, values } = condition;
    let mut all = Vec::new();
    let is_positive = !operator.comparison.is_negated() && !is_null(condition);
    if allows && operator.if_exists {
        let reason =
            format!("{operator} on {key_name} holds where there is none, as in a call without attestation or context");
        all.push((Kind::IfExists, reason, "leave IfExists out"));
    }
    if allows && is_null(condition) && is_register(condition) && values.iter().any(|v| v.eq_ignore_ascii_case("true")) {
        let reason = format!("it asks that {key_name} be absent: it is for calls without attestation");
        all.push((Kind::NullAttestation, reason, "ask for the register's value"));
    }
    if operator.quantifier.is_some() && !key.is_multivalued() {
        let reason = format!("{operator} on {key_name}, which has one value: ForAllValues holds where there is none");
        all.push((Kind::SetOperator, reason, "leave ForAllValues: or ForAnyValue: out"));
    }
    if !is_register(condition) || is_null(condition) {
        return all;
    }
    for value in values {
        let is_wild = matches!(operator.comparison, StringLike | StringNotLike) && value.contains(['*', '?']);
        let decoded = hex::decode(value).ok().filter(|bytes| bytes.len() == REGISTER_BYTES);
        if is_wild {
            let reason = format!("{key_name} is compared with the wildcard {value:?}, which many images match");
            all.push((Kind::WildcardRegister, reason, "write the whole value"));
        } else if decoded.as_ref().is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0)) {
            if is_positive == allows {
                let reason = format!(
                    "{key_name} is zero in every enclave in debug mode (PCR0 to 2), and in others where it is not used"
                );
                all.push((Kind::ZeroRegister, reason, "take the value out"));
            }
        } else if decoded.is_none()
            || (!matches!(operator.comparison, StringEqualsIgnoreCase | StringNotEqualsIgnoreCase)
                && *value != value.to_ascii_lowercase())
        {
            let reason = format!(
                "{key_name} is never equal to {value:?}: KMS compares with 96 hexadecimal digits in lower case"
            );
            all.push((Kind::NeverMatches, reason, "write 96 digits without 0x, and compare by StringEqualsIgnoreCase"));
        }
    }
    all
}

fn is_register(condition: &Condition) -> bool {
    matches!(condition.key, ConditionKey::RecipientPcr(_) | ConditionKey::RecipientNitroTpmPcr(_))
}

fn is_null(condition: &Condition) -> bool {
    condition.operator.comparison == Comparison::Null
}

/// Whether an action is named, and not merely within a wildcard.
fn names(actions: &Actions, action: &str) -> bool {
    match actions {
        Actions::Only(patterns) => {
            patterns.iter().any(|p| p.matches(action) && p.as_str() != "*" && !p.as_str().eq_ignore_ascii_case("kms:*"))
        }
        Actions::AllBut(_) => false,
    }
}

const REGISTER_BYTES: usize = 48;
/// aws-sdk-kms: `Recipient` stands on Decrypt, DeriveSharedSecret, GenerateDataKey, GenerateDataKeyPair and GenerateRandom only.
const WITHOUT_RECIPIENT: [&str; 6] = [
    "kms:Encrypt",
    "kms:GenerateDataKeyPairWithoutPlaintext",
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
    "kms:CreateGrant",
];
