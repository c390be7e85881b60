//! The engine, step by step: what is counted are steps and tokens, never time.

use std::collections::HashMap;
use std::sync::mpsc::channel;

use super::schedule::{ANSWERS_BESIDE_OTHERS, CHUNK_BESIDE_ANSWERS, SMALLEST_PART};
use super::*;
use crate::asker::PrefixScope;
use crate::gguf::Header;
use crate::sample::Sampling;
use model_header::{Config, PROMPT_CHUNK};

/// The engine without its thread.
struct Bench {
    driver: Driver,
    _requests: Sender<Request>,
}

/// A request that was sent to it.
struct Asked(Answer);

impl Bench {
    /// Memory for so many answers of 300 tokens.
    fn with_room_for(answers: u64) -> Self {
        let file =
            std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/demo-model/subrosa-intake.gguf")).unwrap();
        let header = Header::parse(&file).unwrap();
        let plan = Plan::from_header(&file).unwrap();
        let config = Config::read(&header).unwrap();
        let decoder = Decoder::load(config, &header, &mut &file[header.data_offset()..]).unwrap();
        let (requests, incoming) = channel();
        let memory = KvMemory::new(answers * plan.answer_bytes(300));
        let threads = Arc::new(Threads::start(1).unwrap_or_else(|error| panic!("{error}")));
        let driver = Driver::new(Arc::new(decoder), threads, Box::new(|_| false), incoming, plan, memory);
        Self { driver, _requests: requests }
    }

    fn ask(&mut self, asker: Asker, prompt: &[u32], max_tokens: usize) -> Asked {
        let sampling = Sampling::greedy();
        self.ask_for(asker, prompt, max_tokens, &sampling, &Cancel::new())
    }

    fn ask_for(
        &mut self,
        asker: Asker,
        prompt: &[u32],
        max_tokens: usize,
        sampling: &Sampling,
        cancel: &Cancel,
    ) -> Asked {
        self.want(Wanted {
            asker,
            prompt: Zeroizing::new(prompt.to_vec()),
            max_tokens,
            sampler: Sampler::new(sampling.clone(), prompt),
            course: None,
            speculate: sampling.speculate,
            cancel: cancel.clone(),
        })
    }

    fn want(&mut self, wanted: Wanted) -> Asked {
        let (request, answer) = Request::new(wanted);
        assert!(request.wanted.bytes(&self.driver.plan) <= self.driver.memory.total());
        self.driver.waiting.push_back(request);
        Asked(answer)
    }

    /// One step. Gives who had how many rows in it: of prompts, and of answers.
    fn turn(&mut self) -> Vec<(Asker, usize, usize)> {
        self.driver.settle();
        let parts = self.driver.running.iter().map(|sequence| {
            let of_prompt = if sequence.is_reading() { sequence.part } else { 0 };
            (sequence.asker, of_prompt, sequence.part - of_prompt)
        });
        let parts = parts.collect();
        self.driver.step();
        parts
    }

    /// Until nothing is left to do. Gives how many tokens of prompts were computed.
    fn finish(&mut self) -> usize {
        let mut read = 0;
        for _ in 0..10_000 {
            read += self.turn().iter().map(|(_, of_prompt, _)| of_prompt).sum::<usize>();
            if self.driver.running.iter().all(|sequence| sequence.has_ended) && self.driver.waiting.is_empty() {
                self.driver.settle();
                return read;
            }
        }
        panic!("it does not come to an end");
    }
}

impl Asked {
    /// The tokens so far, and whether that is all.
    fn take(&self) -> (Vec<u32>, bool) {
        let mut ids = Vec::new();
        loop {
            match self.0.events.try_recv() {
                Ok(Event::Begun) => {}
                Ok(Event::Token(id, _)) => ids.push(id),
                Ok(_) => return (ids, true),
                Err(_) => return (ids, false),
            }
        }
    }
}

fn asker(customer: u8, tenant: u8) -> Asker {
    Asker { customer: [customer; 32], tenant: [tenant; 32], prefixes: None }
}

fn keeping(tenant: u8) -> Asker {
    Asker { prefixes: Some(PrefixScope([tenant; 32])), ..asker(tenant, tenant) }
}

fn prompt(first: u32, length: usize) -> Vec<u32> {
    (0..length as u32).map(|index| (first * 17 + index * 31) % 300 + 4).collect()
}

