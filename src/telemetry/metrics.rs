//! Prometheus metrics: one counter for every row of both outcome tables.
//!
//! Labels are names from the configuration and words from closed lists; nothing that a stranger sends becomes
//! a label, or a stranger could fill the memory with them.

use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Every metric of the process. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Arc<Registry>,
    /// Requests to `/hooks/…` by what became of them.
    pub(crate) requests: Family<RequestLabels, Counter>,
    /// Why requests were answered 401.
    pub(crate) rejections: Family<RejectionLabels, Counter>,
    /// Requests answered 401 that were to be kept: `kept`, or `dropped` because there were too many of them or
    /// NATS was away.
    pub(crate) quarantined: Family<RequestLabels, Counter>,
    /// From the headers of a stored request to its answer.
    pub(crate) request_seconds: Histogram,
    /// Bytes of bodies held now.
    pub(crate) body_bytes: Gauge,
    /// Connections open now.
    pub(crate) connections: Gauge,
    /// Idle connections that the gateway closed, by reason.
    pub(crate) idle_closed: Family<ReasonLabels, Counter>,
    /// Connections that the gateway could not accept.
    pub(crate) accept_failures: Counter,
    /// Publishes that the stream did not confirm, by reason.
    pub(crate) unconfirmed: Family<ReasonLabels, Counter>,
    /// Batches of webhooks, where the server syncs always, by what became of them.
    pub(crate) batches: Family<BatchLabels, Counter>,
    /// The events in them; what a batch did not store is published again in smaller parts.
    pub(crate) batched_events: Family<BatchLabels, Counter>,
    /// Attempts by destination and outcome.
    pub(crate) attempts: Family<AttemptLabels, Counter>,
    /// How long attempts took.
    pub(crate) attempt_seconds: Histogram,
    /// Dead letters by destination and reason.
    pub(crate) dead_letters: Family<DeadLabels, Counter>,
    /// Deliveries that wait without an attempt having failed, by destination and why.
    pub(crate) held: Family<HeldLabels, Counter>,
    /// 1 for a destination that fails and is left alone for a while.
    pub(crate) breaker_open: Family<DestinationLabels, Gauge>,
    /// Requests about tasks by what became of them.
    pub(crate) task_requests: Family<TaskLabels, Counter>,
    /// Moves of tasks, by the state that they led to.
    pub(crate) task_moves: Family<StatusLabels, Counter>,
    /// Deliveries that were cancelled.
    pub(crate) cancelled: Counter,
    /// Records of the bucket that were refused.
    pub(crate) refused_records: Counter,
    /// Messages that the NATS client library cannot read and that were removed, by where they were.
    pub(crate) unreadable: Family<StreamLabels, Counter>,
    /// News of tasks that could not be published.
    pub(crate) lost_news: Counter,
    /// Receipts that could not be written.
    pub(crate) lost_receipts: Counter,
    /// Messages in RETRY that Hookbridge did not write, or whose pointer leads nowhere.
    pub(crate) forged_retries: Counter,
    /// How often each stream was another one than this process had seen before.
    pub(crate) streams_replaced: Family<StreamLabels, Counter>,
    /// What RETRY had lost: deliveries scheduled again or dead, and deadlines of tasks.
    pub(crate) repaired: Family<RepairLabels, Counter>,
    /// Deliveries that were found to be finished before and were not sent again.
    pub(crate) already_done: Counter,
    /// Deliveries in hand now.
    pub(crate) deliveries: Gauge,
    /// 1 while NATS stores what the roles of the process need and the process takes work, as `/readyz` says.
    pub(crate) nats_ready: Gauge,
    /// For how long something that the roles need has not been confirmed.
    pub(crate) nats_unconfirmed_seconds: Gauge,
    /// Pulls that ended before they had brought what the server had announced, or were refused, by stream and reason.
    pub(crate) pulls_interrupted: Family<PullLabels, Counter>,
    /// Streams, buckets and durables that had to be made again while the process ran.
    pub(crate) made_again: Family<AssetLabels, Counter>,
    /// Messages in each stream.
    pub(crate) stream_messages: Family<StreamLabels, Gauge>,
    /// Bytes in each stream.
    pub(crate) stream_bytes: Family<StreamLabels, Gauge>,
    /// 1 for a stream that is at 80 % of a limit or above.
    pub(crate) stream_alarm: Family<StreamLabels, Gauge>,
    /// 1 for a stream of the cluster that has had no leader for a while.
    pub(crate) streams_without_leader: Family<LeaderLabels, Gauge>,
}

