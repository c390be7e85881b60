//! The ways to plaintext that a policy leaves: now, and for those who could make one.

use std::collections::{BTreeMap, BTreeSet};

use crate::arn::Parts;
use crate::exposure::Assessment;
use crate::exposure::expectation::{ANSWER, Expectation, INFERENCE, KeyKind, MODEL_PACK, PURPOSE, ZERO};
use crate::exposure::finding::{Finding, Holder, Kind};
use crate::exposure::search::{Clause, Exhausted};
use crate::exposure::space::{Value, Variable};
use crate::exposure::world::{
    Attested, CREATE_GRANT, Counting, PUT_KEY_POLICY, Question, Reach, Ready, UNEXPECTED_KEY, World, granted,
};

/// Fills in who comes to plaintext now, by the key's purpose and beside it, and who could.
pub(super) fn find(
    world: &World,
    expectation: &Expectation,
    assessment: &mut Assessment,
    budget: &mut u32,
) -> Result<(), Exhausted> {
    for allow in &world.allows {
        open_now(world, allow, expectation, assessment, budget)?;
        by_purpose(world, allow, expectation, assessment, budget)?;
    }
    could_open(world, expectation, assessment, budget)
}

/// The secret that a call brings out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Secret {
    /// Whatever the attested code alone may have.
    Guarded,
    /// What the readers whom the customer names may have too.
    Answers,
    /// Data keys for answers.
    AnswerKeys,
    /// Data keys of the caller's own choice, sealed as those for answers.
    ChosenAnswerKeys,
    /// The same, sealed under another key first.
    MovedAnswerKeys,
    /// Any of it, by way of another key.
    Moved,
}

impl Secret {
    const ALL: [Self; 6] =
        [Self::Guarded, Self::Answers, Self::AnswerKeys, Self::ChosenAnswerKeys, Self::MovedAnswerKeys, Self::Moved];

    fn question(self, world: &World, expectation: &Expectation, attested: Attested) -> Option<Question> {
        let is_customer = expectation.kind == KeyKind::Customer;
        let of_purpose = |wanted: bool| purpose(world, move |purpose| (purpose == Some(ANSWER)) == wanted);
        let (action, clauses) = match self {
            Self::Guarded if is_customer => ("kms:Decrypt", vec![of_purpose(false)]),
            Self::Guarded => ("kms:Decrypt", Vec::new()),
            Self::Answers if is_customer => ("kms:Decrypt", vec![of_purpose(true)]),
            Self::AnswerKeys if is_customer => ("kms:GenerateDataKey", vec![of_purpose(true)]),
            // These have no Recipient.
            Self::ChosenAnswerKeys if is_customer && attested == Attested::Not => {
                ("kms:Encrypt", vec![of_purpose(true)])
            }
            Self::MovedAnswerKeys if is_customer && attested == Attested::Not => {
                ("kms:ReEncryptTo", vec![of_purpose(true)])
            }
            Self::Moved if attested == Attested::Not => ("kms:ReEncryptFrom", Vec::new()),
            Self::Answers | Self::AnswerKeys | Self::ChosenAnswerKeys | Self::MovedAnswerKeys | Self::Moved => {
                return None;
            }
        };
        Some(Question { action, attested, clauses })
    }

    fn path(self) -> &'static str {
        match self {
            Self::Guarded | Self::Answers => "kms:Decrypt",
            Self::AnswerKeys => "kms:GenerateDataKey (answers)",
            Self::ChosenAnswerKeys => "kms:Encrypt (answers)",
            Self::MovedAnswerKeys => "kms:Encrypt under another key -> kms:ReEncryptTo (answers)",
            Self::Moved => "kms:ReEncryptFrom -> kms:Decrypt under another key",
        }
    }

    fn unattested(self) -> Kind {
        match self {
            Self::Guarded => Kind::Unattested,
            Self::Answers => Kind::AnswersReadable,
            Self::AnswerKeys | Self::ChosenAnswerKeys | Self::MovedAnswerKeys => Kind::AnswerKeys,
            Self::Moved => Kind::ReEncrypt,
        }
    }
}

