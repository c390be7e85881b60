//! `subrosa verify` over every third-party attestation document, as its index says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod support;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use support::{run, subrosa};

fn main() -> ExitCode {
    vectors::run("attestation", |folder| {
        let index: Value =
            serde_json::from_slice(&std::fs::read(folder.join("attestation/index.json")).unwrap()).unwrap();
        let mut trials: Vec<Trial> =
            index.as_array().unwrap().iter().flat_map(|entry| of_document(folder, entry.clone())).collect();
        trials.push(claim("a document without a signature is refused", {
            let path = folder.join("attestation/qemu-unsigned.hex");
            move || assert_eq!(verify(&path, &[]).0, 5)
        }));
        trials
    })
}

fn claim(name: impl Into<String>, check: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        check();
        Ok(())
    })
}

/// Exit code and result of the command.
fn verify(path: &Path, arguments: &[&str]) -> (i32, Value) {
    let ran = run(subrosa().args(["verify", "--json", "--document", path.to_str().unwrap()]).args(arguments));
    (ran.code, serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{} {}", ran.stdout, ran.stderr)))
}

/// What the command tells a person.
fn text(path: &Path, arguments: &[&str]) -> String {
    run(subrosa().args(["verify", "--document", path.to_str().unwrap()]).args(arguments)).stdout
}

fn statuses(report: &Value) -> [String; 3] {
    ["signature", "freshness", "measurements"].map(|question| report[question]["status"].as_str().unwrap().to_owned())
}

fn of_document(folder: &Path, entry: Value) -> Vec<Trial> {
    let file = entry["file"].as_str().unwrap().to_owned();
    let path = folder.join(&file);
    let at = entry["time_utc"].as_str().unwrap_or("2026-01-01T00:00:00Z").to_owned();
    let expected = entry["expected"].as_str().unwrap().to_owned();
    let anchors = folder.to_owned();
    match expected.as_str() {
        "valid" => of_valid(file, path, at, entry),
        "valid-debug" => vec![claim(format!("{file}: debug mode is refused unless allowed"), move || {
            let (code, report) = verify(&path, &["--at", &at]);
            assert_eq!((code, statuses(&report)), (5, ["good", "not-checked", "failed"].map(str::to_owned)));
            assert!(report["measurements"]["error"].as_str().unwrap().contains("debug mode"));
            assert_eq!(report["debug_mode"], true);
            let (code, report) = verify(&path, &["--at", &at, "--danger-allow-debug"]);
            assert_eq!((code, statuses(&report)), (0, ["good", "not-checked", "not-checked"].map(str::to_owned)));
            assert_eq!(report["debug_mode"], true, "also where it is allowed");
            // Zero is what every image has in debug mode: it pins none.
            let zero = format!("0={}", "00".repeat(48));
            let (code, report) = verify(&path, &["--at", &at, "--danger-allow-debug", "--pcr", &zero]);
            assert_eq!((code, &report["measurements"]["image_pinned"]), (0, &json!(false)));
            for allowed in [&["--danger-allow-debug"][..], &[]] {
                let told = text(&path, &[&["--at", at.as_str()][..], allowed].concat());
                assert!(told.contains("DEBUG MODE: the parent can read this enclave's memory"), "{told}");
            }
        })],
        "reject:root" => vec![claim(format!("{file}: another root is refused unless it is given"), move || {
            let (code, report) = verify(&path, &["--at", &at]);
            assert_eq!((code, &report["signature"]["status"]), (5, &json!("failed")));
            // A root that it does not lead to changes nothing, and is never called AWS's when it is not.
            let root = anchors.join("root/aws-nitro-enclaves-root-g1.pem");
            let (code, report) = verify(&path, &["--at", &at, "--danger-root", root.to_str().unwrap()]);
            assert_eq!((code, &report["aws_root"]), (5, &json!(true)));
        })],
        _ => vec![claim(format!("{file}: {expected}"), move || {
            let (code, report) = verify(&path, &["--at", &at]);
            assert_eq!((code, &report["verdict"]), (5, &json!("failed")));
            assert_eq!(report["signature"]["status"], "failed");
            if expected == "reject:not-an-enclave" {
                assert!(report["signature"]["error"].as_str().unwrap().contains("NitroTPM"));
            }
        })],
    }
}

fn of_valid(file: String, path: PathBuf, at: String, entry: Value) -> Vec<Trial> {
    let window: Vec<String> =
        entry["chain_window"].as_array().unwrap().iter().map(|time| time.as_str().unwrap().to_owned()).collect();
    let pcr0 = entry["pcrs_nonzero"]["0"].as_str().unwrap().to_owned();
    let nonce = entry["nonce_hex"].as_str().map(str::to_owned);
    let module = entry["module_id"].clone();
    let checks = path.clone();
    let time = at.clone();
    let good = claim(format!("{file}: is good, and what was not asked for is not checked"), move || {
        let (code, report) = verify(&checks, &["--at", &time]);
        assert_eq!((code, statuses(&report)), (0, ["good", "not-checked", "not-checked"].map(str::to_owned)));
        assert_eq!(
            (&report["verdict"], &report["aws_root"], &report["module_id"]),
            (&json!("good"), &json!(true), &module)
        );
        assert_eq!(report["pcrs"]["0"].as_str(), Some(pcr0.as_str()));
        let pin = format!("0={pcr0}");
        let (code, report) = verify(&checks, &["--at", &time, "--pcr", &pin, "--max-age", "1"]);
        assert_eq!((code, statuses(&report)), (0, ["good", "good", "good"].map(str::to_owned)));
    });
    let checks = path.clone();
    let time = at.clone();
    let wrong = claim(format!("{file}: another nonce or measurement fails its own question only"), move || {
        let other = format!("0={}", "ab".repeat(48));
        let (code, report) = verify(&checks, &["--at", &time, "--pcr", &other]);
        assert_eq!((code, statuses(&report)), (5, ["good", "not-checked", "failed"].map(str::to_owned)));
        let (code, report) = verify(&checks, &["--at", &time, "--nonce", "00112233445566778899aabbccddeeff"]);
        assert_eq!((code, statuses(&report)), (5, ["good", "failed", "not-checked"].map(str::to_owned)));
        // The longest nonces of the field are of 256 bytes.
        if let Some(nonce) = nonce {
            assert_eq!(verify(&checks, &["--at", &time, "--nonce", &nonce]).0, 0);
        }
    });
    let checks = path.clone();
    let outside = claim(format!("{file}: outside its window only the signature fails"), move || {
        let (code, report) = verify(&checks, &[]);
        assert_eq!((code, statuses(&report)), (5, ["failed", "not-checked", "not-checked"].map(str::to_owned)));
        assert_eq!(verify(&checks, &["--at", &window[1]]).0, 0, "the last second is inside");
        let before = window[0].replace("+00:00", "-00:01");
        let earlier = verify(&checks, &["--at", &before]).1;
        let day = window[0][..10].to_owned();
        assert!(["good", "failed"].contains(&earlier["signature"]["status"].as_str().unwrap()), "{day}");
        assert_eq!(verify(&checks, &["--at", "2021-01-01T00:00:00Z"]).1["signature"]["status"], "failed");
    });
    let checks = path.clone();
    let time = at.clone();
    let registers = entry["pcrs_nonzero"].clone();
    let image = claim(format!("{file}: measurements without PCR0 pin no image, and the verdict says so"), move || {
        let pin = |index: &str| format!("{index}={}", registers[index].as_str().unwrap());
        let pinned = |pins: &[&str]| {
            let arguments: Vec<&str> =
                ["--at", time.as_str()].into_iter().chain(pins.iter().flat_map(|pin| ["--pcr", *pin])).collect();
            let (code, report) = verify(&checks, &arguments);
            assert_eq!((code, &report["debug_mode"]), (0, &json!(false)));
            let told = text(&checks, &arguments);
            assert!(!told.contains("DEBUG"), "{told}");
            (
                report["measurements"]["status"].as_str().unwrap().to_owned(),
                report["measurements"]["image_pinned"].as_bool().unwrap(),
                told.contains("PCR0 was not among them: no image is pinned"),
            )
        };
        assert_eq!(pinned(&[&pin("1")]), ("good".to_owned(), false, true));
        assert_eq!(pinned(&[&pin("0"), &pin("1")]), ("good".to_owned(), true, false));
        assert_eq!(pinned(&[]), ("not-checked".to_owned(), false, false));
    });
    let forms = claim(format!("{file}: reads the same in every encoding"), move || {
        let bytes = std::fs::read(&path).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let object = json!({"document": STANDARD.encode(&bytes)}).to_string();
        for text in [STANDARD.encode(&bytes), hex::encode(&bytes), object] {
            let copy = folder.path().join("evidence");
            std::fs::write(&copy, text).unwrap();
            assert_eq!(verify(&copy, &["--at", &at]).0, 0);
        }
        let copy = folder.path().join("evidence");
        let keyset = json!({"document": STANDARD.encode(&bytes), "keyset": "oA=="}).to_string();
        std::fs::write(&copy, keyset).unwrap();
        let (code, report) = verify(&copy, &["--at", &at]);
        assert_eq!((code, &report["keyset"]["status"]), (5, &json!("failed")));
    });
    vec![good, wrong, outside, image, forms]
}
