//! Dead letters: everything that is needed to look into a delivery, and to send it again.

use std::time::SystemTime;

use bytes::Bytes;

use super::intake::Original;
use super::outbox_message::OutboxMessage;
use super::reason::{Refusal, printable};
use super::receipt::{Receipt, Status};
use super::replay::{Origin, REPLAY_OF};
use crate::broker::Outgoing;
use crate::event::headers::Headers;

/// What a dead letter leaves free under the server's `max_payload`.
const HEADER_ROOM: usize = 16 * 1024;

/// A delivery that is given up.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeadLetter<'a> {
    pub(super) agent: &'a str,
    pub(super) message_id: &'a str,
    pub(super) delivery_id: &'a str,
    /// Empty where nobody was named.
    pub(super) destination: &'a str,
    pub(super) attempt: u32,
    pub(super) refusal: &'a Refusal,
    /// The outbox message; none when it has expired.
    pub(super) original: Option<&'a Original>,
    pub(super) about: OutboxMessage,
}

impl<'a> DeadLetter<'a> {
    /// The receipt of a delivery that was given up without an attempt; one that was attempted adds how.
    pub(super) fn receipt(&self, at: SystemTime) -> Receipt<'a> {
        Receipt {
            agent: self.agent,
            message_id: self.message_id,
            delivery_id: self.delivery_id,
            destination: self.destination,
            status: Status::Dead,
            attempt: self.attempt,
            http_status: None,
            failure: None,
            reason: Some(self.refusal.reason.as_str()),
            detail: Some(self.refusal.detail.clone()),
            duration: None,
            next_attempt: None,
            at,
            about: self.about,
            response: None,
        }
    }

    /// The message `dead.<agent>.<delivery id>`: the original body, everything else in headers.
    pub(super) fn message(&self, max_payload: usize) -> Outgoing {
        let mut headers = Headers::default();
        headers.push("Hookbridge-Reason", self.refusal.reason.as_str());
        headers.push("Hookbridge-Detail", printable(&self.refusal.detail));
        headers.push("Hookbridge-Destination", printable(self.destination));
        headers.push("Hookbridge-Attempt", self.attempt.to_string());
        headers.push("Hookbridge-Message-Id", self.message_id);
        headers.push("Hookbridge-Delivery-Id", self.delivery_id);
        self.about.write(&mut headers);
        let mut payload = Bytes::new();
        if let Some(original) = self.original {
            // Whole, however long: a replay is published on it.
            headers.push("Hookbridge-Subject", original.subject.replace(char::is_control, " "));
            if let Some(origin) = Origin::of(&original.headers) {
                headers.push(REPLAY_OF, origin.to_string());
            }
            let own: Vec<_> = original.headers.iter().filter(|(name, _)| is_original(name)).collect();
            let room = own.iter().map(|(name, value)| name.len() + value.len() + 4).sum::<usize>();
            if room + headers.wire_bytes() <= HEADER_ROOM {
                own.into_iter().for_each(|(name, value)| headers.push(name.to_owned(), value));
            } else {
                headers.push("Hookbridge-Headers", "too-large");
            }
            if original.payload.len() <= max_payload.saturating_sub(HEADER_ROOM) {
                payload = original.payload.clone();
            } else {
                headers.push("Hookbridge-Body", "too-large");
            }
        }
        // By it the stream knows a letter that is published again because it was not confirmed.
        let message_id = Some(format!("{}:{}", self.about.key(), self.delivery_id));
        Outgoing { subject: format!("dead.{}.{}", self.agent, self.delivery_id), headers, payload, message_id }
    }
}

/// The original's headers, less what NATS would act on again and what only Hookbridge may say.
pub(super) fn is_original(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let agents = ["hookbridge-endpoint", "hookbridge-callback-url", "hookbridge-task-id", "hookbridge-reply"]
        .contains(&lower.as_str());
    agents || !(lower.starts_with("nats-") || lower.starts_with("hookbridge-"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::reason::Reason;

    fn letter(headers: &[(&'static str, &str)], payload: &'static [u8], max_payload: usize) -> Outgoing {
        let original = Original {
            subject: "outbox.a".to_owned(),
            headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).to_owned())).collect(),
            payload: Bytes::from_static(payload),
            sequence: 7,
            stored: SystemTime::UNIX_EPOCH,
            stream: "OUTBOX".into(),
        };
        let refusal = Refusal::new(Reason::Exhausted, "line\nbreak");
        let letter = DeadLetter {
            agent: "a",
            message_id: "m",
            delivery_id: "m-1",
            destination: "crm",
            attempt: 3,
            refusal: &refusal,
            original: Some(&original),
            about: original.about(),
        };
        letter.message(max_payload)
    }

    #[test]
    fn a_dead_letter_carries_the_body_and_everything_for_a_replay() {
        let message = letter(&[("content-type", "text/plain"), ("Hookbridge-Endpoint", "crm")], b"body", 1 << 20);
        assert_eq!((message.subject.as_str(), &message.payload[..]), ("dead.a.m-1", &b"body"[..]));
        for (name, value) in [
            ("Hookbridge-Reason", "exhausted"),
            ("Hookbridge-Detail", "line break"),
            ("Hookbridge-Attempt", "3"),
            ("Hookbridge-Subject", "outbox.a"),
            ("Hookbridge-Endpoint", "crm"),
            ("content-type", "text/plain"),
        ] {
            assert_eq!(message.headers.get(name), Some(value), "{name}");
        }
    }

    #[test]
    fn an_agent_cannot_say_what_only_hookbridge_or_nats_says() {
        let message =
            letter(&[("Nats-Msg-Id", "x"), ("hookbridge-reason", "forged"), ("Nats-TTL", "1s")], b"", 1 << 20);
        assert_eq!(message.headers.get("Nats-Msg-Id"), None);
        assert_eq!(message.headers.get("Nats-TTL"), None);
        assert_eq!(message.headers.all("Hookbridge-Reason").collect::<Vec<_>>(), ["exhausted"]);
    }

    #[test]
    fn a_dead_letter_of_a_replay_says_what_was_replayed() {
        let message = letter(&[("Hookbridge-Replay-Of", "DEAD:3")], b"", 1 << 20);
        assert_eq!(message.headers.all("Hookbridge-Replay-Of").collect::<Vec<_>>(), ["DEAD:3"]);
        let message = letter(&[("Hookbridge-Replay-Of", "3")], b"", 1 << 20);
        assert_eq!(message.headers.get("Hookbridge-Replay-Of"), None);
    }

    #[test]
    fn a_body_that_does_not_fit_is_left_out_and_said_so() {
        let message = letter(&[], b"12345", HEADER_ROOM + 4);
        assert!(message.payload.is_empty());
        assert_eq!(message.headers.get("Hookbridge-Body"), Some("too-large"));
    }
}
