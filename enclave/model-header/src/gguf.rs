//! Reads the header of a GGUF file, and finds its tensors.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Everything is borrowed from the file; the
//! only allocations are the two maps, and they grow with entries that were really read, never with a count that the
//! header claims. A file is a model supplier's: each length is checked against what is left before it is used.

use std::collections::BTreeMap;

use thiserror::Error;

mod cursor;
mod tensor_type;
mod value;

use cursor::Cursor;
pub use tensor_type::TensorType;
pub use value::{Array, Value};

/// The header of a GGUF file: metadata, and where the tensors lie.
pub struct Header<'a> {
    metadata: BTreeMap<&'a str, Value<'a>>,
    tensors: BTreeMap<&'a str, TensorInfo>,
    data_offset: usize,
}

/// Shape, type and place of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Dimensions, slowest first: a weight matrix is (outputs, inputs).
    pub shape: Vec<usize>,
    /// Block format of the elements.
    pub kind: TensorType,
    /// Offset of the first byte within the tensor data.
    pub offset: usize,
    /// Length in bytes.
    pub bytes: usize,
}

/// Why a file is not taken for a GGUF file that this engine can read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GgufError {
    /// The first four bytes are others.
    #[error("not a GGUF file: the first four bytes should be \"GGUF\"")]
    NotGguf,
    /// Versions 2 and 3 are read; big-endian files show up here as well.
    #[error("GGUF version {0}; versions 2 and 3 (little-endian) are supported")]
    Version(u32),
    /// The file ends before what it announces.
    #[error("the file ends at byte {at} where {wanted} more bytes were announced: is it cut off?")]
    Truncated {
        /// Offset from which bytes were wanted.
        at: usize,
        /// How many.
        wanted: u64,
    },
    /// A count is above the limit of this reader.
    #[error("{what}: {count} is more than the {limit} that are accepted")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// The count in the file.
        count: u64,
        /// The limit here.
        limit: u64,
    },
    /// A name or a text is not UTF-8.
    #[error("the text at byte {at} is not UTF-8")]
    NotUtf8 {
        /// Offset of the text.
        at: usize,
    },
    /// A metadata value has a type that the format does not know, or that is not accepted (arrays of arrays).
    #[error("metadata value at byte {at} has type {kind}, which is not supported")]
    ValueType {
        /// Offset of the value.
        at: usize,
        /// The type number in the file.
        kind: u32,
    },
    /// A truth value other than 0 and 1.
    #[error("metadata value at byte {at} is neither true nor false")]
    Bool {
        /// Offset of the value.
        at: usize,
    },
    /// The same metadata key, or the same tensor, twice.
    #[error("\"{0}\" stands in the header twice")]
    Duplicate(String),
    /// `general.alignment` is not a power of two between 8 and 65,536.
    #[error("alignment {0}; a power of two between 8 and 65,536 is expected")]
    Alignment(u64),
    /// A tensor has a type that the engine cannot compute with.
    #[error(
        "tensor \"{tensor}\" has type {kind}; supported are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K"
    )]
    TensorType {
        /// Name of the tensor.
        tensor: String,
        /// The type number in the file.
        kind: u32,
    },
    /// A tensor's shape is empty, too large, or does not fit its block format.
    #[error("tensor \"{tensor}\" has a shape that is empty, too large or not a multiple of its block size")]
    TensorShape {
        /// Name of the tensor.
        tensor: String,
    },
    /// A tensor does not start at a multiple of the alignment.
    #[error("tensor \"{tensor}\" starts at {offset}, which is not aligned")]
    TensorOffset {
        /// Name of the tensor.
        tensor: String,
        /// Its offset.
        offset: u64,
    },
    /// A tensor reaches past the end of the file.
    #[error("tensor \"{tensor}\" reaches past the end of the file: is it cut off?")]
    TensorPastEnd {
        /// Name of the tensor.
        tensor: String,
    },
    /// A metadata key that must be there is not.
    #[error("metadata \"{0}\" is missing")]
    Missing(String),
    /// A metadata value has another type than its key asks for, or is out of range.
    #[error("metadata \"{key}\" should be {expected}")]
    Unexpected {
        /// The key.
        key: String,
        /// What it should be.
        expected: &'static str,
    },
}

