//! Conditions: `Operator: { key: [values] }`.

use std::fmt;

use crate::pattern;
use crate::policy::Effect;
use crate::request::Request;

/// One line of a `Condition` block: a key, compared with values in a stated way.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// How it is compared.
    pub operator: Operator,
    /// What of the request is compared.
    pub key: ConditionKey,
    /// The key as written.
    pub key_name: String,
    /// What it is compared with; never empty. Several are ORed for a positive comparison and NORed for a negated one.
    pub values: Vec<String>,
}

/// A comparison with its quantifier and its `IfExists`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operator {
    /// `ForAllValues:` or `ForAnyValue:`, if one stands before it.
    pub quantifier: Option<Quantifier>,
    /// The comparison itself.
    pub comparison: Comparison,
    /// Whether an absent key makes the condition true.
    pub if_exists: bool,
}

/// How a key that may have many values is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantifier {
    /// `ForAllValues:` every value of the request passes; true when there is none.
    ForAll,
    /// `ForAnyValue:` some value of the request passes; false when there is none.
    ForAny,
}

/// The comparisons of the policy language that a key policy can use; dates, addresses and binary values are not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are AWS's own")]
pub enum Comparison {
    StringEquals,
    StringNotEquals,
    StringEqualsIgnoreCase,
    StringNotEqualsIgnoreCase,
    StringLike,
    StringNotLike,
    NumericEquals,
    NumericNotEquals,
    NumericLessThan,
    NumericLessThanEquals,
    NumericGreaterThan,
    NumericGreaterThanEquals,
    ArnEquals,
    ArnNotEquals,
    ArnLike,
    ArnNotLike,
    Bool,
    Null,
}

/// What of a request a condition looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConditionKey {
    /// `kms:RecipientAttestation:PCR<n>`; `kms:RecipientAttestation:ImageSha384` is PCR0.
    RecipientPcr(u8),
    /// `kms:RecipientAttestation:NitroTPMPCR<n>`.
    RecipientNitroTpmPcr(u8),
    /// `kms:EncryptionContext:<key>`, lower-cased: AWS KMS does not tell case apart in the name of a condition key.
    EncryptionContext(String),
    /// `kms:EncryptionContextKeys`; many values, and here case counts.
    EncryptionContextKeys,
    /// `kms:CallerAccount`.
    CallerAccount,
    /// `kms:ViaService`.
    ViaService,
    /// `kms:GranteePrincipal`.
    GranteePrincipal,
    /// `kms:GrantOperations`; many values.
    GrantOperations,
    /// `kms:BypassPolicyLockoutSafetyCheck`.
    BypassPolicyLockoutSafetyCheck,
    /// `aws:PrincipalArn`.
    PrincipalArn,
    /// `aws:PrincipalAccount`.
    PrincipalAccount,
}

impl Condition {
    /// Whether the condition holds for a request. `effect` decides only where the request itself is ambiguous: then a `Deny` applies
    /// and an `Allow` does not.
    pub(crate) fn holds(&self, request: &Request, effect: Effect) -> bool {
        let found = self.key.values_in(request);
        if self.operator.comparison == Comparison::Null {
            // IAM reference, "Null": "true" - the key doesn't exist; "false" - the key exists.
            return self.values.iter().any(|wanted| wanted.eq_ignore_ascii_case("true") == found.is_empty());
        }
        if found.is_empty() {
            return self.holds_when_absent();
        }
        match self.operator.quantifier {
            Some(Quantifier::ForAll) => found.iter().all(|value| self.passes(value)),
            Some(Quantifier::ForAny) => found.iter().any(|value| self.passes(value)),
            None => match found.as_slice() {
                [only] => self.passes(only),
                // Encryption-context keys that differ only by case: AWS does not say which one counts.
                _ => effect == Effect::Deny,
            },
        }
    }

    pub(crate) fn holds_when_absent(&self) -> bool {
        if self.operator.if_exists {
            return true;
        }
        match self.operator.quantifier {
            // IAM reference, "ForAllValues": "also returns true if there are no keys in the request"; "ForAnyValue": "If there are no
            // matching keys in the request, it returns false".
            Some(Quantifier::ForAll) => true,
            Some(Quantifier::ForAny) => false,
            // IAM reference: "If the key that you specify in a policy condition is not present in the request context, the values do not
            // match and the condition is false. If the policy condition requires that the key is not matched, such as StringNotLike or
            // ArnNotLike, and the right key is not present, the condition is true."
            None => self.operator.comparison.is_negated(),
        }
    }

