//! NATS: the only user of the client library.
//!
//! A [`Broker`] exists from the start, whether or not a server does. Its [`Link`] says what can be done now;
//! everything that needs the server fails fast while the link is down, and recovers without being asked.

mod batch;
mod bucket;
mod cluster;
mod connect;
mod consume;
mod counts;
mod health;
mod history;
mod identity;
mod line;
mod links;
mod names;
mod probe;
mod provision;
mod publish;
mod pull;
mod raw;
mod read;
mod readable;
mod scan;
mod seen;
mod side;
mod state;
mod tasks;
mod unreadable;
mod visit;

pub(crate) use batch::{BATCH_HEADERS, BatchError};
pub(crate) use cluster::{ClusterNotes, affected_note, can_lose_streams, leaderless_note};
pub(crate) use connect::Broker;
pub(crate) use consume::{BODY_BYTES, Consumer, Received, Slot};
pub(crate) use counts::Counts;
pub(crate) use health::Need;
pub(crate) use history::Glimpse;
pub(crate) use links::{Links, Role};
pub(crate) use names::{Names, TASKS_STREAM};
pub(crate) use provision::{COURIER, Plan, Problem};
pub(crate) use publish::{Outgoing, PublishError, Schedule, Stored};
pub(crate) use read::{Fill, ReadError, StoredMessage};
pub(crate) use scan::Floors;
pub(crate) use state::Link;
pub(crate) use tasks::News;
pub(crate) use unreadable::{Burial, Bury, Unreadable};
pub(crate) use visit::{Seen, Server, Visitor};

use async_nats::{HeaderMap, HeaderName, HeaderValue};

use crate::event::Headers;

/// Turns headers into the library's form. A value that NATS cannot carry is left out: it never comes from
/// Hookbridge itself, and from outside only what passed a check gets here.
fn to_nats(headers: &Headers) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (index, (text, value)) in headers.iter().enumerate() {
        if let (Some(name), Ok(value)) = (header_name(text), value.parse::<HeaderValue>()) {
            // Appending looks for the name twice, and most names are there once.
            if headers.iter().take(index).any(|(before, _)| before == text) {
                map.append(name, value);
            } else {
                map.insert(name, value);
            }
        }
    }
    map
}

/// The names that every event has are made once, at compile time.
fn header_name(name: &str) -> Option<HeaderName> {
    Some(match name {
        "ce-specversion" => const { HeaderName::from_static("ce-specversion") },
        "ce-id" => const { HeaderName::from_static("ce-id") },
        "ce-source" => const { HeaderName::from_static("ce-source") },
        "ce-type" => const { HeaderName::from_static("ce-type") },
        "ce-time" => const { HeaderName::from_static("ce-time") },
        "ce-datacontenttype" => const { HeaderName::from_static("ce-datacontenttype") },
        "traceparent" => const { HeaderName::from_static("traceparent") },
        other => other.parse().ok()?,
    })
}

/// Whether NATS can carry a header.
pub(crate) fn can_carry(name: &str, value: &str) -> bool {
    name.parse::<HeaderName>().is_ok() && value.parse::<HeaderValue>().is_ok()
}

/// Turns the library's headers into ours.
fn from_nats(map: &HeaderMap) -> Headers {
    let values = |(name, values): (&HeaderName, &Vec<HeaderValue>)| {
        let name = name.to_string();
        values.iter().map(move |value| (name.clone().into(), value.as_str().to_owned())).collect::<Vec<_>>()
    };
    map.iter().flat_map(values).collect()
}
