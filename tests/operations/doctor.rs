//! `subrosa doctor` on machines that lie in folders, each with one thing wrong, and against the simulated KMS.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use attestation::image::Image;
use attestation::measurement::{ZERO, extend};
use kms_policies::templates::{self, Measurements, ModelPackRoles};
use serde_json::{Value, json};
use subrosa_client::doctor::configuration;
use tempfile::TempDir;
use tests::programs;
use tests::stack::{ADMINISTRATOR, ENCLAVE, MODEL_SUPPLIER, Options, Stack};

/// A machine with nothing wrong, in a folder.
struct Machine {
    root: TempDir,
}

impl Machine {
    fn healthy(stack: &Stack) -> Self {
        let machine = Self { root: tempfile::tempdir().unwrap() };
        for device in ["dev/nitro_enclaves", "dev/vsock", "usr/bin/nitro-cli", ENABLED] {
            machine.write(device, "");
        }
        machine.write(CPU_POOL, "1,3\n");
        machine.write(ALLOCATOR, "---\nmemory_mib: 512\ncpu_count: 2\n");
        for node in ["node0", "node1"] {
            machine.pages(node, if node == "node0" { 256 } else { 0 }, if node == "node0" { 256 } else { 0 });
        }
        machine.write(SETTINGS, "EIF=/var/lib/subrosa/images/subrosa.eif\nMEMORY=512\nCPUS=2\nCID=16\nDEBUG=0\n");
        machine.write("etc/subrosa/parent.env", "LISTEN=127.0.0.1:8080\nENCLAVE=vsock:16:5000\n");
        let configuration = fs::read_to_string(stack.folder().join("configuration.json")).unwrap();
        machine.write(CONFIGURATION, &configuration);
        machine.write_bytes(PACK, &fs::read(stack.folder().join("model-packs/subrosa-intake")).unwrap());
        machine.write_bytes(IMAGE, &eif(b"release 1"));
        let image = eif(b"release 1");
        let measured = Image::parse(&image).unwrap().measurements();
        let [pcr0, pcr1, pcr2] = [measured.pcr0, measured.pcr1, measured.pcr2].map(hex::encode);
        machine.write(MEASUREMENTS, &json!({"Measurements": {"PCR0": pcr0, "PCR1": pcr1, "PCR2": pcr2}}).to_string());
        machine
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        self.write_bytes(path, text.as_bytes());
    }

    fn write_bytes(&self, path: &str, bytes: &[u8]) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn replace(&self, path: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.at(path)).unwrap();
        assert!(text.contains(from), "{path} has no {from}");
        self.write(path, &text.replace(from, to));
    }

    fn remove(&self, path: &str) {
        let path = self.at(path);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }

    /// Huge pages of 2 MiB.
    fn pages(&self, node: &str, all: u64, free: u64) {
        let folder = format!("{NODES}/{node}/hugepages/hugepages-2048kB");
        self.write(&format!("{folder}/nr_hugepages"), &format!("{all}\n"));
        self.write(&format!("{folder}/free_hugepages"), &format!("{free}\n"));
    }

    fn examine(&self, arguments: &[&str], environment: &[(String, String)]) -> Examined {
        let mut command = Command::new(programs::path("subrosa").unwrap());
        command.args(["doctor", "--json", "--root"]).arg(self.root.path()).args(arguments).env_clear();
        let output = command.envs(environment.iter().cloned()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let result = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
        Examined { code: output.status.code().unwrap(), result }
    }
}

struct Examined {
    code: i32,
    result: Value,
}

impl Examined {
    fn all(&self, verdict: &str) -> Vec<String> {
        let findings = self.result["findings"].as_array().unwrap();
        let of = findings.iter().filter(|finding| finding["verdict"] == verdict);
        of.map(|finding| format!("{}: {}", finding["check"].as_str().unwrap(), finding["found"].as_str().unwrap()))
            .collect()
    }

    /// That exactly one check has this verdict, that it says these words, and how to mend it.
    fn only(&self, verdict: &str, words: &str) {
        let found = self.all(verdict);
        assert!(
            found.len() == 1 && found[0].contains(words),
            "expected one {verdict} with {words:?}: {:#}",
            self.result
        );
        let findings = self.result["findings"].as_array().unwrap();
        let finding = findings.iter().find(|finding| finding["verdict"] == verdict).unwrap();
        assert!(finding["mend"].as_str().is_some_and(|mend| mend.len() > 10), "{finding:#}");
        assert_eq!(self.code, i32::from(verdict == "wrong"));
    }
}

