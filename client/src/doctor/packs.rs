//! The sealed model packs: there, whole as far as can be seen, and for the configured key, model and version.
//!
//! A pack is sealed, so what is inside cannot be checked here. What stands before the sealed part can: nobody has
//! authenticated it yet, but an enclave that finds something else there refuses the pack.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use ring::digest::{SHA384, digest};
use sealing::message::{Limits, Suite};
use sealing::reader::{HeaderReader, Progress, UnverifiedHeader};

use super::configuration::{Known, Model};
use super::{Finding, Root};
use crate::data_key::PROVIDER;

/// Each model's pack, and the bytes of the largest.
#[must_use]
pub fn examine(
    root: &Root,
    folder: &Path,
    manifests: &[PathBuf],
    configuration: Option<&Known>,
) -> (Vec<Finding>, Option<u64>) {
    const CHECK: &str = "model pack";
    let Some(configuration) = configuration else {
        return (
            vec![Finding::not_checked(CHECK, "without a good configuration it is not known which there should be")],
            None,
        );
    };
    let mut findings = Vec::new();
    let mut largest = None;
    for model in &configuration.models {
        let place = root.at(&folder.join(&model.name));
        match length(&place).and_then(|length| read(&place, model).map(|()| length)) {
            Ok(length) if length > configuration.model_pack_bytes.saturating_add(configuration.model_pack_bytes / 64) => {
                let limit = configuration.model_pack_bytes;
                findings.push(Finding::wrong(
                    CHECK,
                    format!("{} has {length} bytes, the configuration allows {limit}", place.display()),
                    "raise limits.model_pack_bytes of the configuration document; PCR17 changes with it",
                ));
            }
            Ok(length) => {
                largest = largest.max(Some(length));
                let key = &model.key;
                findings.push(Finding::ok(CHECK, format!("{}: {length} bytes, sealed under {key}", place.display())));
            }
            Err(what) => findings.push(Finding::wrong(
                CHECK,
                format!("{} {what}", place.display()),
                format!(
                    "seal it again, and put it there whole: subrosa seal --kms-key {} --context subrosa:purpose=model-pack \
                     --context subrosa:model={} --context subrosa:version={} PACK -o {}",
                    model.key, model.model, model.version, model.name
                ),
            )),
        }
        findings.push(manifest(root, manifests, model));
    }
    (findings, largest)
}

fn length(place: &Path) -> Result<u64, String> {
    let found = std::fs::symlink_metadata(place).map_err(|error| format!("is not there: {error}"))?;
    if !found.is_file() {
        // The parent does not follow links there.
        return Err("is no regular file, and the parent serves nothing else".to_owned());
    }
    Ok(found.len())
}

/// What the enclave looks at before it asks KMS for the data key.
fn read(place: &Path, model: &Model) -> Result<(), String> {
    let header = header(place)?;
    let pairs = [
        ("subrosa:model", model.model.as_str()),
        ("subrosa:purpose", "model-pack"),
        ("subrosa:version", &model.version),
    ];
    if header.suite() != Suite::Commit {
        return Err("is sealed under another suite than 0x0478".to_owned());
    }
    if !header.context().iter().eq(pairs) {
        let found: Vec<String> = header.context().iter().map(|(key, value)| format!("{key}={value}")).collect();
        let expected = pairs.map(|(key, value)| format!("{key}={value}"));
        return Err(format!("is sealed for {}, the configuration names {}", found.join(" "), expected.join(" ")));
    }
    let is_ours = |key: &&sealing::message::EncryptedDataKey| {
        key.provider_id == PROVIDER && key.provider_info == model.key.as_str().as_bytes()
    };
    if !header.encrypted_data_keys().iter().any(|key| is_ours(&key)) {
        return Err(format!("has no data key under {}", model.key));
    }
    Ok(())
}

fn header(place: &Path) -> Result<UnverifiedHeader, String> {
    let mut file = File::open(place).map_err(|error| format!("cannot be read: {error}"))?;
    let mut reader = HeaderReader::new(Limits::model_pack());
    let mut buffer = [0; 4096];
    loop {
        let count = file.read(&mut buffer).map_err(|error| format!("cannot be read: {error}"))?;
        let mut read = buffer.get(..count).unwrap_or_default();
        if read.is_empty() {
            return Err("is cut off in its header".to_owned());
        }
        match reader.push(&mut read).map_err(|error| format!("is no sealed message: {error}"))? {
            Progress::More(more) => reader = more,
            Progress::Done(header) => return Ok(header),
        }
    }
}

/// The manifest is inside, sealed. Who packed the model has it outside too.
fn manifest(root: &Root, manifests: &[PathBuf], model: &Model) -> Finding {
    const CHECK: &str = "manifest";
    if manifests.is_empty() {
        let why =
            format!("{}: the manifest is sealed inside the pack; give --manifest with that of the release", model.name);
        return Finding::not_checked(CHECK, why);
    }
    let wanted = model.manifest_sha384;
    for path in manifests {
        match std::fs::read(root.at(path)) {
            Ok(bytes) if digest(&SHA384, &bytes).as_ref() == wanted => {
                return Finding::ok(CHECK, format!("{}: {} has the configured digest", model.name, path.display()));
            }
            Ok(_) => {}
            Err(error) => {
                let found = format!("{} cannot be read: {error}", path.display());
                return Finding::wrong(CHECK, found, "give the manifest.json of the pack");
            }
        }
    }
    Finding::wrong(
        CHECK,
        format!("{}: no given manifest has the configured digest {}", model.name, hex::encode(wanted)),
        "set manifest_sha384 to what `subrosa pack` printed, or give the manifest of this pack",
    )
}
