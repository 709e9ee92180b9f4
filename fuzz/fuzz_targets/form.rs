//! A form is read as another reader reads it, and signed as Twilio signs it: nothing is lost or made up. The same
//! bytes are read as the parts of a multipart form, too.

#![no_main]

use hookbridge::fuzzing::form;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    if let Some(form) = form("multipart/form-data; boundary=XX", body) {
        assert!(form.fields.len() <= 1_000);
        assert_eq!(form.signed, signed(form.fields));
    }
    if let Some(form) = form("application/x-www-form-urlencoded", body) {
        let others: Vec<(String, String)> = url::form_urlencoded::parse(body).into_owned().collect();
        assert_eq!(form.fields, others);
        assert_eq!(form.signed, signed(others));
    }
});

fn signed(mut fields: Vec<(String, String)>) -> String {
    fields.sort();
    fields.dedup();
    fields.into_iter().flat_map(|(name, value)| [name, value]).collect()
}
