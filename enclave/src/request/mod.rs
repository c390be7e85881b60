//! One sealed request, from its first byte to the last of its answer.
//!
//! ```text
//! header -> context and key -> authenticated -> first time -> body -> true end     (open)
//!        -> strict HTTP -> not expired, for us -> valid chat request               (inner)
//!        -> a key for the answer                                                   (reply)
//!        -> tokens of the prompt -> a place in the engine -> an answer, sealed     (produce)
//! ```
//! Up to the third line a refusal is the parent's to see, so there is one code for everything that went wrong with the
//! message. From there on everything is said inside a sealed answer.

mod chat;
mod form;
mod inner;
mod likely;
mod open;
mod produce;
mod reply;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use inference::Cancel;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use crate::key_policy::FIELD_BYTES_MAX;
use crate::log::{self, Event, Hash, Refusal};
use crate::service::{AnswerBody, PieceSender, Service};
use crate::tenant::Share;

use inner::{InnerError, Order, Task};
use produce::{Production, Terms};

/// Opens a request and begins to answer it.
pub(crate) async fn answer(service: Arc<Service>, body: Incoming) -> Result<AnswerBody, Refusal> {
    // Whoever only uploads holds another, larger number of places than those whose requests are open: strangers who send
    // slowly cannot keep customers out.
    let uploading = Arc::clone(&service.uploads).try_acquire_owned().map_err(|_| Refusal::Busy)?;
    let now = Instant::now();
    let deadline = now + service.configuration.limits.request_time;
    let opening = open::open(&service, body);
    let opened = timeout_at(deadline.min(now + OPEN_DEADLINE), opening).await.map_err(|_| Refusal::SlowRequest)??;
    let permit = Arc::clone(&service.requests).try_acquire_owned().map_err(|_| Refusal::Busy)?;
    drop(uploading);
    let limits = service.configuration.limits;
    let share = service.shares.take(&opened.tenant, limits.tenant_concurrent_requests, limits.concurrent_requests);
    let Order { mut task, reply_key, suite, expires } = inner::read(&service, &opened);
    if share.is_none() {
        task = Err(InnerError::Busy);
    }
    let open::Opened { plaintext, tenant, message_id, admitted } = opened;
    // From here on the prompt lives in the order alone.
    drop(plaintext);
    let frame_length = if task.as_ref().is_ok_and(Task::is_stream) { STREAM_FRAME } else { WHOLE_FRAME };
    let sealing = reply::begin(&service, &tenant, reply_key, suite, frame_length);
    let (writer, verdict) =
        tokio::join!(timeout_at(deadline, sealing), service.key_policies.of_customer(tenant.key_arn()));
    let writer = writer.map_err(|_| Refusal::Timeout)??;
    if !verdict.is_acceptable(service.configuration.key_policies) {
        task = Err(InnerError::KeyPolicyOpen);
    }

    admitted.commit();
    let cancel = Cancel::new();
    let (sender, body) = AnswerBody::stream(cancel.clone());
    let work = Work { task, deadline, expires, cancel, places: (permit, share) };
    let production = Production {
        writer,
        sender,
        in_reply_to: message_id,
        frame_length: frame_length as usize,
        key_policy: verdict.to_text(FIELD_BYTES_MAX),
        frames: 0,
    };
    tokio::spawn(work.run(service, production, Hash(tenant.sha256())));
    Ok(body)
}

/// What is left to do once the answer's channel stands.
struct Work {
    task: Result<Task, InnerError>,
    deadline: Instant,
    /// Unix seconds.
    expires: u64,
    cancel: Cancel,
    /// In the service, and among its tenant's. Held to the end.
    places: (OwnedSemaphorePermit, Option<Share>),
}

impl Work {
    async fn run(self, service: Arc<Service>, production: Production, tenant: Hash<32>) {
        let Self { task, deadline, expires, cancel, places } = self;
        let preparing = match &task {
            Ok(Task::Chat(_)) => match wait_to_prepare(&service, deadline, &production.sender).await {
                Slot::Free(slot) => Some(slot),
                Slot::TimeIsOver => return finish(produce_error(production, InnerError::Timeout).await, tenant),
                Slot::NobodyWaits => return log::write(Event::Abandoned { tenant }),
            },
            Ok(Task::Models) | Err(_) => None,
        };
        let late = Arc::new(AtomicBool::new(false));
        let timer = tokio::spawn({
            let (late, cancel) = (Arc::clone(&late), cancel.clone());
            async move {
                tokio::time::sleep_until(deadline).await;
                late.store(true, Ordering::Relaxed);
                cancel.cancel();
            }
        });
        let terms = Terms { cancel, late, expires };
        // A panic in here ends this answer, whose reader sees the stream reset.
        let produced = tokio::task::spawn_blocking(move || production.run(&service, task, &terms, preparing));
        let produced = produced.await.unwrap_or(None);
        timer.abort();
        drop(places);
        finish(produced, tenant);
    }
}

enum Slot {
    Free(OwnedSemaphorePermit),
    TimeIsOver,
    NobodyWaits,
}

/// Prompts are made ready a few at a time, which leaves the cores to the engine; the others wait in their order. (In the engine they
/// wait by whose turn it is.)
async fn wait_to_prepare(service: &Service, deadline: Instant, sender: &PieceSender) -> Slot {
    tokio::select! {
        slot = timeout_at(deadline, Arc::clone(&service.preparing).acquire_owned()) => match slot {
            Ok(Ok(slot)) => Slot::Free(slot),
            Ok(Err(_)) | Err(_) => Slot::TimeIsOver,
        },
        () = sender.closed() => Slot::NobodyWaits,
    }
}

async fn produce_error(production: Production, error: InnerError) -> Option<u64> {
    tokio::task::spawn_blocking(move || production.error(error)).await.unwrap_or(None)
}

fn finish(frames: Option<u64>, tenant: Hash<32>) {
    log::write(match frames {
        Some(frames) => Event::Answered { tenant, frames },
        None => Event::Abandoned { tenant },
    });
}

/// For a whole upload and the call to KMS that it needs, which may have to wait its turn.
const OPEN_DEADLINE: Duration = Duration::from_secs(90);
/// docs/PROTOCOL.md, section 4: "frame length, answer: 512 for streams, 4,096 otherwise".
const STREAM_FRAME: u32 = 512;
const WHOLE_FRAME: u32 = 4_096;
