//! What is open to nobody, but weaker than it should be.
//!
//! A policy should be shut twice: its `Allow`s open no more than they must, and its `Deny`s hold although somebody adds an `Allow` or a
//! grant. Each is asked for itself; and then, whether the key still serves those whom it is for.

use std::collections::BTreeSet;

use crate::exposure::Assessment;
use crate::exposure::expectation::{ANSWER, Expectation, INFERENCE, KeyKind, MODEL_PACK, PURPOSE, Registers};
use crate::exposure::finding::{Finding, Kind};
use crate::exposure::paths::{entry, own_context, purpose, register, unaccepted};
use crate::exposure::search::{Clause, Exhausted};
use crate::exposure::space::{Value, Variable};
use crate::exposure::world::{Attested, CREATE_GRANT, Counting, Question, Reach, Ready, UNEXPECTED_KEY, World};

/// Adds the weaknesses.
pub(super) fn find(
    world: &World,
    expectation: &Expectation,
    assessment: &mut Assessment,
    budget: &mut u32,
) -> Result<(), Exhausted> {
    for allow in &world.allows {
        too_wide(world, allow, expectation, assessment, budget)?;
    }
    not_denied(world, expectation, assessment, budget)?;
    not_pinned(world, expectation, assessment, budget)?;
    not_serving(world, expectation, assessment, budget)
}

/// An operation that the enclave does by attestation.
struct Guarded {
    action: &'static str,
    /// The purpose that it is for.
    purpose: Option<&'static str>,
}

/// What the attested code does with the key.
fn guarded(expectation: &Expectation) -> Vec<Guarded> {
    match expectation.kind {
        KeyKind::Customer => vec![
            Guarded { action: "kms:Decrypt", purpose: Some(INFERENCE) },
            Guarded { action: "kms:GenerateDataKey", purpose: Some(ANSWER) },
        ],
        KeyKind::ModelPack => vec![Guarded { action: "kms:Decrypt", purpose: Some(MODEL_PACK) }],
        KeyKind::Attested => vec![Guarded { action: "kms:Decrypt", purpose: None }],
    }
}

impl Guarded {
    /// The right purpose and the context that is expected.
    fn context(&self, world: &World, expectation: &Expectation) -> Vec<Clause> {
        let mut all = Vec::new();
        if let Some(wanted) = self.purpose {
            all.push(purpose(world, move |purpose| purpose == Some(wanted)));
        }
        all.extend(own_context(world, expectation));
        all
    }
}

/// Which registers of an image must be bound; not those that are told as not pinned.
fn bound(expectation: &Expectation, image: &Registers) -> Vec<u8> {
    let optional = [MODELS, CONFIGURATION].into_iter().filter(|index| image.contains_key(index));
    let optional = optional.filter(|index| expectation.kind == KeyKind::Customer || *index != MODELS);
    [0, 1, 2].into_iter().filter(|index| image.contains_key(index)).chain(optional).collect()
}

/// A document of this image, but for the register `other`, whose value is not accepted.
fn document(world: &World, expectation: &Expectation, image: &Registers, other: Option<u8>) -> Vec<Clause> {
    let one = |(index, value): (&u8, &crate::Pcr)| {
        if other == Some(*index) {
            let accepted: BTreeSet<crate::Pcr> =
                expectation.accepted_images().filter_map(|image| image.get(index).copied()).collect();
            register(world, *index, |found| !matches!(found, Value::Register(found) if accepted.contains(found)))
        } else {
            register(world, *index, |found| *found == Value::Register(*value))
        }
    };
    image.iter().map(one).collect()
}

/// A document of this NitroTPM machine, but for the register `other`, whose value is not accepted.
fn machine_document(world: &World, expectation: &Expectation, machine: &Registers, other: Option<u8>) -> Vec<Clause> {
    let one = |(index, value): (&u8, &crate::Pcr)| {
        let is_wanted = |found: &Value| match other == Some(*index) {
            true => !expectation.nitro_tpms.iter().any(|m| m.get(index).is_some_and(|v| *found == Value::Register(*v))),
            false => *found == Value::Register(*value),
        };
        world.space.term(&Variable::NitroTpm(*index), is_wanted).into_iter().collect()
    };
    machine.iter().map(one).collect()
}

