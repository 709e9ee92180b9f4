//! The courier: takes messages, makes attempts, and writes down what became of them before it acks.
//!
//! The order is the promise. Delivered: receipt confirmed, then ack. Failed: schedule confirmed, then ack.
//! Dead: dead letter confirmed, receipt confirmed, then ack. Whatever falls between two of these comes again,
//! and is found in the receipts before it is sent again.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::dead_letter::DeadLetter;
use super::destination::{Destination, Destinations};
use super::endpoint_state::EndpointStates;
use super::guard::Guard;
use super::held::Held;
use super::intake::{self, Message, Original};
use super::ledger::{Known, Ledger, NotWritten};
use super::pointer::{self, Pointer};
use super::reason::{Reason, Refusal};
use super::receipt::{Receipt, Status};
use super::retry::{self, Decision, Outcome, Policy, Progress};
use super::route::{self, Route};
use super::send::Sender;
use crate::broker::{Broker, COURIER, Consumer, Outgoing, Received, Schedule, StoredMessage};
use crate::clock::Clock;
use crate::config::{Config, StreamKind};
use crate::event::{id, trace};
use crate::telemetry::metrics::{AttemptLabels, DeadLabels};
use crate::telemetry::{Metrics, traces};

/// How often a delivery in progress tells the stream that it is alive; a third of the ack wait.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
/// Pulls at once on each of the two streams.
const PULLS: usize = 4;
/// When a message that could not be dealt with comes again.
const AGAIN: Duration = Duration::from_secs(5);

/// The outbound role. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Courier(Arc<Inner>);

struct Inner {
    broker: Broker,
    destinations: Arc<Destinations>,
    guard: Guard,
    sender: Sender,
    policy: Policy,
    slots: NonZeroUsize,
    states: EndpointStates,
    ledger: Ledger,
    held: Held,
    clock: Clock,
    metrics: Metrics,
    /// The name of OUTBOX, which is part of the ids made for messages without one.
    outbox: String,
}

/// One delivery in hand.
struct Job<'a> {
    original: &'a Original,
    message: &'a Message,
    route: &'a Route,
    attempt: u32,
    stored: SystemTime,
}

/// What to tell the stream about the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Everything is written down.
    Ack,
    /// Something could not be looked up or written; it has to come again.
    Again,
    /// Not a message that anybody can act on.
    Terminate,
    /// This process has it in hand already; whoever does will answer.
    Silence,
}

impl From<Result<(), NotWritten>> for Answer {
    fn from(written: Result<(), NotWritten>) -> Self {
        if written.is_ok() { Self::Ack } else { Self::Again }
    }
}

impl Courier {
    /// Prepares the role. The error is TLS that cannot be set up.
    pub(crate) fn new(
        config: &Config,
        broker: Broker,
        destinations: Arc<Destinations>,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Self, rustls::Error> {
        let (egress, guard) = (&config.egress, Guard::new(&config.egress));
        let slots = NonZeroUsize::new(egress.concurrency).unwrap_or(NonZeroUsize::MIN);
        let policy = Policy {
            waits: egress.retry.clone(),
            max_retry_after: egress.max_retry_after,
            kept_for: config.streams.limits(StreamKind::Outbox).max_age,
        };
        Ok(Self(Arc::new(Inner {
            sender: Sender::new(guard.clone(), egress.timeout, slots.get(), clock.clone())?,
            ledger: Ledger { broker: broker.clone(), metrics: metrics.clone() },
            outbox: broker.names().stream(StreamKind::Outbox),
            states: EndpointStates::default(),
            held: Held::default(),
            broker,
            destinations,
            guard,
            policy,
            slots,
            clock,
            metrics,
        })))
    }

    /// Works until stopped, then finishes what it holds.
    pub(crate) async fn run(self, stop: CancellationToken) {
        if stop.run_until_cancelled(self.0.states.load(&self.0.broker)).await.is_none() {
            return;
        }
        let deliveries = TaskTracker::new();
        let outbox = Consumer::new(self.0.broker.clone(), StreamKind::Outbox, COURIER, self.0.slots);
        let retry = Consumer::new(self.0.broker.clone(), StreamKind::Retry, COURIER, self.0.slots);
        let from_outbox = |received, slot| drop(deliveries.spawn(self.clone().take_outbox(received, slot)));
        let from_retry = |received, slot| drop(deliveries.spawn(self.clone().take_retry(received, slot)));
        let pulls = async {
            tokio::join!(
                futures_util::future::join_all((0..PULLS).map(|_| outbox.run(&stop, from_outbox))),
                futures_util::future::join_all((0..PULLS).map(|_| retry.run(&stop, from_retry))),
            )
        };
        tokio::join!(pulls, self.0.states.follow(&self.0.broker, &stop));
        deliveries.close();
        deliveries.wait().await;
    }

    async fn take_outbox(self, received: Received, slot: OwnedSemaphorePermit) {
        self.0.metrics.deliveries.inc();
        let answer = alive(&received, self.0.handle_outbox(&received)).await;
        finish(&received, answer).await;
        self.0.metrics.deliveries.dec();
        drop(slot);
    }

    async fn take_retry(self, received: Received, slot: OwnedSemaphorePermit) {
        self.0.metrics.deliveries.inc();
        let answer = alive(&received, self.0.handle_retry(&received)).await;
        finish(&received, answer).await;
        self.0.metrics.deliveries.dec();
        drop(slot);
    }
}

/// Does the work, and tells the stream now and then that it is still being done.
async fn alive(received: &Received, work: impl Future<Output = Answer>) -> Answer {
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(SIGN_OF_LIFE, &mut work).await {
            Ok(answer) => return answer,
            Err(_) => received.progress().await,
        }
    }
}

