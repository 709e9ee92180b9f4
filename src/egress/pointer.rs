//! What waits in RETRY: a pointer to an outbox message, never its body.

use std::time::SystemTime;

use super::dead_letter::DeadLetter;
use super::intake::{Message, Original};
use super::outbox_message::OutboxMessage;
use super::reason::Refusal;
use super::route::Route;
use crate::broker::{BODY_BYTES, Schedule};
use crate::event::headers::Headers;
use crate::event::name;

const AGENT: &str = "Hookbridge-Agent";
const DELIVERY: &str = "Hookbridge-Delivery-Id";
const MESSAGE: &str = "Hookbridge-Message-Id";
const DESTINATION: &str = "Hookbridge-Destination";
const TOKEN: &str = "Hookbridge-Destination-Token";
const ATTEMPT: &str = "Hookbridge-Attempt";
const HELD: &str = "Hookbridge-Held";

/// The longest delivery id: a message id, a dash and eight characters.
const MAX_DELIVERY_ID: usize = 64 + 9;
/// The longest destination token: `e_` and a name.
const MAX_TOKEN: usize = 2 + 64;

/// A delivery that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pointer {
    /// The message in OUTBOX.
    pub(super) sequence: u64,
    /// When that message was stored; unknown in what an earlier version wrote.
    pub(super) stored: Option<SystemTime>,
    pub(super) agent: String,
    pub(super) message_id: String,
    pub(super) delivery_id: String,
    /// The destination's public name, for the dead letter of a message whose body is gone.
    pub(super) destination: String,
    /// The subject token of the destination.
    pub(super) token: String,
    /// The attempt that comes next; the first is 1.
    pub(super) attempt: u32,
    /// Why it waits, where that is not a failed attempt.
    pub(super) held: Option<Why>,
    /// How many bytes the message has that it leads to.
    pub(super) body_bytes: usize,
}

/// Why a delivery waits without an attempt having failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Why {
    /// Its destination is paused.
    Paused,
    /// Its destination fails, and is left alone for a while.
    Breaker,
    /// As many attempts as may be are in flight to its destination.
    Busy,
    /// Attempts to its destination may not begin as often.
    Rate,
    /// Its destination asked for no request before a time.
    RetryAfter,
    /// There was no file descriptor for a connection.
    NoDescriptor,
    /// The callback before it, of the same task, may still be on its way.
    Turn,
}

impl Why {
    /// The word in receipts, headers and metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::Breaker => "breaker",
            Self::Busy => "busy",
            Self::Rate => "rate",
            Self::RetryAfter => "retry-after",
            Self::NoDescriptor => "no-descriptor",
            Self::Turn => "turn",
        }
    }

    /// Reads the word.
    pub(super) fn read(word: &str) -> Option<Self> {
        const ALL: [Why; 7] =
            [Why::Paused, Why::Breaker, Why::Busy, Why::Rate, Why::RetryAfter, Why::NoDescriptor, Why::Turn];
        ALL.into_iter().find(|why| why.as_str() == word)
    }
}

impl Pointer {
    /// The pointer to a delivery; none where there is no destination to wait for.
    pub(super) fn new(original: &Original, message: &Message, route: &Route, attempt: u32) -> Option<Self> {
        Some(Self {
            sequence: original.sequence,
            stored: Some(original.stored),
            agent: message.agent.clone(),
            message_id: message.id.clone(),
            delivery_id: route.delivery_id.clone(),
            destination: route.public_name.clone(),
            token: route.token.clone()?,
            attempt,
            held: None,
            body_bytes: original.payload.len(),
        })
    }

    /// The pointer to an update of a task that was not applied yet: where it goes is not known before it is.
    pub(super) fn of_update(original: &Original, message: &Message) -> Self {
        Self {
            sequence: original.sequence,
            stored: Some(original.stored),
            agent: message.agent.clone(),
            message_id: message.id.clone(),
            delivery_id: message.id.clone(),
            destination: String::new(),
            token: update_token(&message.agent),
            attempt: 1,
            held: None,
            body_bytes: original.payload.len(),
        }
    }

    /// Whether it is the pointer to an update that was not applied yet.
    pub(super) fn is_of_update(&self) -> bool {
        self.token == update_token(&self.agent)
    }

    /// The pointer as headers.
    pub(super) fn headers(&self) -> Headers {
        let mut headers = Headers::default();
        self.about().write(&mut headers);
        headers.push(AGENT, self.agent.as_str());
        headers.push(MESSAGE, self.message_id.as_str());
        headers.push(DELIVERY, self.delivery_id.as_str());
        headers.push(DESTINATION, self.destination.as_str());
        headers.push(TOKEN, self.token.as_str());
        headers.push(ATTEMPT, self.attempt.to_string());
        headers.push(BODY_BYTES, self.body_bytes.to_string());
        if let Some(why) = self.held {
            headers.push(HELD, why.as_str());
        }
        headers
    }

    /// Reads a pointer. `None` when it is not what Hookbridge writes.
    pub(super) fn read(headers: &Headers) -> Option<Self> {
        let text = |name| headers.get(name).map(str::to_owned);
        let OutboxMessage { sequence, stored } = OutboxMessage::read(headers)?;
        let pointer = Self {
            sequence,
            stored,
            agent: text(AGENT)?,
            message_id: text(MESSAGE)?,
            delivery_id: text(DELIVERY)?,
            destination: text(DESTINATION)?,
            token: text(TOKEN)?,
            attempt: headers.get(ATTEMPT)?.parse().ok().filter(|attempt| *attempt > 0)?,
            held: headers.get(HELD).and_then(Why::read),
            body_bytes: headers.get(BODY_BYTES).and_then(|bytes| bytes.parse().ok()).unwrap_or(0),
        };
        let is_tokens = |text: &str, most| (1..=most).contains(&text.len()) && text.bytes().all(name::is_token_byte);
        let ids = name::is_token(&pointer.agent)
            && name::is_token(&pointer.message_id)
            && is_tokens(&pointer.delivery_id, MAX_DELIVERY_ID)
            && is_tokens(&pointer.token, MAX_TOKEN)
            && pointer.delivery_id.starts_with(&pointer.message_id);
        ids.then_some(pointer)
    }

