//! `subrosa ask` against a parent that may do anything: what is not the answer to this request is never printed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sealing::message::{MessageId, Suite};
use serde_json::{Value, json};
use support::{ARN, Asked, Forged, Kms, SEALED, Seen, TENANT, Under, World, begin, events, respond, run, subrosa};

/// A world whose parent answers with this message.
fn answering(make: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static) -> World {
    World::new(Kms::Good, move |asked, stream| respond(stream, 200, SEALED, &make(asked)))
}

fn lines(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What the parent does to a message, given where its last whole frame begins.
type Change = fn(&mut Vec<u8>, usize);

/// Nothing printed, exit code 1, and these words in the reason.
fn refused(world: &World, arguments: &[&str], words: &str) {
    let ran = run(&mut world.ask(arguments));
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{}", ran.stderr);
    assert!(ran.stderr.contains(words), "{}", ran.stderr);
}

#[test]
fn a_good_answer_is_printed_and_ends_with_exit_code_0() {
    let world = answering(|asked| Forged::to(asked).seal());
    let ran = run(&mut world.ask(&["a question"]));
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "Hello, world\n"), "{}", ran.stderr);
    assert_eq!(world.posts(), 1);
}

#[test]
fn what_is_asked_for_stands_in_the_sealed_request_and_nowhere_else() {
    let seen: Seen<(Value, Vec<u8>)> = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&seen);
    let world = answering(move |asked| {
        assert_eq!(
            asked.context,
            [("subrosa:purpose", "inference"), ("subrosa:tenant", TENANT)].map(|(k, v)| (k.into(), v.into())).into()
        );
        assert_eq!(asked.enclave.as_deref(), Some("i-0-enc0"));
        *keep.lock().unwrap() = Some((asked.body.clone(), asked.bytes.clone()));
        Forged::to(asked).seal()
    });
    let arguments = [
        "--system",
        "be brief",
        "--max-tokens",
        "5",
        "--temperature",
        "0",
        "--seed",
        "9",
        "--enclave",
        "i-0-enc0",
        "a secret question",
    ];
    assert_eq!(run(&mut world.ask(&arguments)).code, 0);
    let (body, bytes) = seen.lock().unwrap().take().unwrap();
    let expected = json!({
        "model": "m", "max_tokens": 5, "temperature": 0.0, "seed": 9, "stream": true,
        "stream_options": {"include_usage": true},
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a secret question"}],
    });
    assert_eq!(body, expected);
    assert!(!bytes.windows(6).any(|window| window == b"secret"));
}

#[test]
fn json_gives_one_object_a_line_and_a_last_one_that_says_complete() {
    let world = answering(|asked| Forged::to(asked).seal());
    let ran = run(&mut world.ask(&["--json", "a question"]));
    let lines = lines(&ran.stdout);
    assert_eq!(lines[0], json!({"event": "delta", "text": "Hello"}));
    let end = lines.last().unwrap();
    assert_eq!((&end["complete"], &end["finish_reason"]), (&json!(true), &json!("stop")));
    assert_eq!(end["usage"], json!({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}));
}

#[test]
fn an_answer_that_is_not_streamed_is_printed_whole() {
    let world = answering(|asked| {
        assert_eq!(asked.body["stream"], false);
        let mut answer = Forged::to(asked);
        answer.content_type = "application/json".to_owned();
        answer.body = json!({"choices": [{"message": {"content": "all of it"}, "finish_reason": "stop"}]})
            .to_string()
            .into_bytes();
        answer.body.resize(4096, b' ');
        answer.seal()
    });
    let ran = run(&mut world.ask(&["--no-stream", "a question"]));
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "all of it\n"), "{}", ran.stderr);
}

