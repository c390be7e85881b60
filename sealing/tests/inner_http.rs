//! The request and the answer inside a message: one strict form is accepted, everything else has its refusal.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test program"
)]

use sealing::http::{
    HttpError, IN_REPLY_TO, Method, Request, RequestWriter, ResponseHead, ResponseHeadReader, ResponseProgress,
};
use sealing::message::{MessageId, Suite};
use sealing::raw_aes::WrappingKey;

/// A good request with further header lines.
fn with(lines: &str) -> Vec<u8> {
    format!("POST /v1/chat/completions HTTP/1.1\r\nSubrosa-Expires: 1800000000\r\nContent-Length: 2\r\n{lines}\r\n{{}}")
        .into_bytes()
}

fn refusal(bytes: &[u8]) -> HttpError {
    Request::parse(bytes).err().unwrap_or_else(|| panic!("accepted: {}", String::from_utf8_lossy(bytes)))
}

#[test]
fn what_is_written_reads_back() {
    let written = RequestWriter::new(Method::Post, "/v1/chat/completions?x=1", 1_800_000_000)
        .and_then(|writer| writer.reply_key(&WrappingKey::from_bytes([5; 32])))
        .and_then(|writer| writer.enclave("i-0123-enc0123"))
        .and_then(|writer| writer.answer_suite(Suite::CommitSigned))
        .and_then(|writer| writer.content_type("application/json"))
        .and_then(|writer| writer.finish(b"{\"a\": 1}"))
        .unwrap();
    let mut request = Request::parse(written.as_bytes()).unwrap();
    assert_eq!(request.method(), Method::Post);
    assert_eq!((request.target(), request.path()), ("/v1/chat/completions?x=1", "/v1/chat/completions"));
    assert_eq!(request.body(), b"{\"a\": 1}");
    assert_eq!(request.expires(), 1_800_000_000);
    assert_eq!(request.enclave(), Some("i-0123-enc0123"));
    assert_eq!(request.answer_suite(), Suite::CommitSigned);
    assert_eq!(request.header("content-TYPE"), Some("application/json"));
    assert_eq!(request.take_reply_key().map(|key| *key.expose()), Some([5; 32]));
    assert!(request.take_reply_key().is_none());
}

#[test]
fn a_get_has_no_body() {
    let get = |lines: &str| format!("GET /v1/models HTTP/1.1\r\nSubrosa-Expires: 1\r\n{lines}\r\n").into_bytes();
    assert_eq!(Request::parse(&get("")).unwrap().method(), Method::Get);
    assert!(Request::parse(&get("Content-Length: 0\r\n")).is_ok());
    assert_eq!(refusal(&[get(""), vec![b'x']].concat()), HttpError::BodyLength { expected: 0, found: 1 });
    assert_eq!(refusal(&[get("Content-Length: 1\r\n"), vec![b'x']].concat()), HttpError::Value("Content-Length"));
}

#[test]
fn a_post_states_its_exact_length() {
    assert!(Request::parse(&with("")).is_ok());
    assert_eq!(refusal(&[with(""), vec![b'x']].concat()), HttpError::BodyLength { expected: 2, found: 3 });
    let short = with("");
    assert_eq!(refusal(&short[..short.len() - 1]), HttpError::BodyLength { expected: 2, found: 1 });
    assert_eq!(refusal(b"POST / HTTP/1.1\r\nSubrosa-Expires: 1\r\n\r\n"), HttpError::Missing("Content-Length"));
    for value in ["+2", "02", "2,2", "0x2", "2 2", "", "99999999999999999999", "-2"] {
        let request = format!("POST / HTTP/1.1\r\nSubrosa-Expires: 1\r\nContent-Length: {value}\r\n\r\n{{}}");
        assert_eq!(refusal(request.as_bytes()), HttpError::Value("Content-Length"), "{value:?}");
    }
}

#[test]
fn fields_that_move_the_end_of_a_message_are_refused_in_any_case() {
    for name in ["Transfer-Encoding", "transfer-encoding", "UPGRADE", "Expect", "Trailer", "te", "TE"] {
        let error = HttpError::Forbidden(name.to_ascii_lowercase());
        assert_eq!(refusal(&with(&format!("{name}: chunked\r\n"))), error);
    }
}

#[test]
fn an_unknown_wish_in_our_name_space_is_refused() {
    assert_eq!(refusal(&with("Subrosa-Quiet: 1\r\n")), HttpError::Forbidden("subrosa-quiet".into()));
    assert_eq!(refusal(&with("SUBROSA-x: 1\r\n")), HttpError::Forbidden("subrosa-x".into()));
    assert!(Request::parse(&with("Subrosa-Padding: 0000\r\nX-Subrosa: 1\r\n")).is_ok());
}

