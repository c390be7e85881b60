//! Models of random weights, in any shape.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor as Candle};

use super::{Data, Gguf, Meta, Random, Tensor};

/// The shape of a model.
#[derive(Clone, Copy)]
pub struct Shape {
    pub vocabulary: usize,
    pub context: usize,
    pub width: usize,
    pub layers: usize,
    pub feed_forward: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub tied: bool,
    /// Block format of the matrices.
    pub kind: GgmlDType,
}

impl Shape {
    /// For tests: a tenth of a million weights. Rows of 256, so that every block format fits.
    pub const TINY: Self = Self {
        vocabulary: 300,
        context: 256,
        width: 256,
        layers: 2,
        feed_forward: 256,
        heads: 8,
        kv_heads: 2,
        tied: false,
        kind: GgmlDType::F32,
    };

    /// By name, as `random-model --shape` takes it.
    pub fn named(name: &str) -> Option<Self> {
        let large = Self { vocabulary: 512, context: 4096, kind: GgmlDType::Q8_0, tied: true, ..Self::TINY };
        Some(match name {
            "tiny" => Self::TINY,
            // 0.51 B weights, nearly all of them in the layers.
            "0.5b" => Self { width: 1024, layers: 32, feed_forward: 4352, heads: 16, kv_heads: 8, ..large },
            // The layers of Llama 3.2 1B, with a small vocabulary: 0.97 B weights.
            "1b" => Self { width: 2048, layers: 16, feed_forward: 8192, heads: 32, kv_heads: 8, ..large },
            _ => return None,
        })
    }

    pub const NAMES: [&str; 3] = ["tiny", "0.5b", "1b"];

    fn kv_width(&self) -> usize {
        self.width / self.heads * self.kv_heads
    }
}

/// A model of `shape`: every byte is a token, there are three control tokens, a user-defined one and a chat template.
/// It rambles, but never ends by itself: the rows of the control tokens are zero.
pub fn random_model(shape: &Shape, seed: u64) -> Gguf {
    let mut random = Random(seed);
    let mut file = Gguf { metadata: hyperparameters(shape), tensors: Vec::new() };
    file.metadata.extend(vocabulary(shape.vocabulary));
    let mut matrix = |name: &str, outputs: usize, inputs: usize| matrix(&mut random, shape.kind, name, outputs, inputs);
    let Shape { width, feed_forward, .. } = *shape;
    let mut tensors = vec![without_control(matrix("token_embd.weight", shape.vocabulary, width))];
    for layer in 0..shape.layers {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        tensors.extend([
            ones(&name("attn_norm"), width),
            matrix(&name("attn_q"), width, width),
            matrix(&name("attn_k"), shape.kv_width(), width),
            matrix(&name("attn_v"), shape.kv_width(), width),
            matrix(&name("attn_output"), width, width),
            ones(&name("ffn_norm"), width),
            matrix(&name("ffn_gate"), feed_forward, width),
            matrix(&name("ffn_up"), feed_forward, width),
            matrix(&name("ffn_down"), width, feed_forward),
        ]);
    }
    tensors.push(ones("output_norm.weight", width));
    if !shape.tied {
        tensors.push(without_control(matrix("output.weight", shape.vocabulary, width)));
    }
    file.tensors = tensors;
    file
}

fn hyperparameters(shape: &Shape) -> Vec<(String, Meta)> {
    let number = |key: &str, value: usize| (format!("llama.{key}"), Meta::Number(value as u32));
    vec![
        ("general.architecture".to_owned(), Meta::Text("llama".to_owned())),
        ("general.name".to_owned(), Meta::Text("Random".to_owned())),
        number("context_length", shape.context),
        number("embedding_length", shape.width),
        number("block_count", shape.layers),
        number("feed_forward_length", shape.feed_forward),
        number("attention.head_count", shape.heads),
        number("attention.head_count_kv", shape.kv_heads),
        number("rope.dimension_count", shape.width / shape.heads),
        ("llama.rope.freq_base".to_owned(), Meta::Float(10_000.0)),
        ("llama.attention.layer_norm_rms_epsilon".to_owned(), Meta::Float(1e-5)),
    ]
}