#[test]
fn a_question_comes_from_a_file_or_from_standard_input() {
    let world = answering(|asked| {
        let mut answer = Forged::to(asked);
        answer.body = events(&[asked.body["messages"][0]["content"].as_str().unwrap()]);
        answer.seal()
    });
    let folder = tempfile::tempdir().unwrap();
    let note = folder.path().join("note.txt");
    std::fs::write(&note, "from a file").unwrap();
    assert_eq!(run(&mut world.ask(&["--file", note.to_str().unwrap()])).stdout, "from a file\n");
    let piped = support::run_with(&mut world.ask(&["-"]), b"from standard input");
    assert_eq!(piped.stdout, b"from standard input\n");
    assert_eq!(support::ran(support::run_with(&mut world.ask(&["-"]), b" \n")).code, 2);
}

#[test]
fn an_answer_swapped_for_another_is_refused() {
    let world = answering(|asked| {
        let mut answer = Forged::to(asked);
        answer.in_reply_to = MessageId::from_bytes([9; 32]);
        answer.seal()
    });
    refused(&world, &["a question"], "not to this request");
}

#[test]
fn the_request_echoed_as_its_own_answer_is_refused() {
    let world = answering(|asked| asked.bytes.clone());
    refused(&world, &["a question"], "it is the request itself");
    refused(&world, &["--answer-under", "kms", "a question"], "it is the request itself");
}

#[test]
fn another_request_as_an_answer_is_refused_by_its_purpose() {
    let world = answering(|asked| {
        let mut answer = Forged::to(asked);
        answer.purpose = "inference".to_owned();
        answer.seal()
    });
    refused(&world, &["a question"], "subrosa:purpose");
    refused(&world, &["--answer-under", "kms", "a question"], "subrosa:purpose");
}

#[test]
fn another_tenants_answer_is_refused() {
    let world = answering(|asked| {
        let mut answer = Forged::to(asked);
        answer.tenant = "other".to_owned();
        answer.seal()
    });
    refused(&world, &["a question"], "subrosa:tenant");
}

#[test]
fn an_answer_with_more_in_its_context_than_was_agreed_is_refused() {
    let world = answering(|asked| {
        let mut answer = Forged::to(asked);
        answer.extra = Some(("subrosa:Tenant".to_owned(), TENANT.to_owned()));
        answer.seal()
    });
    refused(&world, &["a question"], "unknown key");
}

#[test]
fn an_answer_under_another_key_than_the_one_asked_for_is_refused() {
    let other = ARN.replace("0d99", "ffff");
    let world = answering(move |asked| {
        let mut answer = Forged::to(asked);
        answer.under = Under::Kms(other.clone());
        answer.seal()
    });
    refused(&world, &["--answer-under", "kms", "a question"], "under another key");
    refused(&world, &["a question"], "key provider");
    let world = answering(|asked| {
        let mut answer = Forged::to(asked);
        answer.under = Under::Reply([1; 32]);
        answer.seal()
    });
    refused(&world, &["a question"], "does not open");
    refused(&world, &["--answer-under", "kms", "a question"], "key provider");
}

#[test]
fn an_answer_under_the_kms_key_is_opened_when_it_was_asked_for() {
    let world = answering(|asked| {
        assert!(asked.reply_key.is_none());
        Forged::to(asked).seal()
    });
    let ran = run(&mut world.ask(&["--answer-under", "kms", "a question"]));
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "Hello, world\n"), "{}", ran.stderr);
}

#[test]
fn an_unsigned_answer_is_refused_where_a_signed_one_was_asked_for() {
    let world = answering(|asked| Forged::to(asked).seal());
    refused(&world, &["--answer-suite", "0578", "a question"], "suite");
}

#[test]
fn a_signed_answer_is_printed_only_when_its_signature_is_good() {
    let signed = |asked: &Asked| {
        let mut answer = Forged::to(asked);
        answer.suite = Suite::CommitSigned;
        answer.seal()
    };
    let world = answering(signed);
    let ran = run(&mut world.ask(&["--suite", "0578", "--answer-suite", "0578", "a question"]));
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "Hello, world\n"), "{}", ran.stderr);
    let world = answering(move |asked| {
        let mut message = signed(asked);
        let last = message.len() - 1;
        message[last] ^= 1;
        message
    });
    refused(&world, &["--answer-suite", "0578", "a question"], "signature");
}