#[test]
fn a_field_that_may_stand_once_is_refused_twice() {
    for name in ["Content-Length", "content-length", "Subrosa-Expires", "SUBROSA-EXPIRES"] {
        assert_eq!(refusal(&with(&format!("{name}: 2\r\n"))), HttpError::Duplicate(name.to_ascii_lowercase()));
    }
    for name in ["Content-Type", "Host", "Subrosa-Reply-Key", "Subrosa-Enclave", "Subrosa-Answer-Suite"] {
        let error = HttpError::Duplicate(name.to_ascii_lowercase());
        assert_eq!(refusal(&with(&format!("{name}: 0478\r\n{name}: 0478\r\n"))), error);
    }
    assert!(Request::parse(&with("Accept: a\r\nAccept: b\r\n")).is_ok());
}

#[test]
fn folded_lines_bare_line_ends_and_leading_lines_are_refused() {
    for lines in
        ["A: 1\r\n folded\r\n", "A: 1\r\n\tfolded\r\n", "A: 1\n", "A: 1\r", "A: 1\r\r\n", "A : 1\r\n", ": 1\r\n"]
    {
        assert!(matches!(refusal(&with(lines)), HttpError::Syntax(_)), "{lines:?}");
    }
    for start in ["\r\n", "\n", " "] {
        assert!(matches!(refusal(&[start.as_bytes(), &with("")].concat()), HttpError::Syntax(_)));
    }
}

#[test]
fn values_are_printable_ascii() {
    for value in ["\u{1}", "a\tb", "caf\u{e9}", "a\0b", "\u{7f}"] {
        assert!(matches!(refusal(&with(&format!("A: {value}\r\n"))), HttpError::Syntax(_)), "{value:?}");
    }
}

#[test]
fn only_get_and_post_in_origin_form_of_version_1_1_are_accepted() {
    let line = |line: &str| {
        let request = format!("{line}\r\nSubrosa-Expires: 1\r\nContent-Length: 0\r\n\r\n");
        Request::parse(request.as_bytes()).err()
    };
    assert_eq!(line("POST /a HTTP/1.1"), None);
    for method in ["PUT", "post", "CONNECT", "OPTIONS", "HEAD"] {
        assert_eq!(line(&format!("{method} /a HTTP/1.1")), Some(HttpError::Method));
    }
    for target in ["http://a/b", "*", "a", "//a/b", "/a#b", "/a\\b", "/a\"b"] {
        assert!(line(&format!("POST {target} HTTP/1.1")).is_some(), "{target}");
    }
    for version in ["HTTP/1.0", "HTTP/2.0", "HTTP/1.2", "http/1.1", ""] {
        assert!(line(&format!("POST /a {version}")).is_some(), "{version}");
    }
    assert!(line("POST  /a HTTP/1.1").is_some());
    assert!(line("POST /a  HTTP/1.1").is_some());
}

#[test]
fn our_fields_are_well_formed_or_refused() {
    let request = |lines: &str| format!("GET / HTTP/1.1\r\n{lines}\r\n").into_bytes();
    assert_eq!(refusal(&request("")), HttpError::Missing("Subrosa-Expires"));
    for value in ["", "-1", "1.5", "01", "soon", "18446744073709551616"] {
        assert_eq!(refusal(&request(&format!("Subrosa-Expires: {value}\r\n"))), HttpError::Value("Subrosa-Expires"));
    }
    for value in ["", "AAAA", "!", &"A".repeat(44), &("A".repeat(44) + "=")] {
        let error = HttpError::Value("Subrosa-Reply-Key");
        assert_eq!(refusal(&with(&format!("Subrosa-Reply-Key: {value}\r\n"))), error, "{value}");
    }
    for value in ["", "a b", &"x".repeat(129)] {
        assert_eq!(refusal(&with(&format!("Subrosa-Enclave: {value}\r\n"))), HttpError::Value("Subrosa-Enclave"));
    }
    for value in ["", "0178", "478", "0478 "] {
        let parsed = Request::parse(&with(&format!("Subrosa-Answer-Suite: {value}\r\n"))).map(|_| ()).err();
        // Space around a value is no part of it (RFC 9110, 5.5).
        let error = (value != "0478 ").then_some(HttpError::Value("Subrosa-Answer-Suite"));
        assert_eq!(parsed, error, "{value:?}");
    }
}

#[test]
fn a_head_past_the_limits_is_refused() {
    let long = with(&format!("A: {}\r\n", "x".repeat(16_384)));
    assert_eq!(refusal(&long), HttpError::HeadLength);
    assert_eq!(refusal(&with(&"A: 1\r\n".repeat(63))), HttpError::TooManyFields);
    assert!(Request::parse(&with(&"A: 1\r\n".repeat(62))).is_ok());
    assert_eq!(refusal(b"POST / HTTP/1.1\r\nA: 1"), HttpError::HeadLength);
    assert_eq!(refusal(b""), HttpError::HeadLength);
}

