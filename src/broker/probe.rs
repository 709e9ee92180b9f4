//! Probes: whether what a role needs can be written, without leaving anything in EVENTS or OUTBOX.
//!
//! A stream is asked to delete a message that it can never have. With replicas that is a proposal to its Raft group, so
//! the answer needs a quorum whose disks take it; without, a stream that could not write before answers with that
//! error. What neither shows, a disk that has filled up since, a value in the bucket of endpoints does, which is
//! written there and taken out again each time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_nats::RequestErrorKind;
use async_nats::jetstream::{self, ErrorCode};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::time::Instant;

use super::Broker;
use super::health::{Cause, IDLE_AFTER, Need, Trouble};
use super::provision::COURIER;
use crate::config::StreamKind;

/// How often to look for something to probe.
const PACE: Duration = Duration::from_secs(1);
/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How long a server may take to answer itself.
const ECHO_WITHIN: Duration = Duration::from_secs(1);
/// For how long a server without a quorum is kept, where there are others.
const LEAVE_AFTER: Duration = Duration::from_secs(6);
/// How long the next server is given. It doubles each time, up to the longest: where no server has a quorum, another
/// connection helps nobody.
const LEAVE_AGAIN_AFTER: Duration = Duration::from_secs(15);
/// The longest time that the next server is given.
const LEAVE_AGAIN_MOST: Duration = Duration::from_secs(240);
/// The shortest time between two looks, however many publishes fail.
const LOOK_APART: Duration = Duration::from_millis(250);
/// A sequence that no stream reaches.
const NEVER: u64 = i64::MAX as u64;
/// The most subjects that are remembered as not permitted.
const MOST_DENIED: usize = 256;
/// As much as makes a file system look for another block.
const WRITTEN: usize = 4096;

/// What the server answers to a request about a stream.
#[derive(Deserialize)]
struct Answer {
    error: Option<jetstream::Error>,
}

/// What the server says of a stream or durable, as far as it matters here.
#[derive(Default, Deserialize)]
struct Info {
    error: Option<jetstream::Error>,
    cluster: Option<ClusterInfo>,
    #[serde(default)]
    config: InfoConfig,
    #[serde(default)]
    state: InfoState,
    #[serde(default)]
    paused: bool,
}

#[derive(Default, Deserialize)]
struct ClusterInfo {
    leader: Option<String>,
}

#[derive(Default, Deserialize)]
struct InfoConfig {
    #[serde(default)]
    max_bytes: i64,
}

#[derive(Default, Deserialize)]
struct InfoState {
    #[serde(default)]
    bytes: u64,
}

/// What the server does not permit a role to publish on. It answers such a request with an error of the connection, and
/// not with one of the request.
#[derive(Debug, Default)]
pub(super) struct Denied(Mutex<BTreeSet<String>>);

impl Denied {
    /// Takes in an error of the connection.
    pub(super) fn note(&self, error: &str) {
        let Some((_, subject)) = error.split_once("Publish to \"") else { return };
        let subject = subject.split('"').next().unwrap_or_default();
        let subject = subject.strip_prefix("$JS.API.").unwrap_or(subject);
        let mut denied = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if denied.len() < MOST_DENIED {
            denied.insert(subject.to_owned());
        }
    }

    fn contains(&self, subject: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(subject)
    }
}

/// Probes what a role needs, and leaves a server that has no quorum.
pub(super) struct Prober {
    broker: Broker,
    role: &'static str,
    needs: Vec<Need>,
    /// When a server was left last.
    left: Option<Instant>,
    /// How long the next server is given before it is left, too.
    patience: Duration,
    /// What was logged last.
    said: Option<Trouble>,
    /// When each need was probed last.
    probed: BTreeMap<Need, Instant>,
}

impl Prober {
    pub(super) fn new(broker: Broker, role: &'static str, needs: Vec<Need>) -> Self {
        Self { broker, role, needs, left: None, patience: LEAVE_AGAIN_AFTER, said: None, probed: BTreeMap::new() }
    }

    /// Probes until dropped.
    pub(super) async fn run(mut self) {
        loop {
            tokio::select! {
                () = self.broker.health.check.notified() => {}
                () = tokio::time::sleep(PACE) => {}
            }
            let broker = self.broker.clone();
            if let Some(ready) = broker.is_ready() {
                tokio::select! {
                    () = self.look() => {}
                    () = broker.lost(ready.connection) => continue,
                }
                self.tell();
                self.leave().await;
            }
            tokio::time::sleep(LOOK_APART).await;
        }
    }

