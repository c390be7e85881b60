//! Reading a key policy from JSON, strictly.

use thiserror::Error;

use crate::arn::{ArnError, Parts, is_account};
use crate::condition::{Comparison, Condition, ConditionKey, Operator};
use crate::json::Json;
use crate::pattern::ActionPattern;
use crate::policy::{Actions, Effect, Policy, Principal, Resources, Statement, VERSION};
use crate::request::Caller;

/// The longest key policy that KMS takes (KMS developer guide, "Resource quotas": key policy document size, 32 KB).
pub const MAX_POLICY_BYTES: usize = 32_768;

/// Why a text was not taken as a key policy.
#[derive(Debug, Error)]
pub enum ParseError {
    /// Longer than KMS takes.
    #[error("the policy has {0} bytes; KMS takes at most {MAX_POLICY_BYTES}")]
    TooLong(usize),
    /// Not JSON, or a member stands twice.
    #[error("not a JSON policy: {0}")]
    Json(#[from] serde_json::Error),
    /// A part has another type than the policy language gives it.
    #[error("{place}: expected {expected}, got {got}")]
    Type {
        /// Where.
        place: String,
        /// What should stand there.
        expected: &'static str,
        /// What stands there.
        got: &'static str,
    },
    /// A member that must be there is not.
    #[error("{place}: {member} is missing")]
    Missing {
        /// Where.
        place: String,
        /// What.
        member: &'static str,
    },
    /// A member that the policy language does not have.
    #[error("{place}: unknown member {member:?}")]
    Unknown {
        /// Where.
        place: String,
        /// What.
        member: String,
    },
    /// A list with nothing in it.
    #[error("{0}: an empty list")]
    Empty(String),
    /// Another version of the policy language.
    #[error("version {0:?}: only {VERSION} is understood")]
    Version(String),
    /// Neither `Allow` nor `Deny`.
    #[error("{place}: effect {effect:?} is neither Allow nor Deny")]
    Effect {
        /// Where.
        place: String,
        /// What stands there.
        effect: String,
    },
    /// Two statements have one name.
    #[error("statement id {0:?} stands twice")]
    DuplicateSid(String),
    /// `Action` with `NotAction`, or `Resource` with `NotResource`, or neither.
    #[error("{place}: exactly one of {one} and {other} must stand here")]
    OneOf {
        /// Where.
        place: String,
        /// The one.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// A principal that is not understood.
    #[error("{place}: principal {principal:?}: {reason}")]
    Principal {
        /// Where.
        place: String,
        /// The principal.
        principal: String,
        /// Why not.
        reason: String,
    },
    /// An action that is not one of KMS's.
    #[error("{place}: action {action:?} is neither * nor kms:NAME")]
    Action {
        /// Where.
        place: String,
        /// The action.
        action: String,
    },
    /// A resource that is neither `*` nor an ARN.
    #[error("{place}: resource {resource:?} is neither * nor an ARN")]
    Resource {
        /// Where.
        place: String,
        /// The resource.
        resource: String,
    },
    /// A condition that is not understood: skipping it would make the evaluation wrong.
    #[error("{place}: condition {condition:?}: {reason}")]
    Condition {
        /// Where.
        place: String,
        /// Operator or key.
        condition: String,
        /// Why not.
        reason: &'static str,
    },
}

impl Policy {
    /// Reads a key policy. Whatever is not understood is refused.
    pub fn parse(json: &str) -> Result<Self, ParseError> {
        if json.len() > MAX_POLICY_BYTES {
            return Err(ParseError::TooLong(json.len()));
        }
        let mut top = Members::of(serde_json::from_str(json)?, "policy")?;
        let version = top.required("Version")?.text()?;
        if version != VERSION {
            return Err(ParseError::Version(version));
        }
        let id = top.optional("Id").map(Part::text).transpose()?;
        let statements = top.required("Statement")?;
        top.end()?;
        let statements = match statements.value {
            Json::List(list) => list,
            single => vec![single],
        };
        if statements.is_empty() {
            return Err(ParseError::Empty("policy.Statement".into()));
        }
        let statements: Vec<Statement> =
            statements.into_iter().enumerate().map(|(i, value)| statement(value, i)).collect::<Result<_, _>>()?;
        let mut sids: Vec<&String> = statements.iter().filter_map(|s| s.sid.as_ref()).collect();
        sids.sort_unstable();
        if let Some(twice) = sids.windows(2).find_map(|pair| pair.first().filter(|first| pair.last() == Some(first))) {
            return Err(ParseError::DuplicateSid((*twice).clone()));
        }
        Ok(Self { id, statements })
    }
}

pub(crate) fn statement(value: Json, index: usize) -> Result<Statement, ParseError> {
    let mut members = Members::of(value, &format!("statement {index}"))?;
    let sid = members.optional("Sid").map(Part::text).transpose()?;
    if let Some(sid) = &sid {
        members.place = format!("statement {index} ({sid})");
    }
    let effect = match members.required("Effect")?.text()?.as_str() {
        "Allow" => Effect::Allow,
        "Deny" => Effect::Deny,
        other => return Err(ParseError::Effect { place: members.place, effect: other.to_owned() }),
    };
    if let Some(not) = members.optional("NotPrincipal") {
        let reason = "NotPrincipal is refused: name the principals, or use a condition on aws:PrincipalArn".to_owned();
        return Err(ParseError::Principal { place: members.place, principal: not.place, reason });
    }
    let principals = principals(members.required("Principal")?)?;
    let actions = match members.one_of("Action", "NotAction")? {
        (part, false) => Actions::Only(part.list_of(action)?),
        (part, true) => Actions::AllBut(part.list_of(action)?),
    };
    let resources = match members.one_of("Resource", "NotResource")? {
        (part, false) => Resources::Only(part.list_of(resource)?),
        (part, true) => Resources::AllBut(part.list_of(resource)?),
    };
    let conditions = members.optional("Condition").map_or(Ok(Vec::new()), conditions)?;
    members.end()?;
    Ok(Statement { sid, effect, principals, actions, resources, conditions })
}

fn principals(part: Part) -> Result<Vec<Principal>, ParseError> {
    if matches!(&part.value, Json::Text(_)) {
        let place = part.place.clone();
        return match part.text()?.as_str() {
            "*" => Ok(vec![Principal::Anyone]),
            other => Err(ParseError::Principal {
                place,
                principal: other.to_owned(),
                reason: "expected * or an object".into(),
            }),
        };
    }
    let mut members = Members::of(part.value, &part.place)?;
    let mut all = match members.optional("AWS") {
        Some(aws) => aws.list_of(aws_principal)?,
        None => Vec::new(),
    };
    if let Some(services) = members.optional("Service") {
        all.extend(services.list_of(service_principal)?);
    }
    // Federated users and canonical user ids cannot call KMS; there is no caller they could match.
    members.end()?;
    if all.is_empty() { Err(ParseError::Empty(part.place)) } else { Ok(all) }
}

pub(crate) fn aws_principal(text: String, place: &str) -> Result<Principal, ParseError> {
    let error = |reason: String| ParseError::Principal { place: place.to_owned(), principal: text.clone(), reason };
    if text == "*" {
        return Ok(Principal::Anyone);
    }
    if is_account(&text) {
        return Ok(Principal::Account { account: text.clone(), text });
    }
    if text.contains(['*', '?']) {
        return Err(error("a wildcard inside a principal is not part of the policy language".into()));
    }
    Caller::parse(&text).map_err(|e: ArnError| error(e.to_string()))?;
    match Parts::split(&text) {
        Ok(parts) if parts.service == "iam" && parts.resource == "root" => {
            Ok(Principal::Account { account: parts.account.to_owned(), text: text.clone() })
        }
        _ => Ok(Principal::Arn(text)),
    }
}

pub(crate) fn service_principal(text: String, place: &str) -> Result<Principal, ParseError> {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-';
    if text.contains('.') && text.bytes().all(legal) {
        return Ok(Principal::Service(text));
    }
    Err(ParseError::Principal {
        place: place.to_owned(),
        principal: text,
        reason: "expected a service such as s3.amazonaws.com".into(),
    })
}

pub(crate) fn action(text: String, place: &str) -> Result<ActionPattern, ParseError> {
    ActionPattern::parse(&text).ok_or_else(|| ParseError::Action { place: place.to_owned(), action: text })
}

pub(crate) fn resource(text: String, place: &str) -> Result<String, ParseError> {
    let is_arn = text.starts_with("arn:") && text.splitn(6, ':').count() == 6 && !text.contains("${");
    if text == "*" || is_arn { Ok(text) } else { Err(ParseError::Resource { place: place.to_owned(), resource: text }) }
}

fn conditions(part: Part) -> Result<Vec<Condition>, ParseError> {
    let mut all = Vec::new();
    for (operator, block) in Members::of(part.value, &part.place)?.all {
        let place = format!("{}.{operator}", part.place);
        let block = Members::of(block, &place)?.all;
        if block.is_empty() {
            return Err(ParseError::Empty(place));
        }
        for (key, values) in block {
            all.push(condition(&operator, key, values, &place)?);
        }
    }
    Ok(all)
}

/// One line of a condition: `operator: { key: values }`.
pub(crate) fn condition(
    operator_name: &str,
    key_name: String,
    values: Json,
    place: &str,
) -> Result<Condition, ParseError> {
    let error = |condition: &str, reason| ParseError::Condition {
        place: place.to_owned(),
        condition: condition.to_owned(),
        reason,
    };
    let operator =
        Operator::parse(operator_name).ok_or_else(|| error(operator_name, "this operator is not understood"))?;
    let key = ConditionKey::parse(&key_name).ok_or_else(|| error(&key_name, "this condition key is not understood"))?;
    if key.is_multivalued() && operator.quantifier.is_none() && operator.comparison != Comparison::Null {
        return Err(error(&key_name, "this key has many values: it needs ForAllValues: or ForAnyValue:"));
    }
    let values = Part { value: values, place: format!("{place}.{key_name}") }.list_of_scalars()?;
    if values.iter().any(|value| value.contains("${")) {
        return Err(error(&key_name, "policy variables are not understood"));
    }
    if !values.iter().all(|value| operator.comparison.accepts(value)) {
        return Err(error(&key_name, "a value is not of the operator's type"));
    }
    Ok(Condition { operator, key, key_name, values })
}

/// A value and where it stands.
struct Part {
    value: Json,
    place: String,
}

impl Part {
    fn wrong(&self, expected: &'static str) -> ParseError {
        ParseError::Type { place: self.place.clone(), expected, got: self.value.kind() }
    }

    fn text(self) -> Result<String, ParseError> {
        match self.value {
            Json::Text(text) => Ok(text),
            _ => Err(self.wrong("a string")),
        }
    }

    /// A string or a list of strings, each read by `read`; never empty.
    fn list_of<T>(self, read: fn(String, &str) -> Result<T, ParseError>) -> Result<Vec<T>, ParseError> {
        let place = self.place;
        let texts = match self.value {
            Json::List(list) => list,
            single => vec![single],
        };
        if texts.is_empty() {
            return Err(ParseError::Empty(place));
        }
        texts.into_iter().map(|value| read(Part { value, place: place.clone() }.text()?, &place)).collect()
    }

    /// A string, boolean or number, or a list of them, as text; never empty.
    fn list_of_scalars(self) -> Result<Vec<String>, ParseError> {
        let place = self.place;
        let scalars = match self.value {
            Json::List(list) => list,
            single => vec![single],
        };
        if scalars.is_empty() {
            return Err(ParseError::Empty(place));
        }
        let scalar = |value| match value {
            Json::Text(text) | Json::Number(text) => Ok(text),
            Json::Bool(value) => Ok(value.to_string()),
            value => Err(Part { value, place: place.clone() }.wrong("a string, a boolean or a number")),
        };
        scalars.into_iter().map(scalar).collect()
    }
}

/// The members of an object, taken out one by one; what is left over is unknown.
struct Members {
    all: Vec<(String, Json)>,
    place: String,
}

impl Members {
    fn of(value: Json, place: &str) -> Result<Self, ParseError> {
        match value {
            Json::Object(all) => Ok(Self { all, place: place.to_owned() }),
            value => Err(Part { value, place: place.to_owned() }.wrong("an object")),
        }
    }

    fn optional(&mut self, name: &str) -> Option<Part> {
        let at = self.all.iter().position(|(known, _)| known == name)?;
        let (_, value) = self.all.remove(at);
        Some(Part { value, place: format!("{}.{name}", self.place) })
    }

    fn required(&mut self, name: &'static str) -> Result<Part, ParseError> {
        self.optional(name).ok_or_else(|| ParseError::Missing { place: self.place.clone(), member: name })
    }

    /// The one of two members that is there, and whether it is the second.
    fn one_of(&mut self, one: &'static str, other: &'static str) -> Result<(Part, bool), ParseError> {
        match (self.optional(one), self.optional(other)) {
            (Some(part), None) => Ok((part, false)),
            (None, Some(part)) => Ok((part, true)),
            _ => Err(ParseError::OneOf { place: self.place.clone(), one, other }),
        }
    }

    fn end(self) -> Result<(), ParseError> {
        match self.all.into_iter().next() {
            Some((member, _)) => Err(ParseError::Unknown { place: self.place, member }),
            None => Ok(()),
        }
    }
}
