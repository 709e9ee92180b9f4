//! What the operator of a cluster has to know: servers that lose streams, and streams that have lost their leader.
//!
//! Neither keeps a process from working by itself, so both are notes: on the admin page, in the log and in what
//! `check --online` prints. Whether the process works is decided elsewhere, by what is stored.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream;
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::{Broker, Links, Names, Visitor};
use crate::config::StreamKind;

/// Where an operator reads what to do about both.
const RUNBOOK: &str = "docs/nats-stream-without-leader.md of the source repository";
/// The first and the last version of nats-server that permanently stops a replicated stream when a publish has a wrong
/// `Nats-Expected-Last-Msg-Id`.
const AFFECTED: ((u64, u64, u64), (u64, u64, u64)) = ((2, 14, 0), (2, 15, 3));
/// How often to look which servers this process is connected to.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How many of these looks pass until the streams are asked for their leaders. An election takes up to nine seconds,
/// and no stream has a leader during one: one that had none at two times this far apart is in trouble.
const ASK_EVERY: u32 = 10;
/// How many times `check --online` asks again for the leaders of streams that had none, a second apart.
const ASK_AGAIN: u32 = 10;

/// Whether a server of this version can lose a replicated stream to one message.
pub(crate) fn can_lose_streams(version: &str) -> bool {
    let numbers = version.trim_start_matches('v').split(['-', '+']).next().unwrap_or_default();
    let mut numbers = numbers.split('.').map(|part| part.parse::<u64>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let version = (next(), next(), next());
    (AFFECTED.0..=AFFECTED.1).contains(&version)
}

/// What to say of a server whose version is affected, where streams are replicated.
pub(crate) fn affected_note(server: &str, version: &str) -> String {
    format!(
        "nats-server {version} ({server}) has a bug: one publish with a wrong Nats-Expected-Last-Msg-Id permanently \
         stops a replicated stream; 2.12.8 is not affected; see {RUNBOOK}"
    )
}

/// What to say of a stream that has had no leader for a while.
pub(crate) fn leaderless_note(stream: &str) -> String {
    format!("stream {stream} has no leader and accepts no messages; see the recovery procedure in {RUNBOOK}")
}

/// The streams and the buckets' streams that have no leader now, by the server's names. A stream that does not exist,
/// or of which nothing can be learnt now, is none of them.
async fn leaderless(jetstream: &jetstream::Context, names: &Names) -> BTreeSet<String> {
    let buckets = [names.endpoints_bucket(), names.tasks_bucket()].map(|bucket| format!("KV_{bucket}"));
    let streams = StreamKind::ALL.map(|kind| names.stream(kind)).into_iter().chain(buckets);
    let asked = join_all(streams.map(async |stream| {
        let info = jetstream.get_stream(&stream).await.ok()?.cached_info().clone();
        // A server that is alone knows no cluster.
        info.cluster?.leader.is_none_or(|leader| leader.is_empty()).then_some(stream)
    }));
    asked.await.into_iter().flatten().collect()
}

/// The notes of a process: written by one watch, read by the admin page.
#[derive(Clone, Default)]
pub(crate) struct ClusterNotes(Arc<Mutex<Noted>>);

#[derive(Default)]
struct Noted {
    affected: BTreeSet<String>,
    leaderless: BTreeSet<String>,
}

/// What changed with a look at the streams.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    lost: Vec<String>,
    found: Vec<String>,
}

impl ClusterNotes {
    /// What an operator has to know now, one line each.
    pub(crate) fn lines(&self) -> Vec<String> {
        let noted = self.noted();
        noted.leaderless.iter().map(|stream| leaderless_note(stream)).chain(noted.affected.iter().cloned()).collect()
    }

