//! Out to addresses that somebody else chose: the address guard, the HTTP client behind it, and the
//! documents that are fetched with it.
//!
//! Agents name the URLs of deliveries, senders those of certificates and confirmations; neither may make
//! Hookbridge talk to its own network. Both roles go out through here, so there is one guard to get right.
//! Only the operator's own servers, a collector or the gateway of `hookbridge send`, are reached without it.

mod addresses;
mod aged;
mod cache;
mod client;
mod connect;
mod fetch;
mod guard;
mod head;
mod hosts;
#[cfg(test)]
mod loopback;
mod own;
mod ports;
mod resolve;
mod shelf;
mod target;

pub(crate) use cache::Cache;
pub(crate) use client::{AGENT, Answer, Cause, Client, ClientOptions};
pub(crate) use fetch::{FETCH_TIMEOUT, Fetcher};
pub(crate) use guard::Guard;
pub(crate) use target::{public_url, request_target};