/// A request's source, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    /// A configured source; empty where none was named.
    pub(crate) source: String,
    pub(crate) outcome: &'static str,
}

/// Why a source's request was not genuine.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RejectionLabels {
    pub(crate) source: String,
    pub(crate) reason: &'static str,
}

/// One reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReasonLabels {
    pub(crate) reason: &'static str,
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct BatchLabels {
    /// `stored`, or why not: `repeat`, `refused`, `disabled`, `unconfirmed` or `not-ready`.
    pub(crate) outcome: &'static str,
}

/// An attempt's destination, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct AttemptLabels {
    /// A configured endpoint, or `callback`.
    pub(crate) destination: String,
    /// `delivered`, `retrying` or `dead`.
    pub(crate) outcome: &'static str,
    /// `none`, or the class of the failure.
    pub(crate) error: &'static str,
}

/// A stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StreamLabels {
    pub(crate) stream: &'static str,
}

/// A pull that ended early.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct PullLabels {
    pub(crate) stream: &'static str,
    /// `server`, `silent`, `missing` or `closed`.
    pub(crate) reason: &'static str,
}

/// A stream, bucket or durable, by what it is and its name: all of them come from the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct AssetLabels {
    pub(crate) asset: String,
}

/// A stream without the configured prefix; that of a bucket is `KV_<bucket>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct LeaderLabels {
    pub(crate) stream: String,
}

/// A destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct DestinationLabels {
    /// A configured endpoint.
    pub(crate) destination: String,
}

/// A held delivery's destination, and why it waits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct HeldLabels {
    /// A configured endpoint, `callback`, or `task` for an update that is put off.
    pub(crate) destination: String,
    /// `paused`, `breaker`, `busy`, `rate` or `turn`.
    pub(crate) why: &'static str,
}

/// A dead letter's destination and reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct DeadLabels {
    pub(crate) destination: String,
    pub(crate) reason: &'static str,
}

/// A request's client, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct TaskLabels {
    /// A configured client; empty where nobody has proved to be one.
    pub(crate) client: String,
    pub(crate) outcome: &'static str,
}

/// What was done about something that RETRY had lost.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RepairLabels {
    /// `rescheduled`, `dead` or `deadline`.
    pub(crate) outcome: &'static str,
}

/// A state of tasks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StatusLabels {
    pub(crate) status: &'static str,
}

