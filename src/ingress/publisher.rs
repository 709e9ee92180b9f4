//! Publishing events: each by itself, or, where the server syncs always, gathered.
//!
//! Nobody waits for others: what arrives while a round of messages is being stored is the next round, and who comes
//! alone goes out alone, at once. Each message has its own outcome, whatever it was stored with.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::gather::{self, Ended, Known, MOST_MESSAGES, Round, Waiting};
use crate::broker::{BATCH_HEADERS, BatchError, Broker, Outgoing, PublishError, Stored};
use crate::clock::Clock;
use crate::telemetry::Metrics;
use crate::telemetry::logs::Seldom;
use crate::telemetry::metrics::BatchLabels;

/// Parts of one round on their way at once. The server takes 50 unfinished batches, over all gateways.
const PARTS: usize = 16;
/// Messages that wait beyond those that are looked at for the next round.
const QUEUE: usize = 4096;

/// Publishes events. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Publisher {
    broker: Broker,
    /// Where messages are gathered; not where each goes out by itself.
    queue: Option<mpsc::Sender<Request>>,
}

/// A message, and who wants to know what becomes of it.
struct Request {
    outgoing: Arc<Outgoing>,
    deadline: Instant,
    answer: oneshot::Sender<Result<Stored, PublishError>>,
}

/// Gathers what the [`Publisher`]s are given.
pub(crate) struct Gatherer {
    queue: mpsc::Receiver<Request>,
    sender: Arc<Sender>,
}

/// What a round works with.
struct Sender {
    broker: Broker,
    metrics: Metrics,
    clock: Clock,
    /// The connection on which the stream said that it takes no batches; 0 for none.
    disabled_on: AtomicU64,
    said: Seldom,
}

impl Publisher {
    /// Publishes each event by itself.
    pub(crate) fn single(broker: Broker) -> Self {
        Self { broker, queue: None }
    }

    /// Publishes together what comes together, once the [`Gatherer`] runs.
    pub(crate) fn gathering(broker: Broker, metrics: Metrics, clock: Clock) -> (Self, Gatherer) {
        let (queue, gathered) = mpsc::channel(QUEUE);
        let (disabled_on, said) = (AtomicU64::new(0), Seldom::default());
        let sender = Sender { broker: broker.clone(), metrics, clock, disabled_on, said };
        (Self { broker, queue: Some(queue) }, Gatherer { queue: gathered, sender: Arc::new(sender) })
    }

    /// Publishes and waits for the stream's confirmation, for at most `wait`.
    pub(super) async fn publish(&self, outgoing: &Arc<Outgoing>, wait: Duration) -> Result<Stored, PublishError> {
        let Some(queue) = &self.queue else { return self.broker.publish(outgoing, wait).await };
        if self.broker.is_ready().is_none() {
            return Err(PublishError::NotReady(self.broker.link()));
        }
        let deadline = Instant::now() + wait;
        let (answer, answered) = oneshot::channel();
        let request = Request { outgoing: outgoing.clone(), deadline, answer };
        let told = async {
            match queue.send(request).await {
                Ok(()) => match answered.await {
                    Ok(outcome) => outcome,
                    // Lost with its connection. What comes next has a better chance over the next one.
                    Err(_) => {
                        self.broker.ready().await;
                        Err(PublishError::Unconfirmed)
                    }
                },
                // The gateway is about to end, and this is one of its last requests.
                Err(_) => self.alone(outgoing, wait).await,
            }
        };
        tokio::time::timeout_at(deadline, told).await.unwrap_or(Err(PublishError::Unconfirmed))
    }

    /// Publishes a message by itself in any case.
    pub(super) async fn alone(&self, outgoing: &Outgoing, wait: Duration) -> Result<Stored, PublishError> {
        self.broker.publish(outgoing, wait).await
    }
}

impl Gatherer {
    /// Gathers until stopped, and finishes what it has.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let (mut waiting, mut known, hasher) = (VecDeque::new(), Known::default(), RandomState::new());
        let (mut taken, mut rounds, mut open) = (Vec::new(), JoinSet::<Vec<(u64, Ended)>>::new(), true);
        while open || !waiting.is_empty() || !rounds.is_empty() {
            tokio::select! {
                () = stop.cancelled(), if open && !self.queue.is_closed() => self.queue.close(),
                Some(ended) = rounds.join_next() => {
                    // A round that did not end well ends this part too, and so the process.
                    let Ok(ended) = ended else { return };
                    ended.into_iter().for_each(|(key, ended)| known.ended(key, ended));
                }
                count = self.queue.recv_many(&mut taken, MOST_MESSAGES), if open && waiting.len() < MOST_MESSAGES => {
                    open = count > 0;
                    waiting.extend(taken.drain(..).map(|request: Request| {
                        let key = hasher.hash_one(&request.outgoing.message_id);
                        Waiting { key, bytes: request.outgoing.wire_bytes() + BATCH_HEADERS, message: request }
                    }));
                }
            }
            let largest = self.sender.broker.max_payload();
            while gather::is_due(rounds.len(), waiting.len()) {
                // Whoever gave up before it was his turn publishes again by himself, or is gone.
                waiting.retain(|waiting: &Waiting<Request>| !waiting.message.answer.is_closed());
                let Some(round) = gather::next(&mut waiting, &mut known, largest) else { break };
                rounds.spawn(self.sender.clone().send(round));
            }
        }
    }
}