    /// Whether one value of the request passes: it matches some value of the policy, or none of them if the comparison is negated.
    pub(crate) fn passes(&self, value: &str) -> bool {
        self.values.iter().any(|wanted| self.operator.comparison.positive_match(wanted, value))
            != self.operator.comparison.is_negated()
    }
}

impl ConditionKey {
    /// Reads the name of a condition key; `None` if this crate does not know it.
    pub fn parse(name: &str) -> Option<Self> {
        let lower = name.to_ascii_lowercase();
        let register = |digits: &str| {
            let canonical = !digits.is_empty()
                && (digits == "0" || !digits.starts_with('0'))
                && digits.bytes().all(|b| b.is_ascii_digit());
            digits.parse::<u8>().ok().filter(|index| canonical && *index < REGISTERS)
        };
        if let Some(attested) = lower.strip_prefix("kms:recipientattestation:") {
            if attested == "imagesha384" {
                return Some(Self::RecipientPcr(0));
            }
            if let Some(digits) = attested.strip_prefix("nitrotpmpcr") {
                return register(digits).map(Self::RecipientNitroTpmPcr);
            }
            return attested.strip_prefix("pcr").and_then(register).map(Self::RecipientPcr);
        }
        if let Some(key) = lower.strip_prefix("kms:encryptioncontext:") {
            return (!key.is_empty()).then(|| Self::EncryptionContext(key.to_owned()));
        }
        Some(match lower.as_str() {
            "kms:encryptioncontextkeys" => Self::EncryptionContextKeys,
            "kms:calleraccount" => Self::CallerAccount,
            "kms:viaservice" => Self::ViaService,
            "kms:granteeprincipal" => Self::GranteePrincipal,
            "kms:grantoperations" => Self::GrantOperations,
            "kms:bypasspolicylockoutsafetycheck" => Self::BypassPolicyLockoutSafetyCheck,
            "aws:principalarn" => Self::PrincipalArn,
            "aws:principalaccount" => Self::PrincipalAccount,
            _ => return None,
        })
    }

    /// Whether a request can hold many values of this key, so that a comparison needs `ForAllValues:` or `ForAnyValue:`.
    pub fn is_multivalued(&self) -> bool {
        matches!(self, Self::EncryptionContextKeys | Self::GrantOperations)
    }

    fn values_in(&self, request: &Request) -> Vec<String> {
        let recipient = request.recipient.as_ref();
        let one = |value: &Option<String>| value.iter().cloned().collect();
        match self {
            Self::RecipientPcr(index) => {
                recipient.and_then(|r| r.pcrs.get(index)).map(hex::encode).into_iter().collect()
            }
            Self::RecipientNitroTpmPcr(index) => {
                recipient.and_then(|r| r.nitro_tpm_pcrs.get(index)).map(hex::encode).into_iter().collect()
            }
            Self::EncryptionContext(key) => {
                let context = request.encryption_context.iter();
                context.filter(|(name, _)| name.to_ascii_lowercase() == *key).map(|(_, value)| value.clone()).collect()
            }
            Self::EncryptionContextKeys => request.encryption_context.keys().cloned().collect(),
            // IAM reference, "aws:PrincipalArn", "aws:PrincipalAccount": not in the context of a call by a service principal.
            Self::CallerAccount | Self::PrincipalAccount | Self::PrincipalArn
                if request.caller.service_name().is_some() =>
            {
                Vec::new()
            }
            Self::CallerAccount | Self::PrincipalAccount => vec![request.caller.account().to_owned()],
            Self::ViaService => one(&request.via_service),
            Self::GranteePrincipal => one(&request.grantee_principal),
            Self::GrantOperations => request.grant_operations.clone(),
            Self::BypassPolicyLockoutSafetyCheck => {
                request.bypass_policy_lockout_safety_check.iter().map(ToString::to_string).collect()
            }
            Self::PrincipalArn => vec![request.caller.principal_arn().to_owned()],
        }
    }
}

