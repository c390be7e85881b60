//! Grants: rights beside the key policy.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Call;
use crate::kms::authorization::Circumstances;
use crate::kms::error::KmsError;
use crate::kms::store::Grant;
use crate::kms::{Service, random};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CreateGrantRequest {
    key_id: Option<String>,
    grantee_principal: Option<String>,
    retiring_principal: Option<String>,
    operations: Option<Vec<String>>,
    constraints: Option<Constraints>,
    name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Constraints {
    encryption_context_equals: Option<BTreeMap<String, String>>,
    encryption_context_subset: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct GrantRequest {
    key_id: Option<String>,
    grant_id: Option<String>,
}

impl Service {
    pub(super) fn create_grant(&self, request: CreateGrantRequest, call: &mut Call) -> Result<Value, KmsError> {
        let CreateGrantRequest { key_id, grantee_principal, retiring_principal, operations, constraints, name } =
            request;
        let grantee = grantee_principal.ok_or_else(|| KmsError::missing("granteePrincipal"))?;
        let operations = operations.filter(|list| !list.is_empty()).ok_or_else(|| KmsError::missing("operations"))?;
        if let Some(unknown) = operations.iter().find(|operation| !GRANTABLE.contains(&operation.as_str())) {
            return Err(KmsError::validation(format!("{unknown} cannot be granted")));
        }
        let mut store = self.store();
        let key = call.resolve(&store, key_id.as_deref())?;
        let circumstances =
            Circumstances { grantee: Some(&grantee), grant_operations: &operations, ..Circumstances::default() };
        call.authorize(key, "CreateGrant", &circumstances)?;
        let Constraints { encryption_context_equals, encryption_context_subset } = constraints.unwrap_or_default();
        let (id, token) = (random_hex()?, random_hex()?);
        let grant = Grant {
            id: id.clone(),
            token: token.clone(),
            name,
            grantee,
            retiring: retiring_principal,
            issuing_account: format!("arn:aws:iam::{}:root", call.principal.caller.account()),
            operations,
            context_equals: encryption_context_equals,
            context_subset: encryption_context_subset,
            created_seconds: call.entry.at_ms / 1000,
        };
        let arn = key.arn.clone();
        store.update(&arn, |key| {
            key.grants.push(grant);
            Ok(())
        })?;
        Ok(json!({"GrantId": id, "GrantToken": token}))
    }

    pub(super) fn list_grants(&self, request: &GrantRequest, call: &mut Call) -> Result<Value, KmsError> {
        let store = self.store();
        let key = call.resolve(&store, request.key_id.as_deref())?;
        call.authorize(key, "ListGrants", &Circumstances::default())?;
        let wanted = |grant: &&Grant| request.grant_id.as_ref().is_none_or(|id| *id == grant.id);
        let grants: Vec<Value> =
            key.grants.iter().filter(wanted).map(|grant| describe(grant, key.arn.as_str())).collect();
        Ok(json!({"Grants": grants, "Truncated": false}))
    }

    pub(super) fn revoke_grant(&self, request: &GrantRequest, call: &mut Call) -> Result<Value, KmsError> {
        let id = request.grant_id.as_deref().ok_or_else(|| KmsError::missing("grantId"))?;
        let mut store = self.store();
        let key = call.resolve(&store, request.key_id.as_deref())?;
        call.authorize(key, "RevokeGrant", &Circumstances::default())?;
        let arn = key.arn.clone();
        store.update(&arn, |key| {
            let before = key.grants.len();
            key.grants.retain(|grant| grant.id != id);
            if key.grants.len() == before {
                Err(KmsError::new("NotFoundException", format!("Grant ID {id} not found")))
            } else {
                Ok(())
            }
        })?;
        Ok(json!({}))
    }
}

fn describe(grant: &Grant, key: &str) -> Value {
    let Grant {
        id,
        token: _,
        name,
        grantee,
        retiring,
        issuing_account,
        operations,
        context_equals,
        context_subset,
        created_seconds,
    } = grant;
    let mut out = json!({
        "KeyId": key, "GrantId": id, "GranteePrincipal": grantee, "IssuingAccount": issuing_account, "Operations": operations, "CreationDate": created_seconds
    });
    let mut constraints = json!({});
    for (member, value) in [("EncryptionContextEquals", context_equals), ("EncryptionContextSubset", context_subset)] {
        if let Some(value) = value {
            set(&mut constraints, member, json!(value));
        }
    }
    if constraints.as_object().is_some_and(|members| !members.is_empty()) {
        set(&mut out, "Constraints", constraints);
    }
    for (member, value) in [("Name", name), ("RetiringPrincipal", retiring)] {
        if let Some(value) = value {
            set(&mut out, member, json!(value));
        }
    }
    out
}

fn set(object: &mut Value, member: &str, value: Value) {
    if let Some(members) = object.as_object_mut() {
        members.insert(member.to_owned(), value);
    }
}

fn random_hex() -> Result<String, KmsError> {
    let mut bytes = [0; 32];
    random(&mut bytes)?;
    Ok(hex::encode(bytes))
}

/// KMS developer guide, "Grant operations", for symmetric encryption keys.
const GRANTABLE: [&str; 11] = [
    "Decrypt",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyPair",
    "GenerateDataKeyPairWithoutPlaintext",
    "GenerateDataKeyWithoutPlaintext",
    "ReEncryptFrom",
    "ReEncryptTo",
    "CreateGrant",
    "DescribeKey",
    "RetireGrant",
];
