//! Arguments that are refused, or about which the command warns.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod support;

use std::fs;

use serde_json::Value;
use support::{ran, run, run_with, subrosa};

const DIGITS: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// Exit code of sealing under this raw key, with `$BACKUP_KEY` of this value.
fn seal(key: &str, variable: &str) -> i32 {
    let mut command = subrosa();
    command.args(["seal", "--raw-aes", &format!("team/backup={key}")]).env("BACKUP_KEY", variable);
    let ran = ran(run_with(&mut command, b"x"));
    assert!(ran.code == 0 || ran.stderr.contains("64 hex digits"), "{}", ran.stderr);
    ran.code
}

#[test]
fn a_key_in_text_is_64_hex_digits_and_never_32_characters() {
    assert_eq!((seal(DIGITS, ""), seal("$BACKUP_KEY", DIGITS)), (0, 0));
    for wrong in ["correct horse battery staple 123", &DIGITS[..32], &DIGITS[..62], &format!("{DIGITS}00"), ""] {
        assert_eq!((seal(wrong, ""), seal("$BACKUP_KEY", wrong)), (2, 2), "{wrong}");
    }
}

#[test]
fn a_key_file_of_32_hex_digits_is_half_a_key_and_not_32_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let key = format!("@{}", file.display());
    for (content, code) in [
        (DIGITS.as_bytes(), 0),
        (&hex::decode(DIGITS).unwrap(), 0),
        (&DIGITS.as_bytes()[..32], 2),
        (&[&DIGITS.as_bytes()[..31], b"\n"].concat(), 2),
        (&[&DIGITS.as_bytes()[..32], b"\n"].concat(), 2),
        (&[0x80; 31], 2),
        (b"", 2),
    ] {
        fs::write(&file, content).unwrap();
        assert_eq!(seal(&key, ""), code, "{content:?}");
    }
}

/// Standard error of rendering with the enclave's role in this account; standard output is the policy and nothing else.
fn render(template: &[&str], enclave_account: &str, pcrs: &[u8]) -> String {
    let enclave = format!("arn:aws:iam::{enclave_account}:role/enclave");
    let mut command = subrosa();
    command.args(["policy", "render"]).args(template);
    command.args(["--account", "111122223333", "--administrator", "role/admin", "--enclave-role", &enclave]);
    for index in pcrs {
        command.args(["--pcr", &format!("{index}={}", "a1".repeat(48))]);
    }
    let ran = run(&mut command);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap()["Version"], "2012-10-17");
    ran.stderr
}

const CUSTOMER: [&str; 5] = ["customer-key", "--prompt-writer", "role/app", "--answer-reader", "role/reader"];
const MODEL_PACK: [&str; 3] = ["model-pack-key", "--model-supplier", "role/release"];

#[test]
fn a_policy_that_leaves_something_open_is_rendered_with_a_warning_that_names_it() {
    let warned = render(&CUSTOMER, "444455556666", &[0, 1, 2]);
    assert!(warned.contains("PCR17 is not given: the key opens to this image under any configuration"), "{warned}");
    assert!(warned.contains("PCR16 is not given") && warned.contains("any model"), "{warned}");
    assert_eq!(render(&CUSTOMER, "444455556666", &[0, 1, 2, 16, 17]), "");
    let warned = render(&MODEL_PACK, "444455556666", &[0, 1, 2]);
    assert!(warned.contains("PCR17") && !warned.contains("PCR16"), "{warned}");
    assert_eq!(render(&MODEL_PACK, "444455556666", &[0, 1, 2, 17]), "");
}

#[test]
fn a_policy_whose_roles_share_the_enclaves_account_is_rendered_with_a_warning() {
    let words = "whoever administers IAM in account 111122223333 can take both roles";
    let warned = render(&CUSTOMER, "111122223333", &[0, 1, 2, 16, 17]);
    assert!(warned.contains(words) && warned.contains("answer_readers"), "{warned}");
    assert!(render(&MODEL_PACK, "111122223333", &[0, 1, 2, 17]).contains(words));
}

#[test]
fn commands_that_use_kms_say_which_profiles_they_do_not_read() {
    for name in [&["ask", "--help"][..], &["seal", "--help"], &["open", "--help"], &["--help"]] {
        let ran = run(subrosa().args(name));
        assert!(ran.stdout.contains("AWS SSO and credential_process profiles are not supported"), "{}", ran.stdout);
    }
}

#[test]
fn a_release_floor_is_for_a_live_enclave_only() {
    assert_eq!(run(subrosa().args(["verify", "--document", "-", "--min-release", "3"])).code, 2);
}
