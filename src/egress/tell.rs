//! Telling the other couriers, and people, which breakers are open: one key of the bucket for each that is.
//!
//! Every process decides for itself. What it hears from another spares it from finding out by attempts of its own.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::breaker::{Change, Opened};
use super::gate::Gates;
use super::worker::Worker;
use crate::clock::rfc3339;
use crate::telemetry::metrics::DestinationLabels;

/// What the keys begin with; the destination's token follows.
const PREFIX: &str = "breaker.";
/// How long changes are gathered: no destination is told of more often.
const EVERY: Duration = Duration::from_secs(1);
/// So many keys are written at once.
const CHUNK: usize = 64;

/// What the bucket says of an open breaker.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    state: State,
    /// When the destination is tried again.
    until: String,
    open_for_ms: u64,
    at: String,
    /// The process that found out.
    by: String,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Open,
}

impl Record {
    fn new(opened: Opened, at: SystemTime, by: &str) -> Self {
        let open_for_ms = u64::try_from(opened.length.as_millis()).unwrap_or(u64::MAX);
        Self { state: State::Open, until: rfc3339(opened.until), open_for_ms, at: rfc3339(at), by: by.to_owned() }
    }

    fn opened(&self) -> Option<Opened> {
        let until = humantime::parse_rfc3339(&self.until).ok()?;
        Some(Opened { until, length: Duration::from_millis(self.open_for_ms) })
    }
}

impl Worker {
    /// Tells of breakers that changed, until stopped.
    pub(super) async fn tell_breakers(&self, stop: &CancellationToken) {
        while stop.run_until_cancelled(self.gates.news().changed.notified()).await.is_some() {
            stop.run_until_cancelled(tokio::time::sleep(EVERY)).await;
            let changes: Vec<_> = self.gates.changes().into_iter().collect();
            for chunk in changes.chunks(CHUNK) {
                join_all(chunk.iter().map(|(token, change)| self.tell_breaker(token, *change))).await;
            }
        }
    }

    async fn tell_breaker(&self, token: &str, change: Change) {
        let key = format!("{PREFIX}{token}");
        self.show(token);
        let told = match change {
            Change::Opened(opened) => {
                tracing::warn!(
                    destination = token,
                    "Attempts to {token} fail; the next one is made {}",
                    rfc3339(opened.until)
                );
                let record = Record::new(opened, self.clock.now(), &self.process);
                // Texts and numbers: this always serializes.
                self.broker.put_endpoint(&key, serde_json::to_vec(&record).unwrap_or_default().into()).await
            }
            Change::Closed => {
                tracing::info!(destination = token, "Attempts to {token} succeed again");
                self.broker.remove_endpoint(&key).await
            }
        };
        if let Err(error) = told {
            tracing::warn!("The other couriers have to find out about {token} by themselves: {error}");
        }
    }

    /// Hears of a breaker. `false`: the key is about something else.
    pub(super) fn hears_breaker(&self, key: &str, value: Option<&[u8]>) -> bool {
        let Some(token) = key.strip_prefix(PREFIX) else { return false };
        hear(&self.gates, &self.process, token, value);
        self.show(token);
        true
    }

    /// Says in the metrics whether an endpoint is left alone. What is no endpoint here has no label.
    fn show(&self, token: &str) {
        let name = token.strip_prefix("e_").filter(|name| self.registry.now().endpoints.contains_key(*name));
        if let Some(name) = name {
            let labels = DestinationLabels { destination: name.to_owned() };
            self.metrics.breaker_open.get_or_create(&labels).set(self.gates.is_open(token).into());
        }
    }
}

/// Takes over another process's word. One that cannot be read closes: it is nobody's word.
fn hear(gates: &Gates, own: &str, token: &str, value: Option<&[u8]>) {
    let record: Option<Record> = value.and_then(|value| serde_json::from_slice(value).ok());
    if record.as_ref().is_some_and(|record| record.by == own) {
        return;
    }
    gates.told(token, record.and_then(|record| record.opened()));
}
