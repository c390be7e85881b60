//! Keys and their policies.

use kms_policies::Policy;
use kms_policies::arn::KeyArn;
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::Call;
use crate::kms::authorization::Circumstances;
use crate::kms::error::KmsError;
use crate::kms::store::Key;
use crate::kms::{Service, random, random_uuid};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CreateKeyRequest {
    policy: Option<String>,
    #[serde(default)]
    description: String,
    key_usage: Option<String>,
    key_spec: Option<String>,
    customer_master_key_spec: Option<String>,
    origin: Option<String>,
    multi_region: Option<bool>,
    bypass_policy_lockout_safety_check: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct KeyRequest {
    key_id: Option<String>,
    policy_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PutKeyPolicyRequest {
    key_id: Option<String>,
    policy_name: Option<String>,
    policy: Option<String>,
    bypass_policy_lockout_safety_check: Option<bool>,
}

impl Service {
    pub(super) fn create_key(&self, request: CreateKeyRequest, call: &mut Call) -> Result<Value, KmsError> {
        let CreateKeyRequest {
            policy,
            description,
            key_usage,
            key_spec,
            customer_master_key_spec,
            origin,
            multi_region,
            bypass_policy_lockout_safety_check,
        } = request;
        for (member, value, only) in [
            ("KeyUsage", key_usage, "ENCRYPT_DECRYPT"),
            ("KeySpec", key_spec, "SYMMETRIC_DEFAULT"),
            ("CustomerMasterKeySpec", customer_master_key_spec, "SYMMETRIC_DEFAULT"),
            ("Origin", origin, "AWS_KMS"),
        ] {
            if value.as_deref().is_some_and(|value| value != only) {
                return Err(KmsError::new(
                    "UnsupportedOperationException",
                    format!("this simulated KMS knows {member} {only} only"),
                ));
            }
        }
        if multi_region == Some(true) {
            return Err(KmsError::new("UnsupportedOperationException", "this simulated KMS has no multi-region keys"));
        }
        call.authorize_by_iam("CreateKey")?;
        let account = call.principal.caller.account().to_owned();
        let text = format!("arn:aws:kms:{}:{account}:key/{}", call.region, random_uuid()?);
        let arn = KeyArn::parse(&text).map_err(|error| KmsError::internal(error.to_string()))?;
        let policy_text = policy.unwrap_or_else(|| default_policy(&account));
        let policy = read_policy(&policy_text)?;
        call.check_lockout(&policy, &arn, bypass_policy_lockout_safety_check == Some(true))?;
        let mut material = Zeroizing::new([0; 32]);
        random(material.as_mut_slice())?;
        call.entry.key = Some(text);
        let key = Key {
            arn,
            material,
            policy,
            policy_text,
            description,
            created_seconds: call.entry.at_ms / 1000,
            grants: Vec::new(),
        };
        let metadata = metadata(&key);
        self.store().insert(key)?;
        Ok(json!({"KeyMetadata": metadata}))
    }

    pub(super) fn describe_key(&self, request: KeyRequest, call: &mut Call) -> Result<Value, KmsError> {
        let store = self.store();
        let key = call.resolve(&store, request.key_id.as_deref())?;
        call.authorize(key, "DescribeKey", &Circumstances::default())?;
        Ok(json!({"KeyMetadata": metadata(key)}))
    }

    pub(super) fn get_key_policy(&self, request: KeyRequest, call: &mut Call) -> Result<Value, KmsError> {
        let store = self.store();
        let key = call.resolve(&store, request.key_id.as_deref())?;
        call.authorize(key, "GetKeyPolicy", &Circumstances::default())?;
        check_policy_name(request.policy_name.as_deref())?;
        Ok(json!({"Policy": key.policy_text, "PolicyName": "default"}))
    }

    pub(super) fn put_key_policy(&self, request: PutKeyPolicyRequest, call: &mut Call) -> Result<Value, KmsError> {
        let PutKeyPolicyRequest { key_id, policy_name, policy, bypass_policy_lockout_safety_check } = request;
        let mut store = self.store();
        let key = call.resolve(&store, key_id.as_deref())?;
        let bypass = bypass_policy_lockout_safety_check;
        call.authorize(
            key,
            "PutKeyPolicy",
            &Circumstances { bypass_lockout_check: Some(bypass == Some(true)), ..Circumstances::default() },
        )?;
        check_policy_name(policy_name.as_deref())?;
        let policy_text = policy.ok_or_else(|| KmsError::missing("policy"))?;
        let policy = read_policy(&policy_text)?;
        let arn = key.arn.clone();
        call.check_lockout(&policy, &arn, bypass == Some(true))?;
        store.update(&arn, |key| {
            (key.policy, key.policy_text) = (policy, policy_text);
            Ok(())
        })?;
        Ok(json!({}))
    }
}

fn read_policy(text: &str) -> Result<Policy, KmsError> {
    Policy::parse(text).map_err(|error| KmsError::new("MalformedPolicyDocumentException", error.to_string()))
}

fn check_policy_name(name: Option<&str>) -> Result<(), KmsError> {
    match name {
        None | Some("default") => Ok(()),
        Some(_) => Err(KmsError::new("NotFoundException", "No such policy exists")),
    }
}

/// KMS developer guide, "Default key policy": the account's IAM policies decide.
fn default_policy(account: &str) -> String {
    json!({"Version": "2012-10-17", "Id": "key-default-1", "Statement": [{
        "Sid": "Enable IAM User Permissions", "Effect": "Allow", "Principal": {"AWS": format!("arn:aws:iam::{account}:root")}, "Action": "kms:*", "Resource": "*"
    }]})
    .to_string()
}

fn metadata(key: &Key) -> Value {
    json!({
        "AWSAccountId": key.arn.account(), "KeyId": key.arn.id(), "Arn": key.arn.as_str(), "CreationDate": key.created_seconds, "Enabled": true,
        "Description": key.description, "KeyUsage": "ENCRYPT_DECRYPT", "KeyState": "Enabled", "Origin": "AWS_KMS", "KeyManager": "CUSTOMER",
        "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT", "KeySpec": "SYMMETRIC_DEFAULT", "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"], "MultiRegion": false
    })
}