    /// The message that it points to.
    pub(super) fn about(&self) -> OutboxMessage {
        OutboxMessage { sequence: self.sequence, stored: self.stored }
    }

    /// Where the delivery can wait: under its id, or, where another message of the same id waits, one token
    /// below it, under its place in OUTBOX. No id holds a dot, so no other delivery has that place.
    pub(super) fn places(&self) -> [String; 2] {
        [self.delivery_id.clone(), format!("{}.{}", self.delivery_id, self.sequence)]
    }

    /// The subject on which the delivery waits for its time, at one of its places.
    pub(super) fn waits_on(&self, place: &str) -> String {
        format!("retry.at.{}.{place}", self.token)
    }

    /// The subject on which the delivery is due, at one of its places.
    pub(super) fn due_on(&self, place: &str) -> String {
        format!("retry.due.{}.{place}", self.token)
    }

    /// The schedule that lets the delivery wait at one of its places until `due`, in place of the schedule at the
    /// sequence `replaces`; 0 for none.
    pub(super) fn schedule(&self, place: &str, due: SystemTime, replaces: u64) -> Schedule {
        let (waits_on, target) = (self.waits_on(place), self.due_on(place));
        Schedule { waits_on, target, due, headers: self.headers(), replaces }
    }

    /// The place of the delivery that waits on this subject.
    pub(super) fn place_of(&self, subject: &str) -> Option<String> {
        self.places().into_iter().find(|place| self.waits_on(place) == subject)
    }

    /// Whether the delivery can be due on this subject.
    pub(super) fn is_due_on(&self, subject: &str) -> bool {
        self.places().iter().any(|place| self.due_on(place) == subject)
    }

    /// Whether the delivery can wait on this subject.
    pub(super) fn is_waiting_on(&self, subject: &str) -> bool {
        self.place_of(subject).is_some()
    }

    /// The dead letter of a delivery that was given up while it waited.
    pub(super) fn dead_letter<'a>(&'a self, refusal: &'a Refusal, original: Option<&'a Original>) -> DeadLetter<'a> {
        DeadLetter {
            agent: &self.agent,
            message_id: &self.message_id,
            delivery_id: &self.delivery_id,
            destination: &self.destination,
            attempt: self.attempt - 1,
            refusal,
            original,
            about: self.about(),
        }
    }
}

/// The token under which an agent's updates of tasks wait that were put off before they were applied.
pub(super) fn update_token(agent: &str) -> String {
    format!("u_{agent}")
}

/// The subjects on which everything waits that is for one destination.
pub(super) fn all_waiting(destination_token: &str) -> String {
    format!("retry.at.{destination_token}.>")
}

/// The subjects on which anything waits, for one destination or for all.
pub(super) fn waiting_everywhere(destination_token: Option<&str>) -> String {
    destination_token.map_or_else(|| "retry.at.>".to_owned(), all_waiting)
}

/// The subjects on which a delivery of this id waits, whatever its destination.
pub(super) fn waiting_of(delivery_id: &str) -> [String; 2] {
    [format!("retry.at.*.{delivery_id}"), format!("retry.at.*.{delivery_id}.*")]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer() -> Pointer {
        Pointer {
            sequence: 7,
            stored: Some(SystemTime::UNIX_EPOCH),
            agent: "planner".to_owned(),
            message_id: "m".to_owned(),
            delivery_id: "m-X".to_owned(),
            destination: "crm".to_owned(),
            token: "e_crm".to_owned(),
            attempt: 2,
            held: Some(Why::Breaker),
            body_bytes: 7,
        }
    }

    #[test]
    fn a_pointer_reads_back_as_written() {
        assert_eq!(Pointer::read(&pointer().headers()), Some(pointer()));
        assert_eq!(Pointer::read(&Headers::default()), None);
    }

    #[test]
    fn a_pointer_that_hookbridge_would_not_write_is_none() {
        let changed: [fn(&mut Pointer); 6] = [
            |pointer| pointer.attempt = 0,
            |pointer| pointer.agent = "a b".to_owned(),
            |pointer| pointer.delivery_id = "m.>".to_owned(),
            |pointer| pointer.delivery_id = "other".to_owned(),
            |pointer| pointer.token = "*".to_owned(),
            |pointer| pointer.message_id = String::new(),
        ];
        for change in changed {
            let mut pointer = pointer();
            change(&mut pointer);
            assert_eq!(Pointer::read(&pointer.headers()), None, "{pointer:?}");
        }
    }

    #[test]
    fn a_delivery_waits_on_its_own_subject_or_beside_it() {
        let pointer = pointer();
        assert!(pointer.is_due_on("retry.due.e_crm.m-X") && pointer.is_due_on("retry.due.e_crm.m-X.7"));
        assert!(pointer.is_waiting_on("retry.at.e_crm.m-X"));
        assert!(!pointer.is_due_on("retry.due.e_other.m-X") && !pointer.is_due_on("retry.due.e_crm.m-X-7"));
    }
}
