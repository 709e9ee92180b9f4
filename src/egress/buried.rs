//! Dead letters as they are found again: what they say, and whether there is enough in them to send them again.

use std::time::SystemTime;

use super::reason::Reason;
use super::replay::{Again, Delivery, Origin, is_outbox_of};
use crate::broker::StoredMessage;
use crate::event::headers::Headers;
use crate::event::name;

/// A dead letter without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Buried {
    pub(crate) sequence: u64,
    pub(crate) stored: SystemTime,
    pub(crate) agent: String,
    pub(crate) message_id: String,
    pub(crate) delivery_id: String,
    /// Empty where nobody was named.
    pub(crate) destination: String,
    /// A word of [`Reason`], unless somebody else wrote the letter.
    pub(crate) reason: String,
    pub(crate) attempts: u32,
    pub(crate) detail: String,
    /// What the dead message was a replay of.
    pub(crate) repeats: Option<Origin>,
    /// The subject in OUTBOX, or why the message cannot be published there again.
    outbox_subject: Result<String, Unrepeatable>,
}

/// Why a dead letter cannot be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unrepeatable {
    #[error("it has no body: the message had left OUTBOX before it was given up")]
    Expired,
    #[error("it has neither body nor headers: the server took no larger dead letter")]
    Bare,
    #[error("it has no body: it was too large for a dead letter")]
    NoBody,
    #[error("the headers of the message are not in it: they were too large for a dead letter")]
    NoHeaders,
    #[error("the headers of the message could not be read, so nobody knows where it was to go")]
    UnreadableHeaders,
    #[error("it names no subject of its agent in OUTBOX, so an agent could not publish it either")]
    NoSubject,
}

impl Buried {
    /// Reads a message of DEAD. `None` when it is not what Hookbridge writes there.
    pub(crate) fn read(subject: &str, sequence: u64, stored: SystemTime, headers: &Headers) -> Option<Self> {
        let (agent, delivery_id) = subject.strip_prefix("dead.")?.split_once('.')?;
        let message_id = headers.get("Hookbridge-Message-Id").filter(|id| name::is_token(id))?;
        let of_message = delivery_id.starts_with(message_id) && delivery_id.bytes().all(name::is_token_byte);
        if !name::is_token(agent) || !of_message {
            return None;
        }
        let text = |name| headers.get(name).unwrap_or_default().to_owned();
        Some(Self {
            sequence,
            stored,
            agent: agent.to_owned(),
            message_id: message_id.to_owned(),
            delivery_id: delivery_id.to_owned(),
            destination: text("Hookbridge-Destination"),
            reason: headers.get("Hookbridge-Reason")?.to_owned(),
            attempts: headers.get("Hookbridge-Attempt")?.parse().ok()?,
            detail: text("Hookbridge-Detail"),
            repeats: Origin::of(headers),
            outbox_subject: outbox_subject(agent, headers),
        })
    }

    /// Why it cannot be sent again, if it cannot.
    pub(crate) fn unrepeatable(&self) -> Option<Unrepeatable> {
        self.outbox_subject.as_ref().err().copied()
    }

    /// Whether this letter is about a replay of that one: then this one is the last word on the delivery.
    pub(crate) fn is_after(&self, other: &Self) -> bool {
        self.repeats == Some(Origin::Dead(other.sequence))
            && (&self.agent, &self.delivery_id) == (&other.agent, &other.delivery_id)
    }

    /// The replay of this letter, of which `letter` is the whole.
    pub(crate) fn again(&self, letter: &StoredMessage, run: &str) -> Result<Again<'_>, Unrepeatable> {
        let subject = self.outbox_subject.as_ref().map_err(|error| *error)?;
        let delivery = Delivery {
            agent: &self.agent,
            message_id: &self.message_id,
            delivery_id: &self.delivery_id,
            destination: &self.destination,
        };
        Ok(Again::new(Origin::Dead(self.sequence), delivery, subject, letter, run))
    }
}

fn outbox_subject(agent: &str, headers: &Headers) -> Result<String, Unrepeatable> {
    let Some(subject) = headers.get("Hookbridge-Subject") else {
        let expired = headers.get("Hookbridge-Reason") == Some(Reason::Expired.as_str());
        return Err(if expired { Unrepeatable::Expired } else { Unrepeatable::Bare });
    };
    match headers.get("Hookbridge-Headers") {
        Some("unreadable") => return Err(Unrepeatable::UnreadableHeaders),
        Some(_) => return Err(Unrepeatable::NoHeaders),
        None => {}
    }
    if headers.get("Hookbridge-Body").is_some() {
        return Err(Unrepeatable::NoBody);
    }
    if is_outbox_of(agent, subject) { Ok(subject.to_owned()) } else { Err(Unrepeatable::NoSubject) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(subject: &str, more: &[(&'static str, &str)]) -> Option<Buried> {
        let all = [("Hookbridge-Message-Id", "m"), ("Hookbridge-Reason", "expired"), ("Hookbridge-Attempt", "3")];
        let all = all.iter().chain(more).map(|(name, value)| ((*name).into(), (*value).to_owned()));
        Buried::read(subject, 7, SystemTime::UNIX_EPOCH, &all.collect())
    }

    #[test]
    fn a_letter_with_body_and_headers_can_be_sent_again() {
        let buried = read("dead.a.m-X", &[("Hookbridge-Subject", "outbox.a.t")]).unwrap();
        assert_eq!((buried.agent.as_str(), buried.delivery_id.as_str(), buried.attempts), ("a", "m-X", 3));
        assert_eq!((buried.unrepeatable(), buried.outbox_subject), (None, Ok("outbox.a.t".to_owned())));
    }

    #[test]
    fn what_is_missing_in_a_letter_is_named() {
        let subject = ("Hookbridge-Subject", "outbox.a");
        for (headers, expected) in [
            (&[][..], Unrepeatable::Expired),
            (&[subject, ("Hookbridge-Body", "too-large")], Unrepeatable::NoBody),
            (&[subject, ("Hookbridge-Headers", "too-large")], Unrepeatable::NoHeaders),
            (&[subject, ("Hookbridge-Headers", "unreadable")], Unrepeatable::UnreadableHeaders),
            (&[("Hookbridge-Subject", "outbox.b")], Unrepeatable::NoSubject),
        ] {
            assert_eq!(read("dead.a.m", headers).unwrap().unrepeatable(), Some(expected));
        }
    }

    #[test]
    fn what_hookbridge_did_not_write_is_no_dead_letter() {
        for subject in ["dead.a", "dead.a.other", "dead.a.m.x", "dead.a b.m", "events.a.m"] {
            assert_eq!(read(subject, &[]), None, "{subject}");
        }
    }

    #[test]
    fn the_letter_of_a_replay_comes_after_the_one_that_was_replayed() {
        let first = read("dead.a.m", &[]).unwrap();
        let second = read("dead.a.m", &[("Hookbridge-Replay-Of", "DEAD:7")]).unwrap();
        assert!(second.is_after(&first) && !first.is_after(&second));
        let other = read("dead.b.m", &[("Hookbridge-Replay-Of", "DEAD:7")]).unwrap();
        assert!(!other.is_after(&first), "another agent says so");
    }
}
