//! `[clients.<name>]`

use serde::Deserialize;

use super::AgentPattern;
use crate::secret::SecretRef;

/// An HTTP client that may delegate tasks to agents.
///
/// Tasks are not served yet: the table is read and checked, so that a configuration written for them loads.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// The client's bearer token.
    #[serde(default)]
    pub token: Option<SecretRef>,
    /// Secrets of an HMAC over the body, instead of a token.
    #[serde(default)]
    pub secrets: Vec<SecretRef>,
    /// The agents it may delegate to.
    #[serde(default)]
    pub agents: Vec<AgentPattern>,
}
