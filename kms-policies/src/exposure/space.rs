//! Everything that a call may hold, as variables with finitely many values: enough of them that no condition can tell more apart.

use std::collections::{BTreeMap, BTreeSet};

use crate::Pcr;
use crate::condition::{Comparison, Condition, ConditionKey, Quantifier};
use crate::exposure::glob::{Glob, Texts, examples};
use crate::exposure::search::{Clause, Exhausted, Term, Values};
use crate::request::{Caller, Recipient, Request};

/// A part of a call that may differ.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Variable {
    /// A register of a Nitro enclave.
    Pcr(u8),
    /// A register of a NitroTPM.
    NitroTpm(u8),
    /// An entry of the encryption context, by its key in lower case.
    Context(String),
    /// `kms:ViaService`.
    ViaService,
    /// `kms:GranteePrincipal`.
    Grantee,
    /// Whether this is one of `kms:GrantOperations`.
    Operation(String),
    /// `kms:BypassPolicyLockoutSafetyCheck`.
    Bypass,
}

/// A value of a variable.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Value {
    Absent,
    Register(Pcr),
    Text(String),
    /// An entry of the encryption context, its key spelled so.
    Entry(String, String),
}

/// The variables and their values.
#[derive(Debug)]
pub(super) struct Space {
    variables: Vec<(Variable, Vec<Value>)>,
}

/// What besides the policy has to be told apart.
#[derive(Debug, Default)]
pub(super) struct Distinguished {
    pub(super) registers: BTreeSet<(Variable, Pcr)>,
    pub(super) context: BTreeSet<(String, String)>,
    pub(super) operations: BTreeSet<String>,
}

/// A condition, ready for the search.
#[derive(Debug)]
pub(super) enum Compiled {
    /// It depends on the caller alone.
    Caller(Condition),
    /// The clause that says that it holds, and the one that says that it does not.
    Rest { holds: Clause, fails: Clause },
}

impl Space {
    /// The space of these conditions.
    pub(super) fn of(
        conditions: &[&Condition],
        distinguished: &Distinguished,
        budget: &mut u32,
    ) -> Result<Self, Exhausted> {
        let mut registers: BTreeMap<Variable, (BTreeSet<Pcr>, BTreeSet<Glob>)> = BTreeMap::new();
        let mut texts: BTreeMap<Variable, BTreeSet<Glob>> = BTreeMap::new();
        let mut spellings: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut key_globs = BTreeSet::new();
        for (variable, value) in &distinguished.registers {
            registers.entry(variable.clone()).or_default().0.insert(*value);
        }
        for (key, value) in &distinguished.context {
            spellings.entry(key.to_ascii_lowercase()).or_default().insert(key.clone());
            texts.entry(Variable::Context(key.to_ascii_lowercase())).or_default().insert(Glob::literal(value));
        }
        for operation in &distinguished.operations {
            texts.entry(Variable::Operation(operation.clone())).or_default();
        }
        for condition in conditions {
            let Some(variable) = variable(&condition.key) else {
                match condition.key {
                    ConditionKey::EncryptionContextKeys if condition.operator.comparison != Comparison::Null => {
                        key_globs.extend(globs(condition));
                    }
                    ConditionKey::GrantOperations if condition.operator.comparison != Comparison::Null => {
                        for example in examples(&globs(condition).collect(), &Texts::Any, budget).ok_or(Exhausted)? {
                            texts.entry(Variable::Operation(example)).or_default();
                        }
                    }
                    _ => {}
                }
                continue;
            };
            match &variable {
                Variable::Pcr(_) | Variable::NitroTpm(_) => {
                    let (values, wildcards) = registers.entry(variable).or_default();
                    for value in &condition.values {
                        match register(value) {
                            Some(value) => drop(values.insert(value)),
                            None => wildcards.extend(glob(condition.operator.comparison, value)),
                        }
                    }
                }
                Variable::Context(key) => {
                    let spelled = condition.key_name.splitn(3, ':').nth(2).unwrap_or(key).to_owned();
                    spellings.entry(key.clone()).or_default().insert(spelled);
                    texts.entry(variable).or_default().extend(globs(condition));
                }
                _ => texts.entry(variable).or_default().extend(globs(condition)),
            }
        }
        // Where the keys of the context are counted, spelling matters, and every key that can be told apart is one.
        if !key_globs.is_empty() {
            let known: Vec<String> = spellings.values().flatten().cloned().collect();
            key_globs.extend(known.iter().map(|key| Glob::ignoring_case(key)));
            key_globs.extend(known.iter().map(|key| Glob::literal(key)));
            for example in examples(&key_globs, &Texts::Any, budget).ok_or(Exhausted)? {
                if !example.is_empty() {
                    texts.entry(Variable::Context(example.to_ascii_lowercase())).or_default();
                    spellings.entry(example.to_ascii_lowercase()).or_default().insert(example);
                }
            }
        }
        let mut variables = Vec::new();
        for (variable, (values, wildcards)) in registers {
            let values = register_values(values, &wildcards, budget)?;
            variables.push((variable, values));
        }
        for (variable, globs) in texts {
            let found = match &variable {
                Variable::Operation(operation) => vec![operation.clone()],
                _ => examples(&globs, &Texts::Any, budget).ok_or(Exhausted)?,
            };
            let spelled = match &variable {
                Variable::Context(key) => spellings.remove(key).unwrap_or_default(),
                _ => BTreeSet::new(),
            };
            let mut values = vec![Value::Absent];
            for text in found {
                match &variable {
                    Variable::Context(_) => {
                        values.extend(spelled.iter().map(|key| Value::Entry(key.clone(), text.clone())));
                    }
                    _ => values.push(Value::Text(text)),
                }
            }
            variables.push((variable, values));
        }
        Ok(Self { variables })
    }

