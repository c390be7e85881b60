use std::sync::Mutex;

use bytes::Bytes;
use sealing::message::Suite;
use subrosa_client::{AnswerUnder, AskError, Client};
use tests::relay::Relay;
use tests::stack::{APPLICATION, Stack, TENANT};

use crate::{question, stack, text};

/// What a relay does to the bytes of an answer.
type Change = fn(Vec<u8>) -> Vec<u8>;

/// A client that asks through a relay, as somebody who may seal prompts and open answers.
fn client(stack: &Stack, url: &str, under: AnswerUnder, suite: Suite) -> Client {
    let builder = Client::builder(url).kms(stack.kms_as(&APPLICATION)).key(&stack.customer_key).tenant(TENANT);
    builder.answer_under(under).answer_suite(suite).build().unwrap()
}

async fn outcome(client: &Client) -> Result<String, AskError> {
    text(client.ask(question()).await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_comes_under_the_reply_key_or_the_customers_key_in_both_suites() {
    let stack = stack().await;
    let mut texts = Vec::new();
    for under in [AnswerUnder::ReplyKey, AnswerUnder::Kms] {
        for suite in [Suite::Commit, Suite::CommitSigned] {
            texts.push(outcome(&client(&stack, &stack.url(), under, suite)).await.unwrap());
        }
    }
    assert!(texts[0].contains("allergy: amoxicillin"), "{}", texts[0]);
    assert!(texts.iter().all(|text| *text == texts[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_swapped_for_another_or_for_the_request_is_refused() {
    let stack = stack().await;
    for under in [AnswerUnder::ReplyKey, AnswerUnder::Kms] {
        let first = Mutex::new(None::<Bytes>);
        let swap = Relay::start(Some(stack.url()), move |_, truth| {
            let truth = truth.unwrap();
            first.lock().unwrap().get_or_insert(truth).clone()
        })
        .await
        .unwrap();
        let asking = client(&stack, &swap.url(), under, Suite::Commit);
        outcome(&asking).await.unwrap();
        // Same key, same tenant, same purpose, genuine: but the answer to another request.
        let error = outcome(&asking).await.unwrap_err();
        assert!(matches!(error, AskError::Answer(_)), "{error}");

        let echo = Relay::start(None, |request, _| Bytes::copy_from_slice(request)).await.unwrap();
        let error = outcome(&client(&stack, &echo.url(), under, Suite::Commit)).await.unwrap_err();
        assert!(matches!(error, AskError::Answer(_)), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tampered_or_truncated_answer_is_refused() {
    let stack = stack().await;
    let tricks: [(&str, Change); 8] = [
        ("a changed frame", |mut answer| {
            let middle = answer.len() / 2;
            answer[middle] ^= 1;
            answer
        }),
        ("a changed header", |mut answer| {
            answer[20] ^= 1;
            answer
        }),
        ("cut short", |mut answer| {
            answer.truncate(answer.len() * 2 / 3);
            answer
        }),
        ("cut by a byte", |mut answer| {
            answer.pop();
            answer
        }),
        ("two frames in the other order", |answer| {
            let at = first_frame(&answer);
            [&answer[..at], &answer[at + FRAME..at + 2 * FRAME], &answer[at..at + FRAME], &answer[at + 2 * FRAME..]]
                .concat()
        }),
        ("a frame twice", |answer| {
            let at = first_frame(&answer);
            [&answer[..at + FRAME], &answer[at..]].concat()
        }),
        ("a frame left out", |answer| {
            let at = first_frame(&answer);
            [&answer[..at], &answer[at + FRAME..]].concat()
        }),
        ("a byte appended", |mut answer| {
            answer.push(0);
            answer
        }),
    ];
    for suite in [Suite::Commit, Suite::CommitSigned] {
        for (what, trick) in tricks {
            let relay =
                Relay::start(Some(stack.url()), move |_, truth| trick(truth.unwrap().to_vec()).into()).await.unwrap();
            let error = outcome(&client(&stack, &relay.url(), AnswerUnder::ReplyKey, suite)).await.unwrap_err();
            let AskError::Answer(error) = error else { panic!("{what}: {error}") };
            assert_eq!(error.is_incomplete(), what.starts_with("cut"), "{what}: {error}");
        }
    }
}

/// A frame of a streamed answer: sequence number, IV, 512 bytes, tag.
const FRAME: usize = 4 + 12 + 512 + 16;

/// Where the first frame begins.
fn first_frame(answer: &[u8]) -> usize {
    use sealing::message::Limits;
    use sealing::reader::{HeaderReader, Progress};
    let mut rest = answer;
    let Progress::Done(header) = HeaderReader::new(Limits::answer()).push(&mut rest).unwrap() else {
        panic!("a whole header")
    };
    assert_eq!(header.frame_length(), 512);
    answer.len() - rest.len()
}
