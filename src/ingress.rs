//! In: from HTTP to a JetStream subject.
//!
//! A request is received within limits ([`receive`]), verified on its raw bytes, turned into an event and
//! published; the sender gets a 2xx only after the stream confirmed. Nobody can answer that without holding
//! what the stream said.

mod answer;
mod budget;
mod dedupe;
mod peer;
mod peer_rate;
mod publish;
mod receive;
mod source;
mod source_limits;

use std::sync::Arc;

use axum::Router;
use axum::routing::any;

use crate::broker::Broker;
use crate::clock::Clock;
use crate::config::Config;
use crate::listener;
use crate::secret::{KeyError, Reload};
use crate::telemetry::Metrics;

use receive::Receiver;
pub(crate) use source::Sources;

/// The routes of the gateway. Answers every request to them, and every other one with 404.
pub(crate) fn router(config: &Config, broker: Broker, sources: Sources, clock: Clock, metrics: Metrics) -> Router {
    let receiver = Arc::new(Receiver::new(config, broker, sources, clock, metrics));
    Router::new()
        .route("/hooks/{source}", any(receive::hook))
        .route("/hooks/{source}/{token}", any(receive::hook))
        .fallback(receive::nowhere)
        .with_state(receiver)
}

/// The limits of the gateway's listener.
pub(crate) fn limits(config: &Config) -> listener::Limits {
    let gateway = &config.gateway;
    let max_headers = usize::try_from(gateway.max_headers.as_u64()).unwrap_or(usize::MAX);
    listener::Limits { connections: gateway.max_connections, header_timeout: gateway.header_timeout, max_headers }
}

/// Everything that SIGHUP reads again for this role.
pub(crate) fn secrets(sources: &Sources) -> Vec<Arc<dyn Reload>> {
    sources.secrets()
}

/// Prepares the configured sources; the error names the one whose secrets cannot be used.
pub(crate) fn sources(config: &Config, metrics: &Metrics) -> Result<Sources, (String, KeyError)> {
    Sources::new(config, metrics)
}