fn too_wide(
    world: &World,
    allow: &Ready,
    expectation: &Expectation,
    assessment: &mut Assessment,
    budget: &mut u32,
) -> Result<(), Exhausted> {
    for action in ["kms:Decrypt", "kms:GenerateDataKey"] {
        let mut alone =
            |attested, clauses| world.reach(allow, &Question { action, attested, clauses }, Counting::Alone, budget);
        let everyone = |reach: &Reach| matches!(reach, Reach::Everyone | Reach::Account(_));
        let mut any = BTreeSet::new();
        for attested in [Attested::Not, Attested::Enclave, Attested::NitroTpm] {
            any.extend(alone(attested, Vec::new())?);
        }
        if any.iter().any(everyone) {
            assessment.weaknesses.push(of(
                allow,
                Kind::BroadPrincipal,
                action,
                "it allows a whole account, or everyone",
                "name each role by ARN",
            ));
        }
        if any.is_empty() {
            continue;
        }
        // The registers, where the statement is about attested calls at all.
        let is_attested_only = alone(Attested::Not, Vec::new())?.is_empty();
        if is_attested_only {
            for image in expectation.accepted_images() {
                for index in bound(expectation, image) {
                    if !alone(Attested::Enclave, document(world, expectation, image, Some(index)))?.is_empty() {
                        let reason = format!("alone it does not bind PCR{index}: a document with another value passes");
                        let fix = format!("add kms:RecipientAttestation:PCR{index} to its condition");
                        push_once(assessment, of(allow, Kind::RegisterNotBound, action, &reason, &fix));
                    }
                }
            }
        }
        for machine in expectation.nitro_tpms.iter().filter(|_| is_attested_only) {
            for index in machine.keys() {
                if !alone(Attested::NitroTpm, machine_document(world, expectation, machine, Some(*index)))?.is_empty() {
                    let reason =
                        format!("alone it does not bind NitroTPMPCR{index}: a document with another value passes");
                    let fix = format!("add kms:RecipientAttestation:NitroTPMPCR{index} to its condition");
                    push_once(assessment, of(allow, Kind::RegisterNotBound, action, &reason, &fix));
                }
            }
        }
        let modes: &[Attested] =
            if is_attested_only { &[Attested::Enclave, Attested::NitroTpm] } else { &[Attested::Not] };
        let mut passes = |clauses: Vec<Clause>| -> Result<bool, Exhausted> {
            let mut passes = false;
            for attested in modes {
                passes |= !alone(*attested, clauses.clone())?.is_empty();
            }
            Ok(passes)
        };
        let purposes = expectation.purposes();
        let mut ours = 0;
        for wanted in purposes {
            ours += usize::from(passes(vec![purpose(world, |purpose| purpose == Some(wanted))])?);
        }
        let foreign = passes(vec![purpose(world, |purpose| purpose.is_none_or(|p| !purposes.contains(&p)))])?;
        if !purposes.is_empty() && (ours > 1 || foreign) {
            let reason = format!("it does not bind {PURPOSE} to one of: {}", purposes.join(", "));
            push_once(assessment, of(allow, Kind::ContextNotBound, action, &reason, CONTEXT_FIX));
        }
        for (key, value) in &expectation.context {
            if passes(vec![entry(world, key, |found| found != Some(value))])? {
                let reason = format!("it does not bind {key} to {value:?}");
                push_once(assessment, of(allow, Kind::ContextNotBound, action, &reason, CONTEXT_FIX));
            }
        }
        if !expectation.context_keys().is_empty()
            && passes(vec![entry(world, UNEXPECTED_KEY, |found| found.is_some())])?
        {
            let fix = "add ForAllValues:StringEquals on kms:EncryptionContextKeys with the keys of the protocol";
            let reason = "it lets an encryption context with further keys pass";
            push_once(assessment, of(allow, Kind::ContextNotBound, action, reason, fix));
        }
    }
    Ok(())
}

