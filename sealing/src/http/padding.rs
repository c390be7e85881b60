//! Filling a body up to whole frames, so that its length says little (`docs/PROTOCOL.md`, section 6).

use crate::secret::SecretBytes;

/// How many bytes are missing from `length` to a whole number of frames. A frame length of zero needs none.
#[must_use]
pub fn missing(length: usize, frame_length: usize) -> usize {
    match length.checked_rem(frame_length) {
        None | Some(0) => 0,
        Some(over) => frame_length.saturating_sub(over),
    }
}

/// Pads JSON by trailing spaces (RFC 8259, 2: "Insignificant whitespace is allowed before or after any of the six
/// structural characters"). An empty body becomes one frame of spaces.
pub fn json(body: &mut SecretBytes, frame_length: usize) {
    let count = if body.is_empty() { frame_length } else { missing(body.len(), frame_length) };
    body.extend_with(b' ', count);
}

/// Appends exactly `count` bytes that a reader of Server-Sent Events ignores: a comment line, or, where only one byte
/// fits, an empty line.
///
/// It must stand after the end of an event: there an empty line dispatches nothing ("If the data buffer is an empty string,
/// set the data buffer and the event type buffer to the empty string and return", WHATWG HTML, 9.2.6).
pub fn sse(out: &mut SecretBytes, count: usize) {
    match count {
        0 => {}
        1 => out.extend(b"\n"),
        _ => {
            out.extend(b":");
            out.extend_with(b' ', count.saturating_sub(2));
            out.extend(b"\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{json, missing, sse};
    use crate::SecretBytes;

    #[test]
    fn padding_of_events_has_exactly_the_length_asked_for_and_is_ignored() {
        for count in 0..600 {
            let mut out = SecretBytes::new();
            sse(&mut out, count);
            assert_eq!(out.len(), count);
            let text = str::from_utf8(out.as_bytes()).unwrap();
            assert!(text.lines().all(|line| line.is_empty() || line.starts_with(':')));
            assert!(count == 0 || text.ends_with('\n'));
            assert!(text.lines().count() <= 1);
        }
    }

    #[test]
    fn padded_json_is_the_same_json_in_whole_frames() {
        for length in 0..70 {
            let text = format!("\"{}\"", "x".repeat(length));
            let mut body = SecretBytes::from_vec(text.clone().into_bytes());
            json(&mut body, 32);
            assert_eq!(body.len() % 32, 0);
            let parsed: String = serde_json::from_slice(body.as_bytes()).unwrap();
            assert_eq!(parsed.len(), length);
        }
    }

    #[test]
    fn nothing_is_missing_from_whole_frames() {
        assert_eq!([missing(0, 8), missing(1, 8), missing(8, 8), missing(9, 8), missing(9, 0)], [0, 7, 0, 7, 0]);
    }
}
