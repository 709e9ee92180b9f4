//! Lines: durables on OUTBOX of which the server gives out one message at a time, over all couriers.

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use futures_util::StreamExt;

use super::provision::{ACK_WAIT, COURIER};
use super::{Broker, ReadError};
use crate::config::StreamKind;

impl Broker {
    /// Makes the line of this name over these subjects, if it is not there so. It begins with what the courier's own
    /// durable has not finished.
    pub(crate) async fn make_line(&self, durable: &str, subjects: &[String]) -> Result<(), ReadError> {
        let failed = |error: &dyn ToString| ReadError::new(StreamKind::Outbox, error.to_string());
        let stream = self.stream(StreamKind::Outbox).await?;
        let courier = stream.consumer_info(COURIER).await.map_err(|error| failed(&error))?;
        let mut from = courier.ack_floor.stream_sequence;
        let mut wanted: Vec<String> = subjects.iter().map(|subject| self.names.subject(subject)).collect();
        wanted.sort();
        let found: Result<PullConsumer, _> = stream.get_consumer(durable).await;
        if let Ok(found) = found {
            let info = found.cached_info();
            let mut filters = info.config.filter_subjects.clone();
            filters.extend(Some(info.config.filter_subject.clone()).filter(|filter| !filter.is_empty()));
            filters.sort();
            if filters == wanted {
                return Ok(());
            }
            // It listens elsewhere now. A new one begins with what neither has finished; the receipts know the rest.
            from = from.min(info.ack_floor.stream_sequence);
            self.remove_line(durable).await?;
        }
        let line = pull::Config {
            durable_name: Some(durable.to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_deliver: -1,
            // This is the order: nothing is given out before what was given out is done.
            max_ack_pending: 1,
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from.saturating_add(1) },
            filter_subjects: wanted,
            ..pull::Config::default()
        };
        stream.create_consumer(line).await.map(drop).map_err(|error| failed(&error))
    }

    /// The durables of OUTBOX whose names begin so, and whether each has given out everything and heard back.
    pub(crate) async fn lines(&self, prefix: &str) -> Result<Vec<(String, bool)>, ReadError> {
        let stream = self.stream(StreamKind::Outbox).await?;
        let mut consumers = stream.consumers();
        let mut lines = Vec::new();
        while let Some(info) = consumers.next().await {
            let info = info.map_err(|error| ReadError::new(StreamKind::Outbox, error))?;
            if info.name.starts_with(prefix) {
                lines.push((info.name, info.num_pending == 0 && info.num_ack_pending == 0));
            }
        }
        Ok(lines)
    }

    /// Takes a line away.
    pub(crate) async fn remove_line(&self, durable: &str) -> Result<(), ReadError> {
        let stream = self.stream(StreamKind::Outbox).await?;
        stream.delete_consumer(durable).await.map(drop).map_err(|error| ReadError::new(StreamKind::Outbox, error))
    }
}
