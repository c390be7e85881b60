//! The claims of docs/THREAT_MODEL.md that need the whole system: real processes, real sockets, a simulated hypervisor and KMS.
//!
//! Programs are taken from where they were built: `make test` builds them first.

mod answers;
mod evidence;
mod images;
mod key_policies;
mod kms;
mod lifecycle;
mod messages;
mod secrecy;

use subrosa_client::Request;
use tests::stack::{Options, Stack};

/// A note that the demonstration model knows how to read.
const NOTE: &str = "Margaret Winter, 58F. Presents with chest pain, started two hours ago. Takes metformin 500 mg twice a day. Allergic to amoxicillin (rash).";

async fn stack() -> Stack {
    Stack::start(Options::new().unwrap()).await.unwrap()
}

/// The whole answer to [`NOTE`], as text.
async fn ask(stack: &Stack) -> Result<String, subrosa_client::AskError> {
    text(stack.client().build().unwrap().ask(question()).await?).await
}

/// About [`NOTE`], with the most likely token each time: every answer is the same.
fn question() -> Request {
    let mut request = Request::user(NOTE);
    request.temperature = Some(0.0);
    request
}

async fn text(mut answer: subrosa_client::Answer) -> Result<String, subrosa_client::AskError> {
    let mut text = String::new();
    while let Some(piece) = answer.next().await {
        text.push_str(&piece?.text);
    }
    answer.finish().await?;
    Ok(text)
}
