//! The templates, judged: nothing is open, and every clause that is deleted or weakened is found.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "tests stop at the first surprise"
)]

mod table;

use std::collections::{BTreeMap, BTreeSet};

use kms_policies::Policy;
use kms_policies::arn::KeyArn;
use kms_policies::attested_key::{AttestedRoles, Machine, attested_key};
use kms_policies::exposure::{self, Assessment, Expectation, KeyKind, Kind, Registers};
use kms_policies::templates::{CustomerRoles, Measurements, ModelPackRoles, bind_pairs, customer_key, model_pack_key};
use table::{KEY, pcr};

const ENCLAVE: &str = "arn:aws:iam::444455556666:role/Enclave";

fn roles() -> CustomerRoles {
    let one = |name: &str| vec![format!("arn:aws:iam::111122223333:role/{name}")];
    CustomerRoles {
        prompt_writers: one("Writer"),
        enclaves: vec![ENCLAVE.into()],
        answer_readers: one("Reader"),
        administrators: one("Administrator"),
    }
}

fn image(which: u8, registers: &[u8]) -> Registers {
    registers.iter().map(|index| (*index, pcr(which, *index))).collect()
}

fn measurements(registers: &[u8]) -> Measurements {
    Measurements { pcrs: registers.iter().map(|index| (*index, vec![pcr(0, *index), pcr(1, *index)])).collect() }
}

fn customer() -> (Policy, Expectation) {
    let registers = [0, 1, 2, 16, 17];
    let policy = customer_key(&roles(), &measurements(&registers), &["ward-7".to_owned()]).unwrap();
    let expectation = Expectation {
        kind: KeyKind::Customer,
        images: vec![image(0, &registers), image(1, &registers)],
        context: BTreeMap::from([("subrosa:tenant".to_owned(), "ward-7".to_owned())]),
        enclave_roles: vec![ENCLAVE.into()],
        key: Some(KeyArn::parse(KEY).unwrap()),
        ..Expectation::default()
    };
    (policy, expectation)
}

fn paired((policy, expectation): (Policy, Expectation)) -> (Policy, Expectation) {
    (bind_pairs(policy, &expectation.images).unwrap(), expectation)
}

fn show(assessment: &Assessment) -> String {
    let list = |name: &str, findings: &[exposure::Finding]| {
        findings.iter().map(|finding| format!("{name}: {finding}\n")).collect::<String>()
    };
    list("OPEN", &assessment.open)
        + &list("could open", &assessment.could_open)
        + &list("weak", &assessment.weaknesses)
        + &format!("{:#?}", assessment.by_purpose)
}

fn model_pack() -> (Policy, Expectation) {
    let roles = ModelPackRoles {
        model_suppliers: vec!["arn:aws:iam::111122223333:role/Supplier".into()],
        enclaves: vec![ENCLAVE.into()],
        administrators: vec!["arn:aws:iam::111122223333:role/Administrator".into()],
    };
    let registers = [0, 1, 2, 17];
    let policy = model_pack_key(&roles, &measurements(&registers), &["intake".to_owned()]).unwrap();
    let expectation = Expectation {
        kind: KeyKind::ModelPack,
        images: vec![image(0, &registers), image(1, &registers)],
        context: BTreeMap::from([("subrosa:model".to_owned(), "intake".to_owned())]),
        enclave_roles: vec![ENCLAVE.into()],
        key: Some(KeyArn::parse(KEY).unwrap()),
        ..Expectation::default()
    };
    (policy, expectation)
}

#[test]
fn the_templates_leave_no_path_open_and_no_weakness_and_say_who_could_open_one() {
    for (policy, expectation) in [paired(customer()), paired(model_pack())] {
        let assessment = exposure::assess(&policy.to_json(), Some(&[]), &expectation);
        assert!(assessment.is_closed() && assessment.weaknesses.is_empty(), "{}", show(&assessment));
        let could: Vec<_> =
            assessment.could_open.iter().map(|finding| (finding.kind, finding.statement.as_str())).collect();
        assert_eq!(could, [(exposure::Kind::PutKeyPolicy, "Administrators")]);
        assert_eq!(
            assessment.by_purpose.len(),
            if expectation.kind == KeyKind::Customer { 2 } else { 1 },
            "{}",
            show(&assessment)
        );
    }
}

