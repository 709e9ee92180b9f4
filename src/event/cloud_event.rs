//! The headers of an event: CloudEvents, NATS protocol binding, binary content mode.

use std::borrow::Cow;
use std::time::SystemTime;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::{Headers, trace};
use crate::clock::rfc3339;

/// What the HTTP binding encodes, and the NATS binding with it: controls, blank, quote, percent and all
/// that is not ASCII (CloudEvents HTTP protocol binding, section 3.1.3.2).
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// The attributes of one event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CloudEvent<'a> {
    pub(crate) id: &'a str,
    /// `/hooks/<source>`, or whatever else it came from.
    pub(crate) source: &'a str,
    /// The provider's own word for it; `None` is `unknown`, as in the subject.
    pub(crate) event_type: Option<&'a str>,
    pub(crate) received: SystemTime,
    pub(crate) content_type: Option<&'a str>,
}

impl CloudEvent<'_> {
    /// The headers `ce-…`, each value percent-encoded as the binding says, and the trace context.
    pub(crate) fn headers(&self, trace: &trace::Context) -> Headers {
        let mut headers = Headers::with_capacity(12);
        headers.push("ce-specversion", "1.0");
        headers.push("ce-id", encode(self.id));
        headers.push("ce-source", encode(self.source));
        headers.push("ce-type", encode(self.event_type.unwrap_or("unknown")));
        headers.push("ce-time", rfc3339(self.received));
        if let Some(content_type) = self.content_type {
            headers.push("ce-datacontenttype", encode(content_type));
        }
        trace.write(&mut headers);
        headers
    }
}

fn encode(value: &str) -> Cow<'_, str> {
    utf8_percent_encode(value, ENCODED).into()
}

/// The value of a `ce-…` header. What is not UTF-8 after decoding is replaced, as the binding says.
pub(crate) fn decode(value: &str) -> String {
    percent_decode_str(value).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_percent_encoded_as_the_binding_says() {
        assert_eq!(encode("application/json; charset=\"utf-8\""), "application/json;%20charset=%22utf-8%22");
        assert_eq!(encode("Euro € 100%"), "Euro%20%E2%82%AC%20100%25");
        assert_eq!(encode("a\r\nb"), "a%0D%0Ab");
        assert_eq!(encode("issues.opened"), "issues.opened");
    }

    #[test]
    fn a_value_is_decoded_to_what_was_encoded() {
        for value in ["issues.opened", "Euro € 100%", "a\r\nb \"c\""] {
            assert_eq!(decode(&encode(value)), value);
        }
        assert_eq!(decode("%ff"), "\u{fffd}");
    }
}
