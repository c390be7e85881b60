//! The body: each frame is released as soon as it is authenticated, and the end is known to be the true end.

use ring::aead::{Aad, LessSafeKey};
use zeroize::Zeroize;

use super::error::OpenError;
use super::header::{Framing, Header};
use crate::frame::{Content, Counter, IV_LENGTH, REGULAR_HEAD_LENGTH, SEQUENCE_END, Sequence, TAG_LENGTH};
use crate::message::MessageId;
use crate::secret::SecretBytes;
use crate::signature::{MAX_SIGNATURE_LENGTH, Signed, Verifier};

/// Reads the body of a message whose header is authenticated.
pub struct BodyReader {
    header: Header,
    key: LessSafeKey,
    verifier: Option<Verifier>,
    state: State,
    /// Bytes of the present frame's head, or of the footer.
    head: Vec<u8>,
    /// The present frame: ciphertext as it arrives, plaintext once it is authenticated.
    frame: SecretBytes,
    /// Bytes of plaintext released.
    length: u64,
}

/// One frame of plaintext: authentic, in its place, but of a message whose end is not yet known.
///
/// No `Debug`, no `Clone`; the bytes are wiped when the next frame arrives or the reader goes.
pub struct Provisional<'a> {
    message_id: MessageId,
    bytes: &'a [u8],
    is_final: bool,
}

/// Proof that a message was read to its true end: its final frame was authenticated, nothing came after it, and under
/// 0x0578 its signature was verified.
pub struct End {
    message_id: MessageId,
    length: u64,
}

enum State {
    /// Before or in the head of a frame.
    Head(Counter),
    /// In the content of a frame, or its tag.
    Frame(Frame),
    /// In the footer.
    Footer(Verifier),
    /// At the end; with the proof of the signature, where there is one.
    Ended(Option<Signed>),
    /// Refused.
    Failed,
}

/// A frame whose head has been read and checked.
struct Frame {
    content: Content,
    sequence: Sequence,
    length: usize,
    /// For the frame after this one; `None` after the last.
    counter: Option<Counter>,
}

impl BodyReader {
    pub(super) fn new(header: Header, key: LessSafeKey, verifier: Option<Verifier>) -> Self {
        let (head, frame) = (Vec::with_capacity(MAX_HEAD_LENGTH), SecretBytes::new());
        Self { header, key, verifier, state: State::Head(Counter::new()), head, frame, length: 0 }
    }

