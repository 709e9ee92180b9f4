//! No document at an address makes the gateway panic: certificates in PEM and DER, and key sets. The keys in it
//! accept no nonsense.

#![no_main]

use hookbridge::fuzzing::document;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    document(bytes);
});
