//! The repair sweep: every courier periodically looks for what is missing from RETRY, and immediately when a stream
//! turns out to have been replaced. Each round is bounded, and the next one continues where it ended.
//!
//! Receipts tell of deliveries that failed or wait for long. Of one that only stands in RETRY for a moment, or was
//! split off a fan-out, nothing is written before its first attempt. So once something was lost, the messages of OUTBOX
//! themselves are looked at, as far back as this process can know where they were to go.

use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use super::destination::Destination;
use super::intake::{self, Original, Target};
use super::outbox_message::OutboxMessage;
use super::pointer::Pointer;
use super::receipt;
use super::repair::{Page, Repair, Repaired};
use super::route;
use super::worker::Worker;
use crate::broker::{StoredMessage, Visitor};
use crate::config::StreamKind;
use crate::event::subject;
use crate::telemetry::metrics::RepairLabels;

/// The most pages of receipts, of tasks and of messages that a round looks at, each.
const PAGES: usize = 4;
/// How many messages of OUTBOX, which have bodies, are read at once.
const MESSAGES: usize = 50;
/// How many waiting messages of RETRY are remembered, to look for them in the next round.
const SAMPLE: usize = 32;
/// Deliveries overdue by less than this are skipped: they may still be in progress. Shorter where the interval is.
const OVERDUE: Duration = Duration::from_secs(60);

/// Where the next round goes on.
#[derive(Debug)]
struct Places {
    receipts: u64,
    tasks: u64,
    /// In OUTBOX; none while nothing was lost.
    messages: Option<u64>,
    /// Some of what waited after the last round: if any of it has disappeared, RETRY has lost messages.
    sample: Vec<Pointer>,
}

impl Default for Places {
    fn default() -> Self {
        Self { receipts: 1, tasks: 1, messages: None, sample: Vec::new() }
    }
}

impl Worker {
    /// Repairs until stopped.
    pub(super) async fn repair_lost(&self, stop: &CancellationToken) {
        let Some(every) = self.repair_every else { return };
        let (mut places, mut replaced) = (Places::default(), self.broker.replaced());
        loop {
            let wait = every.mul_f64(0.5 + 0.5 * rand::random::<f64>());
            tokio::select! {
                () = stop.cancelled() => return,
                changed = replaced.changed() => match changed {
                    Ok(()) => places = Places { messages: Some(1), ..Places::default() },
                    Err(_) => return,
                },
                () = tokio::time::sleep(wait) => {}
            }
            let Some(Some(_)) = stop.run_until_cancelled(self.broker.ready()).await else { return };
            match stop.run_until_cancelled(self.repair_round(every, &mut places)).await {
                None => return,
                Some(Ok(())) => {}
                Some(Err(error)) => tracing::debug!("Could not look for lost deliveries, will retry: {error:#}"),
            }
        }
    }

    async fn repair_round(&self, every: Duration, places: &mut Places) -> anyhow::Result<()> {
        let visitor = self.broker.visitor();
        let overdue = every.min(OVERDUE);
        for _ in 0..PAGES {
            let page = self.repair(&visitor, overdue).deliveries(places.receipts).await?;
            if self.tell_repaired(&page) && places.messages.is_none() {
                places.messages = Some(1);
            }
            places.receipts = page.next.unwrap_or(1);
            if page.next.is_none() {
                break;
            }
        }
        for _ in 0..PAGES {
            let page = self.repair(&visitor, overdue).deadlines(places.tasks).await?;
            if self.tell_repaired(&page) && places.messages.is_none() {
                places.messages = Some(1);
            }
            places.tasks = page.next.unwrap_or(1);
            if page.next.is_none() {
                break;
            }
        }
        if places.messages.is_none() && self.has_lost_any(&visitor, overdue, &places.sample).await? {
            places.messages = Some(1);
        }
        for _ in 0..PAGES {
            let Some(from) = places.messages else { break };
            let page = self.repair_untold(&visitor, overdue, from).await?;
            self.tell_repaired(&page);
            places.messages = page.next;
        }
        let waiting = visitor.page_from(StreamKind::Retry, "retry.>", 1, SAMPLE).await?;
        places.sample = waiting.iter().filter_map(|found| Pointer::read(&found.headers)).collect();
        Ok(())
    }

    /// Whether something that waited is nowhere now, and no receipt tells of it.
    async fn has_lost_any(&self, visitor: &Visitor, overdue: Duration, sample: &[Pointer]) -> anyhow::Result<bool> {
        let repair = self.repair(visitor, overdue);
        for pointer in sample {
            let (token, about) = (if pointer.is_of_update() { "*" } else { &pointer.token }, pointer.about());
            if !repair.is_in_retry(token, &pointer.delivery_id, about).await?
                && !is_told_of(visitor, pointer, about).await?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn repair<'a>(&self, visitor: &'a Visitor, overdue: Duration) -> Repair<'a> {
        Repair { visitor, now: self.clock.now(), overdue: Some(overdue), dry_run: false }
    }