impl<'a> Header<'a> {
    /// Reads the header at the start of `file`. The tensor data may be missing: see [`Header::tensor`].
    ///
    /// # Errors
    /// Whatever is malformed, announced but not there, or over a limit.
    pub fn parse(file: &'a [u8]) -> Result<Self, GgufError> {
        let mut cursor = Cursor::new(file);
        if cursor.take(4).map_err(|_| GgufError::NotGguf)? != MAGIC {
            return Err(GgufError::NotGguf);
        }
        let version = cursor.u32()?;
        if !(2..=3).contains(&version) {
            return Err(GgufError::Version(version));
        }
        let tensor_count = limited("tensors", cursor.u64()?, MAX_TENSORS)?;
        let metadata_count = limited("metadata entries", cursor.u64()?, MAX_METADATA)?;

        let mut metadata = BTreeMap::new();
        for _ in 0..metadata_count {
            let key = cursor.text(MAX_NAME_BYTES)?;
            let value = Value::read(&mut cursor)?;
            if metadata.insert(key, value).is_some() {
                return Err(GgufError::Duplicate(key.to_owned()));
            }
        }
        let alignment = alignment(&metadata)?;

        let mut tensors = BTreeMap::new();
        for _ in 0..tensor_count {
            let name = cursor.text(MAX_NAME_BYTES)?;
            let info = TensorInfo::read(&mut cursor, name, alignment)?;
            if tensors.insert(name, info).is_some() {
                return Err(GgufError::Duplicate(name.to_owned()));
            }
        }
        // "tensor_data ... must be aligned to ALIGNMENT": the position is below the file's length, alignment is small.
        let data_offset = cursor.position().next_multiple_of(alignment);
        Ok(Self { metadata, tensors, data_offset })
    }

    /// The metadata value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.metadata.get(key)
    }

    /// Text that must be there.
    ///
    /// # Errors
    /// Missing, or not text.
    pub fn text(&self, key: &str) -> Result<&'a str, GgufError> {
        self.optional_text(key)?.ok_or_else(|| GgufError::Missing(key.to_owned()))
    }

    /// Text that may be missing.
    ///
    /// # Errors
    /// There, but not text.
    pub fn optional_text(&self, key: &str) -> Result<Option<&'a str>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(unexpected(key, "text")),
        }
    }

    /// A whole number, not negative, that may be missing.
    ///
    /// # Errors
    /// There, but something else.
    pub fn optional_number(&self, key: &str) -> Result<Option<u64>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(number)) => Ok(Some(*number)),
            Some(Value::Signed(number)) => {
                u64::try_from(*number).map(Some).map_err(|_| unexpected(key, "a whole number, not negative"))
            }
            Some(_) => Err(unexpected(key, "a whole number, not negative")),
        }
    }

    /// A finite number that may be missing.
    ///
    /// # Errors
    /// There, but something else, infinite or not a number.
    pub fn optional_float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(number)) if number.is_finite() => Ok(Some(*number)),
            Some(_) => Err(unexpected(key, "a finite floating-point number")),
        }
    }

    /// A truth value that may be missing.
    ///
    /// # Errors
    /// There, but something else.
    pub fn optional_bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(unexpected(key, "true or false")),
        }
    }

    /// An array that may be missing.
    ///
    /// # Errors
    /// There, but something else.
    pub fn optional_array(&self, key: &str) -> Result<Option<Array<'a>>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(*array)),
            Some(_) => Err(unexpected(key, "an array")),
        }
    }

    /// Names and places of all tensors, in order of name.
    pub fn tensors(&self) -> impl Iterator<Item = (&'a str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (*name, info))
    }

    /// What is known of the tensor `name`.
    #[must_use]
    pub fn tensor_info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Bytes of the header, up to where the tensors begin.
    #[must_use]
    pub fn data_offset(&self) -> usize {
        self.data_offset
    }

    /// Bytes of the file up to the end of its last tensor: no more of it is ever read.
    #[must_use]
    pub fn file_bytes(&self) -> usize {
        let ends = self.tensors.values().map(|info| info.offset.saturating_add(info.bytes));
        self.data_offset.saturating_add(ends.max().unwrap_or(0))
    }

    /// The bytes of the tensor `info` in `file`, the file that this header was read from.
    ///
    /// # Errors
    /// The tensor reaches past the end of the file.
    pub fn tensor<'f>(&self, file: &'f [u8], name: &str, info: &TensorInfo) -> Result<&'f [u8], GgufError> {
        let start = self.data_offset.checked_add(info.offset);
        let end = start.and_then(|start| start.checked_add(info.bytes));
        start
            .zip(end)
            .and_then(|(start, end)| file.get(start..end))
            .ok_or_else(|| GgufError::TensorPastEnd { tensor: name.to_owned() })
    }
}

