//! What stands around the enclave: a security module, KMS, a parent of a few lines, and a customer.
#![allow(dead_code, reason = "two test programs use a part each")]

mod outside;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use address::Address;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::DataKeySpec;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use enclave::{Dialler, ImageConfiguration, Platform, ServeError, SystemClock};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sealing::SystemRandom;
use sealing::http::{Method, RequestWriter, ResponseHeadReader, ResponseProgress};
use sealing::message::{DataKey, EncryptedDataKey, EncryptionContext, Limits, MessageId, Suite};
use sealing::raw_aes::{Keyring, WrappingKey};
use sealing::reader::open_whole;
use sealing::writer::{MessageWriter, SealParameters};
use serde_json::{Value, json};
use simulator::authority::Authority;
use simulator::kms;
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use outside::{archive, host_services, module, sdk, tunnel};

pub(crate) struct Stand {
    folder: TempDir,
    pub(crate) kms: kms::Handle,
    /// What `enclave::serve` returns.
    pub(crate) served: tokio::task::JoinHandle<Result<(), ServeError>>,
    /// Connections through the tunnel to KMS so far.
    pub(crate) tunnelled: Arc<AtomicUsize>,
    customer: aws_sdk_kms::Client,
    customer_key: String,
    /// Like the parent, which sends everything over one connection.
    connection: OnceCell<http2::SendRequest<Full<Bytes>>>,
    _tasks: JoinSet<()>,
}

/// What is not as it should be.
pub(crate) struct Twist {
    pub(crate) limits: Value,
    pub(crate) debug: bool,
    /// The image's roots do not vouch for KMS.
    pub(crate) foreign_roots: bool,
    /// Somebody has extended and locked PCR17 already.
    pub(crate) lock_pcr17: bool,
    pub(crate) deny_model_key: bool,
    /// Changes the configuration document.
    pub(crate) configuration: fn(String) -> String,
    /// Changes the model, but not what the manifest says of it.
    pub(crate) model: fn(Vec<u8>) -> Vec<u8>,
    /// Changes the sealed pack.
    pub(crate) pack: fn(Vec<u8>) -> Vec<u8>,
    /// How long the parent is not there.
    pub(crate) parent_after: Duration,
    /// The parent breaks off the first time that it sends the pack.
    pub(crate) cut_pack_at: Option<usize>,
}

impl Default for Twist {
    fn default() -> Self {
        Self {
            limits: json!({}),
            debug: false,
            foreign_roots: false,
            lock_pcr17: false,
            deny_model_key: false,
            configuration: |document| document,
            model: |model| model,
            pack: |pack| pack,
            parent_after: Duration::ZERO,
            cut_pack_at: None,
        }
    }
}

/// What the customer asks, and how.
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) target: &'static str,
    pub(crate) body: Vec<u8>,
    pub(crate) raw: Option<Vec<u8>>,
    pub(crate) headers: &'static [(&'static str, &'static str)],
    pub(crate) expires: u64,
    pub(crate) suite: Suite,
    pub(crate) answer_suite: Suite,
    pub(crate) under_reply_key: bool,
}

impl Ask {
    pub(crate) fn chat(body: &Value) -> Self {
        Self {
            method: Method::Post,
            target: "/v1/chat/completions",
            body: body.to_string().into_bytes(),
            ..Self::models()
        }
    }

    pub(crate) fn models() -> Self {
        Self {
            method: Method::Get,
            target: "/v1/models",
            body: Vec::new(),
            raw: None,
            headers: &[],
            expires: now() + 300,
            suite: Suite::Commit,
            answer_suite: Suite::Commit,
            under_reply_key: true,
        }
    }
}

pub(crate) struct Sealed {
    pub(crate) message: Vec<u8>,
    message_id: MessageId,
    reply_key: [u8; 32],
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

impl Stand {
    pub(crate) async fn start() -> Self {
        Self::start_with(json!({})).await
    }

    pub(crate) async fn start_with(limits: Value) -> Self {
        let stand = Self::serve(Twist { limits, ..Twist::default() }).await;
        stand.wait().await;
        stand
    }