/// What the `Deny`s alone leave.
fn not_denied(
    world: &World,
    expectation: &Expectation,
    assessment: &mut Assessment,
    budget: &mut u32,
) -> Result<(), Exhausted> {
    let mut ask = |action, attested, clauses, reason: String, fix: &str| -> Result<(), Exhausted> {
        if world.undenied(&Question { action, attested, clauses }, budget)?.is_some() {
            let finding = Finding {
                kind: Kind::NotDenied,
                statement: "policy".into(),
                principals: BTreeSet::new(),
                path: action.into(),
                reason: format!("no Deny refuses {reason}: one more Allow, or a grant, opens it"),
                fix: fix.into(),
            };
            push_once(assessment, finding);
        }
        Ok(())
    };
    for Guarded { action, purpose: of } in guarded(expectation) {
        let is_customer = expectation.kind == KeyKind::Customer;
        // What this operation is for without attestation: reading answers, sealing prompts.
        let free = if action == "kms:Decrypt" { ANSWER } else { INFERENCE };
        let scope = |world: &World| match is_customer {
            true => vec![purpose(world, |purpose| purpose != Some(free))],
            false => Vec::new(),
        };
        let what = of.map_or_else(|| action.to_owned(), |of| format!("{action} for {of}"));
        let fix = "deny it to everyone for whom the register differs (StringNotEqualsIgnoreCase)";
        ask(action, Attested::Not, scope(world), format!("{what} without attestation"), fix)?;
        let other_machines = [scope(world), unaccepted(world, expectation, Attested::NitroTpm)].concat();
        ask(action, Attested::NitroTpm, other_machines, format!("{what} to another NitroTPM machine"), fix)?;
        for image in expectation.accepted_images() {
            for index in bound(expectation, image) {
                let clauses = [scope(world), document(world, expectation, image, Some(index))].concat();
                ask(action, Attested::Enclave, clauses, format!("{what} with another PCR{index}"), fix)?;
            }
            if let Some(of) = of {
                let mut clauses = document(world, expectation, image, None);
                clauses.push(purpose(world, |purpose| purpose != Some(of)));
                let fix = "deny attested calls (Null false on PCR0) with another purpose";
                ask(
                    action,
                    Attested::Enclave,
                    clauses,
                    format!("attested {action} with another purpose than {of}"),
                    fix,
                )?;
            }
        }
    }
    if expectation.kind == KeyKind::ModelPack {
        let clauses = vec![purpose(world, |purpose| purpose != Some(MODEL_PACK))];
        let fix = "deny it for every other purpose";
        ask("kms:GenerateDataKey", Attested::Not, clauses, "data keys of another purpose".into(), fix)?;
        let fix = "deny attested kms:GenerateDataKey: the enclave only opens packs";
        ask("kms:GenerateDataKey", Attested::Enclave, Vec::new(), "attested kms:GenerateDataKey".into(), fix)?;
    }
    if expectation.kind == KeyKind::Attested {
        let fix = "deny kms:Decrypt and kms:GenerateDataKey to everyone where it differs (StringNotEquals)";
        for (key, value) in &expectation.context {
            let other = || entry(world, key, |found| found != Some(value));
            let what = |action: &str| format!("{action} with another {key} in its encryption context");
            ask("kms:GenerateDataKey", Attested::Not, vec![other()], what("kms:GenerateDataKey"), fix)?;
            for image in expectation.accepted_images() {
                let clauses = [document(world, expectation, image, None), vec![other()]].concat();
                ask("kms:Decrypt", Attested::Enclave, clauses, what("kms:Decrypt"), fix)?;
            }
            for machine in &expectation.nitro_tpms {
                let clauses = [machine_document(world, expectation, machine, None), vec![other()]].concat();
                ask("kms:Decrypt", Attested::NitroTpm, clauses, what("kms:Decrypt"), fix)?;
            }
        }
    }
    for action in NEVER {
        let grant = match action {
            CREATE_GRANT => world.space.term(&Variable::Operation("Decrypt".into()), |value| *value != Value::Absent),
            _ => None,
        };
        ask(
            action,
            Attested::Not,
            grant.map(|term| vec![term]).into_iter().collect(),
            action.into(),
            "deny it to everyone",
        )?;
    }
    Ok(())
}

/// Models and configuration, where neither an `Allow` nor a `Deny` binds them.
fn not_pinned(
    world: &World,
    expectation: &Expectation,
    assessment: &mut Assessment,
    budget: &mut u32,
) -> Result<(), Exhausted> {
    for (index, kind, what) in [
        (MODELS, Kind::ModelNotPinned, "any model: weights, tokenizer and chat template of a stranger"),
        (CONFIGURATION, Kind::ConfigurationNotPinned, "any configuration"),
    ] {
        // The packs' own key is used before PCR16 is extended (docs/PROTOCOL.md, section 10).
        if (index == MODELS && expectation.kind != KeyKind::Customer) || expectation.kind == KeyKind::Attested {
            continue;
        }
        for image in expectation.accepted_images() {
            let mut others = image.clone();
            others.remove(&index);
            let of_digest = |digest| expectation.accepted_images().filter(move |image| digest == image.get(&0));
            let values = |images: &mut dyn Iterator<Item = &Registers>| -> BTreeSet<Value> {
                images.filter_map(|image| image.get(&index)).map(|value| Value::Register(*value)).collect()
            };
            let own = values(&mut of_digest(image.get(&0)));
            let accepted = values(&mut expectation.accepted_images());
            // A value that nobody names: the first that there is.
            let unnamed = world.space.values(&Variable::Pcr(index)).iter().find(|value| **value != Value::Absent);
            let foreign = register(world, index, |value| {
                if accepted.is_empty() { Some(value) == unnamed } else { !accepted.contains(value) }
            });
            let mixed = register(world, index, |value| accepted.contains(value) && !own.contains(value));
            let asked = [(foreign, kind, what), (mixed, Kind::MixedImages, "what belongs to another image")];
            let operations = guarded(expectation);
            let all = operations.iter().flat_map(|operation| asked.iter().map(move |asked| (operation, asked)));
            for (operation, (clause, kind, what)) in all {
                let mut clauses = operation.context(world, expectation);
                clauses.extend(document(world, expectation, &others, None));
                clauses.push(clause.clone());
                let question = Question { action: operation.action, attested: Attested::Enclave, clauses };
                for allow in &world.allows {
                    if !world.reach(allow, &question, Counting::WithDenies, budget)?.is_empty() {
                        let reason =
                            format!("the key opens to an accepted image with {what} (PCR{index} is not bound to it)");
                        let fix = format!(
                            "render the policy with PCR{index} of each image (--model MANIFEST, --config FILE)"
                        );
                        push_once(assessment, of(allow, *kind, operation.action, &reason, &fix));
                    }
                }
            }
        }
    }
    Ok(())
}

