//! The model supplier's key: its own truth table, and every clause shown to matter.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "tests stop at the first surprise"
)]

mod table;

use kms_policies::Policy;
use kms_policies::templates::{Measurements, ModelPackRoles, RenderError, model_pack_key};
use table::{ADMINISTRATIVE, Attestation, Cell, NEVER, NEVER_BY_ANYONE, STRANGER, World, pcr};

const SUPPLIER: &str = "arn:aws:iam::111122223333:role/Supplier";
const ENCLAVE: &str = "arn:aws:iam::444455556666:role/Enclave";
const ENCLAVE_SESSION: &str = "arn:aws:sts::444455556666:assumed-role/Enclave/i-0abc";
const ADMINISTRATOR: &str = "arn:aws:iam::111122223333:role/Administrator";

const CALLERS: [&str; 4] = [SUPPLIER, ENCLAVE_SESSION, ADMINISTRATOR, STRANGER];

type Context = &'static [(&'static str, &'static str)];
const PACK: Context = &[("subrosa:model", "intake"), ("subrosa:purpose", "model-pack"), ("subrosa:version", "1")];
const PACK_SIGNED: Context = &[
    ("aws-crypto-public-key", "A=="),
    ("subrosa:model", "intake"),
    ("subrosa:purpose", "model-pack"),
    ("subrosa:version", "2"),
];
const CONTEXTS: [Context; 9] = [
    PACK,
    PACK_SIGNED,
    &[("subrosa:model", "other"), ("subrosa:purpose", "model-pack"), ("subrosa:version", "1")],
    &[("extra", "x"), ("subrosa:model", "intake"), ("subrosa:purpose", "model-pack"), ("subrosa:version", "1")],
    &[("subrosa:purpose", "inference"), ("subrosa:tenant", "ward-7")],
    &[("subrosa:purpose", "answer"), ("subrosa:tenant", "ward-7")],
    &[("subrosa:purpose", "Model-Pack"), ("subrosa:model", "intake"), ("subrosa:version", "1")],
    &[],
    &[
        ("SUBROSA:PURPOSE", "model-pack"),
        ("subrosa:model", "intake"),
        ("subrosa:purpose", "model-pack"),
        ("subrosa:version", "1"),
    ],
];

fn roles() -> ModelPackRoles {
    let one = |arn: &str| vec![arn.to_owned()];
    ModelPackRoles { model_suppliers: one(SUPPLIER), enclaves: one(ENCLAVE), administrators: one(ADMINISTRATOR) }
}

fn measurements(registers: &[u8]) -> Measurements {
    Measurements { pcrs: registers.iter().map(|index| (*index, vec![pcr(0, *index), pcr(1, *index)])).collect() }
}

fn policy() -> Policy {
    model_pack_key(&roles(), &measurements(&[0, 1, 2, 17]), &["intake".to_owned()]).unwrap()
}

/// The truth table, written out: whoever is not named here may do nothing.
fn expected(world: World, cell: &Cell) -> bool {
    let Cell { caller, action, context, attestation, .. } = *cell;
    let unattested = attestation.is_none();
    // PCR16 holds the packs themselves: it does not count here.
    let right = matches!(attestation, Attestation::Right(_) | Attestation::Wrong(16) | Attestation::Absent(16));
    let pack = [PACK, PACK_SIGNED].contains(&context);
    match (world, caller, action) {
        (World::StrayAllow, _, "kms:Decrypt") => cell.purpose() == Some("model-pack") && right,
        (World::StrayAllow, _, "kms:GenerateDataKey") => cell.purpose() == Some("model-pack") && unattested,
        (World::StrayAllow, _, action) => !NEVER.contains(&action),
        (World::Rendered, SUPPLIER, "kms:GenerateDataKey") => pack && unattested,
        (World::AllowsAlone, SUPPLIER, "kms:GenerateDataKey") => pack,
        (_, ENCLAVE_SESSION, "kms:Decrypt") => pack && right,
        (_, ENCLAVE_SESSION, "kms:GetKeyPolicy" | "kms:ListGrants") => true,
        (_, ADMINISTRATOR, action) => ADMINISTRATIVE.contains(&action),
        _ => false,
    }
}

#[test]
fn supplier_and_enclave_may_do_their_own_and_nobody_anything_else_in_every_cell() {
    table::check(&policy(), &table::cells(&CALLERS, &CONTEXTS), expected);
}

#[test]
fn every_clause_of_the_policy_matters_in_some_cell() {
    let effects = table::effects_of_damage(&policy(), &table::cells(&CALLERS, &CONTEXTS));
    assert!(effects.len() > 100, "{}", effects.len());
    let idle: Vec<_> = effects.iter().filter(|(_, worlds)| worlds.is_empty()).map(|(name, _)| name.as_str()).collect();
    assert!(idle.is_empty(), "nothing changes when these are damaged: {idle:#?}");
    table::check_defence_in_depth(&effects, DEFENCE_IN_DEPTH);
}

/// Damage that changes no cell of the policy as rendered, because another clause still stands in the way; `#` is each bound register.
const DEFENCE_IN_DEPTH: &[(&str, &[&str], &str)] = &[
    (
        "AttestedEnclaveOpensPacks",
        &["StringEquals purpose deleted", "StringEqualsIgnoreCase PCR# deleted"],
        "the Denies bind the same registers and purpose",
    ),
    ("ModelSuppliersSealPacks", &["StringEquals purpose deleted"], "OnlyForModelPacks binds the same purpose"),
    (
        "NoDecryptUnlessPcr#",
        &["deleted", "action exchanged", "resource exchanged", "principal narrowed"],
        "nobody but the enclave is allowed Decrypt, until somebody adds a statement or a grant",
    ),
    (
        "OnlyForModelPacks",
        &[
            "deleted",
            "action without kms:Decrypt",
            "action without kms:GenerateDataKey",
            "resource exchanged",
            "principal narrowed",
        ],
        "no Allow has another purpose, until somebody adds a statement or a grant",
    ),
    ("NeverByAnyone", NEVER_BY_ANYONE, "nobody is allowed these, until somebody adds a statement or a grant"),
];

#[test]
fn the_register_of_the_packs_cannot_guard_the_packs_own_key() {
    assert!(matches!(model_pack_key(&roles(), &measurements(&[0, 1, 2, 16]), &[]), Err(RenderError::UnusablePcr(16))));
}

#[test]
fn the_renderer_refuses_zero_registers_empty_roles_and_the_enclave_as_supplier() {
    let mut zero = measurements(&[0, 1, 2]);
    zero.pcrs.insert(1, vec![[0; 48]]);
    assert!(matches!(model_pack_key(&roles(), &zero, &[]), Err(RenderError::ZeroPcr(1))));
    let good = measurements(&[0, 1, 2]);
    let mut nobody = roles();
    nobody.model_suppliers.clear();
    assert!(matches!(model_pack_key(&nobody, &good, &[]), Err(RenderError::Empty(_))));
    let mut shared = roles();
    shared.model_suppliers.push(ENCLAVE.to_owned());
    assert!(matches!(model_pack_key(&shared, &good, &[]), Err(RenderError::EnclaveHoldsAnotherRole { .. })));
    assert!(model_pack_key(&roles(), &good, &[]).is_ok());
}