    /// Starts everything and does not wait for it.
    pub(crate) async fn serve(twist: Twist) -> Self {
        let Twist {
            limits,
            debug,
            foreign_roots,
            lock_pcr17,
            deny_model_key,
            configuration,
            model,
            pack: change,
            parent_after,
            cut_pack_at,
        } = twist;
        let folder = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::ephemeral().unwrap());
        let principals = format!(
            r#"{{"AKIATEST": {{"secret": "secret", "arn": "arn:aws:iam::{ACCOUNT}:role/Everything", "iam_allows": true}}}}"#
        );
        let principals = kms::Principals::parse(&principals).unwrap();
        let settings = kms::Settings::on_loopback(folder.path().join("kms"), authority.root_pem().into(), principals);
        let kms = kms::Server::start(settings).await.unwrap();
        let customer = sdk(&kms);
        let customer_key = create_key(&customer, false).await;
        let model_key = create_key(&customer, deny_model_key).await;
        let (pack, manifest) = archive(model);
        let context = [("subrosa:model", MODEL), ("subrosa:purpose", "model-pack"), ("subrosa:version", "1")];
        let pack = change(seal(&customer, &model_key, Suite::Commit, &context, 65_536, &pack).await.0);
        let document = json!({"version": 1, "region": REGION, "limits": limits, "models": [{"name": MODEL,
            "key_arn": model_key, "manifest_sha384": hex::encode(manifest), "model": MODEL, "version": "1"}]});

        let mut tasks = JoinSet::new();
        let door = folder.path().join("enclave.sock");
        let tunnelled = Arc::new(AtomicUsize::new(0));
        host_services(&mut tasks, &door, parent_after, configuration(document.to_string()), pack, cut_pack_at);
        tunnel(&mut tasks, &door, kms.address(), Arc::clone(&tunnelled));
        let roots = if foreign_roots { authority.root_pem() } else { kms.ca_pem().to_owned() };
        let image = format!("release = 7\nkms_roots = \"\"\"\n{roots}\"\"\"\n");
        let address = Address::Unix { path: door, port: address::ENCLAVE_PORT };
        let platform = Platform {
            dialler: Dialler::at(&address),
            listener: address,
            nsm: Arc::new(module(authority, debug, lock_pcr17)),
            clock: Arc::new(SystemClock),
            image: ImageConfiguration::parse(&image).unwrap(),
        };
        let served = tokio::spawn(enclave::serve(platform, std::future::pending()));
        Self { folder, kms, served, tunnelled, customer, customer_key, connection: OnceCell::new(), _tasks: tasks }
    }

    /// Why boot ended.
    pub(crate) async fn end(&mut self) -> ServeError {
        let ended = tokio::time::timeout(Duration::from_secs(30), &mut self.served).await.expect("boot ends");
        ended.unwrap().unwrap_err()
    }