#[test]
fn a_flood_of_one_customer_holds_up_anothers_single_request_by_no_more_than_its_share() {
    let mut bench = Bench::with_room_for(40);
    let mut flood: Vec<Asked> = (0..1000)
        .map(|number| bench.ask(asker(1, number as u8 % 50), &prompt(number, 10 + number as usize % 2 * 190), 60))
        .collect();
    let mut most = 0;
    for _ in 0..100 {
        most = most.max(bench.turn().iter().map(|(.., of_answer)| of_answer).sum());
        flood.iter().for_each(|asked| drop(asked.take()));
    }
    assert!(bench.driver.waiting.len() > 500 && most > 20, "the flood fills what it may: {most} answers in a step");
    let single = bench.ask(asker(2, 2), &prompt(7, 200), 5);
    let (mut steps, mut read_for_others) = (0, 0);
    while single.take().0.is_empty() {
        let rows = bench.turn();
        let of_others = rows.iter().filter(|(asker, ..)| asker.customer == [1; 32]);
        read_for_others += of_others.map(|(_, of_prompt, _)| of_prompt).sum::<usize>();
        flood.iter().for_each(|asked| drop(asked.take()));
        steps += 1;
    }
    // It was begun at once, and got at least every second token of the prompts' part.
    assert!(steps <= 200 / (CHUNK_BESIDE_ANSWERS / 2) + 2, "{steps} steps");
    assert!(read_for_others <= 200 + PROMPT_CHUNK, "{read_for_others} tokens of others' prompts came first");
    flood.clear();
}

#[test]
fn beside_others_a_customers_answers_take_turns_in_a_part_of_each_step() {
    let mut bench = Bench::with_room_for(60);
    let many: Vec<Asked> = (0..40).map(|number| bench.ask(asker(1, 1), &prompt(number, 4), 200)).collect();
    while bench.driver.running.is_empty() || bench.driver.running.iter().any(Sequence::is_reading) {
        bench.turn();
    }
    let of = |customer: u8, rows: &[(Asker, usize, usize)]| -> usize {
        rows.iter().filter(|(asker, ..)| asker.customer == [customer; 32]).map(|(.., of_answer)| of_answer).sum()
    };
    assert_eq!(of(1, &bench.turn()), 40);
    let single = bench.ask(asker(2, 2), &prompt(9, 4), 50);
    bench.turn();
    drop(single.take());
    many.iter().for_each(|asked| drop(asked.take()));
    for _ in 0..40 {
        let rows = bench.turn();
        assert_eq!((of(1, &rows), of(2, &rows)), (ANSWERS_BESIDE_OTHERS, 1));
    }
    // 640 rows, in turn.
    assert!(many.iter().all(|asked| (14..=18).contains(&asked.take().0.len())));
}

#[test]
fn of_those_who_wait_the_customer_with_least_memory_begins_first() {
    let mut bench = Bench::with_room_for(4);
    let held: Vec<Asked> =
        (0..3).map(|number| bench.ask(asker(1, 1), &prompt(number, 270), 20 + number as usize)).collect();
    let other = bench.ask(asker(2, 2), &prompt(4, 100), 200);
    let earlier = bench.ask(asker(1, 1), &prompt(5, 100), 200);
    bench.turn();
    let later = bench.ask(asker(3, 3), &prompt(6, 200), 100);
    bench.turn();
    assert_eq!((bench.driver.running.len(), bench.driver.waiting.len()), (4, 2));
    while later.0.events.try_recv().is_err() {
        assert!(earlier.0.events.try_recv().is_err(), "who has most goes last");
        bench.turn();
    }
    drop((held, other));
}

#[test]
fn tenants_of_one_customer_share_in_turn_and_many_names_gain_nothing_against_another_key() {
    let mut bench = Bench::with_room_for(100);
    let mut asked: Vec<Asked> = (0..12).map(|number| bench.ask(asker(1, 1), &prompt(number, 250), 2)).collect();
    asked.push(bench.ask(asker(1, 2), &prompt(20, 250), 2));
    asked.extend((0..3).map(|number| bench.ask(asker(2, 3 + number), &prompt(number.into(), 250), 2)));
    let mut read: HashMap<u8, usize> = HashMap::new();
    for _ in 0..6 {
        for (asker, of_prompt, _) in bench.turn() {
            *read.entry(asker.tenant[0]).or_default() += of_prompt;
        }
    }
    let [busy, quiet, of_other] = [read[&1], read[&2], read[&3] + read[&4] + read[&5]];
    assert_eq!(busy + quiet + of_other, 6 * PROMPT_CHUNK);
    assert!((busy + quiet).abs_diff(of_other) <= SMALLEST_PART, "{busy} + {quiet}, {of_other}");
    assert!(busy.abs_diff(quiet) <= SMALLEST_PART, "{busy}, {quiet}");
}

