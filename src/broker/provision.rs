//! Making the streams, durables and buckets as they must be.
//!
//! What is missing is created. What is there and different is left alone: two processes with different
//! configurations must not fight over one stream. A difference that would break a promise is an error that
//! says how it differs; one that only keeps more than asked is a warning.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config as StreamConfig, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, ErrorCode, kv};

use super::Names;
use super::counts::Counts;
use super::health::Need;
use super::identity::Identities;
use super::unreadable::Burial;
use crate::config::{Config, Durability, Limits, StreamKind};
use crate::event::Name;

/// The durable of the courier, on OUTBOX and on RETRY.
pub(crate) const COURIER: &str = "courier";
/// How long a message may be worked on without a sign of life.
pub(crate) const ACK_WAIT: Duration = Duration::from_secs(30);
/// How long who watches the bucket of tasks can see that the state of one has ended.
const MARKERS: Duration = Duration::from_secs(60);
/// Messages that all couriers together may hold; each takes only what it has free slots for.
const MAX_COURIER_PENDING: i64 = 65_536;

/// What there must be.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) names: Names,
    pub(crate) replicas: usize,
    /// Let EVENTS take atomic batches.
    pub(crate) batches: bool,
    pub(crate) streams: Vec<(StreamKind, Limits)>,
    pub(crate) durables: Vec<Durable>,
    /// Change what differs instead of leaving it alone.
    pub(crate) update: bool,
    /// Look for messages that cannot be read before any is taken, and bury them so.
    pub(crate) bury: Option<Burial>,
    /// The largest message that this role publishes; a server that takes less gets a warning.
    pub(crate) largest: u64,
    /// What this role cannot work without.
    pub(crate) needs: Vec<Need>,
    /// Where all roles of the process count what happens on their links.
    pub(crate) counts: Arc<Counts>,
    /// What the process has seen of its streams, shared by all of its roles.
    pub(crate) identities: Arc<Identities>,
}

/// A durable consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Durable {
    pub(crate) stream: StreamKind,
    pub(crate) name: String,
    pub(crate) filters: Vec<String>,
    max_ack_pending: i64,
}

/// Why NATS cannot be worked with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error("nats-server {version} is too old: Hookbridge needs 2.12 or newer, for message schedules")]
    OldServer { version: String },
    #[error("JetStream is not enabled on the server: start nats-server with -js or a jetstream block")]
    NoJetStream,
    #[error("{0}")]
    Differs(Differences),
    #[error("{what} is not there and could not be made: {why}")]
    Refused { what: String, why: String },
    #[error("the NATS client stopped working; a message that it cannot read may be the cause")]
    ClientGone,
    #[error("JetStream does not answer: {0}")]
    NoAnswer(String),
}

/// How things that exist differ from what is configured: what each is, and its differences.
#[derive(Debug)]
pub(crate) struct Differences(Vec<(String, Vec<String>)>);

impl Differences {
    fn of(what: String, details: Vec<String>) -> Self {
        Self(vec![(what, details)])
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, details) in &self.0 {
            write!(formatter, "{what} exists and differs: {}; ", details.join("; "))?;
        }
        formatter.write_str("change the configuration, or start once with --update-streams")
    }
}

impl Problem {
    /// Whether trying again can help only after somebody changed something.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::OldServer { .. } | Self::NoJetStream | Self::Differs(_) | Self::Refused { .. })
    }
}

impl Plan {
    /// Everything that this configuration needs.
    pub(crate) fn new(config: &Config, update: bool) -> Self {
        let streams = StreamKind::ALL.map(|kind| (kind, config.streams.limits(kind))).to_vec();
        let courier = |stream, filter: &str| Durable {
            stream,
            name: COURIER.to_owned(),
            filters: vec![filter.to_owned()],
            max_ack_pending: MAX_COURIER_PENDING,
        };
        let mut durables = vec![courier(StreamKind::Outbox, "outbox.>"), courier(StreamKind::Retry, "retry.due.>")];
        for (name, agent) in &config.agents {
            if !agent.events.is_empty() {
                durables.push(Durable::of_agent(name, StreamKind::Events, agent.events.clone()));
            }
            durables.push(Durable::of_agent(name, StreamKind::Tasks, vec![format!("tasks.{name}.*")]));
        }
        let names = Names::new(config.nats.prefix.clone());
        let (replicas, batches) = (config.nats.replicas, config.nats.durability == Durability::Synced);
        let needs = Vec::new();
        Self {
            names,
            replicas,
            batches,
            streams,
            durables,
            update,
            bury: None,
            largest: 0,
            needs,
            counts: Arc::default(),
            identities: Arc::default(),
        }
    }

