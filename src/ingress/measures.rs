//! What a gateway does with a genuine webhook before it publishes: see `crate::measures`.

use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::publish::events;
use super::source::Sources;
use crate::config::{self, Layers};
use crate::event::{Request, trace};
use crate::telemetry::Metrics;

const CONFIGURATION: &str = "[sources.github]\npreset = 'github'\nsecrets = ['plain:s3cret']\n";

/// A webhook of 1 KB to its id, its subject and its CloudEvents headers.
pub fn name_an_event() -> impl Fn() -> bool {
    let config = config::load(&Layers { builtin: Some(("measures", CONFIGURATION)), ..Layers::default() });
    let sources = Sources::new(&config.expect("it is valid"), &Metrics::new()).expect("the secret is there");
    let headers = HeaderMap::from_iter(
        [
            ("content-type", "application/json"),
            ("x-github-event", "push"),
            ("x-github-delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958"),
        ]
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))),
    );
    let (body, trace) = (Bytes::from(format!("{{\"pad\": \"{}\"}}", "x".repeat(1012))), trace::Context::fresh());
    move || {
        let request = Request::new(&Method::POST, "", None, &headers, &body);
        let named = sources.get("github").map(|source| events(source, &request, &body, SystemTime::UNIX_EPOCH, &trace));
        matches!(named, Some(Ok(named)) if named.events.len() == 1)
    }
}
