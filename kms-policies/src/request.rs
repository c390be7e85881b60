//! One call of KMS, as a policy sees it.

use std::collections::BTreeMap;

use crate::Pcr;
use crate::arn::{ArnError, KeyArn, Parts};

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    arn: String,
    principal_arn: String,
    account: String,
    is_account_root: bool,
    service: Option<String>,
}

impl Caller {
    /// Reads a caller's ARN: a user, a role, the account root, a role session (`arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION`), or a
    /// federated user (`arn:aws:sts::ACCOUNT:federated-user/NAME`).
    ///
    /// The ARN of a session does not tell the path of its role; a role with a path needs [`Caller::assumed_role`].
    pub fn parse(arn: &str) -> Result<Self, ArnError> {
        let parts = Parts::split(arn)?;
        let kind = || ArnError::Kind {
            expected: "the ARN of a user, role, role session, federated user or account root",
            got: arn.to_owned(),
        };
        let caller = |principal_arn: String| Self {
            arn: arn.to_owned(),
            principal_arn,
            account: parts.account.to_owned(),
            is_account_root: parts.service == "iam" && parts.resource == "root",
            service: None,
        };
        match parts.service {
            "iam" if parts.resource == "root" => Ok(caller(arn.to_owned())),
            "iam" if parts.resource.starts_with("role/") || parts.resource.starts_with("user/") => {
                Ok(caller(arn.to_owned()))
            }
            "sts" if parts.resource.strip_prefix("federated-user/").is_some_and(|name| !name.is_empty()) => {
                Ok(caller(arn.to_owned()))
            }
            "sts" => {
                let rest = parts.resource.strip_prefix("assumed-role/").ok_or_else(kind)?;
                let (role, session) = rest.split_once('/').ok_or_else(kind)?;
                if role.is_empty() || session.is_empty() {
                    return Err(kind());
                }
                Ok(caller(format!("arn:{}:iam::{}:role/{role}", parts.partition, parts.account)))
            }
            _ => Err(kind()),
        }
    }

    /// A session of a role whose full ARN, path included, is known.
    pub fn assumed_role(role_arn: &str, session: &str) -> Result<Self, ArnError> {
        let parts = Parts::split(role_arn)?;
        let kind = || ArnError::Kind { expected: "the ARN of a role", got: role_arn.to_owned() };
        let name = parts.resource.strip_prefix("role/").and_then(|path| path.rsplit('/').next()).ok_or_else(kind)?;
        Ok(Self {
            arn: format!("arn:{}:sts::{}:assumed-role/{name}/{session}", parts.partition, parts.account),
            principal_arn: role_arn.to_owned(),
            account: parts.account.to_owned(),
            is_account_root: false,
            service: None,
        })
    }

    /// An AWS service that calls for itself (`logs.us-east-1.amazonaws.com`). It has neither account nor ARN.
    pub fn service(name: &str) -> Self {
        Self {
            arn: name.to_owned(),
            principal_arn: String::new(),
            account: String::new(),
            is_account_root: false,
            service: Some(name.to_owned()),
        }
    }

    /// The caller's own ARN, as KMS prints it in errors: the session's, for a role.
    pub fn arn(&self) -> &str {
        &self.arn
    }

    /// `aws:PrincipalArn`: the role's ARN for a session, else the caller's own.
    pub fn principal_arn(&self) -> &str {
        &self.principal_arn
    }

    /// The caller's account.
    pub fn account(&self) -> &str {
        &self.account
    }

    /// The name of the service, if the caller is one.
    pub fn service_name(&self) -> Option<&str> {
        self.service.as_deref()
    }

    /// Whether the caller is the root user of its account.
    pub fn is_account_root(&self) -> bool {
        self.is_account_root
    }
}

/// What the *verified* attestation document of a call's `Recipient` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recipient {
    /// The registers of a Nitro enclave.
    pub pcrs: BTreeMap<u8, Pcr>,
    /// The registers of a NitroTPM; empty for an enclave.
    pub nitro_tpm_pcrs: BTreeMap<u8, Pcr>,
}

/// One call of KMS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Who calls.
    pub caller: Caller,
    /// What is called: `kms:Decrypt`.
    pub action: String,
    /// The key it is about.
    pub key: KeyArn,
    /// Whether the caller's own IAM policies allow the action on the key. Asked where the key policy delegates to the caller's
    /// account, and for every caller from another account than the key's.
    pub iam_allows: bool,
    /// The encryption context of the call.
    pub encryption_context: BTreeMap<String, String>,
    /// The verified attestation document, if the call has one.
    pub recipient: Option<Recipient>,
    /// `kms:ViaService`: the service that calls on the caller's behalf.
    pub via_service: Option<String>,
    /// `kms:GranteePrincipal`, of `CreateGrant`.
    pub grantee_principal: Option<String>,
    /// `kms:GrantOperations`, of `CreateGrant`.
    pub grant_operations: Vec<String>,
    /// `kms:BypassPolicyLockoutSafetyCheck`, of `PutKeyPolicy` and `CreateKey`.
    pub bypass_policy_lockout_safety_check: Option<bool>,
}

impl Request {
    /// A call without encryption context, attestation or anything else; IAM does not allow it. Set the fields that differ.
    pub fn new(caller: Caller, action: &str, key: KeyArn) -> Self {
        Self {
            caller,
            action: action.to_owned(),
            key,
            iam_allows: false,
            encryption_context: BTreeMap::new(),
            recipient: None,
            via_service: None,
            grantee_principal: None,
            grant_operations: Vec::new(),
            bypass_policy_lockout_safety_check: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_known_by_its_role() {
        let caller = Caller::parse("arn:aws:sts::111122223333:assumed-role/Enclave/i-0abc").unwrap();
        assert_eq!(caller.principal_arn(), "arn:aws:iam::111122223333:role/Enclave");
        let with_path = Caller::assumed_role("arn:aws:iam::111122223333:role/prod/Enclave", "i-0abc").unwrap();
        assert_eq!(with_path.arn(), caller.arn());
        assert_eq!(with_path.principal_arn(), "arn:aws:iam::111122223333:role/prod/Enclave");
    }

    #[test]
    fn what_is_no_principal_is_no_caller() {
        for arn in [
            "arn:aws:iam::111122223333:group/g",
            "arn:aws:sts::111122223333:assumed-role/only",
            "arn:aws:sts::111122223333:assumed-role//s",
            "arn:aws:sts::111122223333:federated-user/",
            "arn:aws:kms:us-east-1:111122223333:key/a",
            "",
        ] {
            assert!(Caller::parse(arn).is_err(), "{arn}");
        }
    }
}
