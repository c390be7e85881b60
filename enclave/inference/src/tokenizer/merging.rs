//! Byte-pair encoding: of all neighbours that make a token, those of the lowest rank are joined first, and of equal
//! ones the leftmost, until no two of them make one. In a heap, so that a text of any kind takes the time of its length,
//! or little more.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use zeroize::{DefaultIsZeroes, Zeroize, Zeroizing};

/// A part of a text, chained to its neighbours. One of length 0 has been joined to its left neighbour.
#[derive(Clone, Copy, Default)]
pub(super) struct Part {
    /// In bytes, like its length.
    pub(super) start: u32,
    pub(super) length: u32,
    pub(super) token: u32,
    previous: u32,
    next: u32,
}

/// Two neighbours that make a token.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Pair {
    rank: u32,
    left: u32,
    /// Length of both together: a pair of which one has grown since is out of date.
    length: u32,
    token: u32,
}

/// Joins what can be joined of a text that begins as `count` parts, each its length in bytes and its token. `pair` gives
/// the rank and the token of two neighbours that make one.
///
/// `None` for a text of 4 GiB.
pub(super) fn merge(
    count: usize,
    singles: impl Iterator<Item = (usize, u32)>,
    pair: impl Fn(&Part, &Part) -> Option<(u32, u32)>,
) -> Option<Zeroizing<Vec<Part>>> {
    let mut parts = chain(count, singles)?;
    // Each merge takes one pair out and puts two in, at most. A heap that grows would leave what it held behind.
    let mut pairs = BinaryHeap::with_capacity(2 * parts.len());
    let pair_at = |parts: &[Part], left: u32| {
        let first = parts.get(left as usize)?;
        let second = parts.get(first.next as usize)?;
        let (rank, token) = pair(first, second)?;
        Some(Pair { rank, left, length: first.length + second.length, token })
    };
    pairs.extend((0..).zip(parts.iter()).filter_map(|(left, _)| pair_at(&parts, left)));
    while let Some(pair) = pairs.pop() {
        if let Some(previous) = join(&mut parts, &pair) {
            pairs.extend(pair_at(&parts, previous));
            pairs.extend(pair_at(&parts, pair.left));
        }
    }
    pairs.into_vec().zeroize();
    parts.retain(|part| part.length > 0);
    Some(parts)
}

fn chain(count: usize, singles: impl Iterator<Item = (usize, u32)>) -> Option<Zeroizing<Vec<Part>>> {
    let mut parts = Zeroizing::new(Vec::with_capacity(count));
    let mut start: u32 = 0;
    let mut previous = NONE;
    for (place, (length, token)) in (0..NONE).zip(singles) {
        let length = u32::try_from(length).ok()?;
        parts.push(Part { start, length, token, previous, next: place + 1 });
        start = start.checked_add(length)?;
        previous = place;
    }
    Some(parts)
}

/// Joins a pair, unless it is out of date; gives what stands before it.
fn join(parts: &mut [Part], pair: &Pair) -> Option<u32> {
    let left = *parts.get(pair.left as usize)?;
    let right = parts.get_mut(left.next as usize)?;
    if left.length == 0 || left.length + right.length != pair.length {
        return None;
    }
    let next = right.next;
    right.length = 0;
    if let Some(next) = parts.get_mut(next as usize) {
        next.previous = pair.left;
    }
    *parts.get_mut(pair.left as usize)? = Part { length: pair.length, token: pair.token, next, ..left };
    Some(left.previous)
}

impl Ord for Pair {
    /// The greatest is joined first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.rank, other.left, other.length).cmp(&(self.rank, self.left, self.length))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl DefaultIsZeroes for Part {}
impl DefaultIsZeroes for Pair {}

/// Where no part stands.
const NONE: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    type Ranks = HashMap<(u32, u32), (u32, u32)>;

    /// What the head of this file says, word for word: each time a look at all neighbours.
    fn plainly(mut tokens: Vec<u32>, ranks: &Ranks) -> Vec<u32> {
        loop {
            let pairs = tokens.windows(2).enumerate();
            let lowest = pairs
                .filter_map(|(at, pair)| Some((ranks.get(&(pair[0], pair[1]))?, at)))
                .min_by_key(|((rank, _), at)| (*rank, *at));
            let Some(((_, token), at)) = lowest else { return tokens };
            tokens.splice(at..at + 2, [*token]);
        }
    }

    proptest! {
        #[test]
        fn the_lowest_rank_is_joined_first_and_of_equal_ones_the_leftmost(
            text in prop::collection::vec(0_u32..3, 0..60),
            merges in prop::collection::vec((0_u32..9, 0_u32..9, 0_u32..5), 0..40),
        ) {
            let tokens = (3..).zip(&merges).map(|(token, &(left, right, rank))| ((left, right), (rank, token % 9)));
            let ranks: Ranks = tokens.collect();
            let singles = text.iter().map(|&token| (2, token));
            let parts = merge(text.len(), singles, |left, right| ranks.get(&(left.token, right.token)).copied()).unwrap();
            let ours: Vec<u32> = parts.iter().map(|part| part.token).collect();
            prop_assert_eq!(ours, plainly(text.clone(), &ranks));
            let mut end = 0;
            for part in parts.iter() {
                prop_assert_eq!(part.start, end);
                end += part.length;
            }
            prop_assert_eq!(end as usize, 2 * text.len());
        }
    }
}
