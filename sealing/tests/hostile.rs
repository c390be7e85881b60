//! What a hostile carrier may do to a message, and what a hostile writer may put into one: each is refused, each with its
//! own reason.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test program"
)]

mod sealed;
#[allow(dead_code, reason = "other test programs open in pieces")]
mod tamper;

use sealed::{FRAME, Message, key, seal, seal_with};
use sealing::SystemRandom;
use sealing::message::{ContextError, DataKey, EncryptedDataKey, EncryptionContext, Limits, Suite};
use sealing::raw_aes::{Keyring, RawAesError, WrappingKey};
use sealing::reader::{HeaderError, HeaderReader, Held, OpenError, Progress, open_whole};
use sealing::writer::{MessageWriter, SealError, SealParameters};

const BOTH: [Suite; 2] = [Suite::Commit, Suite::CommitSigned];

fn open(message: &[u8]) -> Result<Vec<u8>, OpenError> {
    let (_, plaintext) = open_whole(Limits::file(), message, 1 << 20, |_| Some(key()))?;
    Ok(plaintext.as_bytes().to_vec())
}

fn refusal(message: &[u8]) -> OpenError {
    open(message).expect_err("it should be refused")
}

#[test]
fn a_message_opens_to_what_was_sealed_at_every_size_around_the_edges_of_frames() {
    for suite in BOTH {
        for length in [0, 1, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME - 1, 2 * FRAME, 2 * FRAME + 1, 10 * FRAME + 5] {
            let message = seal(suite, length);
            assert_eq!(open(&message.bytes()).unwrap(), message.plaintext, "{suite:?}, {length} bytes");
        }
    }
}

#[test]
fn a_message_with_a_bit_flipped_cut_short_or_appended_to_is_refused() {
    for suite in BOTH {
        let message = seal(suite, 3 * FRAME + 7).bytes();
        for (what, changed) in tamper::changes(&message) {
            assert!(open(&changed).is_err(), "{suite:?} opened with {what}");
        }
    }
}

#[test]
fn a_larger_message_with_a_bit_flipped_cut_short_or_appended_to_is_refused() {
    for suite in BOTH {
        let message = seal_with(suite, 40_000, 1_024).bytes();
        for (what, changed) in tamper::changes(&message) {
            assert!(open(&changed).is_err(), "{suite:?} opened with {what}");
        }
    }
}

#[test]
fn a_message_without_its_last_frames_is_incomplete() {
    let Message { header, frames, .. } = seal(Suite::Commit, 3 * FRAME);
    assert_eq!(frames.len(), 4);
    for kept in 0..frames.len() {
        let cut = [header.clone(), frames[..kept].concat()].concat();
        assert_eq!(refusal(&cut), OpenError::Incomplete);
    }
}

#[test]
fn a_signed_message_without_its_signature_is_incomplete_though_its_final_frame_is_there() {
    let Message { header, frames, footer, .. } = seal(Suite::CommitSigned, 100);
    let unsigned = [header, frames.concat()].concat();
    assert_eq!(refusal(&unsigned), OpenError::Incomplete);
    assert_eq!(refusal(&[&unsigned[..], &footer[..footer.len() - 1]].concat()), OpenError::Incomplete);
}

#[test]
fn the_signature_of_another_message_is_refused() {
    let one = seal(Suite::CommitSigned, 100);
    let other = seal(Suite::CommitSigned, 100);
    let message = [one.header, one.frames.concat(), other.footer].concat();
    assert_eq!(refusal(&message), OpenError::Signature);
}

#[test]
fn a_signature_of_impossible_length_is_refused_before_it_arrives() {
    let Message { header, frames, .. } = seal(Suite::CommitSigned, 1);
    let message = [header, frames.concat(), vec![0, 105]].concat();
    assert_eq!(refusal(&message), OpenError::SignatureLength(105));
}

#[test]
fn reordered_frames_are_refused() {
    let Message { header, mut frames, .. } = seal(Suite::Commit, 3 * FRAME + 1);
    frames.swap(0, 1);
    assert_eq!(refusal(&[header, frames.concat()].concat()), OpenError::Sequence { expected: 1, found: 2 });
}

#[test]
fn a_duplicated_frame_is_refused() {
    let Message { header, mut frames, .. } = seal(Suite::Commit, 3 * FRAME + 1);
    frames.insert(1, frames[0].clone());
    assert_eq!(refusal(&[header, frames.concat()].concat()), OpenError::Sequence { expected: 2, found: 1 });
}

