//! Deliveries that wait: each is one message schedule in RETRY, on a subject of its own.
//!
//! A waiting delivery is moved in one step, by a schedule that takes the place of its old one and of no other: at
//! no moment does it wait twice, or not at all.

use std::time::{Duration, SystemTime};

use super::holds::held_as;
use super::link;
use super::pointer::{Pointer, Why};
use super::reason::{Reason, Refusal};
use super::receipt::{Receipt, Status};
use super::standing::{Standing, Sweep};
use super::worker::{Job, Worker};
use crate::broker::{PublishError, StoredMessage};
use crate::config::StreamKind;
use crate::telemetry::metrics::HeldLabels;

/// The header by which the server knows a schedule.
const SCHEDULE: &str = "Nats-Schedule";
/// How often one place is tried before it is left: what stands there changes rarely.
const PLACE_TRIES: u32 = 5;
/// How long to wait when both places of a delivery in RETRY are taken.
const PLACE_PAUSE: Duration = Duration::from_secs(1);
/// How long one confirmation may take when a delivery is brought forward.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);

/// How long what stands in a line waits until it looks whether its destination may be tried again.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// What stands where a delivery wants to wait.
enum Place {
    /// Nothing any more.
    Free,
    /// This delivery, for this attempt or a later one: an earlier try was confirmed without our hearing it.
    Ours,
    /// This delivery as it waited before, at this sequence.
    Earlier(u64),
    /// Another message's delivery of the same id, or what cannot be taken away now.
    Taken,
}

impl Worker {
    /// Puts a delivery into RETRY until `due`, on its own subject, or beside it where another message of the same
    /// delivery id waits there already. `attempt` is the one that comes then.
    pub(super) async fn schedule(&self, job: &Job<'_>, attempt: u32, held: Option<Why>, due: SystemTime) {
        let Some(pointer) = Pointer::new(job.original, job.message, job.route, attempt) else { return };
        let pointer = Pointer { held, ..pointer };
        loop {
            for place in pointer.places() {
                if self.waits_at(&pointer, &place, due).await {
                    return;
                }
            }
            tracing::warn!("Delivery {} has to wait for a place in RETRY", pointer.delivery_id);
            tokio::time::sleep(PLACE_PAUSE).await;
        }
    }

    /// Lets a delivery wait without an attempt having been made; it comes again with the same one.
    ///
    /// What has waited until its body is about to leave OUTBOX, or until it is too old, is dead; anything else comes
    /// again at the moment that is returned.
    pub(super) async fn hold(&self, job: &Job<'_>, why: Why, until: SystemTime) -> Option<SystemTime> {
        let last =
            job.route.destination.as_ref().ok().and_then(|there| there.policy().last_moment(job.original.stored));
        let now = self.clock.now();
        if last.is_some_and(|last| now >= last) {
            let detail = format!("was held back ({}) for as long as it could be kept", why.as_str());
            self.give_up(job, &Refusal::new(Reason::Expired, detail), None, None).await;
            return None;
        }
        if self.is_lost(job.original).await {
            self.give_up(job, &link::lost(), None, None).await;
            return None;
        }
        let mut due = last.map_or(until, |last| until.min(last));
        if job.in_line {
            // Nobody brings forward what stands in a line: it looks again.
            due = due.min(now + LOOK_AGAIN);
        } else {
            self.schedule(job, job.attempt, Some(why), due).await;
            self.look_back(job, why == Why::Paused);
            if why == Why::RetryAfter {
                self.look_back_for_lift(job);
            }
        }
        let labels = HeldLabels { destination: job.route.metric_name.clone(), why: why.as_str() };
        self.metrics.held.get_or_create(&labels).inc();
        // What passes in a moment is nobody's concern; what may last is told once.
        if matches!(why, Why::Paused | Why::Breaker | Why::RetryAfter) && job.held != Some(why) {
            self.tell_held(job, why, due, now).await;
        }
        Some(due)
    }

    /// What is said while a delivery is being put into RETRY may have swept past it.
    pub(super) fn look_back(&self, job: &Job<'_>, was_paused: bool) {
        let Ok(destination) = &job.route.destination else { return };
        let token = job.route.token.clone().unwrap_or_default();
        match self.standing(job, destination) {
            Standing::Open if was_paused => self.standings.again(Sweep::Resume(token)),
            Standing::Open | Standing::Paused => {}
            Standing::Disabled(_) | Standing::Cancelled(_) => self.standings.again(Sweep::Settle(token)),
        }
    }

