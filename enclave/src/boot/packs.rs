//! Fetching, opening and loading one model pack.

use bytes::Bytes;
use inference::{LoadOptions, Model, Plan};
use sealing::message::{DataKey, Limits, Suite};
use sealing::reader::{BodyReader, HeaderReader, OpenError, Progress, UnverifiedHeader};

use super::patience::Patience;
use super::phases::{LoadedModel, Parts};
use super::{PackFault, ServeError};
use crate::configuration::ModelSource;
use crate::kms::{Kms, KmsError, PROVIDER};
use crate::log::{self, Event, Hash, KmsCode, Service};
use crate::memory;
use crate::pack::{Pack, PackError, PackReader};

/// Streams the pack from the parent, opens it, checks it against the configuration, and loads the model.
///
/// A connection that breaks is resumed where it broke; a pack that is wrong ends boot.
pub(super) async fn load(parts: &Parts, name: &str, source: &ModelSource) -> Result<LoadedModel, ServeError> {
    let refused = |error: &ServeError| {
        if let ServeError::Pack(PackFault::Archive(PackError::NoRoom { needed, available })) = error {
            log::write(Event::NoRoom { needed_bytes: *needed, available_bytes: *available });
        }
        log::write(Event::PackRefused { manifest_sha384: Hash(source.manifest_sha384) });
    };
    let mut pack = fetch(parts, name, source).await.inspect_err(refused)?;
    let (manifest_sha384, bytes) = (*pack.manifest_sha384(), pack.bytes());
    let file = pack.take(MODEL_FILE).ok_or(PackFault::NoModel).map_err(ServeError::from).inspect_err(refused)?;
    drop(pack);
    check_room(&file, memory::available()).map_err(ServeError::from).inspect_err(refused)?;
    let model = tokio::task::spawn_blocking(move || Model::load(&file, &LoadOptions::default()))
        .await
        .map_err(|_| ServeError::Internal)?
        .map_err(|error| ServeError::Pack(error.into()))
        .inspect_err(refused)?;
    log::write(Event::PackLoaded { manifest_sha384: Hash(manifest_sha384), bytes });
    Ok(LoadedModel { model, manifest_sha384 })
}

/// The engine's own plan against what is left beside the file itself. (What it is not able to read it will refuse better.)
fn check_room(file: &[u8], available: u64) -> Result<(), PackFault> {
    let needed =
        Plan::from_header(file).map_or(0, |plan| plan.weights_bytes.saturating_add(plan.vocabulary_bytes) as u64);
    if needed > available { Err(PackError::NoRoom { needed, available }.into()) } else { Ok(()) }
}

async fn fetch(parts: &Parts, name: &str, source: &ModelSource) -> Result<Pack, ServeError> {
    let path = format!("/v1/model-packs/{name}");
    let mut opening = Opening::new(source, parts.configuration.limits.model_pack_bytes);
    let mut patience = Patience::new(Service::ModelPack);
    let mut offset = 0_u64;
    loop {
        let Ok(mut download) = parts.host.open(&path, offset).await else {
            patience.pause().await;
            continue;
        };
        loop {
            match download.next().await {
                Ok(Some(piece)) => {
                    offset += piece.len() as u64;
                    patience.reset();
                    opening = opening.push(&parts.kms, source, piece).await?;
                }
                Ok(None) => return opening.finish(),
                Err(_) => {
                    patience.pause().await;
                    break;
                }
            }
        }
    }
}

/// A pack on its way in. What it holds is provisional until [`Opening::finish`].
enum Opening {
    Header { reader: HeaderReader, pack: PackReader },
    Body { body: Box<BodyReader>, pack: PackReader },
}

impl Opening {
    fn new(source: &ModelSource, bytes_max: u64) -> Self {
        let pack = PackReader::new(source.manifest_sha384, bytes_max, memory::available());
        Self::Header { reader: HeaderReader::new(Limits::model_pack()), pack }
    }

