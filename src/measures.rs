//! The pure parts of the hot path, each as a call that does it once: for `bench/verify`, which builds with the feature
//! `measures`, and for the tests here. No other build has this module.
//!
//! A call says whether it did what it should. What it works on is made before it is measured.

pub use crate::egress::measures::{
    apply_an_update, decide_a_retry, make_a_request, route_a_message, understand_a_message,
};
pub use crate::ingress::measures::name_an_event;

#[cfg(test)]
mod tests {
    #[test]
    fn every_part_does_what_is_measured() {
        assert!(super::name_an_event()());
        assert!(super::understand_a_message()());
        assert!(super::route_a_message()());
        assert!(super::make_a_request()());
        assert!(super::decide_a_retry()());
        assert!(super::apply_an_update()());
    }
}
