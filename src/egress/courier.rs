//! The courier: takes messages with as many hands as it has slots, and answers the stream for each.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::alarm;
use super::line;
use super::registry::Registry;
use super::task::Arrived;
use super::worker::{Answer, Worker};
use crate::broker::{Broker, COURIER, Consumer, Received, Slot};
use crate::clock::Clock;
use crate::config::{Config, StreamKind};
use crate::event::Name;
use crate::telemetry::Metrics;

/// How often a delivery in progress tells the stream that it is alive; a third of the ack wait.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
/// Pulls at once on each of the two streams.
const PULLS: usize = 4;
/// How long to wait before reading the bucket again.
const LOAD_AGAIN: Duration = Duration::from_millis(500);
/// How often to look which endpoints are ordered: they may come and go.
const LOOK_FOR_LINES: Duration = Duration::from_secs(1);
/// The longest time after which the head of a line is looked at again.
const LINE_LOOKS: Duration = Duration::from_secs(5);
/// How long publishing new holds may take when the process stops.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// The shortest time after which a message comes again.
const SOON: Duration = Duration::from_millis(20);
/// When a retry comes again that was due before its last attempt was written down.
const WHILE_IN_HAND: Duration = Duration::from_millis(250);
/// When a message that could not be dealt with comes again.
const AGAIN: Duration = Duration::from_secs(5);

/// The outbound role. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Courier {
    worker: Arc<Worker>,
    broker: Broker,
    slots: NonZeroUsize,
    room: u64,
    metrics: Metrics,
}

impl Courier {
    /// Prepares the role. The error is TLS that cannot be set up.
    pub(crate) fn new(
        config: &Config,
        broker: Broker,
        registry: Arc<Registry>,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Self, rustls::Error> {
        let slots = NonZeroUsize::new(config.egress.concurrency).unwrap_or(NonZeroUsize::MIN);
        let worker = Worker::new(config, broker.clone(), registry, clock, metrics.clone())?;
        Ok(Self { worker: Arc::new(worker), broker, slots, room: config.egress.max_in_flight.as_u64(), metrics })
    }

    /// Works until stopped, then finishes what it holds.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let worker = &self.worker;
        worker.stops_with(&stop);
        // Nothing is sent before it is known what is disabled.
        if stop.run_until_cancelled(self.load()).await.is_none() {
            return;
        }
        let deliveries = TaskTracker::new();
        let outbox = Consumer::new(self.broker.clone(), StreamKind::Outbox, COURIER.to_owned(), self.slots, self.room);
        let retry = Consumer::new(self.broker.clone(), StreamKind::Retry, COURIER.to_owned(), self.slots, self.room);
        let from_outbox = |received: Received, slot| {
            let from = From::Outbox(worker.arrived(&received));
            begin(&deliveries, worker, received, slot, from);
        };
        let from_retry = |received, slot| begin(&deliveries, worker, received, slot, From::Retry);
        let pulls = async {
            tokio::join!(
                futures_util::future::join_all((0..PULLS).map(|_| outbox.run(&stop, from_outbox))),
                futures_util::future::join_all((0..PULLS).map(|_| retry.run(&stop, from_retry))),
            )
        };
        tokio::join!(
            pulls,
            self.broker.watch_endpoints(&stop, |key, value| worker.hears(key, value)),
            worker.tell_breakers(&stop),
            worker.tell_holds(&stop),
            self.lines(&stop, &deliveries),
            worker.release_recovered(&stop),
            worker.sweep_changed(&stop),
            worker.repair_lost(&stop),
            alarm::watch(&self.broker, &self.metrics, &stop),
        );
        deliveries.close();
        deliveries.wait().await;
        // What the last answers asked for holds also after a restart.
        drop(tokio::time::timeout(LAST_WORDS, worker.tell_new_holds()).await);
    }

    /// Reads the bucket once, so that no delivery is made before it is known what is said about it.
    async fn load(&self) {
        while self.broker.ready().await.is_some()
            && let Err(error) = self.broker.read_endpoints(|key, value| self.worker.hears(key, Some(value))).await
        {
            tracing::warn!("No delivery begins before it is known what is said about endpoints: {error}");
            tokio::time::sleep(LOAD_AGAIN).await;
        }
    }

