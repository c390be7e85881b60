//! Whether the enclave serves: asked briefly, remembered for a second.

use std::time::Duration;

use hyper::{Method, Request, StatusCode};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::{link::Link, refusal::Refusal, upload::Outgoing};

/// The last word of the enclave on its state.
pub(crate) struct Readiness {
    deadline: Duration,
    last: Mutex<Option<(Instant, Result<(), Refusal>)>>,
}

impl Readiness {
    pub(crate) fn new(deadline: Duration) -> Self {
        Self { deadline, last: Mutex::new(None) }
    }

    /// However many ask, the enclave is asked once a second. A good word is forgotten with the connection it came by.
    pub(crate) async fn check(&self, link: &Link) -> Result<(), Refusal> {
        let mut last = self.last.lock().await;
        if let Some((_, word)) = last.filter(|(at, _)| at.elapsed() < REMEMBERED)
            && (word.is_err() || link.connected().await)
        {
            return word;
        }
        let word = match timeout(self.deadline, ask(link)).await {
            Ok(word) => word,
            // A /readyz that is not ready is always 503, as docs/PROTOCOL.md has it.
            Err(_) => Err(Refusal::EnclaveAbsent),
        };
        *last = Some((Instant::now(), word));
        word
    }
}

async fn ask(link: &Link) -> Result<(), Refusal> {
    let mut request = Request::new(Outgoing::Empty);
    *request.method_mut() = Method::GET;
    *request.uri_mut() = hyper::Uri::from_static("http://enclave/v1/status");
    match link.send(request).await {
        Ok(answer) if answer.status() == StatusCode::OK => Ok(()),
        Ok(_) => Err(Refusal::NotReady),
        Err(_) => Err(Refusal::EnclaveAbsent),
    }
}

const REMEMBERED: Duration = Duration::from_secs(1);
