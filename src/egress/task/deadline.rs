//! Deadlines: a message schedule in RETRY for each, so that they pass whatever runs then.

use super::super::worker::{Answer, Worker};
use super::Found;
use crate::broker::{Outgoing, Received};
use crate::config::StreamKind;
use crate::task::{self, DEADLINE, Record, Status};

impl Worker {
    /// Deals with a deadline that has come: a task that has not ended by then has failed.
    ///
    /// It is said in OUTBOX, where it goes the way of every update.
    pub(crate) async fn deadline(&self, received: &Received, task_id: &str) -> Answer {
        let record = match self.find(task_id).await {
            Found::Task(record, _) => record,
            Found::None => return Answer::Ack,
            Found::Unreadable => return Answer::Terminate,
            Found::Unknown => return Answer::Again,
        };
        let due = received.headers.get(DEADLINE).unwrap_or_default();
        if received.subject != task::deadline_due_on(&record.agent, task_id) {
            return self.forged(received, "it is no deadline of any task");
        }
        if record.deadline.as_deref() != Some(due) {
            tracing::debug!("Left a deadline of task {task_id} that is none any more, {due}");
            return Answer::Ack;
        }
        // By the server's clock, which is the one that let it go.
        if humantime::parse_rfc3339(due).is_ok_and(|due| received.stored < due) {
            return self.forged(received, "its time has not come");
        }
        if record.status.is_terminal() {
            return Answer::Ack;
        }
        let message = format!("there was no result by the deadline, {due}");
        let error = serde_json::json!({"code": "deadline-exceeded", "message": message});
        let body = serde_json::json!({"task_id": task_id, "status": Status::Failed, "error": error});
        // Nobody can know this id before, and publish under it. A second one would find the task ended.
        let message_id = format!("deadline-{task_id}-{:032x}", rand::random::<u128>());
        let (subject, headers) = task::own_update(&record.agent, task_id, "deadline");
        let payload = body.to_string().into();
        let outgoing = Outgoing { subject, headers, payload, message_id: Some(message_id) };
        tracing::info!(task.id = task_id, agent.name = record.agent, "Task {task_id} has passed its deadline, {due}");
        match self.ledger.write(&outgoing).await {
            Ok(()) => Answer::Ack,
            Err(_) => Answer::Again,
        }
    }

    /// Takes off the deadline of a task that has ended: it may be a year away. Left behind, it changes nothing.
    pub(super) async fn forget_deadline(&self, record: &Record) {
        if !record.status.is_terminal() || record.deadline.is_none() {
            return;
        }
        let waits_on = task::deadline_waits_on(&record.agent, &record.task_id);
        if let Ok(Some(waiting)) = self.broker.last(StreamKind::Retry, &waits_on).await
            && waiting.headers.get(DEADLINE) == record.deadline.as_deref()
            && let Err(error) = self.broker.remove(StreamKind::Retry, waiting.sequence).await
        {
            tracing::debug!("The deadline of task {} stays until it is due: {error}", record.task_id);
        }
    }
}
