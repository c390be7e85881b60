//! What holds for any message, any way of cutting it, and any bytes at all.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test program"
)]

#[allow(dead_code, reason = "the hostile cases use the parts of a message")]
mod sealed;
#[allow(dead_code, reason = "the vectors and hostile cases use the rest")]
mod tamper;

use proptest::prelude::*;
use sealed::key;
use sealing::http::{Request, ResponseHeadReader, ResponseProgress};
use sealing::message::{EncryptionContext, Limits, MessageId, Suite};
use sealing::reader::{HeaderReader, Held, OpenError, Progress, open_whole};

fn suites() -> impl Strategy<Value = Suite> {
    prop_oneof![Just(Suite::Commit), Just(Suite::CommitSigned)]
}

/// Cuts bytes into pieces at the given places.
fn pieces<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([0, bytes.len()]).collect();
    places.sort_unstable();
    places.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

/// Opens a message that arrives in pieces whose frames are opened where they lie.
fn open_pieces_in_place(pieces: &[&[u8]]) -> Result<Vec<u8>, OpenError> {
    let mut reader = Some(HeaderReader::new(Limits::file()));
    let mut body = None;
    let mut held = None;
    for piece in pieces {
        let mut piece = piece.to_vec();
        let mut rest: &[u8] = &piece;
        if let Some(more) = reader.take() {
            match more.push(&mut rest)? {
                Progress::More(more) => reader = Some(more),
                Progress::Done(header) => {
                    let authenticated = header.authenticate(&key())?;
                    held = Some(Held::new(&authenticated, 1 << 20));
                    body = Some(authenticated);
                }
            }
        }
        let at = piece.len() - rest.len();
        let mut rest = &mut piece[at..];
        if let (Some(body), Some(held)) = (&mut body, &mut held) {
            while let Some(frame) = body.push_in_place(&mut rest)? {
                held.add(&frame)?;
            }
        }
    }
    let (body, held) = (body.ok_or(OpenError::Incomplete)?, held.ok_or(OpenError::Incomplete)?);
    Ok(held.confirm(&body.finish()?)?.as_bytes().to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_sealed_opens_however_it_is_cut(
        suite in suites(),
        plaintext in proptest::collection::vec(any::<u8>(), 0..2_000),
        frame_length in 1..600_usize,
        write_cuts in proptest::collection::vec(any::<usize>(), 0..6),
        read_cuts in proptest::collection::vec(any::<usize>(), 0..12),
    ) {
        let mut writer = sealed::writer(suite, frame_length);
        let mut message = writer.header().to_vec();
        for piece in pieces(&plaintext, &write_cuts) {
            writer.write(piece, &mut message).unwrap();
        }
        writer.finish(&mut message).unwrap();
        let cut = pieces(&message, &read_cuts);
        prop_assert_eq!(&tamper::open_pieces(Limits::file(), &cut, |_| Some(key())).unwrap(), &plaintext);
        prop_assert_eq!(&open_pieces_in_place(&cut).unwrap(), &plaintext);
    }

    #[test]
    fn how_a_changed_message_is_cut_changes_neither_whether_nor_why_it_is_refused(
        suite in suites(),
        length in 0..500_usize,
        at in any::<usize>(),
        bit in 0..8_u8,
        cuts in proptest::collection::vec(any::<usize>(), 0..12),
    ) {
        let mut message = sealed::seal(suite, length).bytes();
        let at = at % message.len();
        message[at] ^= 1 << bit;
        let whole = open_whole(Limits::file(), &message, 1 << 20, |_| Some(key())).err();
        prop_assert!(whole.is_some());
        let cut = pieces(&message, &cuts);
        let in_pieces = tamper::open_pieces(Limits::file(), &cut, |_| Some(key())).err();
        prop_assert_eq!(&in_pieces, &whole);
        prop_assert_eq!(open_pieces_in_place(&cut).err(), whole);
    }

    #[test]
    fn the_same_plaintext_has_the_same_length_however_it_was_written(
        suite in Just(Suite::Commit),
        length in 0..2_000_usize,
        cuts in proptest::collection::vec(any::<usize>(), 0..6),
    ) {
        let plaintext = vec![7; length];
        let mut writer = sealed::writer(suite, 128);
        let mut message = writer.header().to_vec();
        for piece in pieces(&plaintext, &cuts) {
            writer.write(piece, &mut message).unwrap();
        }
        writer.finish(&mut message).unwrap();
        prop_assert_eq!(message.len(), sealed::seal_with(suite, length, 128).bytes().len());
    }

    #[test]
    fn any_bytes_are_refused_as_a_message_and_nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(open_whole(Limits::file(), &bytes, 1 << 20, |_| Some(key())).is_err());
    }

    #[test]
    fn a_context_reads_back_as_it_was_written_and_only_so(
        pairs in proptest::collection::btree_map(".{1,10}", ".{0,10}", 0..6),
        bytes in proptest::collection::vec(0..4_u8, 0..40),
    ) {
        let context = EncryptionContext::from_pairs(pairs).unwrap();
        prop_assert_eq!(EncryptionContext::parse(&context.to_bytes()), Ok(context));
        if let Ok(context) = EncryptionContext::parse(&bytes) {
            prop_assert_eq!(context.to_bytes(), bytes);
        }
    }

    #[test]
    fn any_bytes_after_a_request_line_are_read_or_refused_and_nothing_panics(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        text in "[ -~\r\n:]{0,200}",
    ) {
        for tail in [bytes.as_slice(), text.as_bytes()] {
            let _ = Request::parse(tail);
            let _ = Request::parse(&[b"POST / HTTP/1.1\r\n", tail].concat());
            let reader = ResponseHeadReader::new(MessageId::from_bytes([0; 32]));
            let read = reader.push(&mut &[b"HTTP/1.1 200 OK\r\n", tail].concat()[..]);
            // Nothing of an answer comes out unless it names the request.
            prop_assert!(!matches!(read, Ok(ResponseProgress::Done(_))));
        }
    }
}
