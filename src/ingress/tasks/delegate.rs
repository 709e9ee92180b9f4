//! `POST /agents/{agent}/tasks`

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, State};
use axum::response::Response;
use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::{Method, StatusCode};
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::super::answer::ReceiveError;
use super::client::Client;
use super::error::TaskError;
use super::{CONFIRM_WITHIN, Desk, Visit, json};
use crate::broker::{Outgoing, PublishError, Schedule, StoredMessage};
use crate::clock::rfc3339;
use crate::config::StreamKind;
use crate::event::cloud_event::CloudEvent;
use crate::event::{Name, id, trace};
use crate::listener::Peer;
use crate::task::{self, DEADLINE, Record, Request, Status, Step, TASK_ID};
use crate::telemetry::traces;

/// The type of a task as an event.
const TYPE: &str = "hookbridge.task";
/// The header of an offer that tells which request it is of.
const REQUEST: &str = "Hookbridge-Task-Request";
/// How often something is tried that may be there already.
const TRIES: usize = 5;
/// How far the clocks of gateway and server may be apart.
const CLOCKS: Duration = Duration::from_secs(30);

/// The task is taken.
#[derive(Serialize)]
struct Taken<'a> {
    task_id: &'a str,
    status: Status,
    status_url: String,
}

pub(super) async fn delegate(
    State(desk): State<Arc<Desk>>,
    agent: Result<Path<String>, PathRejection>,
    Extension(peer): Extension<Peer>,
    request: http::Request<Body>,
) -> Response {
    let agent = agent.map(|Path(agent)| agent).unwrap_or_default();
    let span = tracing::info_span!(
        target: traces::TARGET,
        "delegate task",
        otel.kind = "server",
        hookbridge.agent = tracing::field::Empty,
        hookbridge.task = tracing::field::Empty,
    );
    let (at, agent, span) = (&desk, &agent, &span);
    let take = |visit| at.take(visit, agent, span);
    desk.attend(peer, &[Method::POST], request, take).await
}

impl Desk {
    async fn take(
        &self,
        visit: Visit<'_>,
        agent: &str,
        span: &tracing::Span,
    ) -> Result<(&'static str, Response), TaskError> {
        let visit = &visit;
        let (client, now) = (visit.client, self.receiver.clock.now());
        let agent = self.agents.get(agent).ok_or(TaskError::NoAgent)?;
        if !client.agents.iter().any(|pattern| pattern.allows(agent.as_str())) {
            return Err(TaskError::NotAllowed(agent.to_string()));
        }
        let asked = match Request::read(&visit.body, self.defaults, now) {
            Ok(request) => match &request.callback {
                Some(callback) => self.foresee(client, &callback.url).await.map(|()| request),
                None => Ok(request),
            },
            Err(wrong) => Err(TaskError::Invalid(wrong)),
        };
        let written = match asked {
            Ok(request) => {
                let task_id = request.task_id.clone().unwrap_or_else(|| made_id(visit));
                let record = record(&task_id, agent, client, request, &visit.body, now);
                let offer = self.offer(visit, &record, span);
                if offer.wire_bytes() > self.receiver.broker.max_payload() {
                    let limit = self.max_body.min(self.receiver.room());
                    return Err(TaskError::Unread(ReceiveError::BodyTooLarge { limit }));
                }
                self.write_down(record).await?
            }
            // What could not be taken now may have been taken when it was first asked for.
            Err(error) => match self.taken_before(visit, agent).await? {
                Some(record) => Written::Before(record),
                None => return Err(error),
            },
        };
        let record = match written {
            Written::New(record) => record,
            // Whoever asked before may have got no answer, because there was none to give.
            Written::Before(record) if record.status == Status::Submitted => record,
            Written::Before(record) => return Ok(("repeated", self.taken(visit, &record))),
        };
        span.record("hookbridge.agent", agent.as_str());
        span.record("hookbridge.task", record.task_id.as_str());
        self.schedule_deadline(&record).await?;
        self.make_offer(&self.offer(visit, &record, span), &record).await?;
        Ok(("submitted", self.taken(visit, &record)))
    }

