//! Deliveries and deadlines that RETRY has lost: it was purged, truncated or deleted.
//!
//! Waiting belongs to RETRY alone, but the receipts tell what has to wait there, and the records of tasks which
//! deadlines. What should wait and does not is rescheduled, or, where OUTBOX has lost the message too, becomes a
//! dead letter. It causes no second delivery. A delivery counts as lost only if, in this order, every durable of
//! OUTBOX that may hold its message has acked it, RETRY's leader has no message for it, and RECEIPTS' leader has no
//! final receipt: every step of a delivery writes the next of these before it removes the previous one. What several
//! couriers and the command line find at the same time has the same message id, so RETRY stores it once.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use serde::Deserialize;
use url::Url;

use super::dead_letter::DeadLetter;
use super::line;
use super::outbox_message::OutboxMessage;
use super::pointer::{Pointer, Why};
use super::reason::{Reason, Refusal};
use super::receipt::{self, Status};
use super::replay::is_outbox_of;
use super::untold::Untold;
use crate::broker::{Floors, Outgoing, PublishError, ReadError, Schedule, StoredMessage, Visitor};
use crate::config::StreamKind;
use crate::event::headers::Headers;
use crate::event::{Name, id, subject};
use crate::task::{self, DEADLINE, Record, TASK_ID};

/// The receipts of everything that waits, or waited once.
const RETRYING: &str = "receipts.*.retrying.*";
/// How many receipts or tasks are read at once.
const PAGE: usize = 500;
/// How many deliveries are checked concurrently.
const CONCURRENCY: usize = 16;
/// The most messages of RETRY that one delivery can have: more is nothing that Hookbridge writes.
const MOST_OF_ONE: usize = 16;
/// How long one confirmation may take.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);
/// Deliveries due within this time are rescheduled as due now.
const DUE_NOW_WITHIN: Duration = Duration::from_secs(1);

/// Something that was lost, and what has been done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Repaired {
    /// The delivery waits again, until then.
    Rescheduled { agent: String, delivery_id: String, attempt: u32, due: SystemTime },
    /// Its message is gone from OUTBOX too: there is a dead letter.
    Dead { agent: String, delivery_id: String },
    /// The task's deadline waits again.
    Deadline { agent: String, task_id: String, due: SystemTime },
}

impl Repaired {
    /// The word in metrics and on the command line.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Rescheduled { .. } => "rescheduled",
            Self::Dead { .. } => "dead",
            Self::Deadline { .. } => "deadline",
        }
    }
}

/// A check for what is missing from RETRY.
#[derive(Clone, Copy)]
pub(crate) struct Repair<'a> {
    pub(crate) visitor: &'a Visitor,
    pub(crate) now: SystemTime,
    /// Only what should have come so long ago; without it, also what is to come later.
    pub(crate) overdue: Option<Duration>,
    /// Change nothing, only find.
    pub(crate) dry_run: bool,
    /// What this process knows to have ended without a receipt.
    pub(crate) untold: Option<&'a Untold>,
}

/// One page that was looked at.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) repaired: Vec<Repaired>,
    /// Where to go on; none at the end.
    pub(crate) next: Option<u64>,
}

/// A delivery that waits, by its receipt.
#[derive(Clone, Debug)]
struct Waiting {
    agent: String,
    message_id: String,
    delivery_id: String,
    destination: String,
    about: OutboxMessage,
    /// The attempt that comes next.
    attempt: u32,
    held: Option<Why>,
    due: Option<SystemTime>,
    /// The receipt's place in RECEIPTS, and when it was written.
    receipt: u64,
    told: SystemTime,
}

#[derive(Deserialize)]
struct Body {
    message: String,
    destination: Option<String>,
    attempt: u32,
    next_attempt_at: Option<String>,
    reason: Option<String>,
}

