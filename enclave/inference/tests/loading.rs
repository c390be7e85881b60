//! What is loaded, what is refused, and what the refusal says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "in a test, the first thing that is wrong ends it"
)]

#[path = "making/mod.rs"]
mod making;

use inference::{LoadError, LoadOptions, Model, Plan, PromptError};
use making::{Data, Gguf, Meta, Shape, Tensor, random_model};

fn file() -> Gguf {
    random_model(&Shape::TINY, 1)
}

fn refusal(file: &Gguf) -> String {
    let loaded: Result<Model, LoadError> = Model::load(&file.to_bytes(), &LoadOptions::default());
    loaded.err().expect("refused").to_string()
}

fn with(key: &str, value: Meta) -> Gguf {
    let mut file = file();
    file.set(key, value);
    file
}

fn without(key: &str) -> Gguf {
    let mut file = file();
    file.remove(key);
    file
}

fn text(text: &str) -> Meta {
    Meta::Text(text.to_owned())
}

#[test]
fn a_model_says_what_it_is() {
    let model = Model::load(&file().to_bytes(), &LoadOptions::default()).unwrap();
    assert_eq!(model.name(), "Random");
    assert_eq!(model.context_length(), 256);
    assert_eq!(model.vocabulary(), 300);
}

#[test]
fn the_plan_is_what_loading_takes() {
    let bytes = random_model(&Shape::TINY, 1).to_bytes();
    let plan = Plan::from_header(&bytes).unwrap();
    let weights = file().tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum::<usize>();
    assert_eq!(plan.parameters, weights as u64);
    // 300 outputs of the embedding and of the output are held as 304, and after each 256 of a matrix there is a gap.
    let file = file();
    let matrices = file.tensors.iter().filter(|tensor| tensor.shape.len() == 2);
    let gaps = matrices.map(|tensor| tensor.shape[0].div_ceil(256) * tensor.shape[1].div_ceil(256) * 64).sum::<usize>();
    assert_eq!(plan.weights_bytes, (weights + 2 * 4 * 256) * 4 + gaps);
    // Two layers, keys and values, two heads of 32, four bytes each.
    assert_eq!(plan.kv_bytes_per_token, 2 * 2 * 64 * 4);
    assert_eq!(plan.context_length, 256);
    // In pages of 64.
    assert_eq!(plan.sequence_bytes(10), 64 * plan.kv_bytes_per_token as u64);
    assert_eq!(plan.sequence_bytes(65), 128 * plan.kv_bytes_per_token as u64);
}

/// Gives a few bytes at a time, as a network does.
struct Trickle<'a>(&'a [u8]);

impl std::io::Read for Trickle<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let count = into.len().min(self.0.len()).min(1021);
        let (now, later) = self.0.split_at(count);
        into[..count].copy_from_slice(now);
        self.0 = later;
        Ok(count)
    }
}

#[test]
fn a_file_that_comes_in_pieces_is_the_same_model_and_a_cut_one_is_none() {
    let bytes = file().to_bytes();
    let options = LoadOptions::default();
    let whole = Model::load(&bytes, &options).unwrap();
    let pieces = Model::read(&mut Trickle(&bytes), bytes.len(), &options).unwrap();
    let logits = |model: &Model| model.logits(&model.prompt_of_tokens(&[5, 6, 7]).unwrap()).unwrap();
    assert_eq!(logits(&whole), logits(&pieces));
    for length in [0, 3, 100, bytes.len() / 2, bytes.len() - 1] {
        assert!(Model::read(&mut Trickle(&bytes[..length]), length, &options).is_err(), "{length}");
        // The file says that it is longer than it turns out to be.
        assert!(Model::read(&mut Trickle(&bytes[..length]), bytes.len(), &options).is_err(), "{length}");
    }
}

#[test]
fn another_architecture_is_named() {
    assert!(refusal(&with("general.architecture", text("gemma3"))).contains("\"gemma3\""));
}

#[test]
fn variants_that_are_not_computed_are_named() {
    assert!(refusal(&with("llama.expert_count", Meta::Number(8))).contains("mixture of experts"));
    for scaling in ["yarn", "longrope", "llama3"] {
        assert!(refusal(&with("llama.rope.scaling.type", text(scaling))).contains(&format!("\"{scaling}\"")));
    }
    assert!(refusal(&with("llama.rope.scaling.attn_factor", Meta::Float(1.2))).contains("factor for attention"));
    assert!(refusal(&with("llama.attention.causal", Meta::Bool(false))).contains("later tokens"));
    assert!(refusal(&with("llama.rope.dimension_count", Meta::Number(16))).contains("llama.rope.dimension_count"));
    assert!(refusal(&with("tokenizer.ggml.model", text("bert"))).contains("\"bert\""));
    assert!(refusal(&with("tokenizer.ggml.pre", text("deepseek-llm"))).contains("\"deepseek-llm\""));
    let mut quantised = file();
    quantised.tensor("blk.1.ffn_up.weight").kind = 23;
    let refusal = refusal(&quantised);
    assert!(refusal.contains("\"blk.1.ffn_up.weight\"") && refusal.contains("type 23"), "{refusal}");
}

fn logits(file: &Gguf) -> Vec<f32> {
    let model = Model::load(&file.to_bytes(), &LoadOptions::default()).unwrap();
    model.logits(&model.prompt_of_tokens(&[5, 6, 7, 8, 9]).unwrap()).unwrap()
}