    /// The plan of a role that publishes messages up to this size.
    pub(crate) fn publishing(self, largest: u64) -> Self {
        Self { largest, ..self }
    }

    /// The plan of a role that takes what others publish.
    pub(crate) fn burying(self, bury: Burial) -> Self {
        Self { bury: Some(bury), ..self }
    }

    /// The plan of a role that cannot work without these.
    pub(crate) fn needing(self, needs: Vec<Need>) -> Self {
        Self { needs, ..self }
    }

    fn stream_config(&self, kind: StreamKind, limits: &Limits) -> StreamConfig {
        let retry = kind == StreamKind::Retry;
        // A full stream that refuses is a 503 or an error in the agent's hand; one that drops is a loss.
        let refuses = matches!(kind, StreamKind::Events | StreamKind::Outbox) && limits.max_bytes.is_some();
        StreamConfig {
            name: self.names.stream(kind),
            subjects: vec![self.names.subject(kind.subjects())],
            retention: if retry { RetentionPolicy::WorkQueue } else { RetentionPolicy::Limits },
            storage: StorageType::File,
            discard: if refuses { DiscardPolicy::New } else { DiscardPolicy::Old },
            max_age: limits.max_age.unwrap_or_default(),
            max_bytes: limits.max_bytes.map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
            max_messages: limits.max_messages.map_or(-1, |messages| i64::try_from(messages).unwrap_or(i64::MAX)),
            max_messages_per_subject: -1,
            max_message_size: -1,
            duplicate_window: limits.duplicate_window,
            num_replicas: self.replicas,
            allow_direct: true,
            allow_message_schedules: retry,
            allow_rollup: retry,
            allow_atomic_publish: self.batches && kind == StreamKind::Events,
            ..StreamConfig::default()
        }
    }

    fn buckets(&self) -> [kv::Config; 2] {
        // The state of a task that has ended has an end of its own.
        let buckets = [(self.names.endpoints_bucket(), None), (self.names.tasks_bucket(), Some(MARKERS))];
        buckets.map(|(bucket, limit_markers)| kv::Config {
            bucket,
            history: 1,
            storage: StorageType::File,
            num_replicas: self.replicas,
            limit_markers,
            ..kv::Config::default()
        })
    }

    fn consumer_config(&self, durable: &Durable) -> pull::Config {
        let mut filters: Vec<String> = durable.filters.iter().map(|filter| self.names.subject(filter)).collect();
        // One filter has a field of its own, which is where people and tools look for it.
        let filter = if filters.len() == 1 { filters.remove(0) } else { String::new() };
        pull::Config {
            durable_name: Some(durable.name.clone()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_deliver: -1,
            max_ack_pending: durable.max_ack_pending,
            filter_subject: filter,
            filter_subjects: filters,
            ..pull::Config::default()
        }
    }
}

impl Durable {
    fn of_agent(name: &Name, stream: StreamKind, filters: Vec<String>) -> Self {
        Self { stream, name: name.to_string(), filters, max_ack_pending: 1000 }
    }
}

/// A stream, bucket or durable that was missing and has been created.
pub(super) struct Created<'a>(pub(super) &'a str);

