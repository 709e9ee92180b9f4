//! Messages that the client library cannot read.
//!
//! A header block that the library does not read ends its connection, or the library itself, as soon as such a message
//! is delivered, and again at every delivery. nats-server stores any header block. So before anything is taken over a
//! new connection, what was delivered and not acked is looked at: each message is read through the JSON API, which
//! no message can break, and handed to a throw-away client ([`super::readable`]). What that cannot read is proved to be
//! unreadable, whatever it contains; a dead letter is written for it and it is removed. A connection that was lost for
//! another reason leaves nothing to be found.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_nats::Client;
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{self, consumer};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use tokio::time::Instant;

use super::provision::{COURIER, Plan, Problem};
use super::publish::Outgoing;
use super::raw::{self, Raw, Which};
use super::readable::{self, Suspect};
use super::seen::Seen;
use super::{Names, bucket};
use crate::config::StreamKind;

/// The most messages that are looked at for one connection and durable: what all couriers together may hold.
const MAX_LOOKED_AT: u64 = 65_536;
/// How much of that is for the oldest messages, where many were acked above one that is not.
const OLDEST: u64 = MAX_LOOKED_AT / 4;
/// How much of that is for what lies between the oldest and the newest; a part of its own for each look.
const BETWEEN: u64 = MAX_LOOKED_AT / 4;
/// Messages that are asked for at once.
const AT_ONCE: usize = 32;
/// Messages that are tested together.
const BATCH: usize = 512;
/// The most messages not yet delivered that are looked at where one that was could not be read.
const MAX_AHEAD: u64 = 16_384;
/// A connection that lasted so long was not ended by what it had brought.
const LASTING: Duration = Duration::from_secs(60);
/// After so many looks that found nothing, over connections that all ended soon, everything is looked at.
const DOUBTFUL: u64 = 4;
/// How long looking at what was not yet delivered may take.
const AHEAD_WITHIN: Duration = Duration::from_secs(10);

/// A message that the client library cannot read.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub(crate) stream: StreamKind,
    /// The stream's name as the server knows it.
    pub(crate) stream_name: String,
    /// The subject, without a configured prefix.
    pub(crate) subject: String,
    pub(crate) sequence: u64,
    pub(crate) stored: SystemTime,
    pub(crate) payload: Bytes,
}

/// What is to be done about unreadable messages beside removing them.
pub(crate) trait Bury: Send + Sync {
    /// What to write down for a message before it is removed.
    fn letters(&self, found: &Unreadable, now: SystemTime, max_payload: usize) -> Vec<Outgoing>;

    /// It was written down and removed.
    fn removed(&self, found: &Unreadable);

    /// A record that could not be read was removed from a bucket, which has this label in metrics.
    fn removed_record(&self, bucket: &'static str);
}

/// How a role that takes what others publish deals with unreadable messages, for as long as its process lives.
#[derive(Clone)]
pub(crate) struct Burial {
    pub(super) bury: Arc<dyn Bury>,
    pub(super) seen: Arc<Seen>,
    /// What was found to be readable while looking.
    looked_at: Arc<Seen>,
    looks: Arc<Mutex<Looks>>,
    /// By this the process knows its own watch of the bucket from others'.
    pub(super) process: Arc<str>,
}

impl Burial {
    /// Nothing was read yet.
    pub(crate) fn new(bury: Arc<dyn Bury>) -> Self {
        let process = format!("{}{:016x}", bucket::WATCHED_BY, rand::random::<u64>());
        let (seen, looked_at, looks) = (Arc::default(), Arc::default(), Arc::default());
        Self { bury, seen, looked_at, looks, process: process.into() }
    }

