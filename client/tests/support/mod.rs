//! A KMS that gives one data key, a parent that may do anything, and the command between them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealing::SystemRandom;
use sealing::http::{Request, ResponseHead, SsePacker};
use sealing::message::{DataKey, EncryptedDataKey, EncryptionContext, Limits, MessageId, Suite};
use sealing::raw_aes::{Keyring, WrappingKey};
use sealing::reader::open_whole;
use sealing::writer::{MessageWriter, SealParameters};
use serde_json::{Value, json};

pub const ARN: &str = "arn:aws:kms:us-east-1:111122223333:key/0d990263-da56-4c63-9736-4d1c0a24a2f1";
pub const DATA_KEY: [u8; 32] = [0x42; 32];
pub const TENANT: &str = "acme";

/// What KMS does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kms {
    Good,
    Denies,
}

/// A server for each connection of which `handle` runs on a thread of its own. It lives as long as the test.
pub fn serve(handle: impl Fn(TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let handle = Arc::new(handle);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, handle) = (stream.unwrap(), Arc::clone(&handle));
            thread::spawn(move || handle(stream));
        }
    });
    url
}

/// The two servers, and what they saw.
pub struct World {
    pub parent: String,
    pub kms: String,
    pub kms_calls: Arc<AtomicUsize>,
    pub sealed: Arc<AtomicUsize>,
}

