//! Out: from the outbox to HTTP.
//!
//! A message is understood ([`intake`]), routed ([`route`]), attempted ([`send`]) and decided upon ([`retry`]);
//! the [`courier`] acts on the decision by acking, by scheduling the next attempt in the stream, or by writing
//! a dead letter. Waiting is the stream's job: a restart forgets nothing and no task sleeps for an hour.

mod courier;
mod dead_letter;
mod destination;
mod endpoint_state;
mod guard;
mod held;
mod intake;
mod ledger;
mod pointer;
mod reason;
mod receipt;
mod retry;
mod route;
mod send;

pub(crate) use courier::Courier;
pub(crate) use destination::Destinations;
