//! Ending what waits for a disabled endpoint.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::destination::Endpoint;
use super::ledger::Known;
use super::pointer::{self, Pointer};
use super::reason::{Reason, Refusal};
use super::worker::{Resolved, Worker};
use crate::broker::{ReadError, StoredMessage};
use crate::config::StreamKind;
use crate::event::id;

/// How long to wait before a sweep that failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

impl Worker {
    /// Sweeps at start, since another process may have stopped in the middle, and after every 410.
    pub(super) async fn sweep_disabled(&self, stop: &CancellationToken) {
        loop {
            let sweep = async {
                for endpoint in self.destinations.endpoints.values() {
                    if self.states.is_disabled(&endpoint.name, &endpoint.url) {
                        self.sweep(endpoint).await?;
                    }
                }
                Ok::<(), ReadError>(())
            };
            let Some(swept) = stop.run_until_cancelled(sweep).await else { return };
            let wait = async {
                match &swept {
                    Ok(()) => self.disabled.notified().await,
                    Err(error) => {
                        tracing::debug!("A sweep of RETRY has to wait: {error}");
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            };
            if stop.run_until_cancelled(wait).await.is_none() {
                return;
            }
        }
    }

    /// Takes what waits for an endpoint off the stream one by one, each with dead letter and receipt.
    async fn sweep(&self, endpoint: &Endpoint) -> Result<(), ReadError> {
        let waiting = pointer::all_waiting(&id::endpoint_token(&endpoint.name));
        let mut from = 1;
        while let Some(stored) = self.broker.next(StreamKind::Retry, &waiting, from).await? {
            from = stored.sequence + 1;
            self.end(endpoint, &stored).await?;
        }
        Ok(())
    }

    /// Ends one waiting delivery. What is not one is left for the moment when it is due.
    async fn end(&self, endpoint: &Endpoint, stored: &StoredMessage) -> Result<(), ReadError> {
        let Some(pointer) = Pointer::read(&stored.headers).filter(|found| found.is_waiting_on(&stored.subject)) else {
            return Ok(());
        };
        let original = match self.resolve(&pointer).await {
            Resolved::Delivery { original, .. } => Some(original),
            Resolved::Expired => None,
            Resolved::Forged(_) | Resolved::Unknown => return Ok(()),
        };
        let Some(_hold) = self.held.take(pointer.sequence, &pointer.delivery_id) else { return Ok(()) };
        let (agent, delivery_id) = (&pointer.agent, &pointer.delivery_id);
        if self.ledger.look_up(agent, delivery_id, pointer.sequence, u32::MAX).await? != Known::Ended {
            let detail = format!("endpoint `{}` answered 410 Gone to another delivery", endpoint.name);
            let refusal = Refusal::new(Reason::EndpointDisabled, detail);
            let letter = pointer.dead_letter(&refusal, original.as_ref());
            self.bury(&letter, endpoint.name.as_str(), None, None).await;
        }
        // One that fires in this moment finds its receipt.
        self.broker.remove(StreamKind::Retry, stored.sequence).await.map(drop)
    }
}