fn open_now(
    world: &World,
    allow: &Ready,
    expectation: &Expectation,
    assessment: &mut Assessment,
    budget: &mut u32,
) -> Result<(), Exhausted> {
    for secret in Secret::ALL {
        let mut unattested = BTreeSet::new();
        let mut told = BTreeSet::new();
        for (attested, kind, document) in WITHOUT_ACCEPTED_CODE {
            let Some(mut question) = secret.question(world, expectation, attested) else { continue };
            question.clauses.extend(unaccepted(world, expectation, attested));
            question.clauses.extend(document.clauses(world));
            let mut reached = world.reach(allow, &question, Counting::WithDenies, budget)?;
            if secret == Secret::Answers {
                let (readers, others): (BTreeSet<Reach>, _) =
                    reached.into_iter().partition(|reach| is_reader(reach, expectation));
                assessment.by_purpose.extend(readers.iter().map(|reach| holder(reach, "read answers", allow)));
                reached = others;
            }
            // Who needs no attestation at all is told once.
            reached.retain(|reach| !unattested.contains(reach) && (document != Document::Odd || !told.contains(reach)));
            if attested == Attested::Not {
                unattested.extend(reached.iter().cloned());
            }
            told.extend(reached.iter().cloned());
            if !reached.is_empty() {
                assessment.open.push(finding(kind.unwrap_or(secret.unattested()), secret, allow, &reached));
            }
        }
    }
    Ok(())
}

/// The kinds of documents that are asked about, each for itself so that it can be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Document {
    Any,
    /// PCR0 to 2 are zero: debug mode.
    Debug,
    /// PCR0 is not zero.
    Production,
    /// PCR0 is zero and PCR1 or 2 is not: hardware makes no such document, but it is not left out.
    Odd,
}

impl Document {
    fn clauses(self, world: &World) -> Vec<Clause> {
        let zero = Value::Register(ZERO);
        let one = |index, is_zero: bool| register(world, index, |value| (*value == zero) == is_zero);
        match self {
            Self::Any => Vec::new(),
            Self::Debug => vec![one(0, true), one(1, true), one(2, true)],
            Self::Production => vec![one(0, false)],
            Self::Odd => vec![one(0, true), [one(1, false), one(2, false)].concat()],
        }
    }
}

/// Every call without accepted code behind it. The kind is that of the secret where none is given.
const WITHOUT_ACCEPTED_CODE: [(Attested, Option<Kind>, Document); 5] = [
    (Attested::Not, None, Document::Any),
    (Attested::Enclave, Some(Kind::DebugEnclave), Document::Debug),
    (Attested::Enclave, Some(Kind::OtherImage), Document::Production),
    (Attested::Enclave, Some(Kind::OtherImage), Document::Odd),
    (Attested::NitroTpm, Some(Kind::NitroTpm), Document::Any),
];

/// Who reads answers because the customer names them. The enclave's role is none of them: the parent has it.
fn is_reader(reach: &Reach, expectation: &Expectation) -> bool {
    let Reach::Named(arn) = reach else { return false };
    let is_named = expectation.answer_readers.as_ref().is_none_or(|readers| readers.contains(arn));
    is_named && !expectation.is_enclave_role(arn)
}

/// Who may seal, without attestation, because that is the key's purpose.
fn by_purpose(
    world: &World,
    allow: &Ready,
    expectation: &Expectation,
    assessment: &mut Assessment,
    budget: &mut u32,
) -> Result<(), Exhausted> {
    let (sealed, may) = match expectation.kind {
        KeyKind::Customer => (INFERENCE, "seal prompts"),
        KeyKind::ModelPack => (MODEL_PACK, "seal model packs"),
        KeyKind::Attested => return Ok(()),
    };
    let mut clauses = own_context(world, expectation);
    clauses.push(purpose(world, move |purpose| purpose == Some(sealed)));
    let question = Question { action: "kms:GenerateDataKey", attested: Attested::Not, clauses };
    let reached = world.reach(allow, &question, Counting::WithDenies, budget)?;
    assessment.by_purpose.extend(reached.iter().map(|reach| holder(reach, may, allow)));
    Ok(())
}

