//! What must not come up, does not, and says why.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::sync::Arc;
use std::time::Duration;

use tests::programs::until;
use tests::stack::Stack;
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::console::Console;
use crate::image::measured;
use crate::machine::{BOOTED, Boot, Qemu, TRUSTED};
use crate::making::{Shape, random_model};
use crate::parts::Parts;
use crate::serving::{BOOT_LIMIT, options, unavailable};

pub(crate) fn changed_byte(parts: &Arc<Parts>, runtime: &Runtime) -> Outcome {
    let mut options = options(Qemu::new(parts, Boot::OneByteChanged))?;
    options.ready_within = None;
    runtime.block_on(async {
        let stack = Stack::start(options).await?;
        let [trusted, booted] = [TRUSTED, BOOTED].map(|name| stack.folder().join(name));
        let differing =
            fs::read(&trusted)?.iter().zip(fs::read(&booted)?).enumerate().filter(|(_, (a, b))| *a != b).count();
        assert!((1..=5).contains(&differing), "one byte, and the four of the checksum: {differing}");
        let (trusted, booted) = (measured(&trusted)?, measured(&booted)?);
        assert_ne!(trusted[0], booted[0], "PCR0");
        assert_eq!(trusted[1], booted[1], "PCR1: kernel and program are the same");

        let denied =
            || async { stack.kms.journal().of("Decrypt").iter().any(|call| call.outcome == "AccessDeniedException") };
        until("KMS refuses", BOOT_LIMIT, denied, || stack.console()).await?;
        for call in stack.kms.journal().of("Decrypt") {
            assert!(call.attested && call.outcome == "AccessDeniedException", "{call:?}");
            assert_eq!(call.pcr0.as_deref(), Some(hex::encode(booted[0].1).as_str()), "QEMU measures what we measure");
        }
        ends(stack, "model-pack-key").await
    })
}

pub(crate) fn shipped(parts: &Arc<Parts>, runtime: &Runtime) -> Outcome {
    let mut options = options(Qemu::new(parts, Boot::Shipped))?;
    options.ready_within = None;
    runtime.block_on(async {
        let stack = Stack::start(options).await?;
        let console = Console::follow(&stack.folder().join("console.log"));
        let waits = |event: &serde_json::Value| event["event"] == "waiting" && event["service"] == "kms";
        console.event_where("the enclave waits for the true KMS", BOOT_LIMIT, waits).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let text = console.text();
        assert!(text.contains(r#""phase":"configured""#) && !text.contains(r#""phase":"keyed""#), "{text}");
        let dialled = stack.taps().iter().find(|tap| tap.name() == "parent to KMS").map(|tap| tap.recorded().len());
        assert!(dialled.is_some_and(|connections| connections > 0), "it reached the simulated KMS's door");
        assert!(stack.kms.journal().of("Decrypt").is_empty(), "and asked it for nothing");
        assert_eq!(tests::stack::status(&format!("{}/readyz", stack.direct_url())).await, Some(503));
        Ok(())
    })
}

pub(crate) fn no_room(parts: &Arc<Parts>, runtime: &Runtime) -> Outcome {
    let folder = tempfile::tempdir()?;
    let model = folder.path().join("model.gguf");
    let shape = Shape { width: 1024, layers: 2, feed_forward: 4352, heads: 16, kv_heads: 8, ..Shape::TINY };
    let mut file = BufWriter::new(File::create(&model)?);
    random_model(&shape, 1).write(&mut file)?;
    file.flush()?;
    let mut machine = Qemu::new(parts, Boot::Test);
    machine.mebibytes = 160;
    let mut options = options(machine)?;
    (options.model, options.ready_within) = (model, None);
    runtime.block_on(async {
        let stack = Stack::start(options).await?;
        let console = Console::follow(&stack.folder().join("console.log"));
        let (_, said) = console.event("no-room", BOOT_LIMIT).await?;
        assert!(said["needed-bytes"].as_u64() > said["available-bytes"].as_u64(), "{said}");
        assert!(!console.text().contains("Kernel panic"), "{}", console.text());
        println!("  console: {said}");
        ends(stack, "memory").await
    })
}

/// A first program that is none: the kernel has nothing to run.
pub(crate) fn panic(parts: &Arc<Parts>, runtime: &Runtime) -> Outcome {
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("no-program");
    // An ELF file by its first four bytes, which is all that the writer of images looks at.
    fs::write(&program, b"\x7fELF and no more")?;
    let mut options = options(Qemu::new(parts, Boot::Program(program)))?;
    options.ready_within = None;
    runtime.block_on(async {
        let mut stack = Stack::start(options).await?;
        let console = Console::follow(&stack.folder().join("console.log"));
        console.text_with("Kernel panic", BOOT_LIMIT).await?;
        stack.hypervisor.ended(Duration::from_secs(30)).await?;
        unavailable(&stack).await?;
        Ok(())
    })
}

/// The enclave ends for this reason, the machine with it, and the parent says so.
async fn ends(mut stack: Stack, reason: &str) -> Outcome {
    let console = Console::follow(&stack.folder().join("console.log"));
    let ended = |event: &serde_json::Value| event["event"] == "ended" && event["reason"] == reason;
    console.event_where(&format!("the end: {reason}"), Duration::from_secs(60), ended).await?;
    stack.hypervisor.ended(Duration::from_secs(30)).await?;
    unavailable(&stack).await?;
    Ok(())
}