/// The smallest image of the right form; `what` makes it another one.
fn eif(what: &[u8]) -> Vec<u8> {
    let ramdisk = |name: &[u8]| [b"070701".as_slice(), name, &[0; 64]].concat();
    let sections: [(u16, Vec<u8>); 4] =
        [(1, b"kernel".to_vec()), (2, b"console=ttyS0".to_vec()), (3, ramdisk(b"init")), (3, ramdisk(what))];
    let mut head = [b".eif".as_slice(), &4_u16.to_be_bytes(), &0_u16.to_be_bytes()].concat();
    head.extend((1_u64 << 30).to_be_bytes());
    head.extend(2_u64.to_be_bytes());
    head.extend([0_u16.to_be_bytes(), (sections.len() as u16).to_be_bytes()].concat());
    let mut body = Vec::new();
    let (mut offsets, mut sizes) = ([0_u64; 32], [0_u64; 32]);
    for (at, (kind, content)) in sections.iter().enumerate() {
        offsets[at] = (548 + body.len()) as u64;
        sizes[at] = content.len() as u64;
        body.extend([kind.to_be_bytes(), 0_u16.to_be_bytes()].concat());
        body.extend((content.len() as u64).to_be_bytes());
        body.extend(content);
    }
    head.extend(offsets.iter().chain(&sizes).flat_map(|number| number.to_be_bytes()));
    head.extend(0_u32.to_be_bytes());
    let checksum = crc32(&[head.as_slice(), &body].concat());
    [head, checksum.to_be_bytes().to_vec(), body].concat()
}

/// ISO 3309, as zlib has it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(crc & 1)))
    })
}

