//! NATS: the only user of the client library.
//!
//! A [`Broker`] exists from the start, whether or not a server does. Its [`Link`] says what can be done now;
//! everything that needs the server fails fast while the link is down, and recovers without being asked.

mod bucket;
mod connect;
mod consume;
mod links;
mod names;
mod provision;
mod publish;
mod read;
mod state;
mod unreadable;
mod visit;

pub(crate) use bucket::BucketError;
pub(crate) use connect::Broker;
pub(crate) use consume::{Consumer, Received};
pub(crate) use links::{Links, Role};
pub(crate) use names::Names;
pub(crate) use provision::{COURIER, Plan, Problem};
pub(crate) use publish::{Outgoing, PublishError, Schedule, Stored};
pub(crate) use read::{ReadError, StoredMessage};
pub(crate) use state::Link;
pub(crate) use unreadable::Unreadable;
pub(crate) use visit::{Seen, Server, Visitor};

use crate::event::Headers;

/// Turns headers into the library's form. A value that NATS cannot carry is left out: it never comes from
/// Hookbridge itself, and from outside only what passed a check gets here.
fn to_nats(headers: Headers) -> async_nats::HeaderMap {
    let mut map = async_nats::HeaderMap::new();
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) =
            (name.parse::<async_nats::HeaderName>(), value.parse::<async_nats::HeaderValue>())
        {
            map.append(name, value);
        }
    }
    map
}

/// Whether NATS can carry a header.
pub(crate) fn can_carry(name: &str, value: &str) -> bool {
    name.parse::<async_nats::HeaderName>().is_ok() && value.parse::<async_nats::HeaderValue>().is_ok()
}

/// Turns the library's headers into ours.
fn from_nats(map: &async_nats::HeaderMap) -> Headers {
    let values = |(name, values): (&async_nats::HeaderName, &Vec<async_nats::HeaderValue>)| {
        let name = name.to_string();
        values.iter().map(move |value| (name.clone().into(), value.as_str().to_owned())).collect::<Vec<_>>()
    };
    map.iter().flat_map(values).collect()
}