impl Waiting {
    /// Reads a receipt. None for one that Hookbridge would not write.
    fn read(receipt: &StoredMessage) -> Option<Self> {
        let mut tokens = receipt.subject.split('.').skip(1);
        let (agent, _, delivery_id) = (tokens.next()?, tokens.next()?, tokens.next()?);
        let body: Body = serde_json::from_slice(&receipt.payload).ok()?;
        Some(Self {
            agent: agent.to_owned(),
            message_id: body.message,
            delivery_id: delivery_id.to_owned(),
            destination: body.destination.filter(|destination| !destination.is_empty())?,
            about: OutboxMessage::read(&receipt.headers)?,
            attempt: body.attempt.checked_add(1)?,
            held: body.reason.as_deref().and_then(Why::read),
            due: body.next_attempt_at.and_then(|due| humantime::parse_rfc3339(&due).ok()),
            receipt: receipt.sequence,
            told: receipt.stored,
        })
    }

    /// The subject token of its destination, and its line if it is an endpoint.
    fn token(&self) -> Option<(String, Option<String>)> {
        if self.destination.contains("://") {
            return self.destination.parse::<Url>().ok().map(|url| (id::callback_token(&url), None));
        }
        let name = self.destination.parse::<Name>().ok()?;
        Some((id::endpoint_token(&name), Some(line::durable(&name))))
    }

    fn pointer(&self, token: &str, body_bytes: usize, stored: Option<SystemTime>) -> Pointer {
        Pointer {
            sequence: self.about.sequence,
            stored,
            agent: self.agent.clone(),
            message_id: self.message_id.clone(),
            delivery_id: self.delivery_id.clone(),
            destination: self.destination.clone(),
            token: token.to_owned(),
            attempt: self.attempt,
            held: self.held,
            body_bytes,
        }
    }

    /// Whether it cannot have ended before RECEIPTS lost something of its end: it was told of later, or its time came
    /// later. What waits for another reason than a failed attempt may come before its time.
    fn is_known(&self, intact_since: SystemTime) -> bool {
        self.told > intact_since || self.held.is_none() && self.due.is_some_and(|due| due > intact_since)
    }

    /// Whether this is the message that it is about.
    fn is_of(&self, found: &StoredMessage) -> bool {
        let same = self.about.is(&OutboxMessage::new(found.sequence, found.stored));
        same && found.stored <= self.told && is_outbox_of(&self.agent, &found.subject)
    }
}