impl Metrics {
    /// Makes and registers all metrics.
    pub(crate) fn new() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.0005, 2.0, 16));
        let mut metrics = Self {
            registry: Arc::default(),
            requests: Family::default(),
            rejections: Family::default(),
            quarantined: Family::default(),
            request_seconds: seconds(),
            body_bytes: Gauge::default(),
            connections: Gauge::default(),
            idle_closed: Family::default(),
            accept_failures: Counter::default(),
            unconfirmed: Family::default(),
            batches: Family::default(),
            batched_events: Family::default(),
            attempts: Family::default(),
            attempt_seconds: seconds(),
            dead_letters: Family::default(),
            held: Family::default(),
            breaker_open: Family::default(),
            task_requests: Family::default(),
            task_moves: Family::default(),
            cancelled: Counter::default(),
            refused_records: Counter::default(),
            unreadable: Family::default(),
            lost_news: Counter::default(),
            lost_receipts: Counter::default(),
            forged_retries: Counter::default(),
            streams_replaced: Family::default(),
            repaired: Family::default(),
            already_done: Counter::default(),
            deliveries: Gauge::default(),
            nats_ready: Gauge::default(),
            nats_unconfirmed_seconds: Gauge::default(),
            pulls_interrupted: Family::default(),
            made_again: Family::default(),
            stream_messages: Family::default(),
            stream_bytes: Family::default(),
            stream_alarm: Family::default(),
            streams_without_leader: Family::default(),
        };
        metrics.registry = Arc::new(metrics.register());
        metrics
    }

    fn register(&self) -> Registry {
        let mut registry = Registry::with_prefix("hookbridge");
        let build = Family::<BuildLabels, Gauge<i64>>::default();
        build.get_or_create(&BuildLabels { version: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("build_info", "The version that runs", build);
        registry.register("ingress_requests", "Requests to /hooks by outcome", self.requests.clone());
        registry.register("ingress_rejections", "Requests answered 401 by reason", self.rejections.clone());
        registry.register("ingress_quarantined", "Rejected requests kept or dropped", self.quarantined.clone());
        registry.register(
            "ingress_request_seconds",
            "Time from headers to answer of stored requests",
            self.request_seconds.clone(),
        );
        registry.register("ingress_body_bytes", "Bytes of request bodies held", self.body_bytes.clone());
        registry.register("ingress_connections", "Open connections", self.connections.clone());
        registry.register("ingress_idle_closed", "Idle connections closed by reason", self.idle_closed.clone());
        let failures = self.accept_failures.clone();
        registry.register("ingress_accept_failures", "Connections that could not be accepted", failures);
        registry.register("ingress_unconfirmed", "Publishes not confirmed by reason", self.unconfirmed.clone());
        registry.register("ingress_batches", "Batches of events by outcome", self.batches.clone());
        registry.register("ingress_batched_events", "Events in batches by outcome", self.batched_events.clone());
        registry.register("egress_attempts", "Delivery attempts by outcome", self.attempts.clone());
        registry.register("egress_attempt_seconds", "Time that attempts took", self.attempt_seconds.clone());
        registry.register("egress_dead_letters", "Dead letters by reason", self.dead_letters.clone());
        registry.register("egress_held", "Deliveries that wait without a failed attempt, by why", self.held.clone());
        registry.register("task_requests", "Requests about tasks by outcome", self.task_requests.clone());
        registry.register("task_news_lost", "News of tasks that could not be published", self.lost_news.clone());
        registry.register("task_moves", "Moves of tasks, by the state that they led to", self.task_moves.clone());
        registry.register("egress_cancelled", "Deliveries that were cancelled", self.cancelled.clone());
        let refused = self.refused_records.clone();
        registry.register(
            "egress_records_refused",
            "Records of the bucket that nobody with the key has written",
            refused,
        );
        registry.register(
            "egress_unreadable",
            "Messages and records removed that the NATS client library cannot read",
            self.unreadable.clone(),
        );
        let open = self.breaker_open.clone();
        registry.register("egress_breaker_open", "1 for a destination that is left alone for a while", open);
        registry.register("egress_receipts_lost", "Receipts that could not be written", self.lost_receipts.clone());
        registry.register("egress_retries_forged", "RETRY messages refused", self.forged_retries.clone());
        registry.register(
            "egress_already_done",
            "Repeated messages whose delivery was found to be finished",
            self.already_done.clone(),
        );
        registry.register(
            "streams_replaced",
            "Streams purged, restored, truncated or recreated while this process ran",
            self.streams_replaced.clone(),
        );
        registry.register("egress_repaired", "Items lost from RETRY, by repair outcome", self.repaired.clone());
        registry.register("egress_deliveries", "Deliveries in hand", self.deliveries.clone());
        registry.register("stream_messages", "Messages in each stream", self.stream_messages.clone());
        registry.register("stream_bytes", "Bytes in each stream", self.stream_bytes.clone());
        registry.register("stream_alarm", "1 for a stream near its limit", self.stream_alarm.clone());
        let help = "1 while NATS stores what the roles need and the process takes work";
        registry.register("nats_ready", help, self.nats_ready.clone());
        let help = "For how long something that the roles need has not been confirmed";
        registry.register("nats_unconfirmed_seconds", help, self.nats_unconfirmed_seconds.clone());
        let help = "Pulls from NATS that ended early, by stream and reason";
        registry.register("nats_pulls_interrupted", help, self.pulls_interrupted.clone());
        let help = "NATS assets recreated";
        registry.register("nats_assets_recreated", help, self.made_again.clone());
        let leaderless = self.streams_without_leader.clone();
        registry.register("stream_without_leader", "1 for a stream that has had no leader for a while", leaderless);
        registry
    }

    /// The text that Prometheus reads.
    pub(crate) fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut page = String::new();
        text::encode(&mut page, &self.registry)?;
        Ok(page)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}