#[test]
fn frequencies_are_stretched_under_the_older_name_of_the_factor_too() {
    let mut stated = with("llama.rope.scaling.type", text("linear"));
    stated.set("llama.rope.scaling.factor", Meta::Float(4.0));
    let expected = logits(&stated);
    assert_ne!(expected, logits(&file()));
    assert_eq!(logits(&with("llama.rope.scale_linear", Meta::Float(4.0))), expected);
    assert_eq!(logits(&with("llama.rope.scaling.factor", Meta::Float(4.0))), expected);
    // The newer name counts, and "none" is none.
    stated.set("llama.rope.scale_linear", Meta::Float(2.0));
    assert_eq!(logits(&stated), expected);
    stated.set("llama.rope.scaling.type", text("none"));
    assert_eq!(logits(&stated), logits(&file()));
    assert!(refusal(&with("llama.rope.scale_linear", Meta::Float(0.0))).contains("llama.rope.scale_linear"));
}

#[test]
fn a_context_ends_where_attention_would_begin_to_slide() {
    let plan = |file: &Gguf| Plan::from_header(&file.to_bytes()).unwrap();
    let mistral = with("llama.attention.sliding_window", Meta::Number(100));
    assert_eq!((plan(&mistral).context_length, plan(&mistral).stated_context), (100, 256));
    let model = Model::load(&mistral.to_bytes(), &LoadOptions::default()).unwrap();
    assert!(model.prompt_of_tokens(&[5; 99]).is_ok());
    let refused = model.prompt_of_tokens(&[5; 100]).err().expect("no room for an answer");
    assert_eq!(refused, PromptError::TooManyTokens { tokens: 100, context_length: 100 });
    // Within the window it is the same model.
    assert_eq!(logits(&mistral), logits(&file()));
    for (window, expected) in [(0, 256), (256, 256), (4096, 256), (255, 255)] {
        let plan = plan(&with("llama.attention.sliding_window", Meta::Number(window)));
        assert_eq!((plan.context_length, plan.stated_context), (expected, 256), "{window}");
    }
    // Qwen 2's, and its switch.
    let mut qwen = file();
    for (key, _) in &mut qwen.metadata {
        *key = key.replace("llama.", "qwen2.");
    }
    qwen.set("general.architecture", text("qwen2"));
    qwen.set("qwen2.attention.sliding_window", Meta::Number(64));
    assert_eq!(plan(&qwen).context_length, 64);
    qwen.set("qwen2.use_sliding_window", Meta::Bool(true));
    assert_eq!(plan(&qwen).context_length, 64);
    qwen.set("qwen2.use_sliding_window", Meta::Bool(false));
    assert_eq!(plan(&qwen).context_length, 256);
}

#[test]
fn what_is_missing_is_named() {
    for key in [
        "general.architecture",
        "llama.context_length",
        "llama.embedding_length",
        "llama.block_count",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "tokenizer.ggml.model",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.eos_token_id",
    ] {
        let mut file = without(key);
        if key == "tokenizer.ggml.eos_token_id" {
            // "<|end|>" alone would do.
            file.set("tokenizer.ggml.token_type", Meta::Numbers(vec![1; 300]));
        }
        assert!(refusal(&file).contains(key), "{key}: {}", refusal(&file));
    }
    let mut file = file();
    file.tensors.retain(|tensor| tensor.name != "blk.0.attn_v.weight");
    assert_eq!(refusal(&file), "tensor \"blk.0.attn_v.weight\" is missing");
}

#[test]
fn a_tensor_without_a_place_is_refused() {
    let mut file = file();
    let data = Data::floats(vec![0.5; 256]);
    file.tensors.push(Tensor { name: "blk.0.attn_q.bias".to_owned(), shape: vec![256], kind: 0, data });
    assert!(refusal(&file).contains("\"blk.0.attn_q.bias\" has no place"));
}

#[test]
fn a_tensor_of_another_shape_is_refused() {
    let mut file = file();
    file.tensor("blk.0.attn_k.weight").shape = vec![256, 64];
    let refusal = refusal(&file);
    assert!(refusal.contains("[256, 64]") && refusal.contains("[64, 256] is expected"), "{refusal}");
}

#[test]
fn a_vocabulary_that_cannot_spell_every_byte_is_refused() {
    let mut file = file();
    for (key, value) in &mut file.metadata {
        if let (true, Meta::Texts(tokens)) = (key.ends_with(".tokens"), value) {
            tokens.iter_mut().find(|token| *token == "Ġ").unwrap().push('x');
        }
    }
    assert!(refusal(&file).contains("no token for byte 0x20"), "{}", refusal(&file));
}

#[test]
fn a_template_that_does_not_compile_is_refused() {
    let refusal = refusal(&with("tokenizer.chat_template", text("{% for message in messages %}")));
    assert!(refusal.contains("does not compile"), "{refusal}");
}

#[test]
fn a_model_is_loaded_from_bytes_at_any_address() {
    let bytes = file().to_bytes();
    for shift in 1..4 {
        let shifted = [vec![0; shift], bytes.clone()].concat();
        let model = Model::load(&shifted[shift..], &LoadOptions::default()).unwrap();
        assert!(model.logits(&model.prompt_of_tokens(&[5]).unwrap()).is_ok());
    }
}

#[test]
fn a_model_may_be_used_by_several_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Model>();
}
