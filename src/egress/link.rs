//! An attempt starts only on the connection on which exclusive ownership of the delivery was last verified. While the
//! connection to NATS is down or has changed, attempts wait with their message in hand: their outcome could not be
//! recorded.

use std::time::Duration;

use super::intake::Original;
use super::ledger::Known;
use super::reason::{Reason, Refusal};
use super::worker::{Job, Worker};
use crate::config::StreamKind;

/// How often a delivery that waits for the connection looks whether it may still wait.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The connection was lost, or may have been for so long that another courier has the delivery now.
#[derive(Debug)]
pub(super) struct Interrupted;

/// What comes of a delivery that was interrupted before its attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resumed {
    /// It may be attempted, while this connection lasts.
    On(u64),
    /// It has ended, here or elsewhere.
    Ended,
    /// It is the stream's again: another courier has it, or will.
    LeftToStream,
}

impl Worker {
    /// Whether an attempt of this delivery may begin, of which it was last made sure over this connection that nobody
    /// else makes it.
    pub(super) fn may_begin(&self, job: &Job<'_>, connection: u64) -> Result<(), Interrupted> {
        let is_up = self.broker.confirmed().is_some_and(|ready| ready.connection == connection);
        let is_held = job.received.is_none_or(|received| received.is_held());
        if is_up && is_held { Ok(()) } else { Err(Interrupted) }
    }

    /// Waits for the connection, no longer than the message is this courier's, and makes sure again that the delivery
    /// has not ended.
    pub(super) async fn resume(&self, job: &Job<'_>) -> Resumed {
        let (agent, delivery_id, about) = (&job.message.agent, &job.route.delivery_id, job.original.about());
        while job.received.is_some_and(|received| received.is_held()) && !self.is_stopping() {
            let connection = match tokio::time::timeout(LOOK_EVERY, self.broker.reconfirmed()).await {
                Ok(Some(ready)) => ready.connection,
                Ok(None) => break,
                Err(_) => continue,
            };
            match self.ledger.look_up(agent, delivery_id, about, job.attempt).await {
                Ok(Known::Open) if self.is_lost(job.original).await => {
                    self.give_up(job, &lost(), None, None).await;
                    return Resumed::Ended;
                }
                Ok(Known::Open) => return Resumed::On(connection),
                Ok(Known::Ended | Known::Scheduled) => {
                    self.metrics.already_done.inc();
                    return Resumed::Ended;
                }
                Err(error) => {
                    tracing::debug!(delivery.id = delivery_id, "Cannot look up {delivery_id}, will retry: {error}");
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
        }
        tracing::debug!(
            delivery.id = delivery_id,
            "Left {delivery_id} to the stream: the connection was down for too long"
        );
        Resumed::LeftToStream
    }

    /// Whether OUTBOX was replaced since this message was taken, and no longer has it. Where NATS
    /// does not say, it is assumed to be there: a pointer to it tells later that it was not.
    pub(super) async fn is_lost(&self, original: &Original) -> bool {
        // What was replaced while the connection was down is known only now.
        if self.broker.reconfirmed().await.is_none() || !self.broker.is_doubtful(StreamKind::Outbox, original.stored) {
            return false;
        }
        match self.broker.still_has(StreamKind::Outbox, original.sequence, original.stored).await {
            Ok(there) => !there,
            Err(error) => {
                tracing::debug!(nats.sequence = original.sequence, "Cannot look for a message of OUTBOX: {error}");
                false
            }
        }
    }
}

/// Why a delivery in hand is dead whose message OUTBOX has lost.
pub(super) fn lost() -> Refusal {
    let detail =
        "OUTBOX was purged, restored, truncated or recreated while the delivery was in progress, and lost its message";
    Refusal::new(Reason::Expired, detail)
}
