//! The W3C trace context, as text, on its way through.

use data_encoding::HEXLOWER;

use super::Headers;

/// `traceparent` and `tracestate` of <https://www.w3.org/TR/trace-context/>.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// `00-<trace id>-<span id>-<flags>`
    pub traceparent: String,
    /// Vendors' own part, passed on untouched.
    pub tracestate: Option<String>,
}

/// The most bytes of `tracestate` that are passed on; the specification asks for at least 512.
const MAX_TRACESTATE_BYTES: usize = 2048;

impl Context {
    /// Takes the two values if they are well-formed. A malformed `traceparent` counts as none.
    pub fn parse(traceparent: Option<&str>, tracestate: Option<&str>) -> Option<Self> {
        let traceparent = traceparent.filter(|text| is_traceparent(text))?.to_owned();
        let plain =
            |text: &&str| text.len() <= MAX_TRACESTATE_BYTES && text.bytes().all(|b| (b' '..=b'~').contains(&b));
        Some(Self { traceparent, tracestate: tracestate.filter(plain).map(str::to_owned) })
    }

    /// The context that a message's headers carry.
    pub fn read(headers: &Headers) -> Option<Self> {
        Self::parse(headers.get("traceparent"), headers.get("tracestate"))
    }

    /// A new trace that nobody records, so that its messages can still be told apart and joined.
    pub fn fresh() -> Self {
        let (trace, span) = (rand::random::<u128>().max(1), rand::random::<u64>().max(1));
        let mut traceparent = String::with_capacity(55);
        traceparent.push_str("00-");
        HEXLOWER.encode_append(&trace.to_be_bytes(), &mut traceparent);
        traceparent.push('-');
        HEXLOWER.encode_append(&span.to_be_bytes(), &mut traceparent);
        traceparent.push_str("-00");
        Self { traceparent, tracestate: None }
    }

    /// Adds the context to a message's headers.
    pub fn write(&self, headers: &mut Headers) {
        headers.push("traceparent", self.traceparent.as_str());
        if let Some(tracestate) = &self.tracestate {
            headers.push("tracestate", tracestate.as_str());
        }
    }
}

/// Version 00 to the letter; of later versions the first four fields, as the specification asks.
fn is_traceparent(text: &str) -> bool {
    let is_hex = |part: &str, length| {
        part.len() == length && part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let mut parts = text.splitn(5, '-');
    let mut next = |length| parts.next().filter(|part| is_hex(part, length));
    let (Some(version), Some(trace), Some(span), Some(_)) = (next(2), next(32), next(16), next(2)) else {
        return false;
    };
    let known = trace.bytes().any(|byte| byte != b'0') && span.bytes().any(|byte| byte != b'0');
    let plain = text.len() <= 512 && text.bytes().all(|byte| byte.is_ascii_graphic());
    known && version != "ff" && plain && (parts.next().is_none() || version != "00")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_well_formed_context_passes_untouched() {
        let context = Context::parse(Some(GOOD), Some("vendor=1")).unwrap();
        assert_eq!((context.traceparent.as_str(), context.tracestate.as_deref()), (GOOD, Some("vendor=1")));
    }

    #[test]
    fn a_malformed_context_counts_as_none() {
        for bad in [
            "",
            "00-x",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-\0",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-\r\na: b",
        ] {
            assert_eq!(Context::parse(Some(bad), None), None, "{bad}");
        }
        assert_eq!(Context::parse(Some(GOOD), Some("a\r\nb")).unwrap().tracestate, None);
    }

    #[test]
    fn a_fresh_context_is_well_formed_and_not_sampled() {
        let fresh = Context::fresh();
        assert!(is_traceparent(&fresh.traceparent) && fresh.traceparent.ends_with("-00"), "{fresh:?}");
    }
}
