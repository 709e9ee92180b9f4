//! Messages that the client library cannot read.
//!
//! A header block that the library does not read ends its connection, or the library itself, as soon as such a message
//! is delivered, and again at every delivery. nats-server stores any header block. So before anything is taken over a
//! new connection, what was delivered and not acked is looked at: each message is read through the JSON API, which
//! no message can break, and handed to a throw-away client ([`super::readable`]). What that cannot read is proved to be
//! unreadable, whatever it contains; a dead letter is written for it and it is removed. A connection that was lost for
//! another reason leaves nothing to be found.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// Looks since the last one that found something.
    fruitless: Arc<AtomicU64>,
    /// By this the process knows its own watch of the bucket from others'.
    pub(super) process: Arc<str>,
}

impl Burial {
    /// Nothing was read yet.
    pub(crate) fn new(bury: Arc<dyn Bury>) -> Self {
        let process = format!("{}{:016x}", bucket::WATCHED_BY, rand::random::<u64>());
        Self { bury, seen: Arc::default(), fruitless: Arc::default(), process: process.into() }
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
    let fruitless = burial.fruitless.fetch_add(1, Ordering::Relaxed);
    for kind in [StreamKind::Outbox, StreamKind::Retry] {
        let name = plan.names.stream(kind);
        let stream = jetstream.get_stream_no_info(&name).await.map_err(|error| no_answer(&error))?;
        let look = Look { client, jetstream, stream: &stream, names: &plan.names, kind, name: &name, burial };
        let durable = stream.consumer_info(COURIER).await.map_err(|error| no_answer(&error))?;
        let (floor, last) = (durable.ack_floor.stream_sequence, durable.delivered.stream_sequence);
        // A look that found nothing may have left out too much: the next one leaves out nothing.
        let missing = |range: RangeInclusive<u64>| match fruitless {
            0 => burial.seen.missing(kind, range),
            _ => range.collect(),
        };
        let mut sequences: Vec<u64> = ranges(floor, last, fruitless).into_iter().flat_map(missing).collect();
        if kind == StreamKind::Outbox {
            sequences.extend(in_lines(&stream).await?);
        }
        let (readable, found) = look.at(sequences).await?;
        if found > 0 {
            burial.fruitless.store(0, Ordering::Relaxed);
            look.ahead(last).await?;
        }
        if durable.num_ack_pending > 0 && bucket::is_alone(jetstream, &plan.names, &burial.process).await {
            let delivered = readable.into_iter().filter(|sequence| (floor + 1..=last).contains(sequence));
            let lost = burial.seen.missing(kind, delivered);
            look.ask_again(&lost, durable.delivered.consumer_sequence).await?;
        }
    }
    Ok(())
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
    /// The stream's name as the server knows it.
    name: &'a str,
    burial: &'a Burial,
}

impl Look<'_> {
    /// Looks at messages, and removes what cannot be read. The sequences of those that can, and how many could not.
    async fn at(&self, sequences: Vec<u64>) -> Result<(Vec<u64>, usize), Problem> {
        let (mut readable, mut found) = (Vec::new(), 0);
        for batch in sequences.chunks(BATCH) {
            let asked = futures_util::stream::iter(batch.to_vec()).map(|sequence| self.head(sequence));
            let heads: Vec<_> = asked.buffered(AT_ONCE).collect().await;
            let heads = heads.into_iter().collect::<Result<Vec<_>, _>>()?;
            let heads: Vec<Raw> = heads.into_iter().flatten().collect();
            let verdicts = verdicts(self.client, self.name, &heads).await?;
            let (good, bad): (Vec<_>, Vec<_>) =
                heads.into_iter().map(|head| head.sequence).zip(verdicts).partition(|(_, verdict)| *verdict);
            readable.extend(good.into_iter().map(|(sequence, _)| sequence));
            found += bad.len();
            let burying = futures_util::stream::iter(bad).map(|(sequence, _)| self.bury(sequence));
            burying.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        }
        Ok((readable, found))
    }

    /// Looks at what the durable has not delivered yet: who wrote one unreadable message may have written more.
    async fn ahead(&self, delivered: u64) -> Result<(), Problem> {
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
    async fn head(&self, sequence: u64) -> Result<Option<Raw>, Problem> {
        let read = raw::get(self.client, self.name, Which::at(sequence)).await;
        Ok(read.map_err(|error| no_answer(&error))?.map(|raw| Raw { payload: Bytes::new(), ..raw }))
    }

    async fn bury(&self, sequence: u64) -> Result<(), Problem> {
        let read = raw::get(self.client, self.name, Which::at(sequence)).await;
        // Another courier may have been quicker.
        let Some(raw) = read.map_err(|error| no_answer(&error))? else { return Ok(()) };
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
            Err(error) => return Err(no_answer(&error)),
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

/// Whether the client library reads each of these messages. Where that cannot be tested, all count as readable: nothing
/// is removed without a proof.
pub(super) async fn verdicts(client: &Client, stream: &str, heads: &[Raw]) -> Result<Vec<bool>, Problem> {
    let mut verdicts = vec![true; heads.len()];
    let mut suspects = Vec::new();
    for (index, head) in heads.iter().enumerate() {
        if head.subject.contains(char::REPLACEMENT_CHARACTER) && !is_literal(client, stream, head).await? {
            verdicts[index] = false;
        } else if !(head.headers.is_empty() && head.subject.is_ascii()) {
            suspects.push((index, Suspect { subject: &head.subject, headers: &head.headers }));
        }
    }
    let tested = readable::test(&suspects.iter().map(|(_, suspect)| *suspect).collect::<Vec<_>>()).await;
    match tested {
        Ok(tested) => suspects.iter().zip(tested).for_each(|((index, _), verdict)| verdicts[*index] = verdict),
        Err(error) => tracing::warn!(
            nats.stream = stream,
            "Cannot test messages of {stream} for readability: {error}. None is removed; an unreadable one will end the \
             connection again"
        ),
    }
    Ok(verdicts)
}

/// Whether a subject with replacement characters was published so. The JSON API also shows bytes so that are not UTF-8,
/// which the library refuses; but those no subject in a request can match.
async fn is_literal(client: &Client, stream: &str, head: &Raw) -> Result<bool, Problem> {
    let found = raw::get(client, stream, Which::next(&head.subject, head.sequence)).await;
    Ok(found.map_err(|error| no_answer(&error))?.is_some_and(|found| found.sequence == head.sequence))
}

fn no_answer(error: &dyn fmt::Display) -> Problem {
    Problem::NoAnswer(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_looked_at_while_it_is_no_more_than_can_be_in_flight() {
        assert_eq!(ranges(0, 0, 0).into_iter().flatten().count(), 0);
        assert_eq!(ranges(9, 12, 5), [10..=12]);
        assert_eq!(ranges(1, 1 + MAX_LOOKED_AT, 0), [2..=1 + MAX_LOOKED_AT]);
    }

    #[test]
    fn of_more_the_oldest_and_the_newest_are_looked_at_and_in_the_end_everything() {
        let (floor, last) = (1000, 1000 + 4 * MAX_LOOKED_AT + 17);
        let mut all = std::collections::BTreeSet::new();
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
