//! Fetching, opening and loading one model pack.

use bytes::Bytes;
use inference::Model;
use sealing::message::{DataKey, Limits, Suite};
use sealing::reader::{BodyReader, HeaderReader, OpenError, Progress, UnverifiedHeader};

use super::patience::Patience;
use super::phases::{LoadedModel, Parts};
use super::provisional::Provisional;
use super::{PackFault, ServeError};
use crate::configuration::ModelSource;
use crate::kms::{Kms, KmsError, PROVIDER};
use crate::log::{self, Event, Hash, KmsCode, Service};
use crate::pack::{Checked, PackReader};

/// Streams the pack from the parent, opens it, loads the model as it comes, and lets it out once the pack has proved to be the
/// configured one, to its final frame and its last digest.
///
/// A connection that breaks is resumed where it broke; a pack that is wrong ends boot.
pub(super) async fn load(parts: &Parts, name: &str, source: &ModelSource) -> Result<LoadedModel, ServeError> {
    let (model, pack) = fetch(parts, name, source).await.inspect_err(|error| {
        if let ServeError::Pack(PackFault::NoRoom { needed, available }) = error {
            log::write(Event::NoRoom { needed_bytes: *needed, available_bytes: *available });
        }
        log::write(Event::PackRefused { manifest_sha384: Hash(source.manifest_sha384) });
    })?;
    let manifest_sha384 = *pack.manifest_sha384();
    log::write(Event::PackLoaded { manifest_sha384: Hash(manifest_sha384), bytes: pack.bytes() });
    Ok(LoadedModel { model, manifest_sha384 })
}

async fn fetch(parts: &Parts, name: &str, source: &ModelSource) -> Result<(Model, Checked), ServeError> {
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
                Ok(None) => return opening.finish().await,
                Err(_) => {
                    patience.pause().await;
                    break;
                }
            }
        }
    }
}

/// A pack on its way in.
enum Opening {
    Header { reader: HeaderReader, pack: PackReader },
    Body { body: Box<BodyReader>, pack: PackReader, model: Option<Provisional> },
}

impl Opening {
    fn new(source: &ModelSource, bytes_max: u64) -> Self {
        let pack = PackReader::new(source.manifest_sha384, bytes_max, MODEL_FILE);
        Self::Header { reader: HeaderReader::new(Limits::model_pack()), pack }
    }

    /// Opens the frames that are whole, and waits until the loader has room for them: no more is read than it can take.
    async fn push(self, kms: &Kms, source: &ModelSource, piece: Bytes) -> Result<Self, ServeError> {
        let mut rest: &[u8] = &piece;
        let (mut body, mut pack, mut model) = match self {
            Self::Body { body, pack, model } => (body, pack, model),
            Self::Header { reader, pack } => match reader.push(&mut rest).map_err(open_error)? {
                Progress::More(reader) => return Ok(Self::Header { reader, pack }),
                Progress::Done(header) => {
                    let key = data_key(kms, source, &header).await?;
                    (Box::new(header.authenticate(&key).map_err(PackFault::from)?), pack, None)
                }
            },
        };
        while let Some(frame) = body.push(&mut rest).map_err(PackFault::from)? {
            let mut content = frame.as_bytes();
            while let Some(part) = pack.push(&mut content).map_err(PackFault::from)? {
                model.get_or_insert_with(|| Provisional::begin(part.of)).feed(part.bytes).await?;
            }
        }
        Ok(Self::Body { body, pack, model })
    }

    /// The parent says that this is all. It is, only if the message's true end was reached and the archive is whole.
    async fn finish(self) -> Result<(Model, Checked), ServeError> {
        let Self::Body { body, pack, model } = self else { return Err(PackFault::Open(OpenError::Incomplete).into()) };
        let _end = body.finish().map_err(PackFault::from)?;
        let proof = pack.finish().map_err(PackFault::from)?;
        let model = model.ok_or(PackFault::NoModel)?.confirm(&proof).await?;
        Ok((model, proof))
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
