//! Metadata values. Arrays stay bytes until they are walked.

use super::GgufError;
use super::cursor::Cursor;

/// A metadata value.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    /// u8, u16, u32, u64.
    Unsigned(u64),
    /// i8, i16, i32, i64.
    Signed(i64),
    /// f32, f64.
    Float(f64),
    /// Truth value.
    Bool(bool),
    /// UTF-8.
    Text(&'a str),
    /// Values of one type.
    Array(Array<'a>),
}

/// An array of scalars or texts; every element has been read once, so walking it cannot fail.
#[derive(Clone, Copy)]
pub struct Array<'a> {
    kind: u32,
    length: usize,
    bytes: &'a [u8],
}

impl<'a> Value<'a> {
    pub(super) fn read(cursor: &mut Cursor<'a>) -> Result<Self, GgufError> {
        let kind = cursor.u32()?;
        if kind == ARRAY { Ok(Self::Array(Array::read(cursor)?)) } else { Self::scalar(cursor, kind) }
    }

    fn scalar(cursor: &mut Cursor<'a>, kind: u32) -> Result<Self, GgufError> {
        let at = cursor.position();
        // `enum gguf_metadata_value_type` (GGUF specification).
        Ok(match kind {
            0 => Self::Unsigned(u64::from(u8::from_le_bytes(cursor.array()?))),
            1 => Self::Signed(i64::from(i8::from_le_bytes(cursor.array()?))),
            2 => Self::Unsigned(u64::from(u16::from_le_bytes(cursor.array()?))),
            3 => Self::Signed(i64::from(i16::from_le_bytes(cursor.array()?))),
            4 => Self::Unsigned(u64::from(cursor.u32()?)),
            5 => Self::Signed(i64::from(i32::from_le_bytes(cursor.array()?))),
            6 => Self::Float(f64::from(f32::from_le_bytes(cursor.array()?))),
            7 => match cursor.array()? {
                [0] => Self::Bool(false),
                [1] => Self::Bool(true),
                [_] => return Err(GgufError::Bool { at }),
            },
            8 => Self::Text(cursor.text(MAX_TEXT_BYTES)?),
            10 => Self::Unsigned(cursor.u64()?),
            11 => Self::Signed(i64::from_le_bytes(cursor.array()?)),
            12 => Self::Float(f64::from_le_bytes(cursor.array()?)),
            kind => return Err(GgufError::ValueType { at, kind }),
        })
    }
}

impl<'a> Array<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, GgufError> {
        let kind = cursor.u32()?;
        let at = cursor.position();
        if kind == ARRAY {
            // Nothing that this engine reads is an array of arrays, and depth is how a reader's stack is exhausted.
            return Err(GgufError::ValueType { at, kind });
        }
        let length = super::limited("elements of an array", cursor.u64()?, MAX_ARRAY_LENGTH)?;
        let start = *cursor;
        for _ in 0..length {
            Value::scalar(cursor, kind)?;
        }
        let bytes = start.until(cursor);
        Ok(Self { kind, length: usize::try_from(length).unwrap_or(usize::MAX), bytes })
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The elements, if they are texts.
    #[must_use]
    pub fn texts(&self) -> Option<impl Iterator<Item = &'a str> + use<'a>> {
        (self.kind == TEXT)
            .then(|| self.values().filter_map(|value| if let Value::Text(text) = value { Some(text) } else { None }))
    }

    /// The elements.
    pub fn values(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let mut cursor = Cursor::new(self.bytes);
        let kind = self.kind;
        (0..self.length).map_while(move |_| Value::scalar(&mut cursor, kind).ok())
    }
}

const TEXT: u32 = 8;
const ARRAY: u32 = 9;
/// Chat templates are the longest texts: the longest in circulation have some 20 kB.
const MAX_TEXT_BYTES: u64 = 1 << 20;
/// The largest vocabularies in circulation have 262,144 tokens, with some 515,000 merges.
const MAX_ARRAY_LENGTH: u64 = 4 << 20;
