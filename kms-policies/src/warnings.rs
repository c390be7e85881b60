//! What a rendered policy leaves open although it is a good policy: for the person who renders it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::arn::Parts;
use crate::templates::{CustomerRoles, Measurements, ModelPackRoles};

/// One thing that a policy does not rule out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// PCR16, which the enclave extends by the manifests of its model packs, is not bound.
    AnyModel,
    /// PCR17, which the enclave extends by its configuration, is not bound.
    AnyConfiguration,
    /// Other roles are in the account of an enclave's role. A key policy that names a role trusts whoever may change that role.
    SharedAccount {
        /// The account.
        account: String,
        /// The roles of the policy that it also holds.
        roles: Vec<&'static str>,
    },
}

/// What the policy of a customer's key leaves open.
pub fn of_customer_key(roles: &CustomerRoles, measurements: &Measurements) -> Vec<Warning> {
    let CustomerRoles { prompt_writers, enclaves, answer_readers, administrators } = roles;
    let others =
        [("prompt_writers", prompt_writers), ("answer_readers", answer_readers), ("administrators", administrators)];
    let mut warnings = Vec::new();
    if !measurements.pcrs.contains_key(&MODELS) {
        warnings.push(Warning::AnyModel);
    }
    warnings.extend(configuration(measurements));
    warnings.extend(shared_accounts(enclaves, &others));
    warnings
}

/// What the policy of a model supplier's key leaves open. (PCR16 cannot be bound there.)
pub fn of_model_pack_key(roles: &ModelPackRoles, measurements: &Measurements) -> Vec<Warning> {
    let ModelPackRoles { model_suppliers, enclaves, administrators } = roles;
    let others = [("model_suppliers", model_suppliers), ("administrators", administrators)];
    configuration(measurements).into_iter().chain(shared_accounts(enclaves, &others)).collect()
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AnyModel => f.write_str("PCR16 is not given: the key opens to this image with any model"),
            Self::AnyConfiguration => {
                f.write_str("PCR17 is not given: the key opens to this image under any configuration")
            }
            Self::SharedAccount { account, roles } => write!(
                f,
                "{} and the enclave's role are in one account: whoever administers IAM in account {account} can take both roles",
                roles.join(", ")
            ),
        }
    }
}

fn configuration(measurements: &Measurements) -> Option<Warning> {
    (!measurements.pcrs.contains_key(&CONFIGURATION)).then_some(Warning::AnyConfiguration)
}

fn shared_accounts(enclaves: &[String], others: &[(&'static str, &Vec<String>)]) -> Vec<Warning> {
    let enclaves: BTreeSet<&str> = enclaves.iter().filter_map(|arn| account(arn)).collect();
    let mut shared: BTreeMap<&str, Vec<&'static str>> = BTreeMap::new();
    for (role, arns) in others {
        let accounts: BTreeSet<&str> = arns.iter().filter_map(|arn| account(arn)).collect();
        for account in accounts.intersection(&enclaves) {
            shared.entry(account).or_default().push(role);
        }
    }
    let warning = |(account, roles): (&str, _)| Warning::SharedAccount { account: account.to_owned(), roles };
    shared.into_iter().map(warning).collect()
}

/// An ARN that does not parse has none; the renderer refuses it.
fn account(arn: &str) -> Option<&str> {
    Parts::split(arn).ok().map(|parts| parts.account)
}

/// docs/PROTOCOL.md: extended by the manifests of the model packs.
const MODELS: u8 = 16;
/// docs/PROTOCOL.md: extended by the configuration document.
const CONFIGURATION: u8 = 17;

#[cfg(test)]
mod tests {
    use super::*;

    fn measurements(registers: &[u8]) -> Measurements {
        Measurements { pcrs: registers.iter().map(|index| (*index, vec![[1; 48]])).collect() }
    }

    fn role(account: &str, name: &str) -> Vec<String> {
        vec![format!("arn:aws:iam::{account}:role/{name}")]
    }

    fn customer(reader: &str) -> CustomerRoles {
        CustomerRoles {
            prompt_writers: role("111122223333", "app"),
            enclaves: role("444455556666", "enclave"),
            answer_readers: role(reader, "reader"),
            administrators: role("111122223333", "admin"),
        }
    }

    #[test]
    fn a_policy_that_binds_everything_in_an_account_of_its_own_has_no_warning() {
        assert_eq!(of_customer_key(&customer("111122223333"), &measurements(&[0, 1, 2, 16, 17])), []);
    }

    #[test]
    fn a_register_that_is_not_bound_is_named() {
        let roles = customer("111122223333");
        assert_eq!(of_customer_key(&roles, &measurements(&[0, 1, 2, 17])), [Warning::AnyModel]);
        assert_eq!(of_customer_key(&roles, &measurements(&[0, 1, 2, 16])), [Warning::AnyConfiguration]);
        let roles = ModelPackRoles {
            model_suppliers: role("111122223333", "release"),
            enclaves: role("444455556666", "enclave"),
            administrators: role("111122223333", "admin"),
        };
        assert_eq!(of_model_pack_key(&roles, &measurements(&[0, 1, 2])), [Warning::AnyConfiguration]);
        assert_eq!(of_model_pack_key(&roles, &measurements(&[0, 1, 2, 17])), []);
    }

    #[test]
    fn a_role_in_the_enclaves_account_is_named_with_the_account() {
        let warnings = of_customer_key(&customer("444455556666"), &measurements(&[0, 1, 2, 16, 17]));
        assert_eq!(
            warnings,
            [Warning::SharedAccount { account: "444455556666".to_owned(), roles: vec!["answer_readers"] }]
        );
        let text = warnings.iter().map(Warning::to_string).collect::<String>();
        assert!(text.contains("whoever administers IAM in account 444455556666 can take both roles"), "{text}");
    }
}
