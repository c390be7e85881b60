//! Requests made by hand, so that they can be spoilt, and plain HTTP without any help of the client library.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use sealing::message::{EncryptionContext, Suite};
use serde_json::json;
use subrosa_client::data_key::{KeySource, KmsKey};
use subrosa_client::files::{self, SealOptions};

use crate::stack::{PROMPT_WRITER, Stack, TENANT};

/// A sealed request, and what may be wrong with it.
pub struct ByHand {
    /// The suite.
    pub suite: Suite,
    /// The encryption context.
    pub context: Vec<(String, String)>,
    /// Bytes of a frame.
    pub frame_length: u32,
    /// The inner HTTP message.
    pub inner: Vec<u8>,
    /// The key's ARN; the stack's customer key if `None`.
    pub key: Option<String>,
}

impl ByHand {
    /// A good request that asks about `note`, not streamed.
    pub fn asking(note: &str) -> ByHand {
        let body = json!({"messages": [{"role": "user", "content": note}], "stream": false}).to_string();
        ByHand {
            suite: Suite::Commit,
            context: [("subrosa:tenant", TENANT), ("subrosa:purpose", "inference")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
            frame_length: 256,
            inner: inner(&[("Subrosa-Expires", &in_seconds(300).to_string())], body.as_bytes()),
            key: None,
        }
    }

    /// Seals it as the prompt writer.
    ///
    /// # Errors
    /// When KMS refuses the data key, or something cannot be sealed.
    pub async fn seal(self, stack: &Stack) -> io::Result<Vec<u8>> {
        let ByHand { suite, context, frame_length, inner, key } = self;
        let keys = KeySource::Kms(KmsKey::new(
            stack.kms_as(&PROMPT_WRITER),
            key.unwrap_or_else(|| stack.customer_key.clone()),
        ));
        let context = EncryptionContext::from_pairs(context).map_err(io::Error::other)?;
        let runtime = tokio::runtime::Handle::current();
        let sealing = tokio::task::spawn_blocking(move || {
            let mut out = Vec::new();
            let options = SealOptions { suite, context, frame_length };
            files::seal(&mut inner.as_slice(), &mut out, &keys, options, &runtime, |_| ()).map(|_| out)
        });
        sealing.await.map_err(io::Error::other)?.map_err(io::Error::other)
    }
}

/// An inner request to the chat completions with these header fields beside the usual ones.
pub fn inner(fields: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: enclave\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in fields {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

/// Unix seconds, so many from now.
pub fn in_seconds(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(now).unwrap_or(i64::MAX).saturating_add(seconds)
}

/// Posts a sealed message to `url` (the front door) and reads the whole answer.
///
/// # Errors
/// When there is none, or it breaks off.
pub async fn post(url: &str, message: impl Into<Bytes>) -> io::Result<(u16, Bytes)> {
    let request = hyper::Request::post(format!("{url}/v1/sealed"))
        .header("content-type", "application/vnd.aws-encryption-sdk")
        .body(Full::new(message.into()))
        .map_err(io::Error::other)?;
    send(request).await
}

/// Gets a URL.
///
/// # Errors
/// As [`post`].
pub async fn get(url: &str) -> io::Result<(u16, Bytes)> {
    send(hyper::Request::get(url).body(Full::default()).map_err(io::Error::other)?).await
}

async fn send(request: hyper::Request<Full<Bytes>>) -> io::Result<(u16, Bytes)> {
    let http = Client::builder(TokioExecutor::new()).build_http();
    let exchange = async {
        let answer = http.request(request).await.map_err(io::Error::other)?;
        let status = answer.status().as_u16();
        Ok((status, answer.into_body().collect().await.map_err(io::Error::other)?.to_bytes()))
    };
    tokio::time::timeout(LIMIT, exchange).await.map_err(io::Error::other)?
}

const LIMIT: Duration = Duration::from_secs(60);