    /// Counts and logs what was lost. Whether anything was.
    fn tell_repaired(&self, page: &Page) -> bool {
        for repaired in &page.repaired {
            self.metrics.repaired.get_or_create(&RepairLabels { outcome: repaired.as_str() }).inc();
            match repaired {
                Repaired::Rescheduled { agent, delivery_id, attempt, .. } => tracing::warn!(
                    agent.name = agent,
                    delivery.id = delivery_id,
                    "Delivery {delivery_id} was missing from RETRY: rescheduled attempt {attempt}"
                ),
                Repaired::Dead { agent, delivery_id } => tracing::warn!(
                    agent.name = agent,
                    delivery.id = delivery_id,
                    "Delivery {delivery_id} is lost: neither RETRY nor OUTBOX has its message; wrote a dead letter without a \
                     body"
                ),
                Repaired::Deadline { agent, task_id, .. } => tracing::warn!(
                    agent.name = agent,
                    task.id = task_id,
                    "The deadline of task {task_id} was missing from RETRY: rescheduled it"
                ),
            }
        }
        !page.repaired.is_empty()
    }

    /// Looks at a page of OUTBOX for deliveries of which nothing was ever told and that are nowhere.
    async fn repair_untold(&self, visitor: &Visitor, overdue: Duration, from: u64) -> anyhow::Result<Page> {
        let messages = visitor.page_from(StreamKind::Outbox, "outbox.>", from, MESSAGES).await?;
        let next = (messages.len() == MESSAGES).then(|| messages.last().map_or(from, |last| last.sequence) + 1);
        let (floors, now) = (visitor.floors([]).await?, self.clock.now());
        // What the receipts no longer tell of may have been delivered.
        let told_since = visitor.complete_since(StreamKind::Receipts).await?.unwrap_or(now).max(self.started);
        let mut repaired = Vec::new();
        for found in messages {
            let is_done_with = found.sequence <= floors.courier() && found.stored + overdue <= now;
            if is_done_with && found.stored >= told_since {
                self.repair_message(visitor, found, overdue, &mut repaired).await?;
            }
        }
        Ok(Page { repaired, next })
    }

    async fn repair_message(
        &self,
        visitor: &Visitor,
        found: StoredMessage,
        overdue: Duration,
        repaired: &mut Vec<Repaired>,
    ) -> anyhow::Result<()> {
        let original = self.original(found);
        // What is not understood has its dead letter before it is acked.
        let Ok(message) = intake::understand(&original) else { return Ok(()) };
        if matches!(message.target, Target::Task(_)) {
            let pointer = Pointer::of_update(&original, &message);
            return self.repair_pointer(visitor, &original, &pointer, overdue, repaired).await;
        }
        let is_fan_out = message.target == Target::FanOut;
        for route in route::route(&self.registry.now(), &self.guard, &original.subject, &message) {
            let known = match &route.destination {
                // A line has it, and goes by its receipts.
                Ok(Destination::Endpoint(endpoint)) if endpoint.ordered => false,
                // One that came later than the message was not meant.
                Ok(Destination::Endpoint(endpoint)) => !is_fan_out || self.registry.is_configured(&endpoint.name),
                Ok(Destination::Callback { .. }) => true,
                Err(_) => false,
            };
            if let Some(pointer) = Pointer::new(&original, &message, &route, 1).filter(|_| known) {
                self.repair_pointer(visitor, &original, &pointer, overdue, repaired).await?;
            }
        }
        Ok(())
    }

    async fn repair_pointer(
        &self,
        visitor: &Visitor,
        original: &Original,
        pointer: &Pointer,
        overdue: Duration,
        repaired: &mut Vec<Repaired>,
    ) -> anyhow::Result<()> {
        let (repair, about) = (self.repair(visitor, overdue), original.about());
        // The callback of an update waits under another token than the update itself.
        let token = if pointer.is_of_update() { "*" } else { &pointer.token };
        if is_told_of(visitor, pointer, about).await?
            || repair.is_in_retry(token, &pointer.delivery_id, about).await?
            || is_told_of(visitor, pointer, about).await?
        {
            return Ok(());
        }
        repaired.extend(repair.reschedule(pointer, None::<SystemTime>).await?);
        Ok(())
    }
}

/// Whether any receipt is about a delivery of this message.
async fn is_told_of(visitor: &Visitor, pointer: &Pointer, about: OutboxMessage) -> anyhow::Result<bool> {
    let every = subject::receipts_of(&pointer.agent, &pointer.delivery_id);
    let last = visitor.last_on(StreamKind::Receipts, &every).await?;
    Ok(match last {
        None => false,
        // One of another message of the same id hides what was told before it: then nothing is known.
        Some(last) => receipt::attempt_of(&last, about).is_some() || last.stored >= about.stored.unwrap_or(last.stored),
    })
}