#[test]
fn alone_a_customer_has_every_row_of_a_step_and_nearly_all_memory() {
    let mut bench = Bench::with_room_for(40);
    let asked: Vec<Asked> = (0..40).map(|number| bench.ask(asker(1, 1), &prompt(number, 4), 290)).collect();
    for _ in 0..20 {
        bench.turn();
        asked.iter().for_each(|asked| drop(asked.take()));
    }
    assert_eq!(bench.turn().iter().map(|(.., of_answer)| of_answer).sum::<usize>(), 30, "a quarter is left to others");
}

#[test]
fn what_does_not_fit_waits_and_all_memory_comes_back() {
    let mut bench = Bench::with_room_for(3);
    let asked: Vec<Asked> = (0..30)
        .map(|number| bench.ask(keeping(number as u8 % 4), &prompt(number, 20 + 9 * number as usize), 30))
        .collect();
    let page = bench.driver.decoder.kv_shape.page_bytes() as u64;
    let mut most = 0;
    for _ in 0..10_000 {
        bench.turn();
        let pages: usize = bench.driver.running.iter().map(|sequence| sequence.cache.len().div_ceil(64)).sum();
        let (taken, kept) = bench.driver.memory.in_use();
        assert!(pages as u64 * page <= taken && taken + kept <= bench.driver.memory.total());
        most = most.max(bench.driver.running.len());
        if bench.driver.running.is_empty() {
            break;
        }
    }
    assert!(asked.iter().all(|asked| {
        let (ids, whole) = asked.take();
        whole && ids.len() == 30
    }));
    assert!((2..30).contains(&most), "{most} at the same time");
    assert_eq!(bench.driver.memory.in_use().0, 0);
}

#[test]
fn a_cancelled_answer_gives_its_memory_to_the_next_before_the_next_step() {
    let mut bench = Bench::with_room_for(1);
    let cancel = Cancel::new();
    let _first = bench.ask_for(asker(1, 1), &prompt(1, 100), 200, &Sampling::greedy(), &cancel);
    bench.turn();
    let second = bench.ask(asker(1, 1), &prompt(2, 100), 200);
    bench.turn();
    assert_eq!(bench.driver.waiting.len(), 1);
    cancel.cancel();
    assert_eq!(bench.turn().len(), 1);
    assert!(bench.driver.waiting.is_empty() && matches!(second.0.next(), Event::Begun));
    // So does one that nobody reads any more.
    drop(second);
    bench.driver.settle();
    assert_eq!(bench.driver.memory.in_use().0, 0);
}

#[test]
fn an_answer_that_waits_for_its_form_has_memory_for_it_and_computes_nothing() {
    let mut bench = Bench::with_room_for(200);
    let one = bench.driver.plan.answer_bytes(140);
    let ask = |bench: &mut Bench| {
        let (sender, course) = std::sync::mpsc::sync_channel(1);
        let tokens = prompt(1, 100);
        let asked = bench.want(Wanted {
            asker: asker(1, 1),
            max_tokens: 40,
            sampler: Sampler::new(Sampling::greedy(), &tokens),
            prompt: Zeroizing::new(tokens),
            course: Some(course),
            speculate: false,
            cancel: Cancel::new(),
        });
        (sender, asked)
    };
    let (sender, asked) = ask(&mut bench);
    let rows = bench.turn();
    assert!(rows.iter().all(|(_, of_prompt, of_answer)| of_prompt + of_answer == 0) && rows.len() == 1);
    assert!(matches!(asked.0.next(), Event::Begun), "who asks may make the form ready");
    assert_eq!(bench.driver.memory.in_use().0, one + CONSTRAINT_BYTES as u64);
    // There is no such form.
    drop(sender);
    bench.driver.settle();
    bench.driver.settle();
    assert_eq!((bench.driver.running.len(), bench.driver.memory.in_use().0), (0, 0));

    let file =
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/demo-model/subrosa-intake.gguf")).unwrap();
    let tokenizer = crate::tokenizer::Tokenizer::load(&Header::parse(&file).unwrap()).unwrap();
    let vocabulary = Arc::new(crate::constraint::Vocabulary::new(&tokenizer).unwrap());
    let (sender, asked) = ask(&mut bench);
    bench.turn();
    sender.send(Course::new(&vocabulary, &crate::constraint::Form::JsonObject).unwrap()).unwrap();
    bench.finish();
    assert_eq!(tokenizer.bytes_of(asked.take().0[0]).first(), Some(&b'{'));
}

