//! Taking messages from a durable, never more than there are free slots for.

use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::message::Acker;
use async_nats::jetstream::{AckKind, Message};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{Broker, from_nats};
use crate::config::StreamKind;
use crate::event::Headers;

/// How long one pull waits for messages. The server ends it; a lost connection ends it sooner.
const PULL_EXPIRES: Duration = Duration::from_secs(20);
/// The most messages of one pull, so that several pulls share the work.
const MAX_PULL: usize = 64;
/// The bytes of one pull beyond those of one message.
const PULL_BYTES: usize = 4 * 1024 * 1024;
/// How often a message that waits for room tells the stream so; a third of the ack wait.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
/// The header of a pointer that says how many bytes the message has that it leads to.
pub(crate) const BODY_BYTES: &str = "Hookbridge-Body-Bytes";
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
    /// Which connection it came over.
    pub(crate) connection: u64,
    acker: Acker,
}

/// A durable, taken from with a fixed number of slots.
pub(crate) struct Consumer {
    broker: Broker,
    stream: StreamKind,
    durable: String,
    slots: Arc<Semaphore>,
    /// Room for messages, in KiB.
    room: Arc<Semaphore>,
    all_room: u32,
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

    async fn tell(&self, kind: AckKind) {
        if let Err(error) = self.acker.ack_with(kind).await {
            tracing::debug!(nats.sequence = self.sequence, "Could not tell the stream: {error}");
        }
    }
}

impl Consumer {
    /// The durable of this name on a stream, with so many slots and so many bytes of room.
    pub(crate) fn new(broker: Broker, stream: StreamKind, durable: String, slots: NonZeroUsize, room: u64) -> Self {
        let all_room = u32::try_from(room / 1024).unwrap_or(u32::MAX).max(1);
        let (slots, room) = (Semaphore::new(slots.get()), Semaphore::new(all_room as usize));
        Self { broker, stream, durable, slots: Arc::new(slots), room: Arc::new(room), all_room }
    }

    /// Takes messages until stopped, one slot each, and hands them over together with the slot.
    ///
    /// Several of these may run at once over the same slots.
    pub(crate) async fn run(&self, stop: &CancellationToken, take: impl Fn(Received, Slot)) {
        while !stop.is_cancelled() {
            let Some(Some((consumer, connection))) = stop.run_until_cancelled(self.consumer()).await else { return };
            let Some(slots) = stop.run_until_cancelled(self.free_slots()).await else { return };
            if self.pull(&consumer, connection, slots, stop, &take).await.is_err() {
                stop.run_until_cancelled(tokio::time::sleep(AFTER_FAILURE)).await;
            }
        }
    }

    /// Waits until NATS is ready, then names the durable.
    async fn consumer(&self) -> Option<(PullConsumer, u64)> {
        loop {
            let ready = self.broker.ready().await?;
            let name = self.broker.names.stream(self.stream);
            match self.broker.jetstream.get_consumer_from_stream(&self.durable, name).await {
                Ok(consumer) => return Some((consumer, ready.connection)),
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
    async fn room_for(&self, received: &Received, size: u32, batch: &mut pull::Batch) -> Option<OwnedSemaphorePermit> {
        give_back(batch).await;
        let mut waits = pin!(self.room.clone().acquire_many_owned(size));
        loop {
            match tokio::time::timeout(SIGN_OF_LIFE, &mut waits).await {
                Ok(room) => return room.ok(),
                Err(_) => received.progress().await,
            }
        }
    }

    /// Pulls again and again over one connection, for as long as messages come.
    async fn pull(
        &self,
        consumer: &PullConsumer,
        connection: u64,
        mut slots: Vec<OwnedSemaphorePermit>,
        stop: &CancellationToken,
        take: &impl Fn(Received, Slot),
    ) -> Result<(), ()> {
        let (mut lost, mut stopped) = (pin!(self.broker.lost(connection)), pin!(stop.cancelled()));
        loop {
            // Never less than the largest message, or one such would end every pull.
            let most = self.broker.max_payload().saturating_add(PULL_BYTES);
            let batch = consumer.batch().max_messages(slots.len()).max_bytes(most).expires(PULL_EXPIRES).messages();
            let mut batch =
                batch.await.map_err(|error| tracing::debug!("Pull from {} failed: {error}", self.stream))?;
            loop {
                let message = tokio::select! {
                    biased;
                    message = batch.next() => message,
                    () = &mut stopped => {
                        give_back(&mut batch).await;
                        return Ok(());
                    }
                    () = &mut lost => return Ok(()),
                };
                match message {
                    Some(Ok(message)) => {
                        if let (Some(received), Some(slot)) = (self.received(message), slots.pop()) {
                            let size = self.size_of(&received);
                            let room = match self.room.clone().try_acquire_many_owned(size) {
                                _ if stop.is_cancelled() => None,
                                Ok(room) => Some(Some(room)),
                                Err(_) => stop.run_until_cancelled(self.room_for(&received, size, &mut batch)).await,
                            };
                            let Some(room) = room else {
                                received.give_back(Duration::ZERO).await;
                                give_back(&mut batch).await;
                                return Ok(());
                            };
                            take(received, Slot { _slot: slot, _room: room });
                        }
                    }
                    Some(Err(error)) => {
                        tracing::debug!("Pull from {} ended: {error}", self.stream);
                        return Err(());
                    }
                    None => break,
                }
            }
            if stop.is_cancelled() {
                return Ok(());
            }
            if slots.is_empty() {
                let Some(free) = stop.run_until_cancelled(self.free_slots()).await else { return Ok(()) };
                slots = free;
            }
        }
    }

    fn received(&self, message: Message) -> Option<Received> {
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
        let (message, acker) = message.split();
        Some(Received {
            subject: self.broker.names.strip(&message.subject).to_owned(),
            headers: message.headers.as_ref().map(from_nats).unwrap_or_default(),
            payload: message.payload,
            sequence,
            delivered,
            stored,
            connection,
            acker,
        })
    }
}

/// Hands back what has arrived and nobody will work on, so that another courier need not wait for it.
async fn give_back(batch: &mut pull::Batch) {
    while let Some(Some(Ok(message))) = batch.next().now_or_never() {
        if let Err(error) = message.ack_with(AckKind::Nak(None)).await {
            tracing::debug!("Could not give a message back: {error}");
        }
    }
}
