//! No message of an agent makes the courier panic, and each gets an id that is safe as a subject token.
//!
//! The first line is the subject, then come headers, then a line without a colon, then the payload.

#![no_main]

use hookbridge::fuzzing::outbox;
use hookbridge_fuzz::line;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (subject, mut rest) = line(bytes);
    let Ok(subject) = std::str::from_utf8(subject) else { return };
    let mut headers = Vec::new();
    loop {
        let (header, after) = line(rest);
        rest = after;
        let Some((name, value)) = std::str::from_utf8(header).ok().and_then(|text| text.split_once(':')) else { break };
        headers.push((name, value.trim()));
    }
    outbox(subject, &headers, rest);
});