    /// The task that the very same request has led to before, if it has.
    async fn taken_before(&self, visit: &Visit<'_>, agent: &Name) -> Result<Option<Record>, TaskError> {
        let body = serde_json::from_slice::<Map<String, Value>>(&visit.body).unwrap_or_default();
        let named = body.get("task_id").and_then(Value::as_str).map(str::to_owned);
        let found = match self.task(visit.client, &named.unwrap_or_else(|| made_id(visit))).await {
            Ok(record) => record,
            Err(TaskError::NoTask) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(found).filter(|record| record.agent == agent.as_str() && record.request == digest(&visit.body)))
    }

    fn taken(&self, visit: &Visit<'_>, record: &Record) -> Response {
        let status_url = self.status_url(&visit.head, &record.task_id);
        json(StatusCode::ACCEPTED, &Taken { task_id: &record.task_id, status: record.status, status_url })
    }

    /// Writes a new task down, or finds it if the same was asked for before.
    async fn write_down(&self, record: Record) -> Result<Written, TaskError> {
        let (broker, task_id) = (&self.receiver.broker, &record.task_id);
        let value = Bytes::from(serde_json::to_vec(&record).unwrap_or_default());
        let mut revision = 0;
        for _ in 0..TRIES {
            match broker.write_task(task_id, value.clone(), revision, None).await {
                Ok(Some(_)) => return Ok(Written::New(record)),
                // A write that was not confirmed may have been made: then it is found, and it is the same.
                Ok(None) | Err(PublishError::Unconfirmed) => {}
                Err(PublishError::TooLarge) => {
                    return Err(TaskError::Invalid("the callback and `metadata` are too large together".to_owned()));
                }
                Err(error) => return Err(error.into()),
            }
            match broker.task_entry(task_id).await? {
                (Some(kept), _) => return same(&kept, record),
                // Only the sign is left that an earlier task of this id was forgotten.
                (None, left) => revision = left,
            }
        }
        Err(PublishError::Unconfirmed.into())
    }

    /// Lets the task fail at its deadline, whatever is running then.
    async fn schedule_deadline(&self, record: &Record) -> Result<(), TaskError> {
        let Some(deadline) = &record.deadline else { return Ok(()) };
        let Ok(due) = humantime::parse_rfc3339(deadline) else { return Ok(()) };
        let (agent, task_id) = (&record.agent, &record.task_id);
        let mut headers = crate::event::Headers::default();
        headers.push(TASK_ID, task_id.as_str());
        headers.push(DEADLINE, deadline.as_str());
        let (waits_on, target) = (task::deadline_waits_on(agent, task_id), task::deadline_due_on(agent, task_id));
        let mut schedule = Schedule { waits_on, target, due, headers, replaces: 0 };
        for _ in 0..TRIES {
            match self.receiver.broker.schedule(&schedule, CONFIRM_WITHIN).await {
                Ok(_) => return Ok(()),
                Err(PublishError::Occupied | PublishError::Unconfirmed) => {}
                Err(error) => return Err(error.into()),
            }
            match self.receiver.broker.last(StreamKind::Retry, &schedule.waits_on).await? {
                // It was scheduled when this was asked for before.
                Some(there) if there.headers.get(DEADLINE) == Some(deadline) => return Ok(()),
                // Of an earlier task of this id.
                Some(there) => schedule.replaces = there.sequence,
                None => schedule.replaces = 0,
            }
        }
        Err(PublishError::Unconfirmed.into())
    }

