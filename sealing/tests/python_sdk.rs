//! The official SDK as the oracle: what we seal, the AWS Encryption SDK for Python opens, and the other way round.
//!
//! The pinned packages go into a virtual environment under the target folder, once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs,
    reason = "a test program"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use sealing::SystemRandom;
use sealing::message::{DataKey, EncryptionContext, Limits, SIGNATURE_KEY, Suite};
use sealing::raw_aes::{Keyring, WrappingKey};
use sealing::reader::open_whole;
use sealing::writer::{MessageWriter, SealParameters};
use serde_json::{Value, json};

const NAMESPACE: &str = "subrosa";
const NAME: &str = "reply";
const KEY: [u8; 32] = [0x5A; 32];

/// One message to be sealed by one side and opened by the other.
struct Case {
    suite: Suite,
    context: BTreeMap<&'static str, &'static str>,
    frame_length: u32,
    plaintext: Vec<u8>,
}

/// Both suites, contexts empty, ASCII and not, sizes around the edges of frames.
fn cases() -> Vec<Case> {
    let contexts = [
        BTreeMap::new(),
        BTreeMap::from([("subrosa:tenant", "acme"), ("subrosa:purpose", "inference")]),
        BTreeMap::from([("ключ", "значение"), ("b", ""), ("a", "2"), ("\u{10FFFF}", "\u{FFFD}"), ("Z", "z")]),
    ];
    let mut cases = Vec::new();
    for suite in [Suite::Commit, Suite::CommitSigned] {
        for context in &contexts {
            for frame_length in [128_u32, 4_096] {
                let frame = usize::try_from(frame_length).unwrap();
                for length in [0, 1, frame - 1, frame, frame + 1, 2 * frame, 3 * frame + 17] {
                    let plaintext = (0..length).map(|at| (at * 7 % 256) as u8).collect();
                    cases.push(Case { suite, context: context.clone(), frame_length, plaintext });
                }
            }
        }
    }
    cases
}

fn keyring() -> Keyring {
    Keyring::new(NAMESPACE, NAME, WrappingKey::from_bytes(KEY)).unwrap()
}

fn seal(case: &Case) -> Vec<u8> {
    let mut random = SystemRandom::new();
    let context = EncryptionContext::from_pairs(case.context.clone()).unwrap();
    let parameters = SealParameters::begin(case.suite, context, case.frame_length, &mut random).unwrap();
    let data_key = DataKey::generate(&mut random).unwrap();
    let encrypted = keyring().wrap(&data_key, parameters.context(), &mut random).unwrap();
    let mut writer = MessageWriter::new(parameters, vec![encrypted], &data_key).unwrap();
    let mut message = writer.header().to_vec();
    for piece in case.plaintext.chunks(1_000) {
        writer.write(piece, &mut message).unwrap();
    }
    writer.finish(&mut message).unwrap();
    message
}

#[test]
fn what_we_seal_the_python_sdk_opens() {
    let cases = cases();
    let open: Vec<Value> = cases.iter().map(|case| json!({"message": hex::encode(seal(case))})).collect();
    let result = python(&json!({"open": open, "seal": []}));
    let opened = result["opened"].as_array().unwrap();
    assert_eq!(opened.len(), cases.len());
    for (case, opened) in cases.iter().zip(opened) {
        assert_eq!(opened["plaintext"], hex::encode(&case.plaintext), "{opened}");
        assert_eq!(opened["suite"], case.suite.id());
        assert_eq!(opened["frame_length"], case.frame_length);
        let mut context = opened["context"].as_object().unwrap().clone();
        assert_eq!(context.remove(SIGNATURE_KEY).is_some(), case.suite.is_signed());
        assert_eq!(Value::from(context), json!(case.context));
    }
}

