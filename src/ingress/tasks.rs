//! Tasks over HTTP: a client delegates one to an agent, asks for it, follows it, and calls it off.
//!
//! The gateway writes a task down once, as `submitted`, and offers it to its agent. From then on only the courier
//! changes it: calling off is an update like an agent's, and takes the same way.

mod ask;
mod client;
mod delegate;
mod error;
mod follow;
mod reply;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, Method, Request, StatusCode};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::budget::Held;
use super::receive::Receiver;
use crate::config::Config;
use crate::event::Name;
use crate::listener::Peer;
use crate::outbound::Guard;
use crate::task::{Defaults, Record, Replies};
use crate::telemetry::logs::Seldom;
use crate::telemetry::metrics::TaskLabels;
use client::Client;
pub(crate) use client::Clients;
use error::TaskError;

/// How long one confirmation may take.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);
/// Lists that are made at once.
const LISTS: usize = 8;
/// The largest body of a request that only names a task.
const MAX_NAMED: usize = 1024;
/// How long a host that was checked is believed to be as it was.
const FORESEEN_FOR: Duration = Duration::from_secs(30);
/// How many hosts are remembered.
const FORESEEN: usize = 1000;
/// How long looking up a callback's host may take.
const FORESEE_WITHIN: Duration = Duration::from_secs(2);

/// Where clients come with their tasks.
pub(super) struct Desk {
    receiver: Arc<Receiver>,
    clients: Clients,
    agents: BTreeSet<Name>,
    defaults: Defaults,
    max_body: usize,
    guard: Guard,
    replies: Replies,
    /// Hosts of callbacks that were allowed, and when.
    foreseen: Mutex<BTreeMap<String, SystemTime>>,
    public_url: Option<Url>,
    /// Places for lists, which hold many states at once.
    lists: Semaphore,
    said_401: Seldom,
    said_503: Seldom,
    stop: CancellationToken,
}

/// The routes of tasks.
pub(super) fn router(desk: Desk) -> Router {
    Router::new()
        .route("/agents/{agent}/tasks", any(delegate::delegate))
        .route("/tasks", any(ask::list))
        .route("/tasks/{task_id}", any(ask::one))
        .route("/tasks/{task_id}/events", any(follow::events))
        .route("/callbacks/{agent}/{task_id}", any(reply::reply))
        .with_state(Arc::new(desk))
}

/// A request of a client that has proved itself.
struct Visit<'a> {
    client: &'a Client,
    head: Parts,
    body: Bytes,
    _held: Held<'a>,
}

impl Desk {
    pub(super) fn new(config: &Config, clients: Clients, receiver: Arc<Receiver>, stop: CancellationToken) -> Self {
        let max_body = config.tasks.max_body.unwrap_or(config.gateway.max_body);
        Self {
            receiver,
            replies: clients.replies(),
            clients,
            agents: config.agents.keys().cloned().collect(),
            defaults: Defaults { deadline: config.tasks.deadline },
            max_body: usize::try_from(max_body.as_u64()).unwrap_or(usize::MAX),
            guard: Guard::new(&config.egress),
            foreseen: Mutex::default(),
            public_url: config.gateway.public_url.clone(),
            lists: Semaphore::new(LISTS),
            said_401: Seldom::default(),
            said_503: Seldom::default(),
            stop,
        }
    }

