//! Answers: how they end, what comes of a seed, and that they do not disturb each other.
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

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use candle_core::quantized::GgmlDType;
use inference::{
    Cancel, FinishReason, Finished, GenerateError, KvMemory, LoadOptions, Message, Model, Plan, Prompt, Role, Sampling,
    SamplingError, Token,
};
use making::{Data, Gguf, Random, Shape, random_model};
use zeroize::Zeroizing;

fn load(file: &Gguf) -> Model {
    Model::load(&file.to_bytes(), &LoadOptions { threads: 2 }).unwrap()
}

fn model() -> Model {
    load(&random_model(&Shape::TINY, 1))
}

fn prompt(model: &Model) -> Prompt {
    model.prompt(&[Message { role: Role::User, content: "Good morning" }]).unwrap()
}

fn sampled(seed: u64) -> Sampling {
    Sampling { temperature: 1.0, seed, ..Sampling::greedy() }
}

/// The whole text, how many calls brought it, and how it ended.
fn answer(model: &Model, sampling: &Sampling, max_tokens: usize) -> (String, usize, Finished) {
    let (mut text, mut calls) = (String::new(), 0);
    let mut take = |token: Token<'_>| {
        text.push_str(token.text);
        calls += 1;
        ControlFlow::Continue(())
    };
    let finished = model.generate(&prompt(model), sampling, max_tokens, &Cancel::new(), &mut take).unwrap();
    (text, calls, finished)
}

#[test]
fn an_answer_has_as_many_tokens_as_were_asked_for() {
    let model = model();
    let (text, calls, finished) = answer(&model, &Sampling::greedy(), 20);
    assert!(!text.is_empty());
    assert!((20..=21).contains(&calls));
    let prompt_tokens = prompt(&model).len();
    assert_eq!(finished, Finished { reason: FinishReason::Length, prompt_tokens, completion_tokens: 20 });
}

#[test]
fn an_answer_ends_where_the_model_ends_it() {
    // The row of "<|end|>" is made so large that it wins in one direction or the other.
    let mut file = random_model(&Shape::TINY, 1);
    let width = Shape::TINY.width;
    let norm = file.tensor("output_norm.weight");
    norm.data = Data::floats(std::iter::once(1e6).chain(vec![0.0; width - 1]));
    let output = file.tensor("output.weight");
    let row = |id: usize| {
        if id == 2 {
            1.0
        } else if id == 3 {
            -1.0
        } else {
            0.0
        }
    };
    output.data = Data::floats((0..300).flat_map(|id| std::iter::once(row(id)).chain(vec![0.0; width - 1])));
    let ended = (0..40_u32).map(|id| {
        let model = load(&file);
        let prompt = model.prompt_of_tokens(&[4 + id]).unwrap();
        let finished =
            model.generate(&prompt, &Sampling::greedy(), 3, &Cancel::new(), &mut |_| ControlFlow::Continue(()));
        let finished = finished.unwrap();
        assert_eq!(finished.reason == FinishReason::End, finished.completion_tokens < 3);
        finished.completion_tokens == 0
    });
    let ended: Vec<bool> = ended.collect();
    assert!(ended.contains(&true) && ended.contains(&false));
}

#[test]
fn the_same_seed_gives_the_same_text_and_another_does_not() {
    let model = model();
    let text = |seed| answer(&model, &sampled(seed), 40).0;
    assert_eq!(text(1), text(1));
    assert_ne!(text(1), text(2));
}

#[test]
fn a_stop_text_ends_the_answer_and_never_shows() {
    let model = model();
    let (whole, ..) = answer(&model, &sampled(3), 60);
    let characters: Vec<char> = whole.chars().collect();
    let stop: String = characters[characters.len() / 2..][..3].iter().collect();
    let sampling = Sampling { stops: vec![Zeroizing::new(stop.clone())], ..sampled(3) };
    let (text, _, finished) = answer(&model, &sampling, 60);
    assert_eq!(finished.reason, FinishReason::Stop);
    assert_eq!(text, whole[..whole.find(&stop).unwrap()]);
}

/// A token's entry: how much of the text was out when it came, the token, its log-probability, and those of others.
type Entry = (usize, u32, f32, Vec<(u32, f32)>);