/// Creates what is missing and checks what is there. Gives what differs and breaks no promise.
pub(super) async fn apply(
    jetstream: &jetstream::Context,
    plan: &Plan,
    made: &(dyn Fn(Created<'_>) + Sync),
) -> Result<Vec<String>, Problem> {
    compare(jetstream, plan, Some(made)).await
}

/// What differs and breaks no promise, or is missing; the error is all that breaks one. Changes nothing.
pub(crate) async fn differences(jetstream: &jetstream::Context, plan: &Plan) -> Result<Vec<String>, Problem> {
    compare(jetstream, plan, None).await
}

/// Called for what was created.
type OnCreated<'a> = Option<&'a (dyn Fn(Created<'_>) + Sync)>;

/// With `create`, what is missing is made, up to the first error; without, everything is looked at, and what is missing
/// is reported as missing.
async fn compare(jetstream: &jetstream::Context, plan: &Plan, create: OnCreated<'_>) -> Result<Vec<String>, Problem> {
    let (mut mild, mut grave) = (Vec::new(), Vec::new());
    let mut take = |found: Result<Option<String>, Problem>| match found {
        Ok(difference) => {
            mild.extend(difference);
            Ok(())
        }
        Err(Problem::Differs(Differences(found))) if create.is_none() => {
            grave.extend(found);
            Ok(())
        }
        Err(problem) => Err(problem),
    };
    for (kind, limits) in &plan.streams {
        take(stream(jetstream, plan, plan.stream_config(*kind, limits), *kind, create).await)?;
    }
    for bucket in plan.buckets() {
        take(self::bucket(jetstream, plan, bucket, create).await)?;
    }
    for durable in &plan.durables {
        take(self::durable(jetstream, plan, durable, create).await)?;
    }
    if grave.is_empty() { Ok(mild) } else { Err(Problem::Differs(Differences(grave))) }
}

async fn stream(
    jetstream: &jetstream::Context,
    plan: &Plan,
    wanted: StreamConfig,
    kind: StreamKind,
    create: OnCreated<'_>,
) -> Result<Option<String>, Problem> {
    let what = format!("stream {}", wanted.name);
    let found = match jetstream.get_stream(&wanted.name).await {
        Ok(stream) => stream.cached_info().config.clone(),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                let Some(made) = create else { return Ok(Some(format!("{what} does not exist yet"))) };
                return match jetstream.create_stream(&wanted).await.map_err(|error| refused(what.clone(), &error)) {
                    Ok(_) => {
                        made(Created(&what));
                        Ok(None)
                    }
                    // It is a favour: nothing that must work waits for it.
                    Err(Problem::Refused { why, .. }) if kind == StreamKind::Quarantine => {
                        Ok(Some(format!("{what} could not be made, so rejected requests are not kept: {why}")))
                    }
                    Err(problem) => Err(problem),
                };
            }
            GetStreamErrorKind::JetStream(error) => return Err(from_server(what, &error)),
            _ => return Err(Problem::NoAnswer(error.to_string())),
        },
    };
    let (grave, mild) = compare_streams(&wanted, &found, kind);
    if plan.update && create.is_some() && !(grave.is_empty() && mild.is_empty()) {
        tracing::info!("Updating {what}: {}", [grave, mild].concat().join("; "));
        let updated = StreamConfig {
            max_age: wanted.max_age,
            max_bytes: wanted.max_bytes,
            max_messages: wanted.max_messages,
            duplicate_window: wanted.duplicate_window,
            num_replicas: wanted.num_replicas,
            discard: wanted.discard,
            subjects: wanted.subjects,
            allow_direct: true,
            allow_atomic_publish: wanted.allow_atomic_publish || found.allow_atomic_publish,
            ..found
        };
        return jetstream.update_stream(&updated).await.map(|_| None).map_err(|error| refused(what, &error));
    }
    if !grave.is_empty() {
        return Err(Problem::Differs(Differences::of(what, grave)));
    }
    if wanted.allow_atomic_publish && !found.allow_atomic_publish {
        if create.is_none() {
            return Ok(Some(format!("{what} takes no atomic batches yet, which the next start changes")));
        }
        // It takes nothing from anybody, and nobody turns it off again: those who do not want it do not mind it.
        tracing::info!("Updating {what}: atomic batches are taken");
        let updated = StreamConfig { allow_atomic_publish: true, ..found };
        jetstream.update_stream(&updated).await.map_err(|error| refused(what.clone(), &error))?;
    }
    Ok((!mild.is_empty()).then(|| format!("{what} keeps more than configured: {}", mild.join("; "))))
}

/// What breaks a promise, and what merely keeps more than asked.
fn compare_streams(wanted: &StreamConfig, found: &StreamConfig, kind: StreamKind) -> (Vec<String>, Vec<String>) {
    let (mut grave, mut mild) = (Vec::new(), Vec::new());
    let mut must = |same: bool, detail: String| {
        if !same {
            grave.push(detail);
        }
    };
    must(found.subjects == wanted.subjects, format!("subjects are {:?}, not {:?}", found.subjects, wanted.subjects));
    must(
        found.retention == wanted.retention,
        format!("retention is {:?}, not {:?}", found.retention, wanted.retention),
    );
    must(found.storage == wanted.storage, format!("storage is {:?}, not {:?}", found.storage, wanted.storage));
    must(found.mirror.is_none() && found.sources.is_none(), "it is a mirror or has sources".to_owned());
    must(!found.sealed && !found.no_ack, "it is sealed or confirms nothing".to_owned());
    must(found.max_message_size <= 0, format!("max_msg_size is {}, not unlimited", found.max_message_size));
    must(found.max_messages_per_subject <= 0, format!("max_msgs_per_subject is {}", found.max_messages_per_subject));
    must(found.subject_transform.is_none(), "it transforms subjects".to_owned());
    must(found.allow_direct, "it does not allow direct gets".to_owned());
    if kind == StreamKind::Retry {
        must(found.allow_message_schedules, "it does not allow message schedules".to_owned());
        must(
            found.max_age.is_zero(),
            format!("max_age is {:?}; a later schedule would vanish silently", found.max_age),
        );
        must(
            found.max_messages <= 0,
            format!("max_msgs is {}; a waiting delivery would be dropped", found.max_messages),
        );
    }
    if matches!(kind, StreamKind::Events | StreamKind::Outbox) && found.max_bytes > 0 {
        must(
            found.discard == DiscardPolicy::New,
            "it drops its oldest messages when full instead of refusing".to_owned(),
        );
    }
    let mut limit = |name: &str, kept: Option<u128>, asked: Option<u128>, show: fn(u128) -> String| {
        let shown = |limit: Option<u128>| limit.map_or("unlimited".to_owned(), show);
        let text = format!("{name} is {}, not {}", shown(kept), shown(asked));
        // No limit is the most that can be kept.
        match kept.unwrap_or(u128::MAX).cmp(&asked.unwrap_or(u128::MAX)) {
            std::cmp::Ordering::Less => grave.push(text),
            std::cmp::Ordering::Greater => mild.push(text),
            std::cmp::Ordering::Equal => {}
        }
    };
    let span = |span: Duration| (!span.is_zero()).then_some(span.as_nanos());
    let count = |count: i64| u128::try_from(count).ok().filter(|count| *count > 0);
    limit("max_age", span(found.max_age), span(wanted.max_age), show_span);
    limit("max_bytes", count(found.max_bytes), count(wanted.max_bytes), |bytes| bytes.to_string());
    limit("max_msgs", count(found.max_messages), count(wanted.max_messages), |messages| messages.to_string());
    limit("duplicate_window", span(found.duplicate_window), span(wanted.duplicate_window), show_span);
    limit("replicas", Some(found.num_replicas as u128), Some(wanted.num_replicas as u128), |replicas| {
        replicas.to_string()
    });
    (grave, mild)
}

fn show_span(nanos: u128) -> String {
    humantime::format_duration(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))).to_string()
}

