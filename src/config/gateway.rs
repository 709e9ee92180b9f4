//! `[gateway]`

use std::net::SocketAddr;
use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;
use url::Url;

/// Webhooks coming in.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// The address that senders reach. Put a TLS-terminating proxy in front of it.
    pub listen: SocketAddr,
    /// The largest body. Larger ones are answered 413, also when the server's `max_payload` is smaller.
    pub max_body: ByteSize,
    /// The most bytes that the headers of one request may take together. At most 64 KiB.
    pub max_headers: ByteSize,
    /// Bodies held in memory at once, over all requests. What does not fit is answered 429.
    pub max_in_flight: ByteSize,
    /// Connections open at once. One more waits until another closes.
    pub max_connections: usize,
    /// How long the headers of a request may take to arrive.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// How long a body may take to arrive.
    #[serde(with = "humantime_serde")]
    pub body_timeout: Duration,
    /// How long a whole request may take, from its headers to its answer.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// How long the stream may take to confirm, before the sender is answered 503. Below what the most
    /// impatient provider waits (3 s).
    #[serde(with = "humantime_serde")]
    pub publish_timeout: Duration,
    /// The URL under which senders reach this gateway; printed by `check`.
    pub public_url: Option<Url>,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8080)),
            max_body: ByteSize::kib(960),
            max_headers: ByteSize::kib(32),
            max_in_flight: ByteSize::mib(256),
            max_connections: 20_000,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(20),
            request_timeout: Duration::from_secs(30),
            publish_timeout: Duration::from_millis(2500),
            public_url: None,
        }
    }
}
