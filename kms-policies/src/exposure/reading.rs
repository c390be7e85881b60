//! Reading a policy that need not be one of ours: whatever is not understood is assumed to open.
//!
//! The strict parser refuses what it does not know. An auditor must judge such policies too. Here an `Allow` with an unknown condition is
//! taken as if the condition held, and a `Deny` with an unknown condition as if it did not stand there. So nothing that is open looks
//! closed; and each assumption is kept, to be told.

use crate::arn::{self, KeyArn, Parts};
use crate::condition::{Comparison, Condition, ConditionKey};
use crate::json::Json;
use crate::parse::{self, MAX_POLICY_BYTES};
use crate::pattern::ActionPattern;
use crate::policy::{Actions, Effect, Principal, Resources, Statement, VERSION};

/// A statement as it is judged.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// Its `Sid`, or its place: `#3` is the third.
    pub(super) label: String,
    /// What it allows at most, or denies at least.
    pub(super) statement: Statement,
    /// What was assumed to come to that.
    pub(super) assumed: Vec<String>,
    /// It was written with `NotResource`.
    pub(super) has_not_resource: bool,
}

/// A policy as it is judged.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) sources: Vec<Source>,
    /// `Deny` statements that are not counted, and why.
    pub(super) not_counted: Vec<(String, String)>,
    /// What may allow anything: label and reason.
    pub(super) unreadable: Vec<(String, String)>,
}

/// Reads a policy; `key` is the key that it belongs to, if that is known.
pub(super) fn read(text: &str, key: Option<&KeyArn>) -> Reading {
    let mut reading = Reading::default();
    let statements = match statements(text) {
        Ok(statements) => statements,
        Err(reason) => {
            reading.unreadable.push(("policy".into(), reason));
            return reading;
        }
    };
    for (i, value) in statements.into_iter().enumerate() {
        let sid = member(&value, "Sid").and_then(text_of).filter(|sid| !sid.is_empty());
        let label = sid.map_or_else(|| format!("#{}", i + 1), str::to_owned);
        let (statement, assumed) = match parse::statement(value.clone(), i) {
            Ok(statement) => (statement, Vec::new()),
            Err(error) => match lenient(value) {
                Ok((statement, assumed)) => (statement, assumed),
                Err(Unread::Deny(reason)) => {
                    reading.not_counted.push((label, format!("{reason} ({error})")));
                    continue;
                }
                Err(Unread::Open(reason)) => {
                    reading.unreadable.push((label, format!("{reason} ({error})")));
                    continue;
                }
            },
        };
        let has_not_resource = matches!(statement.resources, Resources::AllBut(_));
        match settled(statement, assumed, key) {
            Ok((statement, assumed)) => {
                reading.sources.push(Source { label, statement, assumed, has_not_resource });
            }
            Err(reason) => reading.not_counted.push((label, reason)),
        }
    }
    reading
}

/// Why a statement has no model.
enum Unread {
    /// It only takes away: it is not counted.
    Deny(String),
    /// It may allow anything.
    Open(String),
}

fn statements(text: &str) -> Result<Vec<Json>, String> {
    if text.len() > MAX_POLICY_BYTES {
        return Err(format!("the text has {} bytes; KMS takes at most {MAX_POLICY_BYTES}", text.len()));
    }
    let value: Json = serde_json::from_str(text).map_err(|error| format!("not a JSON policy: {error}"))?;
    let Json::Object(members) = value else { return Err(format!("expected an object, got {}", value.kind())) };
    let mut statements = None;
    for (name, value) in members {
        match (name.as_str(), value) {
            // The older version differs by policy variables alone, which are not understood in either.
            ("Version", Json::Text(version)) if version == VERSION || version == OLD_VERSION => {}
            ("Id", Json::Text(_)) => {}
            ("Statement", Json::List(list)) => statements = Some(list),
            ("Statement", single @ Json::Object(_)) => statements = Some(vec![single]),
            (name, value) => return Err(format!("the policy's member {name:?} ({}) is not understood", value.kind())),
        }
    }
    statements.ok_or_else(|| "the policy has no Statement".to_owned())
}

/// A statement that the strict parser refuses.
fn lenient(value: Json) -> Result<(Statement, Vec<String>), Unread> {
    let effect = match member(&value, "Effect").and_then(text_of) {
        Some("Allow") => Effect::Allow,
        Some("Deny") => Effect::Deny,
        _ => return Err(Unread::Open("its effect is neither Allow nor Deny".into())),
    };
    let mut reader = Lenient { effect, assumed: Vec::new() };
    let wrong = |reason: String| match effect {
        Effect::Allow => Unread::Open(reason),
        Effect::Deny => Unread::Deny(reason),
    };
    let statement = reader.statement(value).map_err(wrong)?;
    Ok((statement, reader.assumed))
}

struct Lenient {
    effect: Effect,
    assumed: Vec<String>,
}

