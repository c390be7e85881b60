use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use simulator::kms::Principal;
use tests::programs;
use tests::stack::{ENCLAVE, Options, Stack};
use tokio::net::TcpListener;

use crate::{ask, question, stack};

#[tokio::test(flavor = "multi_thread")]
async fn an_enclave_killed_mid_stream_leaves_an_answer_that_is_known_to_be_incomplete() {
    let mut stack = stack().await;
    let right = ask(&stack).await.unwrap();
    let mut tries = 0..10;
    let error = loop {
        tries.next().expect("an answer that is not whole when its enclave ends");
        let mut answer = stack.client().build().unwrap().ask(question()).await.unwrap();
        let enclave = Pid::from_raw(i32::try_from(stack.enclave_pid().unwrap()).unwrap());
        let mut text = answer.next().await.unwrap().unwrap().text;
        kill(enclave, Signal::SIGKILL).unwrap();
        let error = loop {
            match answer.next().await {
                Some(Ok(piece)) => text.push_str(&piece.text),
                Some(Err(error)) => break Some(error),
                None => break answer.finish().await.err(),
            }
        };
        stack.hypervisor.ended(Duration::from_secs(10)).await.unwrap();
        match error {
            Some(error) => break error,
            // On a busy machine all of it may have left before: then it is all there.
            None => assert_eq!(text, right),
        }
        restart(&mut stack).await;
    };
    assert!(error.is_incomplete(), "{error}");

    // The parent says so, and the enclave may come back.
    assert_eq!(tests::stack::status(&format!("{}/readyz", stack.direct_url())).await, Some(503));
    ask(&stack).await.expect_err("no enclave, no answer");
    restart(&mut stack).await;
    assert_eq!(ask(&stack).await.unwrap(), right);
}

async fn restart(stack: &mut Stack) {
    stack.start_enclave(&programs::path("simulated-enclave").unwrap(), false).unwrap();
    stack.serves_within(Duration::from_secs(60)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_clients_at_once_each_get_their_answer() {
    let stack = Arc::new(stack().await);
    let right = ask(&stack).await.unwrap();
    let asking: Vec<_> = (0..64)
        .map(|_| {
            let stack = stack.clone();
            tokio::spawn(async move { ask(&stack).await })
        })
        .collect();
    for asked in asking {
        assert_eq!(asked.await.unwrap().unwrap(), right);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_holds_up_nobody_else() {
    let stack = stack().await;
    let client = stack.client().build().unwrap();
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut answer = client.ask(question()).await.unwrap();
        answer.next().await.unwrap().unwrap();
        stalled.push(answer);
    }
    tokio::time::timeout(Duration::from_secs(30), ask(&stack)).await.expect("the others are served").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_expire_are_renewed_in_time() {
    let served = Arc::new(AtomicUsize::new(0));
    let current = Arc::new(Mutex::new(String::new()));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (count, answer) = (served.clone(), current.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (count, answer) = (count.clone(), answer.clone());
            let service = service_fn(move |_| {
                count.fetch_add(1, Ordering::Relaxed);
                let body = Bytes::from(answer.lock().unwrap().clone());
                async { Ok::<_, std::convert::Infallible>(hyper::Response::new(Full::new(body))) }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    let mut options = Options::new().unwrap();
    options.parent_credentials =
        Some(vec![("AWS_CONTAINER_CREDENTIALS_FULL_URI".to_owned(), format!("http://{address}/credentials"))]);
    options.ready_within = None;
    let stack = Stack::start(options).await.unwrap();
    issue(&stack, &current, 1, 8);
    stack.serves_within(Duration::from_secs(60)).await.unwrap();
    ask(&stack).await.unwrap();
    // Those expire while the service runs; others are there to be had.
    issue(&stack, &current, 2, 3600);
    tokio::time::sleep(Duration::from_secs(9)).await;
    ask(&stack).await.unwrap();
    assert!(served.load(Ordering::Relaxed) >= 2);
    let last = stack.kms.journal().of("Decrypt").pop().unwrap();
    assert_eq!(last.outcome, "ok", "{last:?}");
}

/// Makes session credentials of the parent's role known to KMS, and has them served.
fn issue(stack: &Stack, current: &Mutex<String>, number: u32, seconds: i64) {
    let expires = time::OffsetDateTime::now_utc() + time::Duration::seconds(seconds);
    let expires_ms = u64::try_from(expires.unix_timestamp_nanos() / 1_000_000).unwrap();
    let (key, secret, token) =
        (format!("ASIASUBROSASESSION{number}"), format!("session-secret-{number}"), format!("session-token-{number}"));
    stack.kms.set_principal(&key, Principal::new(&ENCLAVE.arn(), &secret).unwrap().with_session(&token, expires_ms));
    let expiration = expires.format(&time::format_description::well_known::Rfc3339).unwrap();
    *current.lock().unwrap() =
        serde_json::json!({"AccessKeyId": key, "SecretAccessKey": secret, "Token": token, "Expiration": expiration})
            .to_string();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_parent_lets_answers_end_and_takes_no_more() {
    let mut stack = stack().await;
    let mut answer = stack.client().build().unwrap().ask(question()).await.unwrap();
    answer.next().await.unwrap().unwrap();
    stack.parent.signal(Signal::SIGTERM).unwrap();
    answer.finish().await.expect("what was under way comes to its end");
    assert!(stack.parent.ended(Duration::from_secs(30)).await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_upload_slowly_keep_nobody_out() {
    use tokio::io::AsyncWriteExt;
    let mut options = Options::new().unwrap();
    options.limits = serde_json::json!({"concurrent_requests": 2});
    let stack = Stack::start(options).await.unwrap();
    // Six uploads that have begun and go no further, at a service that works on two requests at once.
    let mut strangers = Vec::new();
    for _ in 0..6 {
        let mut stranger =
            tokio::net::TcpStream::connect(stack.direct_url().trim_start_matches("http://")).await.unwrap();
        let head = "POST /v1/sealed HTTP/1.1\r\nHost: parent\r\nContent-Type: application/vnd.aws-encryption-sdk\r\nContent-Length: 9000\r\n\r\n";
        stranger.write_all(head.as_bytes()).await.unwrap();
        // As much of a header as is never whole: format version 2, suite 0x0478, a message id, a context that goes on.
        let begun = [&[2, 0x04, 0x78][..], &[7; 32], &[0x1f, 0xff], &[0; 2000]].concat();
        stranger.write_all(&begun).await.unwrap();
        strangers.push(stranger);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    ask(&stack).await.expect("a customer is served meanwhile");
}
