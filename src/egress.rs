//! Out: from the outbox to HTTP.
//!
//! The [`courier`] takes messages, and a [`worker`] understands ([`intake`]) and routes ([`route`]) them. A
//! [`delivery`] is attempted ([`send`]) and decided upon ([`retry`]); then comes a receipt, the next attempt's
//! schedule, or a dead letter, and only then the ack. Waiting is the stream's job: a restart forgets nothing and no task sleeps for an hour.

mod alarm;
mod authorization;
mod breaker;
mod buried;
mod capture;
pub(crate) mod control;
mod courier;
mod dead_letter;
mod delivery;
mod destination;
mod gate;
mod held;
mod holds;
mod inquiry;
mod intake;
mod interest;
mod ledger;
mod line;
mod link;
mod load;
#[cfg(any(feature = "measures", test))]
pub(crate) mod measures;
mod outbox_message;
mod pace;
mod payload;
mod pointer;
mod reason;
mod receipt;
mod registry;
mod release;
mod repair;
mod repairs;
mod replay;
mod retry;
mod route;
mod seal;
mod send;
mod signer;
mod standing;
mod sweep;
mod task;
mod tell;
mod turns;
mod unreadable;
mod untold;
mod waiting;
mod worker;

pub(crate) use buried::Buried;
pub(crate) use courier::Courier;
pub(crate) use inquiry::{Delivered, Found, inquire};
#[cfg(any(fuzzing, test))]
pub(crate) use intake::understood_id;
pub(crate) use registry::Registry;
pub(crate) use repair::{Page as RepairPage, Repair, Repaired};
pub(crate) use replay::Origin;
pub(crate) use unreadable::UnreadableRecorder;