fn with_logprobs(model: &Model, sampling: &Sampling, max_tokens: usize) -> (String, Vec<Entry>, Vec<u32>) {
    let (mut text, mut entries, mut ids) = (String::new(), Vec::new(), Vec::new());
    let mut take = |token: Token<'_>| {
        text.push_str(token.text);
        ids.truncate(token.count - 1);
        ids.push(token.id);
        let new = token.logprobs.iter().map(|entry| (text.len(), entry.id, entry.logprob, entry.top.to_vec()));
        entries.extend(new);
        ControlFlow::Continue(())
    };
    model.generate(&prompt(model), sampling, max_tokens, &Cancel::new(), &mut take).unwrap();
    (text, entries, ids)
}

/// By the logits that the model gives for the prompt and each beginning of the answer, whatever else chooses the tokens.
#[test]
fn log_probabilities_are_those_of_the_models_own_logits() {
    let model = model();
    let asked = Sampling {
        logprobs: Some(5),
        speculate: true,
        frequency_penalty: 1.0,
        logit_bias: vec![(50, 3.0)],
        ..sampled(4)
    };
    let (text, entries, ids) = with_logprobs(&model, &asked, 25);
    assert_eq!(text, answer(&model, &Sampling { logprobs: None, ..asked.clone() }, 25).0, "asking changes nothing");
    assert_eq!(entries.iter().map(|(_, id, ..)| *id).collect::<Vec<_>>(), ids);
    let mut tokens = prompt(&model).tokens().to_vec();
    for (_, id, logprob, top) in entries {
        let logits = model.logits(&model.prompt_of_tokens(&tokens).unwrap()).unwrap();
        let total: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        let expected = |id: u32| (f64::from(logits[id as usize]) - total.ln()) as f32;
        assert!((logprob - expected(id)).abs() < 1e-4);
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), order[..5]);
        assert!(top.iter().all(|(id, logprob)| (logprob - expected(*id)).abs() < 1e-4));
        tokens.push(id);
    }
}

/// Neither before the text that they are about, nor at all where that never comes.
#[test]
fn log_probabilities_never_tell_what_is_held_back() {
    let model = model();
    let asked = Sampling { logprobs: Some(0), ..sampled(3) };
    let (whole, all, _) = with_logprobs(&model, &asked, 60);
    assert_eq!(all.len(), 60);
    // Random bytes: where each token ends, as the text comes out without anything held back.
    let characters: Vec<char> = whole.chars().collect();
    for from in [10, 20, 30] {
        let stop: String = characters[from..][..3].iter().collect();
        let start = whole.find(&stop).unwrap();
        let stops = vec![Zeroizing::new(stop.clone())];
        let (text, entries, _) = with_logprobs(&model, &Sampling { stops, ..asked.clone() }, 60);
        assert_eq!(text, whole[..start]);
        // As many entries as tokens that end where the text does, or before.
        assert_eq!(entries.len(), all.iter().filter(|(out, ..)| *out <= start).count(), "{stop:?}");
        for ((out, id, ..), (end, same, ..)) in entries.iter().zip(&all) {
            assert!(id == same && out >= end, "token {id} was told of at {out}, and ends at {end}");
        }
    }
    // What only looks like the beginning of a stop text, up to the end of the answer.
    let stops = vec![Zeroizing::new(format!("{}\u{1}", characters[characters.len() - 5..].iter().collect::<String>()))];
    let (text, entries, _) = with_logprobs(&model, &Sampling { stops, ..asked }, 60);
    assert_eq!((text, entries.len()), (whole, 60));
}