    /// Works on the lines of ordered endpoints, each with one hand, until stopped.
    async fn lines(&self, stop: &CancellationToken, deliveries: &TaskTracker) {
        let mut lines = HashMap::<Name, CancellationToken>::new();
        let mut pace = tokio::time::interval(LOOK_FOR_LINES);
        while stop.run_until_cancelled(pace.tick()).await.is_some() {
            let Some(Some(_)) = stop.run_until_cancelled(self.broker.ready()).await else { return };
            let ordered = match self.worker.prepare_lines().await {
                Ok(ordered) => ordered,
                Err(error) => {
                    tracing::warn!("Deliveries to ordered endpoints may have to wait: {error}");
                    continue;
                }
            };
            lines.retain(|name, line| {
                ordered.contains(name) || {
                    line.cancel();
                    false
                }
            });
            for name in ordered {
                if let Entry::Vacant(line) = lines.entry(name.clone()) {
                    deliveries.spawn(self.clone().line(
                        name,
                        line.insert(stop.child_token()).clone(),
                        deliveries.clone(),
                    ));
                }
            }
        }
    }

    async fn line(self, endpoint: Name, stop: CancellationToken, deliveries: TaskTracker) {
        let durable = line::durable(&endpoint);
        let consumer = Consumer::new(self.broker.clone(), StreamKind::Outbox, durable, NonZeroUsize::MIN, self.room);
        let take = |received, slot| {
            begin(&deliveries, &self.worker, received, slot, From::Line(endpoint.clone()));
        };
        consumer.run(&stop, take).await;
    }
}

/// Where a message was taken from.
enum From {
    /// OUTBOX, and its place among the updates of a task, if it is one.
    Outbox(Arrived),
    Retry,
    /// The line of this ordered endpoint.
    Line(Name),
}

/// Deals with a message in a task of its own. Boxed, because a task is moved several times before it begins, and this
/// one has kilobytes.
fn begin(deliveries: &TaskTracker, worker: &Arc<Worker>, received: Received, slot: Slot, from: From) {
    drop(deliveries.spawn(Box::pin(take(worker.clone(), received, slot, from))));
}

async fn take(worker: Arc<Worker>, received: Received, slot: Slot, mut from: From) {
    worker.metrics.deliveries.inc();
    let work = async {
        match &mut from {
            From::Outbox(arrived) => worker.outbox(&received, std::mem::replace(arrived, Arrived::Other)).await,
            From::Retry => Box::pin(worker.retry(&received)).await,
            From::Line(endpoint) => Box::pin(worker.in_order(endpoint, &received)).await,
        }
    };
    let answer = alive(&received, std::pin::pin!(work)).await;
    match answer {
        Answer::Ack => received.ack().await,
        Answer::Again => received.give_back(AGAIN).await,
        Answer::AgainAt(due) => {
            // Not until it is due: somebody may cancel it, or disable its endpoint, to let the line go on.
            let wait = due.duration_since(worker.clock.now()).unwrap_or_default();
            received.give_back(wait.clamp(SOON, LINE_LOOKS)).await;
        }
        Answer::Terminate => received.terminate().await,
        // Another message of the same delivery than the one in hand: nobody else will answer for it.
        Answer::Silence if matches!(from, From::Retry) => received.give_back(WHILE_IN_HAND).await,
        Answer::Silence | Answer::LeftToStream => {}
    }
    worker.metrics.deliveries.dec();
    drop(slot);
}

/// Does the work, and tells the stream now and then that it is still being done.
async fn alive(received: &Received, mut work: Pin<&mut impl Future<Output = Answer>>) -> Answer {
    loop {
        match tokio::time::timeout(SIGN_OF_LIFE, work.as_mut()).await {
            Ok(answer) => return answer,
            // It may have to be looked for first; the work does not wait for that.
            Err(_) => tokio::select! {
                biased;
                answer = work.as_mut() => return answer,
                () = received.progress() => {}
            },
        }
    }
}
