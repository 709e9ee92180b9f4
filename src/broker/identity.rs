//! Whether a stream is still the one that this process has seen before.
//!
//! Sequences are only meaningful within one incarnation of a stream. A stream that was purged, restored from an older
//! backup, truncated, or deleted and recreated assigns the same sequences to other messages, and an ack is nothing but
//! a sequence. So what was seen of every stream is remembered for the life of the process and compared at every
//! connection, and whenever it may have changed. An ack of a message that came over an earlier connection is sent only
//! after the stream has shown that it still has this very message.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_nats::Client;
use tokio::sync::watch;

use super::names::{ENDPOINTS_STREAM, TASKS_STREAM};
use super::raw::{self, Which};
use super::{Broker, Names, Problem, ReadError, Visitor};
use crate::clock::rfc3339;
use crate::config::StreamKind;

/// For how long one look answers for all who ask.
const FRESH: Duration = Duration::from_millis(100);
/// A leader that was elected a moment ago may not have caught up: how often it is asked again before it is believed
/// that messages are gone, and how long after.
const LOOKS: u32 = 5;
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// A stream or bucket whose sequences something depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Store {
    Stream(StreamKind),
    /// The bucket of endpoint states.
    Endpoints,
    /// The bucket of tasks.
    Tasks,
}

impl Store {
    fn all() -> impl Iterator<Item = Self> {
        StreamKind::ALL.into_iter().map(Self::Stream).chain([Self::Endpoints, Self::Tasks])
    }

    /// The name without a configured prefix, also in metrics.
    fn label(self) -> &'static str {
        match self {
            Self::Stream(kind) => kind.name(),
            Self::Endpoints => ENDPOINTS_STREAM,
            Self::Tasks => TASKS_STREAM,
        }
    }

    /// The stream that an error about it names.
    fn kind(self) -> StreamKind {
        match self {
            Self::Stream(kind) => kind,
            Self::Endpoints | Self::Tasks => StreamKind::Tasks,
        }
    }

    fn stream_name(self, names: &Names) -> String {
        match self {
            Self::Stream(kind) => names.stream(kind),
            Self::Endpoints => format!("KV_{}", names.endpoints_bucket()),
            Self::Tasks => format!("KV_{}", names.tasks_bucket()),
        }
    }

    /// What follows when it is another one than before.
    fn consequence(self) -> &'static str {
        match self {
            Self::Stream(StreamKind::Outbox) => {
                "earlier deliveries are acked only if it still has their message; pointers to lost messages are dead-lettered"
            }
            Self::Stream(StreamKind::Retry) => {
                "earlier deliveries are acked only if it still has their message; missing retries are rescheduled"
            }
            Self::Stream(StreamKind::Receipts) => {
                "deliveries that had already finished may be sent again if they are redelivered; what RETRY has lost and \
                  may have finished before is not rescheduled"
            }
            Self::Stream(StreamKind::Events) => "unconsumed events may be lost, and duplicates are no longer detected",
            Self::Stream(StreamKind::Dead) => "dead letters may be lost",
            Self::Stream(StreamKind::Tasks) => "unconsumed task offers may be lost",
            Self::Stream(StreamKind::Quarantine) => "rejected requests may be lost",
            Self::Endpoints => "pauses, cancellations and runtime endpoints may be lost",
            Self::Tasks => "tasks may be lost",
        }
    }
}

/// How a stream differs from the one that was seen before.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    /// It was made at another time.
    Recreated { created: SystemTime },
    /// Its last sequence went back.
    Shortened { from: u64, to: u64 },
    /// It has another message at a sequence that was seen.
    Rewritten { sequence: u64 },
    /// It has none at a sequence that was written, although it has not come so far that it would have dropped it.
    Missing { sequence: u64 },
}

impl fmt::Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recreated { created } => write!(formatter, "it was created at {}", rfc3339(*created)),
            Self::Shortened { from, to } => write!(formatter, "its last sequence dropped from {from} to {to}"),
            Self::Missing { sequence } => write!(formatter, "the message at sequence {sequence} is gone"),
            Self::Rewritten { sequence } => write!(formatter, "sequence {sequence} holds a different message"),
        }
    }
}

/// What is remembered of a store.
#[derive(Clone, Copy, Debug)]
struct Known {
    created: SystemTime,
    /// The highest sequence that was seen.
    last: u64,
    /// A message that was seen: its sequence, and when it was stored.
    sample: Option<(u64, SystemTime)>,
    /// The highest sequence that this process has written, where nobody takes single messages out.
    written: Option<u64>,
    /// Messages that were stored until then may be those of an earlier store.
    doubtful: Option<SystemTime>,
    /// Counts the stores that had this name.
    generation: u64,
    /// The number of the look that this was learnt by.
    look: u64,
}

