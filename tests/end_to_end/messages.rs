use sealing::message::Suite;
use tests::by_hand::{ByHand, in_seconds, inner, post};
use tests::stack::Stack;

use crate::{NOTE, stack};

const CANNOT_OPEN: (u16, &[u8]) = (400, br#"{"refusal":"cannot-open"}"#);

async fn answered(stack: &Stack, message: Vec<u8>) -> (u16, Vec<u8>) {
    let (status, body) = post(&stack.direct_url(), message).await.unwrap();
    (status, body.to_vec())
}

async fn is_refused(stack: &Stack, what: &str, message: Vec<u8>) {
    let (status, body) = answered(stack, message).await;
    assert_eq!((status, body.as_slice()), CANNOT_OPEN, "{what}: {}", String::from_utf8_lossy(&body));
}

/// Where the body's frames lie: (offset, length) each, the last one the final frame.
fn frames(message: &[u8], frame_length: usize) -> Vec<(usize, usize)> {
    use sealing::message::Limits;
    use sealing::reader::{HeaderReader, Progress};
    let mut rest = message;
    let Progress::Done(header) = HeaderReader::new(Limits::request()).push(&mut rest).unwrap() else {
        panic!("a whole header")
    };
    assert_eq!(header.frame_length() as usize, frame_length);
    let mut at = message.len() - rest.len();
    let mut frames = Vec::new();
    // Sequence number, IV, content, tag; the final frame begins with ff ff ff ff and carries its length.
    while message[at..at + 4] != [0xff; 4] {
        let length = 4 + 12 + frame_length + 16;
        frames.push((at, length));
        at += length;
    }
    frames.push((at, message.len() - at));
    frames
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tampered_truncated_reordered_or_duplicated_message_is_refused() {
    let stack = stack().await;
    for suite in [Suite::Commit, Suite::CommitSigned] {
        let sealed =
            || async { ByHand { suite, frame_length: 128, ..ByHand::asking(NOTE) }.seal(&stack).await.unwrap() };
        let (status, _) = answered(&stack, sealed().await).await;
        assert_eq!(status, 200, "the untouched message is answered");

        let message = sealed().await;
        let frames = frames(&message, 128);
        assert!(frames.len() >= 3);
        for (what, at) in [
            ("version", 0),
            ("message id", 10),
            ("context", 60),
            ("a frame", frames[1].0 + 20),
            ("a tag", frames[1].0 + frames[1].1 - 1),
            ("the end", message.len() - 1),
        ] {
            let mut changed = message.clone();
            changed[at] ^= 1;
            is_refused(&stack, what, changed).await;
        }
        is_refused(&stack, "truncated by a byte", message[..message.len() - 1].to_vec()).await;
        is_refused(&stack, "truncated to whole frames", message[..frames[frames.len() - 1].0].to_vec()).await;
        is_refused(&stack, "a byte appended", [&message[..], b"\0"].concat()).await;
        let part = |(at, length): (usize, usize)| &message[at..at + length];
        let head = &message[..frames[0].0];
        let rest = &message[frames[2].0..];
        is_refused(&stack, "two frames in the other order", [head, part(frames[1]), part(frames[0]), rest].concat())
            .await;
        is_refused(&stack, "a frame twice", [head, part(frames[0]), part(frames[0]), part(frames[1]), rest].concat())
            .await;
        is_refused(&stack, "a frame left out", [head, part(frames[1]), rest].concat()).await;
        let other = sealed().await;
        let spliced = [head, &other[frames[0].0..]].concat();
        is_refused(&stack, "the body of another message", spliced).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_request_is_refused() {
    let stack = stack().await;
    let message = ByHand::asking(NOTE).seal(&stack).await.unwrap();
    assert_eq!(answered(&stack, message.clone()).await.0, 200);
    is_refused(&stack, "the same message again", message).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cross_tenant_message_is_refused() {
    let stack = stack().await;
    // The policy lets nobody seal for another tenant under this key.
    let other = ByHand {
        context: vec![("subrosa:tenant".into(), "clinic-8".into()), ("subrosa:purpose".into(), "inference".into())],
        ..ByHand::asking(NOTE)
    };
    assert!(other.seal(&stack).await.is_err());
    // And a header that claims another tenant than the data key was made for does not open.
    let mut message = ByHand::asking(NOTE).seal(&stack).await.unwrap();
    let at = message.windows(8).position(|window| window == b"clinic-7").unwrap();
    message[at + 7] = b'8';
    is_refused(&stack, "another tenant", message).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn before_a_request_is_open_there_is_one_refusal() {
    let stack = stack().await;
    is_refused(&stack, "one byte", vec![2]).await;
    is_refused(&stack, "plain HTTP", b"GET / HTTP/1.1\r\n\r\n".repeat(20)).await;
    is_refused(&stack, "noise", (0u32..5000).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()).await;
    is_refused(&stack, "the model supplier's key", {
        let mut message = ByHand::asking(NOTE).seal(&stack).await.unwrap();
        let (key, model) = (stack.customer_key.as_bytes(), stack.model_key.as_bytes());
        let at = message.windows(key.len()).position(|window| window == key).unwrap();
        message[at..at + key.len()].copy_from_slice(model);
        message
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_opens_and_is_wrong_gets_a_sealed_refusal() {
    let stack = stack().await;
    let good = br#"{"messages":[{"role":"user","content":"chest pain"}]}"#;
    let expires = in_seconds(300).to_string();
    let cases: [(&str, Vec<u8>); 5] = [
        ("expired", inner(&[("Subrosa-Expires", &in_seconds(-10).to_string())], good)),
        ("too far ahead", inner(&[("Subrosa-Expires", &in_seconds(5000).to_string())], good)),
        (
            "another enclave",
            inner(
                &[("Subrosa-Expires", &expires), ("Subrosa-Enclave", "i-0000000000000000f-enc0000000000000001")],
                good,
            ),
        ),
        ("no JSON", inner(&[("Subrosa-Expires", &expires)], b"{")),
        (
            "an unknown model",
            inner(
                &[("Subrosa-Expires", &expires)],
                br#"{"model":"nobody","messages":[{"role":"user","content":"x"}]}"#,
            ),
        ),
    ];
    for (what, inner) in cases {
        let message = ByHand { inner, ..ByHand::asking(NOTE) }.seal(&stack).await.unwrap();
        let (status, body) = answered(&stack, message).await;
        // The parent sees an answer like any other; what it says is sealed.
        assert_eq!(status, 200, "{what}");
        assert_eq!(body.first(), Some(&2), "{what}: a message of format version 2");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_past_the_limits_is_refused_and_nothing_else_suffers() {
    let stack = stack().await;
    let (status, body) = answered(&stack, vec![2; 3 << 20]).await;
    assert_eq!((status, body.as_slice()), (413, &br#"{"refusal":"too-large"}"#[..]));
    assert_eq!(answered(&stack, ByHand::asking(NOTE).seal(&stack).await.unwrap()).await.0, 200);
}
