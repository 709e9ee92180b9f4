//! The body of a push notification.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Map, Value};

use super::said;
use crate::clock::rfc3339;

/// How deeply lists and objects may be nested in what an agent says. Readers of protobuf's JSON give up after a
/// hundred messages within each other, every level is two of them, and the places where they stand are up to six.
pub(super) const MAX_NESTING: usize = 40;

/// The last second that a protobuf timestamp can say, 9999-12-31T23:59:59Z.
pub(super) const LAST_SECOND: Duration = Duration::from_secs(253_402_300_799);

/// What became of a task, in the words of the agent.
#[derive(Clone, Copy)]
pub(crate) struct Update<'a> {
    pub(crate) task_id: &'a str,
    /// `submitted`, `working`, `input-required`, `auth-required`, `completed`, `failed`, `canceled` or `rejected`.
    pub(crate) status: &'a str,
    pub(crate) at: SystemTime,
    pub(crate) message_id: &'a str,
    /// What the agent published: `progress`, `message`, `result`, `error`, and whatever else it has to say.
    pub(crate) body: &'a Map<String, Value>,
    pub(crate) context_id: Option<&'a str>,
}

/// The body of a push notification: a status update, or the whole task when it is completed with a result.
pub(crate) fn body(update: &Update<'_>) -> Vec<u8> {
    let (id, context_id, metadata) = (update.task_id, update.context_id(), update.metadata());
    let status = Status { state: state(update.status), message: update.message(), timestamp: timestamp(update.at) };
    let notification = match update.result() {
        None => Notification::StatusUpdate(StatusUpdate { task_id: id, context_id, status, metadata }),
        Some(result) => {
            let artifacts = [Artifact { artifact_id: "result", parts: [Part::of(result)] }];
            Notification::Task(Task { id, context_id, status, artifacts, metadata })
        }
    };
    serde_json::to_vec(&notification).expect("every key is a text, and JSON has no other numbers")
}

/// A2A's `StreamResponse`. An enum, so that a body has one key whatever happens.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Notification<'a> {
    StatusUpdate(StatusUpdate<'a>),
    Task(Task<'a>),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusUpdate<'a> {
    task_id: &'a str,
    context_id: &'a str,
    status: Status<'a>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<&'a str, Cow<'a, Value>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Task<'a> {
    id: &'a str,
    context_id: &'a str,
    status: Status<'a>,
    artifacts: [Artifact<'a>; 1],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<&'a str, Cow<'a, Value>>,
}

#[derive(Serialize)]
struct Status<'a> {
    state: &'static str,
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Message<'a> {
    message_id: &'a str,
    role: &'static str,
    task_id: &'a str,
    context_id: &'a str,
    parts: [Part<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Artifact<'a> {
    artifact_id: &'static str,
    parts: [Part<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Part<'a> {
    Text(Cow<'a, str>),
    Data(&'a Value),
}

impl<'a> Update<'a> {
    /// A2A wants a context for every task; one without is a context of its own.
    fn context_id(&self) -> &'a str {
        self.context_id.filter(|id| !id.is_empty()).unwrap_or(self.task_id)
    }

    /// What the task was for, once it is done.
    fn result(&self) -> Option<&'a Value> {
        said(self.body, "result").filter(|_| self.status == "completed")
    }

    fn message(&self) -> Option<Message<'a>> {
        let text = said(self.body, "message").filter(|message| !is_empty(message)).or_else(|| self.error())?;
        let (message_id, task_id, context_id) = (self.message_id, self.task_id, self.context_id());
        Some(Message { message_id, role: "ROLE_AGENT", task_id, context_id, parts: [Part::of(text)] })
    }

    /// What an error says of itself in words, else all of it.
    fn error(&self) -> Option<&'a Value> {
        let error = said(self.body, "error").filter(|error| !is_empty(error))?;
        let words = error.get("message").filter(|message| message.is_string() && !is_empty(message));
        Some(words.unwrap_or(error))
    }

    /// Everything that the agent said and that stands nowhere else.
    fn metadata(&self) -> BTreeMap<&'a str, Cow<'a, Value>> {
        let elsewhere = |key: &str, value: &Value| match key {
            "message" => true,
            "error" => value.is_null(),
            "result" => value.is_null() || self.result().is_some(),
            "task_id" => value == self.task_id,
            "status" => value == self.status,
            _ => false,
        };
        let rest = self.body.iter().filter(|(key, value)| !elsewhere(key, value));
        rest.map(|(key, value)| (key.as_str(), shallow(value))).collect()
    }
}

impl<'a> Part<'a> {
    fn of(value: &'a Value) -> Self {
        match value {
            Value::String(text) => Self::Text(Cow::Borrowed(text)),
            value if is_deeper(value, MAX_NESTING) => Self::Text(Cow::Owned(value.to_string())),
            value => Self::Data(value),
        }
    }
}

/// A value that every reader can read: one that is too deep is told as the text of its JSON.
fn shallow(value: &Value) -> Cow<'_, Value> {
    if is_deeper(value, MAX_NESTING) { Cow::Owned(value.to_string().into()) } else { Cow::Borrowed(value) }
}

pub(super) fn is_deeper(value: &Value, levels: usize) -> bool {
    let deeper = |inner: &Value| is_deeper(inner, levels - 1);
    match value {
        Value::Array(items) => levels == 0 || items.iter().any(deeper),
        Value::Object(members) => levels == 0 || members.values().any(deeper),
        _ => false,
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_str().is_some_and(str::is_empty)
}

fn state(status: &str) -> &'static str {
    match status {
        "submitted" => "TASK_STATE_SUBMITTED",
        "working" => "TASK_STATE_WORKING",
        "input-required" => "TASK_STATE_INPUT_REQUIRED",
        "auth-required" => "TASK_STATE_AUTH_REQUIRED",
        "completed" => "TASK_STATE_COMPLETED",
        "failed" => "TASK_STATE_FAILED",
        "canceled" => "TASK_STATE_CANCELED",
        "rejected" => "TASK_STATE_REJECTED",
        _ => "TASK_STATE_UNSPECIFIED",
    }
}

pub(super) fn timestamp(at: SystemTime) -> String {
    rfc3339(at.clamp(UNIX_EPOCH, UNIX_EPOCH + LAST_SECOND))
}