async fn finish(received: &Received, answer: Answer) {
    match answer {
        Answer::Ack => received.ack().await,
        Answer::Again => received.give_back(AGAIN).await,
        Answer::Terminate => received.terminate().await,
        Answer::Silence => {}
    }
}

impl Inner {
    async fn handle_outbox(&self, received: &Received) -> Answer {
        let original = Original {
            subject: received.subject.clone(),
            headers: received.headers.clone(),
            payload: received.payload.clone(),
            sequence: received.sequence,
            fallback_id: id::stored_message(&self.outbox, received.sequence, received.stored),
        };
        let message = match intake::understand(&original) {
            Ok(message) => message,
            Err(malformed) => return self.bury_malformed(&original, &malformed, self.in_doubt(received)).await,
        };
        let routes = route::route(&self.destinations, &self.guard, &original.subject, &message);
        match routes.as_slice() {
            [route] => {
                let job = Job { original: &original, message: &message, route, attempt: 1, stored: received.stored };
                self.work(&job, self.in_doubt(received)).await
            }
            routes => self.split(&original, &message, routes).await,
        }
    }

    /// Gives every destination of a fan-out a message of its own in RETRY, due now.
    ///
    /// The stream recognises a repeat of the split for a while by its id; after that the receipts do.
    async fn split(&self, original: &Original, message: &Message, routes: &[Route]) -> Answer {
        for route in routes {
            let Some(token) = &route.token else { continue };
            let pointer = pointer(original, message, route, 1);
            let outgoing = Outgoing {
                subject: pointer::due_on(token, &route.delivery_id),
                headers: pointer.headers(),
                message_id: Some(format!("{}:{}", original.sequence, route.delivery_id)),
                ..Outgoing::default()
            };
            if self.ledger.write(&outgoing).await.is_err() {
                return Answer::Again;
            }
        }
        Answer::Ack
    }

    async fn handle_retry(&self, received: &Received) -> Answer {
        let Some(pointer) = Pointer::read(&received.headers) else {
            return self.forged(received, "it has none of the headers that Hookbridge writes");
        };
        let original = match self.broker.message(StreamKind::Outbox, pointer.sequence).await {
            Ok(Some(stored)) => stored,
            Ok(None) => return self.without_body(received, &pointer).await,
            Err(error) => {
                tracing::warn!("A delivery has to wait: {error}");
                return Answer::Again;
            }
        };
        let (stored, original) = (original.stored, self.original(original));
        let Ok(message) = intake::understand(&original) else {
            return self.forged(received, "it points to a message that was not understood");
        };
        // The outbox message says where it goes, not the pointer: whoever forges one cannot redirect anything.
        let routes = route::route(&self.destinations, &self.guard, &original.subject, &message);
        let known = routes.iter().find(|route| route.delivery_id == pointer.delivery_id);
        let vanished;
        let route = match known {
            Some(route) if is_due_on(&received.subject, route, original.sequence) => route,
            Some(route) if route.token.is_none() => route,
            None if message.agent == pointer.agent && message.id == pointer.message_id => {
                let detail = format!("endpoint `{}` no longer wants this message", pointer.destination);
                let refusal = Refusal::new(Reason::Unroutable, detail);
                vanished = Route {
                    public_name: pointer.destination.clone(),
                    ..Route::nowhere(pointer.delivery_id.clone(), refusal)
                };
                &vanished
            }
            _ => return self.forged(received, "it does not belong to the message that it points to"),
        };
        let job = Job { original: &original, message: &message, route, attempt: pointer.attempt, stored };
        self.work(&job, true).await
    }

