//! What a customer does: verify, then ask. Both by the command that ships, with ordinary AWS settings in its environment.

use std::io::{self, Write};
use std::process::Stdio;

use tests::programs;
use tests::stack::{PROMPT_WRITER, Stack, TENANT};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

/// The `subrosa` command as the prompt writer would run it.
pub(super) fn subrosa(stack: &Stack, arguments: &[&str]) -> io::Result<Command> {
    let mut command = Command::new(programs::path("subrosa")?);
    command.args(arguments).env_clear().envs(stack.environment(&PROMPT_WRITER)).stdin(Stdio::null()).kill_on_drop(true);
    Ok(command)
}

/// The measurements that the customer expects, as arguments of the command.
pub(super) fn expected(stack: &Stack) -> Vec<String> {
    stack
        .measured
        .pcrs
        .iter()
        .flat_map(|(index, value)| ["--pcr".to_owned(), format!("{index}={}", hex::encode(value))])
        .collect()
}

pub(super) async fn verify(stack: &Stack) -> io::Result<()> {
    let (url, root) = (stack.url(), stack.attestation_root().display().to_string());
    let pcrs = expected(stack);
    let mut arguments = vec!["verify", "--url", &url, "--danger-root", &root];
    arguments.extend(pcrs.iter().map(String::as_str));
    println!(
        "  $ subrosa verify --url {url} --danger-root root.pem --pcr 0=... --pcr 1=... --pcr 2=... --pcr 16=... --pcr 17=..."
    );
    let output = subrosa(stack, &arguments)?.output().await?;
    print!("{}", indent(&output.stdout));
    if output.status.success() {
        Ok(())
    } else {
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

pub(super) async fn by_command(stack: &Stack, note: &str) -> io::Result<()> {
    let url = stack.url();
    println!(
        "  $ subrosa ask --url {url} --kms-key {} --tenant {TENANT} --temperature 0 --file note.txt",
        stack.customer_key
    );
    let file = stack.folder().join("customer");
    std::fs::create_dir_all(&file)?;
    let file = file.join("note.txt");
    std::fs::write(&file, note)?;
    let path = file.display().to_string();
    let arguments = [
        "ask",
        "--url",
        &url,
        "--kms-key",
        &stack.customer_key,
        "--tenant",
        TENANT,
        "--temperature",
        "0",
        "--file",
        &path,
    ];
    let mut child = subrosa(stack, &arguments)?.stdout(Stdio::piped()).spawn()?;
    let mut output = child.stdout.take().ok_or_else(|| io::Error::other("no output"))?;
    let mut buffer = [0; 256];
    let mut at_line_start = true;
    while let length @ 1.. = output.read(&mut buffer).await? {
        for byte in buffer.get(..length).unwrap_or_default() {
            let mut out = io::stdout();
            if at_line_start {
                out.write_all(b"  > ")?;
            }
            out.write_all(&[*byte])?;
            out.flush()?;
            at_line_start = *byte == b'\n';
        }
    }
    let status = child.wait().await?;
    std::fs::remove_file(&file)?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("subrosa ask: {status}"))) }
}

fn indent(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).lines().map(|line| format!("  {line}\n")).collect()
}