#[test]
fn a_truncated_answer_is_reported_incomplete_wherever_it_is_cut() {
    for (back, printed) in [(1, "Hello, world"), (500, "Hello, world"), (700, "Hello, "), (1200, "Hello")] {
        let world = answering(move |asked| {
            let message = Forged::to(asked).seal();
            message[..message.len() - back].to_vec()
        });
        let ran = run(&mut world.ask(&["a question"]));
        assert_eq!((ran.code, ran.stdout.as_str()), (1, printed), "{back}: {}", ran.stderr);
        assert!(ran.stderr.contains("INCOMPLETE"), "{}", ran.stderr);
        let ran = run(&mut world.ask(&["--json", "a question"]));
        assert_eq!(lines(&ran.stdout).last().unwrap()["complete"], false);
    }
    let world = answering(|asked| Forged::to(asked).seal()[..100].to_vec());
    refused(&world, &["a question"], "INCOMPLETE");
    refused(&answering(|_| Vec::new()), &["a question"], "INCOMPLETE");
}

#[test]
fn an_answer_that_ends_in_the_middle_of_the_completion_is_incomplete_though_the_message_is_whole() {
    let world = answering(|asked| {
        let mut answer = Forged::to(asked);
        answer.body.truncate(1024);
        answer.seal()
    });
    let ran = run(&mut world.ask(&["a question"]));
    assert_eq!((ran.code, ran.stdout.as_str()), (1, "Hello, "), "{}", ran.stderr);
}

#[test]
fn a_changed_repeated_or_added_frame_is_refused() {
    let good = |asked: &Asked| Forged::to(asked).seal();
    let frame = 4 + 12 + 512 + 16;
    let tail = move |message: &[u8], frames: usize| message.len() - (4 + 4 + 12 + 4 + 16) - frames * frame;
    let changes: [(&str, Change); 3] = [
        ("changed", |message, at| message[at + 30] ^= 1),
        ("repeated", |message, at| {
            let again = message[at..at + 544].to_vec();
            message.splice(at..at, again);
        }),
        ("added", |message, _| message.push(0)),
    ];
    for (name, change) in changes {
        let world = answering(move |asked| {
            let mut message = good(asked);
            let at = tail(&message, 1);
            change(&mut message, at);
            message
        });
        let ran = run(&mut world.ask(&["a question"]));
        assert_eq!(ran.code, 1, "{name}: {}", ran.stderr);
        assert!(ran.stderr.contains("does not open"), "{name}: {}", ran.stderr);
    }
}

#[test]
fn a_header_larger_than_any_answers_is_refused_before_it_is_held() {
    let world = answering(|_| {
        // Version 2, suite 0x0478, message id, and a context of 60,000 bytes.
        let mut message = [&[2, 0x04, 0x78][..], &[7; 32], &60_000_u16.to_be_bytes()].concat();
        message.resize(70_000, 0);
        message
    });
    refused(&world, &["a question"], "longer than 8192");
}

#[test]
fn an_endless_outer_head_is_a_network_failure_and_bounded() {
    let world = World::new(Kms::Good, |_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        let line = [b"X-Pad: ", &[b'x'; 8000][..], b"\r\n"].concat();
        while stream.write_all(&line).is_ok() {}
    });
    let ran = run(&mut world.ask(&["a question"]));
    assert_eq!((ran.code, ran.stdout.as_str()), (3, ""), "{}", ran.stderr);
}