fn could_open(
    world: &World,
    expectation: &Expectation,
    assessment: &mut Assessment,
    budget: &mut u32,
) -> Result<(), Exhausted> {
    // A grant is one more Allow: it opens what the Denies leave.
    let mut is_grant_useful = false;
    for secret in Secret::ALL {
        for attested in [Attested::Not, Attested::Enclave, Attested::NitroTpm] {
            if let Some(mut question) = secret.question(world, expectation, attested) {
                question.clauses.extend(unaccepted(world, expectation, attested));
                is_grant_useful = is_grant_useful || world.undenied(&question, budget)?.is_some();
            }
        }
    }
    let is_multi_region = expectation.key.as_ref().is_none_or(|key| key.id().starts_with("mrk-"));
    let mut means = vec![(PUT_KEY_POLICY, Kind::PutKeyPolicy), ("kms:ImportKeyMaterial", Kind::ImportKeyMaterial)];
    means.extend(is_grant_useful.then_some((CREATE_GRANT, Kind::CreateGrant)));
    means.extend(is_multi_region.then_some(("kms:ReplicateKey", Kind::ReplicateKey)));
    let enclave_accounts = expectation.enclave_accounts();
    for allow in &world.allows {
        for (action, kind) in means.iter().copied() {
            let clauses = if action == CREATE_GRANT {
                let given = |operation: &str| {
                    world.space.term(&Variable::Operation(operation.to_owned()), |value| *value != Value::Absent)
                };
                vec![granted(expectation.kind).filter_map(given).collect()]
            } else {
                Vec::new()
            };
            let question = Question { action, attested: Attested::Not, clauses };
            let reached = world.reach(allow, &question, Counting::WithDenies, budget)?;
            // Everyone, the parent itself, and whoever administers IAM in its account, need nobody's help.
            let (now, later): (BTreeSet<Reach>, BTreeSet<Reach>) = reached.into_iter().partition(|reach| match reach {
                Reach::Everyone => true,
                Reach::Account(account) | Reach::Root(account) => enclave_accounts.contains(account.as_str()),
                Reach::Named(arn) => expectation.is_enclave_role(arn),
                Reach::Like(_) | Reach::Service(_) => false,
            });
            for (reached, list) in [(now, &mut assessment.open), (later, &mut assessment.could_open)] {
                if !reached.is_empty() {
                    list.push(means_finding(kind, action, allow, &reached));
                }
            }
        }
    }
    assessment.could_open.extend(shared_accounts(assessment, expectation));
    Ok(())
}

/// Holders of another role in an account of the enclave's role.
fn shared_accounts(assessment: &Assessment, expectation: &Expectation) -> Vec<Finding> {
    let accounts = expectation.enclave_accounts();
    let mut shared: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let readers = assessment.by_purpose.iter().filter(|holder| holder.may == "read answers");
    let others = assessment.could_open.iter().flat_map(|finding| &finding.principals);
    for arn in readers.map(|holder| &holder.principal).chain(others) {
        if let Ok(parts) = Parts::split(arn)
            && accounts.contains(parts.account)
        {
            shared.entry(parts.account.to_owned()).or_default().insert(arn.clone());
        }
    }
    let finding = |(account, principals)| Finding {
        kind: Kind::SharedAccount,
        statement: "policy".into(),
        principals,
        path: "iam:UpdateAssumeRolePolicy -> sts:AssumeRole".into(),
        reason: format!(
            "they are in account {account}, as the enclave's role is: whoever administers IAM there can take their place"
        ),
        fix: "give these roles to another account than the operator's".into(),
    };
    shared.into_iter().map(finding).collect()
}

