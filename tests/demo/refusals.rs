//! What is refused, each shown with its reason as the refusing side gives it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tests::by_hand::{ByHand, get, post};
use tests::programs::until;
use tests::stack::{Stack, TENANT};

use crate::ask::{expected, subrosa};

pub(super) async fn show(stack: &mut Stack, note: &str) -> io::Result<()> {
    tampered_prompt(stack, note).await?;
    foreign_tenant(stack, note).await?;
    stale_and_replayed_documents(stack).await?;
    debug_enclave(stack).await?;
    changed_program(stack).await
}

/// One bit of a sealed prompt changed on the way.
async fn tampered_prompt(stack: &Stack, note: &str) -> io::Result<()> {
    let mut message = ByHand::asking(note).seal(stack).await?;
    let good = send(stack, message.clone()).await?;
    if good.0 != 200 {
        return Err(io::Error::other(format!("the untouched message is refused: {} {}", good.0, good.1)));
    }
    let mut message_again = ByHand::asking(note).seal(stack).await?;
    let middle = message_again.len() / 2;
    if let Some(byte) = message_again.get_mut(middle) {
        *byte ^= 1;
    }
    let (status, body) = send(stack, message_again).await?;
    refusal("a tampered prompt (one bit)", status == 400 && body.contains("cannot-open"), &format!("{status} {body}"))?;
    message.truncate(message.len() - 1);
    let (status, body) = send(stack, message).await?;
    refusal("a truncated prompt (one byte)", status == 400 && body.contains("cannot-open"), &format!("{status} {body}"))
}

/// A message whose header claims another tenant than the one its data key was made for.
async fn foreign_tenant(stack: &Stack, note: &str) -> io::Result<()> {
    stack.kms.journal().clear();
    let mut message = ByHand::asking(note).seal(stack).await?;
    let at = message.windows(TENANT.len()).position(|window| window == TENANT.as_bytes());
    let last = at
        .and_then(|at| message.get_mut(at + TENANT.len() - 1))
        .ok_or_else(|| io::Error::other("no tenant in the header"))?;
    *last = b'8';
    let (status, body) = send(stack, message).await?;
    let said = stack.kms.journal().of("Decrypt").pop().map_or_else(String::new, |entry| entry.outcome);
    refusal(
        "another tenant's context",
        status == 400 && body.contains("cannot-open"),
        &format!("{status} {body}; KMS: {said}"),
    )
}

/// Evidence that was good once, shown again; and the clock's word on old evidence.
async fn stale_and_replayed_documents(stack: &Stack) -> io::Result<()> {
    let nonce = "00112233445566778899aabbccddeeff";
    let (status, evidence) = get(&format!("{}/v1/attestation?nonce={nonce}", stack.url())).await?;
    if status != 200 {
        return Err(io::Error::other(format!("no document: {status}")));
    }
    let file = stack.folder().join("evidence.json");
    std::fs::write(&file, evidence)?;
    let (path, root, pcrs) =
        (file.display().to_string(), stack.attestation_root().display().to_string(), expected(stack));
    let other_nonce = "ffeeddccbbaa99887766554433221100";
    let later = time::OffsetDateTime::now_utc() + time::Duration::seconds(600);
    let later = later.format(&time::format_description::well_known::Rfc3339).map_err(io::Error::other)?;
    let cases: [(&str, &[&str]); 3] = [
        ("a replayed attestation document (another client's nonce)", &["--nonce", other_nonce]),
        ("a stale attestation document (ten minutes old)", &["--at", &later, "--max-age", "300"]),
        ("a document of a root that is not AWS's", &[]),
    ];
    for (what, more) in cases {
        let mut arguments = vec!["verify", "--document", &path];
        if !more.is_empty() {
            arguments.extend(["--danger-root", &root]);
        }
        arguments.extend(more);
        arguments.extend(pcrs.iter().map(String::as_str));
        let output = subrosa(stack, &arguments)?.output().await?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        let reason = text.lines().skip(1).find(|line| line.contains("FAILED")).unwrap_or(&text).trim().to_owned();
        refusal(
            what,
            output.status.code() == Some(5),
            &format!("exit {}: {reason}", output.status.code().unwrap_or(-1)),
        )?;
    }
    Ok(())
}

/// The right image, started with the hypervisor's debug switch.
async fn debug_enclave(stack: &mut Stack) -> io::Result<()> {
    let program = tests::programs::path("simulated-enclave")?;
    stack.kill_enclave().await?;
    stack.kms.journal().clear();
    let before = stack.console().len();
    stack.start_enclave(&program, true)?;
    let ended = stack.hypervisor.ended(Duration::from_secs(30)).await?;
    let console = stack.console();
    let last = console.get(before..).unwrap_or_default().lines().next_back().unwrap_or_default().to_owned();
    let asked = stack.kms.journal().entries().len();
    refusal(
        "a debug-mode enclave",
        !ended.success() && asked == 0,
        &format!("it ends ({ended}) before it asks KMS for anything; console: {last}"),
    )
}

/// A copy of the program with one byte of its read-only data changed, really started.
async fn changed_program(stack: &mut Stack) -> io::Result<()> {
    let copy = stack.folder().join("changed-enclave");
    change_one_byte(&tests::programs::path("simulated-enclave")?, &copy)?;
    stack.kms.journal().clear();
    stack.start_enclave(&copy, false)?;
    let refused = || {
        let entries = stack.kms.journal().of("Decrypt");
        async move { entries.iter().any(|entry| entry.outcome != "ok") }
    };
    until("the changed enclave asks KMS", Duration::from_secs(30), refused, || stack.console()).await?;
    let entry = stack.kms.journal().of("Decrypt").into_iter().find(|entry| entry.outcome == "AccessDeniedException");
    let said = entry.as_ref().map_or_else(|| "?".to_owned(), |entry| format!("{}: {}", entry.outcome, entry.message));
    refusal("an enclave program with one byte changed", entry.is_some_and(|entry| entry.attested), &said)?;
    let (status, _) = get(&format!("{}/readyz", stack.url())).await?;
    refusal("asking the changed enclave", status == 503, &format!("/readyz says {status}"))?;
    stack.kill_enclave().await?;
    stack.start_enclave(&tests::programs::path("simulated-enclave")?, false)?;
    stack.serves_within(Duration::from_secs(60)).await?;
    println!("  (the good enclave is started again, and serves)");
    Ok(())
}

/// Changes a letter of a panic message of the standard library, in the read-only data of an ELF file: the program does the same.
fn change_one_byte(program: &Path, copy: &PathBuf) -> io::Result<()> {
    let mut bytes = std::fs::read(program)?;
    let text = b"called `Option::unwrap()` on a `None` value";
    let at = bytes.windows(text.len()).position(|window| window == text);
    let byte = at
        .and_then(|at| bytes.get_mut(at))
        .ok_or_else(|| io::Error::other("the text to change is not in the program"))?;
    *byte = b'C';
    std::fs::write(copy, bytes)
}

fn refusal(what: &str, is_refused: bool, reason: &str) -> io::Result<()> {
    if !is_refused {
        return Err(io::Error::other(format!("{what} was not refused as it must be: {reason}")));
    }
    println!("  refused: {what}\n      {}", reason.trim());
    Ok(())
}

async fn send(stack: &Stack, message: Vec<u8>) -> io::Result<(u16, String)> {
    let (status, body) = post(&stack.url(), message).await?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}
