//! `GET /tasks`, `GET /tasks/{id}` and `DELETE /tasks/{id}`

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, State};
use axum::response::Response;
use futures_util::future::try_join_all;
use http::{Method, Request, StatusCode};
use serde::Serialize;
use serde_json::{Map, Value};

use super::client::Client;
use super::error::TaskError;
use super::{CONFIRM_WITHIN, Desk, json};
use crate::broker::{Broker, Outgoing};
use crate::config::StreamKind;
use crate::event::headers::OUTBOX_SEQUENCE;
use crate::event::subject;
use crate::listener::Peer;
use crate::task::{self, Record, SHOWN, Status, Step, Update};

/// The most tasks of one answer.
const MOST: usize = 100;
/// How many there are without a `limit`.
const USUAL: usize = 50;
/// The most entries of the bucket that are read for one answer.
const SCANNED: usize = 500;
/// The most bytes of them.
const SCANNED_BYTES: usize = 4 * 1024 * 1024;
/// How long calling off waits for the courier.
const CALLED_OFF_WITHIN: Duration = Duration::from_secs(3);

/// A task as its client sees it.
#[derive(Serialize)]
pub(super) struct Shown<'a> {
    task_id: &'a str,
    agent: &'a str,
    status: Status,
    created_at: &'a str,
    updated_at: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    callback_url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a Value>,
    /// `progress`, `message`, `result` and `error`, as the agent said them last.
    #[serde(flatten)]
    said: &'a Map<String, Value>,
    /// Whether what the agent said last is too large to be shown here, or no longer kept.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    incomplete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<Vec<Moved<'a>>>,
}

/// A move of a task.
#[derive(Serialize)]
struct Moved<'a> {
    status: Status,
    at: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    callback: Option<CallbackState<'a>>,
}

/// How far the callback of a move is, as the receipts tell.
#[derive(Serialize)]
struct CallbackState<'a> {
    delivery: &'a str,
    /// `unknown` before anything was written down of it, and after that was forgotten.
    outcome: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_at: Option<String>,
}

impl<'a> Shown<'a> {
    pub(super) fn of(record: &'a Record) -> Self {
        Self {
            task_id: &record.task_id,
            agent: &record.agent,
            status: record.status,
            created_at: &record.created_at,
            updated_at: &record.updated_at,
            deadline: record.deadline.as_deref(),
            callback_url: record.callback.as_ref().map(|callback| callback.url.as_str()),
            metadata: record.metadata.as_ref(),
            said: &record.said,
            incomplete: record.large,
            history: None,
        }
    }
}

#[derive(Serialize)]
struct Page<'a> {
    tasks: Vec<Shown<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

pub(super) async fn one(
    State(desk): State<Arc<Desk>>,
    task_id: Result<Path<String>, PathRejection>,
    Extension(peer): Extension<Peer>,
    request: Request<Body>,
) -> Response {
    let task_id = task_id.map(|Path(task_id)| task_id).unwrap_or_default();
    let (at, task_id) = (&desk, &task_id);
    desk.attend(peer, &[Method::GET, Method::DELETE], request, |visit| async move {
        match visit.head.method {
            Method::DELETE => at.call_off(visit.client, task_id, &visit.body).await,
            _ => at.show(visit.client, task_id).await,
        }
    })
    .await
}

pub(super) async fn list(
    State(desk): State<Arc<Desk>>,
    Extension(peer): Extension<Peer>,
    request: Request<Body>,
) -> Response {
    let at = &desk;
    desk.attend(peer, &[Method::GET], request, |visit| async move {
        let listed = at.list(visit.client, visit.head.uri.query().unwrap_or_default()).await;
        listed.map(|response| ("listed", response))
    })
    .await
}

impl Desk {
    async fn show(&self, client: &Client, task_id: &str) -> Result<(&'static str, Response), TaskError> {
        let record = self.task(client, task_id).await?;
        Ok(("shown", self.whole(record).await?))
    }

