//! Why a request is not genuine: precise for those who operate a gateway, one word for the counter, and
//! nothing at all for the sender.

use std::time::Duration;

use url::Url;

/// Why a request is not genuine. For the log, the counter and the quarantine; the sender learns only that it
/// is so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The signature, or something that it covers, is not there.
    #[error("nothing at `{0}`")]
    Missing(String),
    /// One value was expected and there are several, or more than anybody honest sends.
    #[error("several values at `{0}`, or too many")]
    Ambiguous(String),
    /// There are entries, and none of a form that this source knows.
    #[error("no signature with a known version: none at `{place}` begins with `{prefix}`")]
    UnknownVersion {
        /// Where the signatures are.
        place: String,
        /// What a known one begins with.
        prefix: String,
    },
    /// It is there, in a form that no honest sender writes.
    #[error("`{place}` is malformed: {reason}")]
    Malformed {
        /// Where it is.
        place: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It does not belong to these bytes and any of the secrets.
    #[error("mismatch with {}", all(*.secrets))]
    Mismatch {
        /// How many secrets were tried.
        secrets: usize,
    },
    /// The signature is right and its timestamp too long ago.
    #[error("too old by {} s", by.as_secs().max(1))]
    TooOld {
        /// How far beyond the tolerance.
        by: Duration,
    },
    /// The signature is right and its timestamp too far ahead.
    #[error("from the future by {} s more than allowed", by.as_secs().max(1))]
    TooNew {
        /// How far beyond the tolerance.
        by: Duration,
    },
    /// The signature is right, and the hash that it covers is another body's.
    #[error("the body is not the one whose hash is signed")]
    BodyHash,
    /// The signature is right, and it is for somebody else: another topic, audience or account.
    #[error("`{0}` is not one of the secrets")]
    NotForUs(String),
    /// A JSON Web Token says something else than it must.
    #[error("token refused: {0}")]
    Token(&'static str),
    /// No way of proving itself applies to this request.
    #[error("no way of proving itself applies: its `when` or `secrets` leave none")]
    NoWay,
    /// A key that stands at an address has not been fetched yet. Not the sender's fault.
    #[error("the key at {} is not here", public(url))]
    Unfetched {
        /// The key's address.
        url: Url,
        /// What is known of the address is not enough: it has no such key.
        stale: bool,
    },
}

impl Rejection {
    /// The word for metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Missing(_) => "missing",
            Self::Ambiguous(_) => "ambiguous",
            Self::UnknownVersion { .. } => "version",
            Self::Malformed { .. } => "malformed",
            Self::Mismatch { .. } => "mismatch",
            Self::TooOld { .. } => "too-old",
            Self::TooNew { .. } => "too-new",
            Self::BodyHash => "body-hash",
            Self::NotForUs(_) => "not-for-us",
            Self::Token(_) => "token",
            Self::NoWay => "no-way",
            Self::Unfetched { .. } => "unknown-key",
        }
    }

    /// How far verification came. Of several ways, the one that came furthest says what is wrong.
    pub(super) fn depth(&self) -> u8 {
        match self {
            Self::NoWay => 0,
            Self::Missing(_) => 1,
            Self::Ambiguous(_) | Self::UnknownVersion { .. } => 2,
            Self::Malformed { .. } => 3,
            Self::Mismatch { .. } => 4,
            Self::Unfetched { .. } => 5,
            Self::Token(_) | Self::NotForUs(_) | Self::BodyHash => 6,
            Self::TooOld { .. } | Self::TooNew { .. } => 7,
        }
    }
}

fn all(secrets: usize) -> String {
    if secrets == 1 { "the only secret".to_owned() } else { format!("all {secrets} secrets") }
}

fn public(url: &Url) -> String {
    format!("{}://{}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}
