//! The configuration: TOML files, then environment, then flags; later ones win.
//!
//! One section per file; its doc comments are the operator's manual. What [`load()`] returns is valid: every
//! mistake is found at load, all of them at once, each with file, key and reason. Secrets are looked up here
//! too, and never printed.

mod admin;
mod agents;
mod authorization;
mod callbacks;
mod client_tls;
mod clients;
mod egress;
mod endpoints;
mod gateway;
mod load;
mod nats;
mod policy;
mod rate;
mod reach;
mod replies;
mod signing;
mod sources;
mod streams;
mod tasks;
mod telemetry;
mod validate;

use std::collections::BTreeMap;
use std::time::Duration;

pub use admin::Admin;
pub use agents::Agent;
pub use authorization::{Authorization, Basic, ClientCredentials, ClientStyle};
pub use callbacks::Callbacks;
pub use client_tls::ClientTls;
pub use clients::Client;
pub use egress::Egress;
pub use endpoints::{AgentPattern, Endpoint, PayloadForm, SignatureForm};
pub use gateway::Gateway;
pub(crate) use load::{DEFAULT_FILE, nearest};
pub use load::{Layers, Mistake, Mistakes, load};
pub use nats::{Durability, Nats, Tls, Urls};
pub(crate) use policy::MOST_ATTEMPTS;
pub use policy::{Breaker, Retry};
pub use rate::Rate;
pub use reach::{HostPattern, NameServer, Ports};
pub use replies::Replies;
pub use sources::Source;
pub use streams::{Limits, Stream, StreamKind, Streams};
pub use tasks::Tasks;
pub use telemetry::{LogFormat, Telemetry};
pub use validate::warnings;
pub(crate) use validate::{HEADER_ROOM, endpoint_mistakes};

use crate::event::Name;

/// Everything that an operator can say.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long a process that was asked to stop keeps serving, with `/readyz` answering 503 and `Connection: close` in
    /// every response, so that a load balancer stops using it before its port closes. A second signal ends the delay.
    /// `dev` has none, and neither has a process that stops by itself.
    pub shutdown_delay: Duration,
    /// How long a stopping process may take to finish what it holds, after `shutdown_delay`.
    pub shutdown_grace: Duration,
    /// The NATS servers.
    pub nats: Nats,
    /// What the streams keep.
    pub streams: Streams,
    /// Webhooks coming in.
    pub gateway: Gateway,
    /// Health and metrics.
    pub admin: Admin,
    /// Senders of webhooks.
    pub sources: BTreeMap<Name, Source>,
    /// Agents with a durable consumer.
    pub agents: BTreeMap<Name, Agent>,
    /// Named HTTP destinations.
    pub endpoints: BTreeMap<Name, Endpoint>,
    /// Destinations whose URL comes with a message.
    pub callbacks: Callbacks,
    /// HTTP clients that may delegate tasks.
    pub clients: BTreeMap<Name, Client>,
    /// Tasks that they delegate.
    pub tasks: Tasks,
    /// Replies to agents that delegate over HTTP.
    pub replies: Replies,
    /// Webhooks going out.
    pub egress: Egress,
    /// Logs and traces.
    pub telemetry: Telemetry,
}

impl Config {
    /// The largest body that any source, or a task, can have, in bytes.
    pub fn largest_body(&self) -> u64 {
        let of_sources = self.sources.values().filter_map(|source| source.profile().max_body);
        of_sources
            .chain(self.tasks.max_body)
            .chain([self.gateway.max_body])
            .map(|max| max.as_u64())
            .max()
            .unwrap_or_default()
    }
}

fn default_shutdown_grace() -> Duration {
    Duration::from_secs(20)
}
