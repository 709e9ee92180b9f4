//! Receipts: what an agent learns about its deliveries.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::capture::{Captured, Told};
use super::outbox_message::OutboxMessage;
use super::pointer::Why;
use super::reason::Failure;
use crate::broker::{Outgoing, StoredMessage};
use crate::clock::{rfc3339, unix_millis};
use crate::event::headers::{Headers, OUTBOX_SEQUENCE};
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
    /// The message in OUTBOX that this is about: ids can repeat.
    pub(super) about: OutboxMessage,
    /// What the endpoint answered, where it is captured.
    pub(super) response: Option<&'a Captured>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<Told>,
}

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
    receipt.headers.get(OUTBOX_SEQUENCE)?.parse().ok()
}

/// What a stored receipt tells, if it is about this outbox message.
pub(super) fn progress(receipt: &StoredMessage, message: OutboxMessage) -> Option<Progress> {
    let about = OutboxMessage::read(&receipt.headers)?;
    // A receipt that does not say which message of this sequence it is about cannot tell of one that came after it.
    let is_later = about.stored.is_none() && message.stored.is_some_and(|stored| stored > receipt.stored);
    let progress = serde_json::from_slice(&receipt.payload).ok()?;
    (about.is(&message) && !is_later).then_some(progress)
}

/// How far a delivery is, by the last word on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastWord {
    /// Nothing more comes of it by itself.
    pub(super) is_over: bool,
    /// Attempts made.
    pub(super) attempt: u32,
}

/// What the last of all receipts of a delivery says, if it is about this outbox message.
pub(super) fn state(receipt: &StoredMessage, message: OutboxMessage) -> Option<LastWord> {
    let is_over = receipt.subject.split('.').nth(2) != Some(Status::Retrying.as_str());
    attempt_of(receipt, message).map(|attempt| LastWord { is_over, attempt })
}

/// The attempt that a stored receipt tells of, if it is about this outbox message.
pub(super) fn attempt_of(receipt: &StoredMessage, message: OutboxMessage) -> Option<u32> {
    progress(receipt, message).map(|progress| progress.attempt)
}

impl Receipt<'_> {
    /// The message that tells it, within what the server takes: a captured body is cut until it fits, and in the
    /// end left out with all of the answer.
    pub(super) fn message(&self, trace: Option<&trace::Context>, max_payload: usize) -> Outgoing {
        let mut room = self.response.map(Captured::len);
        loop {
            let message = self.with_response(trace, room);
            if room.is_none() || message.wire_bytes() <= max_payload {
                return message;
            }
            room = room.filter(|room| *room > 0).map(|room| room / 2);
        }
    }

    /// The message with so many bytes of the answer's body, or without the answer.
    fn with_response(&self, trace: Option<&trace::Context>, room: Option<usize>) -> Outgoing {
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
            response: self.response.zip(room).map(|(response, room)| response.told(room)),
        };
        let mut headers = Headers::default();
        self.about.write(&mut headers);
        if let Some(trace) = trace {
            trace.write(&mut headers);
        }
        Outgoing {
            subject: subject(self.agent, self.status, self.delivery_id),
            headers,
            // Texts, numbers and nothing else: this always serializes.
            payload: serde_json::to_vec(&body).unwrap_or_default().into(),
            message_id: Some(self.repeat_id()),
        }
    }

    /// By this id the stream knows a receipt that is published again because it was not confirmed. What ends a
    /// delivery, and each attempt, is told once, whoever tells it; that it waits may be told again.
    fn repeat_id(&self) -> String {
        let Self { about, delivery_id, status, attempt, .. } = self;
        let waits = self.reason.filter(|_| *status == Status::Retrying);
        let waits = waits.map(|reason| format!(":{reason}:{}", unix_millis(self.at))).unwrap_or_default();
        format!("{}:{delivery_id}:{}:{attempt}{waits}", about.key(), status.as_str())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, StatusCode};
    use tokio::time::Instant;

    use super::*;
    use crate::egress::capture::{self, Capture};

    async fn captured(length: usize, header: usize) -> Captured {
        let endpoint = "capture_response = true\ncapture_headers = [\"x-h\"]\nurl = \"https://a.example/\"";
        let endpoint =
            figment::Figment::from(<figment::providers::Toml as figment::providers::Format>::string(endpoint));
        let capture = Capture::new(&endpoint.extract().unwrap()).unwrap();
        let headers: HeaderMap =
            [("x-h".parse().unwrap(), HeaderValue::from_str(&"h".repeat(header)).unwrap())].into_iter().collect();
        let body = http_body_util::Full::new(Bytes::from(vec![0; length]));
        capture.keep(StatusCode::OK, &headers, capture::read(body, Instant::now() + Duration::from_secs(9)).await)
    }

    fn receipt(response: &Captured) -> Receipt<'_> {
        Receipt {
            agent: "a",
            message_id: "m",
            delivery_id: "m",
            destination: "crm",
            status: Status::Delivered,
            attempt: 1,
            http_status: Some(200),
            failure: None,
            reason: None,
            detail: None,
            duration: None,
            next_attempt: None,
            at: SystemTime::UNIX_EPOCH,
            about: OutboxMessage::at(7),
            response: Some(response),
        }
    }

    #[tokio::test]
    async fn a_captured_body_is_cut_until_the_receipt_fits_and_left_out_in_the_end() {
        let captured = captured(1000, 500).await;
        let message = |max| {
            let message = receipt(&captured).message(None, max);
            assert!(message.wire_bytes() <= max, "{} of {max}", message.wire_bytes());
            serde_json::from_slice::<serde_json::Value>(&message.payload).unwrap()
        };
        let whole = message(1 << 20);
        assert_eq!(whole["response"]["truncated"], false);
        let cut = message(1500);
        assert_eq!(cut["response"]["truncated"], true);
        assert!(cut["response"]["body_base64"].as_str().unwrap().len() > 100, "{cut}");
        assert_eq!(message(600).get("response"), None);
    }
}