#[test]
fn a_parent_that_does_not_answer_is_a_network_failure_in_time() {
    let world = World::new(Kms::Good, |_, _| thread::sleep(Duration::from_secs(30)));
    let begun = Instant::now();
    let ran = run(&mut world.ask(&["--timeout", "1", "a question"]));
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("waited 1 s") || ran.stderr.contains("waited 0 s"), "{}", ran.stderr);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_parent_that_stalls_in_the_middle_leaves_an_incomplete_answer_in_time() {
    let world = World::new(Kms::Good, |asked, stream| {
        begin(stream);
        let message = Forged::to(asked).seal();
        let _ = stream.write_all(&message[..message.len() - 1200]);
        thread::sleep(Duration::from_secs(30));
    });
    let ran = run(&mut world.ask(&["--timeout", "2", "a question"]));
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stdout.starts_with("Hello") && ran.stderr.contains("INCOMPLETE"), "{}", ran.stderr);
}

#[test]
fn a_whole_message_is_whole_though_the_connection_never_ends() {
    let world = World::new(Kms::Good, |asked, stream| {
        begin(stream);
        let _ = stream.write_all(&Forged::to(asked).seal());
        thread::sleep(Duration::from_secs(30));
    });
    let ran = run(&mut world.ask(&["--timeout", "2", "a question"]));
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "Hello, world\n"), "{}", ran.stderr);
}

#[test]
fn an_endless_answer_is_cut_off() {
    let world = World::new(Kms::Good, |asked, stream| {
        let mut answer = Forged::to(asked);
        answer.body = b":\n".repeat(9 << 20);
        begin(stream);
        let _ = stream.write_all(&answer.seal());
    });
    refused(&world, &["a question"], "longer than");
}

