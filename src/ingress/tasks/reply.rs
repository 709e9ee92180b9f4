//! `POST /callbacks/{agent}/{task_id}`: the reply to an agent that delegated over HTTP, as an event.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, State};
use axum::response::Response;
use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::request::Parts;
use http::{Method, Request, StatusCode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::super::answer::ReceiveError;
use super::error::TaskError;
use super::{CONFIRM_WITHIN, Desk, Refused, json};
use crate::broker::{Outgoing, PublishError};
use crate::event::cloud_event::CloudEvent;
use crate::event::{id, name, trace};
use crate::listener::Peer;
use crate::task::{GOOD_FOR, Tells};
use crate::telemetry::traces;

/// Where callers put a token that does not stand in the URL.
const TOKEN_HEADERS: [&str; 2] = ["x-a2a-notification-token", "a2a-notification-token"];

/// How often it is tried to use a token up while somebody else does.
const TRIES: usize = 5;

/// The stream has the reply.
#[derive(Serialize)]
struct Accepted<'a> {
    id: &'a str,
    duplicate: bool,
}

/// What is kept of a token that was used: by which reply.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Used {
    used_by: String,
    /// The hash of its body.
    body: String,
}

pub(super) async fn reply(
    State(desk): State<Arc<Desk>>,
    names: Result<Path<(String, String)>, PathRejection>,
    Extension(peer): Extension<Peer>,
    request: Request<Body>,
) -> Response {
    let (agent, task_id) = names.map(|Path(names)| names).unwrap_or_default();
    let sender = desk.receiver.sender(peer, request.headers());
    let taken = desk.take_reply(&agent, &task_id, sender, request).await;
    if let Err(error) = &taken
        && error.is_charged()
    {
        desk.receiver.charge(sender);
    }
    let answered = taken.map(|(duplicate, response)| (None, if duplicate { "duplicate" } else { "replied" }, response));
    desk.answer(answered.map_err(|error| Refused { client: None, error }))
}

impl Desk {
    async fn take_reply(
        &self,
        agent: &str,
        task_id: &str,
        sender: super::super::peer::Sender,
        request: Request<Body>,
    ) -> Result<(bool, Response), TaskError> {
        let begun = Instant::now();
        let (head, body) = request.into_parts();
        if head.method != Method::POST {
            return Err(TaskError::Method { allowed: vec![Method::POST] });
        }
        let limit = self.max_body.min(self.receiver.room());
        self.receiver.check_size(&head.headers, limit)?;
        self.receiver.check_stranger(sender)?;
        let is_named = name::is_token(agent) && name::is_token(task_id);
        let fits = |token: &String| self.replies.fits(agent, task_id, token, self.receiver.clock.now());
        let token = token(&head).filter(|token| is_named && fits(token)).ok_or(TaskError::Unauthorized)?;
        let (body, _held) = self.receiver.body(begun, &head.headers, body, limit).await?;
        let sent = head.headers.get("webhook-id").and_then(|id| id.to_str().ok()).and_then(id::provider);
        let reply = sent.unwrap_or_else(|| format!("sha256:{}", HEXLOWER.encode(&Sha256::digest(&body))));
        let tells = Tells::read(&body);
        let used = Used { used_by: reply.clone(), body: HEXLOWER.encode(&Sha256::digest(&body)) };
        let outgoing = event(agent, task_id, &reply, tells.as_str(), &head, body, self.receiver.clock.now());
        if outgoing.wire_bytes() > self.receiver.broker.max_payload() {
            return Err(TaskError::Unread(ReceiveError::BodyTooLarge { limit }));
        }
        // Each time that the agent asks under this id has a token, and a last reply, of its own.
        let given = token.split_once('-').map_or("", |(given, _)| given);
        self.use_token(&format!("reply.{agent}.{task_id}.{given}"), &used, tells.is_last()).await?;
        let stored = self.receiver.broker.publish(&outgoing, CONFIRM_WITHIN).await?;
        let accepted = Accepted { id: &reply, duplicate: stored.duplicate };
        Ok((stored.duplicate, json(StatusCode::ACCEPTED, &accepted)))
    }

    /// Uses the token up, where this is the last reply. One that was used up takes only the same reply again.
    async fn use_token(&self, key: &str, reply: &Used, is_last: bool) -> Result<(), TaskError> {
        let broker = &self.receiver.broker;
        for _ in 0..TRIES {
            let (used, revision) = broker.task_entry(key).await?;
            if let Some(used) = used {
                let used = serde_json::from_slice::<Used>(&used);
                return if used.is_ok_and(|used| used == *reply) { Ok(()) } else { Err(TaskError::Over) };
            }
            if !is_last {
                return Ok(());
            }
            let value = serde_json::to_vec(reply).unwrap_or_default().into();
            // Kept for longer than the token is good.
            match broker.write_task(key, value, revision, Some(GOOD_FOR * 2)).await {
                Ok(Some(_)) => return Ok(()),
                Ok(None) | Err(PublishError::Unconfirmed) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(PublishError::Unconfirmed.into())
    }
}

/// The token that a caller brings: in the URL, in one of A2A's headers, or as a bearer's.
fn token(head: &Parts) -> Option<String> {
    let mut pairs = url::form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes());
    let in_url = pairs.find(|(name, _)| name == "token").map(|(_, token)| token.into_owned());
    let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let in_header = || TOKEN_HEADERS.into_iter().find_map(text).map(str::to_owned);
    let bearer = || text(AUTHORIZATION.as_str())?.strip_prefix("Bearer ").map(|token| token.trim().to_owned());
    in_url.or_else(in_header).or_else(bearer)
}

/// `events.callbacks.<agent>.<task id>.<state>`
fn event(
    agent: &str,
    task_id: &str,
    reply: &str,
    word: &str,
    head: &Parts,
    payload: Bytes,
    now: std::time::SystemTime,
) -> Outgoing {
    let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let trace =
        traces::continue_from(&tracing::Span::none(), trace::Context::parse(text("traceparent"), text("tracestate")));
    let attributes = CloudEvent {
        id: reply,
        source: &format!("/callbacks/{agent}"),
        event_type: Some(&format!("callback.{word}")),
        received: now,
        content_type: text(CONTENT_TYPE.as_str()),
    };
    let mut headers = attributes.headers(&trace);
    headers.push("ce-subject", task_id);
    let message_id = Some(format!("callbacks:{agent}.{task_id}:{reply}"));
    Outgoing { subject: format!("events.callbacks.{agent}.{task_id}.{word}"), headers, payload, message_id }
}
