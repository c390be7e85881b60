//! Keys and grants, kept in a file.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kms_policies::Policy;
use kms_policies::arn::KeyArn;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use super::blob::Material;
use super::error::KmsError;

/// Why the folder of keys cannot be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Its content.
    #[error("{path} does not hold what this program writes: {reason}")]
    Content {
        /// Which.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// All keys of all accounts and regions.
pub(super) struct Store {
    path: PathBuf,
    keys: BTreeMap<String, Key>,
}

/// A symmetric KMS key.
pub(super) struct Key {
    pub(super) arn: KeyArn,
    pub(super) material: Material,
    pub(super) policy: Policy,
    /// As it was put, for `GetKeyPolicy`.
    pub(super) policy_text: String,
    pub(super) description: String,
    pub(super) created_seconds: u64,
    pub(super) grants: Vec<Grant>,
}

/// A grant: a right beside the key policy.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Grant {
    pub(super) id: String,
    pub(super) token: String,
    pub(super) name: Option<String>,
    pub(super) grantee: String,
    pub(super) retiring: Option<String>,
    pub(super) issuing_account: String,
    pub(super) operations: Vec<String>,
    pub(super) context_equals: Option<BTreeMap<String, String>>,
    pub(super) context_subset: Option<BTreeMap<String, String>>,
    pub(super) created_seconds: u64,
}

/// A key as it stands in the file.
#[derive(Serialize, Deserialize)]
struct Record {
    arn: String,
    material: String,
    policy: String,
    description: String,
    created_seconds: u64,
    grants: Vec<Grant>,
}

impl Store {
    /// Opens the store of a folder; an empty one if there is none yet.
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join("keys.json");
        let mut store = Self { path: path.clone(), keys: BTreeMap::new() };
        let text = match fs::read_to_string(&path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(store),
            Err(source) => return Err(StoreError::File { path, source }),
        };
        let content = |reason: String| StoreError::Content { path: path.clone(), reason };
        let records: Vec<Record> = serde_json::from_str(&text).map_err(|error| content(error.to_string()))?;
        for record in records {
            let key = record.read().map_err(content)?;
            store.keys.insert(key.arn.as_str().to_owned(), key);
        }
        Ok(store)
    }

    /// The key of this ARN.
    pub(super) fn get(&self, arn: &str) -> Option<&Key> {
        self.keys.get(arn)
    }

    /// The key with this id in a region, whichever account it is in; ids are random.
    pub(super) fn by_id(&self, region: &str, id: &str) -> Option<&Key> {
        self.keys.values().find(|key| key.arn.region() == region && key.arn.id() == id)
    }

    /// All keys, by ARN.
    pub(super) fn arns(&self) -> Vec<String> {
        self.keys.keys().cloned().collect()
    }

    /// Adds a key.
    pub(super) fn insert(&mut self, key: Key) -> Result<(), KmsError> {
        self.keys.insert(key.arn.as_str().to_owned(), key);
        self.save()
    }

    /// Changes a key.
    pub(super) fn update<T>(
        &mut self,
        arn: &KeyArn,
        change: impl FnOnce(&mut Key) -> Result<T, KmsError>,
    ) -> Result<T, KmsError> {
        let key = self.keys.get_mut(arn.as_str()).ok_or_else(|| not_found(arn.as_str()))?;
        let out = change(key)?;
        self.save()?;
        Ok(out)
    }

    fn save(&self) -> Result<(), KmsError> {
        let records: Vec<Record> = self.keys.values().map(Record::of).collect();
        let text = Zeroizing::new(
            serde_json::to_string_pretty(&records).map_err(|error| KmsError::internal(error.to_string()))?,
        );
        let temporary = self.path.with_extension("json.new");
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let written = options.open(&temporary).and_then(|mut file| file.write_all(text.as_bytes()));
        written
            .and_then(|()| fs::rename(&temporary, &self.path))
            .map_err(|error| KmsError::internal(format!("the store cannot be written: {error}")))
    }
}

impl Record {
    fn of(key: &Key) -> Self {
        let Key { arn, material, policy: _, policy_text, description, created_seconds, grants } = key;
        Self {
            arn: arn.as_str().to_owned(),
            material: STANDARD.encode(material.as_slice()),
            policy: policy_text.clone(),
            description: description.clone(),
            created_seconds: *created_seconds,
            grants: grants.clone(),
        }
    }

    fn read(self) -> Result<Key, String> {
        let Self { arn, material, policy, description, created_seconds, grants } = self;
        let material = Zeroizing::new(STANDARD.decode(material).map_err(|error| error.to_string())?);
        Ok(Key {
            arn: KeyArn::parse(&arn).map_err(|error| error.to_string())?,
            material: Zeroizing::new(<[u8; 32]>::try_from(material.as_slice()).map_err(|error| error.to_string())?),
            policy: Policy::parse(&policy).map_err(|error| error.to_string())?,
            policy_text: policy,
            description,
            created_seconds,
            grants,
        })
    }
}

/// The refusal for a key that is not there.
pub(super) fn not_found(key: &str) -> KmsError {
    KmsError::new("NotFoundException", format!("Key '{key}' does not exist"))
}
