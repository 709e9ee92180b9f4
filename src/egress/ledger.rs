//! Writing down what became of a delivery.
//!
//! Bookkeeping never resends: while NATS is away a receipt waits for it, and the delivery stays in hand, so
//! that the message does not come again to be sent again.

use std::time::Duration;

use super::receipt::{self, Attempted, Receipt, Status};
use crate::broker::{Broker, Outgoing, PublishError, ReadError, Schedule};
use crate::config::StreamKind;
use crate::event::trace;
use crate::telemetry::Metrics;

/// How long one confirmation may take.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);
/// How often a write that a ready server refuses is tried.
const TRIES: u32 = 6;
/// The wait before the second try; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The books of the courier.
#[derive(Clone)]
pub(super) struct Ledger {
    pub(super) broker: Broker,
    pub(super) metrics: Metrics,
}

/// The stream did not take it, although NATS was there.
#[derive(Debug)]
pub(super) struct NotWritten;

/// What the receipts say about a delivery that may have been worked on before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Nothing, or only attempts before this one.
    Open,
    /// It has ended.
    Ended,
    /// This very attempt was made and the next one is scheduled.
    Scheduled,
}

impl Ledger {
    /// Writes something that must be confirmed before the message may be acked.
    pub(super) async fn write(&self, outgoing: &Outgoing) -> Result<(), NotWritten> {
        self.persist(&outgoing.subject, || self.broker.publish(outgoing.clone(), CONFIRM_WITHIN)).await.map(drop)
    }

    /// Writes a receipt. One that cannot be written is counted; it never causes another attempt by itself.
    pub(super) async fn receipt(&self, receipt: &Receipt<'_>, trace: Option<&trace::Context>) {
        if self.write(&receipt.message(trace)).await.is_err() {
            self.metrics.lost_receipts.inc();
        }
    }

    /// Puts a schedule into RETRY. `Ok(false)`: another message waits on that subject.
    pub(super) async fn schedule(&self, schedule: &Schedule) -> Result<bool, NotWritten> {
        let publish = || async {
            match self.broker.schedule(schedule.clone(), CONFIRM_WITHIN).await {
                Err(PublishError::Occupied) => Ok(false),
                other => other.map(|_| true),
            }
        };
        self.persist(&schedule.waits_on, publish).await
    }

    /// Looks up what the receipts say.
    pub(super) async fn look_up(&self, agent: &str, delivery_id: &str, attempt: u32) -> Result<Known, ReadError> {
        let last = |status| {
            let subject = receipt::subject(agent, status, delivery_id);
            async move { self.broker.last(StreamKind::Receipts, &subject).await }
        };
        let [delivered, dead, cancelled] = Status::TERMINAL.map(last);
        let (delivered, dead, cancelled, retrying) =
            tokio::try_join!(delivered, dead, cancelled, last(Status::Retrying))?;
        if delivered.or(dead).or(cancelled).is_some() {
            return Ok(Known::Ended);
        }
        let attempted = retrying.and_then(|message| serde_json::from_slice::<Attempted>(&message.payload).ok());
        let scheduled = attempted.is_some_and(|receipt| receipt.attempt >= attempt);
        Ok(if scheduled { Known::Scheduled } else { Known::Open })
    }

    /// Tries until the stream confirms. While NATS is away it waits for it without counting.
    async fn persist<T, F>(&self, subject: &str, publish: impl Fn() -> F) -> Result<T, NotWritten>
    where
        F: Future<Output = Result<T, PublishError>>,
    {
        let mut pause = FIRST_PAUSE;
        let mut tries = 0;
        loop {
            let error = match publish().await {
                Ok(stored) => return Ok(stored),
                Err(error) => error,
            };
            if self.broker.link().ready().is_none() {
                // Ends with the process at the latest: whoever holds the delivery is dropped then.
                self.broker.ready().await;
                tokio::time::sleep(FIRST_PAUSE).await;
                continue;
            }
            tries += 1;
            if tries >= TRIES {
                tracing::error!("Could not write to {subject} in {tries} tries: {error}");
                return Err(NotWritten);
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
}
