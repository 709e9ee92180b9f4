//! `[agents.<name>]`

use serde::Deserialize;

/// An agent that gets durable consumers of its own, named like the agent.
///
/// An agent needs no such table to publish to its outbox: the subject says who it is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// The event subjects that its durable on EVENTS delivers. Without any it has none.
    #[serde(default)]
    pub events: Vec<String>,
}