/// What must hold of a call so that no accepted code stands behind it.
pub(super) fn unaccepted(world: &World, expectation: &Expectation, attested: Attested) -> Vec<Clause> {
    match attested {
        Attested::Not => Vec::new(),
        Attested::Enclave => {
            let digests = expectation.image_digests();
            vec![register(world, 0, move |value| !matches!(value, Value::Register(value) if digests.contains(value)))]
        }
        Attested::NitroTpm => {
            let machine = |registers: &BTreeMap<u8, crate::Pcr>| {
                registers
                    .iter()
                    .filter_map(|(index, value)| {
                        world.space.term(&Variable::NitroTpm(*index), |found| *found != Value::Register(*value))
                    })
                    .collect()
            };
            expectation.nitro_tpms.iter().filter(|registers| !registers.is_empty()).map(machine).collect()
        }
    }
}

/// The clause that the purpose in the encryption context is one of those for which `holds`.
pub(super) fn purpose(world: &World, holds: impl Fn(Option<&str>) -> bool) -> Clause {
    let of = |value: &Value| match value {
        Value::Entry(_, purpose) => holds(Some(purpose)),
        _ => holds(None),
    };
    world.space.term(&Variable::Context(PURPOSE.to_owned()), of).into_iter().collect()
}

/// The clause that an entry of the encryption context is as `holds` says.
pub(super) fn entry(world: &World, key: &str, holds: impl Fn(Option<&String>) -> bool) -> Clause {
    let of = |value: &Value| match value {
        Value::Entry(_, text) => holds(Some(text)),
        _ => holds(None),
    };
    world.space.term(&Variable::Context(key.to_ascii_lowercase()), of).into_iter().collect()
}

/// The encryption context that messages of ours have, but for the purpose.
pub(super) fn own_context(world: &World, expectation: &Expectation) -> Vec<Clause> {
    let expected = expectation.context.iter();
    let mut all: Vec<Clause> = expected.map(|(key, value)| entry(world, key, |found| found == Some(value))).collect();
    // docs/PROTOCOL.md, section 4: exactly these keys, and one more where the message is signed.
    let required = expectation.context_keys().iter().filter(|key| **key != "aws-crypto-public-key");
    all.extend(required.map(|key| entry(world, key, |found| found.is_some())));
    all.push(entry(world, UNEXPECTED_KEY, |found| found.is_none()));
    all
}

/// The clause that a register of an enclave has one of the values for which `holds`.
pub(super) fn register(world: &World, index: u8, holds: impl Fn(&Value) -> bool) -> Clause {
    world.space.term(&Variable::Pcr(index), holds).into_iter().collect()
}

fn holder(reach: &Reach, may: &'static str, allow: &Ready) -> Holder {
    Holder { principal: name(reach), may, statement: allow.source.label.clone() }
}

fn name(reach: &Reach) -> String {
    match reach {
        Reach::Everyone => "*".to_owned(),
        Reach::Account(account) => format!("account {account}"),
        Reach::Root(account) => format!("root user of account {account}"),
        Reach::Named(arn) => arn.clone(),
        Reach::Like(arn) => format!("principals such as {arn}"),
        Reach::Service(service) => service.clone(),
    }
}

