//! Taking messages from a durable, never more than there are free slots for.

use std::fmt;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::message::Acker;
use async_nats::jetstream::{AckKind, Message};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::identity::Store;
use super::provision::ACK_WAIT;
use super::pull::{Arrival, Interruption, PullLimits, Pulls};
use super::{Broker, ReadError, from_nats};
use crate::config::StreamKind;
use crate::event::Headers;

/// The most messages of one pull, so that several pulls share the work.
const MAX_PULL: usize = 64;
/// How often a message that waits for room tells the stream so; a third of the ack wait.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
/// The header of a pointer that says how many bytes the message has that it leads to.
pub(crate) const BODY_BYTES: &str = "Hookbridge-Body-Bytes";
/// A message that is told of this soon after it came needs no look whether its stream is still the same.
const QUICK: Duration = Duration::from_millis(500);
/// How long what became of a message waits to be told: for a connection, and for the stream's answer.
const TELL_WITHIN: Duration = Duration::from_secs(60);
/// The wait before the stream is asked again that did not answer.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// How long before the end of the ack wait a message is no longer taken for this courier's alone.
const HANDED_ON: Duration = Duration::from_secs(5);
/// How long to wait after a pull that failed.
const AFTER_FAILURE: Duration = Duration::from_millis(250);

/// A message that the stream waits to hear about.
pub(crate) struct Received {
    /// The subject, without a configured prefix.
    pub(crate) subject: String,
    pub(crate) headers: Headers,
    pub(crate) payload: Bytes,
    pub(crate) sequence: u64,
    /// How often it was delivered, this time included.
    pub(crate) delivered: i64,
    pub(crate) stored: SystemTime,
    /// Which connection it came over, or a newer one.
    pub(crate) connection: u64,
    acker: Acker,
    origin: Arc<Origin>,
    taken: Instant,
    /// When the stream last heard that it is being worked on.
    alive: Mutex<Instant>,
}

/// Where the messages of one series of pulls come from.
struct Origin {
    broker: Broker,
    stream: StreamKind,
    /// The connection over which it was asked for them, or an older one.
    connection: u64,
    /// Which store of the stream's name it was, or an older one.
    generation: u64,
}

/// A durable, taken from with a fixed number of slots.
pub(crate) struct Consumer {
    broker: Broker,
    stream: StreamKind,
    durable: String,
    limits: PullLimits,
    slots: Arc<Semaphore>,
    /// Room for messages, in KiB.
    room: Arc<Semaphore>,
    all_room: u32,
    /// Whether the last thing heard of a pull was that it ended early, which has been logged.
    interrupted: AtomicBool,
}

/// A place for one message in hand, until it is dropped.
pub(crate) struct Slot {
    _slot: OwnedSemaphorePermit,
    _room: Option<OwnedSemaphorePermit>,
}

impl Received {
    /// Done. A plain ack: if it is lost, the message comes again and its receipt is found.
    pub(crate) async fn ack(&self) {
        self.tell(AckKind::Ack).await;
    }

    /// Still working on it.
    pub(crate) async fn progress(&self) {
        self.tell(AckKind::Progress).await;
    }

    /// Never again: it is not a message that anybody can act on.
    pub(crate) async fn terminate(&self) {
        self.tell(AckKind::Term).await;
    }

    /// Give it back, to come again after `delay`.
    pub(crate) async fn give_back(&self, delay: Duration) {
        self.tell(AckKind::Nak(Some(delay))).await;
    }

    /// Whether the stream cannot have given it to another courier meanwhile.
    pub(crate) fn is_held(&self) -> bool {
        self.last_sign().elapsed() < ACK_WAIT.saturating_sub(HANDED_ON)
    }

    /// The connection over which it was asked for, or an older one.
    pub(crate) fn asked_over(&self) -> u64 {
        self.origin.connection
    }

