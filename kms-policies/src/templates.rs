//! Key policies for Subrosa's roles, rendered from the data files beside this crate.
//!
//! A template is an ordinary key policy in JSON in which a value `"@{NAME}"` stands for a list that the renderer fills in. What is not
//! given may be left out only where the template says so: `"@{NAME|omit-condition}"` drops its line of the condition (in an `Allow`,
//! and with it the limit), `"@{NAME|omit-statement}"` drops the statement (a `Deny` without its line would deny everything).
//!
//! Values are set in the parsed tree, never pasted into text, and the result is read back by the strict parser.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use thiserror::Error;

use crate::arn::{ArnError, check_role_or_user};
use crate::condition::{Comparison, Condition, ConditionKey, Operator};
use crate::parse::{MAX_POLICY_BYTES, ParseError};
use crate::pattern::ActionPattern;
use crate::policy::{Actions, Effect, Principal, Resources, Statement};
use crate::{Pcr, Policy};

/// The template of a customer's key, as data.
pub const CUSTOMER_KEY: &str = include_str!("../templates/customer-key.json");
/// The template of a model supplier's key, as data.
pub const MODEL_PACK_KEY: &str = include_str!("../templates/model-pack-key.json");

/// Who may do what with a customer's key; each the full ARN of an IAM role or user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CustomerRoles {
    /// Unattested `GenerateDataKey` with purpose `inference`: they seal prompts.
    pub prompt_writers: Vec<String>,
    /// The operator's roles whose credentials the enclave uses: attested `Decrypt` of prompts, attested `GenerateDataKey` for answers.
    pub enclaves: Vec<String>,
    /// `Decrypt` with purpose `answer`: they read answers.
    pub answer_readers: Vec<String>,
    /// Management of the key, `PutKeyPolicy` included; no cryptographic operation, no grant.
    pub administrators: Vec<String>,
}

/// Who may do what with a model supplier's key; each the full ARN of an IAM role or user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelPackRoles {
    /// Unattested `GenerateDataKey` with purpose `model-pack`: they seal packs.
    pub model_suppliers: Vec<String>,
    /// The operator's roles whose credentials the enclave uses: attested `Decrypt` of packs.
    pub enclaves: Vec<String>,
    /// Management of the key.
    pub administrators: Vec<String>,
}

/// Which code may have the key: for each register the values that are good, any one of which will do.
///
/// Several images are several values in each list. The lists are independent. That mixes nothing of PCR0 to 2, because PCR0 covers the
/// whole image; but image A with the configuration of image B does exist, and [`bind_pairs`] shuts it out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Measurements {
    /// PCR0, PCR1 and PCR2 are required. PCR17 (the configuration) and, for a customer's key, PCR16 (the model packs) are optional.
    pub pcrs: BTreeMap<u8, Vec<Pcr>>,
}

/// Why no policy was rendered.
#[derive(Debug, Error)]
pub enum RenderError {
    /// A role that must be filled has nobody in it, or a register that must be bound has no value.
    #[error("{0}: at least one value is needed")]
    Empty(String),
    /// A role holder is not the full ARN of a role or user.
    #[error("{role}: {source}")]
    Principal {
        /// Which role.
        role: &'static str,
        /// What is wrong with the ARN.
        source: ArnError,
    },
    /// The enclave's role also holds another role. The parent has its credentials, so it would hold that role too.
    #[error(
        "{arn} is the enclave's role and in {role}: the parent holds the enclave's credentials and must hold no other role"
    )]
    EnclaveHoldsAnotherRole {
        /// The ARN.
        arn: String,
        /// The other role.
        role: &'static str,
    },
    /// An all-zero register: every enclave in debug mode has it, whatever it runs.
    #[error("PCR{0} is all zeros, as in every debug-mode enclave: such a policy would open the key to any code")]
    ZeroPcr(u8),
    /// The template does not bind this register.
    #[error(
        "PCR{0} cannot be bound by this policy: PCR0, 1, 2 and 17 can, and PCR16 for a customer's key (it is extended only after the packs are open)"
    )]
    UnusablePcr(u8),
    /// A tenant or model that the protocol does not allow.
    #[error("{0:?} is no tenant or model: 1 to 64 of A-Z a-z 0-9 . _ -")]
    Name(String),
    /// Longer than KMS takes.
    #[error("the policy would have {0} bytes; KMS takes at most {MAX_POLICY_BYTES}: name fewer images or roles")]
    TooLong(usize),
    /// The template itself is broken; the tests of this crate rule it out for the two that ship.
    #[error("template: {0}")]
    Template(String),
    /// What was rendered is not a policy; the tests of this crate rule it out for the two that ship.
    #[error("rendered policy: {0}")]
    Parse(#[from] ParseError),
}