impl Lenient {
    fn statement(&mut self, value: Json) -> Result<Statement, String> {
        let Json::Object(members) = value else { return Err("it is no object".into()) };
        let (mut sid, mut principals, mut actions, mut resources, mut conditions) =
            (None, None, None, None, Vec::new());
        for (name, value) in members {
            match name.as_str() {
                "Sid" => sid = text_of(&value).map(str::to_owned),
                "Effect" => {}
                "Principal" => principals = Some(self.principals(value)?),
                "NotPrincipal" => {
                    self.assume("NotPrincipal names everyone".into())?;
                    principals = Some(vec![Principal::Anyone]);
                }
                "Action" => actions = Some(Actions::Only(self.actions(value)?)),
                "NotAction" => actions = Some(Actions::AllBut(self.all_but(value, parse::action)?)),
                "Resource" => resources = Some(Resources::Only(self.resources(value)?)),
                "NotResource" => resources = Some(Resources::AllBut(self.all_but(value, parse::resource)?)),
                "Condition" => conditions = self.conditions(value)?,
                other => return Err(format!("its member {other:?} is not understood")),
            }
        }
        Ok(Statement {
            sid,
            effect: self.effect,
            principals: principals.ok_or("it has no Principal")?,
            actions: actions.ok_or("it has no Action")?,
            // KMS adds it where it is missing; it can only mean this key.
            resources: resources.unwrap_or_else(|| Resources::Only(vec!["*".into()])),
            conditions,
        })
    }

    /// In an `Allow`: `what` is assumed. A `Deny` is given up instead.
    fn assume(&mut self, what: String) -> Result<(), String> {
        match self.effect {
            Effect::Allow => {
                self.assumed.push(what);
                Ok(())
            }
            Effect::Deny => Err(format!("not understood: {what}")),
        }
    }

    fn principals(&mut self, value: Json) -> Result<Vec<Principal>, String> {
        let kinds = match value {
            Json::Text(text) => vec![("AWS".to_owned(), Json::Text(text))],
            Json::Object(kinds) => kinds,
            other => return Err(format!("its principal is {}", other.kind())),
        };
        let mut all = Vec::new();
        for (kind, names) in kinds {
            for name in texts(names)? {
                let read = match kind.as_str() {
                    "AWS" => parse::aws_principal(name.clone(), "").ok(),
                    "Service" => parse::service_principal(name.clone(), "").ok(),
                    _ => None,
                };
                match (read, self.effect) {
                    (Some(principal), _) => all.push(principal),
                    // IAM reference, "Principal": a deleted user or role is shown by its unique id, and matches nobody any more.
                    (None, _) if kind == "AWS" && is_unique_id(&name) => {
                        self.assumed.push(format!("{name:?} is a deleted user or role and names nobody"));
                    }
                    (None, Effect::Allow) => {
                        self.assumed.push(format!("principal {name:?} is not understood and may be anyone"));
                        all.push(Principal::Anyone);
                    }
                    // Whom it does not name, it does not deny.
                    (None, Effect::Deny) => self.assumed.push(format!("principal {name:?} is not counted")),
                }
            }
        }
        Ok(all)
    }

    fn actions(&mut self, value: Json) -> Result<Vec<ActionPattern>, String> {
        let mut all = Vec::new();
        for name in texts(value)? {
            match parse::action(name.clone(), "") {
                Ok(action) => all.push(action),
                // Another service's action is none of KMS's.
                Err(_) if is_of_another_service(&name) => {}
                Err(_) if self.effect == Effect::Allow => {
                    self.assumed.push(format!("action {name:?} is not understood and may be any"));
                    all.extend(ActionPattern::parse("*"));
                }
                Err(_) => self.assumed.push(format!("action {name:?} is not counted")),
            }
        }
        Ok(all)
    }

    fn resources(&mut self, value: Json) -> Result<Vec<String>, String> {
        let mut all = Vec::new();
        for name in texts(value)? {
            match parse::resource(name.clone(), "") {
                Ok(resource) => all.push(resource),
                Err(_) if self.effect == Effect::Allow => {
                    self.assumed.push(format!("resource {name:?} is not understood and may be this key"));
                    all.push("*".into());
                }
                Err(_) => self.assumed.push(format!("resource {name:?} is not counted")),
            }
        }
        Ok(all)
    }

    /// `NotAction` and `NotResource`: what is not understood excludes nothing from an `Allow`.
    fn all_but<T, E>(&mut self, value: Json, read: fn(String, &str) -> Result<T, E>) -> Result<Vec<T>, String> {
        let mut all = Vec::new();
        for name in texts(value)? {
            match read(name.clone(), "") {
                Ok(item) => all.push(item),
                Err(_) if is_of_another_service(&name) => {}
                Err(_) => self.assume(format!("{name:?} is not understood and excludes nothing"))?,
            }
        }
        Ok(all)
    }