    /// The message that offers a task to its agent.
    fn offer(&self, visit: &Visit<'_>, record: &Record, span: &tracing::Span) -> Outgoing {
        let text = |name: &str| visit.head.headers.get(name).and_then(|value| value.to_str().ok());
        let trace = traces::continue_from(span, trace::Context::parse(text("traceparent"), text("tracestate")));
        let attributes = CloudEvent {
            id: &record.task_id,
            source: &format!("/agents/{}/tasks", record.agent),
            event_type: Some(TYPE),
            received: self.receiver.clock.now(),
            content_type: Some("application/json"),
        };
        let mut headers = attributes.headers(&trace);
        headers.push(TASK_ID, record.task_id.as_str());
        headers.push(REQUEST, record.request.as_str());
        let subject = task::offer_subject(&record.agent, &record.task_id);
        Outgoing { subject, headers, payload: visit.body.clone(), message_id: None }
    }

    /// Offers a task to its agent, once however often this is done: nobody else publishes on its subject.
    async fn make_offer(&self, offer: &Outgoing, record: &Record) -> Result<(), TaskError> {
        let broker = &self.receiver.broker;
        let mut last = 0;
        for _ in 0..TRIES {
            match broker.publish_after(offer, last, CONFIRM_WITHIN).await {
                Ok(true) => return Ok(()),
                Ok(false) | Err(PublishError::Unconfirmed) => {}
                Err(error) => return Err(error.into()),
            }
            let made = humantime::parse_rfc3339(&record.created_at).unwrap_or(SystemTime::UNIX_EPOCH);
            match broker.last(StreamKind::Tasks, &offer.subject).await? {
                // It was offered when this was asked for before.
                Some(there) if is_of(&there, record, made) => return Ok(()),
                // Of an earlier task of this id.
                Some(there) => last = there.sequence,
                None => last = 0,
            }
        }
        Err(PublishError::Unconfirmed.into())
    }
}

/// Whether an offer is that of this task, and not of an earlier one of the same id that asked for the same.
fn is_of(offer: &StoredMessage, record: &Record, made: SystemTime) -> bool {
    offer.headers.get(REQUEST) == Some(&record.request) && offer.stored + CLOCKS >= made
}

/// The task that has the id already, if it is the same one.
fn same(kept: &[u8], record: Record) -> Result<Written, TaskError> {
    let taken = || TaskError::Conflict(format!("task id `{}` is taken", record.task_id));
    let before: Record = serde_json::from_slice(kept).map_err(|_| taken())?;
    if before.client != record.client {
        return Err(taken());
    }
    if before.request != record.request || before.agent != record.agent {
        let task_id = &record.task_id;
        return Err(TaskError::Conflict(format!("task id `{task_id}` was used before, for another task")));
    }
    Ok(Written::Before(before))
}

fn digest(body: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(body))
}

enum Written {
    New(Record),
    Before(Record),
}

/// The id of a task whose body has none: the request's idempotency key, else a new one. A signed request may be sent
/// again by whoever sees it, but it brings an id of its own, which is the task's then.
fn made_id(visit: &Visit<'_>) -> String {
    let header = |name: &str| visit.head.headers.get(name).and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty());
    let signed = header("webhook-id").filter(|_| visit.client.signs());
    match signed.or_else(|| header("idempotency-key")) {
        Some(key) => id::message(key),
        None => format!("t_{:032x}", rand::random::<u128>()),
    }
}

fn record(task_id: &str, agent: &Name, client: &Client, request: Request, body: &[u8], now: SystemTime) -> Record {
    let (at, status) = (rfc3339(now), Status::Submitted);
    let first = Step { number: 0, status, at: at.clone(), sequence: 0, delivery: None };
    Record {
        task_id: task_id.to_owned(),
        agent: agent.to_string(),
        client: client.name.to_string(),
        status,
        created_at: at.clone(),
        updated_at: at,
        deadline: request.deadline.map(rfc3339),
        callback: request.callback,
        metadata: request.metadata,
        context_id: request.context_id,
        request: digest(body),
        sequence: 0,
        said: Map::new(),
        large: false,
        telling: None,
        history: vec![first],
    }
}
