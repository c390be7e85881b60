//! `subrosa policy` and `subrosa rotate`, as an operator and a CI job run them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    reason = "tests"
)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use attestation::measurement::extend;
use ring::digest::{SHA384, digest};
use serde_json::{Value, json};
use support::{Ran, ran, run, run_with, subrosa};
use tempfile::TempDir;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const ENCLAVE: &str = "arn:aws:iam::444455556666:role/enclave";
const ROLES: [&str; 10] = [
    "--account",
    "111122223333",
    "--administrator",
    "role/admin",
    "--prompt-writer",
    "role/app",
    "--answer-reader",
    "role/reader",
    "--role",
    ENCLAVE,
];

/// A folder with two releases, their configurations and a manifest.
struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bench = Self(folder);
        for (name, byte) in [("a", 0xa0), ("b", 0xb0)] {
            let pcr = |index: u8| hex::encode([byte + index; 48]);
            let measured = json!({"Measurements": {"HashAlgorithm": "Sha384 { ... }", "PCR0": pcr(0), "PCR1": pcr(1), "PCR2": pcr(2)}});
            bench.write(&format!("{name}.json"), &measured.to_string());
            let manifest = json!({"version": 1, "name": name, "files": []}).to_string();
            bench.write(&format!("{name}-manifest.json"), &manifest);
            let model = json!({"name": "intake", "manifest_sha384": hex::encode(sha384(manifest.as_bytes())), "model": "m", "version": "1"});
            bench.write(
                &format!("{name}-config.json"),
                &json!({"version": 1, "region": "us-east-1", "models": [model]}).to_string(),
            );
        }
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    fn read(&self, name: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path(name)).unwrap()).unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        run(subrosa().current_dir(self.0.path()).args(arguments))
    }

    fn render(&self, to: &str, code: &[&str]) {
        let ran = self.run(&[&["policy", "render", "customer-key"], &ROLES[..], code, &["-o", to]].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }

    fn check(&self, policy: &str, more: &[&str]) -> (i32, Value) {
        let ran = self.run(&[&["policy", "check", policy, "--role", ENCLAVE, "--json"], more].concat());
        (ran.code, serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{} {}", ran.stdout, ran.stderr)))
    }

    /// What `subrosa verify --json` prints of an enclave of this release, seconds ago.
    fn seen(&self, file: &str, id: &str, release: &str, seconds: i64) {
        let made = OffsetDateTime::now_utc() - time::Duration::seconds(seconds);
        let digest = self.read(&format!("{release}.json"))["Measurements"]["PCR0"].clone();
        let good = json!({"status": "good", "error": null});
        let seen = json!({"verdict": "good", "aws_root": true, "timestamp": made.format(&Rfc3339).unwrap(), "module_id": id,
            "pcrs": {"0": digest}, "signature": good, "freshness": good});
        self.write(file, &seen.to_string());
    }
}

fn sha384(bytes: &[u8]) -> [u8; 48] {
    digest(&SHA384, bytes).as_ref().try_into().unwrap()
}

fn kinds(report: &Value, list: &str) -> Vec<String> {
    report[list].as_array().unwrap().iter().map(|finding| finding["kind"].as_str().unwrap().to_owned()).collect()
}

const BOTH: [&str; 8] =
    ["--measurements", "a.json", "--measurements", "b.json", "--config", "a-config.json", "--config", "b-config.json"];

#[test]
fn a_rendered_policy_is_closed_to_its_images_and_open_to_an_image_that_is_not_among_them() {
    let bench = Bench::new();
    bench.render("policy.json", &BOTH);
    let (code, report) = bench.check("policy.json", &[&BOTH[..], &["--strict"]].concat());
    assert_eq!((code, report["verdict"].as_str()), (0, Some("closed")), "{report}");
    assert_eq!(kinds(&report, "could_open"), ["put-key-policy"]);
    let digest = hex::encode(sha384(&fs::read(bench.path("policy.json")).unwrap()));
    assert_eq!(report["digest"], digest.as_str());
    // Against one image alone, the other is an open path.
    let (code, report) = bench.check("policy.json", &["--measurements", "a.json", "--config", "a-config.json"]);
    assert_eq!(code, 5);
    assert!(kinds(&report, "open").iter().all(|kind| kind == "other-image"), "{report}");
}

#[test]
fn each_image_is_bound_to_its_own_models_and_configuration() {
    let bench = Bench::new();
    bench.render("paired.json", &BOTH);
    let policy = bench.read("paired.json");
    let statement = |sid: &str| policy["Statement"].as_array().unwrap().iter().any(|s| s["Sid"] == sid);
    assert!(statement("Images1OnlyWithTheirPcr16") && statement("Images2OnlyWithTheirPcr17"));
    // The registers are those of the protocol.
    let text = policy.to_string();
    for name in ["a", "b"] {
        let file = |part: &str| fs::read(bench.path(&format!("{name}-{part}.json"))).unwrap();
        for part in ["manifest", "config"] {
            assert!(text.contains(&hex::encode(extend(&[0; 48], &sha384(&file(part))))), "{name} {part}");
        }
    }
    // Without the pairs, the same lists are judged as mixed.
    let mut listed = policy.clone();
    listed["Statement"].as_array_mut().unwrap().retain(|s| !s["Sid"].as_str().unwrap().starts_with("Images"));
    bench.write("listed.json", &listed.to_string());
    let (code, report) = bench.check("listed.json", &BOTH);
    assert!(code == 0 && kinds(&report, "weaknesses").contains(&"mixed-images".to_owned()), "{report}");
    assert_eq!(bench.check("listed.json", &[&BOTH[..], &["--strict"]].concat()).0, 5);
}

#[test]
fn a_manifest_that_the_configuration_does_not_name_is_a_usage_error() {
    let bench = Bench::new();
    let with = |manifest: &str| {
        let code = ["--measurements", "a.json", "--config", "a-config.json", "--model", manifest];
        bench.run(&[&["policy", "render", "customer-key"], &ROLES[..], &code].concat()).code
    };
    assert_eq!((with("a-manifest.json"), with("b-manifest.json")), (0, 2));
}

#[test]
fn a_policy_that_does_not_bind_the_model_is_told_so() {
    let bench = Bench::new();
    bench.render("policy.json", &["--measurements", "a.json"]);
    let (code, report) = bench.check("policy.json", &["--measurements", "a.json"]);
    assert_eq!(code, 0);
    let weak = kinds(&report, "weaknesses");
    assert!(
        weak.contains(&"model-not-pinned".to_owned()) && weak.contains(&"configuration-not-pinned".to_owned()),
        "{weak:?}"
    );
}

#[test]
fn a_root_delegation_is_open_and_told_in_words_with_statement_reason_and_fix() {
    let bench = Bench::new();
    let policy = json!({"Version": "2012-10-17", "Statement": [{"Sid": "Enable\u{1b}[31m", "Effect": "Allow",
        "Principal": {"AWS": "arn:aws:iam::111122223333:root"}, "Action": "kms:*", "Resource": "*"}]});
    // As `aws kms get-key-policy` prints it, on standard input.
    let printed = json!({"Policy": policy.to_string(), "PolicyName": "default"}).to_string();
    let mut command = subrosa();
    command.current_dir(bench.0.path()).args(["policy", "check", "-", "--measurements", "a.json"]);
    let ran = ran(run_with(&mut command, printed.as_bytes()));
    assert_eq!(ran.code, 5, "{}", ran.stderr);
    for part in [
        "verdict: OPEN",
        "unattested in Enable\\u{1b}[31m",
        "who:  account 111122223333",
        "path: kms:Decrypt",
        "fix:",
        "put-key-policy",
        "Outside this judgement",
    ] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
    assert!(!ran.stdout.contains('\u{1b}'), "a policy's words must not steer the terminal");
}

#[test]
fn grants_are_judged_and_a_truncated_list_of_them_is_refused() {
    let bench = Bench::new();
    let policy = json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": ENCLAVE},
        "Action": "kms:Decrypt", "Resource": "*",
        "Condition": {"StringEqualsIgnoreCase": {"kms:RecipientAttestation:PCR0": "a0".repeat(48)}}}]});
    bench.write("policy.json", &policy.to_string());
    let grant =
        json!({"GrantId": "g", "GranteePrincipal": "arn:aws:iam::111122223333:role/app", "Operations": ["Decrypt"]});
    bench.write("grants.json", &json!({"Grants": [grant], "Truncated": false}).to_string());
    bench.write("part.json", &json!({"Grants": [grant], "Truncated": true}).to_string());
    let with =
        |more: &[&str]| bench.run(&[&["policy", "check", "policy.json", "--measurements", "a.json"], more].concat());
    assert_eq!(with(&[]).code, 0);
    assert!(with(&[]).stdout.contains("grants:  not given"));
    assert_eq!(with(&["--grants", "grants.json"]).code, 5);
    assert_eq!(with(&["--grants", "part.json"]).code, 2);
}

