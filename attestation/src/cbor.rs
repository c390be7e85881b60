//! A strict reader for CBOR (RFC 8949) that comes from outside.
//!
//! It accepts one encoding of each value: the shortest head (RFC 8949, section 4.2.1), definite lengths, no tags, no
//! floating point, no trailing bytes, no duplicate keys. The one exception is [`Reader::document_map`]: since about
//! June 2025 the hardware writes the top map of an attestation document with indefinite length.
//!
//! [`Reader`] is pulled by code that knows the shape, so depth is bounded by that code. [`check`] walks a value of
//! unknown shape.

use std::collections::BTreeSet;
use std::str;

/// Reads one CBOR value after the other from a slice. Nothing is copied, nothing is allocated.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// How many entries a map announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapLength {
    /// So many entries follow.
    Definite(usize),
    /// Entries follow until [`Reader::at_break`] says so.
    Indefinite,
}

impl<'a> Reader<'a> {
    /// A reader at the first byte.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The offset of the next byte.
    #[must_use]
    pub fn position(&self) -> usize {
        self.at
    }

    /// An unsigned integer.
    pub fn unsigned(&mut self) -> Result<u64, CborError> {
        self.expect(Major::Unsigned, u64::MAX)
    }

    /// A byte string of at most `max` bytes.
    pub fn bytes(&mut self, max: usize) -> Result<&'a [u8], CborError> {
        let length = self.length(Major::Bytes, max)?;
        self.take(length)
    }

    /// A text string of at most `max` bytes of UTF-8.
    pub fn text(&mut self, max: usize) -> Result<&'a str, CborError> {
        let length = self.length(Major::Text, max)?;
        let at = self.at;
        str::from_utf8(self.take(length)?).map_err(|_| CborError::NotUtf8 { at })
    }

    /// The head of an array of at most `max` elements.
    pub fn array(&mut self, max: usize) -> Result<usize, CborError> {
        self.length(Major::Array, max)
    }

    /// The head of a map of at most `max` entries.
    pub fn map(&mut self, max: usize) -> Result<usize, CborError> {
        self.length(Major::Map, max)
    }

    /// The head of the one map that may have an indefinite length. The caller bounds the entries of such a map.
    pub fn document_map(&mut self, max: usize) -> Result<MapLength, CborError> {
        if self.peek() == Some(INDEFINITE_MAP) {
            self.at += 1;
            return Ok(MapLength::Indefinite);
        }
        self.map(max).map(MapLength::Definite)
    }

    /// Takes the end of an indefinite map, if it is next.
    pub fn at_break(&mut self) -> bool {
        self.take_if(BREAK)
    }

    /// Takes a null, if it is next.
    pub fn is_null(&mut self) -> bool {
        self.take_if(NULL)
    }

    /// A byte string of at most `max` bytes, or null.
    pub fn optional_bytes(&mut self, max: usize) -> Result<Option<&'a [u8]>, CborError> {
        if self.is_null() { Ok(None) } else { self.bytes(max).map(Some) }
    }

    /// That nothing follows.
    pub fn end(self) -> Result<(), CborError> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            count => Err(CborError::Trailing { count }),
        }
    }

    fn length(&mut self, major: Major, max: usize) -> Result<usize, CborError> {
        let max = u64::try_from(max).unwrap_or(u64::MAX);
        let length = self.expect(major, max)?;
        usize::try_from(length).map_err(|_| CborError::TooLong { at: self.at, length, max })
    }

    fn expect(&mut self, expected: Major, max: u64) -> Result<u64, CborError> {
        let at = self.at;
        let (found, value) = self.head()?;
        if found != expected {
            return Err(CborError::Type { at, expected: expected.name(), found: found.name() });
        }
        if value > max { Err(CborError::TooLong { at, length: value, max }) } else { Ok(value) }
    }

    /// RFC 8949, section 3: three bits of major type, five of additional information, the argument.
    fn head(&mut self) -> Result<(Major, u64), CborError> {
        let at = self.at;
        let [first] = self.array_of::<1>()?;
        let major = Major::of(first);
        let value = match first & 0x1f {
            small @ 0..=23 => return Ok((major, u64::from(small))),
            // Floats, and simple values that nobody has assigned.
            24..=27 if major == Major::Simple => return Err(CborError::Unsupported { at }),
            24 => u64::from(u8::from_be_bytes(self.array_of()?)),
            25 => u64::from(u16::from_be_bytes(self.array_of()?)),
            26 => u64::from(u32::from_be_bytes(self.array_of()?)),
            27 => u64::from_be_bytes(self.array_of()?),
            28..=30 => return Err(CborError::Reserved { at }),
            _ => return Err(CborError::Indefinite { at }),
        };
        // RFC 8949, section 4.2.1: "The shortest form is used."
        let shortest = match first & 0x1f {
            24 => value >= 24,
            25 => value > u64::from(u8::MAX),
            26 => value > u64::from(u16::MAX),
            _ => value > u64::from(u32::MAX),
        };
        if shortest { Ok((major, value)) } else { Err(CborError::NotShortest { at }) }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn take_if(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        if is_next {
            self.at += 1;
        }
        is_next
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], CborError> {
        let end = self.at.checked_add(length).ok_or(CborError::Truncated { at: self.at })?;
        let taken = self.bytes.get(self.at..end).ok_or(CborError::Truncated { at: self.at })?;
        self.at = end;
        Ok(taken)
    }

    fn array_of<const N: usize>(&mut self) -> Result<[u8; N], CborError> {
        let at = self.at;
        self.take(N)?.try_into().map_err(|_| CborError::Truncated { at })
    }
}

