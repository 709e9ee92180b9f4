//! In: from HTTP to a JetStream subject.
//!
//! A request is received within limits ([`receive`]), verified on its raw bytes, turned into an event and
//! published; the sender gets a 2xx only after the stream confirmed. Nobody can answer that without holding
//! what the stream said.

mod answer;
mod budget;
mod capture;
mod dedupe;
mod gather;
#[cfg(any(feature = "measures", test))]
pub(crate) mod measures;
mod peer;
mod peer_rate;
mod publish;
mod publisher;
mod quarantine;
mod receive;
mod shake;
mod source;
mod source_limits;
mod tasks;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::broker::Broker;
use crate::clock::Clock;
use crate::config::{Config, Durability};
use crate::listener;
use crate::outbound::{Cache, FETCH_TIMEOUT, Fetcher, Guard};
use crate::secret::{KeyError, Reload};
use crate::signature::Document;
use crate::telemetry::Metrics;

pub(crate) use publisher::{Gatherer, Publisher};
pub(crate) use quarantine::Quarantine;
use receive::Receiver;
pub(crate) use source::Sources;
pub(crate) use tasks::Clients;

/// What the gateway works with.
pub(crate) struct Parts {
    pub(crate) broker: Broker,
    pub(crate) publisher: Publisher,
    pub(crate) sources: Sources,
    pub(crate) clients: Clients,
    pub(crate) keys: Keys,
    pub(crate) quarantine: Quarantine,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    /// Ends what would last until a client goes.
    pub(crate) stop: CancellationToken,
}

/// The routes of the gateway. Answers every request to them, and every other one with 404.
pub(crate) fn router(config: &Config, parts: Parts) -> Router {
    let (clients, stop) = (parts.clients.clone(), parts.stop.clone());
    let receiver = Arc::new(Receiver::new(config, parts));
    let tasks = tasks::router(tasks::Desk::new(config, clients, receiver.clone(), stop));
    Router::new()
        .route("/hooks/{source}", any(receive::hook))
        .route("/hooks/{source}/{token}", any(receive::hook))
        .fallback(receive::nowhere)
        .with_state(receiver)
        .merge(tasks)
}

/// What is fetched for a request: keys that stand at an address, and URLs that confirm a subscription.
#[derive(Clone)]
pub(crate) struct Keys {
    documents: Cache<Document>,
    fetcher: Fetcher,
}

/// Prepares the fetching of keys; `prepared` are addresses that need not be asked.
pub(crate) fn keys(config: &Config, clock: Clock, prepared: &[(Url, Vec<u8>)]) -> Result<Keys, rustls::Error> {
    let fetcher = Fetcher::new(Guard::new(&config.egress), FETCH_TIMEOUT)?.prepared_for(prepared);
    Ok(Keys { documents: Cache::new(fetcher.clone(), clock, Document::parse), fetcher })
}

/// How long an idle connection stays open at the most after the port was closed.
const DRAIN_IDLE: Duration = Duration::from_millis(500);

/// The limits of the gateway's listener; `connections` are as many as fit the process.
pub(crate) fn limits(config: &Config, connections: usize) -> listener::Limits {
    let gateway = &config.gateway;
    listener::Limits {
        connections,
        header_timeout: gateway.header_timeout,
        idle_timeout: gateway.idle_timeout,
        // The requests that come meanwhile have to be answered within the same grace.
        drain_idle: DRAIN_IDLE.min(config.shutdown_grace / 4),
        max_headers: usize::try_from(gateway.max_headers.as_u64()).unwrap_or(usize::MAX),
    }
}

/// How events are published: by the way in which the server syncs.
pub(crate) fn publisher(
    config: &Config,
    broker: Broker,
    metrics: Metrics,
    clock: Clock,
) -> (Publisher, Option<Gatherer>) {
    match config.nats.durability {
        Durability::Periodic => (Publisher::single(broker), None),
        Durability::Synced => {
            let (publisher, gatherer) = Publisher::gathering(broker, metrics, clock);
            (publisher, Some(gatherer))
        }
    }
}

/// Everything that SIGHUP reads again for this role.
pub(crate) fn secrets(sources: &Sources) -> Vec<Arc<dyn Reload>> {
    sources.secrets()
}

/// Prepares the configured sources; the error names the one whose secrets cannot be used.
pub(crate) fn sources(config: &Config, metrics: &Metrics) -> Result<Sources, (String, KeyError)> {
    Sources::new(config, metrics)
}