    /// The answer with everything that there is to know of a task.
    async fn whole(&self, mut record: Record) -> Result<Response, TaskError> {
        let broker = &self.receiver.broker;
        if record.large
            && let Some(stored) = broker.message(StreamKind::Outbox, record.sequence).await?
            && let Ok(update) = Update::read(&record.task_id, &stored.payload)
        {
            record.said = update.body;
            record.said.retain(|name, _| SHOWN.contains(&name.as_str()));
            record.large = false;
        }
        let moves = record.history.iter().map(|step| moved(broker, &record.agent, step));
        let history = try_join_all(moves).await?;
        Ok(json(StatusCode::OK, &Shown { history: Some(history), ..Shown::of(&record) }))
    }

    async fn list(&self, client: &Client, query: &str) -> Result<Response, TaskError> {
        let mut wanted = Wanted::read(query).map_err(TaskError::Invalid)?;
        let _place = self.lists.try_acquire().map_err(|_| TaskError::TooMany("lists are asked for"))?;
        let (mut records, mut more, mut scanned) = (Vec::new(), true, 0);
        // Most lists want what comes first; only one that leaves out much looks at more.
        for page in [wanted.limit + 1, SCANNED] {
            let (found, rest) = self.receiver.broker.tasks_from(wanted.from, page, SCANNED_BYTES).await?;
            more = rest;
            scanned += found.len();
            for stored in &found {
                if records.len() == wanted.limit {
                    more = true;
                    break;
                }
                wanted.from = stored.sequence + 1;
                if !Broker::is_task(stored) {
                    continue;
                }
                let Ok(record) = serde_json::from_slice::<Record>(&stored.payload) else { continue };
                // What has moved since the page before comes again, as it is now.
                records.retain(|earlier: &Record| earlier.task_id != record.task_id);
                if record.client == client.name.as_str() && wanted.takes(&record) {
                    records.push(record);
                }
            }
            if !more || records.len() == wanted.limit || scanned >= SCANNED {
                break;
            }
        }
        let tasks = records.iter().map(Shown::of).collect();
        Ok(json(StatusCode::OK, &Page { tasks, next_cursor: more.then(|| wanted.from.to_string()) }))
    }

    /// Says in the agent's place that the task is canceled, and waits a moment for the courier to make it so.
    async fn call_off(
        &self,
        client: &Client,
        task_id: &str,
        body: &[u8],
    ) -> Result<(&'static str, Response), TaskError> {
        // A signature covers no path: whoever recorded one could send it to another task.
        let named = serde_json::from_slice::<Map<String, Value>>(body).unwrap_or_default();
        if client.signs() && named.get("cancel_task_id").is_none_or(|named| named != task_id) {
            let detail = "a signed DELETE needs a body that names the task: {\"cancel_task_id\":\"…\"}";
            return Err(TaskError::Invalid(detail.to_owned()));
        }
        let record = self.task(client, task_id).await?;
        match record.status {
            Status::Canceled => return Ok(("canceled", self.whole(record).await?)),
            status if status.is_terminal() => {
                return Err(TaskError::Conflict(format!("the task is {status}, which is final")));
            }
            _ => {}
        }
        let broker = &self.receiver.broker;
        let mut news = broker.listen(&task::state_subject(&record.agent, task_id)).await?;
        let (subject, headers) = task::own_update(&record.agent, task_id, "client");
        let body = serde_json::json!({
            "task_id": task_id, "status": Status::Canceled, "message": "canceled by the client",
        });
        let message_id = format!("cancel-{task_id}-{:032x}", rand::random::<u128>());
        let payload = body.to_string().into();
        broker.publish(&Outgoing { subject, headers, payload, message_id: Some(message_id) }, CONFIRM_WITHIN).await?;
        let ended = async {
            loop {
                let record = self.task(client, task_id).await?;
                if record.status.is_terminal() || news.next().await.is_none() {
                    return Ok::<_, TaskError>(record);
                }
            }
        };
        let record = match tokio::time::timeout(CALLED_OFF_WITHIN, ended).await {
            Ok(record) => record?,
            Err(_) => self.task(client, task_id).await?,
        };
        match record.status {
            Status::Canceled => Ok(("canceled", self.whole(record).await?)),
            status if status.is_terminal() => Err(TaskError::Conflict(format!("the task is {status}, which is final"))),
            // The stream has it; the courier is busy or away.
            _ => Ok(("canceling", json(StatusCode::ACCEPTED, &Shown::of(&record)))),
        }
    }
}