/// What a look finds.
#[derive(Clone, Copy, Debug)]
struct Observation {
    created: SystemTime,
    last: u64,
    /// When the last message was stored.
    last_stored: SystemTime,
    /// When the message at the sequence of the sample was stored, if there is one.
    sample: Option<SystemTime>,
    /// A sequence that was written and is gone, although it lies between the first and the last.
    missing: Option<u64>,
    /// When the stream answered. Whatever it has lost was stored before.
    at: SystemTime,
}

/// How what is found differs from what is known, if it does. Pure.
fn compare(known: &Known, found: &Observation) -> Option<Change> {
    if found.created != known.created {
        return Some(Change::Recreated { created: found.created });
    }
    if found.last < known.last {
        return Some(Change::Shortened { from: known.last, to: found.last });
    }
    if let Some(sequence) = found.missing {
        return Some(Change::Missing { sequence });
    }
    let (sequence, stored) = known.sample?;
    (found.sample? != stored).then_some(Change::Rewritten { sequence })
}

/// What this process has seen of its streams, over all of its connections.
#[derive(Debug)]
pub(crate) struct Identities {
    known: Mutex<HashMap<Store, Known>>,
    looks: Mutex<u64>,
    /// Changes whenever OUTBOX or RETRY turns out to be another one than before.
    replaced: watch::Sender<()>,
}

impl Default for Identities {
    fn default() -> Self {
        Self { known: Mutex::default(), looks: Mutex::default(), replaced: watch::channel(()).0 }
    }
}

impl Identities {
    fn known(&self) -> MutexGuard<'_, HashMap<Store, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_look(&self) -> u64 {
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        *looks += 1;
        *looks
    }

    /// Remembers a message that was taken from a store of this generation.
    pub(super) fn observed(&self, store: Store, generation: u64, sequence: u64, stored: SystemTime) {
        if let Some(known) = self.known().get_mut(&store)
            && known.generation == generation
            && known.sample.is_none_or(|(highest, _)| sequence >= highest)
        {
            known.sample = Some((sequence, stored));
            known.last = known.last.max(sequence);
        }
    }

    /// The generation of a stream, if it was seen.
    pub(super) fn current(&self, kind: StreamKind) -> Option<u64> {
        self.known().get(&Store::Stream(kind)).map(|known| known.generation)
    }

    /// Remembers that a message was written to a stream, whose generation was this one before.
    pub(super) fn wrote(&self, kind: StreamKind, generation: u64, sequence: u64) {
        if let Some(known) = self.known().get_mut(&Store::Stream(kind))
            && known.generation == generation
        {
            known.last = known.last.max(sequence);
            known.written = known.written.max(Some(sequence));
        }
    }

    /// Takes in what was found, and says how it differs from what was known before it was asked for.
    fn learn(&self, store: Store, look: u64, before: Option<Known>, found: &Observation) -> (u64, Option<Change>) {
        let mut all = self.known();
        let Some(known) = all.get_mut(&store) else {
            let Observation { created, last, .. } = *found;
            all.insert(
                store,
                Known { created, last, sample: None, written: None, doubtful: None, generation: 0, look },
            );
            return (0, None);
        };
        // Somebody who asked later has learnt more already.
        if known.look > look {
            return (known.generation, None);
        }
        known.look = look;
        let before = before.filter(|before| before.generation == known.generation);
        match before.and_then(|before| compare(&before, found)) {
            None => known.last = known.last.max(found.last),
            Some(change) => {
                let (created, last, generation) = (found.created, found.last, known.generation + 1);
                let seen = known.sample.map(|(_, stored)| stored);
                let until = match change {
                    // Everything in the one before was stored before this one was made.
                    Change::Recreated { created } if created > known.created => created,
                    _ => found.last_stored.max(found.at),
                };
                let doubtful = known.doubtful.max(seen).max(Some(until));
                *known = Known { created, last, sample: None, written: None, doubtful, generation, look };
                return (generation, Some(change));
            }
        }
        (known.generation, None)
    }

    /// How many streams of this name came before the one that was seen last.
    pub(super) fn generation_of(&self, kind: StreamKind) -> u64 {
        self.known().get(&Store::Stream(kind)).map_or(0, |known| known.generation)
    }

    /// How often each store was another one than before.
    pub(crate) fn replacements(&self) -> Vec<(&'static str, u64)> {
        let known = self.known();
        Store::all().map(|store| (store.label(), known.get(&store).map_or(0, |known| known.generation))).collect()
    }
}

