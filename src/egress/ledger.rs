//! Writing down what became of a delivery.
//!
//! Bookkeeping never resends: while NATS is away a receipt waits for it, and the delivery stays in hand, so
//! that the message does not come again to be sent again.

use std::time::{Duration, Instant};

use super::outbox_message::OutboxMessage;
use super::receipt::{self, Receipt, Status};
use super::untold::Untold;
use crate::broker::{Broker, Outgoing, PublishError, ReadError, Schedule, Stored};
use crate::config::StreamKind;
use crate::event::trace;
use crate::telemetry::Metrics;

/// How long one confirmation may take.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);
/// For how long a receipt is tried that a ready server does not take: an election takes seconds, and a stream that
/// was deleted is made again within a minute. The delivery stays in hand meanwhile.
const RECEIPT_WITHIN: Duration = Duration::from_secs(300);
/// For how long what does not end a delivery is tried where the stream itself refuses it, because it is full for
/// example: no election answers so, and the next attempt of the delivery waits for it.
const REFUSED_WITHIN: Duration = Duration::from_secs(15);
/// How often it is logged that something still cannot be written.
const LOG_EVERY: Duration = Duration::from_secs(30);
/// The wait before the second try; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest wait between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// For how long something is tried before it is given up.
#[derive(Clone, Copy)]
struct Patience {
    /// In all.
    within: Duration,
    /// Where the stream itself refuses it.
    refused: Duration,
}

/// That a delivery has ended: without it, it would be taken for open, and made again.
const TERMINAL: Patience = Patience { within: RECEIPT_WITHIN, refused: RECEIPT_WITHIN };
/// Anything else.
const PASSING: Patience = Patience { within: RECEIPT_WITHIN, refused: REFUSED_WITHIN };

/// The books of the courier.
#[derive(Clone)]
pub(super) struct Ledger {
    pub(super) broker: Broker,
    pub(super) metrics: Metrics,
    /// What has ended and could not be told.
    pub(super) untold: Untold,
}

