//! `subrosa seal`, `open`, `pack` and `policy render`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use support::{Ran, ran, run, run_with, subrosa};

const KEY: &str = "team/backup=000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fn seal(plaintext: &[u8], arguments: &[&str]) -> Vec<u8> {
    let output = run_with(subrosa().args(["seal", "--raw-aes", KEY]).args(arguments), plaintext);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn open(message: &[u8], arguments: &[&str]) -> (i32, Vec<u8>, String) {
    let output = run_with(subrosa().args(["open", "--raw-aes", KEY]).args(arguments), message);
    let Ran { code, stderr, .. } = ran(output.clone());
    (code, output.stdout, stderr)
}

fn plaintext(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 % 251) as u8).collect()
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn what_is_sealed_is_opened_again() {
    for length in [0, 1, 127, 128, 129, 65_536, 300_001] {
        for suite in ["0478", "0x0578"] {
            let sealed = seal(&plaintext(length), &["--suite", suite, "--frame-length", "128", "--context", "a=b=c"]);
            let (code, opened, stderr) = open(&sealed, &["--context", "a=b=c"]);
            assert_eq!(code, 0, "{stderr}");
            assert!(opened == plaintext(length), "{length} under {suite}");
        }
    }
}

#[test]
fn a_changed_message_leaves_no_file_and_a_clear_word() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let sealed = seal(&plaintext(1000), &["--frame-length", "256", "--suite", "0578"]);
    let places = [0, 5, 40, sealed.len() / 2, sealed.len() - 110, sealed.len() - 1];
    for at in places {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        let (code, _, stderr) = open(&changed, &["-o", out.to_str().unwrap()]);
        assert_eq!(code, 1, "byte {at}: {stderr}");
        assert!(stderr.contains("nothing was written"), "{stderr}");
        assert!(is_empty(folder.path()), "byte {at}");
    }
    for cut in [0, 1, 100, sealed.len() - 1] {
        assert_eq!(open(&sealed[..cut], &["-o", out.to_str().unwrap()]).0, 1, "cut at {cut}");
        assert!(is_empty(folder.path()), "cut at {cut}");
    }
    assert_eq!(open(&[&sealed[..], b"x"].concat(), &["-o", out.to_str().unwrap()]).0, 1);
    assert!(is_empty(folder.path()));
}

#[test]
fn a_good_message_replaces_the_file_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    fs::write(&out, "old").unwrap();
    let sealed = seal(b"new", &[]);
    assert_eq!(open(&sealed[..sealed.len() - 1], &["-o", out.to_str().unwrap()]).0, 1);
    assert_eq!(fs::read(&out).unwrap(), b"old");
    assert_eq!(open(&sealed, &["-o", out.to_str().unwrap()]).0, 0);
    assert_eq!(fs::read(&out).unwrap(), b"new");
}

#[test]
fn to_standard_output_plaintext_is_provisional_and_the_exit_code_says_so() {
    let sealed = seal(&plaintext(1000), &["--frame-length", "256"]);
    let (code, opened, stderr) = open(&sealed[..sealed.len() - 1], &[]);
    assert_eq!(code, 1);
    assert_eq!(opened, plaintext(1000)[..768]);
    assert!(stderr.contains("discard"), "{stderr}");
}

#[test]
fn a_message_for_another_key_name_or_context_is_refused() {
    let sealed = seal(b"x", &["--context", "project=rose"]);
    let other = |key: &str| ran(run_with(subrosa().args(["open", "--raw-aes", key]), &sealed));
    assert_eq!(other(&KEY.replace("1f", "20")).code, 1);
    assert_eq!(other(&KEY.replace("team", "gang")).code, 1);
    assert_eq!(other(&KEY.replace("backup", "other")).code, 1);
    let (code, opened, stderr) = open(&sealed, &["--context", "project=thorn"]);
    assert_eq!((code, opened.as_slice()), (1, &b""[..]));
    assert!(stderr.contains("expected `thorn`"), "{stderr}");
}

