//! The customer key's policy: every cell of role x action x encryption context x attestation, and every clause shown to matter.

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

use std::collections::BTreeMap;

use kms_policies::Policy;
use kms_policies::templates::{CustomerRoles, Measurements, RenderError, customer_key};
use table::{ADMINISTRATIVE, Attestation, Cell, NEVER, NEVER_BY_ANYONE, STRANGER, World, pcr};

const WRITER: &str = "arn:aws:iam::111122223333:role/Writer";
const WRITER_SESSION: &str = "arn:aws:sts::111122223333:assumed-role/Writer/laptop";
/// Another account: the operator's.
const ENCLAVE: &str = "arn:aws:iam::444455556666:role/Enclave";
const ENCLAVE_SESSION: &str = "arn:aws:sts::444455556666:assumed-role/Enclave/i-0abc";
const READER: &str = "arn:aws:iam::111122223333:user/reader";
const ADMINISTRATOR: &str = "arn:aws:iam::111122223333:role/Administrator";

const CALLERS: [&str; 5] = [WRITER_SESSION, ENCLAVE_SESSION, READER, ADMINISTRATOR, STRANGER];

type Context = &'static [(&'static str, &'static str)];
const INFERENCE: Context = &[("subrosa:purpose", "inference"), ("subrosa:tenant", "ward-7")];
const INFERENCE_SIGNED: Context =
    &[("aws-crypto-public-key", "A=="), ("subrosa:purpose", "inference"), ("subrosa:tenant", "ward-7")];
const ANSWER: Context = &[("subrosa:purpose", "answer"), ("subrosa:tenant", "ward-7")];
const ANSWER_SIGNED: Context =
    &[("aws-crypto-public-key", "A=="), ("subrosa:purpose", "answer"), ("subrosa:tenant", "ward-7")];
const CONTEXTS: [Context; 16] = [
    INFERENCE,
    ANSWER,
    INFERENCE_SIGNED,
    ANSWER_SIGNED,
    &[("subrosa:purpose", "model-pack"), ("subrosa:tenant", "ward-7")],
    &[("subrosa:purpose", "audit"), ("subrosa:tenant", "ward-7")],
    &[("subrosa:purpose", "Inference"), ("subrosa:tenant", "ward-7")],
    &[("subrosa:purpose", "ANSWER"), ("subrosa:tenant", "ward-7")],
    &[],
    &[("subrosa:tenant", "ward-7")],
    &[("subrosa:purpose", "inference"), ("subrosa:tenant", "ward-8")],
    &[("subrosa:purpose", "answer"), ("subrosa:tenant", "ward-8")],
    &[("extra", "x"), ("subrosa:purpose", "inference"), ("subrosa:tenant", "ward-7")],
    &[("extra", "x"), ("subrosa:purpose", "answer"), ("subrosa:tenant", "ward-7")],
    &[("Subrosa:Purpose", "inference"), ("subrosa:tenant", "ward-7")],
    &[("SUBROSA:PURPOSE", "inference"), ("subrosa:purpose", "answer"), ("subrosa:tenant", "ward-7")],
];

fn roles() -> CustomerRoles {
    let one = |arn: &str| vec![arn.to_owned()];
    CustomerRoles {
        prompt_writers: one(WRITER),
        enclaves: one(ENCLAVE),
        answer_readers: one(READER),
        administrators: one(ADMINISTRATOR),
    }
}

fn measurements(registers: &[u8]) -> Measurements {
    Measurements { pcrs: registers.iter().map(|index| (*index, vec![pcr(0, *index), pcr(1, *index)])).collect() }
}

fn policy() -> Policy {
    customer_key(&roles(), &measurements(&[0, 1, 2, 16, 17]), &["ward-7".to_owned()]).unwrap()
}

