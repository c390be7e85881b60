//! Changes to a message, and opening it in pieces.

use sealing::message::{DataKey, Limits};
use sealing::reader::{HeaderReader, Held, OpenError, Progress, UnverifiedHeader};

/// Up to this size one bit of *every* byte is changed.
pub(crate) const WHOLLY: usize = 6_000;

/// Offsets drawn in larger messages.
pub(crate) const DRAWN: u64 = 2_000;

/// Every change of one bit, cut and appended byte that is worth a trial.
///
/// Up to 6 kB: one bit of every byte, and a cut before every byte. In larger messages: the header, the edges of frames and
/// the footer, and 2,000 seeded offsets.
pub(crate) fn changes(message: &[u8]) -> impl Iterator<Item = (String, Vec<u8>)> + '_ {
    let offsets = offsets(message);
    let mut seed = Seed(message.len() as u64);
    let flips = offsets.clone().into_iter().map(move |at| {
        let bit = seed.next() % 8;
        let mut changed = message.to_vec();
        changed[at] ^= 1 << bit;
        (format!("bit {bit} of byte {at} flipped"), changed)
    });
    let cuts = offsets.into_iter().map(|at| (format!("cut at byte {at}"), message[..at].to_vec()));
    let appended = [0, 0xFF, message[message.len() - 1]].map(|byte| {
        let mut longer = message.to_vec();
        longer.push(byte);
        (format!("{byte:#04x} appended"), longer)
    });
    let twice = [("itself appended".to_owned(), message.repeat(2))];
    flips.chain(cuts).chain(appended).chain(twice)
}

fn offsets(message: &[u8]) -> Vec<usize> {
    if message.len() <= WHOLLY {
        return (0..message.len()).collect();
    }
    let mut offsets: Vec<usize> = (0..700).chain(message.len() - 200..message.len()).collect();
    for at in edges(message) {
        offsets.extend(at.saturating_sub(20)..(at + 28).min(message.len()));
    }
    let mut seed = Seed(7);
    offsets.extend((0..DRAWN).map(|_| (seed.next() % message.len() as u64) as usize));
    offsets.sort_unstable();
    offsets.dedup();
    // Each trial opens up to the whole message: of frame edges that are many, those of the first and last frames do.
    offsets
}

/// Where the first five and the last two frames begin: found by their sequence numbers.
fn edges(message: &[u8]) -> Vec<usize> {
    let find = |number: u32| {
        let number = number.to_be_bytes();
        let head = [&number[..], &[0; 8], &number].concat();
        message.windows(head.len()).position(|window| window == head)
    };
    let all: Vec<usize> = (1..).map_while(find).collect();
    let last = all.iter().rev().take(2).copied();
    all.iter().take(5).copied().chain(last).collect()
}

/// Opens a message that arrives in pieces.
pub(crate) fn open_pieces(
    limits: Limits,
    pieces: &[&[u8]],
    key: impl FnOnce(&UnverifiedHeader) -> Option<DataKey>,
) -> Result<Vec<u8>, OpenError> {
    let mut pieces = pieces.iter();
    let mut reader = HeaderReader::new(limits);
    let (header, mut rest) = loop {
        let mut rest = *pieces.next().ok_or(OpenError::Incomplete)?;
        match reader.push(&mut rest)? {
            Progress::More(more) => reader = more,
            Progress::Done(header) => break (header, rest),
        }
    };
    let key = key(&header).ok_or(OpenError::Key)?;
    let mut body = header.authenticate(&key)?;
    let mut held = Held::new(&body, 1 << 20);
    loop {
        while let Some(frame) = body.push(&mut rest)? {
            held.add(&frame)?;
        }
        match pieces.next() {
            Some(piece) => rest = piece,
            None => return Ok(held.confirm(&body.finish()?)?.as_bytes().to_vec()),
        }
    }
}

/// A small generator of numbers that are the same in every run (SplitMix64).
pub(crate) struct Seed(pub(crate) u64);

impl Seed {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