async fn moved<'a>(broker: &Broker, agent: &str, step: &'a Step) -> Result<Moved<'a>, TaskError> {
    let (status, at) = (step.status, step.at.as_str());
    let Some(delivery) = step.delivery.as_deref() else { return Ok(Moved { status, at, callback: None }) };
    let told = broker.last(StreamKind::Receipts, &subject::receipts_of(agent, delivery)).await?;
    // Ids can repeat, sequences cannot; a replay has another.
    let is_its = |told: &crate::broker::StoredMessage| {
        told.headers.get(OUTBOX_SEQUENCE).and_then(|about| about.parse::<u64>().ok()) >= Some(step.sequence)
    };
    let told = told.filter(is_its).and_then(|told| serde_json::from_slice::<Map<String, Value>>(&told.payload).ok());
    let told = told.unwrap_or_default();
    let text = |key: &str| told.get(key).and_then(Value::as_str).map(str::to_owned);
    let callback = CallbackState {
        delivery,
        outcome: text("outcome").unwrap_or_else(|| "unknown".to_owned()),
        attempt: told.get("attempt").and_then(Value::as_u64),
        reason: text("reason"),
        next_attempt_at: text("next_attempt_at"),
    };
    Ok(Moved { status, at, callback: Some(callback) })
}

/// What a list is to have in it.
#[derive(Debug, PartialEq)]
struct Wanted {
    agent: Option<String>,
    status: Vec<Status>,
    limit: usize,
    /// The place in the bucket to go on from.
    from: u64,
}

impl Wanted {
    fn read(query: &str) -> Result<Self, String> {
        let mut wanted = Self { agent: None, status: Vec::new(), limit: USUAL, from: 0 };
        let mut seen = HashMap::new();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            if seen.insert(name.clone().into_owned(), ()).is_some() {
                return Err(format!("`{}` occurs twice", subject::token(&name)));
            }
            match name.as_ref() {
                "agent" => wanted.agent = Some(value.into_owned()),
                "status" => wanted.status = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
                "limit" => match value.parse() {
                    Ok(limit) if (1..=MOST).contains(&limit) => wanted.limit = limit,
                    _ => return Err(format!("`limit` must be 1 to {MOST}")),
                },
                "cursor" => wanted.from = value.parse().map_err(|_| "`cursor` is none that was given out")?,
                other => {
                    let other = subject::token(other);
                    return Err(format!("unknown parameter `{other}`; there are agent, status, limit, cursor"));
                }
            }
        }
        Ok(wanted)
    }

    fn takes(&self, record: &Record) -> bool {
        self.agent.as_ref().is_none_or(|agent| *agent == record.agent)
            && (self.status.is_empty() || self.status.contains(&record.status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_what_a_list_has_in_it() {
        let wanted = Wanted::read("agent=planner&status=working,failed&limit=2&cursor=7").unwrap();
        assert_eq!(
            wanted,
            Wanted {
                agent: Some("planner".to_owned()),
                status: vec![Status::Working, Status::Failed],
                limit: 2,
                from: 7
            }
        );
        for (wrong, says) in [
            ("limit=0", "`limit` must be"),
            ("limit=101", "`limit` must be"),
            ("cursor=x", "none that was given out"),
            ("status=done", "must be one of"),
            ("stat=working", "unknown parameter `stat`"),
            ("limit=1&limit=2", "twice"),
        ] {
            assert!(Wanted::read(wrong).unwrap_err().contains(says), "{wrong}");
        }
    }
}
