//! A trace context that is handed on is one that can be written into a header, and is read back as it was.
//!
//! The first line is `traceparent`, the rest `tracestate`.

#![no_main]

use hookbridge::fuzzing::trace;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (parent, state) = text.split_once('\n').unwrap_or((text, ""));
    if let Some((handed_on, _)) = trace(parent, state) {
        assert_eq!(handed_on, parent);
    }
});