/// Control tokens first, then a user-defined one, the bytes, pairs of letters, and words that no merge makes.
fn vocabulary(size: usize) -> Vec<(String, Meta)> {
    let mut tokens: Vec<String> = ["<|begin|>", "<|turn|>", "<|end|>", "metformin"].map(str::to_owned).to_vec();
    let mut types = vec![3, 3, 3, 4];
    tokens.extend((0..=u8::MAX).map(|byte| byte_character(byte).to_string()));
    let letters = || ('a'..='z').map(String::from);
    let pairs = letters().flat_map(|left| letters().map(move |right| (left.clone(), right)));
    let pairs: Vec<_> = pairs.take(size.checked_sub(tokens.len()).expect("room for all bytes")).collect();
    tokens.extend(pairs.iter().map(|(left, right)| format!("{left}{right}")));
    let mut random = Random(1);
    while tokens.len() < size {
        let letters = (0..3 + random.below(9)).map(|_| char::from(b'a' + random.below(26) as u8));
        let word = format!("{}{}", letters.collect::<String>(), tokens.len());
        tokens.push(word);
    }
    types.resize(size, 1);
    let merges = pairs.iter().map(|(left, right)| format!("{left} {right}")).collect();
    let text = |text: &str| Meta::Text(text.to_owned());
    [
        ("model", text("gpt2")),
        ("pre", text("gpt-2")),
        ("tokens", Meta::Texts(tokens)),
        ("token_type", Meta::Numbers(types)),
        ("merges", Meta::Texts(merges)),
        ("bos_token_id", Meta::Number(0)),
        ("eos_token_id", Meta::Number(2)),
    ]
    .into_iter()
    .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value))
    .chain([("tokenizer.chat_template".to_owned(), text(CHAT_TEMPLATE))])
    .collect()
}

/// GPT-2's `bytes_to_unicode`, counted off as in the original.
fn byte_character(byte: u8) -> char {
    let itself = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if itself(&byte) {
        return char::from(byte);
    }
    let place = (0..byte).filter(|byte| !itself(byte)).count() as u32;
    char::from_u32(256 + place).expect("below the surrogates")
}

fn ones(name: &str, length: usize) -> Tensor {
    Tensor { name: name.to_owned(), shape: vec![length], kind: 0, data: Data::floats(vec![1.0; length]) }
}

/// Weights that keep the size of what passes through. From 64 rows on, rows repeat.
fn matrix(random: &mut Random, kind: GgmlDType, name: &str, outputs: usize, inputs: usize) -> Tensor {
    let rows = if outputs * inputs > 1 << 20 { 64.min(outputs) } else { outputs };
    let scale = 1.0 / (inputs as f32).sqrt();
    let values: Vec<f32> = (0..rows * inputs).map(|_| random.normal() * scale).collect();
    let values = Candle::from_vec(values, (rows, inputs), &Device::Cpu).expect("the shape fits");
    let blocks = QTensor::quantize(&values, kind).expect("rows are whole blocks");
    let bytes = blocks.data().expect("in memory").into_owned();
    let length = bytes.len() / rows * outputs;
    let shape = vec![outputs, inputs];
    Tensor { name: name.to_owned(), shape, kind: number(kind), data: Data::Repeated(bytes, length) }
}

/// With zeros for the rows of the control tokens.
fn without_control(mut tensor: Tensor) -> Tensor {
    let rows = tensor.shape[0];
    if let Data::Repeated(piece, length) = tensor.data {
        let mut bytes: Vec<u8> = piece.iter().copied().cycle().take(length).collect();
        bytes[..3 * length / rows].fill(0);
        tensor.data = Data::Bytes(bytes);
    }
    tensor
}

fn number(kind: GgmlDType) -> u32 {
    match kind {
        GgmlDType::F32 => 0,
        GgmlDType::F16 => 1,
        GgmlDType::Q4_0 => 2,
        GgmlDType::Q4_1 => 3,
        GgmlDType::Q5_0 => 6,
        GgmlDType::Q5_1 => 7,
        GgmlDType::Q8_0 => 8,
        GgmlDType::Q4K => 12,
        GgmlDType::Q5K => 13,
        GgmlDType::Q6K => 14,
        GgmlDType::BF16 => 30,
        other => panic!("no number for {other:?} here"),
    }
}

/// White space around what was said does not count, as in most templates in circulation.
const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
    {% if message['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}\
    <|turn|>{{ message.role }}: {{ message.content | trim }}<|end|>{% endfor %}\
    {% if add_generation_prompt %}<|turn|>assistant: {% endif %}";
