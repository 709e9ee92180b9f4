//! Out to addresses that somebody else chose: the address guard, and the HTTP client behind it.
//!
//! Agents name the URLs of deliveries, senders those of certificates and confirmations; neither may make
//! Hookbridge talk to its own network. Both roles go out through here, so there is one guard to get right.
//! What the operator names, a collector or the gateway of `hookbridge send`, goes through [`crate::tls`] instead.

mod client;
mod guard;
mod target;

pub(crate) use client::{AGENT, Cause, Client};
pub(crate) use guard::Guard;
pub(crate) use target::{public_url, request_target};
