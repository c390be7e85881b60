//! What both truth tables share: cells, three worlds to read a policy in, and every way to damage a clause of it.

use std::collections::{BTreeMap, BTreeSet};

use kms_policies::arn::KeyArn;
use kms_policies::{Caller, Pcr, Policy, Recipient, Request, evaluate};
use serde_json::{Map, Value, json};

pub const KEY: &str = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
/// Of the customer's (or supplier's) account, in no role, with an IAM policy that allows everything.
pub const STRANGER: &str = "arn:aws:iam::111122223333:role/Stranger";

/// The operations that turn key material into something: all of them are in every table with every context and attestation.
pub const CRYPTOGRAPHIC: [&str; 11] = [
    "kms:Decrypt",
    "kms:GenerateDataKey",
    "kms:Encrypt",
    "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
    "kms:CreateGrant",
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:GenerateDataKeyPair",
    "kms:GenerateDataKeyPairWithoutPlaintext",
    "kms:DeriveSharedSecret",
    "kms:Sign",
];
pub const ADMINISTRATIVE: [&str; 19] = [
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
/// In nobody's list: a management action that no role needs.
pub const IN_NO_ROLE: [&str; 1] = ["kms:ImportKeyMaterial"];
/// Always denied, to everyone.
pub const NEVER: [&str; 7] = [
    "kms:Encrypt",
    "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
    "kms:CreateGrant",
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:GenerateDataKeyPair",
    "kms:GenerateDataKeyPairWithoutPlaintext",
];

/// Every way to damage the statement `NeverByAnyone`.
pub const NEVER_BY_ANYONE: &[&str] = &[
    "deleted",
    "action without kms:Encrypt",
    "action without kms:ReEncrypt*",
    "action without kms:CreateGrant",
    "action without kms:GenerateDataKeyWithoutPlaintext",
    "action without kms:GenerateDataKeyPair*",
    "resource exchanged",
    "principal narrowed",
];

/// How a policy is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum World {
    /// As rendered.
    Rendered,
    /// With a stray `Allow *` beside it: the common mistake, or a delegation to IAM. The `Deny`s must hold alone.
    StrayAllow,
    /// Without its `Deny`s: the `Allow`s must not open more than they have to.
    AllowsAlone,
}

pub const WORLDS: [World; 3] = [World::Rendered, World::StrayAllow, World::AllowsAlone];

impl World {
    pub fn of(self, policy: &Value) -> Policy {
        let mut policy = policy.clone();
        let statements = policy["Statement"].as_array_mut().unwrap();
        match self {
            Self::Rendered => {}
            Self::StrayAllow => statements
                .push(json!({"Sid": "Stray", "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"})),
            Self::AllowsAlone => statements.retain(|statement| statement["Effect"] == "Allow"),
        }
        Policy::parse(&policy.to_string()).unwrap()
    }
}

/// How a call is attested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attestation {
    /// No `Recipient`.
    None,
    /// One of the named images; the index chooses which.
    Right(u8),
    /// The first image, but one register has another value.
    Wrong(u8),
    /// The first image, but one register is not in the document (a register that was not locked).
    Absent(u8),
    /// Debug mode: PCR0 to 2 are zero, the rest as in the first image.
    Debug,
    /// A NitroTPM's document that holds the first image's values.
    NitroTpm,
}

pub const ATTESTATIONS: [Attestation; 13] = [
    Attestation::None,
    Attestation::Right(0),
    Attestation::Right(1),
    Attestation::Wrong(0),
    Attestation::Wrong(1),
    Attestation::Wrong(2),
    Attestation::Wrong(16),
    Attestation::Wrong(17),
    Attestation::Absent(1),
    Attestation::Absent(16),
    Attestation::Absent(17),
    Attestation::Debug,
    Attestation::NitroTpm,
];

impl Attestation {
    /// No enclave stands behind the call.
    pub fn is_none(self) -> bool {
        matches!(self, Self::None | Self::NitroTpm)
    }