#[test]
fn a_left_out_frame_is_refused_though_the_numbers_are_repaired() {
    let Message { header, mut frames, .. } = seal(Suite::Commit, 3 * FRAME + 1);
    frames.remove(1);
    assert_eq!(refusal(&[header.clone(), frames.concat()].concat()), OpenError::Sequence { expected: 2, found: 3 });
    frames[1][3] = 2;
    assert_eq!(refusal(&[header.clone(), frames.concat()].concat()), OpenError::Iv(2));
    frames[1][15] = 2;
    assert_eq!(refusal(&[header, frames.concat()].concat()), OpenError::Frame(2));
}

#[test]
fn a_regular_frame_does_not_pass_as_the_final_one() {
    let Message { header, frames, .. } = seal(Suite::Commit, 3 * FRAME + 1);
    let length = u32::try_from(FRAME).unwrap().to_be_bytes();
    let (head, content) = frames[0].split_at(16);
    let forged = [&[0xFF; 4], head, &length, content].concat();
    assert_eq!(refusal(&[header, forged].concat()), OpenError::Frame(1));
}

#[test]
fn the_frames_of_another_message_under_the_same_data_key_are_refused() {
    let one = seal(Suite::Commit, 100);
    let other = seal(Suite::Commit, 100);
    assert_eq!(refusal(&[one.header.clone(), other.frames.concat()].concat()), OpenError::Frame(1));
    assert_eq!(refusal(&[other.header, one.frames.concat()].concat()), OpenError::Frame(1));
}

#[test]
fn a_header_that_claims_the_other_suite_is_refused() {
    let mut message = seal(Suite::Commit, 100).bytes();
    message[1] = 0x05;
    assert_eq!(refusal(&message), OpenError::Malformed(HeaderError::SignatureKey));
    let mut message = seal(Suite::CommitSigned, 100).bytes();
    message[1] = 0x04;
    assert_eq!(refusal(&message), OpenError::Malformed(HeaderError::SignatureKey));
}

#[test]
fn a_changed_encryption_context_is_refused() {
    let mut message = seal(Suite::Commit, 100).bytes();
    let at = message.windows(4).position(|window| window == b"acme").unwrap();
    message[at..at + 4].copy_from_slice(b"evil");
    assert_eq!(refusal(&message), OpenError::Header);
}

#[test]
fn another_data_key_is_refused_by_the_commitment() {
    let message = seal(Suite::Commit, 100).bytes();
    let opened = open_whole(Limits::file(), &message, 1_000, |_| Some(DataKey::from_bytes([1; 32])));
    assert_eq!(opened.err(), Some(OpenError::Commitment));
}

#[test]
fn a_missing_data_key_is_refused() {
    let message = seal(Suite::Commit, 100).bytes();
    assert_eq!(open_whole(Limits::file(), &message, 1_000, |_| None).err(), Some(OpenError::Key));
}

#[test]
fn a_trailing_byte_is_refused() {
    for suite in BOTH {
        let message = [seal(suite, 100).bytes(), vec![0]].concat();
        assert_eq!(refusal(&message), OpenError::TrailingBytes);
    }
}

#[test]
fn nothing_can_be_read_after_a_refusal() {
    let Message { header, frames, .. } = seal(Suite::Commit, 3 * FRAME);
    let mut rest = header.as_slice();
    let Ok(Progress::Done(read)) = HeaderReader::new(Limits::file()).push(&mut rest) else { panic!() };
    let mut body = read.authenticate(&key()).unwrap();
    assert!(body.push(&mut frames[1].as_slice()).is_err());
    let again = body.push(&mut frames[0].as_slice());
    assert_eq!(again.map(|_| ()), Err(OpenError::AlreadyRefused));
    assert_eq!(body.finish().map(|_| ()), Err(OpenError::AlreadyRefused));
}

#[test]
fn a_frame_is_released_as_soon_as_its_last_byte_is_there_and_not_before() {
    let Message { header, frames, plaintext, .. } = seal(Suite::CommitSigned, 2 * FRAME);
    let mut rest = header.as_slice();
    let Ok(Progress::Done(read)) = HeaderReader::new(Limits::file()).push(&mut rest) else { panic!() };
    let mut body = read.authenticate(&key()).unwrap();
    for (at, frame) in frames[..2].iter().enumerate() {
        let (most, last) = frame.split_at(frame.len() - 1);
        assert!(body.push(&mut &most[..]).unwrap().is_none());
        let mut last = last;
        let released = body.push(&mut last).unwrap().expect("a frame");
        assert_eq!(released.as_bytes(), &plaintext[at * FRAME..(at + 1) * FRAME]);
        assert!(!released.is_final());
    }
}

