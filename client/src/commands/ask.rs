//! `subrosa ask`.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use sealing::message::Suite;
use serde_json::{Value, json};
use subrosa_client::answer::{Answer, Complete};
use subrosa_client::key_policy::KeyPolicyVerdict;
use subrosa_client::live::Verification;
use subrosa_client::measurements::join;
use subrosa_client::request::DEFAULT_MODEL;
use subrosa_client::transport::Deadlines;
use subrosa_client::{AnswerUnder, Client, Message, Request, aws};

use super::arguments::{MeasurementArguments, anchor, read_bounded, seconds, suite};
use super::exit::{Exit, Failure};
use super::interrupted;
use super::output::{note, print};

/// Ask a model: seal the question under a KMS key, send it, open the answer as it comes.
#[derive(Args)]
#[command(after_help = HELP)]
#[group(id = "question", required = true, multiple = false, args = ["file", "text"])]
pub(crate) struct Ask {
    /// The parent's front door.
    #[arg(long, env = "SUBROSA_URL")]
    url: String,
    /// The KMS key that seals the question: the full key ARN, or an alias.
    #[arg(long, value_name = "ARN", env = "SUBROSA_KMS_KEY")]
    kms_key: String,
    /// The tenant: 1 to 64 of A-Z a-z 0-9 . _ -; the parent sees it.
    #[arg(long, env = "SUBROSA_TENANT")]
    tenant: String,
    /// The model, by the name that the service gives it.
    #[arg(long, env = "SUBROSA_MODEL", default_value = DEFAULT_MODEL)]
    model: String,
    /// A system message before the question.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Read the question from this file.
    #[arg(long)]
    file: Option<PathBuf>,
    /// The question; `-`: standard input.
    text: Option<String>,
    /// Most tokens of the answer.
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// Sampling temperature; 0 takes the likeliest token.
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Nucleus sampling.
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Seed of the sampling.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seed: Option<i64>,
    /// Take the answer at once, not token by token.
    #[arg(long)]
    no_stream: bool,
    /// Seal the answer under a one-time key of this command, or under the KMS key.
    #[arg(long, value_enum, default_value = "reply-key", value_name = "KEY")]
    answer_under: Under,
    /// The suite of the request: 0478, or 0578 with a signature.
    #[arg(long, default_value = "0478", value_parser = suite)]
    suite: Suite,
    /// The suite of the answer. Under 0578 nothing is printed before the signature is verified.
    #[arg(long, default_value = "0478", value_parser = suite)]
    answer_suite: Suite,
    /// Only this enclave, by its module id, may act on the question.
    #[arg(long, value_name = "MODULE_ID")]
    enclave: Option<String>,
    /// Verify the enclave before anything is sealed, and let only that one act on it. Needs --pcr or --measurements with
    /// PCR0, which imply it.
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    measurements: MeasurementArguments,
    /// With --verify: how old the attestation document may be, in seconds; at most 300.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    max_age: Option<Duration>,
    /// With --verify: the lowest release of the enclave's image that is accepted.
    #[arg(long, value_name = "N")]
    min_release: Option<u64>,
    /// With --verify: trust this root instead of AWS's. For the simulator.
    #[arg(long, value_name = "FILE.pem")]
    danger_root: Option<PathBuf>,
    /// With --verify: accept an enclave in debug mode, whose memory its parent reads.
    #[arg(long)]
    danger_allow_debug: bool,
    /// How long to wait for everything together, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Speak HTTP/2 without negotiation on http://.
    #[arg(long)]
    http2: bool,
    /// One JSON object a line: {"event":"delta"} for each piece, {"event":"end"} at last.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Under {
    ReplyKey,
    Kms,
}

