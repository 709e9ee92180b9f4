//! `[endpoints.<name>.auth]`

use std::collections::BTreeMap;

use serde::Deserialize;
use url::Url;

use crate::secret::SecretRef;

/// How deliveries authenticate themselves to an endpoint, beside their signatures: exactly one of the three.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authorization {
    /// A user name and a password (RFC 7617).
    pub basic: Option<Basic>,
    /// A token that does not change by itself (RFC 6750).
    pub bearer: Option<SecretRef>,
    /// Tokens of a token server: the client credentials grant of OAuth 2.0 (RFC 6749, section 4.4).
    pub oauth2: Option<ClientCredentials>,
}

/// `basic = { user = "…", password = "env:…" }`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Basic {
    /// The user name; it cannot hold a colon.
    pub user: String,
    /// The password.
    pub password: SecretRef,
}

/// `[endpoints.<name>.auth.oauth2]`
///
/// A token is kept until shortly before it expires, and fetched once for all deliveries that wait for it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientCredentials {
    /// Where tokens are asked for. Https, unless `egress.allow_http`; it goes through the address guard.
    pub token_url: Url,
    /// The client's name at the token server.
    pub client_id: String,
    /// The client's secret there.
    pub client_secret: SecretRef,
    /// What the token is to be good for; `scope`, joined by blanks.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// For whom the token is, where the server wants to know.
    pub audience: Option<String>,
    /// How id and secret are told.
    #[serde(default)]
    pub style: ClientStyle,
    /// Further parameters of the token request, as some servers need them.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
}

/// How a client tells its id and secret (RFC 6749, section 2.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientStyle {
    /// In an `Authorization: Basic` header, which every server understands.
    #[default]
    Basic,
    /// In the body, as `client_id` and `client_secret`.
    Body,
}

impl Authorization {
    /// How many kinds are configured; one is right.
    pub(super) fn kinds(&self) -> usize {
        [self.basic.is_some(), self.bearer.is_some(), self.oauth2.is_some()].into_iter().filter(|kind| *kind).count()
    }
}

impl ClientCredentials {
    /// The parameters that Hookbridge writes itself.
    pub(super) const OWN_PARAMETERS: [&str; 5] = ["grant_type", "client_id", "client_secret", "scope", "audience"];
}
