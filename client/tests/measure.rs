//! `subrosa measure`, and `--image` where measurements are expected.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "tests"
)]

#[path = "../../attestation/tests/images/mod.rs"]
mod images;
mod support;

use std::fs;
use std::path::{Path, PathBuf};

use attestation::image::Image;
use images::{Draft, METADATA, NOT_BEFORE, RAMDISK, SIGNATURE, Signer, configured, fix_crc};
use serde_json::{Value, json};
use subrosa_client::image::ImageConfiguration;
use subrosa_client::image::configuration::AMAZON_ROOTS;
use subrosa_client::image::describe::time;
use support::{Ran, run, subrosa};
use tempfile::TempDir;

/// A folder with image files.
struct Images(TempDir);

impl Images {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, file: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, file).unwrap();
        path
    }
}

fn measure(image: &Path, arguments: &[&str]) -> Ran {
    run(subrosa().arg("measure").arg(image).args(arguments))
}

fn with_metadata(json: &Value) -> Draft {
    Draft::golden().without(METADATA).with(METADATA, json.to_string())
}

fn metadata() -> Value {
    json!({
        "ImageName": "golden", "ImageVersion": "7",
        "BuildMetadata": {
            "BuildTime": "2026-11-21T10:00:00+00:00", "BuildTool": "a tool", "BuildToolVersion": "1.2.3",
            "OperatingSystem": "Linux", "KernelVersion": "6.12.117",
        },
        "DockerInfo": null,
        "CustomMetadata": {"Toolchain": {"rustc": "1.95.0"}, "BuildTool": "another"},
    })
}

fn signed(signer: &Signer) -> Vec<u8> {
    let draft = with_metadata(&metadata());
    let pcr0 = Image::parse(&draft.file()).unwrap().measurements().pcr0;
    draft.with(SIGNATURE, signer.section(&pcr0)).file()
}

fn pcr(file: &[u8], index: u8) -> String {
    let measurements = Image::parse(file).unwrap().measurements();
    hex::encode([measurements.pcr0, measurements.pcr1, measurements.pcr2][usize::from(index)])
}

/// In the order of `nitro-cli`'s structures, and nothing else.
#[test]
fn the_json_is_the_object_of_describe_eif() {
    let images = Images::new();
    let file = with_metadata(&metadata()).file();
    let ran = measure(&images.put("a.eif", &file), &["--json"]);
    let expected = format!(
        r#"{{
  "EifVersion": 4,
  "Measurements": {{
    "HashAlgorithm": "Sha384 {{ ... }}",
    "PCR0": "{}",
    "PCR1": "{}",
    "PCR2": "{}"
  }},
  "IsSigned": false,
  "CheckCRC": true,
  "ImageName": "golden",
  "ImageVersion": "7",
  "Metadata": {{
    "BuildTime": "2026-11-21T10:00:00+00:00",
    "BuildTool": "a tool",
    "BuildToolVersion": "1.2.3",
    "OperatingSystem": "Linux",
    "KernelVersion": "6.12.117",
    "DockerInfo": null,
    "Toolchain": {{
      "rustc": "1.95.0"
    }}
  }}
}}
"#,
        pcr(&file, 0),
        pcr(&file, 1),
        pcr(&file, 2)
    );
    assert_eq!((ran.code, ran.stdout, ran.stderr), (0, expected, String::new()));
}

#[test]
fn the_json_of_a_signed_image_names_its_signer() {
    let (images, signer) = (Images::new(), Signer::p384());
    let ran = measure(&images.put("a.eif", &signed(&signer)), &["--json", "--at", "2026-11-01T12:00:00Z"]);
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((ran.code, &ran.stderr), (0, &String::new()));
    assert_eq!(told["Measurements"]["PCR8"], hex::encode(attestation::measurement::h48(&signer.der)));
    assert_eq!((&told["IsSigned"], &told["SignatureCheck"]), (&json!(true), &json!(true)));
    let certificate = &told["SigningCertificate"];
    assert_eq!(certificate["IssuerName"]["commonName"], "signer.test");
    // Rust's Debug without its quotes, which leaves its backslashes.
    assert_eq!(certificate["IssuerName"]["organizationName"], "An \\Image\\ Builder");
    assert_eq!(certificate["Algorithm"], "ecdsa-with-SHA384");
    assert_eq!(certificate["NotBefore"], "Nov  1 10:00:00 2026 GMT");
    assert_eq!(certificate["NotAfter"], "Nov  2 10:00:00 2026 GMT");
    let last = signer.der.last().unwrap();
    assert!(certificate["Signature"].as_str().unwrap().ends_with(&format!(":{last:02X}")));
}

