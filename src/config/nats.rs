//! `[nats]`

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

use crate::event::Name;
use crate::secret::SecretRef;

/// The NATS servers: the only thing that Hookbridge needs beside itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nats {
    /// Where to connect, for example `nats://nats:4222`; several servers of one cluster as a list.
    pub url: Urls,
    /// Copies of every stream, bucket and durable: 1, 3 or 5. Those that there are keep their number until a process
    /// is started with `--update-streams`.
    pub replicas: usize,
    /// Put in front of every subject, stream and bucket, so that several Hookbridges can share an account.
    #[serde(deserialize_with = "optional_name")]
    pub prefix: Option<Name>,
    /// What you know of how the servers sync to disk. Hookbridge cannot see it, and does not change it.
    pub durability: Durability,
    /// A credentials file (JWT and seed).
    pub credentials: Option<PathBuf>,
    /// The seed of an nkey.
    pub nkey: Option<SecretRef>,
    /// User name; needs `password`.
    pub user: Option<String>,
    /// The password of `user`.
    pub password: Option<SecretRef>,
    /// An authentication token.
    pub token: Option<SecretRef>,
    /// TLS beyond what the URL asks for.
    pub tls: Tls,
}

/// When a message that JetStream confirmed is on the disk, as the operator states it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Some time after: the server's own default (`sync_interval`, two minutes). A killed process loses nothing, a
    /// power cut on a single server may. Webhooks are published one by one, which is fastest there.
    #[default]
    Periodic,
    /// Before it is confirmed: every server has `sync_interval: always` in its `jetstream` block. Then each publish
    /// waits for the disk, so the gateway gathers the webhooks that arrive together and has them stored in one step
    /// (an atomic batch); each is answered for itself, as ever. Lets `EVENTS` take such batches, which needs nothing
    /// else. Stored events of a batch have three more headers, `Nats-Batch-Id`, `-Sequence` and `-Commit`.
    ///
    /// Said of servers that do not sync always, it makes nothing more durable, and webhooks are stored more slowly.
    Synced,
}

impl fmt::Display for Durability {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Periodic => "periodic",
            Self::Synced => "synced",
        })
    }
}

/// `[nats.tls]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Refuse a connection without TLS.
    pub required: bool,
    /// Certificate authorities (PEM) beside the system's.
    pub ca: Option<PathBuf>,
    /// The client's certificate chain (PEM); needs `key`.
    pub certificate: Option<PathBuf>,
    /// The key of `certificate` (PEM).
    pub key: Option<PathBuf>,
}

/// One URL or a list of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a URL or a list of URLs")]
pub enum Urls {
    /// One server.
    One(String),
    /// Several servers of one cluster.
    Many(Vec<String>),
}

impl Urls {
    /// The URLs in the order given.
    pub fn as_slice(&self) -> &[String] {
        match self {
            Self::One(url) => std::slice::from_ref(url),
            Self::Many(urls) => urls,
        }
    }
}

impl Urls {
    /// The URLs without user names and passwords: what may be printed.
    pub fn public(&self) -> Vec<&str> {
        self.as_slice().iter().map(|url| url.rsplit_once('@').map_or(url.as_str(), |(_, host)| host)).collect()
    }
}

impl Default for Nats {
    fn default() -> Self {
        Self {
            url: Urls::One("nats://localhost:4222".to_owned()),
            replicas: 1,
            prefix: None,
            durability: Durability::default(),
            credentials: None,
            nkey: None,
            user: None,
            password: None,
            token: None,
            tls: Tls::default(),
        }
    }
}

/// An empty text is no name.
fn optional_name<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Name>, D::Error> {
    let text = String::deserialize(value)?;
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(serde::de::Error::custom) }
}
