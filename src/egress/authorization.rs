//! How requests to an endpoint prove who sends them, beside their signatures: secret headers, HTTP Basic, a bearer
//! token of the operator's, or one of a token server ([`tokens`]).
//!
//! Secrets are in key rings, so that SIGHUP reads them again. The headers are marked sensitive: nothing prints them.

mod tokens;

use std::sync::Arc;
use std::time::SystemTime;

use data_encoding::BASE64;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use self::tokens::{NoToken, Tokens};
use super::reason::Failure;
use super::retry::Outcome;
use crate::clock::Clock;
use crate::config;
use crate::outbound::{Client, Guard};
use crate::secret::{KeyError, KeyRing, Reload, Secret, SecretRef};

/// What an endpoint's requests carry to be let in.
#[derive(Default)]
pub(super) struct Authorization {
    fixed: Vec<(HeaderName, Arc<KeyRing<HeaderValue>>)>,
    tokens: Option<Tokens>,
}

/// What a token is fetched with.
#[derive(Clone, Copy)]
pub(super) struct Means<'a> {
    pub(super) client: &'a Client,
    pub(super) guard: &'a Guard,
    pub(super) clock: &'a Clock,
    /// When the attempt that needs it ends.
    pub(super) deadline: Instant,
}

impl Authorization {
    pub(super) fn new(endpoint: &config::Endpoint) -> Result<Self, KeyError> {
        let mut fixed = Vec::new();
        for (name, secret) in &endpoint.secret_headers {
            // It parses: the configuration was checked when it was loaded.
            let Ok(name) = name.parse::<HeaderName>() else { continue };
            fixed.push((name, ring(secret, |secret| sensitive(secret.expose()))?));
        }
        let auth = endpoint.auth.as_ref();
        if let Some(token) = auth.and_then(|auth| auth.bearer.as_ref()) {
            fixed.push((AUTHORIZATION, ring(token, |token| bearer(token.expose()))?));
        }
        if let Some(config::Basic { user, password }) = auth.and_then(|auth| auth.basic.as_ref()) {
            let user = user.clone();
            fixed.push((AUTHORIZATION, ring(password, move |password| basic(&user, password.expose()))?));
        }
        let tokens = auth.and_then(|auth| auth.oauth2.as_ref()).map(Tokens::new).transpose()?;
        Ok(Self { fixed, tokens })
    }

    /// The key rings that SIGHUP reads again.
    pub(super) fn secrets(&self) -> impl Iterator<Item = Arc<dyn Reload>> + '_ {
        let fixed = self.fixed.iter().map(|(_, ring)| ring.clone() as Arc<dyn Reload>);
        fixed.chain(self.tokens.iter().map(|tokens| tokens.secret() as Arc<dyn Reload>))
    }

    /// The headers of one attempt. Takes time only where a token has to be fetched, and no longer than the attempt.
    pub(super) async fn headers(&self, means: Means<'_>) -> Result<HeaderMap, Outcome> {
        let mut headers = HeaderMap::new();
        for (name, ring) in &self.fixed {
            headers.extend(ring.keys().iter().map(|value| (name.clone(), value.clone())));
        }
        if let Some(tokens) = &self.tokens {
            let token = tokens.get(means).await.map_err(|none| match none {
                NoToken { detail, no_descriptor: true } => Outcome::NotNow { detail },
                NoToken { detail, .. } => Outcome::Failed { failure: Failure::Auth, detail },
            })?;
            headers.insert(AUTHORIZATION, token);
        }
        Ok(headers)
    }

    /// Hears how an attempt with these headers ended: a token that was refused is not used again.
    pub(super) fn heard(&self, sent: &HeaderMap, status: Option<u16>, now: SystemTime) {
        if let (Some(tokens), Some(401), Some(token)) = (&self.tokens, status, sent.get(AUTHORIZATION)) {
            tokens.forget(token, now);
        }
    }
}

fn ring<K: 'static>(
    secret: &SecretRef,
    prepare: impl Fn(&Secret) -> Result<K, String> + Send + Sync + 'static,
) -> Result<Arc<KeyRing<K>>, KeyError> {
    KeyRing::load(vec![secret.clone()], prepare).map(Arc::new)
}

fn bearer(token: &[u8]) -> Result<HeaderValue, String> {
    sensitive(&[b"Bearer ", token].concat())
}

/// RFC 7617, section 2, with the characters of name and password in UTF-8.
fn basic(user: &str, password: &[u8]) -> Result<HeaderValue, String> {
    let pair = BASE64.encode(&[user.as_bytes(), b":", password].concat());
    sensitive(format!("Basic {pair}").as_bytes())
}

fn sensitive(value: &[u8]) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_bytes(value).map_err(|_| "has bytes that a header cannot carry".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_is_the_example_of_rfc_7617() {
        assert_eq!(basic("Aladdin", b"open sesame").unwrap(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(basic("test", "123£".as_bytes()).unwrap(), "Basic dGVzdDoxMjPCow==");
    }

    #[test]
    fn nothing_prints_a_secret_header() {
        let printed = format!("{:?} {:?}", bearer(b"t0ken"), basic("me", b"s3cret"));
        assert!(!printed.contains("t0ken") && !printed.contains(&BASE64.encode(b"me:s3cret")), "{printed}");
        assert!(bearer(b"a\nb").unwrap_err().contains("cannot carry"));
    }
}