#[test]
fn times_are_written_as_openssl_writes_them() {
    assert_eq!(time(NOT_BEFORE), "Nov  1 10:00:00 2026 GMT");
    assert_eq!(time(0), "Jan  1 00:00:00 1970 GMT");
    assert_eq!(time(1_797_937_445), "Dec 22 11:04:05 2026 GMT");
}

#[test]
fn the_report_shows_every_register_and_every_section() {
    let (images, signer) = (Images::new(), Signer::p384());
    let file = signed(&signer);
    let ran = measure(&images.put("a.eif", &file), &["--at", "2026-11-01T12:00:00Z"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    for text in [
        &format!("PCR0:         {}", pcr(&file, 0)),
        &format!("PCR1:         {}", pcr(&file, 1)),
        &format!("PCR2:         {}", pcr(&file, 2)),
        &format!("PCR8:         {}", hex::encode(attestation::measurement::h48(&signer.der))),
        "section 1:    command line, 21 bytes at byte 568: console=ttyS0 panic=1",
        "signature:    good (ES384)",
        "commonName=signer.test",
        "from 2026-11-01T10:00:00Z until 2026-11-02T10:00:00Z: valid as of 2026-11-01T12:00:00Z",
        "golden 7 (not measured",
        "not an image of Subrosa's",
    ] {
        assert!(ran.stdout.contains(text), "{text}\n{}", ran.stdout);
    }
}

#[test]
fn a_certificate_out_of_its_time_is_told_loudly() {
    let images = Images::new();
    let path = images.put("a.eif", &signed(&Signer::p384()));
    for (at, word) in [("2026-11-01T09:59:59Z", "NOT YET VALID"), ("2026-11-02T10:00:01Z", "EXPIRED")] {
        let ran = measure(&path, &["--at", at]);
        assert_eq!(ran.code, 0);
        assert!(
            ran.stdout.contains(word) && ran.stderr.contains("WARNING") && ran.stderr.contains(word),
            "{}",
            ran.stderr
        );
    }
}

#[test]
fn a_signature_that_is_not_good_gives_no_pcr8_and_exit_code_5() {
    let (images, signer) = (Images::new(), Signer::p384());
    let other = with_metadata(&metadata()).with(SIGNATURE, signer.section(&[7; 48])).file();
    let mut changed = signed(&signer);
    *changed.last_mut().unwrap() ^= 1;
    fix_crc(&mut changed);
    for (file, words) in [(other, "for another image"), (changed, "does not verify")] {
        let path = images.put("a.eif", &file);
        let (text, json) = (measure(&path, &[]), measure(&path, &["--json"]));
        assert_eq!((text.code, json.code), (5, 5));
        assert!(text.stdout.contains("NOT GOOD") && !text.stdout.contains("PCR8"), "{}", text.stdout);
        assert!(text.stderr.contains(words) && json.stderr.contains(words), "{}", text.stderr);
        let told: Value = serde_json::from_str(&json.stdout).unwrap();
        assert_eq!((&told["IsSigned"], &told["SignatureCheck"]), (&json!(true), &json!(false)));
        assert!(told["Measurements"].get("PCR8").is_none() && told.get("SigningCertificate").is_none());
    }
}

#[test]
fn a_damaged_image_is_told_and_refused() {
    let images = Images::new();
    let mut file = Draft::golden().file();
    *file.last_mut().unwrap() ^= 1;
    let path = images.put("a.eif", &file);
    let (text, json) = (measure(&path, &[]), measure(&path, &["--json"]));
    assert_eq!((text.code, json.code), (1, 1));
    assert!(
        text.stdout.contains("NOT what the header states") && text.stderr.contains("is damaged"),
        "{}",
        text.stderr
    );
    assert_eq!(serde_json::from_str::<Value>(&json.stdout).unwrap()["CheckCRC"], false);
}

#[test]
fn what_is_no_image_is_refused_before_it_is_read_whole() {
    let images = Images::new();
    let huge = images.path("huge");
    let file = fs::File::create(&huge).unwrap();
    file.set_len(3 << 30).unwrap();
    let too_large = images.path("too-large");
    fs::File::create(&too_large).unwrap().set_len((4 << 30) + 1).unwrap();
    let golden = Draft::golden().file();
    for (path, words) in [
        (huge, "not an enclave image"),
        (too_large, "at most 4294967296 are read"),
        (images.0.path().to_owned(), "not a regular file"),
        (PathBuf::from("/dev/zero"), "not a regular file"),
        (images.path("missing"), "cannot be read"),
        (images.put("empty", b""), "the file has 0 bytes"),
        (images.put("cut", &golden[..700]), "was it cut off?"),
    ] {
        let ran = measure(&path, &[]);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{}", path.display());
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    }
}

#[test]
fn a_strangers_text_does_not_steer_the_terminal() {
    let images = Images::new();
    let mut metadata = metadata();
    metadata["ImageName"] = json!("\u{1b}[2J\u{9b}2J\u{202e}evil");
    metadata["CustomMetadata"] = json!({"x": "\u{9b}0m\u{202e}"});
    let mut draft = with_metadata(&metadata);
    draft.sections[1].1 = b"quiet\x1b]0;title\x07\n\xff".to_vec();
    let path = images.put("a.eif", &draft.file());
    let (text, json) = (measure(&path, &[]), measure(&path, &["--json"]));
    assert_eq!((text.code, json.code), (0, 0));
    let is_steering = |character: char| character.is_control() && character != '\n';
    assert!(!text.stdout.contains(is_steering) && !text.stdout.contains('\u{202e}'), "{:?}", text.stdout);
    assert!(!json.stdout.contains(is_steering), "{:?}", json.stdout);
    // As JSON it is what it was.
    assert_eq!(serde_json::from_str::<Value>(&json.stdout).unwrap()["ImageName"], metadata["ImageName"]);
}

#[test]
fn metadata_of_another_shape_is_a_warning_because_no_register_holds_it() {
    let images = Images::new();
    let deep = "[".repeat(100_000);
    for text in ["", "{}", "null and void", deep.as_str()] {
        let draft = Draft::golden().without(METADATA).with(METADATA, text);
        let ran = measure(&images.put("a.eif", &draft.file()), &["--json"]);
        let told: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert!(told.get("Metadata").is_none() && told["Measurements"].get("PCR0").is_some());
        assert_eq!((ran.code, ran.stderr.contains("WARNING: the metadata")), (0, true), "{}", ran.stderr);
    }
}

/// Amazon Root CA 3, the smallest of the five.
const AMAZON_ROOT_CA_3: &str = "-----BEGIN CERTIFICATE-----
MIIBtjCCAVugAwIBAgITBmyf1XSXNmY/Owua2eiedgPySjAKBggqhkjOPQQDAjA5
MQswCQYDVQQGEwJVUzEPMA0GA1UEChMGQW1hem9uMRkwFwYDVQQDExBBbWF6b24g
Um9vdCBDQSAzMB4XDTE1MDUyNjAwMDAwMFoXDTQwMDUyNjAwMDAwMFowOTELMAkG
A1UEBhMCVVMxDzANBgNVBAoTBkFtYXpvbjEZMBcGA1UEAxMQQW1hem9uIFJvb3Qg
Q0EgMzBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABCmXp8ZBf8ANm+gBG1bG8lKl
ui2yEujSLtf6ycXYqm0fc4E7O5hrOXwzpcVOho6AF2hiRVd9RFgdszflZwjrZt6j
QjBAMA8GA1UdEwEB/wQFMAMBAf8wDgYDVR0PAQH/BAQDAgGGMB0GA1UdDgQWBBSr
ttvXBp43rDCGB5Fwx5zEGbF4wDAKBggqhkjOPQQDAgNJADBGAiEA4IWSoxe3jfkr
BqWTrBqYaGFy+uGh0PsceGCmQ5nFuMQCIQCcAu/xlJyzlvnrxir4tiz+OpAUFteM
YyRIHN8wfdVoOw==
-----END CERTIFICATE-----
";

fn with_configuration(toml: &str) -> Vec<u8> {
    with_metadata(&metadata()).without(RAMDISK).with(RAMDISK, "the program").with(RAMDISK, configured(toml)).file()
}

#[test]
fn a_root_that_is_not_amazons_is_shown_with_a_loud_warning() {
    let images = Images::new();
    let amazon = format!("release = 12\nkms_roots = \"\"\"\n{AMAZON_ROOT_CA_3}\"\"\"");
    let ran = measure(&images.put("a.eif", &with_configuration(&amazon)), &[]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert!(ran.stdout.contains("release 12"), "{}", ran.stdout);
    assert!(
        ran.stdout.contains(&format!("KMS root:     {}: is Amazon Root CA 3", AMAZON_ROOTS[2].1)),
        "{}",
        ran.stdout
    );
    let stranger = Signer::p384();
    let toml = format!("release = 12\nkms_roots = \"\"\"\n{AMAZON_ROOT_CA_3}{}\"\"\"", stranger.pem);
    let path = images.put("a.eif", &with_configuration(&toml));
    for arguments in [&[][..], &["--json"]] {
        let ran = measure(&path, arguments);
        assert_eq!((ran.code, ran.stderr.matches("WARNING").count()), (0, 1), "{}", ran.stderr);
        assert!(ran.stderr.contains("NOT AMAZON'S") && ran.stderr.contains("commonName=signer.test"), "{}", ran.stderr);
    }
    assert!(measure(&path, &[]).stdout.contains("NOT AMAZON'S"));
}

#[test]
fn a_configuration_that_the_enclave_would_refuse_is_refused() {
    let images = Images::new();
    for (toml, words) in [
        ("release = 1\nkms_roots = \"\"".to_owned(), "names no root"),
        ("release = 1".to_owned(), "exactly `release` and `kms_roots`"),
        (format!("release = 1\nextra = 1\nkms_roots = \"\"\"\n{AMAZON_ROOT_CA_3}\"\"\""), "exactly `release`"),
        ("\u{fffd}".to_owned(), "exactly `release`"),
    ] {
        let ran = measure(&images.put("a.eif", &with_configuration(&toml)), &[]);
        assert_eq!((ran.code, ran.stdout.contains("NOT READABLE")), (1, true), "{}", ran.stderr);
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    }
    let hidden = [configured("release = 1"), configured("release = 2")].concat();
    let ran = measure(&images.put("a.eif", &Draft::golden().with(RAMDISK, hidden).file()), &[]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("a kernel would unpack them too"), "{}", ran.stderr);
}

/// The image configuration that `make eif` puts into an image.
#[test]
fn the_roots_of_the_shipped_image_are_amazons_five() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../enclave/image/image.toml");
    let configuration = ImageConfiguration::parse(&fs::read(path).unwrap()).unwrap();
    let names: Vec<_> = configuration.roots().iter().map(|root| root.amazon().unwrap()).collect();
    assert_eq!(names, AMAZON_ROOTS.map(|(name, _)| name));
}

fn rendered(images: &[&Path]) -> Ran {
    let mut command = subrosa();
    command.args(["policy", "render", "customer-key", "--account", "111122223333", "--administrator", "role/admin"]);
    command.args(["--enclave-role", "arn:aws:iam::444455556666:role/enclave", "--prompt-writer", "role/app"]);
    command.args(["--answer-reader", "role/reader"]);
    for image in images {
        command.arg("--image").arg(image);
    }
    run(&mut command)
}

#[test]
fn a_policy_takes_its_measurements_from_images() {
    let (images, signer) = (Images::new(), Signer::p384());
    let (plain, signed) = (with_metadata(&metadata()).with(RAMDISK, "more").file(), signed(&signer));
    let (first, second) = (images.put("a.eif", &plain), images.put("b.eif", &signed));
    let both = rendered(&[&first, &second]);
    assert_eq!(both.code, 0, "{}", both.stderr);
    for value in [pcr(&plain, 0), pcr(&plain, 1), pcr(&plain, 2), pcr(&signed, 0), pcr(&signed, 1), pcr(&signed, 2)] {
        assert!(both.stdout.contains(&value), "{value}\n{}", both.stdout);
    }
    // A policy names code, not its signer: whoever holds the signing key could sign other code.
    assert!(!both.stdout.contains("PCR8") && !rendered(&[&second]).stdout.contains("PCR8"), "{}", both.stdout);
}

#[test]
fn no_measurement_is_taken_from_an_image_that_is_damaged_or_badly_signed() {
    let images = Images::new();
    let mut damaged = Draft::golden().file();
    *damaged.last_mut().unwrap() ^= 1;
    let forged = Draft::golden().with(SIGNATURE, Signer::p384().section(&[7; 48])).file();
    for (file, code) in [(damaged, 1), (forged, 5), (b"no image".to_vec(), 1)] {
        let ran = rendered(&[&images.put("a.eif", &file)]);
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{}", ran.stderr);
    }
}
