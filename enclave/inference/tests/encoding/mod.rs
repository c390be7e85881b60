//! The random BERT of `fixtures/encoder`, which transformers computed, and what becomes of it when a file is changed.
#![allow(dead_code, reason = "not every test uses every part")]

use std::path::PathBuf;

use base64::Engine;
use inference::safetensors::Header;
use inference::{Encoder, EncoderError, EncoderFiles, LoadOptions, Vocabulary};
use serde_json::{Map, Value, json};

/// A text, and what the reference makes of it.
pub struct Case {
    pub text: String,
    pub tokens: Vec<u32>,
    pub cut: usize,
    fields: Value,
}

impl Case {
    pub fn embedding(&self, field: &str) -> Vec<f32> {
        let bytes = base64::prelude::BASE64_STANDARD.decode(self.fields[field].as_str().unwrap()).unwrap();
        bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
    }
}

pub fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn cases(name: &str) -> Vec<Case> {
    let cases: Vec<Value> = serde_json::from_slice(&fixture(name)).unwrap();
    assert!(cases.len() > 40);
    let case = |fields: Value| Case {
        text: fields["text"].as_str().unwrap().to_owned(),
        tokens: fields["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect(),
        cut: fields["cut"].as_u64().unwrap() as usize,
        fields,
    };
    cases.into_iter().map(case).collect()
}

/// A model's files, to be changed.
#[derive(Clone)]
pub struct Files {
    pub weights: Vec<u8>,
    pub config: Vec<u8>,
    pub tokenizer: Vec<u8>,
    pub pooling: Option<Vec<u8>>,
    pub sentence: Option<Vec<u8>>,
    pub modules: Option<Vec<u8>>,
}

impl Files {
    pub fn tiny() -> Self {
        Self {
            weights: fixture("encoder/model.safetensors"),
            config: fixture("encoder/config.json"),
            tokenizer: fixture("encoder/tokenizer.json"),
            pooling: None,
            sentence: None,
            modules: None,
        }
    }

    pub fn borrowed(&self) -> EncoderFiles<'_> {
        EncoderFiles {
            config: &self.config,
            vocabulary: Vocabulary::Tokenizer(&self.tokenizer),
            pooling: self.pooling.as_deref(),
            sentence: self.sentence.as_deref(),
            modules: self.modules.as_deref(),
        }
    }

    pub fn load(&self, threads: usize) -> Result<Encoder, EncoderError> {
        Encoder::load(&self.weights, &self.borrowed(), &LoadOptions { threads })
    }

    pub fn refusal(&self) -> String {
        self.load(1).err().expect("refused").to_string()
    }

    /// With a change to `config.json`.
    pub fn config(key: &str, value: Value) -> Self {
        let mut files = Self::tiny();
        let mut config: Map<String, Value> = serde_json::from_slice(&files.config).unwrap();
        if value.is_null() {
            config.remove(key)
        } else {
            config.insert(key.to_owned(), value)
        };
        files.config = serde_json::to_vec(&config).unwrap();
        files
    }

    /// With a change to `tokenizer.json`, in the place of a JSON pointer.
    pub fn tokenizer(pointer: &str, value: Value) -> Self {
        let mut files = Self::tiny();
        let mut tokenizer: Value = serde_json::from_slice(&files.tokenizer).unwrap();
        *tokenizer.pointer_mut(pointer).unwrap() = value;
        files.tokenizer = serde_json::to_vec(&tokenizer).unwrap();
        files
    }

    /// With a change to the tensors.
    pub fn tensors(change: impl FnOnce(&mut Vec<Tensor>)) -> Self {
        let mut files = Self::tiny();
        let mut tensors = tensors(&files.weights);
        change(&mut tensors);
        files.weights = safetensors(&tensors);
        files
    }
}

#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    pub fn floats(&self) -> Vec<f32> {
        assert_eq!(self.dtype, "F32");
        self.bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
    }
}

fn tensors(file: &[u8]) -> Vec<Tensor> {
    let header = Header::parse(file).unwrap();
    let data = &file[header.data_offset()..];
    header
        .tensors()
        .map(|(name, info)| Tensor {
            name: name.to_owned(),
            dtype: info.dtype.name(),
            shape: info.shape.clone(),
            bytes: data[info.offset..][..info.bytes].to_vec(),
        })
        .collect()
}

pub fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for Tensor { name, dtype, shape, bytes } in tensors {
        let end = data.len() + bytes.len();
        header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [data.len(), end] }));
        data.extend(bytes);
    }
    with_header(&serde_json::to_vec(&header).unwrap(), &data)
}

pub fn with_header(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}
