//! The order of a task's callbacks, over all couriers.
//!
//! Before an attempt, a courier writes into the task's record that it tells the client now, and until when: by
//! compare-and-set, so it is written against the newest state. Whoever wants to tell something else waits until the
//! receipts say that this attempt is over, or its time is. What waits for its next attempt tells nothing, and so is
//! never waited for: when it comes, it finds that it is superseded.

use std::time::{Duration, SystemTime};

use super::super::outbox_message::OutboxMessage;
use super::super::pointer::Pointer;
use super::super::receipt;
use super::super::worker::{Job, Worker};
use super::Found;
use crate::broker::{PublishError, ReadError};
use crate::clock::rfc3339;
use crate::config::StreamKind;
use crate::event::{id, subject};
use crate::task::{Record, Telling};

/// How long a callback waits for the one before it in this process.
const LINE: Duration = Duration::from_millis(250);
/// How long it then waits in the stream.
const AGAIN: Duration = Duration::from_millis(500);
/// What may pass between the word and the attempt, and what clocks may differ.
const SLACK: Duration = Duration::from_secs(10);
/// How much of that must be left when the gate is asked: it may let a delivery wait for a second.
const LEAST_SLACK: Duration = Duration::from_secs(4);

/// What there is to know of a task's callback before it is sent.
pub(crate) struct Call {
    pub(super) record: Box<Record>,
    /// The message that caused the move; of a replay, that of the original.
    pub(super) sequence: u64,
    /// Until when this courier may tell of it, if that was written together with the move.
    pub(super) lease: Option<SystemTime>,
}

/// Why a callback is not sent now.
pub(crate) enum NotItsTurn {
    Superseded(String),
    NotYet(SystemTime),
}

/// The word that this courier tells a client of something, before it is written.
pub(super) struct Lease {
    pub(super) telling: Telling,
    pub(super) until: SystemTime,
    /// The delivery that told before, and now waits for its next attempt.
    waits: Option<String>,
}

/// What another callback of the task does.
enum Other {
    /// It tells nothing now.
    Silent,
    /// It waits for its next attempt: the delivery.
    Waits(String),
    /// It may be on its way.
    Tells,
}

impl Worker {
    /// Whether a task's callback may be sent now. Where it may, nobody else's is until its time is over.
    pub(crate) async fn in_turn(&self, job: &Job<'_>) -> Result<(), NotItsTurn> {
        let (Some(call), Some(turn)) = (&job.route.call, &job.turn) else { return Ok(()) };
        let timeout = job.route.destination.as_ref().map_or(Duration::ZERO, |to| to.policy().timeout);
        let lasts = |until: SystemTime| until >= self.clock.now() + timeout + LEAST_SLACK;
        if call.lease.is_some_and(lasts) {
            return Ok(());
        }
        // Out of RETRY, this is the state as it was a moment ago.
        let ends = call.record.step(call.sequence).is_some_and(|step| step.status.is_terminal());
        if !ends && call.record.is_superseded(call.sequence) {
            return Err(superseded());
        }
        let not_yet = |after| Err(NotItsTurn::NotYet(self.clock.now() + after));
        if !turn.lock().await.wait_to_tell(LINE).await {
            return not_yet(AGAIN * 2);
        }
        let task_id = &call.record.task_id;
        for _ in 0..super::TRIES {
            let (mut record, revision) = match self.find(task_id).await {
                Found::Task(record, revision) => (record, revision),
                // The state of what has ended long since is forgotten; there is nothing left to overtake.
                Found::None | Found::Unreadable => return Ok(()),
                Found::Unknown => return not_yet(AGAIN),
            };
            // The end of a task is told whatever a record says: one that does not have it yet is an older one.
            if !ends && record.is_superseded(call.sequence) {
                return Err(superseded());
            }
            if record.step(call.sequence).is_none() && ends {
                return not_yet(AGAIN);
            }
            let (sequence, delivery) = (job.original.sequence, &job.route.delivery_id);
            let Some(lease) = self.lease_if_free(&record, sequence, delivery, job.attempt).await else {
                return not_yet(AGAIN);
            };
            record.telling = Some(lease.telling.clone());
            match self.write_record(&record, revision).await {
                Ok(Some(_)) => {
                    self.supersede(&record, &lease).await;
                    if lasts(lease.until) {
                        return Ok(());
                    }
                }
                // Not confirmed, it may be written: then it is found, and is this courier's own.
                Ok(None) | Err(PublishError::Unconfirmed) => {}
                Err(PublishError::TooLarge) => return Ok(()),
                Err(error) => {
                    tracing::warn!("A callback of task {task_id} has to wait: {error}");
                    return not_yet(AGAIN);
                }
            }
        }
        not_yet(AGAIN)
    }