    /// The values of a variable.
    pub(super) fn values(&self, which: &Variable) -> &[Value] {
        let found = self.variables.iter().find(|(variable, _)| variable == which);
        found.map_or(&[], |(_, values)| values)
    }

    /// For each variable the values for which `holds`.
    pub(super) fn domains(&self, holds: impl Fn(&Variable, &Value) -> bool) -> Vec<Values> {
        let of = |(variable, values): &(Variable, Vec<Value>)| {
            Values::those(values.len(), |i| values.get(i).is_some_and(|value| holds(variable, value)))
        };
        self.variables.iter().map(of).collect()
    }

    /// The term that one variable has one of the values for which `holds`; `None` if there is no such variable.
    pub(super) fn term(&self, which: &Variable, holds: impl Fn(&Value) -> bool) -> Option<Term> {
        let at = self.variables.iter().position(|(variable, _)| variable == which)?;
        let (_, values) = self.variables.get(at)?;
        Some(vec![(at, Values::those(values.len(), |i| values.get(i).is_some_and(&holds)))])
    }

    /// A condition, ready for the search.
    pub(super) fn compile(&self, condition: &Condition, base: &Request) -> Compiled {
        match &condition.key {
            ConditionKey::CallerAccount | ConditionKey::PrincipalArn | ConditionKey::PrincipalAccount => {
                Compiled::Caller(condition.clone())
            }
            ConditionKey::EncryptionContextKeys => {
                self.compile_many(condition, |variable| matches!(variable, Variable::Context(_)))
            }
            ConditionKey::GrantOperations => {
                self.compile_many(condition, |variable| matches!(variable, Variable::Operation(_)))
            }
            key => {
                let holds = |value: &Value| {
                    let mut request = base.clone();
                    put(&mut request, variable(key), value);
                    // One value stands for the key, so that nothing is ambiguous, and the effect does not matter.
                    condition.holds(&request, crate::policy::Effect::Deny)
                };
                let clause = |wanted: bool| {
                    variable(key)
                        .and_then(|variable| self.term(&variable, |value| holds(value) == wanted))
                        .into_iter()
                        .collect()
                };
                Compiled::Rest { holds: clause(true), fails: clause(false) }
            }
        }
    }