#[test]
fn what_the_python_sdk_seals_we_open() {
    let cases = cases();
    let seal: Vec<Value> = cases
        .iter()
        .map(|case| {
            json!({
                "suite": case.suite.id(),
                "context": case.context,
                "frame_length": case.frame_length,
                "plaintext": hex::encode(&case.plaintext),
            })
        })
        .collect();
    let result = python(&json!({"open": [], "seal": seal}));
    let sealed = result["sealed"].as_array().unwrap();
    assert_eq!(sealed.len(), cases.len());
    for (case, sealed) in cases.iter().zip(sealed) {
        let message = hex::decode(sealed["message"].as_str().unwrap()).unwrap();
        let (header, plaintext) = open_whole(Limits::request(), &message, 1 << 20, |header| {
            keyring().unwrap(header.encrypted_data_keys(), header.context()).ok()
        })
        .unwrap();
        assert_eq!(plaintext.as_bytes(), case.plaintext);
        assert_eq!(header.suite(), case.suite);
        assert_eq!(header.frame_length(), case.frame_length);
        assert_eq!(header.message_id().to_string(), sealed["message_id"].as_str().unwrap());
        let mut context = header.context().as_map().clone();
        assert_eq!(context.remove(SIGNATURE_KEY).is_some(), case.suite.is_signed());
        assert!(context.iter().map(|(key, value)| (key.as_str(), value.as_str())).eq(case.context.clone()));
    }
}

/// That the oracle is one: it refuses what was changed.
#[test]
fn the_python_sdk_refuses_what_we_sealed_when_a_byte_is_changed() {
    let cases: Vec<Case> = cases().into_iter().filter(|case| case.plaintext.len() == 129).collect();
    let open: Vec<Value> = cases
        .iter()
        .map(|case| {
            let mut message = seal(case);
            let at = message.len() - 10;
            message[at] ^= 1;
            json!({"message": hex::encode(message)})
        })
        .collect();
    let result = python(&json!({"open": open, "seal": []}));
    assert_eq!(result["opened"].as_array().unwrap().len(), 6);
    assert!(result["opened"].as_array().unwrap().iter().all(|opened| opened["error"].is_string()));
}

/// Runs one job.
fn python(job: &Value) -> Value {
    let mut job = job.clone();
    job["key"] = json!({"namespace": NAMESPACE, "name": NAME, "bytes": hex::encode(KEY)});
    let mut child = Command::new(environment().join("bin/python"))
        .arg(folder().join("interop.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the virtual environment has a python");
    child.stdin.take().unwrap().write_all(job.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "interop.py failed; its error stands above");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The virtual environment with the pinned packages: made at the first run, and again when the pins change.
fn environment() -> &'static Path {
    static ENVIRONMENT: OnceLock<PathBuf> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        let requirements = folder().join("requirements.txt");
        let pins = ring::digest::digest(&ring::digest::SHA256, &fs::read(&requirements).unwrap());
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let ready = target.join(format!("python-sdk-{}", hex::encode(&pins.as_ref()[..8])));
        if !ready.is_dir() {
            eprintln!("installing the AWS Encryption SDK for Python into the target folder (once) ...");
            // Made beside, then renamed: an interrupted run leaves nothing that looks ready.
            let fresh = tempfile::Builder::new().prefix("python-sdk-").tempdir_in(target).unwrap().keep();
            let venv = Command::new("python3").args(["-m", "venv"]).arg(&fresh).status();
            assert!(venv.is_ok_and(|status| status.success()), "{MISSING}");
            let mut install = Command::new(fresh.join("bin/python"));
            install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r"]);
            assert!(install.arg(&requirements).status().is_ok_and(|status| status.success()), "{NOT_INSTALLED}");
            if fs::rename(&fresh, &ready).is_err() {
                // Another run was faster.
                assert!(ready.is_dir(), "the virtual environment could not be put at {}", ready.display());
                let _ = fs::remove_dir_all(&fresh);
            }
        }
        ready
    })
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python")
}

const MISSING: &str = "this test needs python3 (3.9 or later) with its venv and pip modules. \
    Debian, Ubuntu: apt install python3 python3-venv python3-pip; Fedora: dnf install python3 python3-pip; macOS: brew install python3";

const NOT_INSTALLED: &str = "pip could not install the packages of sealing/tests/python/requirements.txt: \
    it needs the Python package registry at the first run, or a mirror named in pip's own configuration";
