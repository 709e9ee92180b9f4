//! One delivery, from the doubt whether it was made before to the last word written about it.
//!
//! The order is the promise. Delivered: receipt written, then ack. Failed: schedule confirmed, then ack. Dead:
//! dead letter confirmed, receipt written, then ack. Whatever falls between two of these comes again, and is
//! found in the receipts before it is sent again.
//!
//! What is rare is boxed: the future of a delivery has room for the rarest of its ways, and one is made and moved for
//! each message.

use std::time::{Duration, Instant, SystemTime};

use tracing::Instrument;

use super::dead_letter::DeadLetter;
use super::destination::{Destination, Endpoint};
use super::gate::{NotNow, Pass};
use super::holds::held_as;
use super::ledger::Known;
use super::link::{self, Interrupted, Resumed};
use super::payload::Payload;
use super::pointer::Why;
use super::reason::{Failure, Reason, Refusal};
use super::receipt::{Receipt, Status};
use super::retry::{self, Decision, Outcome, Progress};
use super::send::Attempt;
use super::standing::{Record, Standing, State, Subject, state_key};
use super::sweep;
use super::task::NotItsTurn;
use super::worker::{Answer, Job, Worker};
use crate::clock::rfc3339;
use crate::event::{id, trace};
use crate::telemetry::metrics::{AttemptLabels, DeadLabels};
use crate::telemetry::traces;

/// About how long a delivery to a paused destination waits before it asks by itself.
const PAUSED: Duration = Duration::from_secs(3600);

/// About how long a delivery waits for which there was no file descriptor.
const NO_DESCRIPTOR: Duration = Duration::from_secs(2);

/// Why a callback of a task is not sent: a later one says more.
const SUPERSEDED: &str = "superseded";

/// What came of an attempt, and how long it took.
type Attempted<'a> = Option<(&'a Attempt, Duration)>;

impl Worker {
    /// Works on one delivery up to the point where its message can be acked.
    pub(super) async fn work(&self, job: &Job<'_>, in_doubt: bool) -> Answer {
        let (agent, delivery_id, about) = (&job.message.agent, &job.route.delivery_id, job.original.about());
        let Some(_hold) = self.held.take(about, delivery_id) else { return Answer::Silence };
        if in_doubt {
            match Box::pin(self.ledger.look_up(agent, delivery_id, about, job.attempt)).await {
                Ok(Known::Open) => {}
                Ok(Known::Ended | Known::Scheduled) => {
                    self.metrics.already_done.inc();
                    tracing::debug!("Delivery {delivery_id} of {agent} was dealt with before");
                    return Answer::Ack;
                }
                Err(error) => {
                    tracing::warn!("A delivery has to wait: {error}");
                    return Answer::Again;
                }
            }
        }
        if let Some(detail) = &job.route.superseded {
            Box::pin(self.cancel(job, SUPERSEDED, detail.clone())).await;
            return Answer::Ack;
        }
        match &job.route.destination {
            Err(refusal) => Box::pin(self.give_up(job, refusal, None, None)).await,
            Ok(destination) => {
                let mut connection = job.received.map_or(0, |received| received.asked_over());
                let due = loop {
                    match self.approach(job, destination, connection).await {
                        Ok(due) => break due,
                        Err(Interrupted) => match Box::pin(self.resume(job)).await {
                            Resumed::On(confirmed) => connection = confirmed,
                            Resumed::Ended => break None,
                            Resumed::LeftToStream => return Answer::LeftToStream,
                        },
                    }
                };
                if let Some(due) = due.filter(|_| job.in_line) {
                    return Answer::AgainAt(due);
                }
            }
        }
        Answer::Ack
    }