    /// Probes what is unconfirmed, and what has confirmed nothing for a while.
    async fn look(&mut self) {
        let now = Instant::now();
        let health = &self.broker.health;
        let is_due = |need: &Need| {
            let idle = match need {
                Need::Stream(stream) => health.since_confirmed(*stream),
                _ => self.probed.get(need).map_or(IDLE_AFTER, |probed| now - *probed),
            };
            idle >= IDLE_AFTER || health.why_unconfirmed(*need).is_some()
        };
        let due: Vec<Need> = self.needs.iter().copied().filter(is_due).collect();
        self.probed.extend(due.iter().map(|need| (*need, now)));
        let (broker, role) = (&self.broker, self.role);
        let probe = |need: Need| async move { (need, broker.probe(need, role).await) };
        let probed = futures_util::future::join_all(due.into_iter().map(probe)).await;
        for (need, outcome) in probed {
            match outcome {
                Ok(()) => broker.health.probe_succeeded(need),
                Err(trouble) => {
                    if trouble.cause == Cause::Missing {
                        broker.look_again();
                    }
                    broker.health.probe_failed(need, trouble);
                }
            }
        }
    }

    /// Logs why the role is not ready, and when it is again, once each.
    fn tell(&mut self) {
        let trouble = self.broker.health.trouble().filter(|trouble| trouble.cause != Cause::Unconfirmed);
        if trouble == self.said {
            return;
        }
        let (role, server) = (self.role, self.broker.server_name());
        match &trouble {
            Some(trouble) => tracing::error!(
                nats.server = server,
                nats.reason = trouble.reason,
                "The {role} is not ready: {trouble}; checking again until it is ready"
            ),
            None => tracing::info!(nats.server = server, "The {role} is ready again: NATS acknowledges writes"),
        }
        self.said = trouble;
    }

    /// Connects to another server where this one has had no quorum for a while: it may be partitioned from the
    /// others. A silent one is left by the client, which gets no answer to its pings.
    async fn leave(&mut self) {
        let lasts = |need: &Need| {
            let why = self.broker.health.why_unconfirmed(*need);
            why.is_some_and(|(cause, since)| cause == Cause::NoQuorum && since >= LEAVE_AFTER)
        };
        // One stream without a leader has none through another server either.
        if !self.needs.iter().all(lasts) {
            if self.broker.health.trouble().is_none() {
                self.patience = LEAVE_AGAIN_AFTER;
            }
            return;
        }
        if self.left.is_some_and(|left| left.elapsed() < self.patience) {
            return;
        }
        let pool = tokio::time::timeout(ECHO_WITHIN, self.broker.client.server_pool()).await;
        if !pool.is_ok_and(|pool| pool.is_ok_and(|pool| pool.len() > 1)) {
            return;
        }
        let server = self.broker.server_name();
        tracing::warn!(
            nats.server = server,
            "nats-server {server} has had no quorum for {} s; the {} connects to another server",
            LEAVE_AFTER.as_secs(),
            self.role
        );
        self.patience = (self.patience * if self.left.is_some() { 2 } else { 1 }).min(LEAVE_AGAIN_MOST);
        self.left = Some(Instant::now());
        if let Err(error) = self.broker.client.force_reconnect().await {
            tracing::debug!("Could not leave {server}: {error}");
        }
    }
}

impl Broker {
    /// The name of the server that is, or was last, connected.
    pub(crate) fn server_name(&self) -> String {
        let info = self.client.try_server_info();
        info.map_or_else(|| "(none yet)".to_owned(), |info| info.server_name)
    }

    /// Whether a need can be written to, or worked with, now.
    async fn probe(&self, need: Need, role: &str) -> Result<(), Trouble> {
        match need {
            Need::Stream(stream) => {
                let name = self.names.stream(stream);
                let body = format!("{{\"seq\":{NEVER},\"no_erase\":true}}");
                self.ask(&format!("stream {name}"), &name, format!("STREAM.MSG.DELETE.{name}"), body).await?;
                let cause = self.health.why_unconfirmed(need).map(|(cause, _)| cause);
                if let Some(Cause::Full { bytes }) = cause {
                    self.has_room(&name, bytes).await?;
                }
                // The account or the disk may be full where the stream is not.
                if matches!(cause, Some(Cause::Full { .. } | Cause::Disk)) {
                    self.write_probe(role).await?;
                }
                // Every stream of a server on its own is on the disk that this shows.
                if stream == StreamKind::Events && self.replicas == 1 && !self.is_clustered() {
                    self.write_probe(role).await?;
                }
                Ok(())
            }
            Need::Tasks => {
                let bucket = self.names.tasks_bucket();
                let name = format!("KV_{bucket}");
                // Single messages of a bucket cannot be deleted; a key that never was can be purged.
                let body = format!("{{\"filter\":\"$KV.{bucket}.{PROBE_KEY}\"}}");
                self.ask(&format!("bucket {bucket}"), &name, format!("STREAM.PURGE.{name}"), body).await
            }
            Need::Endpoints => self.write_probe(role).await,
            Need::Durable(stream) => self.durable_works(stream).await,
        }
    }

