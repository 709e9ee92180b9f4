//! Hookbridge, the bridge between HTTP webhooks and AI agents on NATS.
//!
//! Two roles share nothing but the streams: the **gateway** verifies incoming webhooks and publishes them to
//! JetStream ([`ingress`]), the **courier** turns agents' outbox messages into signed outbound webhooks
//! ([`egress`]). What travels is in [`event`]; how requests prove themselves in [`signature`]; everything that
//! talks to NATS in [`broker`]; what an operator can say in [`config`]; small changes to a body in [`transform`];
//! work that is delegated to agents in [`task`]. [`app`] puts the parts together, and [`cli`] is the command line.
//!
//! ARCHITECTURE.md has the map, the invariants, and who may import whom.

mod admin;
pub mod app;
mod broker;
pub mod cli;
pub mod clock;
pub mod config;
mod demo;
mod descriptors;
mod egress;
pub mod event;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod ingress;
mod lifecycle;
mod listener;
#[cfg(any(feature = "measures", test))]
pub mod measures;
mod outbound;
pub mod secret;
pub mod signature;
mod task;
mod telemetry;
mod tls;
pub mod transform;
