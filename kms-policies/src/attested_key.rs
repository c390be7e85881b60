//! The policy of a key that attested code alone may use: a Nitro enclave, or a machine with a NitroTPM.
//!
//! For secrets that are neither prompts nor model packs. Which registers count, and what the encryption context must be, is given; so
//! there is no template to fill in.

use std::collections::{BTreeMap, BTreeSet};

use crate::arn::check_role_or_user;
use crate::condition::{Comparison, Condition};
use crate::pattern::ActionPattern;
use crate::policy::{Actions, Effect, Principal, Resources, Statement};
use crate::templates::{RenderError, compared, fitting};
use crate::{Pcr, Policy};

/// Who may do what; each the full ARN of an IAM role or user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttestedRoles {
    /// Attested `Decrypt`.
    pub attested: Vec<String>,
    /// Unattested `GenerateDataKey`: they seal. There may be none.
    pub sealers: Vec<String>,
    /// Management of the key.
    pub administrators: Vec<String>,
}

/// Whose registers count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// A Nitro enclave: `kms:RecipientAttestation:PCR<n>`; PCR0 is required.
    NitroEnclave,
    /// An instance with a NitroTPM: `kms:RecipientAttestation:NitroTPMPCR<n>`; PCR4 (the boot loader, or the unified kernel image) is
    /// required.
    NitroTpm,
}

/// Renders the policy: `registers` are the accepted values of each, `context` is what the encryption context must hold.
pub fn attested_key(
    roles: &AttestedRoles,
    machine: Machine,
    registers: &BTreeMap<u8, Vec<Pcr>>,
    context: &BTreeMap<String, String>,
) -> Result<Policy, RenderError> {
    let AttestedRoles { attested, sealers, administrators } = roles;
    for (role, arns) in [("attested roles", attested), ("sealers", sealers), ("administrators", administrators)] {
        for arn in arns {
            check_role_or_user(arn).map_err(|source| RenderError::Principal { role, source })?;
            if role != "attested roles" && attested.contains(arn) {
                return Err(RenderError::EnclaveHoldsAnotherRole { arn: arn.clone(), role });
            }
        }
        if arns.is_empty() && role != "sealers" {
            return Err(RenderError::Empty(role.to_owned()));
        }
    }
    let (prefix, required) = match machine {
        Machine::NitroEnclave => ("PCR", 0),
        Machine::NitroTpm => ("NitroTPMPCR", 4),
    };
    if !registers.contains_key(&required) {
        return Err(RenderError::Empty(format!("{prefix}{required}")));
    }
    for (index, values) in registers {
        if values.is_empty() {
            return Err(RenderError::Empty(format!("{prefix}{index}")));
        }
        if values.contains(&[0; 48]) {
            return Err(RenderError::ZeroPcr(*index));
        }
    }
    let register = |comparison, (index, values): (&u8, &Vec<Pcr>)| {
        let values: BTreeSet<String> = values.iter().map(hex::encode).collect();
        let key = format!("kms:RecipientAttestation:{prefix}{index}");
        compared(comparison, &key, values.into_iter().collect())
    };
    let entry = |comparison, (key, value): (&String, &String)| {
        compared(comparison, &format!("kms:EncryptionContext:{key}"), vec![value.clone()])
    };
    let in_context: Vec<Condition> =
        context.iter().map(|pair| entry(Comparison::StringEquals, pair)).collect::<Result<_, _>>()?;
    let mut statements = Vec::new();
    if !sealers.is_empty() {
        statements.push(statement("SealersSeal", Effect::Allow, sealers, &["kms:GenerateDataKey"], in_context.clone()));
    }
    let right: Vec<Condition> =
        registers.iter().map(|pair| register(Comparison::StringEqualsIgnoreCase, pair)).collect::<Result<_, _>>()?;
    statements.push(statement(
        "AttestedCodeOpens",
        Effect::Allow,
        attested,
        &["kms:Decrypt"],
        [in_context, right].concat(),
    ));
    statements.push(statement("Administrators", Effect::Allow, administrators, &ADMINISTRATION, Vec::new()));
    for pair in registers {
        let wrong = vec![register(Comparison::StringNotEqualsIgnoreCase, pair)?];
        let sid = format!("NoDecryptUnless{prefix}{}", pair.0);
        statements.push(statement(&sid, Effect::Deny, &[], &["kms:Decrypt"], wrong));
    }
    for (n, pair) in context.iter().enumerate() {
        let wrong = vec![entry(Comparison::StringNotEquals, pair)?];
        let sid = format!("OnlyInContext{}", n + 1);
        statements.push(statement(&sid, Effect::Deny, &[], &["kms:Decrypt", "kms:GenerateDataKey"], wrong));
    }
    statements.push(statement("NeverByAnyone", Effect::Deny, &[], &NEVER, Vec::new()));
    fitting(Policy { id: Some("subrosa-attested-key".into()), statements })
}

/// Of these principals, or of everyone.
fn statement(sid: &str, effect: Effect, arns: &[String], actions: &[&str], conditions: Vec<Condition>) -> Statement {
    let named: BTreeSet<&String> = arns.iter().collect();
    Statement {
        sid: Some(sid.to_owned()),
        effect,
        principals: match effect {
            Effect::Allow => named.into_iter().cloned().map(Principal::Arn).collect(),
            Effect::Deny => vec![Principal::Anyone],
        },
        actions: Actions::Only(actions.iter().filter_map(|action| ActionPattern::parse(action)).collect()),
        resources: Resources::Only(vec!["*".into()]),
        conditions,
    }
}

const ADMINISTRATION: [&str; 19] = [
    "kms:DescribeKey",
    "kms:GetKeyPolicy",
    "kms:ListKeyPolicies",
    "kms:PutKeyPolicy",
    "kms:EnableKey",
    "kms:DisableKey",
    "kms:GetKeyRotationStatus",
    "kms:ListKeyRotations",
    "kms:EnableKeyRotation",
    "kms:DisableKeyRotation",
    "kms:RotateKeyOnDemand",
    "kms:ScheduleKeyDeletion",
    "kms:CancelKeyDeletion",
    "kms:ListGrants",
    "kms:RevokeGrant",
    "kms:ListResourceTags",
    "kms:TagResource",
    "kms:UntagResource",
    "kms:UpdateKeyDescription",
];
const NEVER: [&str; 5] = [
    "kms:Encrypt",
    "kms:ReEncrypt*",
    "kms:CreateGrant",
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:GenerateDataKeyPair*",
];
