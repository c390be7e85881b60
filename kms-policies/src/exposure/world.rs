//! A policy with its grants and everyone who may call: which calls get through, and by which statement.

use std::collections::BTreeSet;

use crate::arn::{KeyArn, Parts};
use crate::condition::Condition;
use crate::exposure::expectation::{Expectation, KeyKind, PURPOSE};
use crate::exposure::reading::Source;
use crate::exposure::search::{Clause, Exhausted, Values, solve};
use crate::exposure::space::{self, Compiled, Distinguished, Space, Value, Variable};
use crate::policy::{Effect, Principal, Statement};
use crate::request::{Caller, Request};

/// The statements and grants of a key, and everyone who may call.
pub(super) struct World {
    pub(super) space: Space,
    pub(super) allows: Vec<Ready>,
    denies: Vec<Ready>,
    callers: Vec<Who>,
    key: KeyArn,
}

/// A statement, ready for the search.
pub(super) struct Ready {
    pub(super) source: Source,
    conditions: Vec<Compiled>,
}

/// Someone who may call.
#[derive(Debug, Clone)]
struct Who {
    caller: Caller,
    /// Stands for everyone of its account that is not named.
    is_anyone: bool,
    /// Of an account that is not named.
    is_outside: bool,
    /// Stands for all whose ARN matches the same patterns.
    is_example: bool,
}

/// How a call is attested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Attested {
    /// No `Recipient`.
    Not,
    /// By a Nitro enclave.
    Enclave,
    /// By a NitroTPM.
    NitroTpm,
}

/// A kind of call that is asked for.
pub(super) struct Question {
    pub(super) action: &'static str,
    pub(super) attested: Attested,
    /// What else must hold of the call.
    pub(super) clauses: Vec<Clause>,
}

/// Which statements count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counting {
    /// This `Allow` and every `Deny`: what is open.
    WithDenies,
    /// This `Allow` as if nothing else stood in the policy.
    Alone,
}

/// Who gets through.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    Everyone,
    /// Everyone of an account; if it is the principal of the statement, those whom that account's IAM policies allow.
    Account(String),
    Root(String),
    Named(String),
    /// All whose ARN matches the same patterns as this one.
    Like(String),
    Service(String),
}

impl World {
    /// Makes the statements ready. The work is bounded by `budget`.
    pub(super) fn new(sources: Vec<Source>, expectation: &Expectation, budget: &mut u32) -> Result<Self, Exhausted> {
        let conditions: Vec<&Condition> = sources.iter().flat_map(|source| &source.statement.conditions).collect();
        let space = Space::of(&conditions, &distinguished(expectation), budget)?;
        let callers = callers(&sources, &conditions, expectation, budget)?;
        let key = match &expectation.key {
            Some(key) => key.clone(),
            None => KeyArn::parse(UNKNOWN_KEY).map_err(|_| Exhausted)?,
        };
        let mut world = Self { space, allows: Vec::new(), denies: Vec::new(), callers, key };
        let anyone = world.callers.first().map(|who| who.caller.clone()).ok_or(Exhausted)?;
        let base = Request::new(anyone, "kms:Decrypt", world.key.clone());
        for source in sources {
            let compiled = source.statement.conditions.iter().map(|condition| world.space.compile(condition, &base));
            let ready = Ready { conditions: compiled.collect(), source };
            match ready.source.statement.effect {
                Effect::Allow => world.allows.push(ready),
                Effect::Deny => world.denies.push(ready),
            }
        }
        Ok(world)
    }

    /// Who gets such a call through by this statement.
    pub(super) fn reach(
        &self,
        allow: &Ready,
        question: &Question,
        counting: Counting,
        budget: &mut u32,
    ) -> Result<BTreeSet<Reach>, Exhausted> {
        let mut reached = BTreeSet::new();
        let statement = &allow.source.statement;
        if !statement.actions.contain(question.action) || !statement.resources.contain(&self.key) {
            return Ok(reached);
        }
        let denies: &[Ready] = if counting == Counting::Alone { &[] } else { &self.denies };
        let domains = self.domains(question);
        for who in &self.callers {
            let request = self.base(who, question.action);
            if !statement.principals.iter().any(|principal| principal.matches(&request, Effect::Allow)) {
                continue;
            }
            if self.call(Some(allow), denies, &request, (question, &domains), budget)?.is_some() {
                reached.insert(who.reach());
                if who.is_outside {
                    // If an unnamed caller of an unnamed account gets through, everyone does.
                    return Ok(BTreeSet::from([Reach::Everyone]));
                }
            }
        }
        let accounts: Vec<String> =
            reached.iter().filter_map(|r| if let Reach::Account(a) = r { Some(a.clone()) } else { None }).collect();
        // Who is of an account that gets through as a whole need not be named.
        reached.retain(|reach| match reach {
            Reach::Root(account) => !accounts.contains(account),
            Reach::Named(arn) | Reach::Like(arn) => {
                !Parts::split(arn).is_ok_and(|parts| accounts.iter().any(|a| a == parts.account))
            }
            _ => true,
        });
        Ok(reached)
    }

