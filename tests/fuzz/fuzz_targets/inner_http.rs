//! Inner requests and heads of answers: any bytes are read in one way or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealing::http::{MAX_HEAD_LENGTH, Method, Request, ResponseHeadReader, ResponseProgress};
use sealing::message::MessageId;

fuzz_target!(|data: &[u8]| {
    request(data);
    request(&[b"POST /v1/chat/completions HTTP/1.1\r\nSubrosa-Expires: 1\r\n", data].concat());
    answer(data);
    let start = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nIn-Reply-To: ";
    let id = "2a".repeat(32);
    answer(&[&start[..], id.as_bytes(), b"\r\n", data].concat());
});

fn request(bytes: &[u8]) {
    let Ok(request) = Request::parse(bytes) else { return };
    let length = request.header("content-length").map(|value| value.parse::<usize>().unwrap());
    match request.method() {
        Method::Get => assert!(request.body().is_empty()),
        Method::Post => assert_eq!(length, Some(request.body().len())),
    }
    assert!(request.path().starts_with('/'));
    assert!(request.header("transfer-encoding").is_none());
    // It is exactly one request: with a byte more or less, it is none.
    assert!(Request::parse(&[bytes, b"x"].concat()).is_err());
    assert!(Request::parse(&bytes[..bytes.len() - 1]).is_err());
}

/// What is read does not depend on how it arrives.
fn answer(bytes: &[u8]) {
    let whole = read(&mut std::iter::once(bytes));
    let pieces = read(&mut bytes.chunks(3));
    assert_eq!(whole, pieces);
    if let Some(status) = whole {
        assert!((100..=999).contains(&status));
        assert!(bytes.windows(4).take(MAX_HEAD_LENGTH).any(|window| window == b"\r\n\r\n"));
    }
}

fn read<'a>(pieces: &mut dyn Iterator<Item = &'a [u8]>) -> Option<u16> {
    let mut reader = ResponseHeadReader::new(MessageId::from_bytes([0x2A; 32]));
    for mut piece in pieces {
        match reader.push(&mut piece).ok()? {
            ResponseProgress::More(more) => reader = more,
            ResponseProgress::Done(head) => return Some(head.status),
        }
    }
    None
}