    /// The header: authenticated.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Takes bytes off `input` until a frame is whole and authentic, and releases it; `None` when `input` is used up.
    /// Call it until it returns `None`. Each byte is copied once, into the one buffer that all frames share.
    ///
    /// # Errors
    /// [`OpenError`] for anything that is not the next part of this message. After an error there is nothing more to read.
    pub fn push(&mut self, input: &mut &[u8]) -> Result<Option<Provisional<'_>>, OpenError> {
        loop {
            match self.step(input)? {
                Moved::Short => return Ok(None),
                Moved::On => {}
                Moved::Released { is_final } => return Ok(Some(self.released(is_final))),
            }
        }
    }

    /// Like [`push`](Self::push), but a frame that lies in `input` as a whole is opened there, without a copy. Its
    /// plaintext stays in the caller's buffer: it is the caller's to wipe.
    ///
    /// # Errors
    /// As [`push`](Self::push). What did not open is overwritten.
    pub fn push_in_place<'r, 'i: 'r>(
        &'r mut self,
        input: &mut &'i mut [u8],
    ) -> Result<Option<Provisional<'r>>, OpenError> {
        loop {
            if let Some(whole) = self.untouched_frame().filter(|whole| *whole <= input.len()) {
                let (now, later) = std::mem::take(input).split_at_mut_checked(whole).unwrap_or_default();
                *input = later;
                if let State::Frame(frame) = std::mem::replace(&mut self.state, State::Failed) {
                    let (is_final, next) = self.open(frame, Place::Caller(&mut *now))?;
                    self.state = next;
                    return Ok(Some(Provisional::new(self.header.message_id(), now, is_final)));
                }
            }
            let mut view: &[u8] = input;
            let moved = self.step(&mut view)?;
            let taken = input.len().saturating_sub(view.len());
            *input = std::mem::take(input).get_mut(taken..).unwrap_or_default();
            match moved {
                Moved::Short => return Ok(None),
                Moved::On => {}
                Moved::Released { is_final } => return Ok(Some(self.released(is_final))),
            }
        }
    }

    /// Says that no more bytes will come.
    ///
    /// # Errors
    /// [`OpenError::Incomplete`] when the message has not ended, [`OpenError::AlreadyRefused`] when it was refused.
    pub fn finish(self) -> Result<End, OpenError> {
        match self.state {
            State::Ended(signed) if signed.is_some() == self.header.suite().is_signed() => {
                Ok(End { message_id: *self.header.message_id(), length: self.length })
            }
            State::Ended(_) => Err(OpenError::Signature),
            State::Failed => Err(OpenError::AlreadyRefused),
            State::Head(_) | State::Frame(_) | State::Footer(_) => Err(OpenError::Incomplete),
        }
    }

    /// One step: a head, a frame or the footer, or as much of it as there is.
    fn step(&mut self, input: &mut &[u8]) -> Result<Moved, OpenError> {
        let (next, moved) = match std::mem::replace(&mut self.state, State::Failed) {
            State::Head(counter) => match self.head(counter, input)? {
                Step::Short(counter) => (State::Head(counter), Moved::Short),
                Step::Done(frame) => (State::Frame(frame), Moved::On),
            },
            State::Frame(frame) => match self.content(frame, input)? {
                Step::Short(frame) => (State::Frame(frame), Moved::Short),
                Step::Done((is_final, next)) => (next, Moved::Released { is_final }),
            },
            State::Footer(verifier) => match self.footer(verifier, input)? {
                Step::Short(verifier) => (State::Footer(verifier), Moved::Short),
                Step::Done(signed) => (State::Ended(Some(signed)), Moved::On),
            },
            State::Ended(signed) if input.is_empty() => (State::Ended(signed), Moved::Short),
            State::Ended(_) => return Err(OpenError::TrailingBytes),
            State::Failed => return Err(OpenError::AlreadyRefused),
        };
        self.state = next;
        Ok(moved)
    }

    /// The frame that was just opened in the buffer of all frames.
    fn released(&self, is_final: bool) -> Provisional<'_> {
        Provisional::new(self.header.message_id(), self.frame.as_bytes(), is_final)
    }

    /// The bytes of the frame whose head has been read and of whose content nothing has been taken yet.
    fn untouched_frame(&self) -> Option<usize> {
        match &self.state {
            State::Frame(frame) if self.frame.is_empty() => Some(frame.whole()),
            _ => None,
        }
    }

    /// Reads the head of a frame: sequence number and IV; of the final frame, mark, sequence number, IV and length
    /// (*Message format*, *Body structure*).
    fn head(&mut self, counter: Counter, input: &mut &[u8]) -> Result<Step<Counter, Frame>, OpenError> {
        let at_most = match self.header.framing() {
            Framing::Unframed { at_most } => return self.single_block(counter, at_most, input),
            Framing::Framed(frame_length) => frame_length,
        };
        fill(&mut self.head, SEQUENCE_END.len(), input);
        let Some((mark, _)) = self.head.split_first_chunk() else {
            return Ok(Step::Short(counter));
        };
        let is_final = *mark == SEQUENCE_END;
        if !is_final {
            // An out-of-place frame is refused as soon as its number is there.
            expect_sequence(*mark, counter.next())?;
        }
        let length = if is_final { FINAL_HEAD_LENGTH } else { REGULAR_HEAD_LENGTH };
        if !fill(&mut self.head, length, input) {
            return Ok(Step::Short(counter));
        }
        let mut head = Fields(self.head.as_slice());
        let (content, length) = if is_final {
            head.array::<4>()?;
            expect_sequence(head.array()?, counter.next())?;
            (Content::Final, None)
        } else {
            head.array::<4>()?;
            (Content::Regular, Some(at_most))
        };
        expect_iv(head.array()?, counter.next())?;
        let length = match length {
            // All frames but the last carry exactly the frame length.
            Some(exactly) => exactly,
            None => u32::from_be_bytes(head.array()?),
        };
        // "The length of the encrypted content of the final frame must be ... at most the frame length".
        let length = expect_length(length.into(), at_most)?;
        let (sequence, counter) = if is_final {
            (counter.last(), None)
        } else {
            let mut counter = counter;
            (counter.regular().map_err(|_| OpenError::TooManyFrames)?, Some(counter))
        };
        self.head_done();
        Ok(Step::Done(Frame { content, sequence, length, counter }))
    }

    /// Reads the head of unframed content: IV and length (*Body structure*, *Nonframed data*).
    fn single_block(
        &mut self,
        counter: Counter,
        at_most: u32,
        input: &mut &[u8],
    ) -> Result<Step<Counter, Frame>, OpenError> {
        if !fill(&mut self.head, UNFRAMED_HEAD_LENGTH, input) {
            return Ok(Step::Short(counter));
        }
        let mut head = Fields(self.head.as_slice());
        let sequence = Sequence::SINGLE_BLOCK;
        expect_iv(head.array()?, sequence)?;
        let length = expect_length(u64::from_be_bytes(head.array()?), at_most)?;
        self.head_done();
        Ok(Step::Done(Frame { content: Content::SingleBlock, sequence, length, counter: None }))
    }

    fn head_done(&mut self) {
        if let Some(verifier) = &mut self.verifier {
            verifier.update(&self.head);
        }
        self.head.clear();
        self.frame.rewind();
    }

    /// Reads content and tag, and opens them.
    fn content(&mut self, frame: Frame, input: &mut &[u8]) -> Result<Step<Frame, (bool, State)>, OpenError> {
        let whole = frame.whole();
        let missing = whole.saturating_sub(self.frame.len());
        let (now, later) = input.split_at_checked(missing).unwrap_or((input, &[]));
        // The length is within the limits, and the writer of the header knew the key. Room is made once, and in full.
        self.frame.make_room(missing);
        self.frame.extend(now);
        *input = later;
        if self.frame.len() < whole {
            return Ok(Step::Short(frame));
        }
        self.open(frame, Place::Ours).map(Step::Done)
    }

    /// Opens a frame where it lies. Whether it was the last, and what comes next.
    fn open(&mut self, frame: Frame, place: Place<'_>) -> Result<(bool, State), OpenError> {
        let bytes = match place {
            Place::Ours => self.frame.as_mut_bytes(),
            Place::Caller(bytes) => bytes,
        };
        if let Some(verifier) = &mut self.verifier {
            verifier.update(bytes);
        }
        let Frame { content, sequence, length, counter } = frame;
        let aad = content.aad(self.header.message_id(), sequence, length);
        if self.key.open_in_place(sequence.nonce(), Aad::from(aad), bytes).is_err() {
            bytes.zeroize();
            return Err(OpenError::Frame(u32::from_be_bytes(sequence.to_bytes())));
        }
        self.length = self.length.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        let is_final = content != Content::Regular;
        let next = match (counter, self.verifier.take_if(|_| is_final)) {
            (Some(counter), _) => State::Head(counter),
            (None, Some(verifier)) => State::Footer(verifier),
            (None, None) => State::Ended(None),
        };
        Ok((is_final, next))
    }

    /// Reads the footer: length of the signature, signature (*Message format*, *Footer structure*).
    fn footer(&mut self, verifier: Verifier, input: &mut &[u8]) -> Result<Step<Verifier, Signed>, OpenError> {
        if !fill(&mut self.head, 2, input) {
            return Ok(Step::Short(verifier));
        }
        let length = u16::from_be_bytes(Fields(self.head.as_slice()).array()?);
        if !(MIN_SIGNATURE_LENGTH..=MAX_SIGNATURE_LENGTH).contains(&length) {
            return Err(OpenError::SignatureLength(length));
        }
        if !fill(&mut self.head, usize::from(length).saturating_add(2), input) {
            return Ok(Step::Short(verifier));
        }
        let signature = self.head.get(2..).unwrap_or_default();
        verifier.verify(signature).map(Step::Done).ok_or(OpenError::Signature)
    }
}