/// The last looks over one broker, so that many who ask at a time are answered by one.
#[derive(Debug, Default)]
pub(super) struct Looks {
    outbox: tokio::sync::Mutex<Option<Look>>,
    retry: tokio::sync::Mutex<Option<Look>>,
}

#[derive(Clone, Copy, Debug)]
struct Look {
    begun: Instant,
    connection: u64,
    generation: u64,
}

impl Broker {
    /// Looks at every store, before anything is taken over a connection.
    pub(super) async fn identify_all(&self) -> Result<(), Problem> {
        let looks = Store::all().map(|store| self.identify(store, true));
        let looked = futures_util::future::try_join_all(looks).await;
        looked.map(drop).map_err(|error| Problem::NoAnswer(error.to_string()))
    }

    /// Looks which store it is, and says so if it is another one than before. Returns its generation.
    async fn identify(&self, store: Store, with_sample: bool) -> Result<u64, ReadError> {
        let name = store.stream_name(&self.names);
        let failed = |error: &dyn fmt::Display| ReadError::new(store.kind(), format!("{name}: {error}"));
        let stream = self.jetstream.get_stream_no_info(&name).await.map_err(|error| failed(&error))?;
        let mut looked = 0;
        loop {
            looked += 1;
            let (look, before) = (self.identities.next_look(), self.identities.known().get(&store).copied());
            let info = stream.get_info().await.map_err(|error| failed(&error))?;
            let sample = match before.and_then(|before| before.sample) {
                Some((sequence, _)) if with_sample => stored_at(&self.client, &name, sequence).await,
                _ => None,
            };
            let between = info.state.first_sequence..=info.state.last_sequence;
            let missing = match before.and_then(|before| before.written).filter(|written| between.contains(written)) {
                // A server may lose the end of a file and go on counting.
                Some(written) if with_sample => {
                    let found = raw::get(&self.client, &name, Which::at(written)).await;
                    found.map_err(|error| failed(&error))?.is_none().then_some(written)
                }
                _ => None,
            };
            let (last, last_stored) = (info.state.last_sequence, info.state.last_timestamp.into());
            let (created, at) = (info.created.into(), SystemTime::now());
            let found = Observation { created, last, last_stored, sample, missing, at };
            let gone = before.is_some_and(|before| matches!(compare(&before, &found), Some(Change::Shortened { .. })));
            if gone && (self.replicas > 1 || self.is_clustered()) && looked < LOOKS {
                tokio::time::sleep(LOOK_PAUSE).await;
                continue;
            }
            let (generation, change) = self.identities.learn(store, look, before, &found);
            if let Some(change) = change {
                tracing::error!(
                    nats.stream = name,
                    "Stream {name} was replaced while this process ran ({change}): it was purged, restored from a \
                     backup, truncated, or deleted and recreated; {}. Check who changed it",
                    store.consequence()
                );
                // The other stores tell nothing of where deliveries are.
                if matches!(store, Store::Stream(StreamKind::Outbox | StreamKind::Retry)) {
                    self.identities.replaced.send_replace(());
                }
            }
            return Ok(generation);
        }
    }

    /// The generation of OUTBOX or RETRY as it is now, asked over this connection at most a moment ago.
    pub(super) async fn generation(&self, kind: StreamKind, connection: u64) -> Result<u64, ReadError> {
        let looks = if kind == StreamKind::Retry { &self.looks.retry } else { &self.looks.outbox };
        let mut last = looks.lock().await;
        if let Some(look) = *last
            && look.connection == connection
            && look.begun.elapsed() < FRESH
        {
            return Ok(look.generation);
        }
        let begun = Instant::now();
        let generation = self.identify(Store::Stream(kind), false).await?;
        *last = Some(Look { begun, connection, generation });
        Ok(generation)
    }

    /// Whether a stream has, by its leader's word, this very message and no other at its sequence.
    pub(crate) async fn still_has(
        &self,
        kind: StreamKind,
        sequence: u64,
        stored: SystemTime,
    ) -> Result<bool, ReadError> {
        Ok(self.read_raw(kind, Which::at(sequence)).await?.is_some_and(|found| found.stored == stored))
    }

    /// Whether a message that was stored then may be that of a store which is gone.
    pub(crate) fn is_doubtful(&self, kind: StreamKind, stored: SystemTime) -> bool {
        let doubtful = self.identities.known().get(&Store::Stream(kind)).and_then(|known| known.doubtful);
        doubtful.is_some_and(|until| stored <= until)
    }

    /// Tells whenever OUTBOX or RETRY turns out to be another one than before.
    pub(crate) fn replaced(&self) -> watch::Receiver<()> {
        self.identities.replaced.subscribe()
    }

    /// How often each store was another one than before, since the process began.
    pub(crate) fn replacements(&self) -> Vec<(&'static str, u64)> {
        self.identities.replacements()
    }
}

