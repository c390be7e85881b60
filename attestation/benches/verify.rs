//! What it costs to verify a document, on a generated one and, where the third-party vectors are, on a genuine one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "benchmark"
)]

#[path = "../tests/generated/mod.rs"]
mod generated;

use std::hint::black_box;
use std::time::Duration;

use attestation::Document;
use attestation::chain::{TrustAnchor, verify_signature};
use criterion::{Criterion, criterion_group, criterion_main};

fn verify(criterion: &mut Criterion) {
    let authority = generated::Authority::new();
    let bytes = authority.document(&generated::Fields::new());
    let anchor = TrustAnchor::danger_from_der(authority.root()).unwrap();
    measure(criterion, "generated", &bytes, &anchor);
    if let Some(folder) = vectors::folder() {
        let bytes = std::fs::read(folder.join("attestation/dstack-2025-12-indef.bin")).unwrap();
        measure(criterion, "genuine", &bytes, &TrustAnchor::aws());
    }
}

fn measure(criterion: &mut Criterion, name: &str, bytes: &[u8], anchor: &TrustAnchor) {
    let mut group = criterion.benchmark_group("attestation document");
    group.bench_function(format!("parse/{name}"), |bencher| {
        bencher.iter(|| Document::parse(black_box(bytes)).unwrap());
    });
    group.bench_function(format!("parse and verify signature and chain/{name}"), |bencher| {
        bencher.iter(|| {
            let document = Document::parse(black_box(bytes)).unwrap();
            verify_signature(&document, anchor, document.timestamp(), Duration::ZERO).unwrap()
        });
    });
    group.finish();
}

criterion_group!(benches, verify);
criterion_main!(benches);
