//! No timestamp makes the gateway panic, and one that is accepted is within the tolerance, as another reader of
//! numbers reads it.

#![no_main]

use std::time::{Duration, UNIX_EPOCH};

use hookbridge::fuzzing::timestamp;
use libfuzzer_sys::fuzz_target;

const NOW: u64 = 1_760_000_000;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let now = UNIX_EPOCH + Duration::from_secs(NOW);
    for (unit, scale) in [("s", 1), ("ms", 1000)] {
        let near = text.parse::<u64>().is_ok_and(|sent| sent.abs_diff(NOW * scale) <= 300 * scale);
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        assert_eq!(timestamp(unit, text, now), near && digits && text.len() <= 40, "{unit} {text}");
    }
    if timestamp("rfc3339", text, now) {
        // Five minutes around 2025-10-09T08:53:20Z; with an offset it is at most a day and a minute away.
        assert!(["2025-10-08", "2025-10-09", "2025-10-10"].iter().any(|day| text.starts_with(day)), "{text}");
    }
});