    /// Takes the word back, where the attempt is not made now after all.
    pub(crate) async fn tell_no_more(&self, job: &Job<'_>) {
        let Some(call) = &job.route.call else { return };
        for _ in 0..super::TRIES {
            let Found::Task(mut record, revision) = self.find(&call.record.task_id).await else { return };
            if record.telling.take_if(|telling| telling.sequence == job.original.sequence).is_none() {
                return;
            }
            match self.write_record(&record, revision).await {
                Ok(Some(_)) => return,
                // Somebody else wrote, and carried the word over.
                Ok(None) | Err(PublishError::Unconfirmed) => {}
                Err(error) => {
                    let task_id = &record.task_id;
                    tracing::debug!("Others wait for a callback of task {task_id} that is not sent: {error}");
                    return;
                }
            }
        }
    }

    /// The word that this courier tells the client of an attempt now, unless another may be doing so.
    pub(super) async fn lease_if_free(
        &self,
        record: &Record,
        sequence: u64,
        delivery: &str,
        attempt: u32,
    ) -> Option<Lease> {
        let other = match &record.telling {
            Some(telling) if telling.sequence != sequence => self.other(record, telling).await,
            _ => Ok(Other::Silent),
        };
        let waits = match other {
            Ok(Other::Silent) => None,
            Ok(Other::Waits(waits)) => Some(waits),
            Ok(Other::Tells) => return None,
            Err(error) => {
                tracing::debug!("It is not known whether task {} is being told of: {error}", record.task_id);
                return None;
            }
        };
        let timeout = self.registry.now().callbacks_of(&record.client).map_or(Duration::ZERO, |to| to.policy.timeout);
        let until = self.clock.now() + timeout + SLACK;
        let delivery = delivery.to_owned();
        Some(Lease { telling: Telling { sequence, attempt, delivery, until: rfc3339(until) }, until, waits })
    }

    async fn other(&self, record: &Record, telling: &Telling) -> Result<Other, ReadError> {
        if telling.is_over(self.clock.now()) {
            return Ok(Other::Silent);
        }
        let every = subject::receipts_of(&record.agent, &telling.delivery);
        let told = self.broker.last(StreamKind::Receipts, &every).await?;
        let told = told.and_then(|told| receipt::state(&told, OutboxMessage::at(telling.sequence)));
        Ok(match told {
            Some(state) if state.is_over => Other::Silent,
            Some(state) if state.attempt >= telling.attempt => Other::Waits(telling.delivery.clone()),
            _ => Other::Tells,
        })
    }

    /// Lets a callback that waits and says nothing any more come now: whoever gets it ends it.
    pub(super) async fn supersede(&self, record: &Record, lease: &Lease) {
        let (Some(callback), Some(delivery)) = (&record.callback, &lease.waits) else { return };
        let waits_on = format!("retry.at.{}.{delivery}", id::callback_token(&callback.url));
        let waiting = self.broker.last(StreamKind::Retry, &waits_on).await;
        if let Ok(Some(waiting)) = waiting
            && let Some(pointer) = Pointer::read(&waiting.headers)
            && record.step(pointer.sequence).is_some()
            && let Err(error) = self.bring_forward(&waiting, &pointer, self.clock.now()).await
        {
            tracing::debug!("A callback that says nothing any more waits until it is due: {error}");
        }
    }
}

fn superseded() -> NotItsTurn {
    NotItsTurn::Superseded("the task has moved on, and its client hears of that".to_owned())
}