impl Repair<'_> {
    /// Looks at a page of the receipts of deliveries that wait, from a place in RECEIPTS on.
    pub(crate) async fn deliveries(&self, from: u64) -> anyhow::Result<Page> {
        let receipts = self.visitor.page_from(StreamKind::Receipts, RETRYING, from, PAGE).await?;
        let next = (receipts.len() == PAGE).then(|| receipts.last().map_or(from, |last| last.sequence) + 1);
        // Of each delivery only the last receipt counts.
        let mut waiting = HashMap::new();
        for found in receipts.iter().filter_map(Waiting::read).filter(|waiting| self.is_due(waiting)) {
            waiting.insert((found.agent.clone(), found.delivery_id.clone(), found.about.sequence), found);
        }
        // Before RETRY is asked: what is acked here was written down there first.
        let lines: HashSet<String> = waiting.values().filter_map(|waiting| waiting.token()?.1).collect();
        let floors = self.visitor.floors(lines).await?;
        let waiting: Vec<Waiting> = waiting.into_values().collect();
        let mut repaired = Vec::new();
        for chunk in waiting.chunks(CONCURRENCY) {
            let looks: Vec<_> = chunk.iter().map(|waiting| self.is_lost(waiting, &floors)).collect();
            let mut lost = Vec::new();
            for (waiting, looked) in chunk.iter().zip(join_all(looks).await) {
                lost.extend(looked?.then_some(waiting));
            }
            if lost.is_empty() {
                continue;
            }
            // After the receipts were read: they are believed only if they were all there then.
            let intact_since = self.visitor.intact_since(StreamKind::Receipts).await?;
            let lost = lost.into_iter().filter(|waiting| waiting.is_known(intact_since));
            let repairs: Vec<_> = lost.map(|waiting| self.delivery(waiting)).collect();
            for found in join_all(repairs).await {
                repaired.extend(found?);
            }
        }
        Ok(Page { repaired, next })
    }

    fn is_due(&self, waiting: &Waiting) -> bool {
        let Some(overdue) = self.overdue else { return true };
        waiting.due.unwrap_or(waiting.told) + overdue <= self.now
    }

    /// Whether a delivery that should wait is nowhere, as far as the receipts tell.
    async fn is_lost(&self, waiting: &Waiting, floors: &Floors) -> anyhow::Result<bool> {
        let Waiting { agent, delivery_id, about, .. } = waiting;
        let Some((token, line)) = waiting.token() else { return Ok(false) };
        let of_line = line.and_then(|line| floors.of(&line)).unwrap_or(u64::MAX);
        if about.sequence > floors.courier().min(of_line) || self.has_ended_untold(*about, delivery_id) {
            return Ok(false);
        }
        // Most have ended long ago, and this tells so at once.
        let last = self.visitor.last_on(StreamKind::Receipts, &subject::receipts_of(agent, delivery_id)).await?;
        if last.is_some_and(|last| receipt::state(&last, *about).is_some_and(|word| word.is_over)) {
            return Ok(false);
        }
        Ok(!self.is_in_retry(&token, delivery_id, *about).await? && !self.has_moved_on(waiting).await?)
    }

    /// Whether this process has ended it, and could not write so.
    pub(super) fn has_ended_untold(&self, about: OutboxMessage, delivery_id: &str) -> bool {
        self.untold.is_some_and(|untold| untold.has(about, delivery_id))
    }

    /// Repairs a delivery that is lost.
    async fn delivery(&self, waiting: &Waiting) -> anyhow::Result<Option<Repaired>> {
        let Waiting { about, .. } = waiting;
        let Some((token, _)) = waiting.token() else { return Ok(None) };
        let message = self.visitor.message_at(StreamKind::Outbox, about.sequence).await?;
        match message.filter(|found| waiting.is_of(found)) {
            Some(found) => {
                let pointer = waiting.pointer(&token, found.payload.len(), Some(found.stored));
                self.reschedule(&pointer, waiting.due).await
            }
            None => self.bury(waiting).await,
        }
    }

    /// Whether anything of a delivery of this message waits in RETRY, or is due there or in a courier's hand.
    pub(super) async fn is_in_retry(
        &self,
        token: &str,
        delivery_id: &str,
        about: OutboxMessage,
    ) -> Result<bool, ReadError> {
        for place in [delivery_id.to_owned(), format!("{delivery_id}.{}", about.sequence)] {
            let subject = format!("retry.*.{token}.{place}");
            let found = self.visitor.page_from(StreamKind::Retry, &subject, 1, MOST_OF_ONE).await?;
            let is_it = |found: &StoredMessage| OutboxMessage::read(&found.headers).is_some_and(|it| it.is(&about));
            if found.len() == MOST_OF_ONE || found.iter().any(is_it) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether receipts tell of its end, or a later one of its waiting, which is looked at in its own turn.
    async fn has_moved_on(&self, waiting: &Waiting) -> anyhow::Result<bool> {
        for status in Status::TERMINAL.into_iter().chain([Status::Retrying]) {
            let subject = receipt::subject(&waiting.agent, status, &waiting.delivery_id);
            let Some(last) = self.visitor.last_on(StreamKind::Receipts, &subject).await? else { continue };
            let is_about = receipt::attempt_of(&last, waiting.about).is_some();
            if is_about && (status != Status::Retrying || last.sequence > waiting.receipt) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Lets a delivery wait again, or come at once where its time has come.
    pub(super) async fn reschedule(
        &self,
        pointer: &Pointer,
        due: Option<SystemTime>,
    ) -> anyhow::Result<Option<Repaired>> {
        let later = due.filter(|due| *due > self.now + DUE_NOW_WITHIN);
        let (agent, delivery_id, attempt) = (pointer.agent.clone(), pointer.delivery_id.clone(), pointer.attempt);
        let repaired = Repaired::Rescheduled { agent, delivery_id, attempt, due: later.unwrap_or(self.now) };
        if self.dry_run {
            return Ok(Some(repaired));
        }
        let message_id = format!("repair:{}:{}:{attempt}", pointer.about().key(), pointer.delivery_id);
        let Some(due) = later else {
            let outgoing = Outgoing {
                subject: pointer.due_on(&pointer.delivery_id),
                headers: pointer.headers(),
                message_id: Some(message_id),
                ..Outgoing::default()
            };
            let stored = self.visitor.store(StreamKind::Retry, &outgoing, CONFIRM_WITHIN).await?;
            return Ok((!stored.duplicate).then_some(repaired));
        };
        for place in pointer.places() {
            match self.visitor.schedule(&pointer.schedule(&place, due, 0), &message_id, CONFIRM_WITHIN).await {
                Ok(stored) => return Ok((!stored.duplicate).then_some(repaired)),
                Err(PublishError::Occupied) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Ends a delivery whose message OUTBOX has lost, too.
    async fn bury(&self, waiting: &Waiting) -> anyhow::Result<Option<Repaired>> {
        let (agent, delivery_id) = (waiting.agent.clone(), waiting.delivery_id.clone());
        let repaired = Some(Repaired::Dead { agent, delivery_id });
        if self.dry_run {
            return Ok(repaired);
        }
        let detail = "RETRY has lost the waiting delivery, and OUTBOX no longer has its message";
        let refusal = Refusal::new(Reason::Expired, detail);
        let letter = DeadLetter {
            agent: &waiting.agent,
            message_id: &waiting.message_id,
            delivery_id: &waiting.delivery_id,
            destination: &waiting.destination,
            attempt: waiting.attempt - 1,
            refusal: &refusal,
            original: None,
            about: waiting.about,
        };
        let stored = self.visitor.store(StreamKind::Dead, &letter.message(0), CONFIRM_WITHIN).await?;
        let receipt = letter.receipt(self.now).message(None, self.visitor.server().max_payload);
        self.visitor.store(StreamKind::Receipts, &receipt, CONFIRM_WITHIN).await?;
        Ok(repaired.filter(|_| !stored.duplicate))
    }

    /// Looks at a page of the tasks, from a place in their bucket on.
    pub(crate) async fn deadlines(&self, from: u64) -> anyhow::Result<Page> {
        let tasks = self.visitor.tasks_page(from, PAGE).await?;
        let next = (tasks.len() == PAGE).then(|| tasks.last().map_or(from, |last| last.sequence) + 1);
        let open = tasks.iter().filter_map(open_deadline).filter(|(_, due)| self.is_expected(*due));
        let open: Vec<_> = open.collect();
        let mut repaired = Vec::new();
        for chunk in open.chunks(CONCURRENCY) {
            let looks: Vec<_> = chunk.iter().map(|(record, due)| self.deadline(record, *due)).collect();
            for found in join_all(looks).await {
                repaired.extend(found?);
            }
        }
        Ok(Page { repaired, next })
    }

    /// One that has passed a moment ago may be on its way.
    fn is_expected(&self, due: SystemTime) -> bool {
        due > self.now || due + self.overdue.unwrap_or_default() <= self.now
    }

    async fn deadline(&self, record: &Record, due: SystemTime) -> anyhow::Result<Option<Repaired>> {
        let Record { agent, task_id, .. } = record;
        let deadline = record.deadline.as_deref();
        let waiting = format!("retry.*.{}.{task_id}", task::deadline_token(agent));
        let found = self.visitor.page_from(StreamKind::Retry, &waiting, 1, MOST_OF_ONE).await?;
        if found.len() == MOST_OF_ONE || found.iter().any(|found| found.headers.get(DEADLINE) == deadline) {
            return Ok(None);
        }
        // It may have ended meanwhile, and taken its deadline with it.
        let now = self.visitor.task_value(task_id).await?;
        if now.as_ref().and_then(open_deadline).is_none_or(|(now, _)| now.deadline != record.deadline) {
            return Ok(None);
        }
        let repaired = Some(Repaired::Deadline { agent: agent.clone(), task_id: task_id.clone(), due });
        if self.dry_run {
            return Ok(repaired);
        }
        let mut headers = Headers::default();
        headers.push(TASK_ID, task_id.as_str());
        headers.push(DEADLINE, deadline.unwrap_or_default());
        let (waits_on, target) = (task::deadline_waits_on(agent, task_id), task::deadline_due_on(agent, task_id));
        let schedule = Schedule { waits_on, target, due, headers, replaces: 0 };
        let message_id = format!("repair:deadline:{task_id}:{}", deadline.unwrap_or_default());
        match self.visitor.schedule(&schedule, &message_id, CONFIRM_WITHIN).await {
            Ok(stored) => Ok(repaired.filter(|_| !stored.duplicate)),
            Err(PublishError::Occupied) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The record of a task that has not ended and has a deadline, and when that is.
fn open_deadline(value: &StoredMessage) -> Option<(Record, SystemTime)> {
    let record: Record = serde_json::from_slice(&value.payload).ok()?;
    let due = humantime::parse_rfc3339(record.deadline.as_deref()?).ok()?;
    (!record.status.is_terminal()).then_some((record, due))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(subject: &str, body: &str) -> StoredMessage {
        let mut headers = Headers::default();
        OutboxMessage::at(7).write(&mut headers);
        let (subject, payload) = (subject.to_owned(), body.to_owned().into());
        StoredMessage { subject, sequence: 3, stored: SystemTime::UNIX_EPOCH, headers, payload }
    }

    #[test]
    fn what_waits_is_read_from_its_receipt() {
        let body = r#"{"message":"m","destination":"crm","attempt":2,"next_attempt_at":"2026-01-01T00:00:00.000Z"}"#;
        let waiting = Waiting::read(&receipt("receipts.a.retrying.m-X", body)).unwrap();
        assert_eq!((waiting.agent.as_str(), waiting.delivery_id.as_str(), waiting.attempt), ("a", "m-X", 3));
        assert_eq!(waiting.token(), Some(("e_crm".to_owned(), Some("ordered_crm".to_owned()))));
        let pointer = waiting.pointer("e_crm", 1, None);
        assert_eq!(Pointer::read(&pointer.headers()), Some(pointer));
        let held = r#"{"message":"m","destination":"https://a.example/x","attempt":0,"reason":"paused"}"#;
        let waiting = Waiting::read(&receipt("receipts.a.retrying.m", held)).unwrap();
        assert_eq!((waiting.attempt, waiting.held, waiting.due), (1, Some(Why::Paused), None));
        assert!(waiting.token().unwrap().0.starts_with("c_"));
        for nobody in [r#"{"message":"m","destination":null,"attempt":1}"#, "{}", "x"] {
            assert!(Waiting::read(&receipt("receipts.a.retrying.m", nobody)).is_none(), "{nobody}");
        }
    }

    #[test]
    fn what_may_have_ended_before_receipts_were_lost_is_not_believed_to_wait() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let read = |body| Waiting::read(&receipt("receipts.a.retrying.m", body)).unwrap();
        let failed =
            read(r#"{"message":"m","destination":"crm","attempt":1,"next_attempt_at":"1970-01-01T00:01:00.000Z"}"#);
        assert!(!failed.is_known(at(60)) && failed.is_known(at(59)));
        assert!(Waiting { told: at(100), ..failed.clone() }.is_known(at(99)));
        assert!(!Waiting { held: Some(Why::Breaker), ..failed.clone() }.is_known(at(59)), "it may have come earlier");
        assert!(!Waiting { due: None, ..failed }.is_known(at(59)));
    }

    #[test]
    fn a_younger_message_at_the_same_sequence_is_another_one() {
        let body = r#"{"message":"m","destination":"crm","attempt":1}"#;
        let waiting = Waiting::read(&receipt("receipts.a.retrying.m", body)).unwrap();
        let found = |seconds, subject: &str| {
            let stored = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let (headers, payload) = (Headers::default(), bytes::Bytes::new());
            StoredMessage { subject: subject.to_owned(), sequence: 7, stored, headers, payload }
        };
        assert!(waiting.is_of(&found(0, "outbox.a")));
        assert!(!waiting.is_of(&found(1, "outbox.a")) && !waiting.is_of(&found(0, "outbox.b")));
    }
}
