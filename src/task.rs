//! Tasks: work that an HTTP client delegates to an agent, and whose outcome comes back as a callback.
//!
//! Pure: what a client asks for ([`request`]), the states and their legal moves ([`status`]), and what is written down
//! of a task ([`record`]). The gateway makes records, the courier alone changes them.

pub(crate) mod a2a;
mod object;
mod record;
mod reply;
mod request;
mod status;
mod update;

pub(crate) use record::{Applied, Cause, Record, SHOWN, Step, Telling};
pub(crate) use reply::{GOOD_FOR, Replies, Tells};
pub(crate) use request::{Defaults, Request};
pub(crate) use status::Status;
pub(crate) use update::{Update, callback_body};

use crate::event::Headers;

/// The header that names the task of a message.
pub(crate) const TASK_ID: &str = "Hookbridge-Task-Id";

/// The header of what Hookbridge itself says of a task in the agent's place: `client` or `deadline`.
pub(crate) const CAUSE: &str = "Hookbridge-Task-Cause";
/// The header of a deadline that waits in RETRY: its time.
pub(crate) const DEADLINE: &str = "Hookbridge-Task-Deadline";

/// Where Hookbridge itself says something of a task in the agent's place, and with which headers.
pub(crate) fn own_update(agent: &str, task_id: &str, cause: &'static str) -> (String, Headers) {
    let mut headers = Headers::default();
    headers.push(TASK_ID, task_id);
    headers.push(CAUSE, cause);
    headers.push("content-type", "application/json");
    (format!("outbox.{agent}"), headers)
}

/// The subject on which the agent is offered a task.
pub(crate) fn offer_subject(agent: &str, task_id: &str) -> String {
    format!("tasks.{agent}.{task_id}")
}

/// The subject on which the agent is told that a task was canceled.
pub(crate) fn cancel_subject(agent: &str, task_id: &str) -> String {
    format!("tasks.{agent}.{task_id}.cancel")
}

/// The subject on which each move of a task is told.
pub(crate) fn state_subject(agent: &str, task_id: &str) -> String {
    format!("tasks.{agent}.{task_id}.state")
}

/// The destination token that an agent's deadlines share in RETRY.
pub(crate) fn deadline_token(agent: &str) -> String {
    format!("t_{agent}")
}

/// The subject of RETRY on which the deadline of a task waits.
pub(crate) fn deadline_waits_on(agent: &str, task_id: &str) -> String {
    format!("retry.at.{}.{task_id}", deadline_token(agent))
}

/// The subject of RETRY on which the deadline of a task is due.
pub(crate) fn deadline_due_on(agent: &str, task_id: &str) -> String {
    format!("retry.due.{}.{task_id}", deadline_token(agent))
}