    pub(super) fn is_clustered(&self) -> bool {
        self.client.try_server_info().is_some_and(|info| info.cluster.is_some())
    }

    /// Sends a request that changes nothing. The answer that there is nothing to change is the good one.
    async fn ask(&self, what: &str, stream: &str, subject: String, body: String) -> Result<(), Trouble> {
        if self.denied.contains(&subject) {
            return self.is_led(what, stream).await;
        }
        let answer: Answer = match self.answer(what, stream, &subject, body.into()).await {
            Ok(answer) => answer,
            // The violation was reported meanwhile.
            Err(_) if self.denied.contains(&subject) => return self.is_led(what, stream).await,
            Err(trouble) => return Err(trouble),
        };
        answer.error.map_or(Ok(()), |error| judge(what, &error))
    }

    async fn answer<T: for<'a> Deserialize<'a>>(
        &self,
        what: &str,
        stream: &str,
        subject: &str,
        body: Bytes,
    ) -> Result<T, Trouble> {
        let asked = self.client.request(format!("$JS.API.{subject}"), body);
        match tokio::time::timeout(ANSWER_WITHIN, asked).await {
            Ok(Ok(answer)) => serde_json::from_slice(&answer.payload).map_err(|error| Trouble {
                cause: Cause::NoQuorum,
                reason: format!("{what}: cannot parse the response of nats-server {}: {error}", self.server_name()),
            }),
            Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => Err(Trouble {
                cause: Cause::NoQuorum,
                reason: format!("JetStream is not available on nats-server {}", self.server_name()),
            }),
            Ok(Err(_)) | Err(_) => Err(self.explain(what, stream).await),
        }
    }

    /// Whether a stream has a leader: as much as can be known where the server does not permit a probe.
    async fn is_led(&self, what: &str, stream: &str) -> Result<(), Trouble> {
        let info: Info = self.answer(what, stream, &format!("STREAM.INFO.{stream}"), Bytes::new()).await?;
        if let Some(error) = &info.error {
            return judge(what, error);
        }
        let is_leaderless = |cluster: &ClusterInfo| cluster.leader.as_ref().is_none_or(String::is_empty);
        match info.cluster.filter(is_leaderless) {
            Some(_) => Err(Trouble { cause: Cause::NoLeader, reason: format!("{what} has no leader: no quorum") }),
            None => Ok(()),
        }
    }

    /// Why a request about a stream was not answered.
    pub(super) async fn explain(&self, what: &str, stream: &str) -> Trouble {
        let server = self.server_name();
        if !self.echoes().await {
            let reason = format!("nats-server {server} does not respond");
            return Trouble { cause: Cause::Silent, reason };
        }
        let asked = self.client.request(format!("$JS.API.STREAM.INFO.{stream}"), Bytes::new());
        let asked = tokio::time::timeout(ECHO_WITHIN, asked).await;
        let info =
            asked.ok().and_then(Result::ok).and_then(|answer| serde_json::from_slice::<Info>(&answer.payload).ok());
        let no_quorum = |detail: String| Trouble { cause: Cause::NoQuorum, reason: detail };
        let no_leader = |detail: String| Trouble { cause: Cause::NoLeader, reason: detail };
        match info {
            Some(Info { error: Some(error), .. }) => match judge(what, &error) {
                Err(trouble) => trouble,
                Ok(()) => no_quorum(format!("{what}: {error}")),
            },
            Some(Info { cluster: Some(ClusterInfo { leader }), .. }) => {
                match leader.filter(|leader| !leader.is_empty()) {
                    Some(leader) => no_leader(format!(
                        "{what} does not acknowledge writes: its leader {leader} has lost quorum or does not respond"
                    )),
                    None => no_leader(format!("{what} has no leader: no quorum")),
                }
            }
            Some(_) => no_leader(format!("{what} does not acknowledge writes on nats-server {server}")),
            None => no_quorum(format!("no response about {what} through nats-server {server}: probably no quorum")),
        }
    }

    /// Whether the server that is connected answers at all: it sends back what is sent to ourselves.
    async fn echoes(&self) -> bool {
        let inbox = self.client.new_inbox();
        let echo = async {
            let mut own = self.client.subscribe(inbox.clone()).await.ok()?;
            self.client.publish(inbox.clone(), Bytes::new()).await.ok()?;
            own.next().await
        };
        tokio::time::timeout(ECHO_WITHIN, echo).await.is_ok_and(|echo| echo.is_some())
    }

