//! What has to be there before anything starts: measurements, keys with their policies, the sealed model pack, the configuration.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use attestation::Pcr;
use attestation::measurement::{extend, h48};
use aws_sdk_kms::error::DisplayErrorContext;
use kms_policies::Policy;
use kms_policies::templates::{self, CustomerRoles, Measurements, ModelPackRoles};
use sealing::message::{EncryptionContext, Suite};
use serde_json::json;
use simulator::kms;
use subrosa_client::data_key::{KeySource, KmsKey};
use subrosa_client::files::{self, SealOptions};
use subrosa_client::pack::{self, Entry, Packed};

use super::Options;
use super::identities::{
    self, ADMINISTRATOR, ANSWER_READER, APPLICATION, ENCLAVE, MODEL_SUPPLIER, PROMPT_WRITER, REGION,
};

/// The tenant that the customer's key policy names.
pub const TENANT: &str = "clinic-7";
/// The model's name in configuration and context.
const MODEL: &str = "subrosa-intake";
const VERSION: &str = "1";

/// What an attestation document of the trusted enclave will say.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Registers 0 to 2; then also 16 and 17.
    pub pcrs: BTreeMap<u8, Pcr>,
}

impl Measured {
    pub(super) fn with_model_and_configuration(mut self, manifest: &[u8; 48], configuration: &[u8]) -> Measured {
        self.pcrs.insert(16, extend(&[0; 48], manifest));
        self.pcrs.insert(17, extend(&[0; 48], &sha384(configuration)));
        self
    }

    fn registers(&self, which: &[u8]) -> Measurements {
        let chosen = self.pcrs.iter().filter(|(index, _)| which.contains(index));
        Measurements { pcrs: chosen.map(|(index, value)| (*index, vec![*value])).collect() }
    }
}

/// The registers that the hypervisor computes: program and image configuration, program, image configuration.
pub(super) fn measure(program: &Path, image: &Path) -> io::Result<Measured> {
    let (program, image) = (fs::read(program)?, fs::read(image)?);
    let whole = [program.as_slice(), image.as_slice()].concat();
    Ok(Measured { pcrs: BTreeMap::from([(0, h48(&whole)), (1, h48(&program)), (2, h48(&image))]) })
}

pub(super) async fn model_key(kms: &kms::Handle, measured: &Measured) -> io::Result<String> {
    let roles = ModelPackRoles {
        model_suppliers: vec![MODEL_SUPPLIER.arn()],
        enclaves: vec![ENCLAVE.arn()],
        administrators: vec![ADMINISTRATOR.arn()],
    };
    let policy = templates::model_pack_key(&roles, &measured.registers(&[0, 1, 2]), &[MODEL.to_owned()])
        .map_err(io::Error::other)?;
    create_key(kms, &policy).await
}

pub(super) async fn customer_key(kms: &kms::Handle, measured: &Measured) -> io::Result<String> {
    let roles = CustomerRoles {
        prompt_writers: vec![PROMPT_WRITER.arn(), APPLICATION.arn()],
        enclaves: vec![ENCLAVE.arn()],
        answer_readers: vec![ANSWER_READER.arn(), APPLICATION.arn()],
        administrators: vec![ADMINISTRATOR.arn()],
    };
    let policy = templates::customer_key(&roles, &measured.registers(&[0, 1, 2, 16, 17]), &[TENANT.to_owned()])
        .map_err(io::Error::other)?;
    create_key(kms, &policy).await
}

async fn create_key(kms: &kms::Handle, policy: &Policy) -> io::Result<String> {
    let client = identities::kms_client(kms, &ADMINISTRATOR);
    let created = client
        .create_key()
        .policy(policy.to_json())
        .send()
        .await
        .map_err(|error| io::Error::other(DisplayErrorContext(error).to_string()))?;
    created.key_metadata.and_then(|key| key.arn).ok_or_else(|| io::Error::other("no ARN of the new key"))
}

/// Packs the model, seals the pack under the supplier's key, and returns the manifest's digest.
pub(super) async fn seal_pack(kms: &kms::Handle, key: &str, model: &Path, packs: &Path) -> io::Result<[u8; 48]> {
    let keys = KeySource::Kms(KmsKey::new(identities::kms_client(kms, &MODEL_SUPPLIER), key));
    let (model, target) = (model.to_owned(), packs.join(MODEL));
    let runtime = tokio::runtime::Handle::current();
    let sealing = tokio::task::spawn_blocking(move || -> io::Result<[u8; 48]> {
        let plain = tempfile::NamedTempFile::new()?;
        let entries = [Entry { name: "model.gguf".to_owned(), file: model }];
        let Packed { manifest_sha384, .. } =
            pack::write(MODEL, &entries, &mut plain.as_file(), |_| ()).map_err(io::Error::other)?;
        let context = EncryptionContext::from_pairs([
            ("subrosa:purpose", "model-pack"),
            ("subrosa:model", MODEL),
            ("subrosa:version", VERSION),
        ]);
        let options =
            SealOptions { suite: Suite::Commit, context: context.map_err(io::Error::other)?, frame_length: 65_536 };
        let mut input = File::open(plain.path())?;
        files::seal(&mut input, &mut File::create(target)?, &keys, options, &runtime, |_| ())
            .map_err(io::Error::other)?;
        Ok(manifest_sha384)
    });
    sealing.await.map_err(io::Error::other)?
}

/// The configuration document (docs/PROTOCOL.md, section 9).
pub(super) fn configuration(model_key: &str, manifest: &[u8; 48], options: &Options) -> Vec<u8> {
    let mut document = json!({
        "version": 1,
        "region": REGION,
        "accounts": [identities::ACCOUNT],
        "models": [{
            "name": MODEL, "key_arn": model_key, "manifest_sha384": hex::encode(manifest), "model": MODEL, "version": VERSION,
        }],
    });
    if !options.limits.is_null() {
        document["limits"] = options.limits.clone();
    }
    if let Some(key_policies) = options.key_policies {
        document["key_policies"] = key_policies.into();
    }
    document.to_string().into_bytes()
}

fn sha384(bytes: &[u8]) -> [u8; 48] {
    let mut out = [0; 48];
    out.copy_from_slice(ring::digest::digest(&ring::digest::SHA384, bytes).as_ref());
    out
}