impl Sender {
    /// Publishes a round, and answers each of its messages. Says what became of them.
    async fn send(self: Arc<Self>, round: Round<Request>) -> Vec<(u64, Ended)> {
        let (mut parts, mut ended) = (VecDeque::from(round.parts), Vec::with_capacity(MOST_MESSAGES));
        let (mut sent, mut refused) = (FuturesUnordered::new(), 0);
        loop {
            while sent.len() < PARTS
                && let Some(mut part) = parts.pop_front()
            {
                let given_up = part.extract_if(.., |waiting| waiting.message.answer.is_closed());
                ended.extend(given_up.map(|waiting| (waiting.key, Ended::Lost)));
                if !part.is_empty() {
                    sent.push(self.send_part(part));
                }
            }
            match sent.next().await {
                Some(Sent::Ended(part)) => ended.extend(part),
                Some(Sent::Repeat(batch)) => {
                    parts.extend(gather::split(batch, refused));
                    refused += 1;
                }
                Some(Sent::OneByOne(batch)) => parts.extend(gather::one_by_one(batch)),
                None => return ended,
            }
        }
    }

    async fn send_part(&self, mut part: Vec<Waiting<Request>>) -> Sent {
        if part.len() > 1 {
            let disabled = self.disabled_on.load(Ordering::Relaxed) == self.broker.connection();
            return if disabled { Sent::OneByOne(part) } else { self.send_together(part).await };
        }
        let Some(Waiting { key, message, .. }) = part.pop() else { return Sent::Ended(Vec::new()) };
        let wait = message.deadline.saturating_duration_since(Instant::now());
        let outcome = self.broker.publish(&message.outgoing, wait).await;
        let ended = match &outcome {
            Ok(stored) if stored.duplicate => Ended::Repeat,
            Ok(_) => Ended::Stored,
            Err(_) => Ended::Lost,
        };
        drop(message.answer.send(outcome));
        Sent::Ended(vec![(key, ended)])
    }

    async fn send_together(&self, batch: Vec<Waiting<Request>>) -> Sent {
        let messages: Vec<&Outgoing> = batch.iter().map(|waiting| &*waiting.message.outgoing).collect();
        // Each looks after its own deadline.
        let latest = batch.iter().map(|waiting| waiting.message.deadline).max();
        let wait = latest.map_or(Duration::ZERO, |latest| latest.saturating_duration_since(Instant::now()));
        let outcome = self.broker.publish_together(&messages, wait).await;
        let labels = BatchLabels { outcome: outcome.as_ref().map_or_else(BatchError::as_str, |_| "stored") };
        self.metrics.batches.get_or_create(&labels).inc();
        self.metrics.batched_events.get_or_create(&labels).inc_by(batch.len() as u64);
        match outcome {
            Ok(stored) => {
                let answered = batch.into_iter().zip(stored).map(|(Waiting { key, message, .. }, stored)| {
                    drop(message.answer.send(Ok(stored)));
                    (key, Ended::Stored)
                });
                Sent::Ended(answered.collect())
            }
            Err(BatchError::Repeat) => Sent::Repeat(batch),
            Err(BatchError::NotReady(_)) => Sent::OneByOne(batch),
            Err(error @ BatchError::Disabled) => {
                let connection = self.broker.connection();
                if self.disabled_on.swap(connection, Ordering::Relaxed) != connection {
                    tracing::warn!("Publishing webhooks one by one until the next connection: {error}");
                }
                Sent::OneByOne(batch)
            }
            Err(error @ BatchError::Refused(_)) => {
                if let Some(more) = self.said.pass(self.clock.now()) {
                    tracing::warn!(log.left_out = more, "Publishing {} webhooks one by one: {error}", batch.len());
                }
                Sent::OneByOne(batch)
            }
            // Dropping the requests is the answer: each knows as much by itself.
            Err(BatchError::Unconfirmed) => {
                Sent::Ended(batch.into_iter().map(|waiting| (waiting.key, Ended::Lost)).collect())
            }
        }
    }
}

/// What became of a part.
enum Sent {
    /// Each has its answer.
    Ended(Vec<(u64, Ended)>),
    /// None is stored, because one of them is stored already.
    Repeat(Vec<Waiting<Request>>),
    /// None is stored; each may be by itself.
    OneByOne(Vec<Waiting<Request>>),
}
