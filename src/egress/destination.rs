//! Where deliveries can go, prepared for use: URL, keys, headers and who may.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName};
use url::Url;

use super::authorization::Authorization;
use super::capture::Capture;
use super::intake::Message;
use super::interest::Interest;
use super::payload::Shape;
use super::reason::{Reason, Refusal};
use super::retry::Policy;
use super::signer::Signer;
use crate::config::{self, AgentPattern, ClientTls, Config, Egress, StreamKind};
use crate::event::{Name, UrlPrefix, id};
use crate::outbound::{Client, ClientOptions, Guard, public_url};
use crate::secret::{KeyError, Reload, SecretEntry};
use crate::task::Replies;

/// All destinations at one moment.
#[derive(Clone)]
pub(crate) struct Destinations {
    pub(super) endpoints: BTreeMap<Name, Arc<Endpoint>>,
    pub(super) callbacks: Arc<Callbacks>,
    /// What messages need that want a reply.
    replies: Replies,
    /// The policies for the callbacks of each client.
    clients: Arc<BTreeMap<Name, Arc<Callbacks>>>,
    /// The endpoints that want subjects, in the order of their names, and which they want.
    wanting: Vec<Arc<Endpoint>>,
    interest: Interest,
}

/// A named endpoint.
pub(super) struct Endpoint {
    pub(super) name: Name,
    pub(super) url: Url,
    pub(super) subjects: Vec<String>,
    /// The types that fan-out brings; none is every type.
    types: Vec<String>,
    pub(super) agents: Vec<AgentPattern>,
    pub(super) headers: HeaderMap,
    pub(super) authorization: Authorization,
    pub(super) shape: Shape,
    pub(super) capture: Option<Capture>,
    pub(super) signer: Signer,
    pub(super) policy: Policy,
    /// One at a time, in the order of the stream.
    pub(super) ordered: bool,
    /// Its own client, where it has TLS of its own.
    pub(super) client: Option<Client>,
}

/// The policy for URLs that come with a message or a task.
pub(super) struct Callbacks {
    pub(super) allow: Vec<UrlPrefix>,
    /// The key that they are listed under.
    pub(super) listed_in: String,
    pub(super) agents: Vec<AgentPattern>,
    pub(super) signer: Signer,
    pub(super) policy: Policy,
    /// Their own client, where they have TLS of their own.
    pub(super) client: Option<Client>,
}

/// One place that a delivery can be sent to.
#[derive(Clone)]
pub(super) enum Destination {
    Endpoint(Arc<Endpoint>),
    Callback {
        url: Box<Url>,
        policy: Arc<Callbacks>,
        /// What its client wants to find there.
        headers: Option<Arc<HeaderMap>>,
    },
}

impl Destinations {
    /// Prepares every destination; the error names the one whose secrets cannot be used.
    pub(crate) fn new(config: &Config) -> Result<Self, (String, KeyError)> {
        let mut endpoints = BTreeMap::new();
        let kept_for = config.streams.limits(StreamKind::Outbox).max_age;
        for (name, endpoint) in &config.endpoints {
            let prepared = Endpoint::new(name, endpoint, &config.egress, kept_for)
                .map_err(|error| (format!("endpoints.{name}"), error))?;
            endpoints.insert(name.clone(), Arc::new(prepared));
        }
        let in_callbacks = |error| ("callbacks".to_owned(), error);
        let client = own_client(config.callbacks.tls.as_ref(), &config.egress).map_err(in_callbacks)?;
        let callbacks = |listed_in: &str, allow: &[UrlPrefix], secrets: &[SecretEntry]| {
            let signer = Signer::new(&config.callbacks.signatures, secrets);
            Ok(Arc::new(Callbacks {
                allow: allow.to_vec(),
                listed_in: listed_in.to_owned(),
                agents: config.callbacks.agents.clone(),
                signer: signer?,
                policy: Policy::new(&config.egress, None, kept_for),
                client: client.clone(),
            }))
        };
        let mut clients = BTreeMap::new();
        for (name, own) in &config.clients {
            let (all, table) = (&config.callbacks, format!("clients.{name}"));
            let (listed_in, allow) = match own.callback_urls.is_empty() {
                true => ("callbacks.allow".to_owned(), &all.allow),
                false => (format!("{table}.callback_urls"), &own.callback_urls),
            };
            let secrets = if own.callback_secrets.is_empty() { &all.secrets } else { &own.callback_secrets };
            let prepared = callbacks(&listed_in, allow, secrets).map_err(|error| (table, error))?;
            clients.insert(name.clone(), prepared);
        }
        let all = &config.callbacks;
        let callbacks = callbacks("callbacks.allow", &all.allow, &all.secrets).map_err(in_callbacks)?;
        let replies = Replies::load(&config.replies.keys, config.gateway.public_url.as_ref());
        let replies = replies.map_err(|error| ("replies".to_owned(), error))?;
        let (wanting, interest, clients) = (Vec::new(), Interest::default(), Arc::new(clients));
        Ok(Self { endpoints, callbacks, replies, clients, wanting, interest }.with(&BTreeMap::new()))
    }