    /// A condition on a key with many values: on which of the variables are there, and how they are spelled.
    fn compile_many(&self, condition: &Condition, of_the_key: impl Fn(&Variable) -> bool) -> Compiled {
        let which: Vec<(usize, &Vec<Value>)> = self
            .variables
            .iter()
            .enumerate()
            .filter(|(_, (variable, _))| of_the_key(variable))
            .map(|(at, (_, values))| (at, values))
            .collect();
        let name = |value: &Value| match value {
            Value::Absent | Value::Register(_) => None,
            Value::Text(name) | Value::Entry(name, _) => Some(name.clone()),
        };
        // All of them hold, as one term; or any of them does, as one term each.
        let all = |holds: &dyn Fn(Option<String>) -> bool| -> Clause {
            let one = |(at, values): &(usize, &Vec<Value>)| {
                (*at, Values::those(values.len(), |i| values.get(i).is_some_and(|value| holds(name(value)))))
            };
            vec![which.iter().map(one).collect()]
        };
        let any = |holds: &dyn Fn(Option<String>) -> bool| -> Clause {
            all(holds).into_iter().flatten().map(|narrowed| vec![narrowed]).collect()
        };
        let absent = |name: Option<String>| name.is_none();
        let present = |name: Option<String>| name.is_some();
        if condition.operator.comparison == Comparison::Null {
            let wanted = |text: &str| condition.values.iter().any(|value| value.eq_ignore_ascii_case(text));
            let clause = |when_absent: bool, when_present: bool| {
                let mut clause = Clause::new();
                clause.extend(when_absent.then(|| all(&absent)).into_iter().flatten());
                clause.extend(when_present.then(|| any(&present)).into_iter().flatten());
                clause
            };
            return Compiled::Rest {
                holds: clause(wanted("true"), wanted("false")),
                fails: clause(!wanted("true"), !wanted("false")),
            };
        }
        let passes = |name: Option<String>| name.is_some_and(|name| condition.passes(&name));
        let is_refused = |name: Option<String>| name.is_some_and(|name| !condition.passes(&name));
        let absent_or_passes = |name: Option<String>| name.is_none_or(|name| condition.passes(&name));
        let absent_or_refused = |name: Option<String>| name.is_none_or(|name| !condition.passes(&name));
        if condition.operator.quantifier == Some(Quantifier::ForAll) {
            return Compiled::Rest { holds: all(&absent_or_passes), fails: any(&is_refused) };
        }
        let none_passes = all(&absent_or_refused);
        if !condition.holds_when_absent() {
            return Compiled::Rest { holds: any(&passes), fails: none_passes };
        }
        // `IfExists`: it fails only when there is something, and none of it passes.
        let fails = any(&is_refused)
            .into_iter()
            .map(|mut term| {
                term.extend(none_passes.iter().flatten().cloned());
                term
            })
            .collect();
        Compiled::Rest { holds: any(&passes).into_iter().chain(all(&absent)).collect(), fails }
    }

    /// The call that a choice of values is.
    pub(super) fn request(&self, base: &Request, choice: &[usize]) -> Request {
        let mut request = base.clone();
        for ((variable, values), chosen) in self.variables.iter().zip(choice) {
            if let Some(value) = values.get(*chosen) {
                put(&mut request, Some(variable.clone()), value);
            }
        }
        request
    }
}

/// The callers' texts that conditions on `aws:PrincipalArn` tell apart, in these accounts, beside those that are named.
pub(super) fn principal_arns(
    conditions: &[&Condition],
    accounts: &BTreeSet<(String, String)>,
    named: &BTreeSet<String>,
    budget: &mut u32,
) -> Result<Vec<String>, Exhausted> {
    let of_the_key = conditions.iter().filter(|condition| condition.key == ConditionKey::PrincipalArn);
    let patterns: BTreeSet<Glob> = of_the_key.flat_map(|condition| globs(condition)).collect();
    if patterns.is_empty() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for (partition, account) in accounts {
        for kind in ["role", "user"] {
            let mut patterns = patterns.clone();
            let of_kind = format!("arn:{partition}:iam::{account}:{kind}/");
            // An example that a statement names as its principal would stand for nobody else.
            patterns.extend(named.iter().filter(|arn| arn.starts_with(&of_kind)).map(|arn| Glob::literal(arn)));
            patterns.insert(Glob::wildcards(&format!("{of_kind}?*")));
            found.extend(examples(&patterns, &Texts::Any, budget).ok_or(Exhausted)?);
        }
    }
    found.retain(|arn| Caller::parse(arn).is_ok());
    Ok(found)
}

/// The accounts that conditions on the caller's account tell apart, beside those that are known.
pub(super) fn accounts(
    conditions: &[&Condition],
    known: &BTreeSet<&str>,
    budget: &mut u32,
) -> Result<Vec<String>, Exhausted> {
    let is_account = |key: &ConditionKey| matches!(key, ConditionKey::CallerAccount | ConditionKey::PrincipalAccount);
    let of_the_key = conditions.iter().filter(|condition| is_account(&condition.key));
    let mut patterns: BTreeSet<Glob> = of_the_key.flat_map(|condition| globs(condition)).collect();
    if patterns.is_empty() {
        return Ok(Vec::new());
    }
    patterns.extend(known.iter().map(|account| Glob::literal(account)));
    examples(&patterns, &Texts::Of("0123456789", 12), budget).ok_or(Exhausted)
}

