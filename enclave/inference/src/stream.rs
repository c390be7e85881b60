//! From tokens back to text, piece by piece: no half of a character, and no part of a stop text, is ever let out.

use zeroize::Zeroizing;

use crate::sample::MAX_STOP_BYTES;

/// The text of one answer while it is generated.
pub(crate) struct TextStream<'a> {
    stops: &'a [Zeroizing<String>],
    /// If nothing has come yet: a space that comes first is left out.
    space_in_front: bool,
    /// The start of a character whose end has not come yet: at most 3 bytes.
    partial: Zeroizing<Vec<u8>>,
    /// Whole characters that may still turn out to begin a stop text.
    held: Zeroizing<String>,
}

/// What may be let out.
pub(crate) struct Piece {
    pub(crate) text: Zeroizing<String>,
    /// A stop text has come: nothing more will.
    pub(crate) stopped: bool,
    /// Bytes that came before and are not let out: of text, and of a character that has only begun.
    pub(crate) held: usize,
}

impl<'a> TextStream<'a> {
    /// `space_in_front`: tokens bring a space in front of a text, that is not part of it.
    pub(crate) fn new(stops: &'a [Zeroizing<String>], space_in_front: bool) -> Self {
        // With room for what will be held: a buffer that grows leaves its former self behind, not wiped.
        let (partial, held) = (Vec::with_capacity(ROOM), String::with_capacity(MAX_STOP_BYTES + ROOM));
        Self { stops, space_in_front, partial: Zeroizing::new(partial), held: Zeroizing::new(held) }
    }

    /// Takes the bytes of a token.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Piece {
        let text = bytes.strip_prefix(b" ").filter(|_| self.space_in_front).unwrap_or(bytes);
        self.space_in_front &= bytes.is_empty();
        self.partial.extend_from_slice(text);
        self.decode();
        self.release(false)
    }

    /// Nothing more comes: gives what was held back. The start of a character without its end becomes U+FFFD.
    pub(crate) fn finish(mut self) -> Piece {
        if !self.partial.is_empty() {
            self.held.push(char::REPLACEMENT_CHARACTER);
        }
        self.release(true)
    }

    /// Moves whole characters from `partial` to `held`. What can never become a character is replaced by U+FFFD, one
    /// for each maximal part, as `String::from_utf8_lossy` does.
    fn decode(&mut self) {
        let mut rest: &[u8] = &self.partial;
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.held.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    self.held.push_str(std::str::from_utf8(valid).unwrap_or_default());
                    rest = after;
                    // "None: the end of the input was reached unexpectedly": it may still become a character.
                    let Some(length) = error.error_len() else { break };
                    self.held.push(char::REPLACEMENT_CHARACTER);
                    rest = rest.get(length..).unwrap_or_default();
                }
            }
        }
        let done = self.partial.len() - rest.len();
        self.partial.copy_within(done.., 0);
        let left = self.partial.len() - done;
        self.partial.truncate(left);
    }

    fn release(&mut self, all: bool) -> Piece {
        let first_stop = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        let (end, stopped) = match first_stop {
            Some(start) => (start, true),
            None if all => (self.held.len(), false),
            None => (self.held.len() - self.may_begin_a_stop(), false),
        };
        let text = Zeroizing::new(self.held.get(..end).unwrap_or_default().to_owned());
        let held = self.held.len() - end + self.partial.len();
        // What moves up leaves a copy behind, within the buffer that is wiped on drop.
        let done = if stopped { self.held.len() } else { end };
        self.held.drain(..done);
        Piece { text, stopped, held }
    }

    /// Length of the longest end of `held` with which a stop text begins.
    fn may_begin_a_stop(&self) -> usize {
        let longest = |stop: &Zeroizing<String>| {
            let beginnings = stop.char_indices().map(|(index, _)| index).filter(|&index| index > 0);
            beginnings.filter(|&index| stop.get(..index).is_some_and(|start| self.held.ends_with(start))).max()
        };
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}