    fn original(&self, stored: StoredMessage) -> Original {
        Original {
            fallback_id: id::stored_message(&self.outbox, stored.sequence, stored.stored),
            subject: stored.subject,
            headers: stored.headers,
            payload: stored.payload,
            sequence: stored.sequence,
        }
    }

    fn forged(&self, received: &Received, why: &str) -> Answer {
        self.metrics.forged_retries.inc();
        tracing::warn!(
            nats.subject = received.subject,
            nats.sequence = received.sequence,
            "Refused a message in RETRY: {why}; somebody who is not Hookbridge can publish there"
        );
        Answer::Terminate
    }

    /// A pointer whose message is not there: expired if it once was, forged if it never can have been.
    async fn without_body(&self, received: &Received, pointer: &Pointer) -> Answer {
        let last = match self.broker.span(StreamKind::Outbox).await {
            Ok((_, last)) => last,
            Err(error) => {
                tracing::warn!("A delivery has to wait: {error}");
                return Answer::Again;
            }
        };
        if pointer.sequence == 0 || pointer.sequence > last || !crate::event::name::is_token(&pointer.agent) {
            return self.forged(received, "it points to no message");
        }
        match self.ledger.look_up(&pointer.agent, &pointer.delivery_id, pointer.attempt).await {
            Ok(Known::Open) => {}
            Ok(Known::Ended | Known::Scheduled) => return Answer::Ack,
            Err(_) => return Answer::Again,
        }
        let refusal = Refusal::new(Reason::Expired, "the message is no longer in OUTBOX");
        let made = pointer.attempt - 1;
        let letter = DeadLetter {
            agent: &pointer.agent,
            message_id: &pointer.message_id,
            delivery_id: &pointer.delivery_id,
            destination: &pointer.destination,
            attempt: made,
            refusal: &refusal,
            original: None,
        };
        self.bury(&letter, "", None, None).await.into()
    }

    async fn bury_malformed(&self, original: &Original, malformed: &intake::Malformed, in_doubt: bool) -> Answer {
        let Some(_hold) = self.held.take(&malformed.agent, &malformed.id) else { return Answer::Silence };
        if in_doubt {
            match self.ledger.look_up(&malformed.agent, &malformed.id, 0).await {
                Ok(Known::Ended) => return Answer::Ack,
                Ok(_) => {}
                Err(_) => return Answer::Again,
            }
        }
        let letter = DeadLetter {
            agent: &malformed.agent,
            message_id: &malformed.id,
            delivery_id: &malformed.id,
            destination: "",
            attempt: 0,
            refusal: &malformed.refusal,
            original: Some(original),
        };
        self.bury(&letter, "", None, None).await.into()
    }