#[test]
fn a_receiver_that_wants_no_more_ends_the_answer() {
    let model = model();
    let mut calls = 0;
    let finished = model.generate(&prompt(&model), &Sampling::greedy(), 50, &Cancel::new(), &mut |token| {
        calls += 1;
        if token.count == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let finished = finished.unwrap();
    assert_eq!((calls, finished.reason, finished.completion_tokens), (5, FinishReason::Receiver, 5));
}

#[test]
fn a_cancelled_answer_ends_before_its_first_token_and_soon_after_any() {
    let model = model();
    let cancel = Cancel::new();
    cancel.cancel();
    let mut never = |_: Token<'_>| panic!("no token comes");
    let finished = model.generate(&prompt(&model), &Sampling::greedy(), 50, &cancel, &mut never).unwrap();
    assert_eq!((finished.reason, finished.completion_tokens), (FinishReason::Cancelled, 0));

    let cancel = Cancel::new();
    let elsewhere = cancel.clone();
    let finished = model.generate(&prompt(&model), &Sampling::greedy(), 50, &cancel, &mut |token| {
        if token.count == 3 {
            elsewhere.cancel();
        }
        ControlFlow::Continue(())
    });
    let finished = finished.unwrap();
    assert_eq!((finished.reason, finished.completion_tokens), (FinishReason::Cancelled, 3));
}

#[test]
fn what_might_not_fit_the_context_is_refused_with_the_numbers() {
    let model = model();
    let prompt = prompt(&model);
    let (prompt_tokens, context_length) = (prompt.len(), model.context_length());
    let room = model.room_after(&prompt);
    assert_eq!(room, context_length - prompt_tokens);
    let mut on_token = |_: Token<'_>| ControlFlow::Continue(());
    let mut ask = |max_tokens| model.generate(&prompt, &Sampling::greedy(), max_tokens, &Cancel::new(), &mut on_token);
    assert_eq!(ask(room).unwrap().completion_tokens, room);
    for max_tokens in [room + 1, usize::MAX] {
        let expected = GenerateError::ContextTooLong { prompt_tokens, max_tokens, context_length };
        assert_eq!(ask(max_tokens).err(), Some(expected));
    }
    assert_eq!(ask(0).err(), Some(GenerateError::NoTokens));
}

#[test]
fn what_never_fits_the_memory_is_refused_with_the_numbers_and_what_just_fits_is_answered() {
    let file = random_model(&Shape::TINY, 1).to_bytes();
    let needed = Plan::from_header(&file).unwrap().answer_bytes(64);
    let mut on_token = |_: Token<'_>| ControlFlow::Continue(());
    for (total, tokens, fits) in [(needed, 64, true), (needed, 65, false), (needed - 1, 64, false)] {
        let model = Model::load(&file, &LoadOptions { threads: 1 }).unwrap().within(&KvMemory::new(total)).unwrap();
        let prompt = model.prompt_of_tokens(&[4; 50]).unwrap();
        let answer = model.generate(&prompt, &Sampling::greedy(), tokens - 50, &Cancel::new(), &mut on_token);
        let needed = Plan::from_header(&file).unwrap().answer_bytes(tokens);
        assert_eq!(answer.err(), if fits { None } else { Some(GenerateError::Memory { needed, total }) });
    }
}

#[test]
fn sampling_parameters_are_checked_before_work() {
    let model = model();
    let sampling = Sampling { temperature: 9.0, ..Sampling::greedy() };
    let refused = model.generate(&prompt(&model), &sampling, 5, &Cancel::new(), &mut |_| ControlFlow::Continue(()));
    assert_eq!(refused.err(), Some(GenerateError::Sampling(SamplingError::Temperature(9.0))));
}

#[test]
fn a_prompt_of_a_larger_vocabulary_is_refused() {
    let large = load(&random_model(&Shape { vocabulary: 400, ..Shape::TINY }, 1));
    let foreign = large.prompt_of_tokens(&[350]).unwrap();
    let refused =
        model().generate(&foreign, &Sampling::greedy(), 5, &Cancel::new(), &mut |_| ControlFlow::Continue(()));
    assert_eq!(refused.err(), Some(GenerateError::ForeignPrompt));
}

#[test]
fn weights_that_are_no_numbers_give_an_error() {
    let mut file = random_model(&Shape::TINY, 1);
    file.tensor("output_norm.weight").data = Data::floats(vec![f32::NAN; Shape::TINY.width]);
    let model = load(&file);
    let refused = model.generate(&prompt(&model), &sampled(1), 5, &Cancel::new(), &mut |_| ControlFlow::Continue(()));
    assert_eq!(refused.err(), Some(GenerateError::NotANumber));
}

#[test]
fn answers_at_the_same_time_are_those_that_come_one_after_the_other() {
    let model = model();
    let alone: Vec<String> = (0..8).map(|seed| answer(&model, &sampled(seed), 25).0).collect();
    let together: Vec<String> = std::thread::scope(|scope| {
        let answers: Vec<_> = (0..8)
            .map(|seed| {
                scope.spawn({
                    let model = &model;
                    move || answer(model, &sampled(seed), 25).0
                })
            })
            .collect();
        answers.into_iter().map(|answer| answer.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
}

/// The models here soon repeat themselves, so that guesses are right again and again; and sampled ones are wrong ones, too.
#[test]
fn guessing_what_comes_next_changes_no_token() {
    for kind in [GgmlDType::Q8_0, GgmlDType::Q6K] {
        let model = load(&random_model(&Shape { kind, ..Shape::TINY }, 4));
        let ids = |sampling: &Sampling| {
            let tokens: Vec<u32> = (0..40).map(|index| 4 + index % 7).collect();
            let (prompt, mut ids) = (model.prompt_of_tokens(&tokens).unwrap(), Vec::new());
            let mut take = |token: Token<'_>| {
                ids.push((token.count, token.id));
                ControlFlow::Continue(())
            };
            model.generate(&prompt, sampling, 150, &Cancel::new(), &mut take).unwrap();
            ids
        };
        for sampling in [Sampling::greedy(), sampled(1), Sampling { top_k: 2, ..sampled(2) }] {
            for most in [Sampling { frequency_penalty: 0.3, ..sampling.clone() }, sampling] {
                assert_eq!(ids(&Sampling { speculate: true, ..most.clone() }), ids(&most), "{kind:?}");
            }
        }
    }
}

/// Each of 64 at the same time, of any length, is what it is alone.
#[test]
fn sixty_four_answers_in_one_batch_are_each_what_they_are_alone() {
    for kind in [GgmlDType::Q8_0, GgmlDType::Q4K, GgmlDType::F16] {
        let model = load(&random_model(&Shape { kind, ..Shape::TINY }, 2));
        let mut random = Random(7);
        let asked: Vec<(Prompt, Sampling, usize)> = (0..64)
            .map(|seed| {
                let tokens: Vec<u32> = (0..1 + random.below(150)).map(|_| 4 + random.below(250) as u32).collect();
                let sampling = if seed % 2 == 0 { Sampling::greedy() } else { sampled(seed) };
                (model.prompt_of_tokens(&tokens).unwrap(), sampling, 1 + random.below(60) as usize)
            })
            .collect();
        let run = |(prompt, sampling, most): &(Prompt, Sampling, usize)| {
            let mut tokens = Vec::new();
            let mut take = |token: Token<'_>| {
                tokens.push((token.count, token.id));
                ControlFlow::Continue(())
            };
            model.generate(prompt, sampling, *most, &Cancel::new(), &mut take).unwrap();
            tokens
        };
        let together: Vec<_> = std::thread::scope(|scope| {
            let run = &run;
            let answers: Vec<_> = asked.iter().map(|asked| scope.spawn(move || run(asked))).collect();
            answers.into_iter().map(|answer| answer.join().unwrap()).collect()
        });
        for (asked, together) in asked.iter().zip(together) {
            assert_eq!(run(asked), together, "{kind:?}");
        }
    }
}

#[test]
fn a_receiver_that_dawdles_does_not_hold_up_another_answer() {
    let model = Model::load(&random_model(&Shape::TINY, 1).to_bytes(), &LoadOptions { threads: 1 }).unwrap();
    std::thread::scope(|scope| {
        let (started, start) = std::sync::mpsc::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let model = &model;
        scope.spawn(move || {
            model.generate(&prompt(model), &Sampling::greedy(), 2, &Cancel::new(), &mut |_| {
                let _ = started.send(());
                let _ = released.recv_timeout(Duration::from_secs(20));
                ControlFlow::Continue(())
            })
        });
        start.recv().unwrap();
        let begun = Instant::now();
        assert_eq!(answer(model, &Sampling::greedy(), 10).2.completion_tokens, 10);
        assert!(begun.elapsed() < Duration::from_secs(10));
        drop(release);
    });
}