    /// The policy for the callbacks of a client's tasks, while there is such a client.
    pub(super) fn callbacks_of(&self, client: &str) -> Option<Arc<Callbacks>> {
        self.clients.get(client).cloned()
    }

    /// These, and further endpoints.
    pub(super) fn with(&self, further: &BTreeMap<Name, Arc<Endpoint>>) -> Self {
        let (mut endpoints, callbacks, clients) = (further.clone(), self.callbacks.clone(), self.clients.clone());
        endpoints.extend(self.endpoints.clone());
        let wanting: Vec<_> = endpoints.values().filter(|endpoint| !endpoint.subjects.is_empty()).cloned().collect();
        let mut interest = Interest::default();
        for (number, endpoint) in wanting.iter().enumerate() {
            endpoint.subjects.iter().for_each(|pattern| interest.add(pattern, number));
        }
        let replies = self.replies.clone();
        Self { endpoints, callbacks, replies, clients, wanting, interest }
    }

    /// A message with the URL in its body that calls back to its agent, if it wants a reply.
    /// `stored` is when it was stored.
    pub(super) fn with_reply<'a>(&self, message: &'a Message, stored: SystemTime) -> Result<Cow<'a, Message>, Refusal> {
        let Some(task_id) = &message.reply else { return Ok(Cow::Borrowed(message)) };
        let body = self.replies.put_into(&message.body, &message.agent, task_id, stored);
        let body = body.map_err(|why| Refusal::new(Reason::Malformed, why))?;
        Ok(Cow::Owned(Message { body, ..message.clone() }))
    }

    /// The endpoints that want a message of this subject and type, in the order of their names.
    pub(super) fn wanting(&self, subject: &str, event_type: Option<&str>) -> impl Iterator<Item = &Arc<Endpoint>> {
        let all = self.interest.of(subject).into_iter().filter_map(|number| self.wanting.get(number));
        all.filter(move |endpoint| endpoint.wants_type(event_type))
    }

    /// The key rings and certificates that SIGHUP reads again.
    pub(crate) fn secrets(&self) -> Vec<Arc<dyn Reload>> {
        let clients = self.endpoints.values().map(|endpoint| &endpoint.client).chain([&self.callbacks.client]);
        let clients = clients.flatten().map(|client| Arc::new(client.clone()) as Arc<dyn Reload>);
        let signers = self.endpoints.values().map(|endpoint| &endpoint.signer).chain([&self.callbacks.signer]);
        let signers = signers.chain(self.clients.values().map(|callbacks| &callbacks.signer));
        let authorizing = self.endpoints.values().flat_map(|endpoint| endpoint.authorization.secrets());
        signers.flat_map(Signer::secrets).chain(clients).chain(authorizing).chain([self.replies.secrets()]).collect()
    }
}

impl Endpoint {
    fn wants_type(&self, event_type: Option<&str>) -> bool {
        let wants = |event_type: &str| self.types.iter().any(|pattern| crate::signature::matches(pattern, event_type));
        self.types.is_empty() || event_type.is_some_and(wants)
    }

    /// Prepares an endpoint. `kept_for` is how long OUTBOX keeps a message.
    pub(super) fn new(
        name: &Name,
        endpoint: &config::Endpoint,
        egress: &Egress,
        kept_for: Option<Duration>,
    ) -> Result<Self, KeyError> {
        // Both parse: the configuration was checked when it was loaded.
        let header = |(name, value): (&String, &String)| Some((name.parse::<HeaderName>().ok()?, value.parse().ok()?));
        Ok(Self {
            name: name.clone(),
            url: endpoint.url.clone(),
            subjects: endpoint.subjects.clone(),
            types: endpoint.types.clone(),
            agents: endpoint.agents.clone(),
            headers: endpoint.headers.iter().filter_map(header).collect(),
            authorization: Authorization::new(endpoint)?,
            shape: Shape::new(endpoint),
            capture: Capture::new(endpoint),
            signer: Signer::new(&endpoint.signatures, &endpoint.secrets)?,
            policy: Policy::new(egress, Some(endpoint), kept_for),
            ordered: endpoint.ordered,
            client: own_client(endpoint.tls.as_ref(), egress)?,
        })
    }
}

/// The client of a destination with TLS of its own; all others share one.
fn own_client(tls: Option<&ClientTls>, egress: &Egress) -> Result<Option<Client>, KeyError> {
    tls.map(|tls| Client::with_tls(&Guard::new(egress), ClientOptions::of(egress), tls)).transpose()
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

    /// The endpoint's own; a callback has nothing but its URL and the policy.
    pub(super) fn endpoint(&self) -> Option<&Endpoint> {
        match self {
            Self::Endpoint(endpoint) => Some(endpoint),
            Self::Callback { .. } => None,
        }
    }

    /// The headers that every request there has.
    pub(super) fn headers(&self) -> Option<&HeaderMap> {
        match self {
            Self::Endpoint(endpoint) => Some(&endpoint.headers),
            Self::Callback { headers, .. } => headers.as_deref(),
        }
    }

    /// The client with its own TLS, if it has any.
    pub(super) fn client(&self) -> Option<&Client> {
        match self {
            Self::Endpoint(endpoint) => endpoint.client.as_ref(),
            Self::Callback { policy, .. } => policy.client.as_ref(),
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
