//! What NATS hears of a task's moves.

use serde::Serialize;

use super::super::intake::Original;
use super::super::worker::Worker;
use crate::broker::Outgoing;
use crate::event::headers::Headers;
use crate::task::{self, CAUSE, Record, Status};

/// What agents and orchestrators hear of a move, on `tasks.<agent>.<task id>.state`.
#[derive(Serialize)]
struct Told<'a> {
    task_id: &'a str,
    agent: &'a str,
    status: Status,
    at: &'a str,
    /// The outbox message that caused it.
    sequence: u64,
}

/// What the agent hears of a task that it need not finish, on `tasks.<agent>.<task id>.cancel`.
#[derive(Serialize)]
struct CalledOff<'a> {
    task_id: &'a str,
    status: Status,
    /// `client` or `deadline`.
    cause: &'a str,
}

impl Worker {
    /// Tells everybody on NATS of a move. Said again within two minutes, the stream knows it by its id.
    pub(super) async fn tell_move(&self, record: &Record, sequence: u64, original: &Original) {
        let Some(step) = record.step(sequence) else { return };
        let Record { task_id, agent, .. } = record;
        let told = Told { task_id, agent, status: step.status, at: &step.at, sequence };
        self.tell_on_tasks(task::state_subject(agent, task_id), format!("{task_id}:{sequence}:state"), &told).await;
        let cause = original.headers.get(CAUSE).filter(|cause| ["client", "deadline"].contains(cause));
        if let Some(cause) = cause.filter(|_| step.status.is_terminal()) {
            let called_off = CalledOff { task_id, status: step.status, cause };
            let message_id = format!("{task_id}:{sequence}:cancel");
            self.tell_on_tasks(task::cancel_subject(agent, task_id), message_id, &called_off).await;
        }
    }

    async fn tell_on_tasks(&self, subject: String, message_id: String, said: &impl Serialize) {
        let mut headers = Headers::default();
        headers.push("content-type", "application/json");
        let payload = serde_json::to_vec(said).unwrap_or_default().into();
        self.ledger.news(&Outgoing { subject, headers, payload, message_id: Some(message_id) }).await;
    }
}