#[test]
fn held_frames_are_not_confirmed_by_the_end_of_another_message() {
    let (one, other) = (seal(Suite::Commit, 100), seal(Suite::Commit, 100));
    let end = |message: &Message| {
        let bytes = message.bytes();
        let mut rest = bytes.as_slice();
        let Ok(Progress::Done(read)) = HeaderReader::new(Limits::file()).push(&mut rest) else { panic!() };
        let mut body = read.authenticate(&key()).unwrap();
        let mut held = Held::new(&body, 1_000);
        while let Some(frame) = body.push(&mut rest).unwrap() {
            held.add(&frame).unwrap();
        }
        (held, body.finish().unwrap())
    };
    let ((held, _), (_, other_end)) = (end(&one), end(&other));
    assert_eq!(held.confirm(&other_end).err(), Some(OpenError::NotThisMessage));
    let bytes = one.bytes();
    let mut rest = bytes.as_slice();
    let Ok(Progress::Done(read)) = HeaderReader::new(Limits::file()).push(&mut rest) else { panic!() };
    let mut body = read.authenticate(&key()).unwrap();
    let held_nothing = Held::new(&body, 1_000);
    while body.push(&mut rest).unwrap().is_some() {}
    assert_eq!(held_nothing.confirm(&body.finish().unwrap()).err(), Some(OpenError::NotThisMessage));
}

#[test]
fn more_plaintext_than_asked_for_is_refused() {
    let message = seal(Suite::Commit, 1_001).bytes();
    let opened = open_whole(Limits::file(), &message, 1_000, |_| Some(key()));
    assert_eq!(opened.err(), Some(OpenError::TooMuchPlaintext { most: 1_000 }));
}

#[test]
fn a_final_frame_longer_than_the_frame_length_is_refused_before_it_arrives() {
    let Message { header, mut frames, .. } = seal(Suite::Commit, 10);
    frames[0][20..24].copy_from_slice(&u32::MAX.to_be_bytes());
    let refused = refusal(&[header, frames[0][..24].to_vec()].concat());
    assert_eq!(refused, OpenError::Length { found: u64::from(u32::MAX), most: FRAME as u64 });
}

/// The header's first bytes, up to where `field` begins, then bytes that claim too much and nothing more: the refusal must
/// come without the bytes that are claimed.
#[test]
fn lengths_past_the_limits_are_refused_before_what_they_announce_arrives() {
    let limits = Limits::request;
    let start = [&[2, 4, 0x78][..], &[0; 32]].concat();
    let after_context = [&start[..], &[0, 0]].concat();
    let one_key = [&after_context[..], &[0, 1]].concat();
    let names = [&one_key[..], &[0, 1, b'p', 0, 0]].concat();
    let whole_key = [&names[..], &[0, 1, 0]].concat();
    let field = |field, found, limit| HeaderError::EncryptedDataKeyLength { field, found, limit };
    let frame_length = |found| HeaderError::FrameLength { found, least: 128, most: 65_536 };
    for (bytes, claim, error) in [
        (&start[..], &[0xFF, 0xFF][..], HeaderError::TooLong { limit: 8_192 }),
        (&after_context, &[0, 5], HeaderError::EncryptedDataKeys { found: 5, limit: 4 }),
        (&after_context, &[0, 0], HeaderError::EncryptedDataKeys { found: 0, limit: 4 }),
        (&one_key, &[0, 129], field("provider id", 129, 128)),
        (&one_key, &[0, 1, b'p', 8, 1], field("provider info", 2_049, 2_048)),
        (&names, &[0x18, 1], field("ciphertext", 6_145, 6_144)),
        (&whole_key, &[2, 0, 1, 0, 1], frame_length(65_537)),
        (&whole_key, &[2, 0, 0, 0, 127], frame_length(127)),
        (&whole_key, &[2, 0, 0, 0, 0], frame_length(0)),
        (&whole_key, &[1, 0, 0, 0, 0], HeaderError::Unframed),
        (&whole_key, &[1, 0, 0, 0, 1], HeaderError::UnframedFrameLength(1)),
        (&whole_key, &[3, 0, 0, 0, 1], HeaderError::ContentType(3)),
    ] {
        let bytes = [bytes, claim].concat();
        let refused = HeaderReader::new(limits()).push(&mut bytes.as_slice());
        assert_eq!(refused.err(), Some(error));
    }
}

