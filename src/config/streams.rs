//! `[streams.…]`

use std::fmt;
use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;

/// What each stream keeps. One table per stream; what is not said is the default.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Streams {
    /// Verified webhooks, for agents.
    pub events: Stream,
    /// What agents want sent.
    pub outbox: Stream,
    /// Waiting deliveries. Only `max_bytes` can be set: any other limit would lose a waiting delivery.
    pub retry: Stream,
    /// What became of deliveries.
    pub receipts: Stream,
    /// Deliveries that nobody will try again by itself.
    pub dead: Stream,
    /// Work delegated to agents.
    pub tasks: Stream,
    /// Requests answered 401, of sources with `quarantine = true`, for people to study. Full means that the oldest
    /// go.
    pub quarantine: Stream,
}

/// The limits of one stream; `None` is the default of that stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stream {
    /// How long a message is kept.
    #[serde(with = "humantime_serde")]
    pub max_age: Option<Duration>,
    /// The most bytes kept.
    pub max_bytes: Option<ByteSize>,
    /// The most messages kept.
    pub max_messages: Option<u64>,
    /// For how long a repeated `Nats-Msg-Id` is recognised. Costs server memory per message.
    #[serde(with = "humantime_serde")]
    pub duplicate_window: Option<Duration>,
}

/// The streams that Hookbridge keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StreamKind {
    /// `EVENTS`
    Events,
    /// `OUTBOX`
    Outbox,
    /// `RETRY`
    Retry,
    /// `RECEIPTS`
    Receipts,
    /// `DEAD`
    Dead,
    /// `TASKS`
    Tasks,
    /// `QUARANTINE`
    Quarantine,
}

/// The limits of a stream with every default filled in; `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a message is kept.
    pub max_age: Option<Duration>,
    /// The most bytes kept.
    pub max_bytes: Option<u64>,
    /// The most messages kept.
    pub max_messages: Option<u64>,
    /// For how long a repeated `Nats-Msg-Id` is recognised.
    pub duplicate_window: Duration,
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

impl StreamKind {
    /// All of them, in the order in which they are created.
    pub const ALL: [Self; 7] =
        [Self::Events, Self::Outbox, Self::Retry, Self::Receipts, Self::Dead, Self::Tasks, Self::Quarantine];

    /// The stream's name, without a configured prefix.
    pub fn name(self) -> &'static str {
        match self {
            Self::Events => "EVENTS",
            Self::Outbox => "OUTBOX",
            Self::Retry => "RETRY",
            Self::Receipts => "RECEIPTS",
            Self::Dead => "DEAD",
            Self::Tasks => "TASKS",
            Self::Quarantine => "QUARANTINE",
        }
    }

    /// The one subject filter that the stream takes, without a configured prefix.
    pub fn subjects(self) -> &'static str {
        match self {
            Self::Events => "events.>",
            Self::Outbox => "outbox.>",
            Self::Retry => "retry.>",
            Self::Receipts => "receipts.>",
            Self::Dead => "dead.>",
            Self::Tasks => "tasks.>",
            Self::Quarantine => "quarantine.>",
        }
    }

    fn default_limits(self) -> Limits {
        let (max_age, duplicate_window) = match self {
            Self::Events => (Some(7 * DAY), 72 * HOUR),
            Self::Outbox => (Some(7 * DAY), 2 * HOUR),
            Self::Retry => (None, HOUR / 30),
            Self::Receipts => (Some(72 * HOUR), HOUR / 30),
            Self::Dead => (Some(30 * DAY), HOUR / 30),
            Self::Tasks => (Some(7 * DAY), HOUR / 30),
            Self::Quarantine => (Some(DAY), HOUR / 30),
        };
        let max_messages = matches!(self, Self::Receipts | Self::Dead).then_some(1_000_000);
        let max_bytes = (self == Self::Quarantine).then_some(64 * 1024 * 1024);
        Limits { max_age, max_bytes, max_messages, duplicate_window }
    }
}

impl fmt::Display for StreamKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl Streams {
    /// The table of one stream, as it was written.
    pub fn table(&self, kind: StreamKind) -> &Stream {
        match kind {
            StreamKind::Events => &self.events,
            StreamKind::Outbox => &self.outbox,
            StreamKind::Retry => &self.retry,
            StreamKind::Receipts => &self.receipts,
            StreamKind::Dead => &self.dead,
            StreamKind::Tasks => &self.tasks,
            StreamKind::Quarantine => &self.quarantine,
        }
    }

    /// The limits of one stream, defaults filled in.
    pub fn limits(&self, kind: StreamKind) -> Limits {
        let (table, default) = (self.table(kind), kind.default_limits());
        Limits {
            max_age: table.max_age.or(default.max_age),
            max_bytes: table.max_bytes.map(|bytes| bytes.as_u64()).or(default.max_bytes),
            max_messages: table.max_messages.or(default.max_messages),
            duplicate_window: table.duplicate_window.unwrap_or(default.duplicate_window),
        }
    }
}
