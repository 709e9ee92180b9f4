//! What waits in RETRY: a pointer to an outbox message, never its body.

use crate::event::headers::Headers;

const SEQUENCE: &str = "Hookbridge-Outbox-Sequence";
const AGENT: &str = "Hookbridge-Agent";
const DELIVERY: &str = "Hookbridge-Delivery-Id";
const MESSAGE: &str = "Hookbridge-Message-Id";
const DESTINATION: &str = "Hookbridge-Destination";
const ATTEMPT: &str = "Hookbridge-Attempt";

/// A delivery that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pointer {
    /// The message in OUTBOX.
    pub(super) sequence: u64,
    pub(super) agent: String,
    pub(super) message_id: String,
    pub(super) delivery_id: String,
    /// The destination's public name, for the dead letter of a message whose body is gone.
    pub(super) destination: String,
    /// The attempt that comes next; the first is 1.
    pub(super) attempt: u32,
}

impl Pointer {
    /// The pointer as headers.
    pub(super) fn headers(&self) -> Headers {
        let mut headers = Headers::default();
        headers.push(SEQUENCE, self.sequence.to_string());
        headers.push(AGENT, self.agent.as_str());
        headers.push(MESSAGE, self.message_id.as_str());
        headers.push(DELIVERY, self.delivery_id.as_str());
        headers.push(DESTINATION, self.destination.as_str());
        headers.push(ATTEMPT, self.attempt.to_string());
        headers
    }

    /// Reads a pointer. `None` when the message was not written by Hookbridge.
    pub(super) fn read(headers: &Headers) -> Option<Self> {
        let text = |name| headers.get(name).map(str::to_owned);
        Some(Self {
            sequence: headers.get(SEQUENCE)?.parse().ok()?,
            agent: text(AGENT)?,
            message_id: text(MESSAGE)?,
            delivery_id: text(DELIVERY)?,
            destination: text(DESTINATION)?,
            attempt: headers.get(ATTEMPT)?.parse().ok().filter(|attempt| *attempt > 0)?,
        })
    }
}

/// The subject on which a delivery waits for its time.
pub(super) fn waits_on(destination_token: &str, delivery_token: &str) -> String {
    format!("retry.at.{destination_token}.{delivery_token}")
}

/// The subject on which a delivery is due.
pub(super) fn due_on(destination_token: &str, delivery_token: &str) -> String {
    format!("retry.due.{destination_token}.{delivery_token}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_reads_back_as_written_and_anything_else_does_not() {
        let pointer = Pointer {
            sequence: 7,
            agent: "planner".to_owned(),
            message_id: "m".to_owned(),
            delivery_id: "m-X".to_owned(),
            destination: "crm".to_owned(),
            attempt: 2,
        };
        assert_eq!(Pointer::read(&pointer.headers()), Some(pointer.clone()));
        assert_eq!(Pointer::read(&Headers::default()), None);
        let zeroth = Pointer { attempt: 0, ..pointer };
        assert_eq!(Pointer::read(&zeroth.headers()), None);
    }
}