#[test]
fn the_header_is_told_as_json_only_for_a_whole_message() {
    let folder = tempfile::tempdir().unwrap();
    let header = folder.path().join("header.json");
    let path = header.to_str().unwrap();
    let sealed = seal(b"x", &["--context", "project=rose", "--frame-length", "512"]);
    assert_eq!(open(&sealed[..sealed.len() - 1], &["--json-header", path]).0, 1);
    assert!(is_empty(folder.path()));
    assert_eq!(open(&sealed, &["--json-header", path]).0, 0);
    let json: Value = serde_json::from_slice(&fs::read(&header).unwrap()).unwrap();
    assert_eq!(json["suite"], "0x0478");
    assert_eq!(json["frame_length"], 512);
    assert_eq!(json["encryption_context"]["project"], "rose");
    assert_eq!(json["encrypted_data_keys"][0]["provider_id"], "team");
    assert_eq!(json["message_id"].as_str().unwrap().len(), 64);
}

#[test]
fn json_tells_what_was_sealed_and_opened_when_the_result_is_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let sealed = run_with(subrosa().args(["seal", "--raw-aes", KEY, "--json", "-o", out.to_str().unwrap()]), b"four");
    let report: Value = serde_json::from_slice(&sealed.stdout).unwrap();
    assert_eq!((&report["plaintext_bytes"], &report["suite"]), (&4.into(), &"0x0478".into()));
    assert_eq!(report["message_bytes"], fs::metadata(&out).unwrap().len());
    let (code, report, stderr) = open(&fs::read(&out).unwrap(), &["--json", "-o", out.to_str().unwrap()]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(serde_json::from_slice::<Value>(&report).unwrap()["plaintext_bytes"], 4);
    assert_eq!(run(subrosa().args(["seal", "--raw-aes", KEY, "--json"])).code, 2, "standard output is taken");
}

#[test]
fn a_secret_is_never_part_of_an_error() {
    for wrong in [
        "team/backup=5ec2e7",
        "team=5ec2e7",
        "5ec2e7",
        "aws-kms/x=5ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e7",
    ] {
        let ran = ran(run_with(subrosa().args(["open", "--raw-aes", wrong]), b""));
        assert_eq!(ran.code, 2);
        assert!(!ran.stderr.contains("5ec2e7"), "{}", ran.stderr);
    }
}

#[test]
fn a_key_comes_from_a_file_or_the_environment_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let (_, digits) = KEY.split_once('=').unwrap();
    let sealed = seal(b"x", &[]);
    for content in [format!("{digits}\n").into_bytes(), hex::decode(digits).unwrap()] {
        fs::write(&file, content).unwrap();
        let key = format!("team/backup=@{}", file.display());
        assert_eq!(ran(run_with(subrosa().args(["open", "--raw-aes", &key]), &sealed)).stdout, "x");
    }
    let mut command = subrosa();
    command.args(["open", "--raw-aes", "team/backup=$BACKUP_KEY"]).env("BACKUP_KEY", digits);
    assert_eq!(ran(run_with(&mut command, &sealed)).stdout, "x");
}

#[test]
fn usage_errors_of_seal_end_with_exit_code_2() {
    for arguments in [
        &["seal"][..],
        &["seal", "--raw-aes", KEY, "--kms-key", "arn"],
        &["seal", "--raw-aes", KEY, "--suite", "0014"],
        &["seal", "--raw-aes", KEY, "--context", "nothing"],
        &["seal", "--raw-aes", KEY, "--context", "a=1", "--context", "a=2"],
        &["seal", "--raw-aes", KEY, "--context", "aws-crypto-x=1"],
        &["seal", "--raw-aes", KEY, "--frame-length", "0"],
    ] {
        assert_eq!(run(subrosa().args(arguments)).code, 2, "{arguments:?}");
    }
}