    /// Makes the attempt, if one may be made now; else lets the delivery wait. Returns when it comes again, if it does.
    /// The error: the `connection` over which it was made sure that nobody else makes it is no longer there.
    async fn approach(
        &self,
        job: &Job<'_>,
        destination: &Destination,
        connection: u64,
    ) -> Result<Option<SystemTime>, Interrupted> {
        let mut standing = self.standing(job, destination);
        if matches!(standing, Standing::Disabled(_)) {
            // This ends the delivery, so it is decided on what the bucket has now: the watch may be a moment behind.
            self.refresh(job).await;
            standing = self.standing(job, destination);
        }
        match standing {
            Standing::Open => {}
            Standing::Paused => {
                // Whoever resumes it brings the delivery forward; this is for when nobody is there to do it.
                let until = self.clock.now() + PAUSED.mul_f64(0.5 + rand::random::<f64>());
                return Ok(Box::pin(self.hold(job, Why::Paused, until)).await);
            }
            ended => {
                Box::pin(self.end_by_word(job, ended)).await;
                return Ok(None);
            }
        }
        match Box::pin(self.in_turn(job)).await {
            Ok(()) => {}
            Err(NotItsTurn::Superseded(detail)) => {
                Box::pin(self.cancel(job, SUPERSEDED, detail)).await;
                return Ok(None);
            }
            Err(NotItsTurn::NotYet(until)) => return Ok(Box::pin(self.hold(job, Why::Turn, until)).await),
        }
        let made = match self.registry.now().with_reply(job.message, job.original.stored) {
            Ok(message) => self.sender.payload(destination, &message, job.original.stored).await,
            Err(refusal) => Err(refusal),
        };
        let payload = match made {
            Ok(payload) => payload,
            Err(refusal) => {
                // The same body would be made of it every time.
                Box::pin(self.give_up(job, &refusal, None, None)).await;
                return Ok(None);
            }
        };
        let policy = destination.policy();
        let token = job.route.token.as_deref().unwrap_or_default();
        match self.gates.pass(token, &job.message.agent, policy, job.held, !job.in_line).await {
            Ok(pass) => {
                self.may_begin(job, connection)?;
                Ok(self.attempt(job, destination, &payload, pass).await)
            }
            Err(NotNow { why, until }) => {
                Box::pin(self.tell_no_more(job)).await;
                Ok(Box::pin(self.hold(job, why, until)).await)
            }
        }
    }

    async fn attempt(
        &self,
        job: &Job<'_>,
        destination: &Destination,
        payload: &Payload,
        pass: Pass,
    ) -> Option<SystemTime> {
        let span = tracing::info_span!(
            target: traces::TARGET,
            "deliver webhook",
            otel.kind = "client",
            hookbridge.destination = job.route.metric_name,
            hookbridge.delivery = job.route.delivery_id,
            hookbridge.attempt = job.attempt,
            http.response.status_code = tracing::field::Empty,
        );
        let trace = traces::continue_from(&span, job.message.trace.clone());
        let begun = Instant::now();
        let sent = self.sender.attempt(destination, job.message, payload, &trace);
        let attempt = sent.instrument(span.clone()).await;
        let (outcome, took) = (&attempt.outcome, begun.elapsed());
        let (now, chance) = (self.clock.now(), rand::random());
        if let Outcome::Busy { retry_after, .. } = outcome {
            // Before the place is free: nothing begins behind it.
            let token = job.route.token.as_deref().unwrap_or_default();
            self.gates.holds().asked(&held_as(token, &job.message.agent), now + *retry_after, now);
        }
        pass.ended(destination.policy(), outcome.health(), took);
        span.record("http.response.status_code", outcome.status());
        let progress = Progress { attempt: job.attempt, stored: job.original.stored, now, chance };
        let decision = retry::decide(outcome, destination.policy(), progress);
        self.count(job, outcome, decision, took);
        match decision {
            Decision::NotMade => return Box::pin(self.not_now(job, outcome)).await,
            Decision::Delivered => {
                self.forget_mark(&job.message.agent, &job.route.delivery_id).await;
                let receipt = self.receipt(job, Status::Delivered, &attempt, took);
                self.ledger.receipt(&receipt, Some(&trace)).await;
            }
            Decision::RetryAt(due) => {
                // Something may have been said while the attempt was made.
                let standing = self.standing(job, destination);
                if matches!(standing, Standing::Cancelled(_) | Standing::Disabled(_)) {
                    let made = Job { attempt: job.attempt + 1, ..*job };
                    Box::pin(self.end_by_word(&made, standing)).await;
                    return None;
                }
                let is_bounded = destination.policy().last_moment(job.original.stored) == Some(due);
                let detail = outcome.detail().map(|detail| match is_bounded {
                    true => format!(
                        "{detail}; the next attempt is the last one that max_age or the retention of OUTBOX allows"
                    ),
                    false => detail,
                });
                Box::pin(self.put_off(job, &attempt, detail, due, took, &trace)).await;
                return Some(due);
            }
            Decision::Dead(reason) => {
                let refusal = Refusal::new(reason, outcome.detail().unwrap_or_default());
                if let (Reason::Gone, Destination::Endpoint(endpoint)) = (reason, destination) {
                    Box::pin(self.disable(endpoint)).await;
                }
                Box::pin(self.give_up(job, &refusal, Some((&attempt, took)), Some(&trace))).await;
            }
        }
        None
    }

