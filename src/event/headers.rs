//! Message headers, as Hookbridge sees them: a short list, read in any case, written exactly.

use std::borrow::Cow;

/// The header that says which message of OUTBOX a receipt, or what waits in RETRY, is about.
pub(crate) const OUTBOX_SEQUENCE: &str = "Hookbridge-Outbox-Sequence";

/// The header that says when the server stored that message: together with its sequence, no other has it.
pub(crate) const OUTBOX_STORED: &str = "Hookbridge-Outbox-Stored";

/// Headers in the order they came. Lookups ignore case, since agents spell them in many ways.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(Cow<'static, str>, String)>);

impl Headers {
    /// No headers, with room for `capacity`.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// Adds a header; one of the same name stays.
    pub fn push(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }

    /// The first value of the header, whatever the case of its name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Every value of the header.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.iter().filter(move |(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// All headers, names as they were written.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_ref(), value.as_str()))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes they take on the wire of NATS: name, colon, blank, value and line end each.
    pub(crate) fn wire_bytes(&self) -> usize {
        "NATS/1.0\r\n\r\n".len() + self.iter().map(|(name, value)| name.len() + value.len() + 4).sum::<usize>()
    }
}

impl IntoIterator for Headers {
    type Item = (Cow<'static, str>, String);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl FromIterator<(Cow<'static, str>, String)> for Headers {
    fn from_iter<I: IntoIterator<Item = (Cow<'static, str>, String)>>(headers: I) -> Self {
        Self(headers.into_iter().collect())
    }
}