impl TensorInfo {
    fn read(cursor: &mut Cursor<'_>, name: &str, alignment: usize) -> Result<Self, GgufError> {
        let shape_error = || GgufError::TensorShape { tensor: name.to_owned() };
        let dimensions = limited("dimensions of a tensor", u64::from(cursor.u32()?), MAX_DIMENSIONS)?;
        let mut shape = Vec::with_capacity(MAX_DIMENSIONS as usize);
        for _ in 0..dimensions {
            shape.push(usize::try_from(cursor.u64()?).map_err(|_| shape_error())?);
        }
        // In the file the fastest dimension comes first.
        shape.reverse();
        let number = cursor.u32()?;
        let kind = TensorType::from_number(number)
            .ok_or_else(|| GgufError::TensorType { tensor: name.to_owned(), kind: number })?;
        let offset = cursor.u64()?;

        let elements = shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
        let elements = elements.filter(|&elements| elements > 0).ok_or_else(shape_error)?;
        if !shape.last().is_some_and(|fastest| fastest.is_multiple_of(kind.block_size())) {
            return Err(shape_error());
        }
        let bytes = (elements / kind.block_size()).checked_mul(kind.block_bytes()).ok_or_else(shape_error)?;
        let offset = usize::try_from(offset)
            .ok()
            .filter(|offset| offset.is_multiple_of(alignment))
            .ok_or_else(|| GgufError::TensorOffset { tensor: name.to_owned(), offset })?;
        Ok(Self { shape, kind, offset, bytes })
    }

    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

fn limited(what: &'static str, count: u64, limit: u64) -> Result<u64, GgufError> {
    if count > limit {
        return Err(GgufError::TooMany { what, count, limit });
    }
    Ok(count)
}

fn alignment(metadata: &BTreeMap<&str, Value<'_>>) -> Result<usize, GgufError> {
    let number = match metadata.get(ALIGNMENT_KEY) {
        None => return Ok(DEFAULT_ALIGNMENT),
        Some(Value::Unsigned(number)) => *number,
        Some(_) => return Err(unexpected(ALIGNMENT_KEY, "a whole number, not negative")),
    };
    match usize::try_from(number) {
        Ok(alignment) if alignment.is_power_of_two() && (8..=65_536).contains(&alignment) => Ok(alignment),
        _ => Err(GgufError::Alignment(number)),
    }
}

fn unexpected(key: &str, expected: &'static str) -> GgufError {
    GgufError::Unexpected { key: key.to_owned(), expected }
}

const MAGIC: &[u8] = b"GGUF";
const ALIGNMENT_KEY: &str = "general.alignment";
/// "general.alignment: ... defaults to 32" (GGUF specification).
const DEFAULT_ALIGNMENT: usize = 32;
/// "GGML_MAX_DIMS 4" (ggml.h).
const MAX_DIMENSIONS: u64 = 4;
/// "the key ... at most 2^16-1 bytes long" (GGUF specification); no real name comes near a tenth of this.
const MAX_NAME_BYTES: u64 = 1_024;
/// A 405 B model has 1,138 tensors.
const MAX_TENSORS: u64 = 16_384;
/// Files in circulation have 20 to 60.
const MAX_METADATA: u64 = 4_096;