/// Keys, configuration and a sealed pack; the enclave's own state does not matter here.
async fn stack() -> Stack {
    Stack::start(Options { ready_within: None, ..Options::new().unwrap() }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_thing_that_is_wrong_with_a_machine_is_named_alone_and_can_be_mended() {
    let stack = stack().await;
    let healthy = Machine::healthy(&stack).examine(&[], &[]);
    assert_eq!(healthy.code, 0, "{:#}", healthy.result);
    assert_eq!(healthy.all("warning"), Vec::<String>::new(), "{:#}", healthy.result);
    assert_eq!(healthy.all("ok").len(), 14, "{:#}", healthy.result);
    let not_checked = healthy.all("not-checked");
    assert_eq!(not_checked.len(), 5, "{not_checked:?}");
    assert!(not_checked.iter().all(|line| line.contains("give --")), "{not_checked:?}");

    type Change = fn(&Machine);
    let cases: [(Change, &str, &str); 27] = [
        (|m| m.remove("dev/nitro_enclaves"), "wrong", "enclave device: /dev/nitro_enclaves is not there"),
        (|m| m.remove("dev/vsock"), "wrong", "vsock device: /dev/vsock is not there"),
        (|m| m.remove("usr/bin/nitro-cli"), "wrong", "nitro-cli is not installed"),
        (|m| m.remove(ALLOCATOR), "wrong", "allocator file: /etc/nitro_enclaves/allocator.yaml cannot be read"),
        (|m| m.write(ALLOCATOR, "memory_mib: 512\n"), "wrong", "has no memory_mib with cpu_count"),
        (|m| m.replace(ALLOCATOR, "512", "510"), "wrong", "510 MiB are set aside, the enclave is to have 512"),
        (|m| m.replace(ALLOCATOR, "cpu_count: 2", "cpu_count: 1"), "wrong", "1 CPUs are set aside"),
        (|m| m.remove(ENABLED), "wrong", "nitro-enclaves-allocator is not installed"),
        (
            |m| {
                m.remove(ENABLED);
                m.write("usr/lib/systemd/system/nitro-enclaves-allocator.service", "");
            },
            "warning",
            "not enabled",
        ),
        (|m| m.write(CPU_POOL, "\n"), "wrong", "cpu pool: no CPU is set aside"),
        (|m| m.write(CPU_POOL, "1\n"), "wrong", "1 CPUs are set aside (1), 2 are wanted"),
        (|m| m.pages("node0", 0, 0), "wrong", "huge pages: none are set aside"),
        // Half on each node helps no enclave.
        (
            |m| {
                m.pages("node0", 128, 128);
                m.pages("node1", 128, 128);
            },
            "wrong",
            "256 MiB are set aside on node1, 512 are wanted",
        ),
        (|m| m.pages("node0", 256, 0), "warning", "of 512 MiB on node0 0 are free"),
        (|m| m.replace(SETTINGS, "MEMORY=512", "MEMORY=much"), "wrong", "MEMORY should be a whole number"),
        (|m| m.replace(SETTINGS, "DEBUG=0", "DEBUG=1"), "warning", "DEBUG MODE"),
        (|m| m.replace(SETTINGS, "CID=16", "CID=17"), "wrong", "the parent looks for CID 16"),
        (|m| m.replace(SETTINGS, "MEMORY=512", "MEMORY=10"), "wrong", "loading the largest pack takes at least"),
        (|m| m.remove(CONFIGURATION), "wrong", "configuration: "),
        (|m| m.replace(CONFIGURATION, "\"region\"", "\"regoin\""), "wrong", "unknown field `regoin`"),
        (|m| m.remove(PACK), "wrong", "subrosa-intake is not there"),
        (|m| m.write(PACK, "not sealed"), "wrong", "is no sealed message"),
        (
            |m| {
                let bytes = fs::read(m.at(PACK)).unwrap();
                m.write_bytes(PACK, &bytes[..100]);
            },
            "wrong",
            "cut off in its header",
        ),
        (
            |m| m.replace(CONFIGURATION, "\"version\":\"1\"", "\"version\":\"2\""),
            "wrong",
            "the configuration names subrosa:model",
        ),
        (
            |m| {
                fs::rename(m.at(PACK), m.at("elsewhere")).unwrap();
                std::os::unix::fs::symlink(m.at("elsewhere"), m.at(PACK)).unwrap();
            },
            "wrong",
            "is no regular file",
        ),
        (|m| m.write_bytes(IMAGE, &eif(b"release 2")), "wrong", "measurements: PCR0 is"),
        (
            |m| {
                let mut bytes = eif(b"release 1");
                *bytes.last_mut().unwrap() ^= 1;
                m.write_bytes(IMAGE, &bytes);
            },
            "wrong",
            "is damaged",
        ),
    ];
    for (change, verdict, words) in cases {
        let machine = Machine::healthy(&stack);
        change(&machine);
        machine.examine(&[], &[]).only(verdict, words);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_seen_is_not_guessed() {
    let empty = Machine { root: tempfile::tempdir().unwrap() };
    let examined = empty.examine(&[], &[]);
    let not_checked = examined.all("not-checked");
    for check in
        ["kernel", "cpu pool", "huge pages", "settings", "image", "model pack", "memory", "role", "key", "clock"]
    {
        assert!(not_checked.iter().any(|line| line.starts_with(&format!("{check}: "))), "{check}: {not_checked:?}");
    }
    assert_eq!(examined.all("ok"), Vec::<String>::new());
    assert_eq!(examined.code, 1, "a machine without devices is wrong");

    // A whole machine tells more: its manifest, and a model to plan for.
    let stack = stack().await;
    let machine = Machine::healthy(&stack);
    let manifest = stack.folder().join("manifest.json");
    fs::write(&manifest, b"another").unwrap();
    let other = machine.examine(&["--manifest", "manifest.json"], &[]);
    assert!(other.all("wrong")[0].contains("cannot be read"), "{:#}", other.result);
    machine.write("manifest.json", "another");
    machine
        .examine(&["--manifest", "/manifest.json"], &[])
        .only("wrong", "no given manifest has the configured digest");
    let model = programs::project().join("tests/demo-model/subrosa-intake.gguf");
    fs::copy(&model, machine.at("model.gguf")).unwrap();
    let fits = machine.examine(&["--model", "/model.gguf"], &[]);
    assert!(
        fits.all("ok").iter().any(|line| line.contains("sequences of the whole context need")),
        "{:#}",
        fits.result
    );
    let many = machine.examine(&["--model", "/model.gguf", "--sequences", "64"], &[]);
    assert!(!many.all("ok").iter().any(|line| line.starts_with("memory")), "{:#}", many.result);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_policies_are_judged_by_what_kms_says() {
    let stack = stack().await;
    let machine = Machine::healthy(&stack);
    let role = ENCLAVE.arn();
    let ask = ["--aws", "--enclave-role", role.as_str()];
    let as_administrator = stack.environment(&ADMINISTRATOR);

    // The key's policy is for the simulator's own image: this one could not open the pack.
    let other_image = machine.examine(&ask, &as_administrator);
    assert!(other_image.all("wrong").iter().any(|line| line.contains("(image-refused)")), "{:#}", other_image.result);

    let image = eif(b"release 1");
    let measured = Image::parse(&image).unwrap().measurements();
    let digest = configuration::parse(&fs::read(machine.at(CONFIGURATION)).unwrap()).unwrap().sha384;
    let mut registers = Measurements::default();
    for (index, value) in [(0, measured.pcr0), (1, measured.pcr1), (2, measured.pcr2), (17, extend(&ZERO, &digest))] {
        registers.pcrs.insert(index, vec![value]);
    }
    let roles = ModelPackRoles {
        model_suppliers: vec![MODEL_SUPPLIER.arn()],
        enclaves: vec![ENCLAVE.arn()],
        administrators: vec![ADMINISTRATOR.arn()],
    };
    let policy = templates::model_pack_key(&roles, &registers, &["subrosa-intake".to_owned()]).unwrap().to_json();
    let kms = stack.kms_as(&ADMINISTRATOR);
    kms.put_key_policy().key_id(&stack.model_key).policy(&policy).send().await.unwrap();
    let good = machine.examine(&ask, &as_administrator);
    assert_eq!(good.all("wrong"), Vec::<String>::new(), "{:#}", good.result);
    let ok = good.all("ok");
    for words in ["role: KMS took its credentials", "is enabled"] {
        assert!(ok.iter().any(|line| line.contains(words)), "{words}: {ok:?}");
    }
    // KMS tells whole seconds, and one may have begun on the way.
    let clocks = ["clock: 0 s from KMS's", "clock: 1 s from KMS's"];
    assert!(ok.iter().any(|line| clocks.contains(&line.as_str())), "{ok:?}");

    // One statement more, and the pack opens to somebody without attestation.
    let mut open: Value = serde_json::from_str(&policy).unwrap();
    let statements = open["Statement"].as_array_mut().unwrap();
    statements.retain(|statement| statement["Effect"] == "Allow");
    statements.push(
        json!({"Sid": "Oops", "Effect": "Allow", "Principal": {"AWS": role}, "Action": "kms:Decrypt", "Resource": "*"}),
    );
    kms.put_key_policy().key_id(&stack.model_key).policy(open.to_string()).send().await.unwrap();
    let opened = machine.examine(&ask, &as_administrator);
    assert_eq!(opened.code, 1);
    assert!(opened.all("wrong").iter().any(|line| line.contains("(unattested)")), "{:#}", opened.result);

    // Who may not look is told so, and nothing is concluded.
    let blind = machine.examine(&ask, &stack.environment(&MODEL_SUPPLIER));
    assert!(blind.all("not-checked").iter().any(|line| line.contains("subrosa policy check")), "{:#}", blind.result);
    assert!(blind.all("ok").iter().any(|line| line.contains("role: KMS took its credentials")), "{:#}", blind.result);

    let mut stranger = as_administrator.clone();
    stranger
        .iter_mut()
        .filter(|(name, _)| name == "AWS_SECRET_ACCESS_KEY")
        .for_each(|(_, value)| *value = "guessed".into());
    let refused = machine.examine(&ask, &stranger);
    assert!(
        refused.all("wrong").iter().any(|line| line.contains("role: KMS refuses the credentials")),
        "{:#}",
        refused.result
    );
}

#[test]
fn the_doctor_takes_the_configurations_that_the_enclave_takes_and_no_others() {
    let key = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    let digest = "ab".repeat(48);
    let good = json!({
        "version": 1, "region": "us-east-1", "accounts": ["111122223333"],
        "models": [{"name": "m", "key_arn": key, "manifest_sha384": digest, "model": "M", "version": "1"}],
        "limits": {"max_tokens": 512},
    });
    let china = "arn:aws-cn:kms:cn-north-1:111122223333:key/a";
    let mut documents =
        vec![good.to_string(), format!("{good} \n"), format!("{good}x"), String::new(), "[]".to_owned()];
    let mut change = |at: &str, value: Value| {
        let mut document = good.clone();
        *document.pointer_mut(at).unwrap() = value;
        documents.push(document.to_string());
    };
    for version in [json!(0), json!(2), json!("1")] {
        change("/version", version);
    }
    for region in ["", "us-east", "US-east-1", "us--east-1", "cn-north-1", "us-east-1.evil", &"a-".repeat(30)] {
        change("/region", json!(region));
    }
    for account in ["", "1", "11112222333x", "1111222233334"] {
        change("/accounts/0", json!(account));
    }
    for name in ["", "M", ".m", "m/..", "m_1.2-3", &"m".repeat(64), &"m".repeat(65)] {
        change("/models/0/name", json!(name));
    }
    for arn in [
        "",
        "alias/x",
        china,
        &key.replace("us-east-1", "eu-west-1"),
        &key.replace("arn:aws:", "arn:aws-cn:"),
        &key.replace("key/", "alias/"),
        &key.replace("1111", "11x1"),
        &format!("{key}/more"),
        "arn:aws:kms:us-east-1:111122223333:key/",
    ] {
        change("/models/0/key_arn", json!(arn));
    }
    for digest in ["", "ab", &"AB".repeat(48), &"xy".repeat(48), &"ab".repeat(49)] {
        change("/models/0/manifest_sha384", json!(digest));
    }
    for value in ["", "a b", "A_1.2-3", &"a".repeat(65)] {
        change("/models/0/model", json!(value));
        change("/models/0/version", json!(value));
    }
    for limits in [
        json!({}),
        json!(null),
        json!({"max_tokens": 0}),
        json!({"max_tokens": 32_768}),
        json!({"max_tokens": 32_769}),
        json!({"request_seconds": 900}),
        json!({"request_seconds": 901}),
        json!({"sealed_request_bytes": 1023}),
        json!({"sealed_request_bytes": 16 << 20}),
        json!({"sealed_request_bytes": (16 << 20) + 1}),
        json!({"concurrent_requests": 256}),
        json!({"concurrent_requests": 257}),
        json!({"tenant_concurrent_requests": 0}),
        json!({"tenant_concurrent_requests": 256}),
        json!({"model_pack_bytes": 1_u64 << 40}),
        json!({"model_pack_bytes": (1_u64 << 40) + 1}),
        json!({"threads": 1}),
    ] {
        change("/limits", limits);
    }
    change("/models", json!([]));
    change("/models", json!([good["models"][0], good["models"][0]]));
    change(
        "/models",
        (0..17)
            .map(|n| {
                let mut model = good["models"][0].clone();
                model["name"] = json!(format!("m{n}"));
                model
            })
            .collect(),
    );
    documents.push(good.to_string().replacen("\"version\":1", "\"version\":1,\"version\":1", 1));
    documents.push(good.to_string().replacen("\"region\"", "\"guardrails\":{},\"region\"", 1));
    let image = "cd".repeat(48);
    for member in [
        "\"key_policies\":\"report\"".to_owned(),
        "\"key_policies\":\"refuse\"".to_owned(),
        "\"key_policies\":\"require\"".to_owned(),
        "\"key_policies\":\"Require\"".to_owned(),
        "\"key_policies\":null".to_owned(),
        "\"accepted_images\":[]".to_owned(),
        format!("\"accepted_images\":[\"{image}\"]"),
        format!("\"accepted_images\":[\"{image}00\"]"),
        format!("\"accepted_images\":[\"{}\"]", "00".repeat(48)),
        format!("\"accepted_images\":[{}]", vec![format!("\"{image}\""); 17].join(",")),
    ] {
        documents.push(good.to_string().replacen("\"region\"", &format!("{member},\"region\""), 1));
    }
    documents.push(format!("{}{}", " ".repeat(262_144), good));

    let mut taken = 0;
    for document in documents {
        let theirs = enclave::configuration::Configuration::parse(document.as_bytes());
        let ours = configuration::parse(document.as_bytes());
        assert_eq!(
            ours.is_ok(),
            theirs.is_ok(),
            "{document}\nthe doctor: {:?}\nthe enclave: {:?}",
            ours.err(),
            theirs.err()
        );
        if let (Ok(ours), Ok(theirs)) = (ours, theirs) {
            taken += 1;
            assert_eq!((ours.sha384, ours.model_pack_bytes), (theirs.sha384, theirs.limits.model_pack_bytes));
        }
    }
    assert!(taken >= 10, "{taken} were good");
}

const ENABLED: &str = "etc/systemd/system/multi-user.target.wants/nitro-enclaves-allocator.service";
const CPU_POOL: &str = "sys/module/nitro_enclaves/parameters/ne_cpus";
const NODES: &str = "sys/devices/system/node";
const ALLOCATOR: &str = "etc/nitro_enclaves/allocator.yaml";
const SETTINGS: &str = "etc/subrosa/enclave.env";
const CONFIGURATION: &str = "etc/subrosa/configuration.json";
const IMAGE: &str = "var/lib/subrosa/images/subrosa.eif";
const MEASUREMENTS: &str = "var/lib/subrosa/images/measurements.json";
const PACK: &str = "var/lib/subrosa/model-packs/subrosa-intake";
