//! `[gateway]`

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;
use serde::Deserialize;
use url::Url;

use super::rate::{Rate, rate_or_none};

/// What an address may send a second that proves nothing, unless the operator says otherwise.
const PEER_RATE: NonZeroU32 = NonZeroU32::new(500).unwrap();
/// And how much of it at once.
const PEER_BURST: NonZeroU32 = NonZeroU32::new(1000).unwrap();

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
    /// Connections open at once. When full, the longest-idle connection is closed to admit a new one; if none is
    /// idle, the new one waits. Each needs a file descriptor: where the process may not open so many files and
    /// still have a reserve for NATS, the admin pages and deliveries, fewer are taken, and the log says so.
    pub max_connections: usize,
    /// How long a connection may be idle, before its first request and between two. Set it above the keep-alive timeout
    /// of the load balancer or reverse proxy in front (AWS, nginx: 60 s; Google: 600 s, so `"620s"`), or it may answer
    /// 502 for requests on a connection that is being closed.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// How long the headers of a request may take to arrive, from their first byte.
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
    /// The networks of your own reverse proxies, for example `["10.0.0.0/8"]`. A request that comes from one of
    /// them was sent by the right-most address in `X-Forwarded-For` that is in none of them; everybody else's
    /// `X-Forwarded-For` is ignored. List only proxies that add the address they see to that header.
    pub trusted_proxies: Vec<IpNet>,
    /// How many requests that prove nothing one address may send: a signature that is missing or wrong, no such
    /// source, a network, method, size or encoding that is not taken, a body that is too slow or breaks off. From
    /// an address that is over it everything is answered 429 before a signature is checked, genuine or not. But
    /// genuine requests are never charged, so a provider with addresses of its own meets no limit here; one whose addresses
    /// others share (every customer of GitHub sends from the same ones) is safe where a source lists its `networks`. An IPv6
    /// address counts by its /64. `"none"` turns it off.
    ///
    /// Private, shared (100.64.0.0/10), loopback and link-local addresses are exempt: behind a reverse proxy that
    /// is not in `trusted_proxies` everybody has the proxy's address, and one stranger would shut out all others.
    /// So list your proxies, or nobody behind them is limited.
    #[serde(deserialize_with = "rate_or_none")]
    pub peer_rate: Option<Rate>,
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
            idle_timeout: Duration::from_secs(75),
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(20),
            request_timeout: Duration::from_secs(30),
            publish_timeout: Duration::from_millis(2500),
            trusted_proxies: Vec::new(),
            peer_rate: Some(Rate::per_second(PEER_RATE, PEER_BURST)),
            public_url: None,
        }
    }
}