async fn bucket(
    jetstream: &jetstream::Context,
    plan: &Plan,
    wanted: kv::Config,
    create: OnCreated<'_>,
) -> Result<Option<String>, Problem> {
    let what = format!("bucket {}", wanted.bucket);
    match jetstream.get_stream(format!("KV_{}", wanted.bucket)).await {
        Ok(stream) => {
            let found = &stream.cached_info().config;
            let mut details = Vec::new();
            if !found.max_age.is_zero() {
                details.push(format!("its TTL is {}; a state would vanish", humantime::format_duration(found.max_age)));
            }
            if found.storage != StorageType::File {
                details.push("its storage is not File".to_owned());
            }
            let replicas = replicas_differ(found.num_replicas, wanted.num_replicas);
            if let Some(replicas) = &replicas
                && plan.update
                && create.is_some()
                && details.is_empty()
            {
                tracing::info!("Updating {what}: {replicas}");
                let updated = StreamConfig {
                    num_replicas: wanted.num_replicas,
                    allow_message_ttl: found.allow_message_ttl || wanted.limit_markers.is_some(),
                    subject_delete_marker_ttl: wanted.limit_markers.or(found.subject_delete_marker_ttl),
                    ..found.clone()
                };
                return jetstream.update_stream(&updated).await.map(|_| None).map_err(|error| refused(what, &error));
            }
            let keeps_more = found.num_replicas > wanted.num_replicas;
            details.extend(replicas.clone().filter(|_| !keeps_more));
            if wanted.limit_markers.is_some() && !found.allow_message_ttl {
                // Nobody but Hookbridge has a use for this bucket, and it keeps all that it has.
                if create.is_some() && details.is_empty() {
                    tracing::info!("Updating {what}: single values may have an end");
                    let updated = StreamConfig {
                        allow_message_ttl: true,
                        subject_delete_marker_ttl: wanted.limit_markers,
                        ..found.clone()
                    };
                    return jetstream
                        .update_stream(&updated)
                        .await
                        .map(|_| None)
                        .map_err(|error| refused(what, &error));
                }
                let why = "allows no TTL for single values yet, which the next start changes";
                return Ok(Some(format!("{what} {why}")));
            }
            if !details.is_empty() {
                return Err(Problem::Differs(Differences::of(what, details)));
            }
            Ok(replicas.map(|replicas| format!("{what} keeps more than configured: {replicas}")))
        }
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                let Some(made) = create else { return Ok(Some(format!("{what} does not exist yet"))) };
                let created = jetstream.create_key_value(wanted).await;
                created.map_err(|error| refused_for(what.clone(), &error, jetstream_error(&error)))?;
                made(Created(&what));
                Ok(None)
            }
            GetStreamErrorKind::JetStream(error) => Err(from_server(what, &error)),
            _ => Err(Problem::NoAnswer(error.to_string())),
        },
    }
}