    /// Reschedules a delivery that could not be attempted because no file descriptor was left.
    async fn not_now(&self, job: &Job<'_>, outcome: &Outcome) -> Option<SystemTime> {
        if let Some(left_out) = self.said_no_descriptor.pass(self.clock.now()) {
            tracing::error!(
                endpoint.name = job.route.metric_name,
                "Out of file descriptors for deliveries ({}); they are rescheduled without using an attempt \
                 ({left_out} similar messages suppressed). Raise the open-file limit, or lower egress.concurrency and \
                 gateway.max_connections",
                outcome.detail().unwrap_or_default()
            );
        }
        self.tell_no_more(job).await;
        let until = self.clock.now() + NO_DESCRIPTOR.mul_f64(0.5 + rand::random::<f64>());
        self.hold(job, Why::NoDescriptor, until).await
    }

    /// Reads the state of a delivery's destination from the bucket, if there is one.
    async fn refresh(&self, job: &Job<'_>) {
        let key = state_key(job.route.token.as_deref().unwrap_or_default());
        match self.broker.endpoint_record(&key).await {
            Ok(Some(value)) => self.hears(&key, Some(&value)),
            Ok(None) => {}
            Err(error) => tracing::debug!("Cannot read {key}: {error}"),
        }
    }

    pub(super) fn standing(&self, job: &Job<'_>, destination: &Destination) -> Standing {
        self.standings.standing(Subject {
            token: job.route.token.as_deref().unwrap_or_default(),
            url: destination.url().as_str(),
            agent: &job.message.agent,
            delivery_id: &job.route.delivery_id,
            sequence: job.original.sequence,
        })
    }

    /// Ends a delivery of which somebody said so.
    async fn end_by_word(&self, job: &Job<'_>, standing: Standing) {
        match standing {
            Standing::Cancelled(detail) => self.cancel(job, "cancelled", detail).await,
            Standing::Disabled(detail) => {
                self.give_up(job, &sweep::disabled(&job.route.public_name, &detail), None, None).await;
            }
            Standing::Open | Standing::Paused => {}
        }
    }

    /// Schedules the next attempt, then tells the agent.
    async fn put_off(
        &self,
        job: &Job<'_>,
        attempt: &Attempt,
        detail: Option<String>,
        due: SystemTime,
        took: Duration,
        trace: &trace::Context,
    ) {
        if self.is_lost(job.original).await {
            return Box::pin(self.give_up(job, &link::lost(), Some((attempt, took)), Some(trace))).await;
        }
        // What stands in a line waits there.
        if !job.in_line {
            self.schedule(job, job.attempt + 1, None, due).await;
            self.look_back(job, false);
        }
        let receipt = Receipt {
            next_attempt: Some(due),
            detail: detail.clone(),
            ..self.receipt(job, Status::Retrying, attempt, took)
        };
        self.ledger.receipt(&receipt, Some(trace)).await;
        tracing::info!(
            endpoint.name = job.route.metric_name,
            delivery.id = job.route.delivery_id,
            delivery.attempt = job.attempt,
            "Attempt failed ({}); next one {}",
            detail.unwrap_or_default(),
            rfc3339(due)
        );
    }

    pub(super) async fn give_up(
        &self,
        job: &Job<'_>,
        refusal: &Refusal,
        attempted: Attempted<'_>,
        trace: Option<&trace::Context>,
    ) {
        self.forget_mark(&job.message.agent, &job.route.delivery_id).await;
        let letter = DeadLetter {
            agent: &job.message.agent,
            message_id: &job.message.id,
            delivery_id: &job.route.delivery_id,
            destination: &job.route.public_name,
            attempt: if attempted.is_some() { job.attempt } else { job.attempt - 1 },
            refusal,
            original: Some(job.original),
            about: job.original.about(),
        };
        let trace = trace.or(job.message.trace.as_ref());
        self.bury(&letter, &job.route.metric_name, attempted, trace).await;
    }

