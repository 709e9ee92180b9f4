//! Whether a stream is still the one that this process has seen before.
//!
//! A sequence means nothing without the store that gave it. A store that was emptied, restored from an older copy, cut
//! off at its end, or deleted and made again gives the same sequences to other messages, and an ack is nothing but a
//! sequence. So what was seen of every stream is remembered for the life of the process and compared at every
//! connection, and whenever there is reason to doubt it. What is told of a message that came over an earlier connection
//! is told only after the stream has shown that it still has this very message.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_nats::Client;
use tokio::sync::watch;

use super::names::{ENDPOINTS, TASKS};
use super::raw::{self, Which};
use super::{Broker, Names, Problem, ReadError};
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
            Self::Endpoints => ENDPOINTS,
            Self::Tasks => TASKS,
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
                "deliveries taken before are not acked; what waits for a message that is gone gets a dead letter"
            }
            Self::Stream(StreamKind::Retry) => {
                "deliveries taken before are not acked; deliveries that no longer wait there are scheduled again"
            }
            Self::Stream(StreamKind::Receipts) => "deliveries that ended before may be made again after a redelivery",
            Self::Stream(StreamKind::Events) => "events that no agent has taken may be gone, and repeats are not known",
            Self::Stream(StreamKind::Dead) => "dead letters may be gone",
            Self::Stream(StreamKind::Tasks) => "offers that no agent has taken may be gone",
            Self::Stream(StreamKind::Quarantine) => "rejected requests may be gone",
            Self::Endpoints => "pauses, cancellations and endpoints of run time may be gone",
            Self::Tasks => "tasks may be gone",
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
}

impl fmt::Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recreated { created } => write!(formatter, "it was created anew at {}", rfc3339(*created)),
            Self::Shortened { from, to } => write!(formatter, "its last sequence went back from {from} to {to}"),
            Self::Rewritten { sequence } => write!(formatter, "it has another message at sequence {sequence}"),
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
    witness: Option<(u64, SystemTime)>,
    /// Messages that were stored until then may be those of an earlier store.
    doubtful: Option<SystemTime>,
    /// Counts the stores that had this name.
    generation: u64,
    /// The number of the look that this was learnt by.
    look: u64,
}

/// What a look finds.
#[derive(Clone, Copy, Debug)]
struct Sighting {
    created: SystemTime,
    last: u64,
    /// When the last message was stored.
    last_stored: SystemTime,
    /// When the message at the sequence of the witness was stored, if there is one.
    witness: Option<SystemTime>,
}

/// How what is found differs from what is known, if it does. Pure.
fn compare(known: &Known, found: &Sighting) -> Option<Change> {
    if found.created != known.created {
        return Some(Change::Recreated { created: found.created });
    }
    if found.last < known.last {
        return Some(Change::Shortened { from: known.last, to: found.last });
    }
    let (sequence, stored) = known.witness?;
    (found.witness? != stored).then_some(Change::Rewritten { sequence })
}

/// What this process has seen of its streams, over all of its connections.
#[derive(Debug)]
pub(crate) struct Identities {
    known: Mutex<HashMap<Store, Known>>,
    looks: Mutex<u64>,
    /// Changes whenever a store turns out to be another one than before.
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
    pub(super) fn saw(&self, store: Store, generation: u64, sequence: u64, stored: SystemTime) {
        if let Some(known) = self.known().get_mut(&store)
            && known.generation == generation
            && known.witness.is_none_or(|(highest, _)| sequence >= highest)
        {
            known.witness = Some((sequence, stored));
            known.last = known.last.max(sequence);
        }
    }