impl<'a> Provisional<'a> {
    /// The frame that was opened in `place`, which ends in its tag.
    fn new(message_id: &MessageId, place: &'a [u8], is_final: bool) -> Self {
        let bytes = place.get(..place.len().saturating_sub(TAG_LENGTH)).unwrap_or_default();
        Self { message_id: *message_id, bytes, is_final }
    }

    /// The plaintext of the frame. Nothing may be done because of it before the message's [`End`].
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes
    }

    /// Whether this is the message's final frame. Its signature may still be missing.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.is_final
    }

    /// The message that this is a part of.
    #[must_use]
    pub fn message_id(&self) -> &MessageId {
        &self.message_id
    }
}

impl End {
    /// The message that ended.
    #[must_use]
    pub fn message_id(&self) -> &MessageId {
        &self.message_id
    }

    /// Bytes of plaintext in the whole message.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }
}

impl Frame {
    /// Content and tag.
    fn whole(&self) -> usize {
        self.length.saturating_add(TAG_LENGTH)
    }
}

/// Where a frame lies.
enum Place<'a> {
    /// In the buffer that all frames share.
    Ours,
    /// In what the caller gave.
    Caller(&'a mut [u8]),
}

/// How far a step led.
enum Moved {
    /// The input was used up before the step was done.
    Short,
    /// To the next step.
    On,
    /// To a frame that is authentic.
    Released { is_final: bool },
}