    fn recipient(self) -> Option<Recipient> {
        let image = |which: u8| BTreeMap::from([0, 1, 2, 4, 16, 17].map(|index| (index, pcr(which, index))));
        let mut pcrs = image(0);
        match self {
            Self::None => return None,
            Self::NitroTpm => return Some(Recipient { pcrs: BTreeMap::new(), nitro_tpm_pcrs: pcrs }),
            Self::Right(which) => pcrs = image(which),
            Self::Wrong(index) => drop(pcrs.insert(index, [0x5A; 48])),
            Self::Absent(index) => drop(pcrs.remove(&index)),
            Self::Debug => pcrs.extend([0, 1, 2].map(|index| (index, [0; 48]))),
        }
        Some(Recipient { pcrs, nitro_tpm_pcrs: BTreeMap::new() })
    }
}

/// The value of a register in one of the two images of these tests.
pub fn pcr(image: u8, index: u8) -> Pcr {
    [0x10 * (image + 1) + index % 16; 48]
}

/// One cell of a table: a call.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    pub caller: &'static str,
    pub action: &'static str,
    pub context: &'static [(&'static str, &'static str)],
    pub attestation: Attestation,
}

impl Cell {
    /// The purpose as a key policy sees it: by a key whose case does not count, and none if two keys differ by case alone.
    pub fn purpose(&self) -> Option<&'static str> {
        let mut found = self.context.iter().filter(|(key, _)| key.eq_ignore_ascii_case("subrosa:purpose"));
        match (found.next(), found.next()) {
            (Some((_, purpose)), None) => Some(purpose),
            _ => None,
        }
    }

    fn request(&self) -> Request {
        let mut request = Request::new(Caller::parse(self.caller).unwrap(), self.action, KeyArn::parse(KEY).unwrap());
        request.iam_allows = true;
        request.encryption_context = self.context.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        request.recipient = self.attestation.recipient();
        request
    }
}

/// Every cell: each caller, each cryptographic action with each context and attestation, and each other action with a few.
pub fn cells(callers: &[&'static str], contexts: &[&'static [(&'static str, &'static str)]]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for caller in callers.iter().copied() {
        for context in contexts.iter().copied() {
            for attestation in ATTESTATIONS {
                cells.extend(CRYPTOGRAPHIC.map(|action| Cell { caller, action, context, attestation }));
            }
        }
        for context in contexts.iter().copied().take(2) {
            for attestation in [Attestation::None, Attestation::Right(0)] {
                cells.extend(ADMINISTRATIVE.map(|action| Cell { caller, action, context, attestation }));
                cells.extend(IN_NO_ROLE.map(|action| Cell { caller, action, context, attestation }));
            }
        }
    }
    cells
}