    async fn push(self, kms: &Kms, source: &ModelSource, piece: Bytes) -> Result<Self, ServeError> {
        let mut rest: &[u8] = &piece;
        let (mut body, mut pack) = match self {
            Self::Body { body, pack } => (body, pack),
            Self::Header { reader, pack } => match reader.push(&mut rest).map_err(open_error)? {
                Progress::More(reader) => return Ok(Self::Header { reader, pack }),
                Progress::Done(header) => {
                    let key = data_key(kms, source, &header).await?;
                    (Box::new(header.authenticate(&key).map_err(PackFault::from)?), pack)
                }
            },
        };
        while let Some(frame) = body.push(&mut rest).map_err(PackFault::from)? {
            pack.push(frame.as_bytes()).map_err(PackFault::from)?;
        }
        Ok(Self::Body { body, pack })
    }

    /// The parent says that this is all. It is, only if the message's true end was reached and the archive is whole.
    fn finish(self) -> Result<Pack, ServeError> {
        let Self::Body { body, pack } = self else { return Err(PackFault::Open(OpenError::Incomplete).into()) };
        let _end = body.finish().map_err(PackFault::from)?;
        Ok(pack.finish().map_err(PackFault::from)?)
    }
}

fn open_error(error: sealing::reader::HeaderError) -> PackFault {
    PackFault::Open(error.into())
}

/// docs/PROTOCOL.md, section 9: the configuration names key, model and version; "no ARN, digest or version is ever
/// learned from the pack itself".
async fn data_key(kms: &Kms, source: &ModelSource, header: &UnverifiedHeader) -> Result<DataKey, ServeError> {
    if header.suite() != Suite::Commit {
        return Err(PackFault::Header("the suite must be 0x0478").into());
    }
    let expected = [
        ("subrosa:model", source.model.as_str()),
        ("subrosa:purpose", "model-pack"),
        ("subrosa:version", &source.version),
    ];
    if !header.context().iter().eq(expected) {
        return Err(PackFault::Header("another encryption context").into());
    }
    let is_ours =
        |provider_id: &str, info: &[u8]| provider_id == PROVIDER && info == source.key_arn.as_str().as_bytes();
    let encrypted = header
        .encrypted_data_keys()
        .iter()
        .find(|encrypted| is_ours(&encrypted.provider_id, &encrypted.provider_info))
        .ok_or(PackFault::Header("no data key under the configured key"))?;
    let mut patience = Patience::new(Service::ModelPackKey);
    loop {
        match kms.decrypt(&source.key_arn, encrypted, header.context()).await {
            Ok(key) => return Ok(key),
            Err(KmsError::Refused { code }) => {
                log::write(Event::KeyRefused { code });
                return Err(ServeError::ModelPackKey(KmsError::Refused { code }));
            }
            Err(KmsError::RuleBroken(rule)) => {
                log::write(Event::KeyRefused { code: KmsCode::RuleBroken });
                return Err(ServeError::ModelPackKey(KmsError::RuleBroken(rule)));
            }
            Err(error @ KmsError::Module) => return Err(ServeError::ModelPackKey(error)),
            Err(
                KmsError::Impostor
                | KmsError::Unreachable
                | KmsError::Timeout
                | KmsError::Busy
                | KmsError::CredentialsExpired,
            ) => patience.pause().await,
        }
    }
}

/// The file of the archive that the engine loads.
const MODEL_FILE: &str = "model.gguf";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_needs_more_memory_than_is_left_is_refused_with_both_figures() {
        let file =
            std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/demo-model/subrosa-intake.gguf")).unwrap();
        let plan = Plan::from_header(&file).unwrap();
        let needed = (plan.weights_bytes + plan.vocabulary_bytes) as u64;
        assert!(check_room(&file, needed).is_ok());
        let refused = check_room(&file, needed - 1).unwrap_err();
        let PackFault::Archive(PackError::NoRoom { needed: said, available }) = refused else { panic!("{refused}") };
        assert_eq!((said, available), (needed, needed - 1));
    }
}
