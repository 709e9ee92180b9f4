//! Deliveries that an operator sends again.
//!
//! A replay is a new message of OUTBOX with a budget of its own: the same subject, body and headers, and three more
//! that say what it repeats, so that the endpoint sees the same `webhook-id`, and of a fan-out only the one endpoint
//! whose delivery it was gets it. The original `Nats-Msg-Id` stays behind: by it the stream would take the replay
//! for a repeat and drop it. What is decided here is pure; [`Again::publish`] is the edge.

use std::time::{Duration, SystemTime};

use super::dead_letter::is_original;
use super::outbox_message::OutboxMessage;
use super::receipt::{self, Receipt, Status};
use crate::broker::{Outgoing, PublishError, StoredMessage, Visitor};
use crate::config::StreamKind;
use crate::event::headers::Headers;
use crate::event::{id, name, subject};

/// What a replay repeats: `DEAD:17`, `OUTBOX:42`.
pub(super) const REPLAY_OF: &str = "Hookbridge-Replay-Of";
const MESSAGE_ID: &str = "Hookbridge-Message-Id";
const DELIVERY_ID: &str = "Hookbridge-Delivery-Id";

/// How long the stream may take to confirm.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);
/// How often a replay is published that the stream does not confirm. All tries have one id.
const TRIES: u32 = 3;

/// The stored message that a replay repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// The dead letter at this sequence of DEAD.
    Dead(u64),
    /// The message at this sequence of OUTBOX.
    Outbox(u64),
}

impl Origin {
    /// Reads the value of the header.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let (stream, sequence) = text.split_once(':')?;
        let sequence = sequence.parse().ok()?;
        match stream {
            "DEAD" => Some(Self::Dead(sequence)),
            "OUTBOX" => Some(Self::Outbox(sequence)),
            _ => None,
        }
    }

    /// What the headers of a replay say that it repeats.
    pub(crate) fn of(headers: &Headers) -> Option<Self> {
        Self::read(headers.get(REPLAY_OF)?)
    }

    /// The word for why the delivery waits again.
    fn reason(self) -> &'static str {
        match self {
            Self::Dead(_) => "replayed",
            Self::Outbox(_) => "redelivered",
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dead(sequence) => write!(formatter, "DEAD:{sequence}"),
            Self::Outbox(sequence) => write!(formatter, "OUTBOX:{sequence}"),
        }
    }
}

/// What an outbox message that is a replay says of the delivery it repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Replayed {
    /// Safe as a subject token.
    pub(super) message_id: String,
    delivery_id: Option<String>,
}

impl Replayed {
    /// Reads the headers of a replay. Any other message, also one that has some of these headers, is none: agents pass
    /// on the headers of events and dead letters that they were given.
    pub(super) fn read(headers: &Headers) -> Option<Self> {
        Origin::of(headers)?;
        let message_id = id::message(headers.get(MESSAGE_ID).filter(|id| !id.is_empty())?);
        Some(Self { message_id, delivery_id: headers.get(DELIVERY_ID).map(str::to_owned) })
    }

    /// The only delivery that is meant; none where it is the whole message, which had found no destination.
    pub(super) fn only(self) -> Result<Option<String>, String> {
        let Some(delivery) = self.delivery_id.filter(|delivery| *delivery != self.message_id) else { return Ok(None) };
        let rest = delivery.strip_prefix(&self.message_id).and_then(|rest| rest.strip_prefix('-'));
        if !rest.is_some_and(name::is_token) {
            return Err(format!("`{DELIVERY_ID}` does not name a delivery of message `{}`", self.message_id));
        }
        Ok(Some(delivery))
    }
}

/// The delivery that is replayed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery<'a> {
    pub(crate) agent: &'a str,
    pub(crate) message_id: &'a str,
    pub(crate) delivery_id: &'a str,
    /// Empty where nobody was named.
    pub(crate) destination: &'a str,
}

/// A delivery that is ready to be published again.
pub(crate) struct Again<'a> {
    delivery: Delivery<'a>,
    origin: Origin,
    outgoing: Outgoing,
}

impl<'a> Again<'a> {
    /// Publishes `original`'s body and headers on an outbox subject. `run` is one word for each run of the command:
    /// within a run no replay is stored twice.
    pub(crate) fn new(
        origin: Origin,
        delivery: Delivery<'a>,
        outbox_subject: &str,
        original: &StoredMessage,
        run: &str,
    ) -> Self {
        let kept = original.headers.clone().into_iter().filter(|(name, _)| is_original(name));
        let mut headers: Headers = kept.collect();
        headers.push(REPLAY_OF, origin.to_string());
        headers.push(MESSAGE_ID, delivery.message_id);
        headers.push(DELIVERY_ID, delivery.delivery_id);
        let outgoing = Outgoing {
            subject: outbox_subject.to_owned(),
            headers,
            payload: original.payload.clone(),
            message_id: Some(format!("replay:{origin}:{run}")),
        };
        Self { delivery, origin, outgoing }
    }

    /// Stores the replay, then the receipt that tells its agent. Returns the sequence in OUTBOX.
    pub(crate) async fn publish(&self, visitor: &Visitor, now: SystemTime) -> anyhow::Result<u64> {
        let told_on = receipt::subject(self.delivery.agent, Status::Retrying, self.delivery.delivery_id);
        // Read first: once the replay is stored, a courier may tell more of it than is told here.
        let last = visitor.last(StreamKind::Receipts, &told_on).await?.map_or(0, |receipt| receipt.sequence);
        let sequence = self.store(visitor).await?;
        let receipt = self.receipt(sequence, now).message(None, visitor.server().max_payload);
        match visitor.store_after(StreamKind::Receipts, &receipt, last, CONFIRM_WITHIN).await {
            Ok(_) | Err(PublishError::Occupied) => {}
            // The delivery goes its way without it, and repeating the replay would be worse.
            Err(error) => tracing::warn!("The replay is stored, and its receipt is not: {error}"),
        }
        Ok(sequence)
    }

