//! May this caller do this with this key: key policy, IAM, grants.

use std::collections::BTreeMap;

use kms_policies::{Decision, Policy, Recipient, Request, evaluate};

use super::error::KmsError;
use super::operations::Call;
use super::store::{Grant, Key};

/// What a policy may look at beside the caller and the key.
#[derive(Default)]
pub(super) struct Circumstances<'a> {
    pub(super) context: Option<&'a BTreeMap<String, String>>,
    pub(super) recipient: Option<&'a Recipient>,
    pub(super) grantee: Option<&'a str>,
    pub(super) grant_operations: &'a [String],
    pub(super) bypass_lockout_check: Option<bool>,
}

impl Call {
    /// Decides by the key's policy and grants. `operation` without `kms:`.
    pub(super) fn authorize(
        &self,
        key: &Key,
        operation: &str,
        circumstances: &Circumstances<'_>,
    ) -> Result<(), KmsError> {
        let action = format!("kms:{operation}");
        let mut request = self.policy_request(&action, key.arn.clone(), circumstances);
        let denied = |why: &str| {
            let message = format!(
                "User: {} is not authorized to perform: {action} on resource: {} {why}",
                self.principal.caller.arn(),
                key.arn
            );
            Err(KmsError::new("AccessDeniedException", message))
        };
        match evaluate(&key.policy, &request) {
            Decision::Allow { .. } => return Ok(()),
            Decision::ExplicitDeny { .. } => return denied("with an explicit deny in a resource-based policy"),
            Decision::ImplicitDeny => {}
        }
        if key.grants.iter().any(|grant| grant.allows(self, operation, circumstances)) {
            return Ok(());
        }
        request.iam_allows = true;
        let missing = if evaluate(&key.policy, &request).is_allow() { "identity" } else { "resource" };
        denied(&format!("because no {missing}-based policy allows the {action} action"))
    }

    /// Decides by IAM alone, for actions without a key.
    pub(super) fn authorize_by_iam(&self, operation: &str) -> Result<(), KmsError> {
        let action = format!("kms:{operation}");
        if self.principal.iam_allows(&action) {
            return Ok(());
        }
        let who = self.principal.caller.arn();
        let message = format!(
            "User: {who} is not authorized to perform: {action} because no identity-based policy allows the {action} action"
        );
        Err(KmsError::new("AccessDeniedException", message))
    }

    /// KMS developer guide, "PutKeyPolicy": "The key policy must allow the caller to make a subsequent PutKeyPolicy request on the KMS
    /// key. This reduces the risk that the KMS key becomes unmanageable." The bypass flag waives it.
    pub(super) fn check_lockout(
        &self,
        policy: &Policy,
        key: &kms_policies::arn::KeyArn,
        bypass: bool,
    ) -> Result<(), KmsError> {
        let request = self.policy_request("kms:PutKeyPolicy", key.clone(), &Circumstances::default());
        if bypass || evaluate(policy, &request).is_allow() {
            return Ok(());
        }
        Err(KmsError::new(
            "MalformedPolicyDocumentException",
            "The new key policy will not allow you to update the key policy in the future.",
        ))
    }

    fn policy_request(
        &self,
        action: &str,
        key: kms_policies::arn::KeyArn,
        circumstances: &Circumstances<'_>,
    ) -> Request {
        let Circumstances { context, recipient, grantee, grant_operations, bypass_lockout_check } = circumstances;
        let mut request = Request::new(self.principal.caller.clone(), action, key);
        request.iam_allows = self.principal.iam_allows(action);
        request.encryption_context = context.cloned().unwrap_or_default();
        request.recipient = recipient.cloned();
        request.grantee_principal = grantee.map(str::to_owned);
        request.grant_operations = grant_operations.to_vec();
        request.bypass_policy_lockout_safety_check = *bypass_lockout_check;
        request
    }
}

impl Grant {
    fn allows(&self, call: &Call, operation: &str, circumstances: &Circumstances<'_>) -> bool {
        let caller = &call.principal.caller;
        let context = circumstances.context.cloned().unwrap_or_default();
        // KMS API reference, GrantConstraints: EncryptionContextEquals wants exactly these pairs, EncryptionContextSubset at least these.
        let equals = self.context_equals.as_ref().is_none_or(|wanted| *wanted == context);
        let subset = self
            .context_subset
            .as_ref()
            .is_none_or(|wanted| wanted.iter().all(|(name, value)| context.get(name) == Some(value)));
        let named = self.grantee == caller.arn() || self.grantee == caller.principal_arn();
        named && equals && subset && self.operations.iter().any(|granted| granted == operation)
    }
}
