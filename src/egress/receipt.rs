//! Receipts: what an agent learns about its deliveries.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::pointer::Why;
use super::reason::Failure;
use crate::broker::{Outgoing, StoredMessage};
use crate::clock::rfc3339;
use crate::event::headers::Headers;
use crate::event::trace;

/// What became of an attempt, or of a whole delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Status {
    Delivered,
    Retrying,
    Dead,
    Cancelled,
}

impl Status {
    /// The outcomes after which nothing more happens by itself.
    pub(super) const TERMINAL: [Self; 3] = [Self::Delivered, Self::Dead, Self::Cancelled];

    /// The subject token.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retrying => "retrying",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
        }
    }
}

/// `receipts.<agent>.<outcome>.<delivery id>`
pub(super) fn subject(agent: &str, status: Status, delivery_id: &str) -> String {
    format!("receipts.{agent}.{}.{delivery_id}", status.as_str())
}

/// One receipt, before it is written.
#[derive(Clone, Debug)]
pub(super) struct Receipt<'a> {
    pub(super) agent: &'a str,
    pub(super) message_id: &'a str,
    pub(super) delivery_id: &'a str,
    /// Empty where nobody was named.
    pub(super) destination: &'a str,
    pub(super) status: Status,
    /// 0 where no attempt was made.
    pub(super) attempt: u32,
    pub(super) http_status: Option<u16>,
    pub(super) failure: Option<Failure>,
    /// Why it ended without success, or why it waits without an attempt.
    pub(super) reason: Option<&'static str>,
    pub(super) detail: Option<String>,
    pub(super) duration: Option<Duration>,
    pub(super) next_attempt: Option<SystemTime>,
    pub(super) at: SystemTime,
    /// The message in OUTBOX that this is about: ids can repeat, sequences cannot.
    pub(super) sequence: u64,
}

#[derive(Serialize)]
struct Body<'a> {
    delivery: &'a str,
    message: &'a str,
    agent: &'a str,
    destination: Option<&'a str>,
    outcome: &'static str,
    attempt: u32,
    status: Option<u16>,
    error_class: Option<&'static str>,
    reason: Option<&'static str>,
    detail: Option<&'a str>,
    duration_ms: Option<u64>,
    next_attempt_at: Option<String>,
    at: String,
}

/// The header that says which outbox message a receipt is about.
const SEQUENCE: &str = "Hookbridge-Outbox-Sequence";

/// How far a delivery is, as its last receipt tells.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Progress {
    /// Attempts made.
    pub(super) attempt: u32,
    next_attempt_at: Option<String>,
    reason: Option<String>,
}

impl Progress {
    /// When the next attempt is due.
    pub(super) fn due(&self) -> Option<SystemTime> {
        humantime::parse_rfc3339(self.next_attempt_at.as_deref()?).ok()
    }

    /// Why the delivery waits without a failed attempt.
    pub(super) fn held(&self) -> Option<Why> {
        Why::read(self.reason.as_deref()?)
    }
}

/// The sequence in OUTBOX of the message that a stored receipt is about.
pub(super) fn about(receipt: &StoredMessage) -> Option<u64> {
    receipt.headers.get(SEQUENCE)?.parse().ok()
}

/// What a stored receipt tells, if it is about this outbox message.
pub(super) fn progress(receipt: &StoredMessage, sequence: u64) -> Option<Progress> {
    let about = about(receipt)?;
    let progress = serde_json::from_slice(&receipt.payload).ok()?;
    (about == sequence).then_some(progress)
}

/// The attempt that a stored receipt tells of, if it is about this outbox message.
pub(super) fn attempt_of(receipt: &StoredMessage, sequence: u64) -> Option<u32> {
    progress(receipt, sequence).map(|progress| progress.attempt)
}

impl Receipt<'_> {
    /// The message that tells it.
    pub(super) fn message(&self, trace: Option<&trace::Context>) -> Outgoing {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let body = Body {
            delivery: self.delivery_id,
            message: self.message_id,
            agent: self.agent,
            destination: Some(self.destination).filter(|name| !name.is_empty()),
            outcome: self.status.as_str(),
            attempt: self.attempt,
            status: self.http_status,
            error_class: self.failure.map(Failure::as_str),
            reason: self.reason,
            detail: self.detail.as_deref(),
            duration_ms: self.duration.map(millis),
            next_attempt_at: self.next_attempt.map(rfc3339),
            at: rfc3339(self.at),
        };
        let mut headers = Headers::default();
        headers.push(SEQUENCE, self.sequence.to_string());
        if let Some(trace) = trace {
            trace.write(&mut headers);
        }
        Outgoing {
            subject: subject(self.agent, self.status, self.delivery_id),
            headers,
            // Texts, numbers and nothing else: this always serializes.
            payload: serde_json::to_vec(&body).unwrap_or_default().into(),
            message_id: None,
        }
    }
}