/// Compares every cell of every world with what is expected.
pub fn check(policy: &Policy, cells: &[Cell], expected: fn(World, &Cell) -> bool) {
    let value: Value = serde_json::from_str(&policy.to_json()).unwrap();
    let mut wrong = Vec::new();
    for world in WORLDS {
        let policy = world.of(&value);
        for cell in cells {
            let allowed = evaluate(&policy, &cell.request()).is_allow();
            if allowed != expected(world, cell) {
                wrong.push(format!("{world:?} {cell:?}: allowed is {allowed}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} cells are wrong:\n{}",
        wrong.len(),
        3 * cells.len(),
        wrong[..wrong.len().min(20)].join("\n")
    );
}

/// For each way to damage a clause: its name, and the worlds in which some cell changes.
pub fn effects_of_damage(policy: &Policy, cells: &[Cell]) -> Vec<(String, Vec<World>)> {
    let value: Value = serde_json::from_str(&policy.to_json()).unwrap();
    let requests: Vec<Request> = cells.iter().map(Cell::request).collect();
    let table = |policy: &Policy| -> Vec<bool> {
        requests.iter().map(|request| evaluate(policy, request).is_allow()).collect()
    };
    let whole = WORLDS.map(|world| table(&world.of(&value)));
    let changes = |damaged: &Value| {
        let changed = |(world, whole): (World, &Vec<bool>)| {
            let policy = world.of(damaged);
            requests
                .iter()
                .zip(whole)
                .any(|(request, before)| evaluate(&policy, request).is_allow() != *before)
                .then_some(world)
        };
        WORLDS.into_iter().zip(&whole).filter_map(changed).collect()
    };
    damaged(&value).into_iter().map(|(name, damaged)| (name, changes(&damaged))).collect()
}

/// Compares the damage that changes nothing in the policy as rendered with the stated list: no more of it, and no less.
pub fn check_defence_in_depth(effects: &[(String, Vec<World>)], stated: &[(&str, &[&str], &str)]) {
    let found: BTreeSet<&str> = effects
        .iter()
        .filter(|(_, worlds)| !worlds.contains(&World::Rendered))
        .map(|(name, _)| name.as_str())
        .collect();
    let names: BTreeSet<&str> = effects.iter().map(|(name, _)| name.as_str()).collect();
    let mut expected = BTreeSet::new();
    for (sid, whats, _reason) in stated {
        for what in *whats {
            expected.extend([0, 1, 2, 16, 17].map(|index| format!("{sid}: {what}").replace('#', &index.to_string())));
        }
    }
    // A register that this policy does not bind has no clause.
    let expected: BTreeSet<&str> = expected.iter().map(String::as_str).filter(|name| names.contains(name)).collect();
    assert_eq!(
        found.difference(&expected).collect::<Vec<_>>(),
        Vec::<&&str>::new(),
        "changes nothing as rendered, and is not stated as defence in depth"
    );
    assert_eq!(
        expected.difference(&found).collect::<Vec<_>>(),
        Vec::<&&str>::new(),
        "stated as defence in depth, but matters as rendered"
    );
}

/// Every statement deleted; in each, every line of the condition deleted, every value deleted or exchanged, every action deleted or
/// exchanged, the principal narrowed or widened, the resource exchanged.
pub fn damaged(policy: &Value) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    let statements = policy["Statement"].as_array().unwrap();
    for (i, statement) in statements.iter().enumerate() {
        let sid = statement["Sid"].as_str().unwrap();
        let mut without = policy.clone();
        without["Statement"].as_array_mut().unwrap().remove(i);
        all.push((format!("{sid}: deleted"), without));
        for (what, changed) in damaged_statement(statement) {
            let mut with = policy.clone();
            with["Statement"][i] = changed;
            all.push((format!("{sid}: {what}"), with));
        }
    }
    all
}

fn damaged_statement(statement: &Value) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    let mut change = |what: String, member: &str, value: Value| {
        let mut changed = statement.clone();
        changed[member] = value;
        all.push((what, changed));
    };
    for (what, actions) in damaged_list(&statement["Action"], "kms:Nothing") {
        change(format!("action {what}"), "Action", actions);
    }
    change("resource exchanged".into(), "Resource", json!("arn:aws:kms:us-east-1:111122223333:key/other"));
    if statement["Effect"] == "Deny" {
        change("principal narrowed".into(), "Principal", json!({"AWS": STRANGER}));
    } else {
        change("principal widened".into(), "Principal", json!("*"));
        change("action widened".into(), "Action", json!("kms:*"));
        for (what, arns) in damaged_list(&statement["Principal"]["AWS"], "arn:aws:iam::999999999999:role/Nobody") {
            change(format!("principal {what}"), "Principal", json!({"AWS": arns}));
        }
    }
    for (operator, block) in statement["Condition"].as_object().unwrap_or(&Map::new()) {
        for (key, values) in block.as_object().unwrap() {
            let short = key.rsplit(':').next().unwrap();
            let mut condition = statement["Condition"].clone();
            condition[operator].as_object_mut().unwrap().remove(key);
            if condition[operator].as_object().unwrap().is_empty() {
                condition.as_object_mut().unwrap().remove(operator);
            }
            change(format!("{operator} {short} deleted"), "Condition", condition);
            let other = if operator == "Null" { "true" } else { "ff" };
            for (what, values) in damaged_list(values, other) {
                let mut condition = statement["Condition"].clone();
                condition[operator][key] = values;
                change(format!("{operator} {short} {what}"), "Condition", condition);
            }
        }
    }
    all
}

/// A list with each of its values deleted in turn, or, if it has but one, exchanged.
fn damaged_list(values: &Value, other: &str) -> Vec<(String, Value)> {
    match values {
        Value::Array(list) => (0..list.len())
            .map(|i| {
                let mut shorter = list.clone();
                let gone = shorter.remove(i);
                let gone: String = gone.as_str().unwrap().chars().take(40).collect();
                (format!("without {gone}"), Value::Array(shorter))
            })
            .collect(),
        _ => vec![("exchanged".to_owned(), json!(other))],
    }
}
