//! From a message of OUTBOX or RETRY to deliveries: understand, route, split, resolve.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::dead_letter::DeadLetter;
use super::destination::Destination;
use super::gate::Gates;
use super::held::Held;
use super::intake::{self, Message, Original, Target};
use super::ledger::{Known, Ledger};
use super::line::Lines;
use super::pointer::{Pointer, Why};
use super::reason::{Reason, Refusal};
use super::registry::Registry;
use super::route::{self, Route};
use super::send::Sender;
use super::standing::Standings;
use super::task::{Arrived, Next};
use super::turns::{Turn, Turns};
use super::untold::Untold;
use crate::broker::{Broker, Outgoing, Received, StoredMessage};
use crate::clock::Clock;
use crate::config::{Config, MOST_ATTEMPTS, StreamKind};
use crate::outbound::Guard;
use crate::task::{DEADLINE, TASK_ID};
use crate::telemetry::Metrics;
use crate::telemetry::logs::Seldom;

/// Everything that a delivery needs.
pub(super) struct Worker {
    pub(super) broker: Broker,
    pub(super) registry: Arc<Registry>,
    pub(super) guard: Guard,
    pub(super) sender: Sender,
    pub(super) standings: Standings,
    pub(super) ledger: Ledger,
    pub(super) held: Held,
    pub(super) gates: Gates,
    /// The ordered endpoints whose lines are known to exist.
    pub(super) lines: Lines,
    /// The order of what is said of each task.
    pub(super) turns: Turns,
    /// Agents decide how often an update is put off.
    pub(super) said_put_off: Seldom,
    /// Nothing helps at once where there is no file descriptor.
    pub(super) said_no_descriptor: Seldom,
    /// How long the state of a task is kept that has ended.
    pub(super) task_retention: Duration,
    /// Whether it was looked for lines that nobody needs any more.
    pub(super) lines_looked_at: AtomicBool,
    /// What this process calls itself where others read it.
    pub(super) process: String,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    /// The name of OUTBOX, which is part of the ids made for messages without one.
    outbox: Arc<str>,
    /// The highest sequence of OUTBOX that was taken.
    highest: AtomicU64,
    /// How often it looks for what RETRY has lost, if it does.
    pub(super) repair_every: Option<Duration>,
    /// When this process began.
    pub(super) started: SystemTime,
    /// Cancelled when the courier takes no more and finishes what it has.
    stop: OnceLock<CancellationToken>,
}

/// What to tell the stream about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Everything is written down.
    Ack,
    /// Something could not be looked up; it has to come again.
    Again,
    /// It stands in a line, and comes again at this time.
    AgainAt(SystemTime),
    /// Not a message that anybody can act on.
    Terminate,
    /// It is the stream's again, and comes again by itself.
    LeftToStream,
    /// This process has the delivery in hand already; whoever does answers for its own message.
    Silence,
}

/// One delivery in hand.
pub(super) struct Job<'a> {
    pub(super) original: &'a Original,
    pub(super) message: &'a Message,
    pub(super) route: &'a Route,
    /// The attempt that comes next; the first is 1.
    pub(super) attempt: u32,
    /// Why it waited, where that was not a failed attempt.
    pub(super) held: Option<Why>,
    /// Whether it stands in the line of an ordered endpoint, where it also waits.
    pub(super) in_line: bool,
    /// Its place among the updates of its task.
    pub(super) turn: Option<&'a Mutex<Turn>>,
    /// The message in hand; none where no attempt can follow.
    pub(super) received: Option<&'a Received>,
}