    fn looks(&self) -> MutexGuard<'_, Looks> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The looks of a process so far.
#[derive(Debug, Default)]
struct Looks {
    /// Looks that found nothing since one that did, over connections that all ended soon.
    fruitless: u64,
    /// When the last one was over, and the connection could be used.
    last: Option<Instant>,
    /// The server of the last one: each start gives a server another id.
    server: String,
    /// The streams that could not be looked at, and that was logged.
    unavailable: Vec<StreamKind>,
}

impl Looks {
    /// How many looks over connections that all ended soon have found nothing.
    fn begin(&mut self, now: Instant) -> u64 {
        if self.last.is_some_and(|last| now.duration_since(last) >= LASTING) {
            self.fruitless = 0;
        }
        self.fruitless
    }

    fn end(&mut self, now: Instant, found: usize) {
        self.last = Some(now);
        self.fruitless = if found > 0 { 0 } else { self.fruitless + 1 };
    }
}

impl fmt::Debug for Burial {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Burial").field("process", &self.process).finish_non_exhaustive()
    }
}

/// Where to look among the messages that a durable has delivered: not all of them need be in flight.
///
/// The oldest that is not acked is always just above the floor, and what broke a connection a moment ago is among the
/// newest. What lies between is looked at part by part, one part a look that found nothing.
fn ranges(floor: u64, last: u64, fruitless: u64) -> Vec<RangeInclusive<u64>> {
    let first = floor.saturating_add(1);
    if last.saturating_sub(floor) <= MAX_LOOKED_AT {
        return vec![first..=last];
    }
    let newest = last - (MAX_LOOKED_AT - OLDEST - BETWEEN) + 1;
    let (from, parts) = (first + OLDEST, (newest - first - OLDEST).div_ceil(BETWEEN));
    let between = from + fruitless % parts.max(1) * BETWEEN;
    vec![first..=from - 1, between..=(between + BETWEEN - 1).min(newest - 1), newest..=last]
}

/// Removes what cannot be read among the messages that were delivered and not acked. What was lost together with it
/// is asked for again.
pub(super) async fn remove(
    client: &Client,
    jetstream: &jetstream::Context,
    plan: &Plan,
    burial: &Burial,
) -> Result<(), Problem> {
    let fruitless = burial.looks().begin(Instant::now());
    let info = client.try_server_info();
    let may_ask = info.as_ref().is_some_and(|info| info.cluster.is_none() && info.server_id == burial.looks().server);
    let mut all_found = 0;
    for kind in [StreamKind::Outbox, StreamKind::Retry] {
        let name = plan.names.stream(kind);
        let generation = plan.identities.generation_of(kind);
        burial.seen.begin(kind, generation);
        burial.looked_at.begin(kind, generation);
        let stream = jetstream.get_stream_no_info(&name).await.map_err(|error| no_answer(&error))?;
        let names = &plan.names;
        let look = Look { client, jetstream, stream: &stream, names, kind, generation, name: &name, burial };
        let durable = stream.consumer_info(COURIER).await.map_err(|error| no_answer(&error))?;
        let (floor, last) = (durable.ack_floor.stream_sequence, durable.delivered.stream_sequence);
        // Looks that find nothing, while every connection ends soon, may have left out too much.
        let missing = |range: RangeInclusive<u64>| match fruitless {
            0..DOUBTFUL => {
                let unread = burial.seen.missing(kind, range);
                burial.looked_at.missing(kind, unread.into_iter())
            }
            _ => range.collect(),
        };
        let mut sequences: Vec<u64> = ranges(floor, last, fruitless).into_iter().flat_map(missing).collect();
        if kind == StreamKind::Outbox {
            sequences.extend(in_lines(&stream).await?);
        }
        let found = match look.at(sequences).await {
            Err(Stopped::Unavailable(reason)) => {
                look.unavailable(&reason);
                continue;
            }
            looked => looked?,
        };
        burial.looks().unavailable.retain(|other| *other != kind);
        if found > 0 {
            all_found += found;
            look.ahead(last).await?;
        }
        if durable.num_ack_pending > 0 && may_ask && bucket::is_alone(client, &plan.names, &burial.process).await {
            let unread = burial.seen.missing(kind, ranges(floor, last, fruitless).into_iter().flatten());
            let unknown: BTreeSet<u64> = burial.looked_at.missing(kind, unread.iter().copied()).into_iter().collect();
            let lost: Vec<u64> = unread.into_iter().filter(|sequence| !unknown.contains(sequence)).collect();
            look.ask_again(&lost, durable.delivered.consumer_sequence).await?;
        }
    }
    let mut looks = burial.looks();
    looks.end(Instant::now(), all_found);
    looks.server = info.map(|info| info.server_id).unwrap_or_default();
    Ok(())
}

/// Why a look was not finished.
enum Stopped {
    /// The stream's messages cannot be read now. Its durables may deliver all the same.
    Unavailable(String),
    Problem(Problem),
}

impl From<Problem> for Stopped {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<raw::Failed> for Stopped {
    fn from(failed: raw::Failed) -> Self {
        match failed {
            raw::Failed::Unavailable(reason) => Self::Unavailable(reason),
            raw::Failed::Other(reason) => Self::Problem(Problem::NoAnswer(reason)),
        }
    }
}

impl From<Stopped> for Problem {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Unavailable(reason) => Self::NoAnswer(reason),
            Stopped::Problem(problem) => problem,
        }
    }
}