impl Ask {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let json = self.json;
        let result = tokio::select! {
            result = self.ask() => result,
            failure = interrupted() => Err(failure),
        };
        match (&result, json) {
            (Err(failure), true) => {
                let end = json!({"event": "end", "complete": false, "error": failure.message(), "exit": failure.exit() as u8});
                print(&end.to_string())?;
            }
            // The prompt of the shell shall not stand behind half an answer.
            (Err(_), false) if io::stdout().is_terminal() => print("")?,
            _ => {}
        }
        result
    }

    async fn ask(self) -> Result<(), Failure> {
        let verification = self.verification()?;
        let request = self.request()?;
        let mut builder = Client::builder(&self.url)
            .key(&self.kms_key)
            .tenant(&self.tenant)
            .suite(self.suite)
            .answer_suite(self.answer_suite)
            .answer_under(match self.answer_under {
                Under::ReplyKey => AnswerUnder::ReplyKey,
                Under::Kms => AnswerUnder::Kms,
            })
            .deadlines(self.timeout.map_or_else(Deadlines::default, Deadlines::within))
            .http2(self.http2)
            .kms(aws::kms_client().await?);
        if let Some(enclave) = &self.enclave {
            builder = builder.enclave(enclave);
        }
        if let Some(verification) = verification {
            builder = builder.verification(verification);
        }
        let answer = builder.build()?.ask(request).await?;
        let complete = relay(answer, self.json).await?;
        self.end(&complete)
    }

    fn verification(&self) -> Result<Option<Verification>, Failure> {
        let pcrs = join(self.measurements.read()?);
        if pcrs.is_empty() {
            let asked = self.verify
                || self.danger_root.is_some()
                || self.max_age.is_some()
                || self.min_release.is_some()
                || self.danger_allow_debug;
            let what = "give --pcr, --measurements or --image: without an expected measurement any enclave would do";
            return if asked { Err(Failure::usage(what)) } else { Ok(None) };
        }
        let usual = Verification::of(pcrs);
        Ok(Some(Verification {
            anchor: anchor(self.danger_root.as_deref())?,
            max_age: self.max_age.unwrap_or(usual.max_age),
            danger_allow_debug: self.danger_allow_debug,
            min_release: self.min_release,
            ..usual
        }))
    }

    fn request(&self) -> Result<Request, Failure> {
        let text = match (&self.file, self.text.as_deref()) {
            (Some(path), _) => read_text(path)?,
            (None, Some("-")) => read_text(Path::new("-"))?,
            (None, text) => text.unwrap_or_default().to_owned(),
        };
        if text.trim().is_empty() {
            return Err(Failure::usage("the question is empty"));
        }
        let mut request = Request::user(text);
        if let Some(system) = &self.system {
            request.messages.insert(0, Message { role: "system".to_owned(), content: system.clone() });
        }
        Ok(Request {
            model: Some(self.model.clone()),
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            seed: self.seed,
            stream: !self.no_stream,
            ..request
        })
    }

    fn end(&self, complete: &Complete) -> Result<(), Failure> {
        let usage = complete.usage();
        if self.json {
            let end = json!({
                "event": "end",
                "complete": true,
                "finish_reason": complete.finish_reason(),
                "usage": usage,
                "model": complete.model(),
                "message_id": complete.message_id().to_string(),
                "key_policy": complete.key_policy().map(KeyPolicyVerdict::to_json),
            });
            return print(&end.to_string());
        }
        print("")?;
        if let Some(verdict) = complete.key_policy().filter(|verdict| verdict.open().is_some_and(|open| open > 0)) {
            note(&format!("subrosa: warning: the policy of {}: {}", self.kms_key, verdict.to_line()));
        }
        let reason = complete.finish_reason().unwrap_or("unknown");
        let tokens = usage.map_or_else(String::new, |usage| {
            format!(", {} tokens in, {} out", usage.prompt_tokens, usage.completion_tokens)
        });
        if io::stderr().is_terminal() || reason == "length" {
            note(&format!("subrosa: the answer is complete and authentic (finish reason: {reason}{tokens})"));
        }
        Ok(())
    }
}

/// Prints each piece as soon as it is released.
async fn relay(mut answer: Answer, json: bool) -> Result<Complete, Failure> {
    let (mut out, terminal) = (io::stdout(), io::stdout().is_terminal());
    while let Some(piece) = answer.next().await {
        let text = piece?.text;
        let line: Value = json!({"event": "delta", "text": text});
        let written = match (json, terminal) {
            (true, _) => writeln!(out, "{line}"),
            // A model is a program from a stranger: it must not steer the terminal.
            (false, true) => out.write_all(plain(&text).as_bytes()),
            (false, false) => out.write_all(text.as_bytes()),
        };
        written
            .and_then(|()| out.flush())
            .map_err(|error| Failure::new(Exit::Other, format!("standard output: {error}")))?;
    }
    Ok(answer.finish().await?)
}

fn plain(text: &str) -> String {
    text.chars().filter(|character| !character.is_control() || matches!(character, '\n' | '\t')).collect()
}

fn read_text(path: &Path) -> Result<String, Failure> {
    let bytes = read_bounded(path, MAX_QUESTION)?;
    String::from_utf8(bytes).map_err(|_| Failure::usage(format!("{} is not UTF-8 text", path.display())))
}

/// docs/PROTOCOL.md section 4: a sealed request has at most 1 MiB.
const MAX_QUESTION: u64 = 1 << 20;

const HELP: &str = "\
Examples:
  subrosa ask --url http://127.0.0.1:8080 --kms-key arn:aws:kms:us-east-1:111122223333:key/... --tenant acme \\
      --file note.txt
  subrosa ask ... --measurements eif.json \"Summarise this note: ...\"     verifies the enclave before it seals
  subrosa ask ... --answer-under kms --json - < note.txt                  answer under the KMS key, events as JSON

The key policy decides which code may open the question; --pcr or --measurements check it here as well, before
anything is sent. Each piece that is printed is authentic; only exit code 0 says that the answer is whole.
SUBROSA_URL, SUBROSA_KMS_KEY and SUBROSA_TENANT stand for the options of these names.
AWS SSO and credential_process profiles are not supported; otherwise AWS settings are the usual ones.

Exit code 3: the parent or KMS cannot be reached; 4: refused (by the parent: its word only; by KMS; or by the enclave,
inside a sealed answer); 5: the enclave is not the expected one, nothing was sent; 1: anything else, such as an answer
that is incomplete or not to this question.";
