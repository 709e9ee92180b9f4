//! A form is read as another reader reads it, and signed as Twilio signs it: nothing is lost or made up.

#![no_main]

use hookbridge::fuzzing::form;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let Some(form) = form(body) else { return };
    let others: Vec<(String, String)> = url::form_urlencoded::parse(body).into_owned().collect();
    assert_eq!(form.fields, others);
    let mut sorted = others;
    sorted.sort();
    sorted.dedup();
    let expected: String = sorted.into_iter().flat_map(|(name, value)| [name, value]).collect();
    assert_eq!(form.signed, expected);
});
