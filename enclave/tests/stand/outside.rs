//! What the enclave's doors open to: the module's socket, the parent's two ports, KMS for the customer, and the model pack.

use std::net::SocketAddr;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use attestation::UnixMillis;
use aws_nitro_enclaves_nsm_api::api::Request;
use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use ring::digest;
use serde_json::json;
use simulator::authority::Authority;
use simulator::kms;
use simulator::nsm::{Client, Module, ModuleSettings, Registers, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};
use tokio::task::JoinSet;

use super::{MODEL, REGION};

/// A module that signs, on a thread of its own, behind its socket.
pub(super) fn module(authority: Arc<Authority>, debug: bool, lock_pcr17: bool) -> Client {
    let millis = || UnixMillis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64);
    let registers = Registers { pcr0: [1; 48], pcr1: [2; 48], pcr2: [3; 48], role_arn: None };
    let instance_id = "i-0123456789abcdef0".to_owned();
    let settings = ModuleSettings { region: REGION.to_owned(), instance_id, registers, debug };
    let mut module = Module::new(authority, &settings, millis()).unwrap();
    if lock_pcr17 {
        module.handle(Request::LockPCR { index: 17 }, millis());
    }
    let (ours, theirs) = StdUnixStream::pair().unwrap();
    std::thread::spawn(move || serve(ours, &mut module, millis));
    Client::new(theirs)
}

pub(super) fn host_services(
    tasks: &mut JoinSet<()>,
    door: &Path,
    after: Duration,
    configuration: String,
    pack: Vec<u8>,
    mut cut_pack_at: Option<usize>,
) {
    let path = format!("{}_8000", door.display());
    tasks.spawn(async move {
        tokio::time::sleep(after).await;
        let listener = UnixListener::bind(path).unwrap();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut request).await.unwrap();
            }
            let request = String::from_utf8(request).unwrap();
            let range = request.lines().find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-'));
            let from: usize = range.map_or(0, |from| from.parse().unwrap());
            let mut head = "HTTP/1.1 200 OK".to_owned();
            let mut body = match request.split(' ').nth(1).unwrap() {
                "/v1/configuration" => configuration.clone().into_bytes(),
                "/v1/credentials" => {
                    br#"{"AccessKeyId":"AKIATEST","SecretAccessKey":"secret","Expiration":"2099-01-01T00:00:00Z"}"#
                        .to_vec()
                }
                "/v1/model-packs/subrosa-intake" => {
                    if from > 0 {
                        let last = pack.len() - 1;
                        head = format!("HTTP/1.1 206 Partial\r\ncontent-range: bytes {from}-{last}/{}", pack.len());
                    }
                    pack[from..].to_vec()
                }
                _ => Vec::new(),
            };
            let length = body.len();
            if request.contains("model-packs")
                && let Some(at) = cut_pack_at.take()
            {
                body.truncate(at);
            }
            let head = format!("{head}\r\ncontent-length: {length}\r\n\r\n");
            let _ = stream.write_all(&[head.into_bytes(), body].concat()).await;
        }
    });
}

pub(super) fn tunnel(tasks: &mut JoinSet<()>, door: &Path, kms: SocketAddr, tunnelled: Arc<AtomicUsize>) {
    let listener = UnixListener::bind(format!("{}_8443", door.display())).unwrap();
    tasks.spawn(async move {
        loop {
            let (mut inside, _) = listener.accept().await.unwrap();
            tunnelled.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut outside = TcpStream::connect(kms).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
            });
        }
    });
}

pub(super) fn sdk(kms: &kms::Handle) -> aws_sdk_kms::Client {
    use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
    use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
    let trust = TrustStore::empty().with_pem_certificate(kms.ca_pem().as_bytes());
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .tls_context(TlsContext::builder().with_trust_store(trust).build().unwrap())
        .build_https();
    let configuration = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(kms.url())
        .credentials_provider(Credentials::new("AKIATEST", "secret", None, None, "test"))
        .http_client(http)
        .build();
    aws_sdk_kms::Client::from_conf(configuration)
}

/// A ustar archive of a manifest and the demonstration model, which is changed after it was listed.
pub(super) fn archive(change: fn(Vec<u8>) -> Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/demo-model/subrosa-intake.gguf");
    let model = std::fs::read(path).unwrap();
    let sha384 = |bytes: &[u8]| digest::digest(&digest::SHA384, bytes).as_ref().to_vec();
    let manifest = json!({"version": 1, "name": MODEL, "files": [
        {"path": "model.gguf", "size": model.len(), "sha384": hex::encode(sha384(&model))}]});
    let manifest = manifest.to_string().into_bytes();
    let model = change(model);
    let mut out = Vec::new();
    for (name, content) in [("manifest.json", &manifest), ("model.gguf", &model)] {
        let mut block = [0_u8; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, b"0000644\x000000000\x000000000\x00");
        put(124, format!("{:011o}\0", content.len()).as_bytes());
        put(136, b"00000000000\x00        0");
        put(257, b"ustar\x0000");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&block);
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    (out, sha384(&manifest))
}