/// The truth table, written out: whoever is not named here may do nothing.
fn expected(world: World, cell: &Cell) -> bool {
    let Cell { caller, action, context, attestation, .. } = *cell;
    let unattested = attestation.is_none();
    let right = matches!(attestation, Attestation::Right(_));
    let (prompt, answer) =
        ([INFERENCE, INFERENCE_SIGNED].contains(&context), [ANSWER, ANSWER_SIGNED].contains(&context));
    let by_denies = match action {
        "kms:Decrypt" => {
            (unattested && cell.purpose() == Some("answer")) || (right && cell.purpose() == Some("inference"))
        }
        "kms:GenerateDataKey" => {
            (unattested && cell.purpose() == Some("inference")) || (right && cell.purpose() == Some("answer"))
        }
        action => !NEVER.contains(&action),
    };
    let by_allows = match (caller, action) {
        (WRITER_SESSION, "kms:GenerateDataKey") => prompt,
        (ENCLAVE_SESSION, "kms:Decrypt") => prompt && right,
        (ENCLAVE_SESSION, "kms:GenerateDataKey") => answer && right,
        (ENCLAVE_SESSION, "kms:GetKeyPolicy" | "kms:ListGrants") => true,
        (READER, "kms:Decrypt") => answer,
        (ADMINISTRATOR, action) => ADMINISTRATIVE.contains(&action),
        _ => false,
    };
    match world {
        World::StrayAllow => by_denies,
        World::AllowsAlone => by_allows,
        World::Rendered => match (caller, action) {
            (WRITER_SESSION, "kms:GenerateDataKey") => prompt && unattested,
            (ENCLAVE_SESSION, "kms:Decrypt") => prompt && right,
            (ENCLAVE_SESSION, "kms:GenerateDataKey") => answer && right,
            (ENCLAVE_SESSION, "kms:GetKeyPolicy" | "kms:ListGrants") => true,
            (READER, "kms:Decrypt") => answer && unattested,
            (ADMINISTRATOR, action) => ADMINISTRATIVE.contains(&action),
            _ => false,
        },
    }
}

#[test]
fn each_role_may_do_its_own_and_nothing_else_in_every_cell() {
    table::check(&policy(), &table::cells(&CALLERS, &CONTEXTS), expected);
}

#[test]
fn no_cell_without_the_right_enclave_reaches_a_prompt() {
    let cells = table::cells(&CALLERS, &CONTEXTS);
    for world in [World::Rendered, World::StrayAllow] {
        let leaks = cells.iter().filter(|c| {
            c.action == "kms:Decrypt"
                && c.purpose() != Some("answer")
                && !matches!(c.attestation, Attestation::Right(_))
        });
        assert_eq!(leaks.filter(|cell| expected(world, cell)).count(), 0);
    }
}

#[test]
fn every_clause_of_the_policy_matters_in_some_cell() {
    let effects = table::effects_of_damage(&policy(), &table::cells(&CALLERS, &CONTEXTS));
    assert!(effects.len() > 150, "{}", effects.len());
    let idle: Vec<_> = effects.iter().filter(|(_, worlds)| worlds.is_empty()).map(|(name, _)| name.as_str()).collect();
    assert!(idle.is_empty(), "nothing changes when these are damaged: {idle:#?}");
    table::check_defence_in_depth(&effects, DEFENCE_IN_DEPTH);
}

/// Damage that changes no cell of the policy as rendered, because another clause still stands in the way; `#` is each bound register.
const DEFENCE_IN_DEPTH: &[(&str, &[&str], &str)] = &[
    ("AttestedEnclaveOpensPrompts", ENCLAVE_ALLOW, "the Denies on Decrypt bind the same registers and purpose"),
    ("AttestedEnclaveSealsAnswers", ENCLAVE_ALLOW, "the Denies on GenerateDataKey bind the same registers and purpose"),
    (
        "DecryptOnlyAnswersUnlessPcr#",
        WHOLE_DENY,
        "nobody but the enclave is allowed Decrypt of a prompt, until somebody adds a statement or a grant",
    ),
    (
        "GenerateDataKeyOnlyForPromptsUnlessPcr#",
        WHOLE_DENY,
        "nobody but the enclave is allowed GenerateDataKey for an answer, until somebody adds a statement or a grant",
    ),
    ("NeverByAnyone", NEVER_BY_ANYONE, "nobody is allowed these, until somebody adds a statement or a grant"),
];
const ENCLAVE_ALLOW: &[&str] = &["StringEquals purpose deleted", "StringEqualsIgnoreCase PCR# deleted"];
const WHOLE_DENY: &[&str] = &["deleted", "action exchanged", "resource exchanged", "principal narrowed"];