#[test]
fn a_header_grown_past_its_limit_by_many_small_fields_is_refused() {
    let mut bytes = [&[2, 4, 0x78][..], &[0; 32], &[0, 0], &[0xFF, 0xFF]].concat();
    for _ in 0..3_000 {
        bytes.extend_from_slice(&[0; 6]);
    }
    let limits = Limits { encrypted_data_keys: u16::MAX, ..Limits::request() };
    let refused = HeaderReader::new(limits).push(&mut bytes.as_slice());
    assert_eq!(refused.err(), Some(HeaderError::TooLong { limit: 8_192 }));
}

#[test]
fn other_versions_and_suites_are_refused_at_once() {
    let refused = |bytes: &[u8]| HeaderReader::new(Limits::file()).push(&mut &bytes[..]).err();
    assert_eq!(refused(&[1]), Some(HeaderError::Version(1)));
    assert_eq!(refused(b"POST"), Some(HeaderError::Version(b'P')));
    // 0x0178 and 0x0378: the suites without key commitment.
    for suite in [0x0178_u16, 0x0378, 0x0014, 0x0000, 0xFFFF] {
        assert_eq!(refused(&[&[2], &suite.to_be_bytes()[..]].concat()), Some(HeaderError::Suite(suite)));
    }
}

#[test]
fn a_context_in_another_form_is_refused_though_its_length_is_right() {
    let message = |context: &[u8]| {
        let length = u16::try_from(context.len()).unwrap().to_be_bytes();
        let keys = [0, 1, 0, 1, b'p', 0, 0, 0, 1, 0];
        [&[2, 4, 0x78][..], &[0; 32], &length, context, &keys, &[2, 0, 0, 16, 0], &[0; 48]].concat()
    };
    for (context, error) in [
        (&b"\0\x02\0\x01b\0\0\0\x01a\0\0"[..], ContextError::NotSorted),
        (b"\0\x02\0\x01a\0\0\0\x01a\0\0", ContextError::DuplicateKey("a".into())),
        (b"\0\0", ContextError::ZeroCount),
        (b"\0\x01\0\x01a\0\0\0", ContextError::Lengths(8)),
    ] {
        let refused = HeaderReader::new(Limits::file()).push(&mut message(context).as_slice());
        assert_eq!(refused.err(), Some(HeaderError::Context(error)));
    }
    let good = HeaderReader::new(Limits::file()).push(&mut message(b"").as_slice());
    assert!(matches!(good, Ok(Progress::Done(_))));
}

#[test]
fn a_point_that_is_not_on_the_curve_verifies_nothing() {
    let message = seal(Suite::CommitSigned, 10).bytes();
    let at = message.windows(21).position(|window| window == b"aws-crypto-public-key").unwrap() + 23;
    for text in ["A".repeat(68), "A".repeat(67) + "=", "!".repeat(68)] {
        let mut changed = message.clone();
        changed[at..at + 68].copy_from_slice(text.as_bytes());
        assert_eq!(refusal(&changed), OpenError::Malformed(HeaderError::SignatureKey));
    }
}

#[test]
fn a_data_key_opens_under_its_own_key_names_and_context_only() {
    let mut random = SystemRandom::new();
    let keyring = |namespace, name, byte| Keyring::new(namespace, name, WrappingKey::from_bytes([byte; 32])).unwrap();
    let context = EncryptionContext::from_pairs([("tenant", "acme")]).unwrap();
    let wrapped = keyring("ns", "name", 1).wrap(&key(), &context, &mut random).unwrap();
    let unwrap = |keyring: &Keyring, key: &EncryptedDataKey, context: &EncryptionContext| {
        keyring.unwrap(std::slice::from_ref(key), context).map(|key| *key.expose())
    };
    assert_eq!(unwrap(&keyring("ns", "name", 1), &wrapped, &context), Ok(*key().expose()));
    assert_eq!(unwrap(&keyring("ns", "name", 2), &wrapped, &context), Err(RawAesError::DoesNotOpen));
    assert_eq!(unwrap(&keyring("ns", "name", 1), &wrapped, &EncryptionContext::new()), Err(RawAesError::DoesNotOpen));
    for (namespace, name) in [("ns", "nam"), ("ns", "name2"), ("n", "name"), ("ns", "")] {
        let error = RawAesError::NoneOurs { namespace: namespace.into(), name: name.into() };
        assert_eq!(unwrap(&keyring(namespace, name, 1), &wrapped, &context), Err(error));
    }
    for at in 0..wrapped.ciphertext.len() {
        let mut changed = wrapped.clone();
        changed.ciphertext[at] ^= 1;
        assert_eq!(unwrap(&keyring("ns", "name", 1), &changed, &context), Err(RawAesError::DoesNotOpen));
    }
    for at in 0..wrapped.provider_info.len() {
        let mut changed = wrapped.clone();
        changed.provider_info[at] ^= 1;
        assert!(unwrap(&keyring("ns", "name", 1), &changed, &context).is_err());
    }
}

