//! `[egress]`

use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de};

/// Webhooks going out.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Egress {
    /// The longest that one attempt may take, from looking up the host to the last byte of the answer.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// The waits between attempts: one entry fewer than there are attempts.
    #[serde(deserialize_with = "durations")]
    pub retry: Vec<Duration>,
    /// The longest wait that an endpoint can ask for with `Retry-After`.
    #[serde(with = "humantime_serde")]
    pub max_retry_after: Duration,
    /// Attempts in flight at once in this process, first attempts and repeated ones each.
    pub concurrency: usize,
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
            retry,
            max_retry_after: hours(24),
            concurrency: 256,
            allow_networks: Vec::new(),
            allow_http: false,
        }
    }
}

fn durations<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<Duration>, D::Error> {
    let parse = |text: &String| {
        humantime::parse_duration(text).map_err(|error| de::Error::custom(format_args!("`{text}`: {error}")))
    };
    Vec::<String>::deserialize(value)?.iter().map(parse).collect()
}
