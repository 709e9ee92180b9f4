//! `[tasks]`

use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;

/// Tasks that clients delegate to agents.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tasks {
    /// How long the state of a task that has ended is kept. Open tasks are kept for ever.
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
    /// The time after which a task without a `deadline` of its own fails; none by default.
    #[serde(with = "humantime_serde")]
    pub deadline: Option<Duration>,
    /// The largest task; `gateway.max_body` by default.
    pub max_body: Option<ByteSize>,
    /// How many tasks each client may follow (`GET /tasks/{id}/events`) at once.
    pub max_streams: usize,
}

impl Default for Tasks {
    fn default() -> Self {
        Self { retention: Duration::from_secs(7 * 24 * 3600), deadline: None, max_body: None, max_streams: 1000 }
    }
}
