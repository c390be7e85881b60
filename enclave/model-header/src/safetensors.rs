//! Reads the header of a safetensors file: strict, and in bounds.
//!
//! The format is that of <https://github.com/huggingface/safetensors> ("Format"): eight bytes with the length of the header,
//! little endian; the header, which is JSON; the tensors, one after the other without gaps. Its own crate (`safetensors`) needs the whole
//! file in memory before it looks at the header, takes the last of two tensors of one name, and does not say which tensor it refuses.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use thiserror::Error;

/// What a safetensors file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    tensors: BTreeMap<String, TensorInfo>,
    data_offset: usize,
    data_bytes: usize,
}

/// Where a tensor lies, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Of its elements.
    pub dtype: Dtype,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// From the end of the header.
    pub offset: usize,
    /// Bytes in the file.
    pub bytes: usize,
}

/// What elements are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// One that nothing here computes with, by its name in the file, and its bytes.
    Other(&'static str, usize),
}

/// Why a file is no safetensors file, or none that is read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SafetensorsError {
    /// The header is not there as a whole.
    #[error("the file ends after {found} bytes; its header ends at byte {wanted}")]
    Truncated {
        /// Bytes that are there.
        found: usize,
        /// Bytes up to the end of the header.
        wanted: usize,
    },
    /// A header longer than any model's.
    #[error("the header has {0} bytes; at most {MAX_HEADER_BYTES} are accepted")]
    HeaderTooLong(u64),
    /// The header is not what the format asks for.
    #[error(
        "line {line}, column {column} of the header: expected a JSON object of tensors, each once, with \"dtype\", \"shape\" and \"data_offsets\""
    )]
    Malformed {
        /// Line in the header.
        line: usize,
        /// Column in it.
        column: usize,
    },
    /// More tensors than any model has.
    #[error("{0} tensors; at most {MAX_TENSORS} are accepted")]
    TooManyTensors(usize),
    /// A name longer than any model's.
    #[error("the name of a tensor has {0} bytes; at most {MAX_NAME_BYTES} are accepted")]
    NameTooLong(usize),
    /// More dimensions than any tensor has.
    #[error("tensor \"{tensor}\" has {dimensions} dimensions; at most {MAX_DIMENSIONS} are accepted")]
    TooManyDimensions {
        /// Name of the tensor.
        tensor: String,
        /// How many it says.
        dimensions: usize,
    },
    /// A type that is not known.
    #[error("tensor \"{0}\" is of a type that is not known; F32, F16 and BF16 are computed with")]
    UnknownType(String),
    /// Shape and place in the file say different sizes, or none that fits memory.
    #[error("tensor \"{tensor}\" lies from byte {begin} to {end}; its shape {shape:?} and type do not take that many")]
    Size {
        /// Name of the tensor.
        tensor: String,
        /// First byte.
        begin: u64,
        /// Byte after the last.
        end: u64,
        /// What the file says.
        shape: Vec<u64>,
    },
    /// Tensors overlap, or there is something between them.
    #[error("tensor \"{tensor}\" begins at byte {begin}; the one in front of it ends at {expected}")]
    Gap {
        /// Name of the tensor.
        tensor: String,
        /// Where it begins.
        begin: usize,
        /// Where it should.
        expected: usize,
    },
}

impl Header {
    /// How many bytes of a file its header takes, these eight included.
    ///
    /// # Errors
    /// A header longer than any model's.
    pub fn bytes(first: [u8; LENGTH_BYTES]) -> Result<usize, SafetensorsError> {
        let length = u64::from_le_bytes(first);
        match usize::try_from(length) {
            Ok(bytes) if bytes <= MAX_HEADER_BYTES => Ok(LENGTH_BYTES + bytes),
            _ => Err(SafetensorsError::HeaderTooLong(length)),
        }
    }