/// The server takes no message of this size.
#[derive(Debug)]
pub(super) struct TooLarge;

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
    /// Writes something without which the message must not be acked. Does not give up: the delivery stays in
    /// hand, and is not sent again only because it cannot be written down. The error is a message that the
    /// server can never take.
    pub(super) async fn write(&self, outgoing: &Outgoing) -> Result<(), TooLarge> {
        let publish = || self.broker.publish(outgoing, CONFIRM_WITHIN);
        match self.persist(&outgoing.subject, None, publish).await {
            Err(PublishError::TooLarge) => Err(TooLarge),
            _ => Ok(()),
        }
    }

    /// Writes a receipt. One that cannot be written is counted; it never causes another attempt by itself: that a
    /// delivery has ended is remembered then for as long as this process lives.
    pub(super) async fn receipt(&self, receipt: &Receipt<'_>, trace: Option<&trace::Context>) {
        let message = receipt.message(trace, self.broker.max_payload());
        let publish = || self.broker.publish(&message, CONFIRM_WITHIN);
        let is_terminal = receipt.status != Status::Retrying;
        let patience = if is_terminal { TERMINAL } else { PASSING };
        if self.persist(&message.subject, Some(patience), publish).await.is_err() {
            self.metrics.lost_receipts.inc();
            if is_terminal {
                self.untold.remember(receipt.about, receipt.delivery_id);
            }
        }
    }

    /// Publishes news that others can also read elsewhere. What cannot be published is left.
    pub(super) async fn news(&self, outgoing: &Outgoing) {
        let publish = || self.broker.publish(outgoing, CONFIRM_WITHIN);
        if let Err(error) = self.persist(&outgoing.subject, Some(PASSING), publish).await {
            self.metrics.lost_news.inc();
            tracing::warn!("Nobody hears of {}, the state itself is written: {error}", outgoing.subject);
        }
    }

    /// Puts a schedule into RETRY. `false`: another message waits on that subject, or the one to be replaced is gone.
    pub(super) async fn schedule(&self, schedule: &Schedule) -> bool {
        let publish = || self.broker.schedule(schedule, CONFIRM_WITHIN);
        !matches!(self.persist(&schedule.waits_on, None, publish).await, Err(PublishError::Occupied))
    }

    /// Looks up what the receipts say of one outbox message's delivery.
    pub(super) async fn look_up(
        &self,
        agent: &str,
        delivery_id: &str,
        message: OutboxMessage,
        attempt: u32,
    ) -> Result<Known, ReadError> {
        if self.untold.has(message, delivery_id) {
            return Ok(Known::Ended);
        }
        let last = |status| {
            let subject = receipt::subject(agent, status, delivery_id);
            async move {
                let stored = self.broker.last(StreamKind::Receipts, &subject).await?;
                Ok(stored.and_then(|stored| receipt::attempt_of(&stored, message)))
            }
        };
        let [delivered, dead, cancelled] = Status::TERMINAL.map(last);
        let (delivered, dead, cancelled, retrying) =
            tokio::try_join!(delivered, dead, cancelled, last(Status::Retrying))?;
        if delivered.or(dead).or(cancelled).is_some() {
            return Ok(Known::Ended);
        }
        Ok(if retrying.is_some_and(|made| made >= attempt) { Known::Scheduled } else { Known::Open })
    }

    /// How far a delivery is that has not ended: attempts made, when the next one is due, and why it waits.
    pub(super) async fn progress(
        &self,
        agent: &str,
        delivery_id: &str,
        message: OutboxMessage,
    ) -> Result<receipt::Progress, ReadError> {
        let subject = receipt::subject(agent, Status::Retrying, delivery_id);
        let stored = self.broker.last(StreamKind::Receipts, &subject).await?;
        Ok(stored.and_then(|stored| receipt::progress(&stored, message)).unwrap_or_default())
    }

    /// Tries until the stream confirms, or until `patience` ends. While NATS is away it waits for it without counting.
    ///
    /// It gives up by time and never by a number of tries: in an election every try is refused at once.
    async fn persist<F>(
        &self,
        subject: &str,
        patience: Option<Patience>,
        publish: impl Fn() -> F,
    ) -> Result<Stored, PublishError>
    where
        F: Future<Output = Result<Stored, PublishError>>,
    {
        let mut pause = FIRST_PAUSE;
        let (mut refused_for, mut logged) = (Duration::ZERO, Duration::ZERO);
        loop {
            let begun = Instant::now();
            let error = match publish().await {
                // Neither of these becomes better by waiting.
                Err(error @ (PublishError::TooLarge | PublishError::Occupied)) => return Err(error),
                Err(PublishError::NotReady(link)) => {
                    // Ends with the process at the latest: whoever holds the delivery is dropped then.
                    if self.broker.ready().await.is_none() {
                        // This client is gone for good, and with it the message that could be acked.
                        return Err(PublishError::NotReady(link));
                    }
                    tokio::task::yield_now().await;
                    continue;
                }
                Err(error) => error,
                stored => return stored,
            };
            let seconds = refused_for.as_secs();
            let within = patience.map(|patience| match &error {
                PublishError::Full | PublishError::Refused(_) => patience.refused,
                _ => patience.within,
            });
            if within.is_some_and(|within| refused_for >= within) {
                tracing::error!(
                    nats.subject = subject,
                    "Gave up publishing to {subject} after {seconds} s: {error}; check the stream that takes this subject"
                );
                return Err(error);
            }
            if refused_for >= logged + LOG_EVERY {
                logged = refused_for;
                tracing::error!(
                    nats.subject = subject,
                    "Could not publish to {subject} for {seconds} s: {error}; still retrying"
                );
            }
            if matches!(error, PublishError::NoStream(_)) {
                self.broker.look_again();
            }
            tokio::time::sleep(pause).await;
            refused_for += begun.elapsed();
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