/// What a pointer leads to.
pub(super) enum Resolved {
    Delivery {
        original: Original,
        message: Box<Message>,
        /// None for an update of a task: where it goes depends on the task's state.
        route: Option<Box<Route>>,
    },
    /// The outbox message is gone, and how.
    Expired(&'static str),
    /// It does not belong to any message of ours.
    Forged(&'static str),
    /// NATS did not say.
    Unknown,
}

impl Worker {
    pub(super) fn new(
        config: &Config,
        broker: Broker,
        registry: Arc<Registry>,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Self, rustls::Error> {
        let (egress, guard) = (&config.egress, Guard::new(&config.egress));
        Ok(Self {
            sender: Sender::new(guard.clone(), egress, clock.clone())?,
            ledger: Ledger { broker: broker.clone(), metrics: metrics.clone(), untold: Untold::default() },
            outbox: broker.names().stream(StreamKind::Outbox).into(),
            standings: Standings::new(registry.sealer()),
            held: Held::default(),
            lines: Lines::default(),
            turns: Turns::default(),
            said_put_off: Seldom::default(),
            said_no_descriptor: Seldom::default(),
            task_retention: config.tasks.retention,
            lines_looked_at: AtomicBool::new(false),
            gates: Gates::new(egress.concurrency, clock.clone()),
            process: format!("{:016x}", rand::random::<u64>()),
            highest: AtomicU64::new(0),
            repair_every: Some(egress.repair_every).filter(|every| !every.is_zero()),
            started: clock.now(),
            stop: OnceLock::new(),
            broker,
            registry,
            guard,
            clock,
            metrics,
        })
    }

    /// Lets what waits for a connection end when the courier stops.
    pub(super) fn stops_with(&self, stop: &CancellationToken) {
        self.stop.get_or_init(|| stop.clone());
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stop.get().is_some_and(CancellationToken::is_cancelled)
    }

    /// Hears of a key of the bucket: what is said about a destination or a delivery, an endpoint, a breaker.
    pub(super) fn hears(&self, key: &str, value: Option<&[u8]>) {
        let heard = match self.standings.hears(key, value) {
            Ok(false) => self.registry.hears(key, value),
            heard => heard,
        };
        let heard = match heard {
            Ok(false) => self.hears_hold(key, value),
            heard => heard,
        };
        match heard {
            Ok(true) => tracing::debug!(bucket.key = key, "Heard of {key}"),
            Ok(false) => drop(self.hears_breaker(key, value)),
            Err(why) => {
                self.metrics.refused_records.inc();
                tracing::error!(
                    bucket.key = key,
                    "Refused the record {key} in the bucket of endpoints, what was valid before stays: it {why}"
                );
            }
        }
    }

    /// Deals with a message of OUTBOX.
    pub(super) async fn outbox(&self, received: &Received, arrived: Arrived) -> Answer {
        let in_doubt = self.in_doubt(received);
        let original = self.received(received);
        let message = match intake::understand(&original) {
            Ok(message) => message,
            Err(malformed) => return Box::pin(self.bury_malformed(&original, &malformed, in_doubt)).await,
        };
        if let Target::Task(_) = &message.target {
            return Box::pin(self.update(
                received,
                &original,
                message,
                arrived,
                Next { attempt: 1, held: None },
                in_doubt,
            ))
            .await;
        }
        let mut routes = route::route(&self.registry.now(), &self.guard, &original.subject, &message);
        if !self.leave_to_lines(&original.subject, &mut routes) {
            return Answer::Again;
        }
        // A line that is closing may have it, too.
        let closing = |route: &Route| match &route.destination {
            Ok(Destination::Endpoint(endpoint)) => self.lines.works_for(&endpoint.name),
            _ => false,
        };
        let in_doubt = in_doubt || routes.iter().any(closing);
        let [route] = routes.as_slice() else {
            return Box::pin(self.split(&original, &message, &routes)).await;
        };
        let job = Job {
            original: &original,
            message: &message,
            route,
            attempt: 1,
            held: None,
            in_line: false,
            turn: None,
            received: Some(received),
        };
        self.work(&job, in_doubt).await
    }

    /// Deals with a message of RETRY that is due.
    pub(super) async fn retry(&self, received: &Received) -> Answer {
        if let (Some(task_id), Some(_)) = (received.headers.get(TASK_ID), received.headers.get(DEADLINE)) {
            return Box::pin(self.deadline(received, task_id)).await;
        }
        let Some(pointer) = Pointer::read(&received.headers) else {
            return self.forged(received, "it has none of the headers that Hookbridge writes");
        };
        // It may have waited under a longer schedule than the one that is configured now.
        if !pointer.is_due_on(&received.subject) || pointer.attempt > MOST_ATTEMPTS {
            return self.forged(received, "it is not where, or not as late, as Hookbridge would have it");
        }
        match self.resolve(&pointer).await {
            Resolved::Delivery { original, message, route: None } => {
                if message.id != pointer.delivery_id {
                    return self.forged(received, "it points to another delivery than the message has");
                }
                let next = Next { attempt: pointer.attempt, held: pointer.held };
                self.update(received, &original, *message, Arrived::Other, next, true).await
            }
            Resolved::Delivery { original, message, route: Some(route) } => {
                let (attempt, route) = (pointer.attempt, &route);
                let job = Job {
                    original: &original,
                    message: &message,
                    route,
                    attempt,
                    held: pointer.held,
                    in_line: false,
                    turn: None,
                    received: Some(received),
                };
                self.work(&job, true).await
            }
            Resolved::Expired(detail) => self.bury_expired(&pointer, detail).await,
            Resolved::Forged(why) => self.forged(received, why),
            Resolved::Unknown => Answer::Again,
        }
    }

    /// Finds the delivery that a pointer means.
    ///
    /// The outbox message says where it goes, not the pointer: whoever forges one cannot redirect anything.
    pub(super) async fn resolve(&self, pointer: &Pointer) -> Resolved {
        let found = match self.broker.message(StreamKind::Outbox, pointer.sequence).await {
            Ok(Some(found)) => found,
            Ok(None) => return self.without_message(pointer).await,
            Err(error) => {
                tracing::warn!("A delivery has to wait: {error}");
                return Resolved::Unknown;
            }
        };
        let original = self.original(found);
        if pointer.stored.is_some_and(|stored| stored != original.stored) {
            let why = "it points to a message that was stored at another time";
            return self.other_message(pointer, &original, why).await;
        }
        let Ok(message) = intake::understand(&original) else {
            return self.other_message(pointer, &original, "it points to a message that was not understood").await;
        };
        if (&message.agent, &message.id) != (&pointer.agent, &pointer.message_id) {
            return self.other_message(pointer, &original, "it points to a message of another agent or id").await;
        }
        if matches!(message.target, Target::Task(_)) {
            return Resolved::Delivery { original, message: Box::new(message), route: None };
        }
        let routes = route::route(&self.registry.now(), &self.guard, &original.subject, &message);
        let known = routes.into_iter().find(|route| route.delivery_id == pointer.delivery_id);
        let route = known.unwrap_or_else(|| {
            let detail = format!("endpoint `{}` no longer wants this message", pointer.destination);
            let refusal = Refusal::new(Reason::Unroutable, detail);
            Route::nowhere(pointer.delivery_id.clone(), refusal)
        });
        if route.token.as_ref().is_some_and(|token| *token != pointer.token) {
            return Resolved::Forged("it waits under another destination than the message names");
        }
        Resolved::Delivery { original, message: Box::new(message), route: Some(Box::new(route)) }
    }

    /// A pointer to a sequence that another message has: expired if OUTBOX reused the sequence after it was
    /// purged, restored, truncated or recreated, forged if it can never have been right.
    async fn other_message(&self, pointer: &Pointer, found: &Original, why: &'static str) -> Resolved {
        // The message that took the place is younger than the one that was lost.
        let is_younger = pointer.stored.is_some_and(|stored| stored < found.stored);
        self.lost_or_forged(pointer, is_younger, "OUTBOX lost the message and has reused its sequence", why).await
    }

    /// A pointer whose message is not there: expired if it once was, forged if it never can have been.
    async fn without_message(&self, pointer: &Pointer) -> Resolved {
        match self.broker.extent(StreamKind::Outbox).await {
            Ok(outbox) if pointer.sequence == 0 || pointer.sequence > outbox.last => {
                // Later than everything that is left: the end of the stream was lost, or all of it.
                let is_later = pointer.stored.is_some_and(|stored| stored > outbox.last_stored);
                let detail = "OUTBOX lost the message: its last sequence is lower";
                self.lost_or_forged(pointer, is_later, detail, "it points to no message").await
            }
            Ok(_) => Resolved::Expired("the message is no longer in OUTBOX"),
            Err(error) => {
                tracing::warn!("A delivery has to wait: {error}");
                Resolved::Unknown
            }
        }
    }

    /// Whoever forges a pointer cannot have a receipt of its delivery, or know when a message was stored.
    async fn lost_or_forged(
        &self,
        pointer: &Pointer,
        is_proven: bool,
        lost: &'static str,
        forged: &'static str,
    ) -> Resolved {
        if is_proven {
            return Resolved::Expired(lost);
        }
        match self.ledger.look_up(&pointer.agent, &pointer.delivery_id, pointer.about(), 0).await {
            Ok(Known::Open) => Resolved::Forged(forged),
            Ok(Known::Ended | Known::Scheduled) => Resolved::Expired(lost),
            Err(error) => {
                tracing::warn!("A delivery has to wait: {error}");
                Resolved::Unknown
            }
        }
    }

    /// Gives every destination of a fan-out a message of its own in RETRY, due now.
    ///
    /// The stream recognises a repeat of the split for a while by its id; after that the receipts do.
    async fn split(&self, original: &Original, message: &Message, routes: &[Route]) -> Answer {
        for route in routes {
            let Some(pointer) = Pointer::new(original, message, route, 1) else { continue };
            let outgoing = Outgoing {
                subject: pointer.due_on(&route.delivery_id),
                headers: pointer.headers(),
                message_id: Some(format!("{}:{}", original.about().key(), route.delivery_id)),
                ..Outgoing::default()
            };
            // A pointer is a few hundred bytes; a server that takes no such message takes none at all.
            if self.ledger.write(&outgoing).await.is_err() {
                return Answer::Again;
            }
        }
        Answer::Ack
    }

    async fn bury_malformed(&self, original: &Original, malformed: &intake::Malformed, in_doubt: bool) -> Answer {
        let Some(_hold) = self.held.take(original.about(), &malformed.id) else { return Answer::Silence };
        if in_doubt {
            match self.ledger.look_up(&malformed.agent, &malformed.id, original.about(), u32::MAX).await {
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
            about: original.about(),
        };
        self.bury(&letter, "", None, None).await;
        Answer::Ack
    }

    async fn bury_expired(&self, pointer: &Pointer, detail: &str) -> Answer {
        let Some(_hold) = self.held.take(pointer.about(), &pointer.delivery_id) else { return Answer::Silence };
        let known = self.ledger.look_up(&pointer.agent, &pointer.delivery_id, pointer.about(), pointer.attempt).await;
        match known {
            Ok(Known::Open) => {}
            Ok(Known::Ended | Known::Scheduled) => return Answer::Ack,
            Err(_) => return Answer::Again,
        }
        let refusal = Refusal::new(Reason::Expired, detail);
        self.bury(&pointer.dead_letter(&refusal, None), "", None, None).await;
        Answer::Ack
    }

    /// A message of OUTBOX as it was received.
    pub(super) fn received(&self, received: &Received) -> Original {
        Original {
            stored: received.stored,
            stream: self.outbox.clone(),
            subject: received.subject.clone(),
            headers: received.headers.clone(),
            payload: received.payload.clone(),
            sequence: received.sequence,
        }
    }

    pub(super) fn original(&self, stored: StoredMessage) -> Original {
        Original {
            stored: stored.stored,
            stream: self.outbox.clone(),
            subject: stored.subject,
            headers: stored.headers,
            payload: stored.payload,
            sequence: stored.sequence,
        }
    }

    pub(super) fn forged(&self, received: &Received, why: &str) -> Answer {
        self.metrics.forged_retries.inc();
        tracing::warn!(
            nats.subject = received.subject,
            nats.sequence = received.sequence,
            "Refused a message in RETRY: {why}; somebody who is not Hookbridge can publish there"
        );
        Answer::Terminate
    }

    /// Whether this message may have been worked on before: acks do not survive a killed server.
    fn in_doubt(&self, received: &Received) -> bool {
        let highest = self.highest.fetch_max(received.sequence, Ordering::Relaxed);
        let trusted = self.broker.is_ready().filter(|ready| ready.connection == received.connection);
        received.delivered > 1
            || trusted.is_none_or(|ready| {
                // Of a replicated consumer another server may have taken over, and forgotten acks, unnoticed here.
                received.sequence <= ready.outbox_last || (ready.replicated && received.sequence <= highest)
            })
    }
}
