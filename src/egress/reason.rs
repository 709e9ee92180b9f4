//! Why a delivery is dead, and what went wrong with an attempt: the words that agents and operators see.

use std::fmt;

/// Why nobody will try again by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    /// The endpoint answered 410.
    Gone,
    /// The last attempt of the schedule failed.
    Exhausted,
    /// The endpoint answered with a status in `give_up_on`.
    Refused,
    /// The address, the URL or the agent is not allowed.
    Forbidden,
    /// Nobody wants it, or the endpoint that it names does not exist.
    Unroutable,
    /// The endpoint is disabled.
    EndpointDisabled,
    /// The message cannot be understood, or has headers that HTTP cannot carry.
    Malformed,
    /// The body is no longer in OUTBOX.
    Expired,
    /// What would be sent is larger than the endpoint takes.
    TooLarge,
    /// The endpoint's transformation cannot be applied to the body.
    Transform,
    /// The task cannot move from its state to the one that the update says.
    Illegal,
}

impl Reason {
    /// The word in receipts, dead letters and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Exhausted => "exhausted",
            Self::Refused => "refused",
            Self::Forbidden => "forbidden",
            Self::Unroutable => "unroutable",
            Self::EndpointDisabled => "endpoint-disabled",
            Self::Malformed => "malformed",
            Self::Expired => "expired",
            Self::TooLarge => "too-large",
            Self::Transform => "transform",
            Self::Illegal => "illegal-transition",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A reason, with a sentence for the person who reads the receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    pub(crate) detail: String,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: printable(&detail.into()) }
    }
}

/// The longest detail; agents' own texts are part of it.
const MAX_DETAIL: usize = 512;

/// One line of bounded length, whatever came from outside.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_DETAIL).collect()
}

/// What went wrong with an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Failure {
    /// The endpoint answered with a status that is not 2xx.
    Status,
    /// The whole time of an attempt was not enough.
    Timeout,
    /// The host's name could not be resolved.
    Dns,
    /// No connection was made.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// The connection broke, or the answer was not HTTP.
    Protocol,
    /// The address is not allowed.
    Forbidden,
    /// Nothing was sent: no secret was left to sign with, or the message cannot be signed as configured.
    Unsigned,
    /// There was no token to authenticate with.
    Auth,
}

impl Failure {
    /// The word in receipts and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Timeout => "timeout",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Protocol => "protocol",
            Self::Forbidden => "forbidden",
            Self::Unsigned => "unsigned",
            Self::Auth => "auth",
        }
    }
}
