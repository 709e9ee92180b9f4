//! `[egress]`

use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;
use serde::Deserialize;

use super::policy::{Breaker, Retry, breaker_or_none};
use super::rate::{Rate, rate_or_none};
use crate::secret::SecretRef;

/// Webhooks going out.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Egress {
    /// The longest that one attempt may take, from looking up the host to the last byte of the answer.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// The waits between attempts: a list with one entry fewer than there are attempts, or a table of waits that
    /// grow.
    pub retry: Retry,
    /// By what part of itself a wait may be longer or shorter, so that what failed together does not come again
    /// together: 0 to 1.
    pub jitter: f64,
    /// The longest wait that an endpoint can ask for with `Retry-After`.
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
    /// The keys that seal what is stored of endpoints at run time, 32 bytes each in base64 or hexadecimal. The first
    /// seals, all open: rotation. Without any, endpoints come from the configuration alone.
    pub seal_keys: Vec<SecretRef>,
    /// Private networks that may be reached. Empty unless you deliver inside your own network.
    pub allow_networks: Vec<IpNet>,
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
            seal_keys: Vec::new(),
            allow_networks: Vec::new(),
            allow_http: false,
        }
    }
}
