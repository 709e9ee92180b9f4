//! Where deliveries can go, prepared for use: URL, keys, headers and who may.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use url::Url;

use super::retry::Policy;
use super::signer::Signer;
use crate::config::{self, AgentPattern, Config, StreamKind};
use crate::event::{Name, UrlPrefix, id};
use crate::outbound::public_url;
use crate::secret::{KeyError, Reload};

/// All destinations of a configuration.
pub(crate) struct Destinations {
    pub(super) endpoints: BTreeMap<Name, Arc<Endpoint>>,
    pub(super) callbacks: Arc<Callbacks>,
}

/// A named endpoint.
pub(super) struct Endpoint {
    pub(super) name: Name,
    pub(super) url: Url,
    pub(super) subjects: Vec<String>,
    pub(super) agents: Vec<AgentPattern>,
    pub(super) headers: HeaderMap,
    pub(super) signer: Signer,
    pub(super) policy: Policy,
    /// One at a time, in the order of the stream.
    pub(super) ordered: bool,
}

/// The policy for URLs that come with a message.
pub(super) struct Callbacks {
    pub(super) allow: Vec<UrlPrefix>,
    pub(super) agents: Vec<AgentPattern>,
    pub(super) signer: Signer,
    pub(super) policy: Policy,
}

/// One place that a delivery can be sent to.
#[derive(Clone)]
pub(super) enum Destination {
    Endpoint(Arc<Endpoint>),
    Callback { url: Box<Url>, policy: Arc<Callbacks> },
}

impl Destinations {
    /// Prepares every destination; the error names the one whose secrets cannot be used.
    pub(crate) fn new(config: &Config) -> Result<Self, (String, KeyError)> {
        let mut endpoints = BTreeMap::new();
        let kept_for = config.streams.limits(StreamKind::Outbox).max_age;
        for (name, endpoint) in &config.endpoints {
            let prepared = Endpoint::new(name, endpoint, Policy::new(&config.egress, Some(endpoint), kept_for));
            let prepared = prepared.map_err(|error| (format!("endpoints.{name}"), error))?;
            endpoints.insert(name.clone(), Arc::new(prepared));
        }
        let callbacks = &config.callbacks;
        let signer = Signer::new(&callbacks.signatures, &callbacks.secrets);
        let signer = signer.map_err(|error| ("callbacks".to_owned(), error))?;
        let (allow, agents) = (callbacks.allow.clone(), callbacks.agents.clone());
        let policy = Policy::new(&config.egress, None, kept_for);
        Ok(Self { endpoints, callbacks: Arc::new(Callbacks { allow, agents, signer, policy }) })
    }

    /// The key rings that SIGHUP reads again.
    pub(crate) fn secrets(&self) -> Vec<Arc<dyn Reload>> {
        let signers = self.endpoints.values().map(|endpoint| &endpoint.signer).chain([&self.callbacks.signer]);
        signers.flat_map(Signer::secrets).collect()
    }
}

impl Endpoint {
    fn new(name: &Name, endpoint: &config::Endpoint, policy: Policy) -> Result<Self, KeyError> {
        // Both parse: the configuration was checked when it was loaded.
        let header = |(name, value): (&String, &String)| Some((name.parse::<HeaderName>().ok()?, value.parse().ok()?));
        Ok(Self {
            name: name.clone(),
            url: endpoint.url.clone(),
            subjects: endpoint.subjects.clone(),
            agents: endpoint.agents.clone(),
            headers: endpoint.headers.iter().filter_map(header).collect(),
            signer: Signer::new(&endpoint.signatures, &endpoint.secrets)?,
            policy,
            ordered: endpoint.ordered,
        })
    }
}

impl Destination {
    pub(super) fn url(&self) -> &Url {
        match self {
            Self::Endpoint(endpoint) => &endpoint.url,
            Self::Callback { url, .. } => url,
        }
    }

    pub(super) fn signer(&self) -> &Signer {
        match self {
            Self::Endpoint(endpoint) => &endpoint.signer,
            Self::Callback { policy, .. } => &policy.signer,
        }
    }

    /// How persistently deliveries there are made.
    pub(super) fn policy(&self) -> &Policy {
        match self {
            Self::Endpoint(endpoint) => &endpoint.policy,
            Self::Callback { policy, .. } => &policy.policy,
        }
    }

    pub(super) fn headers(&self) -> Option<&HeaderMap> {
        match self {
            Self::Endpoint(endpoint) => Some(&endpoint.headers),
            Self::Callback { .. } => None,
        }
    }

    /// The subject token under which its deliveries wait.
    pub(super) fn token(&self) -> String {
        match self {
            Self::Endpoint(endpoint) => id::endpoint_token(&endpoint.name),
            Self::Callback { url, .. } => id::callback_token(url),
        }
    }

    /// What receipts call it: the endpoint's name, or the URL without query and userinfo.
    pub(super) fn public_name(&self) -> String {
        match self {
            Self::Endpoint(endpoint) => endpoint.name.to_string(),
            Self::Callback { url, .. } => public_url(url),
        }
    }

    /// What metrics call it. A callback's URL comes from an agent and must not become a label.
    pub(super) fn metric_name(&self) -> &str {
        match self {
            Self::Endpoint(endpoint) => endpoint.name.as_str(),
            Self::Callback { .. } => "callback",
        }
    }
}