    /// Whether a stream that refused a message for its size has room for it now.
    async fn has_room(&self, stream: &str, bytes: u64) -> Result<(), Trouble> {
        let what = format!("stream {stream}");
        let info: Info = self.answer(&what, stream, &format!("STREAM.INFO.{stream}"), Bytes::new()).await?;
        let (most, used) = (info.config.max_bytes, info.state.bytes);
        match u64::try_from(most).ok().filter(|most| *most > 0 && used + bytes > *most) {
            Some(most) => Err(Trouble {
                cause: Cause::Full { bytes },
                reason: format!("{what} is full ({used} of {most} bytes): raise its max_bytes or remove messages"),
            }),
            None => Ok(()),
        }
    }

    /// Writes a value into the bucket of endpoints and takes it out again, so that nobody finds it there.
    async fn write_probe(&self, role: &str) -> Result<(), Trouble> {
        let bucket = self.names.endpoints_bucket();
        let (what, stream) = (format!("bucket {bucket}"), format!("KV_{bucket}"));
        let key = format!("$KV.{bucket}.{PROBE_KEY}.{role}");
        if self.denied.contains(&key) {
            return self.is_led(&what, &stream).await;
        }
        let asked = self.client.request(key.clone(), Bytes::from_static(&[b' '; WRITTEN]));
        match tokio::time::timeout(ANSWER_WITHIN, asked).await {
            Ok(Ok(answer)) => match serde_json::from_slice::<Answer>(&answer.payload) {
                Ok(Answer { error: Some(error) }) => judge(&what, &error)?,
                Ok(_) => {}
                Err(error) => {
                    let reason = format!(
                        "cannot parse the publish ack of {what}: {error}; is another service answering on its subjects?"
                    );
                    return Err(Trouble { cause: Cause::Missing, reason });
                }
            },
            Ok(Err(_)) | Err(_) if self.denied.contains(&key) => return self.is_led(&what, &stream).await,
            Ok(Err(_)) | Err(_) => return Err(self.explain(&what, &stream).await),
        }
        let body = format!("{{\"filter\":\"{key}\"}}");
        self.ask(&what, &stream, format!("STREAM.PURGE.{stream}"), body).await
    }

    /// Whether the courier's durable has a leader and gives out messages.
    async fn durable_works(&self, stream: StreamKind) -> Result<(), Trouble> {
        let name = self.names.stream(stream);
        let what = format!("durable {COURIER} on {name}");
        let info: Info = self.answer(&what, &name, &format!("CONSUMER.INFO.{name}.{COURIER}"), Bytes::new()).await?;
        if let Some(error) = &info.error {
            return judge(&what, error);
        }
        if info.paused {
            let reason = format!("{what} is paused, so nothing is delivered; resume it with the nats CLI");
            return Err(Trouble { cause: Cause::Paused, reason });
        }
        Ok(())
    }
}

/// The key of the bucket of endpoints to which probes write, followed by the role.
const PROBE_KEY: &str = "_probe";

/// What an error in an answer says.
fn judge(what: &str, error: &jetstream::Error) -> Result<(), Trouble> {
    let trouble = |cause, reason: String| Err(Trouble { cause, reason });
    let text = error.to_string();
    match error.error_code() {
        // There is no such message, which is as it must be, or nobody may delete any.
        ErrorCode::SEQUENCE_NOT_FOUND | ErrorCode::NO_MESSAGE_FOUND => Ok(()),
        _ if ["store EOF", "no message found", "not permitted"].iter().any(|fine| text.contains(fine)) => Ok(()),
        ErrorCode::STREAM_NOT_FOUND | ErrorCode::CONSUMER_NOT_FOUND => {
            trouble(Cause::Missing, format!("{what} is missing; it is being recreated"))
        }
        ErrorCode::STREAM_MESSAGE_DELETE_FAILED
        | ErrorCode::STREAM_STORE_FAILED
        | ErrorCode::STREAM_PURGE_FAILED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED => trouble(
            Cause::Disk,
            format!(
                "cannot write to {what}: {text}; check free disk space and the JetStream storage limits of its server"
            ),
        ),
        ErrorCode::CLUSTER_NOT_AVAILABLE | ErrorCode::CLUSTER_NOT_LEADER => {
            trouble(Cause::NoQuorum, format!("{what} cannot be used, there is no quorum: {text}"))
        }
        _ => trouble(Cause::Refused, format!("{what} cannot be used: {text}")),
    }
}