/// That `bytes` are exactly one strictly encoded value with at most `max_depth` arrays and maps inside each other.
pub fn check(bytes: &[u8], max_depth: usize) -> Result<(), CborError> {
    let mut reader = Reader::new(bytes);
    check_value(&mut reader, max_depth)?;
    reader.end()
}

fn check_value(reader: &mut Reader<'_>, depth: usize) -> Result<(), CborError> {
    let at = reader.at;
    let (major, value) = reader.head()?;
    let inner = || depth.checked_sub(1).ok_or(CborError::TooDeep { at });
    match major {
        Major::Unsigned | Major::Negative => Ok(()),
        Major::Bytes => reader.take(to_length(at, value)?).map(drop),
        Major::Text => {
            let text = reader.take(to_length(at, value)?)?;
            str::from_utf8(text).map(drop).map_err(|_| CborError::NotUtf8 { at })
        }
        // Each element takes a byte at least, so a lying count ends at the end of the input.
        Major::Array => (0..value).try_for_each(|_| check_value(reader, inner()?)),
        Major::Map => {
            let mut keys = BTreeSet::new();
            (0..value).try_for_each(|_| {
                let start = reader.at;
                check_value(reader, inner()?)?;
                if !keys.insert(reader.bytes.get(start..reader.at).unwrap_or_default()) {
                    return Err(CborError::DuplicateKey { at: start });
                }
                check_value(reader, inner()?)
            })
        }
        Major::Simple if (SIMPLE_FALSE..=SIMPLE_NULL).contains(&value) => Ok(()),
        Major::Tag | Major::Simple => Err(CborError::Unsupported { at }),
    }
}

fn to_length(at: usize, value: u64) -> Result<usize, CborError> {
    usize::try_from(value).map_err(|_| CborError::Truncated { at })
}

/// The eight major types of RFC 8949, section 3.1.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Major {
    Unsigned,
    Negative,
    Bytes,
    Text,
    Array,
    Map,
    Tag,
    Simple,
}

impl Major {
    fn of(first: u8) -> Self {
        match first >> 5 {
            0 => Self::Unsigned,
            1 => Self::Negative,
            2 => Self::Bytes,
            3 => Self::Text,
            4 => Self::Array,
            5 => Self::Map,
            6 => Self::Tag,
            _ => Self::Simple,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Unsigned => "an unsigned integer",
            Self::Negative => "a negative integer",
            Self::Bytes => "a byte string",
            Self::Text => "a text string",
            Self::Array => "an array",
            Self::Map => "a map",
            Self::Tag => "a tag",
            Self::Simple => "a simple value or float",
        }
    }
}