impl World {
    /// A parent that treats the sealed request, opened for it, and its connection as `act` says.
    pub fn new(kms: Kms, act: impl Fn(&Asked, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let (kms_calls, sealed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (calls, posts) = (Arc::clone(&kms_calls), Arc::clone(&sealed));
        Self {
            kms: serve(move |stream| serve_kms(stream, kms, &calls)),
            parent: serve(move |mut stream| {
                let (line, _, body) = read_request(&mut stream);
                if line.starts_with("POST /v1/sealed") {
                    posts.fetch_add(1, Ordering::SeqCst);
                    act(&Asked::open(&body), &mut stream);
                } else {
                    // Anything but evidence.
                    respond(&mut stream, 200, "application/json", br#"{"document":"hEShATgi","keyset":"oA=="}"#);
                }
                let _ = stream.flush();
            }),
            kms_calls,
            sealed,
        }
    }

    /// The command with its usual arguments and these.
    pub fn ask(&self, arguments: &[&str]) -> Command {
        let mut command = subrosa();
        command
            .args(["ask", "--url", &self.parent, "--kms-key", ARN, "--tenant", TENANT, "--model", "m"])
            .args(arguments)
            .env("AWS_ENDPOINT_URL_KMS", &self.kms);
        if !arguments.contains(&"--timeout") {
            command.args(["--timeout", "20"]);
        }
        command
    }

    pub fn posts(&self) -> usize {
        self.sealed.load(Ordering::SeqCst)
    }
}

/// The command in an environment that holds nothing but test credentials.
pub fn subrosa() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_subrosa"));
    command
        .env_clear()
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
        .env("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .stdin(Stdio::null());
    command
}

/// How a command went.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

pub fn run(command: &mut Command) -> Ran {
    ran(command.output().unwrap())
}

pub fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs the command with bytes on its standard input.
pub fn run_with(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// A sealed request, opened: what an enclave knows of it.
pub struct Asked {
    pub bytes: Vec<u8>,
    pub id: MessageId,
    pub reply_key: Option<[u8; 32]>,
    pub enclave: Option<String>,
    pub body: Value,
    pub context: BTreeMap<String, String>,
}

impl Asked {
    fn open(bytes: &[u8]) -> Self {
        let (header, plaintext) =
            open_whole(Limits::request(), bytes, 1 << 20, |_| Some(DataKey::from_bytes(DATA_KEY))).unwrap();
        let mut request = Request::parse(plaintext.as_bytes()).unwrap();
        Self {
            bytes: bytes.to_vec(),
            id: *header.message_id(),
            reply_key: request.take_reply_key().map(|key| *key.expose()),
            enclave: request.enclave().map(str::to_owned),
            body: serde_json::from_slice(request.body()).unwrap(),
            context: header.context().as_map().clone(),
        }
    }
}

/// An answer, good unless a test changes it.
pub struct Forged {
    pub in_reply_to: MessageId,
    pub tenant: String,
    pub purpose: String,
    pub suite: Suite,
    pub status: u16,
    pub content_type: String,
    pub body: Vec<u8>,
    pub under: Under,
    pub extra: Option<(String, String)>,
}

pub enum Under {
    Reply([u8; 32]),
    /// A key in KMS of this ARN.
    Kms(String),
}

impl Forged {
    /// The good answer.
    pub fn to(asked: &Asked) -> Self {
        Self {
            in_reply_to: asked.id,
            tenant: TENANT.to_owned(),
            purpose: "answer".to_owned(),
            suite: Suite::Commit,
            status: 200,
            content_type: "text/event-stream".to_owned(),
            body: events(&["Hello", ", ", "world"]),
            under: asked.reply_key.map_or_else(|| Under::Kms(ARN.to_owned()), Under::Reply),
            extra: None,
        }
    }

    pub fn seal(&self) -> Vec<u8> {
        let mut random = SystemRandom::new();
        let mut context =
            EncryptionContext::from_pairs([("subrosa:tenant", &self.tenant), ("subrosa:purpose", &self.purpose)])
                .unwrap();
        if let Some((key, value)) = &self.extra {
            context.insert(key, value).unwrap();
        }
        let parameters = SealParameters::begin(self.suite, context, 512, &mut random).unwrap();
        let (key, wrapped) = match &self.under {
            Under::Reply(key) => {
                let data_key = DataKey::generate(&mut random).unwrap();
                let keyring = Keyring::reply(WrappingKey::from_bytes(*key));
                let wrapped = keyring.wrap(&data_key, parameters.context(), &mut random).unwrap();
                (data_key, wrapped)
            }
            Under::Kms(arn) => {
                let (provider_id, provider_info) = ("aws-kms".to_owned(), arn.clone().into_bytes());
                let wrapped = EncryptedDataKey { provider_id, provider_info, ciphertext: b"blob".to_vec() };
                (DataKey::from_bytes(DATA_KEY), wrapped)
            }
        };
        let mut writer = MessageWriter::new(parameters, vec![wrapped], &key).unwrap();
        let head = ResponseHead {
            status: self.status,
            in_reply_to: self.in_reply_to,
            content_type: self.content_type.clone(),
            content_length: None,
            key_policy: None,
        };
        let mut message = writer.header().to_vec();
        writer.write(head.to_frames(512).unwrap().as_bytes(), &mut message).unwrap();
        writer.write(&self.body, &mut message).unwrap();
        writer.finish(&mut message).unwrap();
        message
    }
}

/// The body of a streamed answer, one frame for each piece.
pub fn events(pieces: &[&str]) -> Vec<u8> {
    let mut packer = SsePacker::new(512).unwrap();
    let mut body = Vec::new();
    for piece in pieces {
        let chunk =
            json!({"model": "m", "choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": null}]});
        packer.push_event(&chunk.to_string()).unwrap();
        body.extend_from_slice(packer.frame().as_bytes());
    }
    let last = json!({
        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": pieces.len(), "total_tokens": 7 + pieces.len()},
    });
    packer.push_event(&last.to_string()).unwrap();
    packer.push_event("[DONE]").unwrap();
    while !packer.is_empty() {
        body.extend_from_slice(packer.frame().as_bytes());
    }
    body
}

pub const SEALED: &str = "application/vnd.aws-encryption-sdk";

/// Writes a whole answer. A client that has gone is no failure of the server.
pub fn respond(stream: &mut TcpStream, status: u16, media_type: &str, body: &[u8]) {
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

/// The head of a sealed answer whose length is not stated: it ends with the connection.
pub fn begin(stream: &mut TcpStream) {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {SEALED}\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all(head.as_bytes());
}

/// First line, header fields, body.
fn read_request(stream: &mut TcpStream) -> (String, BTreeMap<String, String>, Vec<u8>) {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    let mut fields = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        fields.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = fields.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    (first, fields, body)
}

fn serve_kms(mut stream: TcpStream, kms: Kms, calls: &AtomicUsize) {
    let (_, fields, body) = read_request(&mut stream);
    calls.fetch_add(1, Ordering::SeqCst);
    let body: Value = serde_json::from_slice(&body).unwrap();
    let answer = match (kms, fields["x-amz-target"].as_str()) {
        (Kms::Denies, _) => {
            let denied = json!({"__type": "AccessDeniedException", "message": "User is not authorized to perform: kms:GenerateDataKey"});
            respond(&mut stream, 400, "application/x-amz-json-1.1", denied.to_string().as_bytes());
            return;
        }
        (Kms::Good, "TrentService.GenerateDataKey") => {
            assert_eq!(body["EncryptionContext"]["subrosa:purpose"], "inference");
            json!({"KeyId": ARN, "Plaintext": STANDARD.encode(DATA_KEY), "CiphertextBlob": STANDARD.encode("blob")})
        }
        (Kms::Good, "TrentService.Decrypt") => {
            assert_eq!(body["EncryptionContext"]["subrosa:purpose"], "answer");
            json!({"KeyId": body["KeyId"], "Plaintext": STANDARD.encode(DATA_KEY), "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"})
        }
        (Kms::Good, other) => panic!("{other}"),
    };
    respond(&mut stream, 200, "application/x-amz-json-1.1", answer.to_string().as_bytes());
}

/// Keeps what a thread saw.
pub type Seen<T> = Arc<Mutex<Option<T>>>;