    /// Takes in what was found, and says how it differs from what was known before it was asked for.
    fn learn(&self, store: Store, look: u64, before: Option<Known>, found: &Sighting) -> (u64, Option<Change>) {
        let mut all = self.known();
        let Some(known) = all.get_mut(&store) else {
            let Sighting { created, last, .. } = *found;
            all.insert(store, Known { created, last, witness: None, doubtful: None, generation: 0, look });
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
                let seen = known.witness.map(|(_, stored)| stored);
                let doubtful = known.doubtful.max(seen).max(Some(found.last_stored));
                *known = Known { created, last, witness: None, doubtful, generation, look };
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
    async fn identify(&self, store: Store, with_witness: bool) -> Result<u64, ReadError> {
        let name = store.stream_name(&self.names);
        let failed = |error: &dyn fmt::Display| ReadError::new(store.kind(), format!("{name}: {error}"));
        let stream = self.jetstream.get_stream_no_info(&name).await.map_err(|error| failed(&error))?;
        let mut looked = 0;
        loop {
            looked += 1;
            let (look, before) = (self.identities.next_look(), self.identities.known().get(&store).copied());
            let info = stream.get_info().await.map_err(|error| failed(&error))?;
            let witness = match before.and_then(|before| before.witness) {
                Some((sequence, _)) if with_witness => stored_at(&self.client, &name, sequence).await,
                _ => None,
            };
            let (last, last_stored) = (info.state.last_sequence, info.state.last_timestamp.into());
            let found = Sighting { created: info.created.into(), last, last_stored, witness };
            let gone = before.is_some_and(|before| matches!(compare(&before, &found), Some(Change::Shortened { .. })));
            if gone && (self.replicas > 1 || self.is_clustered()) && looked < LOOKS {
                tokio::time::sleep(LOOK_PAUSE).await;
                continue;
            }
            let (generation, change) = self.identities.learn(store, look, before, &found);
            if let Some(change) = change {
                tracing::error!(
                    nats.stream = name,
                    "{name} is not the stream that it was: {change}. It was emptied, restored, cut off or deleted \
                     while this process ran: {}",
                    store.consequence()
                );
                self.identities.replaced.send_replace(());
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

    /// Tells whenever a store turns out to be another one than before.
    pub(crate) fn replaced(&self) -> watch::Receiver<()> {
        self.identities.replaced.subscribe()
    }

    /// How often each store was another one than before, since the process began.
    pub(crate) fn replacements(&self) -> Vec<(&'static str, u64)> {
        self.identities.replacements()
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

    fn look(identities: &Identities, created: u64, last: u64, witness: Option<u64>) -> (u64, Option<Change>) {
        let (number, before) = (identities.next_look(), identities.known().get(&OUTBOX).copied());
        let found = Sighting { created: at(created), last, last_stored: at(last), witness: witness.map(at) };
        identities.learn(OUTBOX, number, before, &found)
    }

    #[test]
    fn a_store_that_grows_stays_the_same() {
        let identities = Identities::default();
        assert_eq!(look(&identities, 1, 5, None), (0, None));
        identities.saw(OUTBOX, 0, 9, at(20));
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
        assert_eq!(look(&identities, 2, 40, None), (2, Some(Change::Shortened { from: 50, to: 40 })));
        identities.saw(OUTBOX, 2, 41, at(30));
        assert_eq!(look(&identities, 2, 60, Some(33)), (3, Some(Change::Rewritten { sequence: 41 })));
        assert_eq!(look(&identities, 2, 61, None), (3, None));
        assert!(identities.replacements().contains(&("OUTBOX", 3)));
    }

    #[test]
    fn what_was_taken_from_an_earlier_store_is_not_expected_of_the_next() {
        let identities = Identities::default();
        look(&identities, 1, 50, None);
        look(&identities, 2, 3, None);
        identities.saw(OUTBOX, 0, 50, at(9));
        assert_eq!(look(&identities, 2, 4, None), (1, None));
    }

    #[test]
    fn an_answer_that_was_overtaken_changes_nothing() {
        let identities = Identities::default();
        look(&identities, 1, 5, None);
        let (early, before) = (identities.next_look(), identities.known().get(&OUTBOX).copied());
        identities.saw(OUTBOX, 0, 7, at(9));
        // Message 7 was stored after the server had answered.
        let found = Sighting { created: at(1), last: 6, last_stored: at(6), witness: None };
        assert_eq!(identities.learn(OUTBOX, early, before, &found), (0, None));
        let (early, before) = (identities.next_look(), identities.known().get(&OUTBOX).copied());
        look(&identities, 2, 1, None);
        assert_eq!(identities.learn(OUTBOX, early, before, &Sighting { last: 8, ..found }), (1, None));
    }
}