/// Tokens, and how many tokens of the prompt were computed for them.
fn answer(bench: &mut Bench, asker: Asker, prompt: &[u32], sampling: &Sampling) -> (Vec<u32>, usize) {
    let asked = bench.ask_for(asker, prompt, 40, sampling, &Cancel::new());
    let read = bench.finish();
    (asked.take().0, read)
}

#[test]
fn a_beginning_is_used_again_within_its_scope_and_computed_anew_in_another() {
    let mut bench = Bench::with_room_for(20);
    let long = prompt(3, 230);
    let (expected, read) = answer(&mut bench, asker(9, 9), &long, &Sampling::greedy());
    assert_eq!(read, 230);
    assert_eq!(answer(&mut bench, asker(9, 9), &long, &Sampling::greedy()), (expected.clone(), 230), "no scope");
    assert_eq!(answer(&mut bench, keeping(1), &long, &Sampling::greedy()), (expected.clone(), 230));
    assert_eq!(answer(&mut bench, keeping(1), &long, &Sampling::greedy()), (expected.clone(), 230 - 192));
    assert_eq!(answer(&mut bench, keeping(2), &long, &Sampling::greedy()), (expected.clone(), 230), "another tenant");
    let other_salt = Asker { prefixes: Some(PrefixScope([77; 32])), ..keeping(1) };
    assert_eq!(answer(&mut bench, other_salt, &long, &Sampling::greedy()), (expected.clone(), 230), "another scope");
    // The next turn of a conversation: the answer was kept as well.
    let next: Vec<u32> = long.iter().chain(&expected).chain(&[9, 8, 7]).copied().collect();
    assert_eq!(answer(&mut bench, keeping(1), &next, &Sampling::greedy()).1, next.len() - 256);
    bench.driver.memory.forget(bench.driver.model);
    assert_eq!(bench.driver.memory.in_use().1, 0);
    assert_eq!(answer(&mut bench, keeping(1), &long, &Sampling::greedy()), (expected, 230));
}

#[test]
fn answers_are_the_same_with_and_without_what_was_kept() {
    let sampled = Sampling { temperature: 0.8, seed: 5, ..Sampling::greedy() };
    let guessing = Sampling { speculate: true, ..Sampling::greedy() };
    let repeating: Vec<u32> = (0..200).map(|index| 4 + index % 9).collect();
    for sampling in [Sampling::greedy(), guessing, sampled] {
        let mut bench = Bench::with_room_for(20);
        // At each boundary of a page, a token before and a token after.
        for length in [63, 64, 65, 127, 128, 129, 192, 193, 200] {
            for tokens in [&prompt(1, 200)[..length], &repeating[..length]] {
                let (expected, _) = answer(&mut bench, asker(9, 9), tokens, &sampling);
                for _ in 0..2 {
                    assert_eq!(answer(&mut bench, keeping(1), tokens, &sampling).0, expected, "{length}");
                }
            }
        }
    }
}

#[test]
fn a_page_is_shared_while_the_one_that_computed_it_still_runs() {
    let guessing = Sampling { speculate: true, ..Sampling::greedy() };
    let repeating: Vec<u32> = (0..130).map(|index| 4 + index % 9).collect();
    let mut bench = Bench::with_room_for(20);
    let (expected, _) = answer(&mut bench, asker(9, 9), &repeating, &guessing);
    let first = bench.ask_for(keeping(1), &repeating, 40, &guessing, &Cancel::new());
    bench.turn();
    bench.turn();
    let second = bench.ask_for(keeping(1), &repeating, 40, &guessing, &Cancel::new());
    bench.turn();
    let shared = bench.driver.running.iter().map(|sequence| sequence.cache.full_pages()[0].bytes().as_ptr());
    assert_eq!(shared.collect::<std::collections::HashSet<_>>().len(), 1, "one page");
    assert_eq!(bench.driver.running.len(), 2);
    bench.finish();
    assert_eq!((first.take().0, second.take().0), (expected.clone(), expected));
}

#[test]
fn answers_push_out_what_is_only_kept() {
    let mut bench = Bench::with_room_for(2);
    for number in 0..4 {
        answer(&mut bench, keeping(number), &prompt(number.into(), 250), &Sampling::greedy());
    }
    let (taken, kept) = bench.driver.memory.in_use();
    assert!(taken == 0 && kept > bench.driver.memory.total() / 3);
    let asked: Vec<Asked> = (1..3).map(|number| bench.ask(asker(number, number), &prompt(9, 150), 140)).collect();
    assert_eq!(bench.turn().len(), 2, "neither waits");
    assert!(bench.driver.memory.in_use().1 <= bench.driver.memory.total() / 100);
    drop(asked);
}
