//! A GGUF writer, version 3 (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>).

use std::io::{self, Write};

/// A file to be written.
#[derive(Clone, Default)]
pub struct Gguf {
    pub metadata: Vec<(String, Meta)>,
    pub tensors: Vec<Tensor>,
}

/// A metadata value.
#[derive(Clone)]
pub enum Meta {
    Number(u32),
    Float(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Numbers(Vec<i32>),
    Floats(Vec<f32>),
}

/// A tensor.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// `enum ggml_type`.
    pub kind: u32,
    pub data: Data,
}

/// The bytes of a tensor.
#[derive(Clone)]
pub enum Data {
    Bytes(Vec<u8>),
    /// A piece again and again, up to a length: large files in seconds.
    Repeated(Vec<u8>, usize),
}

impl Gguf {
    pub fn set(&mut self, key: &str, value: Meta) {
        self.metadata.retain(|(other, _)| other != key);
        self.metadata.push((key.to_owned(), value));
    }

    pub fn remove(&mut self, key: &str) {
        self.metadata.retain(|(other, _)| other != key);
    }

    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).expect("the tensor is there")
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write(&mut bytes).expect("memory takes all");
        bytes
    }

    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let header = self.header();
        to.write_all(&header)?;
        to.write_all(&vec![0; header.len().next_multiple_of(ALIGNMENT) - header.len()])?;
        for tensor in &self.tensors {
            tensor.data.write(to)?;
            to.write_all(&vec![0; tensor.data.len().next_multiple_of(ALIGNMENT) - tensor.data.len()])?;
        }
        to.flush()
    }

    /// Up to the end of the tensors' descriptions.
    pub fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3_u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            text(&mut out, key);
            value.write(&mut out);
        }
        let mut offset = 0_usize;
        for tensor in &self.tensors {
            text(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            for &size in tensor.shape.iter().rev() {
                out.extend((size as u64).to_le_bytes());
            }
            out.extend(tensor.kind.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += tensor.data.len().next_multiple_of(ALIGNMENT);
        }
        out
    }
}

impl Meta {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Number(number) => {
                out.extend(4_u32.to_le_bytes());
                out.extend(number.to_le_bytes());
            }
            Self::Float(number) => {
                out.extend(6_u32.to_le_bytes());
                out.extend(number.to_le_bytes());
            }
            Self::Bool(value) => {
                out.extend(7_u32.to_le_bytes());
                out.push(u8::from(*value));
            }
            Self::Text(value) => {
                out.extend(8_u32.to_le_bytes());
                text(out, value);
            }
            Self::Texts(values) => array(out, 8, values, |out, value| text(out, value)),
            Self::Numbers(values) => array(out, 5, values, |out, value| out.extend(value.to_le_bytes())),
            Self::Floats(values) => array(out, 6, values, |out, value| out.extend(value.to_le_bytes())),
        }
    }
}

impl Data {
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Repeated(_, length) => *length,
        }
    }

    pub fn floats(values: impl IntoIterator<Item = f32>) -> Self {
        Self::Bytes(values.into_iter().flat_map(f32::to_le_bytes).collect())
    }

    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Bytes(bytes) => to.write_all(bytes),
            Self::Repeated(piece, length) => {
                let mut left = *length;
                while left > 0 {
                    let count = left.min(piece.len());
                    to.write_all(&piece[..count])?;
                    left -= count;
                }
                Ok(())
            }
        }
    }
}

fn array<T>(out: &mut Vec<u8>, kind: u32, values: &[T], write: impl Fn(&mut Vec<u8>, &T)) {
    out.extend(9_u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((values.len() as u64).to_le_bytes());
    for value in values {
        write(out, value);
    }
}

fn text(out: &mut Vec<u8>, value: &str) {
    out.extend((value.len() as u64).to_le_bytes());
    out.extend(value.as_bytes());
}

const ALIGNMENT: usize = 32;
