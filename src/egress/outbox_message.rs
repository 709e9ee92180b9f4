//! Which message of OUTBOX something is about.

use std::time::SystemTime;

use crate::event::headers::{Headers, OUTBOX_SEQUENCE, OUTBOX_STORED};

/// One message of OUTBOX. Ids can repeat, and so can sequences once a store was lost, but a sequence never repeats
/// together with the moment at which the server stored it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct OutboxMessage {
    pub(super) sequence: u64,
    /// When the server stored it; unknown where an earlier version, or the command line, wrote of it.
    pub(super) stored: Option<SystemTime>,
}

impl OutboxMessage {
    pub(super) fn new(sequence: u64, stored: SystemTime) -> Self {
        Self { sequence, stored: Some(stored) }
    }

    /// A message of which nothing but the place is known.
    pub(super) fn at(sequence: u64) -> Self {
        Self { sequence, stored: None }
    }

    /// Reads the headers of a receipt, or of what waits in RETRY. None where they name no message.
    pub(super) fn read(headers: &Headers) -> Option<Self> {
        let stored = headers.get(OUTBOX_STORED).map(humantime::parse_rfc3339).transpose().ok()?;
        Some(Self { sequence: headers.get(OUTBOX_SEQUENCE)?.parse().ok()?, stored })
    }

    /// Writes the headers.
    pub(super) fn write(&self, headers: &mut Headers) {
        headers.push(OUTBOX_SEQUENCE, self.sequence.to_string());
        if let Some(stored) = self.stored {
            headers.push(OUTBOX_STORED, humantime::format_rfc3339_nanos(stored).to_string());
        }
    }

    /// Whether both can be the same message, as far as is known.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.sequence == other.sequence && self.stored.zip(other.stored).is_none_or(|(one, other)| one == other)
    }

    /// What tells it from every other message, in ids of what is written about it.
    pub(super) fn key(&self) -> String {
        let nanos = self.stored.and_then(|stored| stored.duration_since(SystemTime::UNIX_EPOCH).ok());
        format!("{}@{:x}", self.sequence, nanos.unwrap_or_default().as_nanos())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_reads_back_as_written_to_the_nanosecond() {
        let stored = SystemTime::UNIX_EPOCH + Duration::new(1_760_000_000, 123_456_789);
        for message in [OutboxMessage::new(7, stored), OutboxMessage::at(7)] {
            let mut headers = Headers::default();
            message.write(&mut headers);
            assert_eq!(OutboxMessage::read(&headers), Some(message));
        }
        let mut headers = Headers::default();
        headers.push(OUTBOX_SEQUENCE, "7");
        headers.push(OUTBOX_STORED, "yesterday");
        assert_eq!(OutboxMessage::read(&headers), None);
    }

    #[test]
    fn a_sequence_that_was_given_twice_is_told_apart_by_its_moment() {
        let at = |seconds| OutboxMessage::new(7, SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert!(at(1).is(&at(1)) && at(1).is(&OutboxMessage::at(7)));
        assert!(!at(1).is(&at(2)) && !at(1).is(&OutboxMessage::at(8)));
        assert_ne!(at(1).key(), at(2).key());
    }
}
