//! The repair sweep: every courier periodically looks for what is missing from RETRY, and immediately when a stream
//! turns out to have been replaced. Each round is bounded, and the next one continues where it ended.
//!
//! Receipts tell of deliveries that failed or wait for long. Of one that only stands in RETRY for a moment, or was
//! split off a fan-out, nothing is written before its first attempt. So once something was lost, the messages of OUTBOX
//! themselves are looked at, as far back as this process can know where they were to go.

use std::time::{Duration, Instant, SystemTime};

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

/// The most pages of receipts, of tasks and of messages that a round looks at, each, while nothing seems to be lost.
const PAGES: usize = 4;
/// For how long a round looks at more pages once something was lost.
const ROUND_WITHIN: Duration = Duration::from_secs(30);
/// How often all receipts are looked at as fast as can be after something was found to be lost: what is behind the
/// place where it was found, and what is before it.
const PASSES: u8 = 2;
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
    /// How many passes over all receipts are still to be made without a pause.
    passes: u8,
    /// Some of what waited after the last round: if any of it has disappeared, RETRY has lost messages.
    sample: Vec<Pointer>,
}

impl Default for Places {
    fn default() -> Self {
        Self { receipts: 1, tasks: 1, messages: None, passes: 0, sample: Vec::new() }
    }
}

impl Places {
    /// Something is lost: everything is looked at now.
    fn lost(&mut self) {
        self.passes = PASSES;
        self.messages = self.messages.or(Some(1));
    }
}

/// One round. Pure.
#[derive(Clone, Copy, Debug)]
struct Round {
    begun: Instant,
    /// Whether something was repaired.
    repaired: bool,
    /// Whether it ended before everything was looked at.
    cut_short: bool,
}

impl Round {
    /// Whether another page is looked at after so many, of which more follow.
    fn goes_on(&mut self, pages: usize, hurries: bool, now: Instant) -> bool {
        let goes_on = pages < PAGES || hurries && now < self.begun + ROUND_WITHIN;
        self.cut_short |= !goes_on;
        goes_on
    }

    /// Whether the next round comes at once.
    fn is_followed(&self) -> bool {
        self.repaired && self.cut_short
    }
}

impl Worker {
    /// Repairs until stopped.
    pub(super) async fn repair_lost(&self, stop: &CancellationToken) {
        let Some(every) = self.repair_every else { return };
        let (mut places, mut replaced) = (Places::default(), self.broker.replaced());
        let mut at_once = false;
        loop {
            let wait = every.mul_f64(0.5 + 0.5 * rand::random::<f64>());
            let wait = if at_once { Duration::ZERO } else { wait };
            at_once = false;
            tokio::select! {
                () = stop.cancelled() => return,
                changed = replaced.changed() => match changed {
                    Ok(()) => {
                        places = Places::default();
                        places.lost();
                    }
                    Err(_) => return,
                },
                () = tokio::time::sleep(wait) => {}
            }
            let Some(Some(_)) = stop.run_until_cancelled(self.broker.ready()).await else { return };
            match stop.run_until_cancelled(self.repair_round(every, &mut places)).await {
                None => return,
                Some(Ok(is_followed)) => at_once = is_followed,
                Some(Err(error)) => tracing::debug!("Could not look for lost deliveries, will retry: {error:#}"),
            }
        }
    }

    /// Whether the next round comes at once.
    async fn repair_round(&self, every: Duration, places: &mut Places) -> anyhow::Result<bool> {
        let visitor = self.broker.visitor();
        // How far it has come, so that it shows when its end is lost.
        visitor.intact_since(StreamKind::Receipts).await?;
        let overdue = every.min(OVERDUE);
        let mut round = Round { begun: Instant::now(), repaired: false, cut_short: false };
        for pages in 1.. {
            let page = self.repair(&visitor, overdue).deliveries(places.receipts).await?;
            if self.tell_repaired(&page) {
                round.repaired = true;
                places.lost();
            }
            places.receipts = page.next.unwrap_or(1);
            if page.next.is_none() {
                places.passes = places.passes.saturating_sub(1);
                break;
            }
            if !round.goes_on(pages, places.passes > 0, Instant::now()) {
                break;
            }
        }
        for pages in 1.. {
            let page = self.repair(&visitor, overdue).deadlines(places.tasks).await?;
            if self.tell_repaired(&page) {
                round.repaired = true;
                places.lost();
            }
            places.tasks = page.next.unwrap_or(1);
            if page.next.is_none() || !round.goes_on(pages, places.passes > 0, Instant::now()) {
                break;
            }
        }
        if places.messages.is_none() && self.has_lost_any(&visitor, overdue, &places.sample).await? {
            places.lost();
        }
        for pages in 1.. {
            let Some(from) = places.messages else { break };
            let page = self.repair_untold(&visitor, overdue, from).await?;
            round.repaired |= self.tell_repaired(&page);
            places.messages = page.next;
            if page.next.is_none() || !round.goes_on(pages, true, Instant::now()) {
                break;
            }
        }
        let waiting = visitor.page_from(StreamKind::Retry, "retry.>", 1, SAMPLE).await?;
        places.sample = waiting.iter().filter_map(|found| Pointer::read(&found.headers)).collect();
        Ok(round.is_followed())
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

    fn repair<'a>(&'a self, visitor: &'a Visitor, overdue: Duration) -> Repair<'a> {
        Repair {
            visitor,
            now: self.clock.now(),
            overdue: Some(overdue),
            dry_run: false,
            untold: Some(&self.ledger.untold),
        }
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
        let told_since = self.told_since(visitor).await?;
        let mut repaired = Vec::new();
        for found in messages {
            let is_done_with = found.sequence <= floors.courier() && found.stored + overdue <= now;
            if is_done_with && found.stored >= told_since {
                self.repair_message(visitor, found, overdue, &mut repaired).await?;
            }
        }
        Ok(Page { repaired, next })
    }

    /// Since when the receipts tell of everything that was delivered: what was stored earlier, and of which they do not
    /// tell, may have been.
    async fn told_since(&self, visitor: &Visitor) -> anyhow::Result<SystemTime> {
        let intact_since = visitor.intact_since(StreamKind::Receipts).await?;
        let complete_since = visitor.complete_since(StreamKind::Receipts).await?.unwrap_or_else(|| self.clock.now());
        Ok(intact_since.max(complete_since).max(self.started))
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
        if repair.has_ended_untold(about, &pointer.delivery_id)
            || is_told_of(visitor, pointer, about).await?
            || repair.is_in_retry(token, &pointer.delivery_id, about).await?
            || is_told_of(visitor, pointer, about).await?
        {
            return Ok(());
        }
        // The receipts may have been lost since they were last believed.
        if original.stored < self.told_since(visitor).await? {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_goes_on_for_a_while_where_something_is_lost_and_the_next_one_follows_at_once() {
        let begun = Instant::now();
        let mut round = Round { begun, repaired: false, cut_short: false };
        let (soon, late) = (begun + ROUND_WITHIN / 2, begun + ROUND_WITHIN);
        assert!(round.goes_on(1, false, late), "a few pages are always looked at");
        assert!(round.goes_on(1000, true, soon) && !round.is_followed());
        assert!(!Round { ..round }.goes_on(PAGES, false, soon), "without need, no more than a few");
        round.repaired = true;
        assert!(!round.is_followed(), "everything was looked at");
        assert!(!round.goes_on(1000, true, late) && round.is_followed());
    }
}