#[test]
fn an_image_with_the_configuration_of_another_is_found_and_shut_out_by_pairs() {
    let (listed, expectation) = customer();
    let kinds = |policy: &Policy, expectation: &Expectation| -> BTreeSet<Kind> {
        let found = exposure::assess(&policy.to_json(), Some(&[]), expectation);
        assert!(found.is_closed());
        found.weaknesses.iter().map(|finding| finding.kind).collect()
    };
    assert_eq!(kinds(&listed, &expectation), BTreeSet::from([Kind::MixedImages]));
    let paired = bind_pairs(listed.clone(), &expectation.images).unwrap();
    assert_eq!(kinds(&paired, &expectation), BTreeSet::new());
    assert_eq!(paired.statements().len(), listed.statements().len() + 4);
    // Where the images share what they run with, there is nothing to pair.
    let mut shared = expectation;
    let first = shared.images[0].clone();
    for index in [16, 17] {
        shared.images[1].insert(index, first[&index]);
    }
    assert_eq!(bind_pairs(listed.clone(), &shared.images).unwrap(), listed);
}

#[test]
fn the_policy_of_an_attested_key_holds_for_enclaves_and_for_nitro_tpms() {
    let one = |name: &str| vec![format!("arn:aws:iam::111122223333:role/{name}")];
    let roles =
        AttestedRoles { attested: vec![ENCLAVE.into()], sealers: one("Sealer"), administrators: one("Administrator") };
    let context = BTreeMap::from([("purpose".to_owned(), "backup".to_owned())]);
    let base = Expectation {
        kind: KeyKind::Attested,
        context: context.clone(),
        enclave_roles: vec![ENCLAVE.into()],
        key: Some(KeyArn::parse(KEY).unwrap()),
        ..Expectation::default()
    };
    for (machine, registers) in [(Machine::NitroEnclave, [0, 1, 2]), (Machine::NitroTpm, [4, 7, 12])] {
        let values = image(0, &registers);
        let lists = values.iter().map(|(index, value)| (*index, vec![*value])).collect();
        let policy = attested_key(&roles, machine, &lists, &context).unwrap();
        let mut expectation = base.clone();
        match machine {
            Machine::NitroEnclave => expectation.images = vec![values],
            Machine::NitroTpm => expectation.nitro_tpms = vec![values],
        }
        let found = exposure::assess(&policy.to_json(), Some(&[]), &expectation);
        assert!(found.is_closed() && found.weaknesses.is_empty(), "{machine:?}: {}", show(&found));
        let all = table::damaged(&serde_json::from_str(&policy.to_json()).unwrap());
        for (name, damaged) in all {
            let damage = exposure::assess(&damaged.to_string(), Some(&[]), &expectation);
            let (sid, what) = name.split_once(": ").unwrap();
            let narrows = ["SealersSeal", "Administrators"].contains(&sid)
                && !what.ends_with("widened")
                && !what.contains("String");
            assert!(narrows || damage != Assessment { digest: damage.digest, ..found.clone() }, "{machine:?}: {name}");
        }
    }
}

/// Damage that takes away what somebody may do, and nothing else: nobody gains by it. That it is seen all the same is no promise.
fn only_narrows(name: &str) -> bool {
    let (sid, what) = name.split_once(": ").unwrap();
    (sid == "Administrators" && what != "principal widened" && what != "action widened")
        // Who may read a policy opens nothing by it.
        || sid == "EnclaveReadsPolicy"
        || what.ends_with("EncryptionContextKeys without aws-crypto-public-key")
}

#[test]
fn every_clause_that_is_deleted_or_weakened_is_found() {
    // Pairs stand for the lists of PCR16 and PCR17 too, so that nothing shows when one of both is damaged: each is damaged alone.
    let pairs = |name: &str| name.starts_with("Images");
    for ((policy, expectation), of_interest) in
        [(customer(), false), (model_pack(), false), (paired(customer()), true), (paired(model_pack()), true)]
    {
        let whole = exposure::assess(&policy.to_json(), Some(&[]), &expectation);
        let mut all = table::damaged(&serde_json::from_str(&policy.to_json()).unwrap());
        assert!(all.len() > 100, "{}", all.len());
        all.retain(|(name, _)| pairs(name) == of_interest);
        let mut missed = Vec::new();
        for (name, damaged) in &all {
            let found = exposure::assess(&damaged.to_string(), Some(&[]), &expectation);
            let is_new = |finding: &exposure::Finding| {
                !whole.open.contains(finding)
                    && !whole.could_open.contains(finding)
                    && !whole.weaknesses.contains(finding)
            };
            let news =
                found.open.iter().chain(&found.could_open).chain(&found.weaknesses).filter(|f| is_new(f)).count();
            if news == 0 && found.by_purpose == whole.by_purpose && !only_narrows(name) {
                missed.push(name.clone());
            }
        }
        assert!(missed.is_empty(), "{} of {}: {missed:#?}", missed.len(), all.len());
    }
}
