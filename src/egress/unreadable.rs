//! What to write down for a message that could not even be read.

use std::time::SystemTime;

use super::dead_letter::DeadLetter;
use super::intake::Original;
use super::reason::{Reason, Refusal};
use crate::broker::{Outgoing, Unreadable};
use crate::config::StreamKind;
use crate::event::headers::Headers;
use crate::event::{id, name, subject};

/// A dead letter with the body, and its receipt. What stands unreadable in RETRY is nobody's delivery.
pub(crate) fn bury(found: &Unreadable, now: SystemTime, max_payload: usize) -> Vec<Outgoing> {
    if found.stream != StreamKind::Outbox {
        return Vec::new();
    }
    let agent = subject::outbox(&found.subject).map(|(agent, _)| agent).filter(|agent| name::is_token(agent));
    let agent = agent.unwrap_or("_");
    let id = id::stored_message(&found.stream_name, found.sequence, found.stored);
    let original = Original {
        subject: found.subject.clone(),
        headers: Headers::default(),
        payload: found.payload.clone(),
        sequence: found.sequence,
        stored: found.stored,
        stream: found.stream_name.as_str().into(),
    };
    let refusal = Refusal::new(Reason::Malformed, "the message's headers are not what a NATS client writes");
    let letter = DeadLetter {
        agent,
        message_id: &id,
        delivery_id: &id,
        destination: "",
        attempt: 0,
        refusal: &refusal,
        original: Some(&original),
        about: original.about(),
    };
    let mut buried = letter.message(max_payload);
    // Nobody knows where the message was to go: it cannot be replayed.
    buried.headers.push("Hookbridge-Headers", "unreadable");
    vec![buried, letter.receipt(now).message(None, max_payload)]
}