    fn conditions(&mut self, value: Json) -> Result<Vec<Condition>, String> {
        let Json::Object(blocks) = value else { return Err(format!("its condition is {}", value.kind())) };
        let mut all = Vec::new();
        for (operator, block) in blocks {
            let Json::Object(lines) = block else {
                return Err(format!("its condition {operator} is {}", block.kind()));
            };
            for (key, values) in lines {
                match parse::condition(&operator, key.clone(), values, "") {
                    Ok(condition) => all.push(condition),
                    Err(_) => self.assume(format!("{operator} on {key} is not understood and may hold"))?,
                }
            }
        }
        Ok(all)
    }
}

/// Leaves only what the search can decide: conditions of decidable kinds, and resources that are this key.
fn settled(
    mut statement: Statement,
    mut assumed: Vec<String>,
    key: Option<&KeyArn>,
) -> Result<(Statement, Vec<String>), String> {
    let allows = statement.effect == Effect::Allow;
    let (decidable, other): (Vec<_>, Vec<_>) = statement.conditions.into_iter().partition(is_decidable);
    statement.conditions = decidable;
    for condition in other {
        let what = format!("{} on {} cannot be decided and may hold", condition.operator, condition.key_name);
        if !allows {
            return Err(what);
        }
        assumed.push(what);
    }
    let is_this_key = match (&statement.resources, key) {
        (resources, Some(key)) => resources.contain(key),
        (Resources::Only(patterns), None) => allows || patterns.iter().any(|pattern| pattern == "*"),
        (Resources::AllBut(_), None) => allows,
    };
    match (is_this_key, allows) {
        (true, _) => statement.resources = Resources::Only(vec!["*".into()]),
        (false, true) => statement.resources = Resources::Only(Vec::new()),
        (false, false) => return Err("its Resource is not this key; write \"*\"".into()),
    }
    Ok((statement, assumed))
}

/// Numbers have no examples here, and what a register or a context holds is compared as text.
fn is_decidable(condition: &Condition) -> bool {
    use Comparison::*;
    if condition.key == ConditionKey::PrincipalArn
        && condition.operator.comparison != Null
        && !condition.values.iter().all(|value| is_of_known_callers(value))
    {
        return false;
    }
    match condition.operator.comparison {
        StringEquals
        | StringNotEquals
        | StringEqualsIgnoreCase
        | StringNotEqualsIgnoreCase
        | StringLike
        | StringNotLike
        | Null => true,
        ArnEquals | ArnNotEquals | ArnLike | ArnNotLike => {
            !matches!(condition.key, ConditionKey::RecipientPcr(_) | ConditionKey::RecipientNitroTpmPcr(_))
        }
        Bool => condition.key == ConditionKey::BypassPolicyLockoutSafetyCheck,
        NumericEquals
        | NumericNotEquals
        | NumericLessThan
        | NumericLessThanEquals
        | NumericGreaterThan
        | NumericGreaterThanEquals => false,
    }
}

/// Whether a pattern of `aws:PrincipalArn` tells apart only callers that are probed: those of one account, or of all accounts alike.
///
/// Of other accounts, partitions and kinds of callers there is no example, so that whoever matches would be overlooked.
fn is_of_known_callers(pattern: &str) -> bool {
    let mut fields = pattern.splitn(6, ':');
    let mut next = || fields.next().unwrap_or_default();
    let (arn, partition, service, region, account, resource) = (next(), next(), next(), next(), next(), next());
    let of_account = match account {
        // Accounts that nobody names are probed in this partition alone.
        "*" => partition == "aws",
        account => arn::is_account(account) && arn::PARTITIONS.contains(&partition),
    };
    let of_kind = ["role/", "user/", "root", "*"].iter().any(|kind| resource.starts_with(kind));
    arn == "arn" && service == "iam" && region.is_empty() && of_account && of_kind
}

fn member<'a>(value: &'a Json, name: &str) -> Option<&'a Json> {
    let Json::Object(members) = value else { return None };
    members.iter().find(|(known, _)| known == name).map(|(_, value)| value)
}

fn text_of(value: &Json) -> Option<&str> {
    match value {
        Json::Text(text) => Some(text),
        _ => None,
    }
}

fn texts(value: Json) -> Result<Vec<String>, String> {
    let list = match value {
        Json::List(list) => list,
        single => vec![single],
    };
    let text = |value| match value {
        Json::Text(text) => Ok(text),
        other => Err(format!("expected a string, got {}", other.kind())),
    };
    list.into_iter().map(text).collect()
}

/// IAM reference, "Unique identifiers": four capitals such as `AIDA` or `AROA`, then capitals and digits.
fn is_unique_id(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit();
    (16..=128).contains(&text.len()) && text.starts_with('A') && text.bytes().all(legal) && Parts::split(text).is_err()
}

fn is_of_another_service(action: &str) -> bool {
    let plain = |service: &str| service.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    action.split_once(':').is_some_and(|(service, _)| {
        !service.is_empty() && plain(service) && !service.eq_ignore_ascii_case("kms") && !action.starts_with("arn:")
    })
}

/// IAM reference, "Version": the default where none stands.
const OLD_VERSION: &str = "2008-10-17";