/// What a part of a message came to.
enum Step<Same, Next> {
    /// The input was used up before the part was whole.
    Short(Same),
    /// The part is whole.
    Done(Next),
}

/// Moves bytes from `input` until `buffer` holds `length`; whether it does.
fn fill(buffer: &mut Vec<u8>, length: usize, input: &mut &[u8]) -> bool {
    let missing = length.saturating_sub(buffer.len());
    let (now, later) = input.split_at_checked(missing).unwrap_or((input, &[]));
    buffer.extend_from_slice(now);
    *input = later;
    buffer.len() >= length
}

fn expect_sequence(found: [u8; 4], expected: Sequence) -> Result<(), OpenError> {
    if found == expected.to_bytes() {
        return Ok(());
    }
    let (expected, found) = (u32::from_be_bytes(expected.to_bytes()), u32::from_be_bytes(found));
    Err(OpenError::Sequence { expected, found })
}

fn expect_iv(found: [u8; IV_LENGTH], sequence: Sequence) -> Result<(), OpenError> {
    if found == sequence.iv() { Ok(()) } else { Err(OpenError::Iv(u32::from_be_bytes(sequence.to_bytes()))) }
}

fn expect_length(found: u64, most: u32) -> Result<usize, OpenError> {
    let most = u64::from(most);
    let error = OpenError::Length { found, most };
    if found > most { Err(error) } else { usize::try_from(found).map_err(|_| error) }
}

/// Cuts fixed fields off a head whose length was checked.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], OpenError> {
        let (field, rest) = self.0.split_first_chunk().ok_or(OpenError::Incomplete)?;
        self.0 = rest;
        Ok(*field)
    }
}

/// Mark, sequence number, IV, length in four bytes.
const FINAL_HEAD_LENGTH: usize = 4 + 4 + IV_LENGTH + 4;

/// IV, length in eight bytes.
const UNFRAMED_HEAD_LENGTH: usize = IV_LENGTH + 8;

/// The longest of heads and footer.
const MAX_HEAD_LENGTH: usize = 2 + MAX_SIGNATURE_LENGTH as usize;

/// SEQUENCE of two INTEGERs of one byte each.
const MIN_SIGNATURE_LENGTH: u16 = 8;
