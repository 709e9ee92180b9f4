//! `[clients.<name>]`

use serde::Deserialize;

use super::endpoints::{AgentPattern, any_agent};
use super::rate::{Rate, rate_or_none};
use crate::event::UrlPrefix;
use crate::secret::{SecretEntry, SecretRef};

/// An HTTP client that may delegate tasks to agents.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// The client's bearer token (`Authorization: Bearer …`).
    #[serde(default)]
    pub token: Option<SecretRef>,
    /// Secrets of a signature over the body, instead of a token: Standard Webhooks (`webhook-signature`), any of them.
    #[serde(default)]
    pub secrets: Vec<SecretEntry>,
    /// The agents it may delegate to; `"*"`, the default, is every agent.
    #[serde(default = "any_agent")]
    pub agents: Vec<AgentPattern>,
    /// URL prefixes that it may be called back at, instead of those in `callbacks.allow`.
    #[serde(default)]
    pub callback_urls: Vec<UrlPrefix>,
    /// The secrets that sign its callbacks, instead of `callbacks.secrets`: clients that share those can sign as
    /// Hookbridge to each other.
    #[serde(default)]
    pub callback_secrets: Vec<SecretEntry>,
    /// How often it may ask, for example `"100/s burst 200"`.
    #[serde(default, deserialize_with = "rate_or_none")]
    pub rate: Option<Rate>,
}