#[test]
fn a_writer_cannot_smuggle_a_line() {
    let writer = || RequestWriter::new(Method::Post, "/a", 1).unwrap();
    assert!(writer().header("A", "1\r\nHost: evil").is_err());
    assert!(writer().header("A\r\nB", "1").is_err());
    assert!(writer().header("A", " 1").is_err());
    assert!(RequestWriter::new(Method::Post, "/a HTTP/1.1\r\nX: ", 1).is_err());
    let twice = writer().header("Content-Length", "5").and_then(|writer| writer.finish(b"hello"));
    assert_eq!(twice.err(), Some(HttpError::Duplicate("content-length".into())));
    let body = RequestWriter::new(Method::Get, "/a", 1).and_then(|writer| writer.finish(b"x"));
    assert_eq!(body.err(), Some(HttpError::Value("Content-Length")));
}

fn request_id() -> MessageId {
    MessageId::from_bytes(std::array::from_fn(|at| at as u8))
}

fn head(content_length: Option<u64>) -> ResponseHead {
    ResponseHead {
        status: 200,
        in_reply_to: request_id(),
        content_type: "text/event-stream".into(),
        content_length,
        key_policy: None,
    }
}

#[test]
fn the_head_of_an_answer_fills_whole_frames_and_reads_back_however_it_arrives() {
    for frame_length in [1, 128, 200, 201, 202, 203, 204, 220, 512, 4_096] {
        for content_length in [None, Some(0), Some(123_456)] {
            let bytes = head(content_length).to_frames(frame_length).unwrap();
            assert_eq!(bytes.len() % frame_length, 0);
            for size in [1, 7, frame_length, usize::MAX] {
                let message = [bytes.as_bytes(), b"data: x\n\n"].concat();
                let mut reader = ResponseHeadReader::new(request_id());
                let mut pieces = message.chunks(size);
                let (read, rest) = loop {
                    let mut piece = pieces.next().expect("the head ends");
                    match reader.push(&mut piece).unwrap() {
                        ResponseProgress::More(more) => {
                            assert!(piece.is_empty());
                            reader = more;
                        }
                        ResponseProgress::Done(head) => break (head, piece),
                    }
                };
                assert_eq!((read.status, read.content_length), (200, content_length));
                assert_eq!(read.content_type, "text/event-stream");
                let left = [rest, &pieces.collect::<Vec<_>>().concat()].concat();
                assert_eq!(left, b"data: x\n\n");
            }
        }
    }
}

#[test]
fn an_answer_to_another_request_or_to_none_is_refused() {
    let read = |text: &str, request| match ResponseHeadReader::new(request).push(&mut text.as_bytes()) {
        Ok(ResponseProgress::Done(_)) => None,
        Ok(ResponseProgress::More(_)) => panic!("not whole"),
        Err(error) => Some(error),
    };
    let answer = |field: &str| format!("HTTP/1.1 200 OK\r\n{field}Content-Type: a/b\r\n\r\n");
    let id = request_id().to_string();
    assert_eq!(read(&answer(&format!("In-Reply-To: {id}\r\n")), request_id()), None);
    let other = MessageId::from_bytes([9; 32]);
    assert_eq!(read(&answer(&format!("In-Reply-To: {id}\r\n")), other), Some(HttpError::InReplyTo));
    assert_eq!(read(&answer(""), request_id()), Some(HttpError::Missing(IN_REPLY_TO)));
    let twice = format!("In-Reply-To: {id}\r\nin-reply-to: {id}\r\n");
    assert_eq!(read(&answer(&twice), request_id()), Some(HttpError::Duplicate("in-reply-to".into())));
    let upper = format!("In-Reply-To: {}\r\n", id.to_uppercase());
    assert_eq!(read(&answer(&upper), request_id()), Some(HttpError::InReplyTo));
}

#[test]
fn a_request_does_not_pass_as_an_answer() {
    let reader = ResponseHeadReader::new(request_id());
    assert!(reader.push(&mut with("").as_slice()).is_err());
}

#[test]
fn the_head_of_an_answer_that_never_ends_is_refused() {
    let mut reader = ResponseHeadReader::new(request_id());
    let endless = [b"HTTP/1.1 200 OK\r\nA: ".as_slice(), &[b'x'; 20_000]].concat();
    for piece in endless.chunks(512) {
        let mut rest = piece;
        match reader.push(&mut rest) {
            Ok(ResponseProgress::More(more)) => reader = more,
            Ok(ResponseProgress::Done(_)) => panic!("it does not end"),
            Err(error) => return assert_eq!(error, HttpError::HeadLength),
        }
    }
    panic!("20,000 bytes were taken");
}

#[test]
fn a_head_that_cannot_be_is_not_written() {
    assert!(ResponseHead { status: 99, ..head(None) }.to_frames(512).is_err());
    assert!(ResponseHead { content_type: "a\r\nb".into(), ..head(None) }.to_frames(512).is_err());
    assert_eq!(head(None).to_frames(16_385).err(), Some(HttpError::HeadLength));
    assert_eq!(head(None).to_frames(0).err(), Some(HttpError::HeadLength));
}
