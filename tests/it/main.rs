//! What Hookbridge promises, through the doors that its users have: real sockets, a real nats-server.
//!
//! One file per promise. No test sleeps: it waits for the event, with a deadline.

mod harness;

mod answers;
mod deliveries;
mod events;
mod fan_out;
mod limits;
mod outages;
mod outbox;
mod refused_addresses;
mod shutdown;
mod vectors;
