//! One machine that serves: what it answers, what its documents state, and what happens around it.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attestation::image::Image;
use attestation::measurement::extend;
use attestation::{Document, Pcr};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libtest_mimic::Failed;
use ring::digest::{SHA384, digest};
use serde_json::Value;
use simulator::authority::Authority;
use simulator::notary::Notary;
use tests::stack::{ENCLAVE, Options, PROMPT_WRITER, REGION, Stack, TENANT};
use tests::{by_hand, programs};
use tokio::process::Command;
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::console::Console;
use crate::image::measured;
use crate::machine::{BOOTED, Boot, INSTANCE_ID, MODULE_ID, Qemu, TRUSTED};
use crate::notary_relay::{NotaryRelay, signed};
use crate::parts::Parts;

/// The signed test image, serving.
pub(crate) struct Serving {
    stack: Stack,
    parts: Arc<Parts>,
    relay: NotaryRelay,
    notary: Notary,
    certificate: Vec<u8>,
    boot: Duration,
    _signer: tempfile::TempDir,
}

impl Serving {
    pub(crate) async fn start(parts: &Arc<Parts>) -> io::Result<Serving> {
        let signer = tempfile::tempdir()?;
        let (key, certificate) = (signer.path().join("key.pem"), signer.path().join("certificate.pem"));
        let der = make_signer(&key, &certificate)?;
        let mut machine = Qemu::new(parts, Boot::Test);
        machine.signer = Some((key, certificate));
        let mut options = options(machine)?;
        options.ready_within = None;
        let begun = Instant::now();
        let stack = Stack::start(options).await?;
        let started = Instant::now();
        let console = Console::follow(&stack.folder().join("console.log"));
        console.event("serving", BOOT_LIMIT).await?;
        stack.serves_within(BOOT_LIMIT).await?;
        let boot = started.elapsed();
        println!(
            "  stack made in {:.1} s, boot to Serving in {:.1} s",
            begun.elapsed().as_secs_f64(),
            boot.as_secs_f64()
        );
        let authority = Authority::open_or_create(&stack.folder().join("authority")).map_err(io::Error::other)?;
        let notary = Notary::new(Arc::new(authority), REGION);
        let relay = NotaryRelay::start(stack.url(), notary.clone()).await?;
        Ok(Serving { stack, parts: parts.clone(), relay, notary, certificate: der, boot, _signer: signer })
    }

    /// The shipped command, as the prompt writer runs it: status, output, errors.
    async fn subrosa(&self, arguments: &[&str]) -> io::Result<(Option<i32>, String, String)> {
        let mut command = Command::new(programs::path("subrosa")?);
        command.args(arguments).env_clear().envs(self.stack.environment(&PROMPT_WRITER));
        let ran = command.stdin(Stdio::null()).kill_on_drop(true).output();
        let output = tokio::time::timeout(ANSWER_LIMIT, ran).await.map_err(io::Error::other)??;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
    }

    /// `--pcr N=HEX` for everything that is known of the trusted enclave.
    fn expected(&self) -> Result<Vec<String>, Failed> {
        let registers = self.registers()?;
        Ok(registers
            .iter()
            .flat_map(|(index, value)| ["--pcr".to_owned(), format!("{index}={}", hex::encode(value))])
            .collect())
    }

    /// Registers 0, 1, 2 and 8 as the image measures to, 3 and 4 as the machine was started, 16 and 17 as model and configuration say.
    fn registers(&self) -> Result<Vec<(u8, Pcr)>, Failed> {
        let mut registers = measured(&self.stack.folder().join(TRUSTED))?;
        let zero = [0; 48];
        registers.extend([(3, extend(&zero, ENCLAVE.arn().as_bytes())), (4, extend(&zero, INSTANCE_ID.as_bytes()))]);
        registers.extend([16, 17].map(|index| (index, self.stack.measured.pcrs[&index])));
        Ok(registers)
    }

    async fn ask(&self) -> io::Result<String> {
        let note = programs::project().join("tests/demo-model/note.txt").display().to_string();
        let (url, key) = (self.relay.url(), self.stack.customer_key.clone());
        let arguments =
            ["ask", "--url", &url, "--kms-key", &key, "--tenant", TENANT, "--temperature", "0", "--file", &note];
        let (status, answer, errors) = self.subrosa(&arguments).await?;
        if status == Some(0) { Ok(answer) } else { Err(io::Error::other(format!("subrosa ask: {status:?} {errors}"))) }
    }
}

/// A stack over this machine, with the notary in its KMS.
pub(crate) fn options(machine: Qemu) -> io::Result<Options> {
    let mut options = Options::new()?;
    options.machine = Some(Arc::new(machine));
    options.danger_notary = true;
    options.ready_within = Some(BOOT_LIMIT);
    Ok(options)
}

pub(crate) fn answers(serving: &mut Serving, runtime: &Runtime) -> Outcome {
    runtime.block_on(async {
        let root = serving.stack.attestation_root().display().to_string();
        let pcrs = serving.expected()?;
        let url = serving.relay.url();
        let mut arguments = vec!["verify", "--url", &url, "--danger-root", &root];
        arguments.extend(pcrs.iter().map(String::as_str));
        let (status, output, errors) = serving.subrosa(&arguments).await?;
        assert_eq!(status, Some(0), "{output}{errors}");

        let asked = Instant::now();
        let answer = serving.ask().await?;
        println!(
            "  first answer in {:.1} s; boot to Serving took {:.1} s",
            asked.elapsed().as_secs_f64(),
            serving.boot.as_secs_f64()
        );
        assert!(answer.contains("allergy: amoxicillin"), "{answer}");
        assert!(answer.contains("metformin"), "{answer}");
        let calls = serving.stack.kms.journal().of("Decrypt");
        assert!(calls.iter().all(|call| call.attested && call.outcome == "ok"), "{calls:?}");
        assert!(serving.boot < Duration::from_secs(60), "{:?}", serving.boot);
        Ok(())
    })
}