/// Whether the key still serves those whom it is for.
fn not_serving(
    world: &World,
    expectation: &Expectation,
    assessment: &mut Assessment,
    budget: &mut u32,
) -> Result<(), Exhausted> {
    for operation in guarded(expectation) {
        for image in expectation.accepted_images() {
            let mut clauses = operation.context(world, expectation);
            clauses.extend(document(world, expectation, image, None));
            let question = Question { action: operation.action, attested: Attested::Enclave, clauses };
            for role in &expectation.enclave_roles {
                if !world.may(role, &question, budget)? {
                    let digest = image.get(&0).map(hex::encode).unwrap_or_default();
                    let reason =
                        format!("the image with PCR0 {digest} is accepted, but {role} cannot use the key with it");
                    let fix = "name the image and the role in the Allow, and the image in every Deny that lists images";
                    push_once(assessment, general(Kind::ImageRefused, operation.action, reason, fix));
                }
            }
        }
    }
    for machine in &expectation.nitro_tpms {
        let mut clauses = machine_document(world, expectation, machine, None);
        clauses.extend(own_context(world, expectation));
        let question = Question { action: "kms:Decrypt", attested: Attested::NitroTpm, clauses };
        for role in &expectation.enclave_roles {
            if !world.may(role, &question, budget)? {
                let reason = format!("an accepted NitroTPM machine cannot use the key as {role}");
                let fix =
                    "name its registers and the role in the Allow, and its registers in every Deny that lists them";
                push_once(assessment, general(Kind::ImageRefused, "kms:Decrypt", reason, fix));
            }
        }
    }
    let roles: &[&str] = match expectation.kind {
        KeyKind::Customer => &["seal prompts", "read answers"],
        KeyKind::ModelPack => &["seal model packs"],
        KeyKind::Attested => &[],
    };
    for role in roles {
        if !assessment.by_purpose.iter().any(|holder| holder.may == *role) {
            let reason = format!("nobody may {role}");
            push_once(assessment, general(Kind::RoleEmpty, "-", reason, "name who may, by ARN"));
        }
    }
    Ok(())
}

fn of(allow: &Ready, kind: Kind, path: &str, reason: &str, fix: &str) -> Finding {
    Finding {
        kind,
        statement: allow.source.label.clone(),
        principals: BTreeSet::new(),
        path: path.to_owned(),
        reason: reason.to_owned(),
        fix: fix.to_owned(),
    }
}

fn general(kind: Kind, path: &str, reason: String, fix: &str) -> Finding {
    Finding {
        kind,
        statement: "policy".into(),
        principals: BTreeSet::new(),
        path: path.into(),
        reason,
        fix: fix.into(),
    }
}

fn push_once(assessment: &mut Assessment, finding: Finding) {
    if !assessment.weaknesses.contains(&finding) {
        assessment.weaknesses.push(finding);
    }
}

/// Operations that no role of ours needs, and that make, move or give on what the key guards.
const NEVER: [&str; 7] = [
    "kms:Encrypt",
    "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
    CREATE_GRANT,
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:GenerateDataKeyPair",
    "kms:GenerateDataKeyPairWithoutPlaintext",
];
/// docs/PROTOCOL.md, section 10: extended by the manifests of the model packs.
const MODELS: u8 = 16;
/// docs/PROTOCOL.md, section 9: extended by the configuration document.
const CONFIGURATION: u8 = 17;
const CONTEXT_FIX: &str = "bind it by StringEquals on kms:EncryptionContext:KEY";
