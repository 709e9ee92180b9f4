//! `POST /agents/{agent}/tasks`

use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, State};
use axum::response::Response;
use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::{Method, StatusCode};
use serde::Serialize;
use serde_json::Map;
use sha2::{Digest, Sha256};

use super::client::Client;
use super::error::TaskError;
use super::{CONFIRM_WITHIN, Desk, Refused, Visit, json};
use crate::broker::{Outgoing, PublishError, Schedule};
use crate::clock::rfc3339;
use crate::event::cloud_event::CloudEvent;
use crate::event::{Name, id, trace};
use crate::listener::Peer;
use crate::task::{self, DEADLINE, Record, Request, Status, Step, TASK_ID};
use crate::telemetry::traces;

/// The type of a task as an event.
const TYPE: &str = "hookbridge.task";

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
    let answered = match desk.admit(peer, &[Method::POST], request).await {
        Ok(visit) => {
            let taken = desk.take(&visit, &agent, &span).await.map_err(Refused::of(visit.client));
            taken.map(|(outcome, response)| (Some(visit.client), outcome, response))
        }
        Err(refused) => Err(refused),
    };
    desk.answer(answered)
}

impl Desk {
    async fn take(
        &self,
        visit: &Visit<'_>,
        agent: &str,
        span: &tracing::Span,
    ) -> Result<(&'static str, Response), TaskError> {
        let (client, now) = (visit.client, self.receiver.clock.now());
        let agent = self.agents.get(agent).ok_or(TaskError::NoAgent)?;
        if !client.agents.iter().any(|pattern| pattern.allows(agent.as_str())) {
            return Err(TaskError::NotAllowed(agent.to_string()));
        }
        let request = Request::read(&visit.body, self.defaults, now).map_err(TaskError::Invalid)?;
        let task_id = request.task_id.clone().unwrap_or_else(|| made_id(visit));
        span.record("hookbridge.agent", agent.as_str());
        span.record("hookbridge.task", task_id.as_str());
        if let Some(callback) = &request.callback {
            self.foresee(client, &callback.url).await?;
        }
        let record = record(&task_id, agent, client, request, &visit.body, now);
        let record = match self.write_down(record).await? {
            Written::New(record) => record,
            // Whoever asked before may have got no answer, because there was none to give.
            Written::Before(record) if record.status == Status::Submitted => record,
            Written::Before(record) => return Ok(("repeated", self.taken(visit, &record))),
        };
        self.schedule_deadline(&record).await?;
        self.offer(visit, agent, &record, span).await?;
        Ok(("submitted", self.taken(visit, &record)))
    }

    fn taken(&self, visit: &Visit<'_>, record: &Record) -> Response {
        let status_url = self.status_url(&visit.head, &record.task_id);
        json(StatusCode::ACCEPTED, &Taken { task_id: &record.task_id, status: record.status, status_url })
    }

    /// Writes a new task down, or finds it if the same was asked for before.
    async fn write_down(&self, record: Record) -> Result<Written, TaskError> {
        let (broker, task_id) = (&self.receiver.broker, &record.task_id);
        let value = Bytes::from(serde_json::to_vec(&record).unwrap_or_default());
        // A write that was not confirmed may have been made: then it is found, and it is the same.
        match broker.write_task(task_id, value, 0, None).await {
            Ok(Some(_)) => return Ok(Written::New(record)),
            Ok(None) | Err(PublishError::Unconfirmed) => {}
            Err(PublishError::TooLarge) => {
                return Err(TaskError::Invalid("the callback or `metadata` is too large".to_owned()));
            }
            Err(error) => return Err(error.into()),
        }
        let kept = broker.task(task_id).await?.ok_or(PublishError::Unconfirmed)?;
        let taken = || TaskError::Conflict(format!("task id `{task_id}` is taken"));
        let before: Record = serde_json::from_slice(&kept.value).map_err(|_| taken())?;
        if before.client != record.client {
            return Err(taken());
        }
        if before.request != record.request || before.agent != record.agent {
            return Err(TaskError::Conflict(format!("task id `{task_id}` was used before, for another task")));
        }
        Ok(Written::Before(before))
    }

    /// Lets the task fail at its deadline, whatever is running then.
    async fn schedule_deadline(&self, record: &Record) -> Result<(), TaskError> {
        let Some(deadline) = &record.deadline else { return Ok(()) };
        let Ok(due) = humantime::parse_rfc3339(deadline) else { return Ok(()) };
        let (token, task_id) = (task::deadline_token(&record.agent), &record.task_id);
        let mut headers = crate::event::Headers::default();
        headers.push(TASK_ID, task_id.as_str());
        headers.push(DEADLINE, deadline.as_str());
        let (waits_on, target) = (format!("retry.at.{token}.{task_id}"), format!("retry.due.{token}.{task_id}"));
        let schedule = Schedule { waits_on, target, due, headers, replaces: 0 };
        match self.receiver.broker.schedule(&schedule, CONFIRM_WITHIN).await {
            // It was scheduled when this was asked for before.
            Ok(_) | Err(PublishError::Occupied) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Offers the task to its agent, once however often this is done.
    async fn offer(
        &self,
        visit: &Visit<'_>,
        agent: &Name,
        record: &Record,
        span: &tracing::Span,
    ) -> Result<(), TaskError> {
        let text = |name: &str| visit.head.headers.get(name).and_then(|value| value.to_str().ok());
        let trace = traces::continue_from(span, trace::Context::parse(text("traceparent"), text("tracestate")));
        let attributes = CloudEvent {
            id: &record.task_id,
            source: &format!("/agents/{agent}/tasks"),
            event_type: Some(TYPE),
            received: self.receiver.clock.now(),
            content_type: Some("application/json"),
        };
        let mut headers = attributes.headers(&trace);
        headers.push(TASK_ID, record.task_id.as_str());
        let subject = task::offer_subject(agent.as_str(), &record.task_id);
        let outgoing = Outgoing { subject, headers, payload: visit.body.clone(), message_id: None };
        if outgoing.wire_bytes() > self.receiver.broker.max_payload() {
            return Err(TaskError::Invalid("the task is larger than the server's max_payload".to_owned()));
        }
        match self.receiver.broker.publish_first(&outgoing, CONFIRM_WITHIN).await {
            Ok(_) => Ok(()),
            // Nobody else publishes on this subject: if this was stored, the second try finds it.
            Err(PublishError::Unconfirmed) => {
                self.receiver.broker.publish_first(&outgoing, CONFIRM_WITHIN).await?;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

enum Written {
    New(Record),
    Before(Record),
}

/// The id of a task whose client has none for it. A signed request may be sent again by whoever sees it: it brings an
/// id of its own, which is the task's then.
fn made_id(visit: &Visit<'_>) -> String {
    let signed = visit.head.headers.get("webhook-id").filter(|_| visit.client.signs());
    match signed.and_then(|id| id.to_str().ok()) {
        Some(message_id) => id::message(message_id),
        None => format!("t_{:032x}", rand::random::<u128>()),
    }
}

fn record(task_id: &str, agent: &Name, client: &Client, request: Request, body: &[u8], now: SystemTime) -> Record {
    let (at, status) = (rfc3339(now), Status::Submitted);
    let first = Step { status, at: at.clone(), sequence: 0, delivery: None, by: String::new() };
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
        request: HEXLOWER.encode(&Sha256::digest(body)),
        sequence: 0,
        said: Map::new(),
        large: false,
        history: vec![first],
    }
}