    fn last_sign(&self) -> Instant {
        *self.alive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the stream still has this very message: an ack is only a sequence, and after a store was lost another
    /// message may have it. Waits for a connection, and for the stream's answer.
    async fn is_there(&self) -> bool {
        let there = async {
            loop {
                let Some(ready) = self.origin.broker.reconfirmed().await else { return false };
                match self.is_there_over(ready.connection).await {
                    Ok(there) => return there,
                    Err(error) => {
                        tracing::debug!(nats.sequence = self.sequence, "Could not look for a message: {error}");
                        tokio::time::sleep(ASK_AGAIN).await;
                    }
                }
            }
        };
        tokio::time::timeout(TELL_WITHIN, there).await.unwrap_or(false)
    }

    async fn is_there_over(&self, connection: u64) -> Result<bool, ReadError> {
        let Origin { broker, stream, generation, .. } = &*self.origin;
        if connection == self.origin.connection
            && (self.taken.elapsed() < QUICK || broker.generation(*stream, connection).await? == *generation)
        {
            return Ok(true);
        }
        broker.still_has(*stream, self.sequence, self.stored).await
    }

    async fn tell(&self, kind: AckKind) {
        // What only keeps or returns it is of no use later; what ends it is told once there is a connection again.
        let is_final = matches!(kind, AckKind::Ack | AckKind::Term);
        if !is_final && self.origin.broker.confirmed().is_none() {
            return;
        }
        if !self.is_there().await {
            tracing::warn!(
                nats.stream = self.origin.stream.name(),
                nats.sequence = self.sequence,
                "Did not send the {} for message {} of {}: the stream no longer has it, or did not respond. If it still \
                 has it, it will be redelivered",
                name_of(kind),
                self.sequence,
                self.origin.stream
            );
            return;
        }
        *self.alive.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        if let Err(error) = self.acker.ack_with(kind).await {
            tracing::debug!(nats.sequence = self.sequence, "Could not tell the stream: {error}");
        }
    }
}

/// What this kind of ack is called in the log.
fn name_of(kind: AckKind) -> &'static str {
    match kind {
        AckKind::Ack => "ack",
        AckKind::Nak(_) => "nak",
        AckKind::Progress => "progress signal",
        AckKind::Next => "ack and next",
        AckKind::Term => "term",
    }
}

impl Consumer {
    /// The durable of this name on a stream, with so many slots and so many bytes of room.
    pub(crate) fn new(broker: Broker, stream: StreamKind, durable: String, slots: NonZeroUsize, room: u64) -> Self {
        let all_room = u32::try_from(room / 1024).unwrap_or(u32::MAX).max(1);
        let (slots, room) = (Semaphore::new(slots.get()), Semaphore::new(all_room as usize));
        let limits = PullLimits::default();
        let (slots, room, interrupted) = (Arc::new(slots), Arc::new(room), AtomicBool::new(false));
        Self { broker, stream, durable, limits, slots, room, all_room, interrupted }
    }

    /// Takes messages until stopped, one slot each, and hands them over together with the slot.
    ///
    /// Several of these may run at once over the same slots.
    pub(crate) async fn run(&self, stop: &CancellationToken, take: impl Fn(Received, Slot)) {
        while !stop.is_cancelled() {
            let Some(Some(origin)) = stop.run_until_cancelled(self.origin()).await else { return };
            let Some(slots) = stop.run_until_cancelled(self.free_slots()).await else { return };
            if self.pull(&origin, slots, stop, &take).await.is_err() {
                stop.run_until_cancelled(tokio::time::sleep(AFTER_FAILURE)).await;
            }
        }
    }