/// What the lines of ordered endpoints have given out: each has one message in flight at most, the last one delivered.
async fn in_lines(stream: &Stream<()>) -> Result<Vec<u64>, Problem> {
    let mut consumers = stream.consumers();
    let mut sequences = Vec::new();
    while let Some(info) = consumers.next().await {
        let info = info.map_err(|error| no_answer(&error))?;
        if info.config.max_ack_pending == 1 && info.config.ack_policy == consumer::AckPolicy::Explicit {
            sequences.extend((info.num_ack_pending > 0).then_some(info.delivered.stream_sequence));
        }
    }
    Ok(sequences)
}

/// A look at messages of one stream.
struct Look<'a> {
    client: &'a Client,
    jetstream: &'a jetstream::Context,
    stream: &'a Stream<()>,
    names: &'a Names,
    kind: StreamKind,
    /// Which of the streams of this name it is.
    generation: u64,
    /// The stream's name as the server knows it.
    name: &'a str,
    burial: &'a Burial,
}

impl Look<'_> {
    /// Looks at messages, and removes what cannot be read. How many that were. What can be read is kept in mind, so
    /// that a look that fails need not begin anew.
    async fn at(&self, sequences: Vec<u64>) -> Result<usize, Stopped> {
        let mut found = 0;
        for batch in sequences.chunks(BATCH) {
            let asked = futures_util::stream::iter(batch.to_vec()).map(|sequence| self.head(sequence));
            let heads: Vec<Option<Raw>> = asked.buffered(AT_ONCE).try_collect().await?;
            let heads: Vec<Raw> = heads.into_iter().flatten().collect();
            let tested = tested(self.client, self.name, &heads).await?;
            let mut bad = Vec::new();
            for (sequence, verdict) in heads.into_iter().map(|head| head.sequence).zip(tested) {
                match verdict {
                    Some(true) => self.burial.looked_at.insert(self.kind, self.generation, sequence),
                    Some(false) => bad.push(sequence),
                    None => {}
                }
            }
            found += bad.len();
            let burying = futures_util::stream::iter(bad).map(|sequence| self.bury(sequence));
            burying.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        }
        Ok(found)
    }

    /// Says that the stream's messages cannot be read, once until they can.
    fn unavailable(&self, reason: &str) {
        let mut looks = self.burial.looks();
        if !looks.unavailable.contains(&self.kind) {
            looks.unavailable.push(self.kind);
            tracing::warn!(
                nats.stream = self.name,
                "Cannot look for unreadable messages in {}, which may have no leader; going on without: {reason}",
                self.name
            );
        }
    }

    /// Looks at what the durable has not delivered yet: who wrote one unreadable message may have written more.
    async fn ahead(&self, delivered: u64) -> Result<(), Stopped> {
        let state = self.stream.get_info().await.map_err(|error| no_answer(&error))?.state;
        let last = state.last_sequence.min(delivered.saturating_add(MAX_AHEAD));
        let (mut from, until) = (delivered.saturating_add(1).max(state.first_sequence), Instant::now() + AHEAD_WITHIN);
        while from <= last && Instant::now() < until {
            let to = last.min(from + BATCH as u64 - 1);
            self.at((from..=to).collect()).await?;
            from = to + 1;
        }
        Ok(())
    }

    /// A message without its body; `None` when it is no longer there, and needs no looking at.
    async fn head(&self, sequence: u64) -> Result<Option<Raw>, Stopped> {
        let read = raw::get(self.client, self.name, Which::at(sequence)).await?;
        Ok(read.map(|raw| Raw { payload: Bytes::new(), ..raw }))
    }

    async fn bury(&self, sequence: u64) -> Result<(), Stopped> {
        // Another courier may have been quicker.
        let Some(raw) = raw::get(self.client, self.name, Which::at(sequence)).await? else { return Ok(()) };
        let found = Unreadable {
            stream: self.kind,
            stream_name: self.name.to_owned(),
            subject: self.names.strip(&raw.subject).to_owned(),
            sequence,
            stored: raw.stored,
            payload: raw.payload,
        };
        for outgoing in self.burial.bury.letters(&found, SystemTime::now(), self.client.max_payload()) {
            let (subject, headers) = (self.names.subject(&outgoing.subject), outgoing.nats_headers());
            let written = self.jetstream.publish_with_headers(subject, headers, outgoing.payload).await;
            written.map_err(|error| no_answer(&error))?.await.map_err(|error| no_answer(&error))?;
        }
        match self.stream.delete_message(sequence).await {
            Ok(_) => {}
            Err(error) if error.to_string().contains("no message found") => return Ok(()),
            Err(error) => return Err(no_answer(&error).into()),
        }
        self.burial.bury.removed(&found);
        tracing::warn!(
            nats.stream = self.name,
            nats.subject = found.subject,
            nats.sequence = sequence,
            "Removed message {sequence} from {}: the NATS client library cannot read it",
            self.name
        );
        Ok(())
    }

    /// Has the durable deliver messages again now instead of after the ack wait. The server ignores what is not in
    /// flight.
    async fn ask_again(&self, sequences: &[u64], consumer_sequence: u64) -> Result<(), Problem> {
        for sequence in sequences {
            // What a negative ack of the message itself would be published on; the server goes by the sequences.
            let subject = format!("$JS.ACK.{}.{COURIER}.1.{sequence}.{consumer_sequence}.0.0", self.name);
            self.client.publish(subject, Bytes::from_static(b"-NAK")).await.map_err(|error| no_answer(&error))?;
        }
        if !sequences.is_empty() {
            tracing::info!(
                nats.stream = self.name,
                "Nakked {} in-flight messages of {} whose connection was lost, so that they are redelivered at once",
                sequences.len(),
                self.name
            );
        }
        Ok(())
    }
}

