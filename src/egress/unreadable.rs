//! What to write down for a message that could not even be read.

use std::time::SystemTime;

use super::dead_letter::DeadLetter;
use super::intake::Original;
use super::reason::{Reason, Refusal};
use crate::broker::{Bury, Outgoing, Unreadable};
use crate::config::StreamKind;
use crate::event::headers::Headers;
use crate::event::{id, name, subject};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{DeadLabels, StreamLabels};

/// Writes down and counts what the client library cannot read.
pub(crate) struct UnreadableRecorder {
    metrics: Metrics,
}

impl UnreadableRecorder {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { metrics }
    }

    fn count(&self, stream: &'static str) {
        self.metrics.unreadable.get_or_create(&StreamLabels { stream }).inc();
    }
}

impl Bury for UnreadableRecorder {
    fn letters(&self, found: &Unreadable, now: SystemTime, max_payload: usize) -> Vec<Outgoing> {
        letters(found, now, max_payload)
    }

    fn removed(&self, found: &Unreadable) {
        self.count(found.stream.name());
        if found.stream == StreamKind::Outbox {
            let labels = DeadLabels { destination: String::new(), reason: Reason::Malformed.as_str() };
            self.metrics.dead_letters.get_or_create(&labels).inc();
        }
    }

    fn removed_record(&self, bucket: &'static str) {
        self.count(bucket);
    }
}

/// A dead letter with the body, and its receipt. What stands unreadable in RETRY is nobody's delivery.
fn letters(found: &Unreadable, now: SystemTime, max_payload: usize) -> Vec<Outgoing> {
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
    let mut receipt = letter.receipt(now).message(None, max_payload);
    // Several couriers may have lost a connection to it, and each looks.
    buried.message_id = Some(format!("unreadable:{id}"));
    receipt.message_id = Some(format!("unreadable:{id}"));
    vec![buried, receipt]
}