/// Renders the policy of a customer's key. With `tenants`, prompts and answers of these tenants only.
pub fn customer_key(
    roles: &CustomerRoles,
    measurements: &Measurements,
    tenants: &[String],
) -> Result<Policy, RenderError> {
    let CustomerRoles { prompt_writers, enclaves, answer_readers, administrators } = roles;
    let mut values = Values::default();
    values.roles("enclaves", enclaves, enclaves)?;
    for (role, arns) in
        [("prompt_writers", prompt_writers), ("answer_readers", answer_readers), ("administrators", administrators)]
    {
        values.roles(role, arns, enclaves)?;
    }
    values.registers(measurements, &[0, 1, 2], &[16, 17])?;
    values.names("tenants", tenants)?;
    values.render(CUSTOMER_KEY)
}

/// Renders the policy of a model supplier's key. With `models`, packs of these models only.
pub fn model_pack_key(
    roles: &ModelPackRoles,
    measurements: &Measurements,
    models: &[String],
) -> Result<Policy, RenderError> {
    let ModelPackRoles { model_suppliers, enclaves, administrators } = roles;
    let mut values = Values::default();
    values.roles("enclaves", enclaves, enclaves)?;
    for (role, arns) in [("model_suppliers", model_suppliers), ("administrators", administrators)] {
        values.roles(role, arns, enclaves)?;
    }
    values.registers(measurements, &[0, 1, 2], &[17])?;
    values.names("models", models)?;
    values.render(MODEL_PACK_KEY)
}

/// Adds a `Deny` for each image that may run only with its own models (PCR16) and its own configuration (PCR17), where they differ
/// between images: values that are listed for each register by itself would accept every mixture.
pub fn bind_pairs(policy: Policy, images: &[BTreeMap<u8, Pcr>]) -> Result<Policy, RenderError> {
    let Policy { id, mut statements } = policy;
    let is_attested = |statement: &&Statement| {
        let is_register = |condition: &Condition| matches!(condition.key, ConditionKey::RecipientPcr(_));
        statement.effect == Effect::Allow && statement.conditions.iter().any(is_register)
    };
    // What attested code may do by this policy.
    let mut actions = vec!["kms:Decrypt", "kms:GenerateDataKey"];
    actions.retain(|action| statements.iter().filter(is_attested).any(|statement| statement.actions.contain(action)));
    for index in [16, 17] {
        // For each image, by its PCR0, what may stand in the register.
        let mut own: BTreeMap<Pcr, BTreeSet<Pcr>> = BTreeMap::new();
        for image in images {
            if let (Some(digest), Some(value)) = (image.get(&0), image.get(&index)) {
                own.entry(*digest).or_default().insert(*value);
            }
        }
        let distinct: BTreeSet<&BTreeSet<Pcr>> = own.values().collect();
        if distinct.len() < 2 {
            continue;
        }
        for (n, values) in distinct.into_iter().enumerate() {
            let digests = own.iter().filter(|(_, theirs)| *theirs == values).map(|(digest, _)| hex::encode(digest));
            statements.push(Statement {
                sid: Some(format!("Images{}OnlyWithTheirPcr{index}", n + 1)),
                effect: Effect::Deny,
                principals: vec![Principal::Anyone],
                actions: Actions::Only(actions.iter().filter_map(|action| ActionPattern::parse(action)).collect()),
                resources: Resources::Only(vec!["*".into()]),
                conditions: vec![
                    compared(Comparison::StringEqualsIgnoreCase, "kms:RecipientAttestation:PCR0", digests.collect())?,
                    compared(
                        Comparison::StringNotEqualsIgnoreCase,
                        &format!("kms:RecipientAttestation:PCR{index}"),
                        values.iter().map(hex::encode).collect(),
                    )?,
                ],
            });
        }
    }
    fitting(Policy { id, statements })
}

/// A line of a condition.
pub(crate) fn compared(comparison: Comparison, key: &str, values: Vec<String>) -> Result<Condition, RenderError> {
    Ok(Condition {
        operator: Operator { quantifier: None, comparison, if_exists: false },
        key: ConditionKey::parse(key).ok_or_else(|| RenderError::Template(format!("no condition key {key:?}")))?,
        key_name: key.to_owned(),
        values,
    })
}

/// The policy, if KMS takes one of its length; read back by the strict parser.
pub(crate) fn fitting(policy: Policy) -> Result<Policy, RenderError> {
    let text = policy.to_json();
    if text.len() > MAX_POLICY_BYTES { Err(RenderError::TooLong(text.len())) } else { Ok(Policy::parse(&text)?) }
}