#[test]
fn a_check_without_code_to_accept_is_a_usage_error() {
    let bench = Bench::new();
    bench.render("policy.json", &["--measurements", "a.json"]);
    assert_eq!(bench.run(&["policy", "check", "policy.json"]).code, 2);
}

#[test]
fn a_key_for_a_nitro_tpm_machine_is_rendered_and_checked() {
    let bench = Bench::new();
    let registers = [format!("4={}", "44".repeat(48)), format!("7={}", "77".repeat(48))];
    let tpm = [
        "--nitro-tpm-pcr",
        registers[0].as_str(),
        "--nitro-tpm-pcr",
        registers[1].as_str(),
        "--context",
        "purpose=backup",
    ];
    let render = [
        "policy",
        "render",
        "attested-key",
        "--role",
        ENCLAVE,
        "--administrator",
        "arn:aws:iam::111122223333:role/admin",
        "-o",
        "tpm.json",
    ];
    let ran = bench.run(&[&render[..], &tpm].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let strict = ["--kind", "attested-key", "--strict"];
    let (code, report) = bench.check("tpm.json", &[&strict[..], &tpm].concat());
    assert_eq!(code, 0, "{report}");
    // For an enclave it is the wrong policy, and as a customer's key it is open.
    let (code, report) = bench.check("tpm.json", &["--measurements", "a.json"]);
    assert!(code == 5 && kinds(&report, "open") == ["nitro-tpm", "nitro-tpm"], "{report}");
}

fn rotate(bench: &Bench, more: &[&str]) -> Ran {
    let releases = [
        "--from",
        "a.json",
        "--to",
        "b.json",
        "--from-config",
        "a-config.json",
        "--to-config",
        "b-config.json",
        "-o",
        "plan",
    ];
    bench.run(&[&["rotate", "plan"], &releases[..], &ROLES, more].concat())
}

#[test]
fn the_overlap_takes_both_releases_and_the_policy_after_it_needs_evidence() {
    let bench = Bench::new();
    let ran = rotate(&bench, &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("the policy after the rotation is not written"), "{}", ran.stderr);
    assert_eq!(bench.check("plan/policy-overlap.json", &[&BOTH[..], &["--strict"]].concat()).0, 0);
    assert!(!Path::new(&bench.path("plan/policy-after.json")).exists());
    // The allow-list is what `verify` and `ask` take.
    let verify = bench.run(&["verify", "--document", "a.json", "--measurements", "plan/allow-list-overlap.json"]);
    assert_eq!(verify.code, 5, "the list is read, the document is none: {}", verify.stderr);
    let steps = fs::read_to_string(bench.path("plan/plan.txt")).unwrap();
    let places: Vec<usize> = ["Clients first", "Keys next", "Start ", "Wait until", "--serving"]
        .map(|part| steps.find(part).unwrap())
        .to_vec();
    assert!(places.is_sorted(), "{steps}");
}

#[test]
fn the_commands_of_a_plan_judge_the_policy_that_it_wrote_with_the_keys_grants() {
    let bench = Bench::new();
    assert_eq!(rotate(&bench, &[]).code, 0);
    fs::write(bench.path("grants.json"), r#"{"Grants": []}"#).unwrap();
    let steps = fs::read_to_string(bench.path("plan/plan.txt")).unwrap();
    let command = steps.lines().find_map(|line| line.trim().strip_prefix("subrosa policy check ")).unwrap();
    let command =
        command.replace("KEY_ARN", "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab");
    let words: Vec<&str> = ["policy", "check"].into_iter().chain(command.split(' ')).collect();
    for needed in ["--grants", "--key", "--role", "--measurements"] {
        assert!(words.contains(&needed), "{command}");
    }
    let ran = bench.run(&[&words[..], &["--strict"]].concat());
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    let without: Vec<&str> =
        words.iter().filter(|word| !word.ends_with("grants") && **word != "grants.json").copied().collect();
    let ran = bench.run(&without);
    assert!(ran.stdout.contains("NOT LOOKED AT") && ran.stderr.contains("--grants"), "{}{}", ran.stdout, ran.stderr);
}

#[test]
fn a_release_that_still_serves_is_not_dropped_and_what_was_written_before_is_taken_back() {
    let bench = Bench::new();
    bench.seen("1.json", "i-1-enc1", "b", 10);
    bench.seen("2.json", "i-2-enc2", "b", 10);
    bench.seen("old.json", "i-2-enc2", "a", 10);
    bench.seen("stale.json", "i-2-enc2", "b", 3600);
    let two = |second: &str| rotate(&bench, &["--serving", "1.json", "--serving", second, "--enclaves", "2"]);
    let good = two("2.json");
    assert_eq!(good.code, 0, "{}", good.stderr);
    let after = ["--measurements", "b.json", "--config", "b-config.json", "--strict"];
    assert_eq!(bench.check("plan/policy-after.json", &after).0, 0);
    assert_eq!(bench.read("plan/allow-list-after.json")["Images"].as_array().unwrap().len(), 1);
    for (second, words) in [("old.json", "still serves"), ("stale.json", "15 minutes"), ("1.json", "1 of 2 enclaves")] {
        let refused = two(second);
        assert!(refused.code == 4 && refused.stderr.contains(words), "{second}: {} {}", refused.code, refused.stderr);
        assert!(!bench.path("plan/policy-after.json").exists(), "{second}");
    }
    let digest = "a0".repeat(48);
    assert_eq!(rotate(&bench, &["--serving", &digest, "--enclaves", "1"]).code, 4);
}

#[test]
fn the_plan_as_json_holds_both_policies_and_the_steps() {
    let bench = Bench::new();
    bench.seen("1.json", "i-1-enc1", "b", 10);
    let ran = rotate(&bench, &["--serving", "1.json", "--enclaves", "1", "--json"]);
    let plan: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(plan["overlap"]["allow_list"]["Images"].as_array().unwrap().len(), 2);
    assert_eq!(plan["after"]["policy"]["Id"], "subrosa-customer-key");
    assert!(plan["steps"].as_array().unwrap().len() >= 7);
}

#[test]
fn releases_that_are_the_same_are_no_rotation() {
    let bench = Bench::new();
    let ran = bench.run(&[&["rotate", "plan", "--from", "a.json", "--to", "a.json"], &ROLES[..]].concat());
    assert_eq!(ran.code, 2, "{}", ran.stderr);
}