#[test]
fn an_interrupted_seal_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut child = subrosa()
        .args(["seal", "--raw-aes", KEY, "-o", out.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Held open: else the command would reach the end of its input.
    let stdin = child.stdin.take();
    let begun = (0..100).any(|_| {
        thread::sleep(Duration::from_millis(50));
        !is_empty(folder.path())
    });
    assert!(begun, "the temporary file never appeared");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(stdin);
    assert!(is_empty(folder.path()));
}

#[test]
fn a_pack_prints_the_digest_of_its_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let (model, pack) = (folder.path().join("x.gguf"), folder.path().join("pack.tar"));
    fs::write(&model, b"GGUF").unwrap();
    let arguments = ["pack", "--name", "demo", model.to_str().unwrap(), "-o", pack.to_str().unwrap()];
    let plain = run(subrosa().args(arguments));
    let json: Value = serde_json::from_str(&run(subrosa().args(arguments).arg("--json")).stdout).unwrap();
    assert_eq!(json["manifest_sha384"].as_str(), Some(plain.stdout.trim()));
    assert_eq!(json["manifest"]["files"][0]["path"], "model.gguf");
    let archive = fs::read(&pack).unwrap();
    let length = json["manifest"].to_string().len();
    let digest = ring::digest::digest(&ring::digest::SHA384, &archive[512..512 + length]);
    assert_eq!(hex::encode(digest), plain.stdout.trim());
    assert_eq!(run(subrosa().args(["pack", "--name", "../demo", "x", "-o", "y"])).code, 2);
}

#[test]
fn a_policy_is_rendered_from_roles_and_measurements() {
    let folder = tempfile::tempdir().unwrap();
    let measurements = folder.path().join("eif.json");
    let value = |byte: &str| byte.repeat(48);
    fs::write(
        &measurements,
        format!(
            r#"{{"Measurements":{{"HashAlgorithm":"x","PCR0":"{}","PCR1":"{}","PCR2":"{}"}}}}"#,
            value("a0"),
            value("a1"),
            value("a2")
        ),
    )
    .unwrap();
    let pcr16 = format!("16={}", value("b6"));
    let shared = [
        "--account",
        "111122223333",
        "--administrator",
        "role/admin",
        "--enclave-role",
        "arn:aws:iam::444455556666:role/enclave",
    ];
    let render = |arguments: &[&str]| run(subrosa().args(["policy", "render"]).args(arguments).args(shared));
    let customer =
        ["customer-key", "--prompt-writer", "role/app", "--answer-reader", "role/reader", "--tenant", "acme"];

    let with = [&customer[..], &["--measurements", measurements.to_str().unwrap(), "--pcr", &pcr16]].concat();
    let ran = render(&with);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let policy: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(policy["Version"], "2012-10-17");
    for part in [
        "arn:aws:iam::111122223333:role/app",
        "arn:aws:iam::444455556666:role/enclave",
        &value("a0"),
        &value("b6"),
        "acme",
    ] {
        assert!(ran.stdout.contains(part), "{part}");
    }

    assert_eq!(render(&customer).code, 2, "without measurements");
    let zeros = [("0", "00"), ("1", "a1"), ("2", "a2")].map(|(index, byte)| format!("{index}={}", value(byte)));
    let zero: Vec<&str> =
        customer.iter().copied().chain(zeros.iter().flat_map(|pcr| ["--pcr", pcr.as_str()])).collect();
    let ran = render(&zero);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("all zeros"), "{}", ran.stderr);

    let pack = [
        "model-pack-key",
        "--model-supplier",
        "role/release",
        "--model",
        "demo",
        "--measurements",
        measurements.to_str().unwrap(),
    ];
    assert_eq!(render(&pack).code, 0);
    assert_eq!(render(&[&pack[..], &["--pcr", &pcr16]].concat()).code, 2, "PCR16 is extended after the packs are open");
}

#[test]
fn every_subcommand_explains_itself_with_an_example() {
    for name in [
        &["ask"][..],
        &["verify"],
        &["seal"],
        &["open"],
        &["pack"],
        &["policy", "render", "customer-key"],
        &["policy", "render", "model-pack-key"],
    ] {
        let ran = run(subrosa().args(name).arg("--help"));
        assert_eq!(ran.code, 0);
        assert!(ran.stdout.contains("Example") && ran.stdout.contains("subrosa "), "{name:?}");
    }
}