#[test]
fn without_tenants_and_optional_registers_only_those_limits_are_missing() {
    let loose = customer_key(&roles(), &measurements(&[0, 1, 2]), &[]).unwrap();
    let text = loose.to_json();
    assert!(
        !text.contains("PCR16")
            && !text.contains("PCR17")
            && !text.contains("@{")
            && !text.contains("EncryptionContext:subrosa:tenant")
    );
    assert_eq!(loose.statements().len(), policy().statements().len() - 4);
    // Any tenant, and registers 16 and 17 do not count: else the same table.
    table::check(&loose, &table::cells(&CALLERS, &CONTEXTS), |world, cell| {
        let attestation = match cell.attestation {
            Attestation::Wrong(16 | 17) | Attestation::Absent(16 | 17) => Attestation::Right(0),
            other => other,
        };
        let context = match cell.context {
            [("subrosa:purpose", "inference"), ("subrosa:tenant", _)] => INFERENCE,
            [("subrosa:purpose", "answer"), ("subrosa:tenant", _)] => ANSWER,
            other => other,
        };
        expected(world, &Cell { attestation, context, ..*cell })
    });
}

#[test]
fn the_renderer_refuses_what_would_open_the_key() {
    let good = measurements(&[0, 1, 2]);
    let zero = |index: u8| {
        let mut m = good.clone();
        m.pcrs.insert(index, vec![pcr(0, index), [0; 48]]);
        m
    };
    for index in [0, 1, 2, 16, 17] {
        assert!(matches!(customer_key(&roles(), &zero(index), &[]), Err(RenderError::ZeroPcr(i)) if i == index));
    }
    for index in [0, 1, 2] {
        let mut m = good.clone();
        m.pcrs.remove(&index);
        assert!(matches!(customer_key(&roles(), &m, &[]), Err(RenderError::Empty(_))));
        m.pcrs.insert(index, vec![]);
        assert!(matches!(customer_key(&roles(), &m, &[]), Err(RenderError::Empty(_))));
    }
    assert!(matches!(customer_key(&roles(), &measurements(&[0, 1, 2, 8]), &[]), Err(RenderError::UnusablePcr(8))));
    assert!(matches!(customer_key(&roles(), &Measurements { pcrs: BTreeMap::new() }, &[]), Err(RenderError::Empty(_))));
    for tenant in ["", "a b", "*", "ward/7", &"x".repeat(65), "${aws:username}"] {
        assert!(matches!(customer_key(&roles(), &good, &[tenant.to_owned()]), Err(RenderError::Name(_))), "{tenant}");
    }
    let too_many = Measurements { pcrs: (0..3).map(|i| (i, (1..60).map(|n| [n; 48]).collect())).collect() };
    assert!(matches!(customer_key(&roles(), &too_many, &[]), Err(RenderError::TooLong(_))));
}

#[test]
fn the_renderer_refuses_roles_that_are_empty_malformed_or_the_enclave_again() {
    let fields: [fn(&mut CustomerRoles) -> &mut Vec<String>; 4] =
        [|r| &mut r.prompt_writers, |r| &mut r.enclaves, |r| &mut r.answer_readers, |r| &mut r.administrators];
    let good = measurements(&[0, 1, 2]);
    for (i, field) in fields.iter().enumerate() {
        let mut empty = roles();
        field(&mut empty).clear();
        assert!(matches!(customer_key(&empty, &good, &[]), Err(RenderError::Empty(_))));
        for arn in [
            "*",
            "arn:aws:iam::111122223333:root",
            "arn:aws:iam::111122223333:role/*",
            "111122223333",
            "",
            WRITER_SESSION,
        ] {
            let mut malformed = roles();
            field(&mut malformed).push(arn.to_owned());
            assert!(matches!(customer_key(&malformed, &good, &[]), Err(RenderError::Principal { .. })), "{i} {arn}");
        }
        if i != 1 {
            let mut shared = roles();
            field(&mut shared).push(ENCLAVE.to_owned());
            assert!(matches!(customer_key(&shared, &good, &[]), Err(RenderError::EnclaveHoldsAnotherRole { .. })));
        }
    }
}