    /// A call that the `Deny`s alone let through, whoever it is that makes it.
    pub(super) fn undenied(&self, question: &Question, budget: &mut u32) -> Result<Option<Request>, Exhausted> {
        let domains = self.domains(question);
        for who in &self.callers {
            let request = self.base(who, question.action);
            if let Some(found) = self.call(None, &self.denies, &request, (question, &domains), budget)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Whether somebody of this role gets such a call through by some statement.
    pub(super) fn may(&self, role: &str, question: &Question, budget: &mut u32) -> Result<bool, Exhausted> {
        let domains = self.domains(question);
        for who in self.callers.iter().filter(|who| who.caller.principal_arn() == role) {
            let request = self.base(who, question.action);
            for allow in &self.allows {
                let statement = &allow.source.statement;
                if statement.actions.contain(question.action)
                    && statement.resources.contain(&self.key)
                    && statement.principals.iter().any(|principal| principal.matches(&request, Effect::Allow))
                    && self.call(Some(allow), &self.denies, &request, (question, &domains), budget)?.is_some()
                {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn call(
        &self,
        allow: Option<&Ready>,
        denies: &[Ready],
        base: &Request,
        (question, domains): (&Question, &[Values]),
        budget: &mut u32,
    ) -> Result<Option<Request>, Exhausted> {
        let mut denied: Vec<Clause> = Vec::new();
        for deny in denies {
            let Statement { principals, actions, .. } = &deny.source.statement;
            if !actions.contain(question.action) || !principals.iter().any(|p| p.matches(base, Effect::Deny)) {
                continue;
            }
            let mut fails = Clause::new();
            let mut is_about_others = false;
            for condition in &deny.conditions {
                match condition {
                    Compiled::Caller(condition) => is_about_others |= !condition.holds(base, Effect::Deny),
                    Compiled::Rest { fails: clause, .. } => fails.extend(clause.iter().cloned()),
                }
            }
            if !is_about_others {
                denied.push(fails);
            }
        }
        let mut clauses: Vec<&Clause> = question.clauses.iter().chain(&denied).collect();
        for condition in allow.iter().flat_map(|allow| &allow.conditions) {
            match condition {
                Compiled::Caller(condition) if !condition.holds(base, Effect::Allow) => return Ok(None),
                Compiled::Caller(_) => {}
                Compiled::Rest { holds, .. } => clauses.push(holds),
            }
        }
        let Some(choice) = solve(domains, &clauses, budget)? else { return Ok(None) };
        let request = self.space.request(base, &choice);
        // The evaluator has the last word. Were it to disagree, nothing here could be relied on.
        let is_allowed = allow.is_none_or(|allow| allow.source.statement.applies_to(&request));
        let is_denied = denies.iter().any(|deny| deny.source.statement.applies_to(&request));
        if is_allowed && !is_denied { Ok(Some(request)) } else { Err(Exhausted) }
    }

    fn domains(&self, question: &Question) -> Vec<Values> {
        self.space.domains(|variable, value| can_be(question, variable, value))
    }

    /// IAM policies are not part of a key policy, so whoever needs one is taken to have it.
    fn base(&self, who: &Who, action: &str) -> Request {
        let mut request = Request::new(who.caller.clone(), action, self.key.clone());
        request.iam_allows = true;
        request
    }
}

impl Who {
    fn reach(&self) -> Reach {
        let Self { caller, is_anyone, is_outside, is_example } = self;
        match caller.service_name() {
            Some(service) => Reach::Service(service.to_owned()),
            None if *is_outside => Reach::Everyone,
            None if *is_anyone => Reach::Account(caller.account().to_owned()),
            None if caller.is_account_root() => Reach::Root(caller.account().to_owned()),
            None if *is_example => Reach::Like(caller.principal_arn().to_owned()),
            None => Reach::Named(caller.principal_arn().to_owned()),
        }
    }
}

/// What calls of this action, attested in this way, can hold.
fn can_be(question: &Question, variable: &Variable, value: &Value) -> bool {
    let is_absent = *value == Value::Absent;
    match variable {
        // KMS has Recipient on few operations; without it no register is in the context of the request. A document of an enclave has
        // PCR0 to 15, and those above that were locked; that of a NitroTPM has PCR0 to 23, and no other kind.
        Variable::Pcr(index) if question.attested == Attested::Enclave => !is_absent || *index > LAST_BUILT_IN,
        Variable::NitroTpm(index) if question.attested == Attested::NitroTpm => !is_absent || *index > LAST_OF_TPM,
        Variable::Pcr(_) | Variable::NitroTpm(_) => is_absent,
        Variable::Context(_) => is_absent || WITH_CONTEXT.contains(&question.action),
        Variable::ViaService => true,
        Variable::Grantee => is_absent != (question.action == CREATE_GRANT),
        Variable::Operation(_) => is_absent || question.action == CREATE_GRANT,
        Variable::Bypass => is_absent || question.action == PUT_KEY_POLICY,
    }
}

fn distinguished(expectation: &Expectation) -> Distinguished {
    let mut all = Distinguished::default();
    for image in &expectation.images {
        all.registers.extend(image.iter().map(|(index, value)| (Variable::Pcr(*index), *value)));
    }
    for machine in &expectation.nitro_tpms {
        all.registers.extend(machine.iter().map(|(index, value)| (Variable::NitroTpm(*index), *value)));
    }
    // These can be asked about although neither the policy nor the images name them.
    all.registers.extend([0, 1, 2, 16, 17].map(|index| (Variable::Pcr(index), [0; 48])));
    all.context.extend(expectation.context.iter().map(|(key, value)| (key.clone(), value.clone())));
    all.context.extend(PURPOSES.map(|purpose| (PURPOSE.to_owned(), purpose.to_owned())));
    all.context.extend(expectation.context_keys().iter().map(|key| ((*key).to_owned(), String::new())));
    all.context.insert((UNEXPECTED_KEY.to_owned(), String::new()));
    all.operations.extend(granted(expectation.kind).map(str::to_owned));
    all
}

/// Everyone who is named, everyone of each account that is named, and a stranger.
fn callers(
    sources: &[Source],
    conditions: &[&Condition],
    expectation: &Expectation,
    budget: &mut u32,
) -> Result<Vec<Who>, Exhausted> {
    let mut arns: BTreeSet<String> = expectation.enclave_roles.iter().cloned().collect();
    let mut accounts: BTreeSet<(String, String)> = BTreeSet::new();
    let mut services = BTreeSet::new();
    let principals = sources.iter().flat_map(|source| &source.statement.principals);
    for principal in principals {
        match principal {
            Principal::Anyone => {}
            Principal::Account { account, text } => {
                let partition = Parts::split(text).map_or("aws", |parts| parts.partition);
                accounts.insert((partition.to_owned(), account.clone()));
            }
            Principal::Arn(arn) => drop(arns.insert(arn.clone())),
            Principal::Service(service) => drop(services.insert(service.clone())),
        }
    }
    let in_conditions = conditions.iter().flat_map(|condition| &condition.values);
    let named = arns.iter().chain(in_conditions).chain(expectation.answer_readers.iter().flatten());
    for parts in named.filter_map(|arn| Parts::split(arn).ok()).collect::<Vec<_>>() {
        accounts.insert((parts.partition.to_owned(), parts.account.to_owned()));
    }
    accounts.extend(expectation.key.iter().filter_map(|key| {
        Parts::split(key.as_str()).ok().map(|parts| (parts.partition.to_owned(), parts.account.to_owned()))
    }));
    let known: BTreeSet<&str> = accounts.iter().map(|(_, account)| account.as_str()).collect();
    accounts
        .extend(space::accounts(conditions, &known, budget)?.into_iter().map(|account| ("aws".to_owned(), account)));
    let outside =
        (0..).map(|n| format!("{:012}", 999_999_999_999_u64 - n)).find(|n| !accounts.iter().any(|(_, a)| a == n));
    accounts.extend(outside.iter().map(|account| ("aws".to_owned(), account.clone())));
    let examples = space::principal_arns(conditions, &accounts, &arns, budget)?;
    // A policy could deny just the name that stands for everyone else. The length of the policy bounds the search.
    let written =
        sources.iter().flat_map(|source| &source.statement.principals).filter_map(|principal| match principal {
            Principal::Arn(text) | Principal::Account { text, .. } | Principal::Service(text) => Some(text),
            Principal::Anyone => None,
        });
    let written: Vec<String> = written
        .chain(conditions.iter().flat_map(|condition| &condition.values))
        .chain(&arns)
        .chain(expectation.answer_readers.iter().flatten())
        .map(|text| text.to_lowercase())
        .collect();
    let anyone = unnamed(&written);
    let who = |caller, is_anyone, is_outside| Who { caller, is_anyone, is_outside, is_example: false };
    let mut all = Vec::new();
    for (partition, account) in &accounts {
        let is_outside = outside.as_ref() == Some(account);
        let other = Caller::assumed_role(&format!("arn:{partition}:iam::{account}:role/{anyone}"), &anyone);
        all.extend(other.map(|caller| who(caller, true, is_outside)));
        // Neither user nor role: a condition can leave them alone.
        let federated = Caller::parse(&format!("arn:{partition}:sts::{account}:federated-user/{anyone}"));
        all.extend(federated.map(|caller| who(caller, true, is_outside)));
        let root = Caller::parse(&format!("arn:{partition}:iam::{account}:root"));
        all.extend(root.map(|caller| who(caller, false, false)));
    }
    for arn in &arns {
        // Who calls as a role is a session of it.
        let caller = Caller::assumed_role(arn, &anyone).or_else(|_| Caller::parse(arn));
        all.extend(caller.map(|caller| who(caller, false, false)));
    }
    for arn in examples.iter().filter(|arn| !arns.contains(*arn)) {
        let caller = Caller::assumed_role(arn, &anyone).or_else(|_| Caller::parse(arn));
        let is_written = conditions.iter().any(|condition| condition.values.contains(arn));
        all.extend(caller.map(|caller| Who { is_example: !is_written, ..who(caller, false, false) }));
    }
    all.extend(services.iter().map(|name| who(Caller::service(name), false, false)));
    if all.len() > MAX_CALLERS { Err(Exhausted) } else { Ok(all) }
}

/// The operations whose grant opens a key of this kind.
pub(super) fn granted(kind: KeyKind) -> impl Iterator<Item = &'static str> {
    let forging: &[&str] = if kind == KeyKind::Customer { &GRANTED_TO_FORGE } else { &[] };
    GRANTED.iter().chain(forging).copied()
}

/// A name of a role, and of a session, that occurs in none of these texts, which are in lower case.
fn unnamed(written: &[String]) -> String {
    let is_free = |name: &String| !written.iter().any(|text| text.contains(name));
    let numbered = (1_u32..).map(|n| format!("{ANYONE}-{n}"));
    std::iter::once(ANYONE.to_owned()).chain(numbered).find(is_free).unwrap_or_else(|| ANYONE.to_owned())
}

pub(super) const PUT_KEY_POLICY: &str = "kms:PutKeyPolicy";
pub(super) const CREATE_GRANT: &str = "kms:CreateGrant";
/// A context key that no message of ours has.
pub(super) const UNEXPECTED_KEY: &str = "subrosa-unexpected";
/// What a grant must give so that its holder comes to plaintext, by himself or by another grant.
const GRANTED: [&str; 4] = ["Decrypt", "ReEncryptFrom", "GenerateDataKey", "CreateGrant"];
/// What a grant must give so that its holder can seal a data key that he knows, and so forge answers.
const GRANTED_TO_FORGE: [&str; 2] = ["Encrypt", "ReEncryptTo"];
/// KMS developer guide, "kms:EncryptionContext:": cryptographic operations with a symmetric key, CreateGrant and RetireGrant.
const WITH_CONTEXT: [&str; 10] = [
    "kms:Decrypt",
    "kms:Encrypt",
    "kms:GenerateDataKey",
    "kms:GenerateDataKeyPair",
    "kms:GenerateDataKeyPairWithoutPlaintext",
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
    CREATE_GRANT,
    "kms:RetireGrant",
];
const PURPOSES: [&str; 3] = ["inference", "answer", "model-pack"];
/// The name of a role, and of a session, that nobody names; a number follows if somebody does.
const ANYONE: &str = "subrosa-anyone";
const UNKNOWN_KEY: &str = "arn:aws:kms:us-east-1:000000000000:key/unknown";
const LAST_BUILT_IN: u8 = 15;
const LAST_OF_TPM: u8 = 23;
/// A policy of 32 KB names at most a few hundred.
const MAX_CALLERS: usize = 1_000;
