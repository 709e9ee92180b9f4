//! Clients, and how they prove who they are: a bearer token, or a signature over the body.

use std::sync::Arc;
use std::time::SystemTime;

use governor::clock::Clock;
use governor::{DefaultDirectRateLimiter, RateLimiter};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::request::Parts;
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;
use url::Url;

use super::super::peer_rate::TooSoon;
use super::error::TaskError;
use crate::config::{self, AgentPattern, Config};
use crate::event::{Name, Request, UrlPrefix};
use crate::outbound::public_url;
use crate::secret::{KeyError, KeyRing, Reload, Secret};
use crate::signature::{Credential, Inquiry, Profile, Verify, Ways, preset};
use crate::task::Replies;

/// The preset in which clients sign.
const FORM: &str = "standard-webhooks";

/// All who may come with tasks, and with replies to agents. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Clients {
    clients: Arc<Vec<Client>>,
    profile: Arc<Profile>,
    replies: Replies,
}

/// Who may delegate tasks.
pub(super) struct Client {
    pub(super) name: Name,
    token: Option<Arc<KeyRing<Secret>>>,
    credentials: Option<Arc<KeyRing<Credential>>>,
    pub(super) agents: Vec<AgentPattern>,
    callback_urls: Vec<UrlPrefix>,
    listed_in: String,
    rate: Option<DefaultDirectRateLimiter>,
    /// Places for following tasks.
    pub(super) streams: Arc<Semaphore>,
}

impl Clients {
    /// Prepares the configured clients; the error names the one whose secrets cannot be used.
    pub(crate) fn new(config: &Config) -> Result<Self, (String, KeyError)> {
        let profile = preset::find(FORM).map(|preset| preset.profile).unwrap_or_default();
        let ways = match &profile.verify {
            Some(Verify::Ways(ways)) => Some(ways.clone()),
            _ => None,
        };
        let prepare = |(name, client): (&Name, &config::Client)| {
            Client::new(config, name, client, ways.as_ref()).map_err(|error| (format!("clients.{name}"), error))
        };
        let clients = config.clients.iter().map(prepare).collect::<Result<_, _>>()?;
        let replies = Replies::load(&config.replies.keys, config.gateway.public_url.as_ref());
        let replies = replies.map_err(|error| ("replies".to_owned(), error))?;
        Ok(Self { clients: Arc::new(clients), profile: Arc::new(profile), replies })
    }

    /// Everything that SIGHUP reads again.
    pub(crate) fn secrets(&self) -> Vec<Arc<dyn Reload>> {
        let of = |client: &Client| {
            let token = client.token.clone().map(|ring| ring as Arc<dyn Reload>);
            [token, client.credentials.clone().map(|ring| ring as Arc<dyn Reload>)]
        };
        self.clients.iter().flat_map(of).flatten().chain([self.replies.secrets()]).collect()
    }

    /// What proves that a reply is one.
    pub(super) fn replies(&self) -> Replies {
        self.replies.clone()
    }

    /// The client whose token a request brings; none where it brings no token.
    pub(super) fn by_token(&self, headers: &HeaderMap) -> Result<Option<&Client>, TaskError> {
        let Some(value) = headers.get(AUTHORIZATION) else { return Ok(None) };
        let (scheme, token) = value.as_bytes().split_at_checked(7).ok_or(TaskError::Unauthorized)?;
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return Err(TaskError::Unauthorized);
        }
        let token = token.trim_ascii();
        // All are looked at, so that time does not tell which was close.
        let fitting = self.clients.iter().filter(|client| client.has_token(token));
        fitting.last().map(Some).ok_or(TaskError::Unauthorized)
    }

    /// The client that signed a request.
    pub(super) fn by_signature(&self, head: &Parts, body: &[u8], now: SystemTime) -> Result<&Client, TaskError> {
        let Some(Verify::Ways(ways)) = &self.profile.verify else { return Err(TaskError::Unauthorized) };
        let request = Request::new(&head.method, "", head.uri.query(), &head.headers, body);
        let inquiry = Inquiry { request: &request, id: self.profile.id.as_ref(), now, documents: &|_| None };
        let signed = |client: &&Client| {
            let credentials = client.credentials.as_ref().map(|ring| ring.at(now));
            credentials.is_some_and(|credentials| ways.verify(&credentials, &inquiry).is_ok())
        };
        self.clients.iter().find(signed).ok_or(TaskError::Unauthorized)
    }
}

impl Client {
    fn new(config: &Config, name: &Name, client: &config::Client, ways: Option<&Ways>) -> Result<Self, KeyError> {
        let token = client.token.clone().map(|token| KeyRing::load([token], |secret| Ok(secret.clone())));
        let credentials = match ways.filter(|_| !client.secrets.is_empty()) {
            Some(ways) => {
                let ways = ways.clone();
                Some(KeyRing::load(client.secrets.clone(), move |secret: &Secret| ways.credential(secret))?)
            }
            None => None,
        };
        let (listed_in, callback_urls) = match client.callback_urls.is_empty() {
            true => ("callbacks.allow".to_owned(), config.callbacks.allow.clone()),
            false => (format!("clients.{name}.callback_urls"), client.callback_urls.clone()),
        };
        Ok(Self {
            name: name.clone(),
            token: token.transpose()?.map(Arc::new),
            credentials: credentials.map(Arc::new),
            agents: client.agents.clone(),
            callback_urls,
            listed_in,
            rate: client.rate.map(|rate| RateLimiter::direct(rate.quota())),
            streams: Arc::new(Semaphore::new(config.tasks.max_streams.min(Semaphore::MAX_PERMITS))),
        })
    }

    fn has_token(&self, token: &[u8]) -> bool {
        let fits = |expected: &Secret| bool::from(expected.expose().ct_eq(token));
        self.token.as_ref().is_some_and(|ring| ring.keys().iter().any(fits))
    }

    /// Whether it signs instead of bringing a token.
    pub(super) fn signs(&self) -> bool {
        self.credentials.is_some()
    }

    /// Counts a request against the client's rate.
    pub(super) fn take(&self) -> Result<(), TaskError> {
        let Some(rate) = &self.rate else { return Ok(()) };
        rate.check().map_err(|refused| TaskError::Rate(TooSoon::new(&refused, rate.clock().now())))
    }

    /// Whether the client may be called back at a URL at all.
    pub(super) fn may_be_called_at(&self, url: &Url) -> Result<(), TaskError> {
        if self.callback_urls.iter().any(|prefix| prefix.allows(url)) {
            return Ok(());
        }
        let listed = &self.listed_in;
        Err(TaskError::Invalid(format!("the callback URL: no prefix in {listed} allows {}", public_url(url))))
    }
}
