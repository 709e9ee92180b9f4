//! `[callbacks]`

use serde::Deserialize;

use super::client_tls::ClientTls;
use super::endpoints::{AgentPattern, SignatureForm, any_agent, default_signatures};
use crate::event::UrlPrefix;
use crate::secret::SecretEntry;

/// Destinations whose URL comes with a message or a task instead of from the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Callbacks {
    /// URL prefixes that may be used at all, for example `https://*.example.com/hooks/`. A `*` stands for one
    /// label of the host; `"*"` alone allows any URL. Nothing is allowed unless it is listed.
    pub allow: Vec<UrlPrefix>,
    /// The agents that may use callbacks; `"*"` is every agent.
    pub agents: Vec<AgentPattern>,
    /// The secrets that sign; all of them do, each until its end if it has one.
    pub secrets: Vec<SecretEntry>,
    /// How callbacks are signed.
    pub signatures: Vec<SignatureForm>,
    /// Certificate authorities and a client certificate for all callbacks.
    pub tls: Option<ClientTls>,
}

impl Default for Callbacks {
    fn default() -> Self {
        let (agents, signatures) = (any_agent(), default_signatures());
        Self { allow: Vec::new(), agents, secrets: Vec::new(), signatures, tls: None }
    }
}
