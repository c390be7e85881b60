//! The whole system with a warm data key and one engine thread.

use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sealing::message::EncryptionContext;
use serde_json::json;
use subrosa_client::data_key::KmsKey;
use subrosa_client::{Client, Request};
use tests::stack::{Options, PROMPT_WRITER, REGION, Stack, TENANT};
use tokio::net::TcpListener;

use crate::{Outcome, Timing, engine};

/// The simulated hypervisor gives an enclave no environment. So it is given this program, which goes on as the
/// simulated enclave on one CPU: as many threads has its engine's pool.
pub(crate) fn become_enclave_if_asked() -> Outcome<()> {
    let mut arguments = std::env::args_os();
    if arguments.next().is_none_or(|name| name != "enclave") {
        return Ok(());
    }
    let mut enclave = Command::new("taskset");
    enclave.args(["-c", &engine::cpu()?, env!("CARGO_BIN_EXE_simulated-enclave")]).args(arguments);
    Err(enclave.env("PATH", "/usr/local/bin:/usr/bin:/bin").exec().into())
}

pub(crate) struct System {
    stack: Stack,
    client: Client,
    key: KmsKey,
}

impl System {
    pub(crate) async fn start(model: &Path) -> Outcome<Self> {
        let program = std::env::current_exe()?;
        let stack = Stack::start(Options {
            program: program.clone(),
            trusted_program: program,
            model: model.to_owned(),
            limits: json!({ "request_seconds": 900 }),
            ready_within: Some(Duration::from_secs(240)),
            recorded: false,
            ..Options::new()?
        })
        .await?;
        let kms = one_data_key(&stack).await?;
        let key = KmsKey::new(kms.clone(), &stack.customer_key);
        let client = Client::builder(stack.direct_url()).kms(kms).key(&stack.customer_key).tenant(TENANT).build()?;
        Ok(Self { stack, client, key })
    }

    /// Of everything outside this process.
    pub(crate) fn processes(&self) -> Vec<u32> {
        [self.stack.parent.pid(), self.stack.hypervisor.pid(), self.stack.enclave_pid()].into_iter().flatten().collect()
    }

    pub(crate) async fn ask(&self, question: &str, most: usize) -> Outcome<Timing> {
        let mut request = Request::user(question);
        request.temperature = Some(0.0);
        request.max_tokens = Some(u32::try_from(most)?);
        let start = Instant::now();
        let mut first = None;
        let mut answer = self.client.ask(request).await?;
        while let Some(piece) = answer.next().await {
            if !piece?.text.is_empty() {
                first.get_or_insert_with(|| start.elapsed());
            }
        }
        let complete = answer.finish().await?;
        let total = start.elapsed();
        let tokens = usize::try_from(complete.usage().ok_or("no usage")?.completion_tokens)?;
        Ok(Timing { first: first.ok_or("an answer without text")?, total, tokens })
    }

    /// What the client spends on a data key before each question, here.
    pub(crate) async fn time_of_key_call(&self) -> Outcome<Duration> {
        let start = Instant::now();
        self.key.generate(&context()?).await?;
        Ok(start.elapsed())
    }
}

fn context() -> Outcome<EncryptionContext> {
    Ok(EncryptionContext::from_pairs([("subrosa:purpose", "inference"), ("subrosa:tenant", TENANT)])?)
}

/// A KMS that has one data key, of the customer's key, and gives it to whoever asks.
async fn one_data_key(stack: &Stack) -> Outcome<aws_sdk_kms::Client> {
    let real = KmsKey::new(stack.kms_as(&PROMPT_WRITER), &stack.customer_key);
    let (plaintext, wrapped) = real.generate(&context()?).await?;
    let answer = json!({
        "KeyId": stack.customer_key,
        "Plaintext": STANDARD.encode(plaintext.expose()),
        "CiphertextBlob": STANDARD.encode(&wrapped.ciphertext),
    });
    let answer = Bytes::from(answer.to_string());
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            let service = service_fn(move |_| {
                let body = Full::new(answer.clone());
                async { Ok::<_, Infallible>(Response::new(body)) }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    let configuration = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(url)
        .credentials_provider(Credentials::new("any", "any", None, None, "benchmark"))
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    Ok(aws_sdk_kms::Client::from_conf(configuration))
}
