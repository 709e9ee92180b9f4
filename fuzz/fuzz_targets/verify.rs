//! No request, to no preset, makes the gateway panic, hang or answer without measure: handshakes, verification,
//! naming and batches, with secrets that are known and requests that are genuine among the first inputs.

#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use hookbridge::event::Request;
use hookbridge::fuzzing::{Documents, Source};
use hookbridge::signature::preset;
use hookbridge_fuzz::{ENDPOINT, Input, Vectors};
use libfuzzer_sys::fuzz_target;

/// Secrets for presets of which no request is known.
const SECRETS: [&str; 4] =
    ["user:password", "secret", "c3d7c48ab0ca492e1b182da0706a22fdcc702c30bba93970082380b7b508b24d", "aGVsbG8gd29ybGQh"];

struct Gateway {
    sources: BTreeMap<&'static str, Source>,
    documents: Documents,
}

static GATEWAY: LazyLock<Gateway> = LazyLock::new(|| {
    let vectors = Vectors::read();
    let known = vectors.secrets();
    let others: Vec<&str> = known.values().flatten().map(String::as_str).collect();
    let source = |name: &'static str| {
        let own = known.get(name).into_iter().flatten().map(String::as_str);
        Some((name, Source::new(name, own.chain(SECRETS).chain(others.iter().copied()))?))
    };
    let documents = vectors.documents();
    let documents = Documents::new(documents.iter().map(|(url, text)| (url.as_str(), text.as_bytes())));
    Gateway { sources: preset::names().filter_map(source).collect(), documents }
});

fuzz_target!(|bytes: &[u8]| {
    let Some(input) = Input::read(bytes) else { return };
    // Any other name stands for some preset too, so that a changed name is a changed preset.
    let sum = input.preset.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    let sources = &GATEWAY.sources;
    let source = sources.get(input.preset).or_else(|| sources.values().nth(sum % sources.len()));
    let source = source.expect("there are presets");
    let request = Request::new(&input.method, ENDPOINT, input.query, &input.headers, input.body);
    source.receive(&request, input.now, &GATEWAY.documents);
});