    /// Lets a client in, serves it, counts and answers.
    async fn attend<'a, S>(
        &'a self,
        peer: Peer,
        allowed: &[Method],
        request: Request<Body>,
        serve: impl FnOnce(Visit<'a>) -> S,
    ) -> Response
    where
        S: Future<Output = Result<(&'static str, Response), TaskError>>,
    {
        let answered = match self.admit(peer, allowed, request).await {
            Ok(visit) => {
                let client = visit.client;
                let served = serve(visit).await;
                served
                    .map(|(outcome, response)| (Some(client), outcome, response))
                    .map_err(|error| Refused { client: Some(client), error })
            }
            Err(refused) => Err(refused),
        };
        self.answer(answered)
    }

    /// Lets a client in: method, size, proof, rate, in the order of what they cost.
    async fn admit(&self, peer: Peer, allowed: &[Method], request: Request<Body>) -> Result<Visit<'_>, Refused<'_>> {
        let begun = Instant::now();
        let sender = self.receiver.sender(peer, request.headers());
        let (head, body) = request.into_parts();
        let stranger = |error: TaskError| {
            if error.is_charged() {
                self.receiver.charge(sender);
            }
            Refused { client: None, error }
        };
        if !allowed.contains(&head.method) {
            return Err(stranger(TaskError::Method { allowed: allowed.to_vec() }));
        }
        let limit = match head.method {
            Method::POST => self.max_body.min(self.receiver.room()),
            Method::DELETE => MAX_NAMED,
            _ => 0,
        };
        self.receiver.check_size(&head.headers, limit).map_err(|error| stranger(error.into()))?;
        self.receiver.check_stranger(sender).map_err(|error| stranger(error.into()))?;
        // A token is looked at before anything is read; a signature covers the body.
        let bearer = self.clients.by_token(&head.headers).map_err(stranger)?;
        let read = self.receiver.body(begun, &head.headers, body, limit).await;
        let (body, held) = read.map_err(|error| stranger(error.into()))?;
        let client = match bearer {
            Some(client) => client,
            None => self.clients.by_signature(&head, &body, self.receiver.clock.now()).map_err(stranger)?,
        };
        client.take().map_err(|error| Refused { client: Some(client), error })?;
        Ok(Visit { client, head, body, _held: held })
    }

    /// Counts and answers.
    fn answer(&self, answered: Result<(Option<&Client>, &'static str, Response), Refused<'_>>) -> Response {
        let (client, outcome, response) = match answered {
            Ok((client, outcome, response)) => (client, outcome, response),
            Err(Refused { client, error }) => {
                let outcome = error.as_str();
                self.tell(client, &error);
                (client, outcome, error.response())
            }
        };
        let client = client.map(|client| client.name.to_string()).unwrap_or_default();
        self.receiver.metrics.task_requests.get_or_create(&TaskLabels { client, outcome }).inc();
        response
    }

    /// Whoever asks decides how often these happen; the counters have them all.
    fn tell(&self, client: Option<&Client>, error: &TaskError) {
        let (name, now) = (client.map_or("", |client| client.name.as_str()), self.receiver.clock.now());
        match error {
            TaskError::NotStored(cause) => {
                if let Some(more) = self.said_503.pass(now) {
                    tracing::warn!(
                        client.name = name,
                        log.left_out = more,
                        "Answered 503 to a request about tasks, which can be made again: {cause}"
                    );
                }
            }
            TaskError::Unauthorized => {
                if let Some(more) = self.said_401.pass(now) {
                    tracing::info!(log.left_out = more, "Answered 401 to a request about tasks: {error}");
                }
            }
            other => {
                tracing::debug!(client.name = name, "Answered {} to a request about tasks: {other}", other.status());
            }
        }
    }

    /// The task of this id, if it is this client's. Another client's is told from none by nobody.
    async fn task(&self, client: &Client, task_id: &str) -> Result<Record, TaskError> {
        if !crate::event::name::is_token(task_id) {
            return Err(TaskError::NoTask);
        }
        let kept = self.receiver.broker.task(task_id).await?.ok_or(TaskError::NoTask)?;
        let record: Record = serde_json::from_slice(&kept.value).map_err(|_| TaskError::NoTask)?;
        if record.client != client.name.as_str() { Err(TaskError::NoTask) } else { Ok(record) }
    }

    /// Where a task can be asked for.
    fn status_url(&self, head: &Parts, task_id: &str) -> String {
        if let Some(url) = &self.public_url {
            return format!("{}/tasks/{task_id}", url.as_str().trim_end_matches('/'));
        }
        let host = head.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
        host.map_or_else(|| format!("/tasks/{task_id}"), |host| format!("http://{host}/tasks/{task_id}"))
    }

    /// Whether a callback could go to a URL, as far as that can be told now.
    async fn foresee(&self, client: &Client, url: &Url) -> Result<(), TaskError> {
        client.may_be_called_at(url)?;
        let blocked = |blocked: &dyn std::fmt::Display| TaskError::Invalid(format!("the callback URL: {blocked}"));
        self.guard.check_url(url).map_err(|error| blocked(&error))?;
        let host = url.host_str().unwrap_or_default();
        let now = self.receiver.clock.now();
        let known = self.foreseen().get(host).is_some_and(|at| now < *at + FORESEEN_FOR);
        if !known {
            self.guard.foresee(url, FORESEE_WITHIN).await.map_err(|error| blocked(&error))?;
            let mut foreseen = self.foreseen();
            if foreseen.len() >= FORESEEN {
                foreseen.clear();
            }
            foreseen.insert(host.to_owned(), now);
        }
        Ok(())
    }

    fn foreseen(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, SystemTime>> {
        self.foreseen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that was refused, and whose it was.
struct Refused<'a> {
    client: Option<&'a Client>,
    error: TaskError,
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let json = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (status, json, serde_json::to_vec(value).unwrap_or_default()).into_response()
}
