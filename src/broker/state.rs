//! What can be done with NATS right now.

use std::fmt;

/// The link to NATS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// No connection yet.
    Connecting,
    /// Connected; the streams are being looked at.
    Preparing,
    /// Connected, and every stream, durable and bucket is as it must be.
    Ready(Ready),
    /// The connection is gone; the client tries again by itself.
    Down,
    /// Connected to a server that cannot be worked with, and why.
    Unfit(String),
}

/// Facts of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ready {
    /// The largest message, headers included, that the server takes.
    pub(crate) max_payload: usize,
    /// Which connection of this process this is, counted by the client.
    pub(crate) connection: u64,
    /// The last sequence of OUTBOX when this connection began.
    pub(crate) outbox_last: u64,
    /// Whether streams may have replicas: they may even where this process is configured with one, since another one
    /// may have given them more.
    pub(crate) replicated: bool,
}

impl Link {
    /// The facts, when there is anything to work with.
    pub(crate) fn ready(&self) -> Option<Ready> {
        match self {
            Self::Ready(ready) => Some(*ready),
            _ => None,
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting => formatter.write_str("not connected to NATS yet"),
            Self::Preparing => formatter.write_str("connected to NATS, preparing streams"),
            Self::Ready(_) => formatter.write_str("ready"),
            Self::Down => formatter.write_str("the connection to NATS is down"),
            Self::Unfit(reason) => write!(formatter, "NATS cannot be used: {reason}"),
        }
    }
}