    fn noted(&self) -> std::sync::MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches the servers of a process and the streams of its cluster until stopped. `count` is called for every
    /// stream, by its label in metrics, that lost its leader (`true`) or has one again (`false`).
    pub(crate) async fn watch(self, links: Links, count: impl Fn(&str, bool), stop: CancellationToken) {
        let (mut said, mut before) = (HashSet::new(), BTreeSet::new());
        let mut pace = tokio::time::interval(LOOK_EVERY);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut looks = 0_u32;
        while stop.run_until_cancelled(pace.tick()).await.is_some() {
            let connected: Vec<Broker> = links.all().into_iter().filter(Broker::is_connected).collect();
            self.look_at_servers(&connected, &mut said);
            let Some(broker) = connected.first().filter(|broker| broker.is_clustered()) else { continue };
            looks += 1;
            if looks % ASK_EVERY != 1 {
                continue;
            }
            let asked = leaderless(&broker.jetstream, &broker.names);
            let Some(now) = stop.run_until_cancelled(asked).await else { return };
            let changes = self.look_at_streams(&before, &now);
            for stream in &changes.lost {
                count(&broker.names.label(stream), true);
                tracing::error!(stream.name = %stream, "{}", leaderless_note(stream));
            }
            for stream in &changes.found {
                count(&broker.names.label(stream), false);
                tracing::info!(stream.name = %stream, "Stream {stream} has a leader again");
            }
            before = now;
        }
    }

    /// Each server of an affected version is named once in the log, and on the page while it is in use.
    fn look_at_servers(&self, connected: &[Broker], said: &mut HashSet<String>) {
        let mut affected = BTreeSet::new();
        for broker in connected.iter().filter(|broker| broker.replicas > 1) {
            let Some(info) = broker.client.try_server_info().filter(|info| can_lose_streams(&info.version)) else {
                continue;
            };
            let note = affected_note(&info.server_name, &info.version);
            if said.insert(note.clone()) {
                tracing::warn!(nats.server = %info.server_name, nats.version = %info.version, "{note}");
            }
            affected.insert(note);
        }
        // While no link is up, what was known last still holds.
        if !connected.is_empty() {
            self.noted().affected = affected;
        }
    }

    /// Notes the streams that had no leader at this look and the one before.
    fn look_at_streams(&self, before: &BTreeSet<String>, now: &BTreeSet<String>) -> Changes {
        let mut noted = self.noted();
        let lost = now.intersection(before).filter(|stream| !noted.leaderless.contains(*stream)).cloned().collect();
        let found = noted.leaderless.difference(now).cloned().collect();
        let changes = Changes { lost, found };
        noted.leaderless.extend(changes.lost.iter().cloned());
        noted.leaderless.retain(|stream| now.contains(stream));
        changes
    }
}

impl Broker {
    fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }
}

impl Visitor {
    /// The streams that have no leader, and have none either when they are asked again for some seconds.
    pub(crate) async fn streams_without_leader(&self) -> BTreeSet<String> {
        let mut found = leaderless(&self.jetstream, &self.names).await;
        for _ in 0..ASK_AGAIN {
            if found.is_empty() {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
            let again = leaderless(&self.jetstream, &self.names).await;
            found.retain(|stream| again.contains(stream));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_from_2_14_0_to_2_15_3_are_affected() {
        for (version, expected) in [
            ("2.12.8", false),
            ("2.13.9", false),
            ("2.14.0", true),
            ("v2.14.6", true),
            ("2.15.1", true),
            ("2.15.3", true),
            ("2.15.3-RC.1", true),
            ("2.15.4", false),
            ("2.16.0", false),
            ("3.14.1", false),
            ("x", false),
        ] {
            assert_eq!(can_lose_streams(version), expected, "{version}");
        }
    }

    #[test]
    fn a_stream_without_a_leader_at_two_looks_in_a_row_is_noted_until_it_has_one() {
        let set = |streams: &[&str]| streams.iter().map(|stream| (*stream).to_owned()).collect::<BTreeSet<_>>();
        let notes = ClusterNotes::default();
        // An election is no trouble.
        assert_eq!(notes.look_at_streams(&set(&[]), &set(&["OUTBOX"])), Changes::default());
        assert!(notes.lines().is_empty());
        let changes = notes.look_at_streams(&set(&["OUTBOX"]), &set(&["OUTBOX", "EVENTS"]));
        assert_eq!(changes.lost, ["OUTBOX"]);
        assert_eq!(notes.look_at_streams(&set(&["OUTBOX", "EVENTS"]), &set(&["OUTBOX"])), Changes::default());
        assert_eq!(notes.lines(), [leaderless_note("OUTBOX")]);
        let changes = notes.look_at_streams(&set(&["OUTBOX"]), &set(&[]));
        assert_eq!((changes.lost, changes.found), (vec![], vec!["OUTBOX".to_owned()]));
        assert!(notes.lines().is_empty());
    }
}
