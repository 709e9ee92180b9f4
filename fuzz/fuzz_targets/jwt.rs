//! No token makes the gateway panic, and one that is accepted says what it must.
//!
//! The first line is a token as it stands in a header; the second and the rest are a header and claims that are
//! signed as they are, so that what is behind the signature is reached.

#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use hookbridge::fuzzing::{Documents, KEY_SET, signed_token, token};
use hookbridge_fuzz::{Vectors, line};
use libfuzzer_sys::fuzz_target;

/// The example of RFC 7517, appendix A.1.
const KEYS: &[u8] = include_bytes!("../data/jwks.json");

static DOCUMENTS: LazyLock<Documents> = LazyLock::new(|| Documents::new([(KEY_SET, KEYS)]));
static SECRETS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let all: Vec<String> = Vectors::read().secrets().into_values().flatten().collect();
    let public = all.iter().filter(|secret| secret.starts_with("-----BEGIN")).take(2).cloned();
    public.chain(all.iter().take(1).cloned()).collect()
});

fuzz_target!(|bytes: &[u8]| {
    let now = UNIX_EPOCH + Duration::from_secs(1_760_000_000);
    let (first, rest) = line(bytes);
    let secrets: Vec<&str> = SECRETS.iter().map(String::as_str).collect();
    token(first, &secrets, &DOCUMENTS, now);
    let (header, claims) = line(rest);
    signed_token(header, claims, now);
});
