//! Makes GGUF files: any metadata and tensors, and models of random weights. Shared by tests and `random-model`.
#![allow(dead_code, unused_imports, reason = "each of those who share it uses a part")]

mod random;
mod shape;
mod writer;

pub use random::Random;
pub use shape::{Shape, random_model};
pub use writer::{Data, Gguf, Meta, Tensor};