/// What the placeholders stand for.
#[derive(Default)]
struct Values(BTreeMap<String, Vec<String>>);

impl Values {
    fn roles(&mut self, role: &'static str, arns: &[String], enclaves: &[String]) -> Result<(), RenderError> {
        if arns.is_empty() {
            return Err(RenderError::Empty(role.to_owned()));
        }
        for arn in arns {
            check_role_or_user(arn).map_err(|source| RenderError::Principal { role, source })?;
            if role != "enclaves" && enclaves.contains(arn) {
                return Err(RenderError::EnclaveHoldsAnotherRole { arn: arn.clone(), role });
            }
        }
        self.set(role, arns.iter().cloned());
        Ok(())
    }

    fn registers(&mut self, measurements: &Measurements, required: &[u8], optional: &[u8]) -> Result<(), RenderError> {
        let Measurements { pcrs } = measurements;
        for index in required {
            if !pcrs.contains_key(index) {
                return Err(RenderError::Empty(format!("PCR{index}")));
            }
        }
        for (index, values) in pcrs {
            if !required.contains(index) && !optional.contains(index) {
                return Err(RenderError::UnusablePcr(*index));
            }
            if values.is_empty() {
                return Err(RenderError::Empty(format!("PCR{index}")));
            }
            if values.contains(&ZERO) {
                return Err(RenderError::ZeroPcr(*index));
            }
            self.set(&format!("pcr{index}"), values.iter().map(hex::encode));
        }
        Ok(())
    }

    fn names(&mut self, placeholder: &str, names: &[String]) -> Result<(), RenderError> {
        // docs/PROTOCOL.md, section 4: `subrosa:tenant` matches `[A-Za-z0-9._-]{1,64}`.
        let legal = |name: &String| {
            (1..=MAX_NAME_BYTES).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if let Some(name) = names.iter().find(|name| !legal(name)) {
            return Err(RenderError::Name(name.clone()));
        }
        if !names.is_empty() {
            self.set(placeholder, names.iter().cloned());
        }
        Ok(())
    }

    fn set(&mut self, placeholder: &str, values: impl Iterator<Item = String>) {
        let distinct: BTreeSet<String> = values.collect();
        self.0.insert(placeholder.to_owned(), distinct.into_iter().collect());
    }

    fn render(&self, template: &str) -> Result<Policy, RenderError> {
        let broken = |what: &str| RenderError::Template(what.to_owned());
        let template: Value = serde_json::from_str(template).map_err(|e| RenderError::Template(e.to_string()))?;
        let Value::Object(mut policy) = template else { return Err(broken("not an object")) };
        let Some(Value::Array(statements)) = policy.remove("Statement") else {
            return Err(broken("no list of statements"));
        };
        let mut rendered = Vec::new();
        for statement in statements {
            if let Filled::Kept(statement) = self.fill(statement)? {
                rendered.push(statement);
            }
        }
        policy.insert("Statement".into(), Value::Array(rendered));
        let text = Value::Object(policy).to_string();
        if text.len() > MAX_POLICY_BYTES {
            return Err(RenderError::TooLong(text.len()));
        }
        fitting(Policy::parse(&text)?)
    }

    fn fill(&self, value: Value) -> Result<Filled, RenderError> {
        match value {
            Value::String(text) => self.fill_text(text),
            Value::Object(members) => {
                let mut kept = Map::new();
                for (name, member) in members {
                    match self.fill(member)? {
                        Filled::Kept(member) => drop(kept.insert(name, member)),
                        Filled::OmitCondition => {}
                        Filled::OmitStatement => return Ok(Filled::OmitStatement),
                    }
                }
                Ok(Filled::Kept(Value::Object(kept)))
            }
            other => Ok(Filled::Kept(other)),
        }
    }

    fn fill_text(&self, text: String) -> Result<Filled, RenderError> {
        let Some(inner) = text.strip_prefix("@{").and_then(|rest| rest.strip_suffix('}')) else {
            return Ok(Filled::Kept(Value::String(text)));
        };
        let (name, when_absent) = inner.split_once('|').map_or((inner, None), |(name, rule)| (name, Some(rule)));
        match (self.0.get(name), when_absent) {
            (Some(values), _) => Ok(Filled::Kept(Value::from(values.clone()))),
            (None, Some("omit-condition")) => Ok(Filled::OmitCondition),
            (None, Some("omit-statement")) => Ok(Filled::OmitStatement),
            (None, _) => Err(RenderError::Template(format!("nothing is given for {text}"))),
        }
    }
}

/// What became of a part of the template.
enum Filled {
    Kept(Value),
    OmitCondition,
    OmitStatement,
}

const ZERO: Pcr = [0; 48];
const MAX_NAME_BYTES: usize = 64;