#[test]
fn an_outer_refusal_is_told_as_the_parents_word_and_nothing_is_sent_again() {
    let world =
        World::new(Kms::Good, |_, stream| respond(stream, 400, "application/json", br#"{"refusal":"cannot-open"}"#));
    let ran = run(&mut world.ask(&["a question"]));
    assert_eq!((ran.code, ran.stdout.as_str(), world.posts()), (4, "", 1));
    assert!(ran.stderr.contains("cannot-open") && ran.stderr.contains("parent's word"), "{}", ran.stderr);
}

#[test]
fn a_refusal_cannot_steer_the_terminal() {
    let world = World::new(Kms::Good, |_, stream| {
        respond(stream, 503, "text/plain", b"{\"refusal\":\"\\u001b[2Jbusy\"}");
    });
    let ran = run(&mut world.ask(&["a question"]));
    assert_eq!(ran.code, 4);
    assert!(!ran.stderr.contains('\u{1b}') && ran.stderr.contains("503"), "{}", ran.stderr);
}

#[test]
fn a_refusal_inside_a_sealed_answer_is_the_enclaves_own() {
    let world = answering(|asked| {
        let mut answer = Forged::to(asked);
        (answer.status, answer.content_type) = (404, "application/json".to_owned());
        answer.body = br#"{"error":{"code":"unknown-model","message":"no model of this name"}}      "#.to_vec();
        answer.seal()
    });
    let ran = run(&mut world.ask(&["a question"]));
    assert_eq!((ran.code, ran.stdout.as_str()), (4, ""), "{}", ran.stderr);
    assert!(ran.stderr.contains("the enclave refused") && ran.stderr.contains("unknown-model"), "{}", ran.stderr);
}

#[test]
fn what_is_no_sealed_message_is_refused() {
    let world = World::new(Kms::Good, |_, stream| respond(stream, 200, "text/html", b"<p>Hello, world</p>"));
    refused(&world, &["a question"], "text/html");
    refused(&answering(|_| b"Hello, world".to_vec()), &["a question"], "message format");
}

#[test]
fn nobody_there_is_a_network_failure() {
    let mut world = answering(|asked| Forged::to(asked).seal());
    world.parent = "http://127.0.0.1:9".to_owned();
    assert_eq!(run(&mut world.ask(&["a question"])).code, 3);
    world.kms = "http://127.0.0.1:9".to_owned();
    let ran = run(&mut world.ask(&["a question"]));
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("KMS could not be asked"), "{}", ran.stderr);
}

#[test]
fn a_refusal_by_kms_is_a_refusal_and_nothing_is_sent() {
    let world = World::new(Kms::Denies, |_, _| ());
    let ran = run(&mut world.ask(&["a question"]));
    assert_eq!((ran.code, world.posts()), (4, 0), "{}", ran.stderr);
    assert!(ran.stderr.contains("AccessDeniedException"), "{}", ran.stderr);
}

#[test]
fn with_a_pinned_measurement_nothing_is_sealed_for_an_enclave_that_cannot_be_verified() {
    let world = answering(|asked| Forged::to(asked).seal());
    let pin = format!("0={}", "ab".repeat(48));
    let ran = run(&mut world.ask(&["--pcr", &pin, "a question"]));
    assert_eq!((ran.code, world.posts()), (5, 0), "{}", ran.stderr);
    assert_eq!(world.kms_calls.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[test]
fn a_verification_without_a_measurement_is_a_usage_error() {
    let world = answering(|asked| Forged::to(asked).seal());
    let ran = run(&mut world.ask(&["--verify", "a question"]));
    assert_eq!((ran.code, world.posts()), (2, 0), "{}", ran.stderr);
}

#[test]
fn a_verification_that_does_not_pin_the_image_is_a_usage_error() {
    let world = answering(|asked| Forged::to(asked).seal());
    let (pcr1, pcr16) = (format!("1={}", "ab".repeat(48)), format!("16={}", "cd".repeat(48)));
    let ran = run(&mut world.ask(&["--pcr", &pcr1, "--pcr", &pcr16, "a question"]));
    assert_eq!((ran.code, world.posts()), (2, 0), "{}", ran.stderr);
    assert!(ran.stderr.contains("PCR0 is the image; without it no code is pinned"), "{}", ran.stderr);
    assert_eq!(world.kms_calls.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[test]
fn a_release_floor_without_a_measurement_is_a_usage_error() {
    let world = answering(|asked| Forged::to(asked).seal());
    let ran = run(&mut world.ask(&["--min-release", "3", "a question"]));
    assert_eq!((ran.code, world.posts()), (2, 0), "{}", ran.stderr);
    assert!(ran.stderr.contains("give --pcr"), "{}", ran.stderr);
}

#[test]
fn usage_errors_end_with_exit_code_2() {
    let world = answering(|asked| Forged::to(asked).seal());
    for arguments in
        [&["ask"][..], &["ask", "--url", "ftp://x", "--kms-key", ARN, "--tenant", "t", "hi"], &["nonsense"]]
    {
        assert_eq!(run(subrosa().args(arguments)).code, 2, "{arguments:?}");
    }
    assert_eq!(run(&mut world.ask(&["--tenant", "not/allowed", "hi"])).code, 2);
    assert_eq!(run(&mut world.ask(&["--pcr", "0=zz", "hi"])).code, 2);
    assert_eq!(run(&mut world.ask(&["--file", "a", "and a text"])).code, 2);
    assert_eq!(run(world.ask(&["hi"]).env_remove("AWS_REGION")).code, 2);
    assert_eq!(world.posts(), 0);
}

#[test]
fn an_interrupted_command_ends_at_once_and_says_so() {
    let world = World::new(Kms::Good, |asked, stream| {
        begin(stream);
        let message = Forged::to(asked).seal();
        let _ = stream.write_all(&message[..message.len() - 1200]);
        thread::sleep(Duration::from_secs(30));
    });
    let mut child = world.ask(&["--json", "a question"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 8];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let ran = support::ran(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 130);
    assert!(ran.stdout.lines().last().unwrap().contains(r#""complete":false"#), "{}", ran.stdout);
    assert!(ran.stderr.contains("not the whole"), "{}", ran.stderr);
}
