//! What Hookbridge promises, through the doors that its users have: real sockets, a real nats-server.
//!
//! One file per promise. No test sleeps: it waits for the event, with a deadline.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod harness;

mod a2a;
mod addresses_of_a_host;
mod answers;
mod architecture;
mod authorization;
mod batches;
mod captured_responses;
mod changing_names;
mod cluster;
mod command_line;
mod control;
mod dead_letter_replay;
mod dedupe_over_restarts;
mod deliveries;
mod descriptors;
mod destination_tls;
mod endpoints_at_run_time;
mod events;
mod examples;
mod explain;
mod fan_out;
mod filters_and_limits_of_a_source;
mod forgeries;
mod group_commit;
mod handshakes;
mod hostile_receivers;
mod hostile_requests;
mod hostile_urls;
mod isolation;
mod kept_connections;
mod keys_at_addresses;
mod kills;
mod leaving;
mod limits;
mod odd_answers;
mod ordered;
mod outages;
mod outbox;
mod payloads;
mod pulls;
mod quarantine;
mod readiness;
mod receipts_lost;
mod refused_addresses;
mod repair;
mod replay;
mod retry_after;
mod reused_connections;
mod several_couriers;
mod several_sweeps;
mod shutdown;
mod signatures;
mod source_limits;
mod starting;
mod store_lost;
mod tasks;
mod traces;
mod unreadable_messages;
mod vectors;
