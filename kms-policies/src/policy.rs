//! The model of a key policy, and how it is written as JSON.

use serde_json::{Map, Value, json};

use crate::condition::Condition;
use crate::pattern::ActionPattern;

/// A key policy of version `2012-10-17`, every part of it understood. Made by [`Policy::parse`] or by [`crate::templates`].
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub(crate) id: Option<String>,
    pub(crate) statements: Vec<Statement>,
}

/// One statement of a policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    /// The statement's name, unique in its policy.
    pub sid: Option<String>,
    /// What the statement does where it applies.
    pub effect: Effect,
    /// Whom it speaks of; any one of them is enough.
    pub principals: Vec<Principal>,
    /// What it speaks of.
    pub actions: Actions,
    /// Which keys it speaks of; in a key policy `*` means the key that the policy belongs to.
    pub resources: Resources,
    /// When it applies: all of these must hold.
    pub conditions: Vec<Condition>,
}

/// What a statement does where it applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The call may proceed, unless another statement denies it.
    Allow,
    /// The call is refused, whatever else allows it.
    Deny,
}

/// Whom a statement speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// `*`: everyone, in every account.
    Anyone,
    /// An account (`arn:aws:iam::ACCOUNT:root` or the bare number). In an `Allow` it delegates to that account's IAM policies.
    Account {
        /// The twelve digits.
        account: String,
        /// As written.
        text: String,
    },
    /// A role, a user or a role session, by its ARN.
    Arn(String),
    /// An AWS service that calls for itself.
    Service(String),
}

/// What a statement speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actions {
    /// `Action`: these.
    Only(Vec<ActionPattern>),
    /// `NotAction`: all but these.
    AllBut(Vec<ActionPattern>),
}

/// Which keys a statement speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resources {
    /// `Resource`: these patterns.
    Only(Vec<String>),
    /// `NotResource`: all but these.
    AllBut(Vec<String>),
}

impl Policy {
    /// The statements, in the order of the text.
    pub fn statements(&self) -> &[Statement] {
        &self.statements
    }

    /// The policy's own name, if it has one.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The policy as JSON, indented: what KMS's `PutKeyPolicy` takes.
    pub fn to_json(&self) -> String {
        let mut policy = Map::new();
        policy.insert("Version".into(), json!(VERSION));
        if let Some(id) = &self.id {
            policy.insert("Id".into(), json!(id));
        }
        policy.insert("Statement".into(), self.statements.iter().map(Statement::to_value).collect());
        format!("{:#}", Value::Object(policy))
    }
}

impl Statement {
    pub(crate) fn to_value(&self) -> Value {
        // Whole destructuring: a new field must find its place in the text.
        let Self { sid, effect, principals, actions, resources, conditions } = self;
        let mut out = Map::new();
        if let Some(sid) = sid {
            out.insert("Sid".into(), json!(sid));
        }
        out.insert("Effect".into(), json!(if *effect == Effect::Allow { "Allow" } else { "Deny" }));
        out.insert("Principal".into(), principals_to_value(principals));
        let names = |patterns: &[ActionPattern]| one_or_list(patterns.iter().map(|p| p.as_str().to_owned()).collect());
        match actions {
            Actions::Only(patterns) => out.insert("Action".into(), names(patterns)),
            Actions::AllBut(patterns) => out.insert("NotAction".into(), names(patterns)),
        };
        match resources {
            Resources::Only(patterns) => out.insert("Resource".into(), one_or_list(patterns.clone())),
            Resources::AllBut(patterns) => out.insert("NotResource".into(), one_or_list(patterns.clone())),
        };
        let mut blocks: Map<String, Value> = Map::new();
        for condition in conditions {
            let block = blocks.entry(condition.operator.to_string()).or_insert_with(|| json!({}));
            if let Some(block) = block.as_object_mut() {
                block.insert(condition.key_name.clone(), one_or_list(condition.values.clone()));
            }
        }
        if !blocks.is_empty() {
            out.insert("Condition".into(), Value::Object(blocks));
        }
        Value::Object(out)
    }
}

fn principals_to_value(principals: &[Principal]) -> Value {
    let (mut aws, mut services) = (Vec::new(), Vec::new());
    for principal in principals {
        match principal {
            Principal::Anyone => aws.push("*".to_owned()),
            Principal::Account { text, .. } | Principal::Arn(text) => aws.push(text.clone()),
            Principal::Service(name) => services.push(name.clone()),
        }
    }
    if services.is_empty() && aws == ["*"] {
        return json!("*");
    }
    let mut out = Map::new();
    for (kind, names) in [("AWS", aws), ("Service", services)] {
        if !names.is_empty() {
            out.insert(kind.into(), one_or_list(names));
        }
    }
    Value::Object(out)
}

fn one_or_list(mut values: Vec<String>) -> Value {
    match (values.len(), values.pop()) {
        (1, Some(only)) => json!(only),
        (_, last) => {
            values.extend(last);
            json!(values)
        }
    }
}

/// The only version of the policy language that is accepted; the older one has no policy variables and other defaults.
pub(crate) const VERSION: &str = "2012-10-17";