impl Visitor {
    /// Since when a stream has lost nothing of its end, as far as is known: what was written to it earlier may have
    /// been followed by something that is gone. Asks the stream now. The command line, which has not seen it before,
    /// knows only when it was created.
    pub(crate) async fn intact_since(&self, kind: StreamKind) -> Result<SystemTime, ReadError> {
        let Some(broker) = &self.broker else { return self.created(kind).await };
        let store = Store::Stream(kind);
        broker.identify(store, true).await?;
        let known = broker.identities.known().get(&store).copied();
        Ok(known.map_or_else(SystemTime::now, |known| known.doubtful.map_or(known.created, |it| it.max(known.created))))
    }
}

/// When the message at a sequence was stored; none if there is none, or it cannot be read.
async fn stored_at(client: &Client, stream: &str, sequence: u64) -> Option<SystemTime> {
    raw::get(client, stream, Which::at(sequence)).await.ok().flatten().map(|found| found.stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTBOX: Store = Store::Stream(StreamKind::Outbox);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn look(identities: &Identities, created: u64, last: u64, sample: Option<u64>) -> (u64, Option<Change>) {
        let (number, before) = (identities.next_look(), identities.known().get(&OUTBOX).copied());
        let (last_stored, sample) = (at(last), sample.map(at));
        let found = Observation { created: at(created), last, last_stored, sample, missing: None, at: at(last + 100) };
        identities.learn(OUTBOX, number, before, &found)
    }

    #[test]
    fn a_store_that_grows_stays_the_same() {
        let identities = Identities::default();
        assert_eq!(look(&identities, 1, 5, None), (0, None));
        identities.observed(OUTBOX, 0, 9, at(20));
        assert_eq!(look(&identities, 1, 9, Some(20)), (0, None));
        // What was seen has been purged since.
        assert_eq!(look(&identities, 1, 12, None), (0, None));
        assert_eq!(identities.replacements().iter().map(|(_, count)| count).sum::<u64>(), 0);
    }

    #[test]
    fn another_store_of_the_same_name_is_noticed() {
        let identities = Identities::default();
        look(&identities, 1, 5, None);
        assert_eq!(look(&identities, 2, 50, None), (1, Some(Change::Recreated { created: at(2) })));
        assert_eq!(identities.known()[&OUTBOX].doubtful, Some(at(2)));
        assert_eq!(look(&identities, 2, 40, None), (2, Some(Change::Shortened { from: 50, to: 40 })));
        identities.observed(OUTBOX, 2, 41, at(30));
        assert_eq!(look(&identities, 2, 60, Some(33)), (3, Some(Change::Rewritten { sequence: 41 })));
        assert_eq!(look(&identities, 2, 61, None), (3, None));
        assert!(identities.replacements().contains(&("OUTBOX", 3)));
        // What was cut off may have been stored until it was noticed.
        assert_eq!(identities.known()[&OUTBOX].doubtful, Some(at(160)));
    }

    #[test]
    fn what_was_written_is_missed_when_it_is_cut_off() {
        let identities = Identities::default();
        look(&identities, 1, 5, None);
        identities.wrote(StreamKind::Outbox, 0, 9);
        assert_eq!(look(&identities, 1, 7, None), (1, Some(Change::Shortened { from: 9, to: 7 })));
        identities.wrote(StreamKind::Outbox, 0, 50);
        assert_eq!((identities.current(StreamKind::Outbox), look(&identities, 1, 8, None)), (Some(1), (1, None)));
    }

    #[test]
    fn what_was_taken_from_an_earlier_store_is_not_expected_of_the_next() {
        let identities = Identities::default();
        look(&identities, 1, 50, None);
        look(&identities, 2, 3, None);
        identities.observed(OUTBOX, 0, 50, at(9));
        assert_eq!(look(&identities, 2, 4, None), (1, None));
    }

    #[test]
    fn an_answer_that_was_overtaken_changes_nothing() {
        let identities = Identities::default();
        look(&identities, 1, 5, None);
        let (early, before) = (identities.next_look(), identities.known().get(&OUTBOX).copied());
        identities.observed(OUTBOX, 0, 7, at(9));
        // Message 7 was stored after the server had answered.
        let found = Observation { created: at(1), last: 6, last_stored: at(6), sample: None, missing: None, at: at(6) };
        assert_eq!(identities.learn(OUTBOX, early, before, &found), (0, None));
        let (early, before) = (identities.next_look(), identities.known().get(&OUTBOX).copied());
        look(&identities, 2, 1, None);
        assert_eq!(identities.learn(OUTBOX, early, before, &Observation { last: 8, ..found }), (1, None));
    }
}