    /// The hold may have been lifted while the delivery was being put into RETRY.
    fn look_back_for_lift(&self, job: &Job<'_>) {
        let token = job.route.token.as_deref().unwrap_or_default();
        if !self.gates.holds().is_held(&held_as(token, &job.message.agent), self.clock.now()) {
            self.gates.release(token);
        }
    }

    async fn tell_held(&self, job: &Job<'_>, why: Why, due: SystemTime, now: SystemTime) {
        let detail = match why {
            Why::Paused => "the destination is paused; the delivery waits until it is resumed",
            Why::RetryAfter => "the destination's Retry-After has not elapsed; not counted as an attempt",
            _ => "the destination fails and is left alone for a while; this was no attempt",
        };
        let receipt = Receipt {
            agent: &job.message.agent,
            message_id: &job.message.id,
            delivery_id: &job.route.delivery_id,
            destination: &job.route.public_name,
            status: Status::Retrying,
            attempt: job.attempt - 1,
            http_status: None,
            failure: None,
            reason: Some(why.as_str()),
            detail: Some(detail.to_owned()),
            duration: None,
            next_attempt: Some(due).filter(|_| why != Why::Paused),
            response: None,
            at: now,
            about: job.original.about(),
        };
        self.ledger.receipt(&receipt, job.message.trace.as_ref()).await;
    }

    /// Changes the moment at which a waiting delivery comes. `false` when it no longer waits there: it has come.
    pub(super) async fn bring_forward(
        &self,
        waiting: &StoredMessage,
        pointer: &Pointer,
        due: SystemTime,
    ) -> Result<bool, PublishError> {
        let Some(place) = pointer.place_of(&waiting.subject) else { return Ok(false) };
        match self.broker.schedule(&pointer.schedule(&place, due, waiting.sequence), CONFIRM_WITHIN).await {
            Ok(_) => Ok(true),
            Err(PublishError::Occupied) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// `false`: another message's delivery waits there.
    async fn waits_at(&self, pointer: &Pointer, place: &str, due: SystemTime) -> bool {
        let mut replaces = 0;
        for _ in 0..PLACE_TRIES {
            if self.ledger.schedule(&pointer.schedule(place, due, replaces)).await {
                return true;
            }
            match self.look_at(pointer, &pointer.waits_on(place)).await {
                Place::Free => replaces = 0,
                Place::Earlier(sequence) => replaces = sequence,
                Place::Ours => return true,
                Place::Taken => return false,
            }
        }
        false
    }

    /// Looks at what waits on a subject.
    ///
    /// What is no delivery at all is taken away, since nobody but Hookbridge has anything to put there.
    async fn look_at(&self, pointer: &Pointer, waits_on: &str) -> Place {
        let waiting = loop {
            match self.broker.last(StreamKind::Retry, waits_on).await {
                Ok(Some(waiting)) => break waiting,
                Ok(None) => return Place::Free,
                // What stands there may be ours, stored just before the server went away: it must not wait twice.
                Err(error) if self.broker.ready().await.is_some() => {
                    tracing::debug!("A delivery has to wait for its place: {error}");
                    tokio::time::sleep(PLACE_PAUSE).await;
                }
                Err(_) => return Place::Taken,
            }
        };
        let is_schedule = waiting.headers.get(SCHEDULE).is_some();
        match Pointer::read(&waiting.headers).filter(|found| is_schedule && found.is_waiting_on(waits_on)) {
            Some(found) if !found.about().is(&pointer.about()) => Place::Taken,
            Some(found) if found.attempt >= pointer.attempt => Place::Ours,
            Some(_) => Place::Earlier(waiting.sequence),
            None => {
                self.metrics.forged_retries.inc();
                match self.broker.remove(StreamKind::Retry, waiting.sequence).await {
                    Ok(_) => {
                        tracing::warn!("Took away what stood on {waits_on} and is no delivery");
                        Place::Free
                    }
                    Err(error) => {
                        tracing::warn!("A delivery has to wait: {error}");
                        Place::Taken
                    }
                }
            }
        }
    }
}