    async fn store(&self, visitor: &Visitor) -> Result<u64, PublishError> {
        let mut tried = 0;
        loop {
            match visitor.store(StreamKind::Outbox, &self.outgoing, CONFIRM_WITHIN).await {
                // A duplicate is an earlier try of this run.
                Ok(stored) => return Ok(stored.sequence),
                Err(PublishError::Unconfirmed) if tried + 1 < TRIES => tried += 1,
                Err(error) => return Err(error),
            }
        }
    }

    fn receipt(&self, sequence: u64, now: SystemTime) -> Receipt<'a> {
        Receipt {
            agent: self.delivery.agent,
            message_id: self.delivery.message_id,
            delivery_id: self.delivery.delivery_id,
            destination: self.delivery.destination,
            status: Status::Retrying,
            attempt: 0,
            http_status: None,
            failure: None,
            reason: Some(self.origin.reason()),
            detail: Some(format!("an operator sends it again, from {}", self.origin)),
            duration: None,
            response: None,
            next_attempt: None,
            at: now,
            about: OutboxMessage::at(sequence),
        }
    }
}

/// Whether a message of an agent can be published on this subject.
pub(super) fn is_outbox_of(agent: &str, outbox_subject: &str) -> bool {
    let of_agent = subject::outbox(outbox_subject).is_some_and(|(token, _)| token == agent);
    let publishable = |token: &str| !["", "*", ">"].contains(&token) && !token.contains(is_blank);
    of_agent && outbox_subject.split('.').all(publishable)
}

fn is_blank(c: char) -> bool {
    c.is_whitespace() || c.is_control()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELIVERY: Delivery<'_> =
        Delivery { agent: "a", message_id: "m", delivery_id: "m-ABCDEFGH", destination: "crm" };

    fn headers(headers: &[(&'static str, &str)]) -> Headers {
        headers.iter().map(|(name, value)| ((*name).into(), (*value).to_owned())).collect()
    }

    fn stored(own: &[(&'static str, &str)]) -> StoredMessage {
        StoredMessage {
            subject: "dead.a.m-ABCDEFGH".to_owned(),
            sequence: 17,
            stored: SystemTime::UNIX_EPOCH,
            headers: headers(own),
            payload: "body".into(),
        }
    }

    #[test]
    fn a_replay_is_the_same_message_under_an_id_of_its_own() {
        let letter = stored(&[
            ("Hookbridge-Reason", "exhausted"),
            ("Hookbridge-Replay-Of", "DEAD:3"),
            ("Hookbridge-Endpoint", "crm"),
            ("Nats-Msg-Id", "m"),
            ("content-type", "text/plain"),
        ]);
        let again = Again::new(Origin::Dead(17), DELIVERY, "outbox.a.x", &letter, "run").outgoing;
        assert_eq!((again.subject.as_str(), &again.payload[..]), ("outbox.a.x", &b"body"[..]));
        assert_eq!(again.message_id.as_deref(), Some("replay:DEAD:17:run"));
        let expected = [
            ("Hookbridge-Endpoint", "crm"),
            ("content-type", "text/plain"),
            ("Hookbridge-Replay-Of", "DEAD:17"),
            ("Hookbridge-Message-Id", "m"),
            ("Hookbridge-Delivery-Id", "m-ABCDEFGH"),
        ];
        assert_eq!(again.headers.iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn only_both_headers_together_make_a_replay() {
        let of = (REPLAY_OF, "OUTBOX:42");
        for ordinary in [
            &[of][..],
            &[(MESSAGE_ID, "m")],
            &[(REPLAY_OF, "17"), (MESSAGE_ID, "m")],
            &[(REPLAY_OF, "EVENTS:17"), (MESSAGE_ID, "m")],
            &[of, (MESSAGE_ID, "")],
        ] {
            assert_eq!(Replayed::read(&headers(ordinary)), None, "{ordinary:?}");
        }
        let replayed = Replayed::read(&headers(&[of, (MESSAGE_ID, "a.b")])).unwrap();
        assert!(replayed.message_id.starts_with("h_") && replayed.only() == Ok(None));
    }

    #[test]
    fn a_replay_means_one_delivery_of_its_message_or_all_of_it() {
        let only = |delivery: &str| {
            let all = [(REPLAY_OF, "DEAD:1"), (MESSAGE_ID, "m"), (DELIVERY_ID, delivery)];
            Replayed::read(&headers(&all)).unwrap().only()
        };
        assert_eq!(only("m"), Ok(None));
        assert_eq!(only("m-ABCDEFGH"), Ok(Some("m-ABCDEFGH".to_owned())));
        for foreign in ["n-ABCDEFGH", "m-", "m-a.b", "m->", "mABC", ""] {
            assert!(only(foreign).unwrap_err().contains(DELIVERY_ID), "{foreign}");
        }
    }

    #[test]
    fn a_replay_goes_to_the_outbox_of_its_agent_and_nowhere_else() {
        for good in ["outbox.a", "outbox.a.x.y"] {
            assert!(is_outbox_of("a", good), "{good}");
        }
        for bad in ["outbox.b", "events.a", "outbox", "outbox.a.", "outbox.a.>", "outbox.a.x y", "outbox.a..x"] {
            assert!(!is_outbox_of("a", bad), "{bad}");
        }
    }
}