fn variable(key: &ConditionKey) -> Option<Variable> {
    Some(match key {
        ConditionKey::RecipientPcr(index) => Variable::Pcr(*index),
        ConditionKey::RecipientNitroTpmPcr(index) => Variable::NitroTpm(*index),
        ConditionKey::EncryptionContext(key) => Variable::Context(key.clone()),
        ConditionKey::ViaService => Variable::ViaService,
        ConditionKey::GranteePrincipal => Variable::Grantee,
        ConditionKey::BypassPolicyLockoutSafetyCheck => Variable::Bypass,
        ConditionKey::EncryptionContextKeys
        | ConditionKey::GrantOperations
        | ConditionKey::CallerAccount
        | ConditionKey::PrincipalArn
        | ConditionKey::PrincipalAccount => return None,
    })
}

fn put(request: &mut Request, variable: Option<Variable>, value: &Value) {
    match (variable, value) {
        (Some(Variable::Pcr(index)), Value::Register(value)) => {
            request.recipient.get_or_insert_with(Recipient::default).pcrs.insert(index, *value);
        }
        (Some(Variable::NitroTpm(index)), Value::Register(value)) => {
            request.recipient.get_or_insert_with(Recipient::default).nitro_tpm_pcrs.insert(index, *value);
        }
        (Some(Variable::Context(_)), Value::Entry(key, value)) => {
            request.encryption_context.insert(key.clone(), value.clone());
        }
        (Some(Variable::ViaService), Value::Text(service)) => request.via_service = Some(service.clone()),
        (Some(Variable::Grantee), Value::Text(grantee)) => request.grantee_principal = Some(grantee.clone()),
        (Some(Variable::Operation(_)), Value::Text(operation)) => request.grant_operations.push(operation.clone()),
        (Some(Variable::Bypass), Value::Text(bypass)) => {
            request.bypass_policy_lockout_safety_check = Some(bypass.eq_ignore_ascii_case("true"));
        }
        _ => {}
    }
}

/// The values of a register: absent, another than all that are named, zero, the named ones, and one for each that wildcards tell apart.
fn register_values(
    mut named: BTreeSet<Pcr>,
    wildcards: &BTreeSet<Glob>,
    budget: &mut u32,
) -> Result<Vec<Value>, Exhausted> {
    if !wildcards.is_empty() {
        let literals = named.iter().map(|value| Glob::literal(&hex::encode(value)));
        let patterns = literals.chain(wildcards.iter().cloned()).collect();
        let texts = Texts::Of(HEX_DIGITS, 2 * size_of::<Pcr>());
        let found = examples(&patterns, &texts, budget).ok_or(Exhausted)?;
        named.extend(found.iter().filter_map(|text| register(text)));
    }
    let other = (0..=u8::MAX).rev().map(|byte| [byte; size_of::<Pcr>()]).find(|other| !named.contains(other));
    named.insert([0; size_of::<Pcr>()]);
    let named: Vec<Pcr> =
        other.into_iter().chain(named.iter().copied().filter(|value| Some(*value) != other)).collect();
    Ok(std::iter::once(Value::Absent).chain(named.into_iter().map(Value::Register)).collect())
}

fn register(text: &str) -> Option<Pcr> {
    let mut value = [0; size_of::<Pcr>()];
    hex::decode_to_slice(text, &mut value).ok().map(|()| value)
}

fn globs(condition: &Condition) -> impl Iterator<Item = Glob> {
    condition.values.iter().flat_map(|value| glob(condition.operator.comparison, value))
}

fn glob(comparison: Comparison, value: &str) -> Option<Glob> {
    use Comparison::*;
    Some(match comparison {
        StringEquals | StringNotEquals => Glob::literal(value),
        StringEqualsIgnoreCase | StringNotEqualsIgnoreCase | Bool => Glob::ignoring_case(value),
        StringLike | StringNotLike => Glob::wildcards(value),
        ArnEquals | ArnNotEquals | ArnLike | ArnNotLike => Glob::arn(value),
        NumericEquals
        | NumericNotEquals
        | NumericLessThan
        | NumericLessThanEquals
        | NumericGreaterThan
        | NumericGreaterThanEquals
        | Null => return None,
    })
}

const HEX_DIGITS: &str = "0123456789abcdef";