    /// Waits until NATS is ready and has the durable, then says where its messages come from.
    async fn origin(&self) -> Option<Arc<Origin>> {
        loop {
            let ready = self.broker.ready().await?;
            let name = self.broker.names.stream(self.stream);
            let found: Result<PullConsumer, _> =
                self.broker.jetstream.get_consumer_from_stream(&self.durable, name).await;
            match found {
                Ok(_) => match self.broker.generation(self.stream, ready.connection).await {
                    Ok(generation) => {
                        let (broker, stream, connection) = (self.broker.clone(), self.stream, ready.connection);
                        return Some(Arc::new(Origin { broker, stream, connection, generation }));
                    }
                    Err(error) => {
                        tracing::debug!("Nothing is taken from {} now: {error}", self.stream);
                        tokio::time::sleep(AFTER_FAILURE).await;
                    }
                },
                Err(error) => {
                    tracing::debug!("Durable {} of {} is not there: {error}", self.durable, self.stream);
                    self.broker.look_again();
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
            }
        }
    }

    /// Waits for one free slot and takes as many as there are, up to one pull.
    async fn free_slots(&self) -> Vec<OwnedSemaphorePermit> {
        let mut slots = Vec::with_capacity(MAX_PULL);
        if let Ok(slot) = self.slots.clone().acquire_owned().await {
            slots.push(slot);
        }
        while slots.len() < MAX_PULL
            && let Ok(slot) = self.slots.clone().try_acquire_owned()
        {
            slots.push(slot);
        }
        slots
    }

    /// How much of the room for all a message takes, in KiB; one that never would fit gets all of it.
    fn size_of(&self, received: &Received) -> u32 {
        // A pointer tells how large the message is that it leads to. In OUTBOX anybody can write the header, and the
        // message itself is what takes room.
        let pointed = match self.stream {
            StreamKind::Retry => received.headers.get(BODY_BYTES).and_then(|bytes| bytes.parse().ok()).unwrap_or(0),
            _ => 0,
        };
        let own = received.payload.len() + received.headers.wire_bytes();
        let bytes = own.max(pointed.min(self.broker.max_payload()));
        let size = u32::try_from(bytes / 1024).unwrap_or(u32::MAX);
        size.clamp(1, self.all_room)
    }

    /// Waits until the message fits into the room for all. What arrived behind it goes back meanwhile, and the stream
    /// hears that it is still being waited for.
    async fn room_for(&self, received: &Received, size: u32, pulls: &mut Pulls<'_>) -> Option<OwnedSemaphorePermit> {
        give_back(pulls).await;
        let mut waits = pin!(self.room.clone().acquire_many_owned(size));
        loop {
            match tokio::time::timeout(SIGN_OF_LIFE, &mut waits).await {
                Ok(room) => return room.ok(),
                Err(_) => received.progress().await,
            }
        }
    }

    /// Waits for a slot for a message that came in addition to those that were asked for: an earlier pull, given up,
    /// had announced it.
    async fn slot_for(&self, received: &Received) -> Option<OwnedSemaphorePermit> {
        let mut waits = pin!(self.slots.clone().acquire_owned());
        loop {
            match tokio::time::timeout(SIGN_OF_LIFE, &mut waits).await {
                Ok(slot) => return slot.ok(),
                Err(_) => received.progress().await,
            }
        }
    }

    /// Pulls again and again over one connection, for as long as messages come.
    async fn pull(
        &self,
        origin: &Arc<Origin>,
        mut slots: Vec<OwnedSemaphorePermit>,
        stop: &CancellationToken,
        take: &impl Fn(Received, Slot),
    ) -> Result<(), ()> {
        let (mut lost, mut stopped) = (pin!(self.broker.lost(origin.connection)), pin!(stop.cancelled()));
        let failed = |error: &dyn fmt::Display| tracing::debug!("Pull from {} failed: {error}", self.stream);
        let pulls = Pulls::open(&self.broker, &self.limits, self.stream, &self.durable).await;
        let mut pulls = pulls.map_err(|error| failed(&error))?;
        loop {
            pulls.ask(slots.len()).await.map_err(|error| failed(&error))?;
            loop {
                let arrival = tokio::select! {
                    biased;
                    arrival = pulls.next() => arrival,
                    () = &mut stopped => {
                        give_back(&mut pulls).await;
                        return Ok(());
                    }
                    () = &mut lost => return Ok(()),
                };
                match arrival {
                    Arrival::Message(message) => {
                        let Some(received) = self.received(*message, origin) else { continue };
                        if !self.hand_over(received, &mut slots, &mut pulls, stop, take).await {
                            return Ok(());
                        }
                    }
                    Arrival::Over => {
                        self.interrupted.store(false, Ordering::Relaxed);
                        break;
                    }
                    Arrival::Adapted => {
                        slots.truncate(self.limits.messages());
                        break;
                    }
                    Arrival::Interrupted(why) => {
                        self.interrupted(&why);
                        if why.is_gone() {
                            self.broker.look_again();
                        }
                        // It may be another store by now. What this one has handed out may still arrive otherwise, so
                        // the inbox stays.
                        if why.is_gone() || matches!(why, Interruption::Closed | Interruption::Silent) {
                            return Err(());
                        }
                        stop.run_until_cancelled(tokio::time::sleep(AFTER_FAILURE)).await;
                        break;
                    }
                }
            }
            if stop.is_cancelled() {
                give_back(&mut pulls).await;
                return Ok(());
            }
            if slots.is_empty() {
                let Some(free) = stop.run_until_cancelled(self.free_slots()).await else { return Ok(()) };
                slots = free;
            }
        }
    }

    /// Hands a message over, once there is a slot and room for it. `false` when stopped meanwhile: the message and
    /// what arrived behind it have gone back.
    async fn hand_over(
        &self,
        received: Received,
        slots: &mut Vec<OwnedSemaphorePermit>,
        pulls: &mut Pulls<'_>,
        stop: &CancellationToken,
        take: &impl Fn(Received, Slot),
    ) -> bool {
        let slot = match slots.pop() {
            Some(slot) => Some(slot),
            None => stop.run_until_cancelled(self.slot_for(&received)).await.flatten(),
        };
        let size = self.size_of(&received);
        let room = match self.room.clone().try_acquire_many_owned(size) {
            _ if stop.is_cancelled() => None,
            Ok(room) => Some(room),
            Err(_) => stop.run_until_cancelled(self.room_for(&received, size, pulls)).await.flatten(),
        };
        let (Some(slot), Some(room)) = (slot, room) else {
            received.give_back(Duration::ZERO).await;
            give_back(pulls).await;
            return false;
        };
        take(received, Slot { _slot: slot, _room: Some(room) });
        true
    }

    /// Counts a pull that ended early, and logs the first until one ends well.
    fn interrupted(&self, why: &Interruption) {
        self.broker.counts.pull_interrupted(self.stream, why.as_str());
        if !self.interrupted.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                nats.stream = %self.stream,
                nats.durable = self.durable,
                "A pull from durable {} on {} ended early, {why}; pulling again until one succeeds",
                self.durable,
                self.stream
            );
        }
    }

    fn received(&self, message: Message, origin: &Arc<Origin>) -> Option<Received> {
        // Read before the message is looked at, so that it can only be newer than the message, never older.
        let connection = self.broker.connection();
        let info = match message.info() {
            Ok(info) => info,
            Err(error) => {
                tracing::warn!("A message from {} has no delivery data: {error}", self.stream);
                return None;
            }
        };
        let (sequence, delivered, stored) = (info.stream_sequence, info.delivered, info.published.into());
        if let Some(burial) = &self.broker.burial {
            burial.seen.insert(self.stream, origin.generation, sequence);
        }
        let (message, acker) = message.split();
        let taken = Instant::now();
        self.broker.identities.observed(Store::Stream(self.stream), origin.generation, sequence, stored);
        Some(Received {
            subject: self.broker.names.strip(&message.subject).to_owned(),
            headers: message.headers.as_ref().map(from_nats).unwrap_or_default(),
            payload: message.payload,
            sequence,
            delivered,
            stored,
            connection,
            acker,
            origin: origin.clone(),
            taken,
            alive: Mutex::new(taken),
        })
    }
}

/// Hands back what has arrived and nobody will work on, so that another courier need not wait for it.
async fn give_back(pulls: &mut Pulls<'_>) {
    while let Some(message) = pulls.arrived() {
        if let Err(error) = message.ack_with(AckKind::Nak(None)).await {
            tracing::debug!("Could not give a message back: {error}");
        }
    }
}