/// Whether the client library reads each of these messages. One for which that cannot be tested counts as readable:
/// nothing is removed without a proof.
pub(super) async fn verdicts(client: &Client, stream: &str, heads: &[Raw]) -> Result<Vec<bool>, Problem> {
    let tested = tested(client, stream, heads).await?;
    Ok(tested.into_iter().map(|verdict| verdict.unwrap_or(true)).collect())
}

/// Whether a client that watches hears of each of these records: it keeps to itself what it takes for a status of the
/// server, and ends at what it cannot read.
pub(super) async fn watchable(client: &Client, stream: &str, records: &[Raw]) -> Result<Vec<bool>, Problem> {
    let readable = verdicts(client, stream, records).await?;
    Ok(records.iter().zip(readable).map(|(record, readable)| readable && !raw::is_status(&record.headers)).collect())
}

/// Whether the client library reads each of these messages; none where that cannot be tested.
async fn tested(client: &Client, stream: &str, heads: &[Raw]) -> Result<Vec<Option<bool>>, Stopped> {
    let mut verdicts = vec![Some(true); heads.len()];
    let mut suspects = Vec::new();
    for (index, head) in heads.iter().enumerate() {
        if head.subject.contains(char::REPLACEMENT_CHARACTER) && !is_literal(client, stream, head).await? {
            verdicts[index] = Some(false);
        } else if !(head.headers.is_empty() && head.subject.is_ascii()) {
            suspects.push((index, Suspect { subject: &head.subject, headers: &head.headers }));
        }
    }
    let tested = readable::test(&suspects.iter().map(|(_, suspect)| *suspect).collect::<Vec<_>>()).await;
    let (mut untested, mut why) = (0, None);
    for ((index, _), verdict) in suspects.iter().zip(tested) {
        verdicts[*index] = verdict.map_err(|error| (untested, why) = (untested + 1, Some(error))).ok();
    }
    if let Some(error) = why {
        tracing::warn!(
            nats.stream = stream,
            "Cannot test {untested} messages of {stream} for readability: {error}. None of them is removed; an unreadable \
             one will end the connection again"
        );
    }
    Ok(verdicts)
}

