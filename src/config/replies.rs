//! `[replies]`

use serde::Deserialize;

use crate::secret::SecretRef;

/// Replies to agents: an agent that delegates over HTTP gets the callback as an event.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Replies {
    /// The keys of the tokens in the URLs that call back. The first makes them, all check them, so a key can be changed
    /// while tokens of the old one are out. Gateway and courier need the same ones. Needs `gateway.public_url`.
    pub keys: Vec<SecretRef>,
}
