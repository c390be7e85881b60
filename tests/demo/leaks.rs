//! The search for leaks, with its positive controls: a search that finds nothing proves something only if it would have found it.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use subrosa_client::Request;
use tests::memory;
use tests::search::{Findings, Secrets};
use tests::stack::Stack;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::{done, progress};

/// What was found in the parent's memory while an answer streamed, and how many bytes were searched.
pub(super) struct Watched {
    findings: Findings,
    bytes: u64,
}

/// Asks by the library, and searches the parent's memory in the middle of the answer. This process is the client: the same search of its
/// own memory must find prompt and answer.
pub(super) async fn ask_and_watch(stack: &Stack, note: &str, model: &[u8]) -> io::Result<(String, Watched)> {
    let client = stack.client().build().map_err(io::Error::other)?;
    let mut request = Request::user(note);
    request.temperature = Some(0.0);
    let mut answer = client.ask(request).await.map_err(io::Error::other)?;
    let mut text = String::new();
    let mut watched = None;
    let mut tokens = 0;
    while let Some(piece) = answer.next().await {
        text.push_str(&piece.map_err(io::Error::other)?.text);
        tokens += 1;
        if tokens == 8 {
            let started = Instant::now();
            progress("searching the parent's memory and, as a control, this client's own")?;
            let secrets =
                Secrets::new(&[("prompt", note.as_bytes()), ("answer", text.as_bytes()), ("weights", weights(model))]);
            let parent = stack.parent.pid().ok_or_else(|| io::Error::other("the parent has ended"))?;
            let mut findings = Findings::default();
            let bytes = memory::visit(parent, |region| findings.merge(secrets.search(region)))?;
            let own = Secrets::new(&[("prompt", note.as_bytes()), ("answer", text.as_bytes())]);
            let mut control = Findings::default();
            memory::visit(std::process::id(), |region| control.merge(own.search(region)))?;
            done(started);
            if !(control.has("prompt") && control.has("answer")) {
                return Err(io::Error::other(format!(
                    "the control failed: in the client's own memory there is {control}"
                )));
            }
            println!("  parent's memory, {bytes} bytes: {findings}\n  client's memory (control): found, as it must be");
            watched = Some(Watched { findings, bytes });
        }
    }
    answer.finish().await.map_err(io::Error::other)?;
    let watched = watched.ok_or_else(|| io::Error::other("the answer was too short to watch"))?;
    Ok((text, watched))
}

/// Searches everything, prints the bytes searched per link, and fails on any finding or any missing control.
pub(super) async fn search(stack: &Stack, note: &str, answer: &str, model: &[u8], watched: Watched) -> io::Result<()> {
    let started = Instant::now();
    progress("gathering the windows")?;
    let secrets =
        Secrets::new(&[("prompt", note.as_bytes()), ("answer", answer.as_bytes()), ("weights", weights(model))]);
    done(started);
    println!("  {} windows, each looked for raw, in hex, in base64 (three alignments) and JSON-escaped", secrets.len());
    let mut all = watched.findings;
    for tap in stack.taps() {
        let runs = tap.recorded();
        let bytes: usize = runs.iter().map(Vec::len).sum();
        if bytes == 0 {
            return Err(io::Error::other(format!(
                "nothing was recorded on the link {}: the search would prove nothing",
                tap.name()
            )));
        }
        let mut findings = Findings::default();
        for run in &runs {
            findings.merge(secrets.search(run));
        }
        println!("  link, {:<24} {bytes:>10} bytes: {findings}", tap.name());
        all.merge(findings);
    }
    let mut files = Findings::default();
    let mut bytes = 0;
    for path in ["parent.log", "hypervisor.log", "console.log", "configuration.json", "evidence.json", "model-packs"] {
        visit_files(&stack.folder().join(path), &mut |content| {
            bytes += content.len();
            files.merge(secrets.search(content));
        })?;
    }
    println!("  logs and files of the parent {bytes:>12} bytes: {files}");
    all.merge(files);
    let pid = stack.parent.pid().ok_or_else(|| io::Error::other("the parent has ended"))?;
    let mut findings = Findings::default();
    let after = memory::visit(pid, |region| findings.merge(secrets.search(region)))?;
    println!(
        "  memory of the parent         {after:>12} bytes: {findings} (and {} bytes while it streamed)",
        watched.bytes
    );
    all.merge(findings);
    if !all.is_empty() {
        return Err(io::Error::other(format!("a leak: {all}")));
    }
    controls(stack, note).await
}

/// Sends the prompt in the clear, in every form, through the same taps and into the parent's memory: the same search must find it.
async fn controls(stack: &Stack, note: &str) -> io::Result<()> {
    let secrets = Secrets::new(&[("prompt", note.as_bytes())]);
    let forms = [
        ("raw", note.to_owned()),
        ("hex", hex::encode(note)),
        ("base64", STANDARD.encode(note)),
        ("JSON-escaped", serde_json::to_string(&format!("\"{note}\"")).map_err(io::Error::other)?),
    ];
    let (folder, parent) = (stack.folder(), stack.parent.pid());
    let control = forms.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("\n");
    let request = format!(
        "POST /v1/sealed HTTP/1.1\r\nHost: parent\r\nContent-Type: application/vnd.aws-encryption-sdk\r\nContent-Length: {}\r\n\r\n{control}",
        control.len() + 1
    );
    // One byte of the body is still to come: the parent has what it was sent, and passes it on.
    let mut client = TcpStream::connect(stack.url().trim_start_matches("http://")).await?;
    client.write_all(request.as_bytes()).await?;
    let mut host = UnixStream::connect(folder.join("enclave.sock_8000")).await?;
    host.write_all(
        format!("GET /v1/nothing HTTP/1.1\r\nHost: parent\r\nX-Control: {}\r\n\r\n", control.replace('\n', " "))
            .as_bytes(),
    )
    .await?;
    let mut tunnel = UnixStream::connect(folder.join("enclave.sock_8443")).await?;
    tunnel.write_all(control.as_bytes()).await?;
    let mut door = UnixStream::connect(folder.join("parent.sock")).await?;
    door.write_all(control.as_bytes()).await?;
    let mut answer = [0; 1];
    let _ = tokio::time::timeout(Duration::from_secs(2), host.read(&mut answer)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    for tap in stack.taps() {
        let mut findings = Findings::default();
        for run in tap.recorded() {
            findings.merge(secrets.search(&run));
        }
        for (form, _) in &forms {
            if !findings.has_form("prompt", form) {
                return Err(io::Error::other(format!(
                    "the control failed: sent in the clear ({form}), not found on the link {}",
                    tap.name()
                )));
            }
        }
    }
    let mut findings = Findings::default();
    memory::visit(parent.ok_or_else(|| io::Error::other("the parent has ended"))?, |region| {
        findings.merge(secrets.search(region))
    })?;
    if !findings.has("prompt") {
        return Err(io::Error::other("the control failed: sent in the clear, not found in the parent's memory"));
    }
    println!(
        "  control: the prompt sent in the clear is found on every link in every form, and in the parent's memory"
    );
    Ok(())
}

/// The tensors: what follows the tokenizer in the file. Names and vocabulary are no secret of the weights.
fn weights(model: &[u8]) -> &[u8] {
    model.get(model.len() / 8..).unwrap_or_default()
}

fn visit_files(path: &Path, visit: &mut impl FnMut(&[u8])) -> io::Result<()> {
    if path.is_dir() {
        for entry in std::fs::read_dir(path)? {
            visit_files(&entry?.path(), visit)?;
        }
    } else if path.is_file() {
        visit(&std::fs::read(path)?);
    }
    Ok(())
}