/// Whether a subject with replacement characters was published so. The JSON API also shows bytes so that are not UTF-8,
/// which the library refuses; but those no subject in a request can match.
async fn is_literal(client: &Client, stream: &str, head: &Raw) -> Result<bool, Stopped> {
    let found = raw::get(client, stream, Which::next(&head.subject, head.sequence)).await?;
    Ok(found.is_some_and(|found| found.sequence == head.sequence))
}

fn no_answer(error: &dyn fmt::Display) -> Problem {
    Problem::NoAnswer(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_lasted_is_no_reason_to_look_at_everything() {
        let (mut looks, begun) = (Looks::default(), Instant::now());
        for number in 0..DOUBTFUL {
            assert_eq!(looks.begin(begun), number);
            looks.end(begun, 0);
        }
        assert_eq!(looks.begin(begun + LASTING / 2), DOUBTFUL);
        // A look that was not finished counts for nothing.
        assert_eq!(looks.begin(begun + LASTING / 2), DOUBTFUL);
        looks.end(begun, 1);
        assert_eq!(looks.begin(begun), 0);
        looks.end(begun, 0);
        assert_eq!(looks.begin(begun + LASTING), 0);
    }

    #[test]
    fn everything_is_looked_at_while_it_is_no_more_than_can_be_in_flight() {
        assert_eq!(ranges(0, 0, 0).into_iter().flatten().count(), 0);
        assert_eq!(ranges(9, 12, 5), [10..=12]);
        assert_eq!(ranges(1, 1 + MAX_LOOKED_AT, 0), [2..=1 + MAX_LOOKED_AT]);
    }

    #[test]
    fn of_more_the_oldest_and_the_newest_are_looked_at_and_in_the_end_everything() {
        let (floor, last) = (1000, 1000 + 4 * MAX_LOOKED_AT + 17);
        let mut all = BTreeSet::new();
        for fruitless in 0..20 {
            let looked: Vec<u64> = ranges(floor, last, fruitless).into_iter().flatten().collect();
            assert!(looked.len() as u64 <= MAX_LOOKED_AT);
            assert!(looked.contains(&(floor + 1)) && looked.contains(&last));
            all.extend(looked);
        }
        assert_eq!((all.first(), all.last()), (Some(&(floor + 1)), Some(&last)));
        assert_eq!(all.len() as u64, last - floor);
    }
}
