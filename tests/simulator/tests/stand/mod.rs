//! A simulated KMS with its callers, and enclaves that attest to it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use attestation::UnixMillis;
use attestation::measurement::extend;
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use aws_nitro_enclaves_nsm_api::api::{Request, Response};
use aws_sdk_kms::Client;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::timeout::TimeoutConfig;
use aws_sdk_kms::config::{Credentials, Region};
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{KeyEncryptionMechanism, RecipientInfo};
use aws_smithy_http_client::tls::{self, TlsContext, TrustStore};
use simulator::authority::Authority;
use simulator::kms::{Handle, Principal, Principals, Server, Settings};
use simulator::nsm::{Module, ModuleSettings, Registers};

pub const ACCOUNT: &str = "111122223333";
pub const WRITER: &str = "arn:aws:iam::111122223333:role/Writer";
pub const ENCLAVE: &str = "arn:aws:iam::444455556666:role/Enclave";
pub const READER: &str = "arn:aws:iam::111122223333:role/Reader";
pub const ADMINISTRATOR: &str = "arn:aws:iam::111122223333:role/Administrator";
pub const STRANGER: &str = "arn:aws:iam::111122223333:role/Stranger";
pub const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

/// The server, the root that it trusts, and a folder that both live in.
pub struct Stand {
    pub kms: Handle,
    pub authority: Arc<Authority>,
    pub folder: tempfile::TempDir,
}

impl Stand {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::ephemeral().unwrap());
        let kms = Server::start(settings(&folder, &authority)).await.unwrap();
        Self { kms, authority, folder }
    }

    /// A client of one of the roles; its access key id is the role's name.
    pub fn client(&self, role: &str) -> Client {
        self.client_with(name(role), SECRET, None)
    }

    pub fn client_with(&self, access_key_id: &str, secret: &str, token: Option<&str>) -> Client {
        Client::from_conf(self.configuration(access_key_id, secret, token).build())
    }

    /// An unmodified aws-sdk-kms with an endpoint, a CA and credentials; one attempt, so that faults are seen.
    pub fn configuration(
        &self,
        access_key_id: &str,
        secret: &str,
        token: Option<&str>,
    ) -> aws_sdk_kms::config::Builder {
        let trust = TrustStore::empty().with_pem_certificate(self.kms.ca_pem());
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc))
            .tls_context(TlsContext::builder().with_trust_store(trust).build().unwrap())
            .build_https();
        aws_sdk_kms::Config::builder()
            .region(Region::new("us-east-1"))
            .endpoint_url(self.kms.url())
            .credentials_provider(Credentials::new(access_key_id, secret, token.map(str::to_owned), None, "test"))
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().operation_timeout(Duration::from_secs(20)).build())
            .http_client(http)
    }
}

pub fn settings(folder: &tempfile::TempDir, authority: &Authority) -> Settings {
    let mut principals = Principals::default();
    for role in [WRITER, ENCLAVE, READER, ADMINISTRATOR, STRANGER] {
        let session = role.replace(":iam:", ":sts:").replace(":role/", ":assumed-role/") + "/session";
        principals.insert(name(role), Principal::new(&session, SECRET).unwrap());
    }
    Settings::on_loopback(folder.path().to_owned(), authority.root_pem().into_bytes(), principals)
}

pub fn name(role: &str) -> &str {
    role.rsplit('/').next().unwrap()
}

/// An enclave: its registers, and the RSA key that its documents carry.
pub struct Attester {
    module: Module,
    pub private_key: PrivateDecryptingKey,
}

/// What an enclave was started from and what it measured afterwards.
#[derive(Clone)]
pub struct Image {
    pub pcrs: [[u8; 48]; 3],
    /// Data extended into a register, and whether it was locked then.
    pub extended: BTreeMap<u16, (&'static [u8], bool)>,
    pub debug: bool,
}

impl Image {
    pub fn good() -> Self {
        let extended = BTreeMap::from([(16, (&b"packs"[..], true)), (17, (&b"configuration"[..], true))]);
        Self { pcrs: [[0xA0; 48], [0xA1; 48], [0xA2; 48]], extended, debug: false }
    }

    /// The value that a register will have.
    pub fn pcr(&self, index: u8) -> [u8; 48] {
        match index {
            0..=2 => self.pcrs[usize::from(index)],
            _ => extend(&[0; 48], self.extended[&u16::from(index)].0),
        }
    }
}

impl Attester {
    pub fn start(authority: &Arc<Authority>, image: &Image) -> Self {
        let [pcr0, pcr1, pcr2] = image.pcrs;
        let settings = ModuleSettings {
            region: "us-east-1".into(),
            instance_id: "i-0123456789abcdef0".into(),
            registers: Registers { pcr0, pcr1, pcr2, role_arn: None },
            debug: image.debug,
        };
        let mut module = Module::new(Arc::clone(authority), &settings, now()).unwrap();
        for (index, (data, lock)) in &image.extended {
            module.handle(Request::ExtendPCR { index: *index, data: data.to_vec() }, now());
            if *lock {
                module.handle(Request::LockPCR { index: *index }, now());
            }
        }
        Self { module, private_key: PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap() }
    }

    pub fn spki(&self) -> Vec<u8> {
        AsDer::<PublicKeyX509Der<'_>>::as_der(&self.private_key.public_key()).unwrap().as_ref().to_vec()
    }

    pub fn document(&mut self) -> Vec<u8> {
        let key = self.spki();
        self.document_with(Some(&key), now())
    }

    pub fn document_with(&mut self, public_key: Option<&[u8]>, at: UnixMillis) -> Vec<u8> {
        let public_key = public_key.map(|bytes| bytes.to_vec().into());
        match self.module.handle(Request::Attestation { user_data: None, nonce: None, public_key }, at) {
            Response::Attestation { document } => document,
            other => panic!("{other:?}"),
        }
    }

    pub fn recipient(&mut self) -> RecipientInfo {
        recipient(self.document())
    }
}

pub fn recipient(document: Vec<u8>) -> RecipientInfo {
    RecipientInfo::builder()
        .key_encryption_algorithm(KeyEncryptionMechanism::RsaesOaepSha256)
        .attestation_document(Blob::new(document))
        .build()
}

pub fn now() -> UnixMillis {
    UnixMillis(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap())
}

/// The code of a refusal.
pub fn code<T: std::fmt::Debug, E: ProvideErrorMetadata + std::fmt::Debug, R: std::fmt::Debug>(
    result: Result<T, SdkError<E, R>>,
) -> String {
    match result {
        Ok(answer) => panic!("not refused: {answer:?}"),
        Err(error) => error.code().map_or_else(|| format!("no code: {error:?}"), str::to_owned),
    }
}

pub fn context(pairs: &[(&str, &str)]) -> std::collections::HashMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}
