//! `[egress]`

use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;
use serde::Deserialize;

use super::policy::{Breaker, Retry, breaker_or_none};
use super::rate::{Rate, rate_or_none};
use crate::secret::SecretRef;

use super::reach::{HostPattern, NameServer, Ports};

/// Webhooks going out.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Egress {
    /// The longest that one attempt may take, from looking up the host to the status of the answer.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// The waits between attempts: a list with one entry fewer than there are attempts, or a table of waits that
    /// grow.
    pub retry: Retry,
    /// By what part of itself a wait may be longer or shorter, so that what failed together does not come again
    /// together: 0 to 1.
    pub jitter: f64,
    /// The longest wait that an endpoint can ask for with `Retry-After`. Until then it gets no request; the schedule
    /// is never made shorter by it.
    #[serde(with = "humantime_serde")]
    pub max_retry_after: Duration,
    /// How old a message may become before nobody tries again. Without it the schedule alone decides.
    #[serde(with = "humantime_serde")]
    pub max_age: Option<Duration>,
    /// Statuses that nobody repeats, for example `[400, 401]`: the delivery is dead at once.
    pub give_up_on: Vec<u16>,
    /// Attempts in flight at once in this process, first attempts and repeated ones each.
    pub concurrency: usize,
    /// Bytes of messages in hand at once in this process, first attempts and repeated ones each. One message is taken
    /// however large it is.
    pub max_in_flight: ByteSize,
    /// Attempts in flight at once to one destination, in this process. What is over waits in NATS.
    pub max_concurrent: usize,
    /// How often attempts to one destination may begin, in this process: `50/s burst 100`, or `"none"`.
    #[serde(deserialize_with = "rate_or_none")]
    pub rate: Option<Rate>,
    /// When a destination that fails is left alone for a while.
    #[serde(deserialize_with = "breaker_or_none")]
    pub breaker: Option<Breaker>,
    /// Interval of the check for deliveries and task deadlines that are missing from RETRY, because it was purged or
    /// damaged: they are rescheduled, or dead-lettered if OUTBOX has lost the message too. `"0s"` disables it;
    /// `hookbridge deliveries repair` runs it immediately.
    #[serde(with = "humantime_serde")]
    pub repair_every: Duration,
    /// The keys that seal what is stored of endpoints at run time, 32 bytes each in base64 or hexadecimal. The first
    /// seals, all open: rotation. Without any, endpoints come from the configuration alone.
    pub seal_keys: Vec<SecretRef>,
    /// Networks that may be reached although they are not public: private ones, loopback, an address of this very
    /// machine. Empty unless you deliver inside your own network. A cloud's metadata address passes only when it
    /// is listed by itself, as a /32 or /128.
    pub allow_networks: Vec<IpNet>,
    /// Hosts that may have private names and private addresses: `vault.corp.example.com`, or `*.corp.example.com` for
    /// everything beneath. That covers RFC 1918, shared (100.64.0.0/10), unique local and loopback addresses;
    /// anything else that is not public, and an address of this very machine, still needs `allow_networks`.
    pub allow_hosts: Vec<HostPattern>,
    /// Hosts that are never reached, whatever else is allowed; written like `allow_hosts`.
    pub deny_hosts: Vec<HostPattern>,
    /// The only ports that may be reached, for example `[443, "8000-8999"]`. Empty allows every port but those that
    /// are known for another protocol than HTTP.
    pub allow_ports: Vec<Ports>,
    /// The name servers that are asked instead of the system's resolver, for example `["10.0.0.2:53"]`, over UDP and
    /// TCP. The hosts file and search domains then play no part.
    pub nameservers: Vec<NameServer>,
    /// The age up to which a kept connection takes another request, so that a changed address is noticed under
    /// constant traffic too. `"0s"` makes a connection for each attempt.
    #[serde(with = "humantime_serde")]
    pub max_connection_age: Duration,
    /// Whether `http://` may be used. Without it only `https://` is.
    pub allow_http: bool,
}

impl Default for Egress {
    fn default() -> Self {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let mut retry = vec![Duration::from_secs(5), Duration::from_secs(300), Duration::from_secs(1800)];
        retry.extend([2, 5, 10, 14, 20, 24].map(hours));
        Self {
            timeout: Duration::from_secs(15),
            retry: Retry::new(retry),
            jitter: 0.1,
            max_retry_after: hours(24),
            max_age: None,
            give_up_on: Vec::new(),
            concurrency: 1024,
            max_in_flight: ByteSize::mib(32),
            max_concurrent: 128,
            rate: None,
            breaker: Some(Breaker::default()),
            repair_every: Duration::from_secs(300),
            seal_keys: Vec::new(),
            allow_networks: Vec::new(),
            allow_hosts: Vec::new(),
            deny_hosts: Vec::new(),
            allow_ports: Vec::new(),
            nameservers: Vec::new(),
            max_connection_age: Duration::from_secs(60),
            allow_http: false,
        }
    }
}