/// Why bytes are not the CBOR that was expected. `at` is the offset of the value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CborError {
    /// The input ends inside a value.
    #[error("the input ends inside the value at byte {at}")]
    Truncated {
        /// Offset of the value.
        at: usize,
    },
    /// Bytes follow the value.
    #[error("{count} bytes follow the value")]
    Trailing {
        /// How many.
        count: usize,
    },
    /// Another type than expected.
    #[error("expected {expected} at byte {at}, found {found}")]
    Type {
        /// Offset of the value.
        at: usize,
        /// The type that belongs here.
        expected: &'static str,
        /// The type that stands here.
        found: &'static str,
    },
    /// Longer than its limit.
    #[error("the value at byte {at} has length {length}, at most {max} is allowed")]
    TooLong {
        /// Offset of the value.
        at: usize,
        /// The length it announces.
        length: u64,
        /// The limit.
        max: u64,
    },
    /// A head that could be shorter.
    #[error("the value at byte {at} is not in its shortest form")]
    NotShortest {
        /// Offset of the value.
        at: usize,
    },
    /// An indefinite length where none is allowed.
    #[error("indefinite length at byte {at}")]
    Indefinite {
        /// Offset of the value.
        at: usize,
    },
    /// Additional information 28 to 30.
    #[error("reserved head at byte {at}")]
    Reserved {
        /// Offset of the value.
        at: usize,
    },
    /// A tag, a float, or a simple value other than false, true and null.
    #[error("tag, float or unknown simple value at byte {at}")]
    Unsupported {
        /// Offset of the value.
        at: usize,
    },
    /// Text that is not UTF-8.
    #[error("the text at byte {at} is not UTF-8")]
    NotUtf8 {
        /// Offset of the value.
        at: usize,
    },
    /// The same key twice in a map.
    #[error("duplicate key at byte {at}")]
    DuplicateKey {
        /// Offset of the second one.
        at: usize,
    },
    /// Nested too deep.
    #[error("nested too deep at byte {at}")]
    TooDeep {
        /// Offset of the value.
        at: usize,
    },
}

const INDEFINITE_MAP: u8 = 0xbf;
const BREAK: u8 = 0xff;
const NULL: u8 = 0xf6;
const SIMPLE_FALSE: u64 = 20;
const SIMPLE_NULL: u64 = 22;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_form_alone_is_accepted() {
        for (bytes, value) in
            [(&[0x17][..], 23), (&[0x18, 24], 24), (&[0x19, 1, 0], 256), (&[0x1a, 0, 1, 0, 0], 65_536)]
        {
            assert_eq!(Reader::new(bytes).unsigned(), Ok(value));
        }
        for bytes in
            [&[0x18, 23][..], &[0x19, 0, 255], &[0x1a, 0, 0, 255, 255], &[0x1b, 0, 0, 0, 0, 255, 255, 255, 255]]
        {
            assert_eq!(Reader::new(bytes).unsigned(), Err(CborError::NotShortest { at: 0 }));
            assert_eq!(check(bytes, 4), Err(CborError::NotShortest { at: 0 }));
        }
    }

    #[test]
    fn a_length_is_checked_before_its_bytes_are_looked_at() {
        let bytes = [0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(Reader::new(&bytes).bytes(10), Err(CborError::TooLong { at: 0, length: u64::MAX, max: 10 }));
        assert_eq!(Reader::new(&bytes).bytes(usize::MAX), Err(CborError::Truncated { at: 9 }));
        assert_eq!(Reader::new(&[0x43, 1, 2]).bytes(10), Err(CborError::Truncated { at: 1 }));
    }

    #[test]
    fn indefinite_length_is_for_a_top_map_alone() {
        for first in [0x5f, 0x7f, 0x9f, 0xbf] {
            assert_eq!(check(&[first, 0xff], 4), Err(CborError::Indefinite { at: 0 }));
        }
        assert_eq!(Reader::new(&[0xbf, 0xff]).document_map(9), Ok(MapLength::Indefinite));
        assert_eq!(Reader::new(&[0x9f, 0xff]).array(9), Err(CborError::Indefinite { at: 0 }));
    }

    #[test]
    fn duplicates_depth_tags_floats_and_trailing_bytes_are_refused() {
        assert_eq!(check(&[0xa2, 1, 2, 1, 3], 4), Err(CborError::DuplicateKey { at: 3 }));
        assert_eq!(check(&[0x81, 0x81, 0x80], 2), Ok(()));
        assert_eq!(check(&[0x81, 0x81, 0x80], 1), Err(CborError::TooDeep { at: 1 }));
        assert_eq!(check(&[0xc0, 0], 4), Err(CborError::Unsupported { at: 0 }));
        assert_eq!(check(&[0xf4], 4), Ok(()));
        assert_eq!(check(&[0xf7], 4), Err(CborError::Unsupported { at: 0 }));
        assert_eq!(check(&[0xfa, 0x3f, 0x80, 0, 0], 4), Err(CborError::Unsupported { at: 0 }));
        assert_eq!(check(&[0x00, 0x00], 4), Err(CborError::Trailing { count: 1 }));
        assert_eq!(check(&[0x1c], 4), Err(CborError::Reserved { at: 0 }));
        assert_eq!(check(&[0x61, 0xff], 4), Err(CborError::NotUtf8 { at: 0 }));
    }

    #[test]
    fn a_count_that_lies_ends_at_the_end_of_the_input() {
        assert_eq!(
            check(&[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], 4),
            Err(CborError::Truncated { at: 9 })
        );
        assert_eq!(
            check(&[0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], 4),
            Err(CborError::Truncated { at: 9 })
        );
    }
}
