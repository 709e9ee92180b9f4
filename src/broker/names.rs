//! Subjects, streams and buckets under the configured prefix.

use crate::config::StreamKind;
use crate::event::Name;

/// The bucket of endpoint states.
const ENDPOINTS: &str = "hookbridge_endpoints";
/// The bucket of tasks.
const TASKS: &str = "hookbridge_tasks";
/// The stream of the bucket of endpoint states, without a configured prefix: its label in metrics.
pub(super) const ENDPOINTS_STREAM: &str = "KV_hookbridge_endpoints";
/// The stream of the bucket of tasks, without a configured prefix: its label in metrics.
pub(crate) const TASKS_STREAM: &str = "KV_hookbridge_tasks";

/// Adds and takes off the prefix: `acme.events.…`, `acme_EVENTS`, `acme_hookbridge_tasks`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    prefix: Option<Name>,
}

impl Names {
    /// Names under a prefix, or as they are.
    pub(crate) fn new(prefix: Option<Name>) -> Self {
        Self { prefix }
    }

    /// A subject as the server knows it.
    pub(crate) fn subject(&self, subject: &str) -> String {
        match &self.prefix {
            Some(prefix) => format!("{prefix}.{subject}"),
            None => subject.to_owned(),
        }
    }

    /// A server's subject without the prefix.
    pub(crate) fn strip<'a>(&self, subject: &'a str) -> &'a str {
        let stripped = self.prefix.as_ref().and_then(|prefix| subject.strip_prefix(prefix.as_str())?.strip_prefix('.'));
        stripped.unwrap_or(subject)
    }

    /// A stream's name as the server knows it.
    pub(crate) fn stream(&self, kind: StreamKind) -> String {
        self.underscored(kind.name())
    }

    /// The name of a stream, or of a bucket's stream, without the prefix: its label in metrics.
    pub(super) fn label(&self, stream: &str) -> String {
        let (kind, name) = stream.strip_prefix("KV_").map_or(("", stream), |bucket| ("KV_", bucket));
        let bare = self.prefix.as_ref().and_then(|prefix| name.strip_prefix(prefix.as_str())?.strip_prefix('_'));
        format!("{kind}{}", bare.unwrap_or(name))
    }

    /// The bucket of endpoint states.
    pub(crate) fn endpoints_bucket(&self) -> String {
        self.underscored(ENDPOINTS)
    }

    /// The bucket of tasks.
    pub(crate) fn tasks_bucket(&self) -> String {
        self.underscored(TASKS)
    }

    fn underscored(&self, name: &str) -> String {
        match &self.prefix {
            Some(prefix) => format!("{prefix}_{name}"),
            None => name.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_goes_on_and_comes_off() {
        let names = Names::new("acme".parse().ok());
        assert_eq!(names.subject("events.x"), "acme.events.x");
        assert_eq!(names.strip("acme.events.x"), "events.x");
        assert_eq!(names.stream(StreamKind::Events), "acme_EVENTS");
        assert_eq!(names.tasks_bucket(), "acme_hookbridge_tasks");
        for (stream, label) in [
            ("acme_OUTBOX", "OUTBOX"),
            ("KV_acme_hookbridge_tasks", TASKS_STREAM),
            ("KV_acme_hookbridge_endpoints", ENDPOINTS_STREAM),
        ] {
            assert_eq!((names.label(stream), Names::default().label(label)), (label.to_owned(), label.to_owned()));
        }
    }

    #[test]
    fn without_a_prefix_names_stay() {
        let names = Names::default();
        assert_eq!(names.subject("events.x"), "events.x");
        assert_eq!(names.strip("events.x"), "events.x");
        assert_eq!(names.stream(StreamKind::Events), "EVENTS");
    }
}