    /// Reads the header at the start of `file`; the tensors need not be there.
    ///
    /// # Errors
    /// What the format does not allow, and what is larger than any model's.
    pub fn parse(file: &[u8]) -> Result<Self, SafetensorsError> {
        let truncated = |wanted| SafetensorsError::Truncated { found: file.len(), wanted };
        let data_offset = Self::bytes(*file.first_chunk().ok_or_else(|| truncated(LENGTH_BYTES))?)?;
        let json = file.get(LENGTH_BYTES..data_offset).ok_or_else(|| truncated(data_offset))?;
        let Listed(listed) = serde_json::from_slice(json)
            .map_err(|error| SafetensorsError::Malformed { line: error.line(), column: error.column() })?;
        if listed.len() > MAX_TENSORS {
            return Err(SafetensorsError::TooManyTensors(listed.len()));
        }
        let mut tensors = Vec::with_capacity(listed.len());
        for (name, stated) in listed {
            tensors.push((TensorInfo::check(&name, stated)?, name));
        }
        tensors.sort_by_key(|(info, _)| (info.offset, info.bytes));
        let mut expected = 0;
        for (info, name) in &tensors {
            if info.offset != expected {
                return Err(SafetensorsError::Gap { tensor: name.clone(), begin: info.offset, expected });
            }
            expected += info.bytes;
        }
        let tensors = tensors.into_iter().map(|(info, name)| (name, info)).collect();
        Ok(Self { tensors, data_offset, data_bytes: expected })
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info))
    }

    /// The tensor of this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Where the tensors begin in the file.
    #[must_use]
    pub fn data_offset(&self) -> usize {
        self.data_offset
    }

    /// Bytes that the file has.
    #[must_use]
    pub fn file_bytes(&self) -> usize {
        self.data_offset.saturating_add(self.data_bytes)
    }
}

impl TensorInfo {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.bytes / self.dtype.bytes()
    }

    fn check(name: &str, stated: Stated) -> Result<Self, SafetensorsError> {
        if name.len() > MAX_NAME_BYTES {
            return Err(SafetensorsError::NameTooLong(name.len()));
        }
        let tensor = || name.to_owned();
        if stated.shape.len() > MAX_DIMENSIONS {
            return Err(SafetensorsError::TooManyDimensions { tensor: tensor(), dimensions: stated.shape.len() });
        }
        let dtype = Dtype::named(&stated.dtype).ok_or_else(|| SafetensorsError::UnknownType(tensor()))?;
        let [begin, end] = stated.data_offsets;
        let size = || {
            let shape: Vec<usize> =
                stated.shape.iter().map(|&size| usize::try_from(size).ok()).collect::<Option<_>>()?;
            let bytes = shape.iter().try_fold(dtype.bytes(), |product, &size| product.checked_mul(size))?;
            let (offset, end) = (usize::try_from(begin).ok()?, usize::try_from(end).ok()?);
            (offset.checked_add(bytes)? == end).then_some(Self { dtype, shape, offset, bytes })
        };
        size().ok_or_else(|| SafetensorsError::Size { tensor: tensor(), begin, end, shape: stated.shape.clone() })
    }
}

impl Dtype {
    fn named(name: &str) -> Option<Self> {
        match name {
            "F32" => Some(Self::F32),
            "F16" => Some(Self::F16),
            "BF16" => Some(Self::Bf16),
            _ => OTHERS.iter().find(|(other, _)| *other == name).map(|&(name, bytes)| Self::Other(name, bytes)),
        }
    }

    /// The name in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Other(name, _) => name,
        }
    }

    /// Bytes of an element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Other(_, bytes) => bytes,
        }
    }
}

/// A tensor as the header states it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stated {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The tensors of the header, each name once.
struct Listed(BTreeMap<String, Stated>);

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Listed;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Listed, A::Error> {
                let mut listed = BTreeMap::new();
                let mut notes = 0;
                while let Some(name) = map.next_key::<String>()? {
                    let twice = if name == NOTES {
                        map.next_value::<BTreeMap<String, IgnoredAny>>()?;
                        notes += 1;
                        notes > 1
                    } else {
                        listed.insert(name, map.next_value()?).is_some()
                    };
                    if twice {
                        return Err(A::Error::custom("a name twice"));
                    }
                }
                Ok(Listed(listed))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

/// "special key `__metadata__`": free text, of which nothing depends.
const NOTES: &str = "__metadata__";
const LENGTH_BYTES: usize = 8;
/// BERT of 24 layers has a header of 45 KB. The format allows 100 MB.
pub const MAX_HEADER_BYTES: usize = 4 << 20;
/// The largest decoders have some 2,000.
const MAX_TENSORS: usize = 16_384;
const MAX_NAME_BYTES: usize = 256;
const MAX_DIMENSIONS: usize = 8;
/// The other types of the format that take whole bytes.
const OTHERS: [(&str, usize); 12] = [
    ("BOOL", 1),
    ("U8", 1),
    ("I8", 1),
    ("F8_E5M2", 1),
    ("F8_E4M3", 1),
    ("I16", 2),
    ("U16", 2),
    ("I32", 4),
    ("U32", 4),
    ("F64", 8),
    ("I64", 8),
    ("U64", 8),
];