    /// Works on one delivery up to the point where its message can be acked.
    async fn work(&self, job: &Job<'_>, in_doubt: bool) -> Answer {
        let (agent, delivery_id) = (&job.message.agent, &job.route.delivery_id);
        let Some(_hold) = self.held.take(agent, delivery_id) else { return Answer::Silence };
        if in_doubt {
            match self.ledger.look_up(agent, delivery_id, job.attempt).await {
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
        let destination = match &job.route.destination {
            Ok(destination) => destination,
            Err(refusal) => return self.give_up(job, refusal, None, None).await.into(),
        };
        if let Destination::Endpoint(endpoint) = destination
            && self.states.is_disabled(&endpoint.name, &endpoint.url)
        {
            let detail = format!("endpoint `{}` is disabled since it answered 410 Gone", endpoint.name);
            let refusal = Refusal::new(Reason::EndpointDisabled, detail);
            return self.give_up(job, &refusal, None, None).await.into();
        }
        self.attempt(job, destination).await
    }

    async fn attempt(&self, job: &Job<'_>, destination: &Destination) -> Answer {
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
        let outcome = self.sender.attempt(destination, job.message, &trace).instrument(span.clone()).await;
        let took = begun.elapsed();
        span.record("http.response.status_code", outcome.status());
        let progress =
            Progress { attempt: job.attempt, stored: job.stored, now: self.clock.now(), chance: rand::random() };
        let decision = retry::decide(&outcome, &self.policy, progress);
        self.count(job, &outcome, decision, took);
        match decision {
            Decision::Delivered => {
                let receipt = self.receipt(job, Status::Delivered, &outcome, took);
                self.ledger.receipt(&receipt, Some(&trace)).await;
                Answer::Ack
            }
            Decision::RetryAt(due) => self.retry(job, &outcome, due, took, &trace).await.into(),
            Decision::Dead(reason) => {
                let refusal = Refusal::new(reason, outcome.detail().unwrap_or_default());
                let given_up = self.give_up(job, &refusal, Some((&outcome, took)), Some(&trace)).await;
                if reason == Reason::Gone
                    && let Destination::Endpoint(endpoint) = destination
                {
                    self.disable(endpoint).await;
                }
                given_up.into()
            }
        }
    }

    /// Schedules the next attempt, then tells the agent.
    async fn retry(
        &self,
        job: &Job<'_>,
        outcome: &Outcome,
        due: SystemTime,
        took: Duration,
        trace: &trace::Context,
    ) -> Result<(), NotWritten> {
        self.schedule(job, due).await?;
        let receipt = Receipt {
            next_attempt: Some(due),
            detail: outcome.detail(),
            ..self.receipt(job, Status::Retrying, outcome, took)
        };
        self.ledger.receipt(&receipt, Some(trace)).await;
        tracing::info!(
            endpoint.name = job.route.metric_name,
            delivery.id = job.route.delivery_id,
            delivery.attempt = job.attempt,
            "Attempt failed ({}); next one {}",
            outcome.detail().unwrap_or_default(),
            crate::clock::rfc3339(due)
        );
        Ok(())
    }

    /// Puts the next attempt into RETRY, on the delivery's own subject, or beside it where another message of
    /// the same delivery id waits there already.
    async fn schedule(&self, job: &Job<'_>, due: SystemTime) -> Result<(), NotWritten> {
        let Some(token) = &job.route.token else { return Ok(()) };
        let pointer = pointer(job.original, job.message, job.route, job.attempt + 1);
        for delivery_token in waiting_tokens(&job.route.delivery_id, job.original.sequence) {
            let waits_on = pointer::waits_on(token, &delivery_token);
            let target = pointer::due_on(token, &delivery_token);
            let schedule = Schedule { waits_on: waits_on.clone(), target, due, headers: pointer.headers() };
            if self.ledger.schedule(&schedule).await? {
                return Ok(());
            }
            // Somebody waits there: this delivery itself, if an earlier try was confirmed without our hearing it.
            let waiting = self.broker.last(StreamKind::Retry, &waits_on).await.map_err(|_| NotWritten)?;
            let waiting = waiting.and_then(|stored| Pointer::read(&stored.headers));
            if waiting.is_some_and(|waiting| waiting.sequence == pointer.sequence && waiting.attempt >= pointer.attempt)
            {
                return Ok(());
            }
        }
        tracing::error!("Delivery {} cannot be scheduled: its places in RETRY are taken", job.route.delivery_id);
        Err(NotWritten)
    }

    async fn give_up(
        &self,
        job: &Job<'_>,
        refusal: &Refusal,
        attempted: Option<(&Outcome, Duration)>,
        trace: Option<&trace::Context>,
    ) -> Result<(), NotWritten> {
        let letter = DeadLetter {
            agent: &job.message.agent,
            message_id: &job.message.id,
            delivery_id: &job.route.delivery_id,
            destination: &job.route.public_name,
            attempt: if attempted.is_some() { job.attempt } else { job.attempt - 1 },
            refusal,
            original: Some(job.original),
        };
        let trace = trace.or(job.message.trace.as_ref());
        self.bury(&letter, &job.route.metric_name, attempted, trace).await
    }

    /// Writes a dead letter, then its receipt.
    async fn bury(
        &self,
        letter: &DeadLetter<'_>,
        metric_name: &str,
        attempted: Option<(&Outcome, Duration)>,
        trace: Option<&trace::Context>,
    ) -> Result<(), NotWritten> {
        let max_payload = self.broker.link().ready().map_or(usize::MAX, |ready| ready.max_payload);
        self.ledger.write(&letter.message(max_payload)).await?;
        let receipt = Receipt {
            agent: letter.agent,
            message_id: letter.message_id,
            delivery_id: letter.delivery_id,
            destination: letter.destination,
            status: Status::Dead,
            attempt: letter.attempt,
            http_status: attempted.and_then(|(outcome, _)| outcome.status()),
            failure: attempted.and_then(|(outcome, _)| outcome.failure()),
            reason: Some(letter.refusal.reason),
            detail: Some(letter.refusal.detail.clone()),
            duration: attempted.map(|(_, took)| took),
            next_attempt: None,
            at: self.clock.now(),
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
        Ok(())
    }

    fn receipt<'a>(&self, job: &'a Job<'_>, status: Status, outcome: &Outcome, took: Duration) -> Receipt<'a> {
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
        }
    }

    /// Switches an endpoint off for everybody, and ends what waits for it.
    async fn disable(&self, endpoint: &super::destination::Endpoint) {
        tracing::warn!(
            endpoint.name = %endpoint.name,
            "Endpoint {} answered 410 Gone and is disabled until its URL changes or its state is removed",
            endpoint.name
        );
        if let Err(error) = self.states.disable(&self.broker, &endpoint.name, &endpoint.url, self.clock.now()).await {
            tracing::error!("Other couriers do not know that endpoint {} is disabled: {error}", endpoint.name);
        }
        if let Err(error) = self.sweep(endpoint).await {
            tracing::warn!("Deliveries that wait for endpoint {} end when they are due: {error}", endpoint.name);
        }
    }

    /// Takes what waits for a disabled endpoint off the stream one by one, each with dead letter and receipt.
    async fn sweep(&self, endpoint: &super::destination::Endpoint) -> anyhow::Result<()> {
        let waiting = pointer::waits_on(&id::endpoint_token(&endpoint.name), "*");
        let mut from = 1;
        while let Some(stored) = self.broker.next(StreamKind::Retry, &waiting, from).await? {
            from = stored.sequence + 1;
            let Some(pointer) = Pointer::read(&stored.headers) else { continue };
            let Some(_hold) = self.held.take(&pointer.agent, &pointer.delivery_id) else { continue };
            let original = self.broker.message(StreamKind::Outbox, pointer.sequence).await?;
            let original = original.map(|stored| self.original(stored));
            let detail = format!("endpoint `{}` answered 410 Gone to another delivery", endpoint.name);
            let refusal = Refusal::new(Reason::EndpointDisabled, detail);
            let letter = DeadLetter {
                agent: &pointer.agent,
                message_id: &pointer.message_id,
                delivery_id: &pointer.delivery_id,
                destination: endpoint.name.as_str(),
                attempt: pointer.attempt - 1,
                refusal: &refusal,
                original: original.as_ref(),
            };
            let written = self.bury(&letter, endpoint.name.as_str(), None, None).await;
            written.map_err(|NotWritten| anyhow::anyhow!("a dead letter could not be written"))?;
            // One that fires in this moment finds its receipt.
            self.broker.remove(StreamKind::Retry, stored.sequence).await?;
        }
        Ok(())
    }

    fn count(&self, job: &Job<'_>, outcome: &Outcome, decision: Decision, took: Duration) {
        let word = match decision {
            Decision::Delivered => "delivered",
            Decision::RetryAt(_) => "retrying",
            Decision::Dead(_) => "dead",
        };
        let labels = AttemptLabels {
            destination: job.route.metric_name.clone(),
            outcome: word,
            error: outcome.failure().map_or("none", super::reason::Failure::as_str),
        };
        self.metrics.attempts.get_or_create(&labels).inc();
        self.metrics.attempt_seconds.observe(took.as_secs_f64());
    }

    /// Whether this message may have been worked on before: acks do not survive a killed server.
    fn in_doubt(&self, received: &Received) -> bool {
        let trusted = self.broker.link().ready().filter(|ready| ready.connection == received.connection);
        received.delivered > 1 || trusted.is_none_or(|ready| received.sequence <= ready.outbox_last)
    }
}

fn pointer(original: &Original, message: &Message, route: &Route, attempt: u32) -> Pointer {
    Pointer {
        sequence: original.sequence,
        agent: message.agent.clone(),
        message_id: message.id.clone(),
        delivery_id: route.delivery_id.clone(),
        destination: route.public_name.clone(),
        attempt,
    }
}

/// The subject tokens that a delivery can wait under: its id, and its id with its place in OUTBOX.
fn waiting_tokens(delivery_id: &str, sequence: u64) -> [String; 2] {
    [delivery_id.to_owned(), format!("{delivery_id}-{sequence}")]
}

/// Whether a message in RETRY stands on a subject of this route.
fn is_due_on(subject: &str, route: &Route, sequence: u64) -> bool {
    let Some(token) = &route.token else { return false };
    waiting_tokens(&route.delivery_id, sequence).iter().any(|delivery| pointer::due_on(token, delivery) == subject)
}