pub(crate) fn registers(serving: &mut Serving, runtime: &Runtime) -> Outcome {
    runtime.block_on(async {
        let url = format!("{}/v1/attestation?nonce={}", serving.stack.direct_url(), "5a".repeat(32));
        let (status, evidence) = by_hand::get(&url).await?;
        assert_eq!(status, 200);
        let evidence: Value = serde_json::from_slice(&signed(&evidence, &serving.notary)?)?;
        let document = STANDARD.decode(evidence["document"].as_str().unwrap_or_default())?;
        let stated = Document::parse(&document)?;
        assert_eq!((stated.module_id(), stated.nonce()), (MODULE_ID, Some([0x5a; 32].as_slice())));
        for (index, value) in serving.registers()? {
            assert_eq!(stated.pcrs().get(&index).map(hex::encode), Some(hex::encode(value)), "PCR{index}");
        }
        // PCR8 is SHA384 over zeros and the certificate's digest, whoever computes it.
        let certificate: Pcr = extend(&[0; 48], digest(&SHA384, &serving.certificate).as_ref());
        assert_eq!(stated.pcrs()[&8], certificate);

        let image = serving.stack.folder().join(TRUSTED).display().to_string();
        let (status, output, errors) = serving.subrosa(&["measure", &image, "--json"]).await?;
        assert_eq!(status, Some(0), "{errors}");
        let output: Value = serde_json::from_str(&output)?;
        for index in [0, 1, 2, 8] {
            let shown = output["Measurements"][format!("PCR{index}")].as_str().unwrap_or_default();
            assert_eq!(shown, hex::encode(stated.pcrs()[&index]), "PCR{index}");
        }
        Ok(())
    })
}

pub(crate) fn same_program(serving: &mut Serving, _: &Runtime) -> Outcome {
    let (test, shipped) = (fs::read(serving.stack.folder().join(BOOTED))?, fs::read(&serving.parts.shipped)?);
    let (test, shipped) = (Image::parse(&test)?, Image::parse(&shipped)?);
    assert!(test.kernel() == shipped.kernel(), "the same kernel");
    assert_eq!(test.command_line(), shipped.command_line());
    assert!(test.ramdisks().next() == shipped.ramdisks().next(), "the same program");
    let (test, shipped) = (test.measurements(), shipped.measurements());
    assert_eq!(test.pcr1, shipped.pcr1);
    assert_ne!(test.pcr0, shipped.pcr0);
    assert_ne!(test.pcr2, shipped.pcr2);
    Ok(())
}

pub(crate) fn unsigned(serving: &mut Serving, runtime: &Runtime) -> Outcome {
    runtime.block_on(async {
        let root = serving.stack.attestation_root().display().to_string();
        let pcrs = serving.expected()?;
        // The same that is accepted through the notary.
        let unsigned = "the protected header is not exactly ES384";
        for (url, trusts, why) in [(serving.stack.direct_url(), true, unsigned), (serving.relay.url(), false, "root")] {
            let mut arguments = vec!["verify", "--url", &url];
            if trusts {
                arguments.extend(["--danger-root", &root]);
            }
            arguments.extend(pcrs.iter().map(String::as_str));
            let (status, output, errors) = serving.subrosa(&arguments).await?;
            assert_eq!(status, Some(MISMATCH), "{output}{errors}");
            assert!(format!("{output}{errors}").contains(why), "{output}{errors}");
        }
        Ok(())
    })
}

pub(crate) fn parent_restart(serving: &mut Serving, runtime: &Runtime) -> Outcome {
    runtime.block_on(async {
        let before = serving.ask().await?;
        serving.stack.restart_parent().await?;
        serving.stack.serves_within(Duration::from_secs(60)).await?;
        assert_eq!(serving.ask().await?, before);
        Ok(())
    })
}

pub(crate) fn machine_gone(serving: &mut Serving, runtime: &Runtime) -> Outcome {
    runtime.block_on(async {
        serving.stack.kill_enclave().await?;
        unavailable(&serving.stack).await?;
        serving.ask().await.expect_err("no enclave, no answer");
        Ok(())
    })
}

/// The parent says that no enclave answers.
pub(crate) async fn unavailable(stack: &Stack) -> io::Result<()> {
    let url = format!("{}/readyz", stack.direct_url());
    let said = || async {
        let said = by_hand::get(&url).await;
        said.is_ok_and(|(status, body)| status == 503 && body.as_ref() == br#"{"refusal":"enclave-unavailable"}"#)
    };
    programs::until("enclave-unavailable", Duration::from_secs(30), said, || stack.parent.output()).await
}

/// A P-384 key with its certificate, as for `nitro-cli build-enclave`; returns the certificate's DER.
fn make_signer(key: &PathBuf, certificate: &PathBuf) -> io::Result<Vec<u8>> {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).map_err(io::Error::other)?;
    let parameters = rcgen::CertificateParams::new(vec!["release.invalid".to_owned()]).map_err(io::Error::other)?;
    let signed = parameters.self_signed(&pair).map_err(io::Error::other)?;
    fs::write(key, pair.serialize_pem())?;
    fs::write(certificate, signed.pem())?;
    Ok(signed.der().to_vec())
}

/// Under TCG, on a machine that has other things to do.
pub(crate) const BOOT_LIMIT: Duration = Duration::from_secs(180);
const ANSWER_LIMIT: Duration = Duration::from_secs(300);
/// `Exit::Mismatch` of the command.
const MISMATCH: i32 = 5;