/// Who that is, in words.
fn who(reached: &BTreeSet<Reach>) -> String {
    let one = |reach: &Reach| match reach {
        Reach::Everyone => "everyone in every AWS account".to_owned(),
        Reach::Account(account) => {
            format!("account {account}: its root user, and every user and role that its IAM policies allow this")
        }
        other => name(other),
    };
    reached.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn finding(kind: Kind, secret: Secret, allow: &Ready, reached: &BTreeSet<Reach>) -> Finding {
    let what = match secret {
        Secret::Guarded => "plaintext",
        Secret::Answers => "answers",
        Secret::AnswerKeys => "plaintext data keys for answers, and so the means to forge answers",
        Secret::ChosenAnswerKeys | Secret::MovedAnswerKeys => {
            "a data key that they chose sealed as one for answers, and so the means to forge answers"
        }
        Secret::Moved => "ciphertext re-encrypted under a key of their own, which needs no attestation",
    };
    let how = match kind {
        Kind::DebugEnclave => "from any enclave in debug mode (PCR0 all zeros), whose memory its parent reads",
        Kind::OtherImage => "from an image that is not accepted",
        Kind::NitroTpm => "from a NitroTPM machine that is not accepted",
        _ => "without attestation",
    };
    let fix = match (kind, secret) {
        (Kind::DebugEnclave, _) => "name no all-zero register, and bind PCR0 of your image",
        (Kind::OtherImage, _) => {
            "bind kms:RecipientAttestation:PCR0 to the images you accept and to no other; PCR8 alone lets in whatever its owner ever signed"
        }
        (Kind::NitroTpm, _) => "bind kms:RecipientAttestation:PCR0, which a NitroTPM cannot have",
        (_, Secret::Guarded) => {
            "condition the Allow on kms:RecipientAttestation:PCR0, 1 and 2, and deny kms:Decrypt to everyone for whom they differ (StringNotEqualsIgnoreCase)"
        }
        (_, Secret::Answers) => {
            "name each reader of answers by ARN; never the enclave's role, whose credentials the parent has"
        }
        (_, Secret::AnswerKeys) => {
            "deny kms:GenerateDataKey for purpose answer to everyone for whom PCR0, 1 or 2 differ"
        }
        (_, Secret::ChosenAnswerKeys) => "deny kms:Encrypt to everyone",
        (_, Secret::MovedAnswerKeys | Secret::Moved) => "deny kms:ReEncrypt* to everyone",
    };
    Finding {
        kind,
        statement: allow.source.label.clone(),
        principals: reached.iter().map(name).collect(),
        path: secret.path().to_owned(),
        reason: format!("{} can get {what} {how}{}", who(reached), assumed(allow)),
        fix: fix.to_owned(),
    }
}

fn means_finding(kind: Kind, action: &str, allow: &Ready, reached: &BTreeSet<Reach>) -> Finding {
    let (path, reason, fix) = match kind {
        Kind::PutKeyPolicy => (
            "kms:PutKeyPolicy -> kms:Decrypt",
            "may replace this policy by any other",
            "leave kms:PutKeyPolicy to as few as can be, none of them in the operator's hands, and raise an alarm on it in CloudTrail",
        ),
        Kind::CreateGrant => (
            "kms:CreateGrant -> kms:Decrypt by the grantee",
            "may grant the key to anyone, and no Deny holds the grantee back",
            "deny kms:CreateGrant to everyone",
        ),
        Kind::ReplicateKey => (
            "kms:ReplicateKey -> kms:Decrypt in another Region",
            "may copy a multi-Region key to another Region, under a policy of their own",
            "use a key of one Region, or deny kms:ReplicateKey to everyone",
        ),
        _ => (
            "kms:ImportKeyMaterial -> decryption outside KMS",
            "may bring key material that they know, if the key is of origin EXTERNAL",
            "use a key of origin AWS_KMS, or deny kms:ImportKeyMaterial to everyone",
        ),
    };
    Finding {
        kind,
        statement: allow.source.label.clone(),
        principals: reached.iter().map(name).collect(),
        path: path.to_owned(),
        reason: format!("{} {reason} ({action}){}", who(reached), assumed(allow)),
        fix: fix.to_owned(),
    }
}

fn assumed(allow: &Ready) -> String {
    match allow.source.assumed.as_slice() {
        [] => String::new(),
        assumed => format!("; taken to be so: {}", assumed.join("; ")),
    }
}