    pub(crate) async fn wait(&self) {
        for _ in 0..600 {
            if address::dial_enclave(&self.door()).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the enclave does not serve");
    }

    pub(crate) fn door(&self) -> Address {
        Address::Unix { path: self.folder.path().join("enclave.sock"), port: address::ENCLAVE_PORT }
    }

    /// Seals, sends, opens.
    pub(crate) async fn ask(&self, ask: Ask) -> Result<Answer, StatusCode> {
        let sealed = self.seal(&ask).await;
        let (status, message) = self.post(sealed.message).await;
        if status != StatusCode::OK {
            return Err(status);
        }
        let encrypted = encrypted_data_key(&message);
        let expected = EncryptionContext::from_pairs(context(TENANT, "answer")).unwrap();
        let data_key = if ask.under_reply_key {
            assert_eq!(encrypted.0.provider_id, "subrosa");
            let keyring = Keyring::reply(WrappingKey::from_bytes(sealed.reply_key));
            keyring.unwrap(std::slice::from_ref(&encrypted.0), &encrypted.1).unwrap()
        } else {
            assert_eq!(encrypted.0.provider_info, self.customer_key.as_bytes());
            decrypt(&self.customer, &self.customer_key, &encrypted.0, &encrypted.1).await
        };
        let (header, plaintext) =
            open_whole(Limits::answer(), &message, 1 << 24, |_| Some(data_key)).expect("the answer opens");
        assert_eq!(header.suite(), ask.answer_suite);
        for (key, value) in expected.iter() {
            assert_eq!(header.context().get(key), Some(value));
        }
        let mut rest = plaintext.as_bytes();
        let Ok(ResponseProgress::Done(head)) = ResponseHeadReader::new(sealed.message_id).push(&mut rest) else {
            panic!("the answer is to this request")
        };
        Ok(Answer { status: head.status, body: rest.to_vec() })
    }

    pub(crate) async fn seal(&self, ask: &Ask) -> Sealed {
        self.seal_as(ask, TENANT).await
    }

    async fn seal_as(&self, ask: &Ask, tenant: &str) -> Sealed {
        let reply_key = WrappingKey::generate(&mut SystemRandom::new()).unwrap();
        let content = self.content(ask, &reply_key);
        let pairs = context(tenant, "inference");
        let (message, message_id) = seal(&self.customer, &self.customer_key, ask.suite, &pairs, 4096, &content).await;
        Sealed { message, message_id, reply_key: *reply_key.expose() }
    }

    fn content(&self, ask: &Ask, reply_key: &WrappingKey) -> Vec<u8> {
        if let Some(raw) = &ask.raw {
            return raw.clone();
        }
        let mut request = RequestWriter::new(ask.method, ask.target, ask.expires).unwrap();
        if ask.under_reply_key {
            request = request.reply_key(reply_key).unwrap();
        }
        for (name, value) in ask.headers {
            request = request.header(name, value).unwrap();
        }
        let request = request.answer_suite(ask.answer_suite).unwrap();
        request.finish(&ask.body).unwrap().as_bytes().to_vec()
    }

    /// A message that is authentic under its data key, but whose data key was encrypted under our tenant's context.
    pub(crate) async fn seal_with_foreign_context(&self, ask: &Ask, tenant: &str) -> Vec<u8> {
        let reply_key = WrappingKey::generate(&mut SystemRandom::new()).unwrap();
        let content = self.content(ask, &reply_key);
        let ours = EncryptionContext::from_pairs(context(TENANT, "inference")).unwrap();
        let (data_key, encrypted) = data_key(&self.customer, &self.customer_key, &ours).await;
        // First under our own context, so that the enclave has the data key in its cache.
        for (tenant, is_last) in [(TENANT, false), (tenant, true)] {
            let pairs = EncryptionContext::from_pairs(context(tenant, "inference")).unwrap();
            let message = write(Suite::Commit, pairs, 4096, vec![encrypted.clone()], &data_key, &content).0;
            if is_last {
                return message;
            }
            assert_eq!(self.post(message).await.0, StatusCode::OK);
        }
        unreachable!()
    }

    pub(crate) async fn post(&self, message: Vec<u8>) -> (StatusCode, Vec<u8>) {
        self.post_as("application/vnd.aws-encryption-sdk", message).await
    }

    pub(crate) async fn post_as(&self, content_type: &str, message: Vec<u8>) -> (StatusCode, Vec<u8>) {
        let request = Request::post("http://enclave/v1/sealed").header("content-type", content_type);
        self.exchange(request.body(Full::new(Bytes::from(message))).unwrap()).await
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Vec<u8>) {
        self.exchange(Request::get(format!("http://enclave{path}")).body(Full::default()).unwrap()).await
    }

    /// Reads the first piece of the answer and hangs up.
    pub(crate) async fn post_and_leave(&self, message: Vec<u8>) {
        let request = Request::post("http://enclave/v1/sealed")
            .header("content-type", "application/vnd.aws-encryption-sdk")
            .body(Full::new(Bytes::from(message)))
            .unwrap();
        let mut sender = self.connect().await;
        let mut answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        answer.body_mut().frame().await.unwrap().unwrap();
    }

    async fn connect(&self) -> http2::SendRequest<Full<Bytes>> {
        let stream = address::dial_enclave(&self.door()).await.unwrap();
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> (StatusCode, Vec<u8>) {
        let mut sender = self.connection.get_or_init(|| self.connect()).await.clone();
        let answer = sender.send_request(request).await.unwrap();
        let status = answer.status();
        (status, answer.into_body().collect().await.unwrap().to_bytes().to_vec())
    }
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

pub(crate) fn base64(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

fn context(tenant: &str, purpose: &'static str) -> [(&'static str, String); 2] {
    [("subrosa:tenant", tenant.to_owned()), ("subrosa:purpose", purpose.to_owned())]
}

async fn create_key(client: &aws_sdk_kms::Client, deny_decrypt: bool) -> String {
    let everyone = format!("arn:aws:iam::{ACCOUNT}:root");
    let mut statements =
        vec![json!({"Sid": "Everything", "Effect": "Allow", "Principal": {"AWS": everyone}, "Action": "kms:*",
        "Resource": "*"})];
    if deny_decrypt {
        statements.push(
            json!({"Sid": "NotThis", "Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*"}),
        );
    }
    let policy = json!({"Version": "2012-10-17", "Statement": statements});
    let created = client.create_key().policy(policy.to_string()).send().await.unwrap();
    created.key_metadata.unwrap().arn.unwrap()
}

async fn data_key(client: &aws_sdk_kms::Client, key: &str, context: &EncryptionContext) -> (DataKey, EncryptedDataKey) {
    let mut call = client.generate_data_key().key_id(key).key_spec(DataKeySpec::Aes256);
    for (key, value) in context.iter() {
        call = call.encryption_context(key, value);
    }
    let answer = call.send().await.unwrap();
    let data_key = DataKey::from_slice(answer.plaintext().unwrap().as_ref()).unwrap();
    let ciphertext = answer.ciphertext_blob().unwrap().as_ref().to_vec();
    (data_key, EncryptedDataKey { provider_id: "aws-kms".into(), provider_info: key.into(), ciphertext })
}

async fn decrypt(
    client: &aws_sdk_kms::Client,
    key: &str,
    encrypted: &EncryptedDataKey,
    context: &EncryptionContext,
) -> DataKey {
    let mut call = client.decrypt().key_id(key).ciphertext_blob(Blob::new(encrypted.ciphertext.clone()));
    for (key, value) in context.iter() {
        call = call.encryption_context(key, value);
    }
    DataKey::from_slice(call.send().await.unwrap().plaintext().unwrap().as_ref()).unwrap()
}

async fn seal<V: Into<String> + Clone>(
    client: &aws_sdk_kms::Client,
    key: &str,
    suite: Suite,
    context: &[(&'static str, V)],
    frame_length: u32,
    content: &[u8],
) -> (Vec<u8>, MessageId) {
    let context = EncryptionContext::from_pairs(context.iter().cloned()).unwrap();
    let parameters = SealParameters::begin(suite, context, frame_length, &mut SystemRandom::new()).unwrap();
    let (data_key, encrypted) = data_key(client, key, parameters.context()).await;
    finish(parameters, vec![encrypted], &data_key, content)
}

fn write(
    suite: Suite,
    context: EncryptionContext,
    frame_length: u32,
    encrypted: Vec<EncryptedDataKey>,
    data_key: &DataKey,
    content: &[u8],
) -> (Vec<u8>, MessageId) {
    let parameters = SealParameters::begin(suite, context, frame_length, &mut SystemRandom::new()).unwrap();
    finish(parameters, encrypted, data_key, content)
}

fn finish(
    parameters: SealParameters,
    encrypted: Vec<EncryptedDataKey>,
    data_key: &DataKey,
    content: &[u8],
) -> (Vec<u8>, MessageId) {
    let message_id = *parameters.message_id();
    let mut writer = MessageWriter::new(parameters, encrypted, data_key).unwrap();
    let mut message = writer.header().to_vec();
    writer.write(content, &mut message).unwrap();
    writer.finish(&mut message).unwrap();
    (message, message_id)
}

fn encrypted_data_key(message: &[u8]) -> (EncryptedDataKey, EncryptionContext) {
    let mut rest = message;
    let sealing::reader::Progress::Done(header) =
        sealing::reader::HeaderReader::new(Limits::answer()).push(&mut rest).unwrap()
    else {
        panic!("a whole header")
    };
    (header.encrypted_data_keys()[0].clone(), header.context().clone())
}

pub(super) const ACCOUNT: &str = "111122223333";
pub(super) const REGION: &str = "us-east-1";
pub(super) const MODEL: &str = "subrosa-intake";
const TENANT: &str = "clinic-7";
