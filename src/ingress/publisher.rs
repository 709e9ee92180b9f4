//! Publishing events: each by itself, or, where the server syncs always, gathered.
//!
//! Nobody waits for others: what arrives while a round of messages is being stored is the next round, and who comes
//! alone goes out alone, at once. Each message has its own outcome, whatever it was stored with.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{self, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::gather::{self, Ended, Known, MOST_MESSAGES, Round, WAITED_FOR, Waiting};
use crate::broker::{BATCH_HEADERS, BatchError, Broker, Outgoing, PublishError, Stored};
use crate::clock::Clock;
use crate::telemetry::Metrics;
use crate::telemetry::logs::Seldom;
use crate::telemetry::metrics::BatchLabels;

/// Batches of one round on their way at once. The server takes 50 unfinished ones, over all gateways.
const BATCHES: usize = 8;
/// Parts of one round on their way at once, those of a single message included.
const PARTS: usize = 256;
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
    /// Whether it has been sent, so that it may be stored.
    sent: Arc<AtomicBool>,
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

    /// Publishes and waits for the stream's confirmation until `half`, when it is time for a second try. What is
    /// gathered and has not been sent by then waits on until `deadline` instead: sent by itself beside all others, it
    /// would only hold them up.
    pub(super) async fn publish(
        &self,
        outgoing: &Arc<Outgoing>,
        half: Instant,
        deadline: Instant,
    ) -> Result<Stored, PublishError> {
        let Some(queue) = &self.queue else { return self.alone(outgoing, half).await };
        if self.broker.is_ready().is_none() {
            return Err(PublishError::NotReady(self.broker.link()));
        }
        let (answer, answered) = oneshot::channel();
        let sent = Arc::new(AtomicBool::new(false));
        let request = Request { outgoing: outgoing.clone(), deadline, sent: sent.clone(), answer };
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
                Err(_) => self.alone(outgoing, half).await,
            }
        };
        let mut told = pin!(told);
        match tokio::time::timeout_at(half, &mut told).await {
            Ok(outcome) => outcome,
            Err(_) if sent.load(Ordering::Relaxed) => Err(PublishError::Unconfirmed),
            Err(_) => tokio::time::timeout_at(deadline, told).await.unwrap_or(Err(PublishError::Unconfirmed)),
        }
    }

    /// Publishes a message by itself in any case.
    pub(super) async fn alone(&self, outgoing: &Outgoing, deadline: Instant) -> Result<Stored, PublishError> {
        self.broker.publish(outgoing, deadline.saturating_duration_since(Instant::now())).await
    }
}

impl Gatherer {
    /// Gathers until stopped, and finishes what it has.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let (mut waiting, mut known, hasher) = (VecDeque::new(), Known::default(), RandomState::new());
        let (mut taken, mut rounds, mut open) = (Vec::new(), JoinSet::<Vec<(u64, Ended)>>::new(), true);
        // When the rounds that are on their way began, oldest first.
        let mut begun = VecDeque::<(task::Id, Instant)>::new();
        let mut waited_for = 0;
        while open || !waiting.is_empty() || !rounds.is_empty() {
            let oldest = begun.len() - waited_for;
            let patience = begun.get(oldest).map_or_else(Instant::now, |(_, begun)| *begun + WAITED_FOR);
            tokio::select! {
                () = stop.cancelled(), if open && !self.queue.is_closed() => self.queue.close(),
                Some(ended) = rounds.join_next_with_id() => {
                    // A round that did not end well ends this part too, and so the process.
                    let Ok((id, ended)) = ended else { return };
                    begun.retain(|(round, _)| *round != id);
                    ended.into_iter().for_each(|(key, ended)| known.ended(key, ended));
                }
                () = tokio::time::sleep_until(patience), if waited_for > 0 && !waiting.is_empty() => {}
                count = self.queue.recv_many(&mut taken, MOST_MESSAGES), if open && waiting.len() < MOST_MESSAGES => {
                    open = count > 0;
                    waiting.extend(taken.drain(..).map(|request: Request| {
                        let key = hasher.hash_one(&request.outgoing.message_id);
                        Waiting { key, bytes: request.outgoing.wire_bytes() + BATCH_HEADERS, message: request }
                    }));
                }
            }
            let largest = self.sender.broker.max_payload();
            let is_waited_for = |(_, begun): &&(task::Id, Instant)| begun.elapsed() < WAITED_FOR;
            waited_for = begun.iter().filter(is_waited_for).count();
            while gather::is_due(rounds.len(), waited_for, waiting.len()) {
                // Whoever gave up before it was his turn publishes again by himself, or is gone.
                waiting.retain(|waiting: &Waiting<Request>| !waiting.message.answer.is_closed());
                let Some(round) = gather::next(&mut waiting, &mut known, largest) else { break };
                begun.push_back((rounds.spawn(self.sender.clone().send(round)).id(), Instant::now()));
                waited_for += 1;
            }
        }
    }
}

impl Sender {
    /// Publishes a round, and answers each of its messages. Says what became of them.
    async fn send(self: Arc<Self>, round: Round<Request>) -> Vec<(u64, Ended)> {
        let (mut parts, mut ended) = (VecDeque::from(round.parts), Vec::with_capacity(MOST_MESSAGES));
        let (mut sent, mut batches, mut refused) = (FuturesUnordered::new(), 0, 0);
        loop {
            while sent.len() < PARTS
                && let Some(mut part) = parts.pop_front_if(|part| part.len() == 1 || batches < BATCHES)
            {
                let given_up = part.extract_if(.., |waiting| waiting.message.answer.is_closed());
                ended.extend(given_up.map(|waiting| (waiting.key, Ended::Lost)));
                if !part.is_empty() {
                    part.iter().for_each(|waiting| waiting.message.sent.store(true, Ordering::Relaxed));
                    let together = usize::from(part.len() > 1);
                    batches += together;
                    sent.push(self.send_part(part).map(move |sent| (together, sent)));
                }
            }
            let Some((together, came)) = sent.next().await else { return ended };
            batches -= together;
            match came {
                Sent::Ended(part) => ended.extend(part),
                Sent::Repeat(batch) => {
                    parts.extend(gather::split(batch, refused));
                    refused += 1;
                }
                Sent::OneByOne(batch) => parts.extend(gather::one_by_one(batch)),
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
                    tracing::warn!("Publishing webhooks one by one: {error}");
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
