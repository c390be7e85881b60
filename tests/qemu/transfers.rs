//! Much at once, through the real vsock: a long answer on its way out, a large model pack on its way in.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::quantized::GgmlDType;
use serde_json::json;
use subrosa_client::Request;
use subrosa_client::transport::Deadlines;
use tests::stack::Stack;
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::console::Console;
use crate::machine::{Boot, Qemu};
use crate::making::{Shape, random_model};
use crate::parts::{Parts, compile};
use crate::serving::{BOOT_LIMIT, options};

/// A small model of random weights, which never ends by itself, talks until more than a mebibyte of frames is sealed.
pub(crate) fn long_answer(parts: &Arc<Parts>, runtime: &Runtime) -> Outcome {
    let folder = tempfile::tempdir()?;
    let model = folder.path().join("model.gguf");
    write_model(&Shape { context: 4096, ..Shape::TINY }, &model)?;
    let mut options = options(Qemu::new(parts, Boot::Test))?;
    options.model = model;
    options.limits = json!({"max_tokens": TOKENS, "request_seconds": 600});
    runtime.block_on(async {
        let stack = Stack::start(options).await?;
        let client = stack.client().deadlines(Deadlines::within(Duration::from_secs(600))).build()?;
        let mut request = Request::user("talk");
        request.max_tokens = Some(TOKENS);
        // The likeliest token is never the one that ends an answer.
        request.temperature = Some(0.0);
        let begun = Instant::now();
        let mut answer = client.ask(request).await?;
        let mut pieces = 0;
        while let Some(piece) = answer.next().await {
            piece?;
            pieces += 1;
        }
        // Only a message with its true end gets so far.
        let complete = answer.finish().await?;
        assert_eq!(complete.finish_reason(), Some("length"), "{:?}", complete.usage());
        let outward = stack.taps().iter().find(|tap| tap.name() == "parent to enclave").ok_or("the tap")?;
        let longest = outward.recorded().iter().map(Vec::len).max().unwrap_or(0);
        println!("  {longest} bytes from the enclave in {pieces} pieces, {:.1} s", begun.elapsed().as_secs_f64());
        assert!(longest > 1 << 20, "{longest} bytes");
        Ok(())
    })
}

/// A pack of 32 MiB and more: loaded by the enclave, and only copied by another program in its place.
pub(crate) fn throughput(parts: &Arc<Parts>, runtime: &Runtime) -> Outcome {
    let folder = tempfile::tempdir()?;
    let model = folder.path().join("model.gguf");
    let shape = Shape {
        width: 1024,
        layers: 2,
        feed_forward: 4352,
        heads: 16,
        kv_heads: 8,
        kind: GgmlDType::Q8_0,
        ..Shape::TINY
    };
    write_model(&shape, &model)?;

    let mut loading = options(Qemu::new(parts, Boot::Test))?;
    (loading.model, loading.ready_within, loading.recorded) = (model.clone(), None, false);
    let load = runtime.block_on(async {
        let stack = Stack::start(loading).await?;
        let console = Console::follow(&stack.folder().join("console.log"));
        let keyed = console.phase("keyed", BOOT_LIMIT).await?;
        let (loaded, _) = console.event("pack-loaded", BOOT_LIMIT).await?;
        stack.serves_within(BOOT_LIMIT).await?;
        let pack = std::fs::metadata(stack.folder().join("model-packs/subrosa-intake"))?.len();
        assert!(pack > 32 << 20, "{pack} bytes");
        Ok::<_, io::Error>(pack as f64 / loaded.duration_since(keyed).as_secs_f64())
    })?;

    let program = folder.path().join("plain-copy");
    compile(&tests::programs::project().join("tests/qemu/plain-copy.c"), &program)?;
    let mut copying = options(Qemu::new(parts, Boot::Program(program)))?;
    (copying.model, copying.ready_within, copying.recorded) = (model, None, false);
    let copy = runtime.block_on(async {
        let stack = Stack::start(copying).await?;
        let console = Console::follow(&stack.folder().join("console.log"));
        let fits = |round: u64| move |event: &serde_json::Value| event["event"] == "copied" && event["round"] == round;
        let (_, copied) = console.event_where("the copy", BOOT_LIMIT, fits(3)).await?;
        let (bytes, seconds) = (copied["bytes"].as_f64().unwrap_or(0.0), copied["seconds"].as_f64().unwrap_or(1.0));
        let pack = std::fs::metadata(stack.folder().join("model-packs/subrosa-intake"))?.len();
        assert!(bytes > pack as f64, "the whole pack and a head: {copied}");
        Ok::<_, io::Error>(bytes / seconds)
    })?;
    println!(
        "  model pack over vsock: loaded with {:.1} MB/s, a plain copy of the same bytes has {:.1} MB/s ({:.0} %)",
        load / 1e6,
        copy / 1e6,
        100.0 * load / copy
    );
    Ok(())
}

fn write_model(shape: &Shape, to: &Path) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(to)?);
    random_model(shape, 1).write(&mut file)?;
    file.flush()
}

/// Each is a frame of 512 bytes, its head and its tag: 544 bytes, so that these make more than a mebibyte, although some
/// are no whole character and wait for the next.
const TOKENS: u32 = 2200;
