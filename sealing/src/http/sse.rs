//! Server-Sent Events in frames of one length: one token, one frame.

use super::padding;
use crate::secret::SecretBytes;

/// Turns events into frames of exactly the frame length.
///
/// After each token push its event and take one frame: what does not fit is carried to the next. So how many frames go
/// out, and when, does not depend on how long the tokens are. At the end take frames until it is empty.
pub struct SsePacker {
    frame_length: usize,
    waiting: SecretBytes,
}

/// What no event can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// A frame length of zero.
    #[error("the frame length must not be zero")]
    FrameLength,
    /// A carriage return or NUL, which would not come out as it went in.
    #[error("the data of an event must not contain CR or NUL")]
    Data,
}

impl SsePacker {
    /// A packer of frames of `frame_length` bytes.
    ///
    /// # Errors
    /// [`SseError::FrameLength`] for zero.
    pub fn new(frame_length: usize) -> Result<Self, SseError> {
        if frame_length == 0 {
            return Err(SseError::FrameLength);
        }
        Ok(Self { frame_length, waiting: SecretBytes::with_capacity(frame_length.saturating_mul(2)) })
    }

    /// Adds an event with this data, one `data:` line for each of its lines (WHATWG HTML, 9.2.6).
    ///
    /// # Errors
    /// [`SseError::Data`].
    pub fn push_event(&mut self, data: &str) -> Result<(), SseError> {
        if data.contains(['\r', '\0']) {
            return Err(SseError::Data);
        }
        for line in data.split('\n') {
            [b"data: ", line.as_bytes(), b"\n"].iter().for_each(|part| self.waiting.extend(part));
        }
        self.waiting.extend(b"\n");
        Ok(())
    }

    /// The next frame: exactly the frame length, filled up by a comment when less is waiting.
    #[must_use]
    pub fn frame(&mut self) -> SecretBytes {
        let mut frame = self.waiting.take_front(self.frame_length);
        // Less than a frame was waiting, so all of it went, and it ended with the end of an event.
        let missing = self.frame_length.saturating_sub(frame.len());
        padding::sse(&mut frame, missing);
        frame
    }

    /// How many bytes wait for the next frames.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::{SseError, SsePacker};
    use proptest::prelude::*;

    /// The data of all events, read as WHATWG HTML, 9.2.6 says.
    fn events(stream: &[u8]) -> Vec<String> {
        let mut events = Vec::new();
        let mut data: Option<String> = None;
        for line in str::from_utf8(stream).unwrap().split_inclusive('\n') {
            let line = line.strip_suffix('\n').expect("whole lines");
            if line.is_empty() {
                events.extend(data.take());
            } else if let Some(value) = line.strip_prefix("data:") {
                let value = value.strip_prefix(' ').unwrap_or(value);
                data = Some(data.map_or(value.to_owned(), |data| data + "\n" + value));
            } else {
                assert!(line.starts_with(':'), "{line:?}");
            }
        }
        assert_eq!(data, None);
        events
    }

    proptest! {
        #[test]
        fn every_event_comes_out_whole_and_every_frame_has_the_same_length(
            tokens in proptest::collection::vec("[^\r\0]{0,60}", 0..20),
            frame_length in 1..200_usize,
        ) {
            let mut packer = SsePacker::new(frame_length).unwrap();
            let mut stream = Vec::new();
            for token in &tokens {
                packer.push_event(token).unwrap();
                let frame = packer.frame();
                prop_assert_eq!(frame.len(), frame_length);
                stream.extend_from_slice(frame.as_bytes());
            }
            while !packer.is_empty() {
                let frame = packer.frame();
                prop_assert_eq!(frame.len(), frame_length);
                stream.extend_from_slice(frame.as_bytes());
            }
            prop_assert_eq!(events(&stream), tokens);
        }
    }

    #[test]
    fn one_token_is_one_frame_and_what_does_not_fit_is_carried() {
        let mut packer = SsePacker::new(16).unwrap();
        packer.push_event("0123456789").unwrap();
        assert_eq!(packer.waiting(), 18);
        assert_eq!(packer.frame().as_bytes(), b"data: 0123456789");
        assert_eq!(packer.waiting(), 2);
        packer.push_event("ab").unwrap();
        assert_eq!(packer.frame().as_bytes(), b"\n\ndata: ab\n\n:  \n");
        assert!(packer.is_empty());
    }

    #[test]
    fn a_frame_that_lacks_one_byte_is_filled_by_an_empty_line() {
        let mut packer = SsePacker::new(9).unwrap();
        packer.push_event("").unwrap();
        assert_eq!(packer.frame().as_bytes(), b"data: \n\n\n");
        packer.push_event("").unwrap();
        assert_eq!(events(packer.frame().as_bytes()), [""]);
    }

    #[test]
    fn a_frame_without_an_event_is_a_comment() {
        assert_eq!(SsePacker::new(6).unwrap().frame().as_bytes(), b":    \n");
    }

    #[test]
    fn what_would_not_come_out_as_it_went_in_is_refused() {
        let mut packer = SsePacker::new(64).unwrap();
        assert_eq!(packer.push_event("a\rb"), Err(SseError::Data));
        assert_eq!(packer.push_event("a\0b"), Err(SseError::Data));
        assert!(packer.is_empty());
        assert!(SsePacker::new(0).is_err());
    }
}