fn replicas_differ(found: usize, wanted: usize) -> Option<String> {
    (found != wanted).then(|| format!("replicas is {found}, not {wanted}"))
}

async fn durable(
    jetstream: &jetstream::Context,
    plan: &Plan,
    durable: &Durable,
    create: OnCreated<'_>,
) -> Result<Option<String>, Problem> {
    let stream = plan.names.stream(durable.stream);
    let what = format!("durable {} on {stream}", durable.name);
    let wanted = plan.consumer_config(durable);
    let handle = match jetstream.get_stream_no_info(&stream).await {
        Ok(handle) => handle,
        Err(error) => return Err(Problem::NoAnswer(error.to_string())),
    };
    let found = match handle.consumer_info(&durable.name).await {
        Ok(info) => info.config,
        Err(error) => match error.kind() {
            jetstream::context::ConsumerInfoErrorKind::NotFound
            | jetstream::context::ConsumerInfoErrorKind::StreamNotFound => {
                let Some(made) = create else { return Ok(Some(format!("{what} does not exist yet"))) };
                let created = handle.create_consumer_strict(wanted).await;
                created.map_err(|error| refused_for(what.clone(), &error, jetstream_error(&error)))?;
                made(Created(&what));
                return Ok(None);
            }
            _ => return Err(Problem::NoAnswer(error.to_string())),
        },
    };
    let filters = all_filters(&found.filter_subject, &found.filter_subjects);
    let wanted_filters = all_filters(&wanted.filter_subject, &wanted.filter_subjects);
    let mut details = Vec::new();
    if filters != wanted_filters {
        details.push(format!("it filters {filters:?}, not {wanted_filters:?}"));
    }
    if found.deliver_subject.is_some() || found.ack_policy != AckPolicy::Explicit {
        details.push("it is not a pull consumer with explicit acks".to_owned());
    }
    if found.headers_only || !found.backoff.is_empty() || !found.inactive_threshold.is_zero() {
        details.push("it has headers_only, a backoff or an inactive_threshold".to_owned());
    }
    if found.deliver_policy != DeliverPolicy::All {
        details.push(format!("it begins at {:?} instead of at the first message", found.deliver_policy));
    }
    if found.max_deliver > 0 {
        details.push(format!("it gives up after {} deliveries", found.max_deliver));
    }
    if found.ack_wait < ACK_WAIT && durable.name == COURIER {
        details.push(format!("its ack_wait is {:?}, not {ACK_WAIT:?}", found.ack_wait));
    }
    // 0: as many as its stream has, which is what durables are made with. A number of its own stays when the stream
    // grows, and then the durable is gone with one server although its messages are not.
    let own = Some(found.num_replicas).filter(|own| *own > 0 && *own != plan.replicas);
    let replicas = own.and_then(|own| replicas_differ(own, plan.replicas));
    let keeps_more = found.num_replicas > plan.replicas;
    details.extend(replicas.clone().filter(|_| !keeps_more || (plan.update && create.is_some())));
    if details.is_empty() {
        return Ok(replicas.map(|replicas| format!("{what} keeps more than configured: {replicas}")));
    }
    if plan.update && create.is_some() {
        tracing::info!("Updating {what}: {}", details.join("; "));
        let updated = handle.update_consumer(wanted).await;
        return updated.map(|_| None).map_err(|error| refused_for(what, &error, jetstream_error(&error)));
    }
    Err(Problem::Differs(Differences::of(what, details)))
}