#[test]
fn a_raw_keyring_cannot_take_the_name_of_kms() {
    let refused =
        |namespace: &str, name: &str| Keyring::new(namespace, name, WrappingKey::from_bytes([0; 32])).is_err();
    assert!(refused("aws-kms", "key"));
    assert!(refused("", "key"));
    assert!(refused("ns", &"n".repeat(1_025)));
    assert!(!refused("ns", "key"));
}

#[test]
fn what_no_message_can_have_is_refused_before_it_is_written() {
    let mut random = SystemRandom::new();
    let empty = EncryptionContext::new();
    let refused = |context: &EncryptionContext, frame, random: &mut SystemRandom| {
        SealParameters::begin(Suite::CommitSigned, context.clone(), frame, random).err()
    };
    assert_eq!(refused(&empty, 0, &mut random), Some(SealError::FrameLength(0)));
    assert_eq!(refused(&empty, 16_777_217, &mut random), Some(SealError::FrameLength(16_777_217)));
    let reserved = EncryptionContext::from_pairs([("aws-crypto-public-key", "mine")]).unwrap();
    let error = ContextError::Reserved("aws-crypto-public-key".into());
    assert_eq!(refused(&reserved, 4_096, &mut random), Some(SealError::Context(error)));
    let parameters = SealParameters::begin(Suite::Commit, empty, 4_096, &mut random).unwrap();
    assert_eq!(MessageWriter::new(parameters, vec![], &key()).err(), Some(SealError::EncryptedDataKeys(0)));
}

#[test]
fn a_frame_sealed_in_place_is_one_whole_frame_in_its_turn() {
    let mut writer = sealed::writer(Suite::CommitSigned, FRAME);
    let mut message = writer.header().to_vec();
    writer.write(&[1; FRAME], &mut message).unwrap();
    let mut frame = [2; FRAME];
    let sealed = writer.seal_in_place(&mut frame).unwrap();
    [sealed.head(), &frame, sealed.tag()].iter().for_each(|part| message.extend_from_slice(part));
    let short = writer.seal_in_place(&mut [3; 5]).err();
    assert_eq!(short, Some(SealError::NotOneFrame { found: 5, expected: FRAME, waiting: 0 }));
    writer.write(&[3; 5], &mut message).unwrap();
    let early = writer.seal_in_place(&mut [4; FRAME]).err();
    assert_eq!(early, Some(SealError::NotOneFrame { found: FRAME, expected: FRAME, waiting: 5 }));
    writer.finish(&mut message).unwrap();
    assert_eq!(open(&message).unwrap(), [&[1; FRAME][..], &[2; FRAME], &[3; 5]].concat());
}

/// A source of randomness that fails after some bytes.
struct Dry(usize);

impl sealing::Random for Dry {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), sealing::RandomError> {
        self.0 = self.0.checked_sub(out.len()).ok_or(sealing::RandomError)?;
        out.fill(0);
        Ok(())
    }
}

#[test]
fn nothing_is_sealed_without_randomness() {
    let begin = |suite, bytes| SealParameters::begin(suite, EncryptionContext::new(), 512, &mut Dry(bytes)).err();
    assert_eq!(begin(Suite::Commit, 31), Some(SealError::Random(sealing::RandomError)));
    assert_eq!(begin(Suite::Commit, 32), None);
    // Zero is no secret scalar; a source that gives nothing else is given up.
    assert_eq!(begin(Suite::CommitSigned, 32), Some(SealError::Refused("make a signing key")));
    assert_eq!(begin(Suite::CommitSigned, 10_000), Some(SealError::Refused("make a signing key")));
    assert!(DataKey::generate(&mut Dry(31)).is_err());
}