/// Tokens are shorter, but for rare ones.
const ROOM: usize = 256;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stops(texts: &[&str]) -> Vec<Zeroizing<String>> {
        texts.iter().map(|text| Zeroizing::new((*text).to_owned())).collect()
    }

    /// All pieces, and whether a stop text came.
    fn stream(stops: &[Zeroizing<String>], tokens: &[&[u8]]) -> (Vec<String>, bool) {
        let mut stream = TextStream::new(stops, false);
        let mut pieces = Vec::new();
        for token in tokens {
            let piece = stream.push(token);
            pieces.push(piece.text.to_string());
            if piece.stopped {
                return (pieces, true);
            }
        }
        pieces.push(stream.finish().text.to_string());
        (pieces, false)
    }

    #[test]
    fn a_character_comes_out_when_its_last_byte_is_in() {
        let (pieces, _) = stream(&[], &[b"a\xE2", b"\x82", b"\xACb"]);
        assert_eq!(pieces, ["a", "", "€b", ""]);
    }

    #[test]
    fn one_space_in_front_is_left_out() {
        for (tokens, text) in
            [(&[&b""[..], b" a", b" b"][..], "a b"), (&[b"  a"], " a"), (&[b" ", b" a"], " a"), (&[b"a", b" b"], "a b")]
        {
            let mut stream = TextStream::new(&[], true);
            let pieces: String = tokens.iter().map(|token| stream.push(token).text.to_string()).collect();
            assert_eq!(pieces, text);
        }
    }

    #[test]
    fn bytes_that_are_no_character_become_replacements() {
        let (pieces, _) = stream(&[], &[b"\xFF", b"\xE2\x82", b"x", b"\xF0\x9F"]);
        assert_eq!(pieces.concat(), "\u{FFFD}\u{FFFD}x\u{FFFD}");
    }

    #[test]
    fn a_stop_text_over_several_tokens_never_leaks_in_part() {
        let stops = stops(&["</s>", "END"]);
        let (pieces, stopped) = stream(&stops, &[b"one <", b"/", b"s", b"> two"]);
        assert!(stopped);
        assert_eq!(pieces, ["one ", "", "", ""]);
        let (pieces, stopped) = stream(&stops, &[b"one <", b"/", b"b> E", b"N", b"D"]);
        assert!(stopped);
        assert_eq!(pieces, ["one ", "", "</b> ", "", ""]);
    }

    #[test]
    fn the_earliest_stop_text_counts() {
        let (pieces, stopped) = stream(&stops(&["c", "b"]), &[b"abc"]);
        assert!(stopped);
        assert_eq!(pieces, ["a"]);
    }

    #[test]
    fn what_only_looked_like_a_stop_text_comes_out_at_the_end() {
        let (pieces, stopped) = stream(&stops(&["STOP"]), &[b"x ST", b"O"]);
        assert!(!stopped);
        assert_eq!(pieces, ["x ", "", "STO"]);
    }

    proptest! {
        #[test]
        fn pieces_add_up_to_the_lossy_text_however_bytes_are_cut(
            bytes in prop::collection::vec(any::<u8>(), 0..60),
            cuts in prop::collection::vec(1_usize..4, 60),
        ) {
            let mut tokens = Vec::new();
            let mut rest: &[u8] = &bytes;
            for cut in cuts {
                let (token, after) = rest.split_at(cut.min(rest.len()));
                tokens.push(token);
                rest = after;
            }
            let (pieces, _) = stream(&[], &tokens);
            prop_assert_eq!(pieces.concat(), String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn a_streamed_text_ends_where_the_whole_text_has_its_first_stop(
            text in "[abc]{0,30}", stop in "[abc]{1,4}", other in "[abc]{1,4}", cut in 1_usize..5,
        ) {
            let stops = stops(&[&stop, &other]);
            let tokens: Vec<&[u8]> = text.as_bytes().chunks(cut).collect();
            let (pieces, stopped) = stream(&stops, &tokens);
            let ends = [text.find(&stop), text.find(&other)];
            let said = pieces.concat();
            prop_assert_eq!(stopped, ends.iter().any(Option::is_some));
            prop_assert!(!said.contains(&stop) && !said.contains(&other));
            prop_assert!(text.starts_with(&said));
            if !stopped {
                prop_assert_eq!(said, text);
            }
        }
    }
}