fn all_filters(one: &str, many: &[String]) -> Vec<String> {
    let one = Some(one.to_owned()).filter(|one| !one.is_empty());
    let mut all: Vec<String> = one.into_iter().chain(many.iter().cloned()).collect();
    all.sort();
    all
}

fn refused(what: String, error: &CreateStreamError) -> Problem {
    match error.kind() {
        CreateStreamErrorKind::JetStreamUnavailable => Problem::NoJetStream,
        CreateStreamErrorKind::JetStream(error) => from_server(what, &error),
        CreateStreamErrorKind::TimedOut | CreateStreamErrorKind::Response => Problem::NoAnswer(error.to_string()),
        _ => Problem::Refused { what, why: error.to_string() },
    }
}

/// The server's answer behind an error of the client, if it is one.
fn jetstream_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a jetstream::Error> {
    std::iter::successors(Some(error), |error| error.source()).find_map(|error| error.downcast_ref())
}

/// Only what the server itself refuses is refused: whatever kept it from answering passes.
fn refused_for(what: String, error: &dyn fmt::Display, said: Option<&jetstream::Error>) -> Problem {
    match said {
        Some(said) => from_server(what, said),
        None => Problem::NoAnswer(format!("{what}: {error}")),
    }
}

/// What the server said, sorted into what an operator can do about it.
fn from_server(what: String, error: &jetstream::Error) -> Problem {
    match error.error_code() {
        ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => Problem::NoJetStream,
        // A cluster without a leader or with servers that are still to come, a server that recovers or is busy: it
        // passes by itself.
        ErrorCode::CLUSTER_NOT_AVAILABLE
        | ErrorCode::CLUSTER_NOT_LEADER
        | ErrorCode::CLUSTER_NO_PEERS
        | ErrorCode::CLUSTER_INCOMPLETE
        | ErrorCode::CLUSTER_PEER_NOT_MEMBER
        | ErrorCode::CLUSTER_SERVER_NOT_MEMBER
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::RAFT_GENERAL
        | ErrorCode::STREAM_ASSIGNMENT
        // The stream was deleted between two requests: the next round makes it again.
        | ErrorCode::STREAM_NOT_FOUND
        | ErrorCode::CONSUMER_NOT_FOUND => Problem::NoAnswer(error.to_string()),
        _ if error.code() == 503 => Problem::NoAnswer(error.to_string()),
        _ => Problem::Refused { what, why: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Streams;

    fn plan() -> Plan {
        let streams = StreamKind::ALL.map(|kind| (kind, Streams::default().limits(kind))).to_vec();
        Plan {
            names: Names::default(),
            replicas: 1,
            batches: false,
            streams,
            durables: Vec::new(),
            update: false,
            bury: None,
            largest: 0,
            needs: Vec::new(),
            counts: Arc::default(),
            identities: Arc::default(),
        }
    }

    fn compare(kind: StreamKind, change: impl FnOnce(&mut StreamConfig)) -> (Vec<String>, Vec<String>) {
        let wanted = plan().stream_config(kind, &Streams::default().limits(kind));
        let mut found = wanted.clone();
        change(&mut found);
        compare_streams(&wanted, &found, kind)
    }

    #[test]
    fn the_same_stream_does_not_differ() {
        for kind in StreamKind::ALL {
            assert_eq!(compare(kind, |_| ()), (vec![], vec![]), "{kind}");
        }
    }

    #[test]
    fn keeping_less_is_grave_and_keeping_more_is_not() {
        let hour = Duration::from_secs(3600);
        let (grave, mild) = compare(StreamKind::Events, |found| found.max_age = hour);
        assert_eq!((grave.as_slice(), mild.len()), (["max_age is 1h, not 7days".to_owned()].as_slice(), 0));
        let (grave, mild) = compare(StreamKind::Events, |found| found.max_age = Duration::ZERO);
        assert_eq!((grave.len(), mild.as_slice()), (0, ["max_age is unlimited, not 7days".to_owned()].as_slice()));
        assert_eq!(compare(StreamKind::Events, |found| found.duplicate_window = hour).0.len(), 1);
    }

    #[test]
    fn a_retry_stream_with_any_limit_but_bytes_is_refused() {
        assert_eq!(compare(StreamKind::Retry, |found| found.max_age = Duration::from_secs(9)).0.len(), 2);
        assert_eq!(compare(StreamKind::Retry, |found| found.max_messages = 5).0.len(), 2);
        assert_eq!(compare(StreamKind::Retry, |found| found.allow_message_schedules = false).0.len(), 1);
    }
}