    /// Writes a dead letter, then its receipt.
    pub(super) async fn bury(
        &self,
        letter: &DeadLetter<'_>,
        metric_name: &str,
        attempted: Attempted<'_>,
        trace: Option<&trace::Context>,
    ) {
        if self.ledger.write(&letter.message(self.broker.max_payload())).await.is_err() {
            // Headers that do not fit either: without body and original it always does.
            let bare = DeadLetter { original: None, ..*letter }.message(0);
            if self.ledger.write(&bare).await.is_err() {
                tracing::error!("No dead letter for {}: the server takes no message of its size", letter.delivery_id);
            }
        }
        let receipt = Receipt {
            http_status: attempted.and_then(|(attempt, _)| attempt.outcome.status()),
            failure: attempted.and_then(|(attempt, _)| attempt.outcome.failure()),
            duration: attempted.map(|(_, took)| took),
            response: attempted.and_then(|(attempt, _)| attempt.response.as_ref()),
            ..letter.receipt(self.clock.now())
        };
        self.ledger.receipt(&receipt, trace).await;
        let labels = DeadLabels { destination: metric_name.to_owned(), reason: letter.refusal.reason.as_str() };
        self.metrics.dead_letters.get_or_create(&labels).inc();
        tracing::warn!(
            agent.name = letter.agent,
            delivery.id = letter.delivery_id,
            "Delivery is dead ({}): {}",
            letter.refusal.reason,
            letter.refusal.detail
        );
    }

    fn receipt<'a>(&self, job: &'a Job<'_>, status: Status, attempt: &'a Attempt, took: Duration) -> Receipt<'a> {
        let outcome = &attempt.outcome;
        Receipt {
            agent: &job.message.agent,
            message_id: &job.message.id,
            delivery_id: &job.route.delivery_id,
            destination: &job.route.public_name,
            status,
            attempt: job.attempt,
            http_status: outcome.status(),
            failure: outcome.failure(),
            reason: None,
            detail: None,
            duration: Some(took),
            next_attempt: None,
            at: self.clock.now(),
            about: job.original.about(),
            response: attempt.response.as_ref(),
        }
    }

    /// Switches an endpoint off for everybody, as long as it has this URL. What waits for it ends in a sweep.
    async fn disable(&self, endpoint: &Endpoint) {
        tracing::warn!(
            endpoint.name = %endpoint.name,
            "Endpoint {} answered 410 Gone and is disabled until its URL changes or somebody enables it",
            endpoint.name
        );
        let token = id::endpoint_token(&endpoint.name);
        let record = Record {
            state: Some(State::Disabled),
            url: Some(endpoint.url.to_string()),
            reason: "it answered 410 Gone".to_owned(),
            by: "courier".to_owned(),
            at: rfc3339(self.clock.now()),
            ..self.standings.of(&token).unwrap_or_default()
        };
        let (key, word) = (state_key(&token), self.registry.sealer().word(&state_key(&token), &record));
        self.standings.set(&token, Some(record));
        self.standings.changed.notify_one();
        if let Err(error) = self.broker.put_endpoint(&key, word.into()).await {
            tracing::error!("Other couriers do not know that endpoint {} is disabled: {error}", endpoint.name);
        }
    }

    fn count(&self, job: &Job<'_>, outcome: &Outcome, decision: Decision, took: Duration) {
        let word = match decision {
            Decision::NotMade => return,
            Decision::Delivered => "delivered",
            Decision::RetryAt(_) => "retrying",
            Decision::Dead(_) => "dead",
        };
        let labels = AttemptLabels {
            destination: job.route.metric_name.clone(),
            outcome: word,
            error: outcome.failure().map_or("none", Failure::as_str),
        };
        self.metrics.attempts.get_or_create(&labels).inc();
        self.metrics.attempt_seconds.observe(took.as_secs_f64());
    }
}