impl Operator {
    /// Reads an operator, for example `ForAnyValue:StringLikeIfExists`; `None` if this crate does not know it.
    pub fn parse(text: &str) -> Option<Self> {
        let (quantifier, rest) = match text.split_once(':') {
            Some(("ForAllValues", rest)) => (Some(Quantifier::ForAll), rest),
            Some(("ForAnyValue", rest)) => (Some(Quantifier::ForAny), rest),
            Some(_) => return None,
            None => (None, text),
        };
        let (name, if_exists) = match rest.strip_suffix("IfExists") {
            Some(name) => (name, true),
            None => (rest, false),
        };
        let comparison = COMPARISONS.iter().find(|(known, _)| *known == name).map(|(_, comparison)| *comparison)?;
        // IAM reference, "IfExists": "You can add IfExists to the end of any condition operator name except the Null condition".
        if comparison == Comparison::Null && (if_exists || quantifier.is_some()) {
            return None;
        }
        Some(Self { quantifier, comparison, if_exists })
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.quantifier {
            Some(Quantifier::ForAll) => "ForAllValues:",
            Some(Quantifier::ForAny) => "ForAnyValue:",
            None => "",
        })?;
        f.write_str(COMPARISONS.iter().find(|(_, known)| *known == self.comparison).map_or("", |(name, _)| name))?;
        f.write_str(if self.if_exists { "IfExists" } else { "" })
    }
}

impl Comparison {
    pub(crate) fn is_negated(self) -> bool {
        use Comparison::*;
        matches!(
            self,
            StringNotEquals | StringNotEqualsIgnoreCase | StringNotLike | NumericNotEquals | ArnNotEquals | ArnNotLike
        )
    }

    /// Whether a value can be compared in this way at all.
    pub(crate) fn accepts(self, value: &str) -> bool {
        use Comparison::*;
        match self {
            Bool | Null => value.eq_ignore_ascii_case("true") || value.eq_ignore_ascii_case("false"),
            NumericEquals
            | NumericNotEquals
            | NumericLessThan
            | NumericLessThanEquals
            | NumericGreaterThan
            | NumericGreaterThanEquals => number(value).is_some(),
            ArnEquals | ArnNotEquals | ArnLike | ArnNotLike => value.splitn(6, ':').count() == 6,
            StringEquals
            | StringNotEquals
            | StringEqualsIgnoreCase
            | StringNotEqualsIgnoreCase
            | StringLike
            | StringNotLike => true,
        }
    }

    /// The comparison without its negation.
    fn positive_match(self, wanted: &str, value: &str) -> bool {
        use Comparison::*;
        let numeric = |compare: fn(&f64, &f64) -> bool| matches!((number(value), number(wanted)), (Some(v), Some(w)) if compare(&v, &w));
        match self {
            StringEquals | StringNotEquals => wanted == value,
            StringEqualsIgnoreCase | StringNotEqualsIgnoreCase => wanted.to_lowercase() == value.to_lowercase(),
            StringLike | StringNotLike => pattern::matches(wanted, value),
            NumericEquals | NumericNotEquals => numeric(f64::eq),
            NumericLessThan => numeric(f64::lt),
            NumericLessThanEquals => numeric(f64::le),
            NumericGreaterThan => numeric(f64::gt),
            NumericGreaterThanEquals => numeric(f64::ge),
            ArnEquals | ArnNotEquals | ArnLike | ArnNotLike => pattern::arn_matches(wanted, value),
            Bool => wanted.eq_ignore_ascii_case(value),
            Null => false,
        }
    }
}

fn number(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b'-');
    text.parse::<f64>().ok().filter(|value| plain && value.is_finite())
}

/// Registers that a key can be conditioned on: PCR0..31.
const REGISTERS: u8 = 32;

const COMPARISONS: [(&str, Comparison); 18] = [
    ("StringEquals", Comparison::StringEquals),
    ("StringNotEquals", Comparison::StringNotEquals),
    ("StringEqualsIgnoreCase", Comparison::StringEqualsIgnoreCase),
    ("StringNotEqualsIgnoreCase", Comparison::StringNotEqualsIgnoreCase),
    ("StringLike", Comparison::StringLike),
    ("StringNotLike", Comparison::StringNotLike),
    ("NumericEquals", Comparison::NumericEquals),
    ("NumericNotEquals", Comparison::NumericNotEquals),
    ("NumericLessThan", Comparison::NumericLessThan),
    ("NumericLessThanEquals", Comparison::NumericLessThanEquals),
    ("NumericGreaterThan", Comparison::NumericGreaterThan),
    ("NumericGreaterThanEquals", Comparison::NumericGreaterThanEquals),
    ("ArnEquals", Comparison::ArnEquals),
    ("ArnNotEquals", Comparison::ArnNotEquals),
    ("ArnLike", Comparison::ArnLike),
    ("ArnNotLike", Comparison::ArnNotLike),
    ("Bool", Comparison::Bool),
    ("Null", Comparison::Null),
];
