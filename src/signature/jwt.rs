//! JSON Web Tokens as webhooks carry them: a compact JWS with few claims (RFC 7515, RFC 7519).
//!
//! The configuration says which algorithm a token has; what the token says of itself only has to agree.
//! The clock is an argument, and keys and codes are made by the same crates as everything else here
//! (docs/adr/0003 says why no token library is used).

use std::time::{Duration, SystemTime};

use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::encoding::Encoding;
use super::key::Key;
use super::mac::{Hash, MacKey, any_equal};
use super::public_key::{PublicKey, Signing};
use super::scheme::SchemeError;
use super::template::{Template, Values};
use super::verify::Inquiry;
use super::{Document, Rejection, Scheme};
use crate::clock::unix_seconds;
use crate::event::Request;
use crate::event::place::Scope;

/// The longest token that is looked at. One that is the body itself may be longer.
const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// The longest header of a token.
const MAX_HEADER_BYTES: usize = 4 * 1024;
/// How long a token that is written here holds.
const LIFETIME: Duration = Duration::from_secs(300);

/// What a token must say.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// The one algorithm that is accepted, whatever the token says.
    algorithms: Vec<TokenAlgorithm>,
    /// What `iss` must be.
    #[serde(default)]
    issuer: Option<Template>,
    /// What `aud` must be, or hold.
    #[serde(default)]
    audience: Option<Template>,
    /// The claim that holds the body's hash.
    #[serde(default)]
    pub(crate) body_claim: Option<BodyClaim>,
    /// A claim that must be one of the secrets.
    #[serde(default)]
    pub(crate) secret_claim: Option<String>,
    /// How old `iat` may be.
    #[serde(default, with = "humantime_serde")]
    max_age: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum TokenAlgorithm {
    #[serde(rename = "HS256")]
    Hs256,
    #[serde(rename = "RS256")]
    Rs256,
    #[serde(rename = "ES256")]
    Es256,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BodyClaim {
    claim: String,
    #[serde(default = "sha256")]
    algorithm: Hash,
    #[serde(default)]
    encoding: Encoding,
}

fn sha256() -> Hash {
    Hash::Sha256
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    /// Extensions that must be understood (RFC 7515, section 4.1.11): none is.
    #[serde(default)]
    crit: Option<IgnoredAny>,
}

impl Jwt {
    pub(super) fn validate(&self, fetched: bool) -> Result<(), SchemeError> {
        let wrong = |reason| Err(SchemeError { key: "jwt", reason });
        match self.algorithms[..] {
            // With several, a public key could be taken for a shared one.
            [TokenAlgorithm::Hs256] if fetched => wrong("HS256 is for a shared secret, and `jwks` for public keys"),
            [_] => Ok(()),
            _ => wrong("needs exactly one of `algorithms`: HS256, RS256 or ES256"),
        }
    }

    /// How the private key signs; `None` where both sides share the key.
    pub(super) fn signing(&self) -> Option<Signing> {
        match self.algorithms.first()? {
            TokenAlgorithm::Hs256 => None,
            TokenAlgorithm::Rs256 => Some(Signing::RsaSha256),
            TokenAlgorithm::Es256 => Some(Signing::P256Fixed),
        }
    }

    fn name(&self) -> &'static str {
        match self.algorithms.first() {
            Some(TokenAlgorithm::Rs256) => "RS256",
            Some(TokenAlgorithm::Es256) => "ES256",
            Some(TokenAlgorithm::Hs256) | None => "HS256",
        }
    }

    pub(super) fn needs_url(&self) -> bool {
        self.issuer.iter().chain(&self.audience).any(Template::has_url)
    }

    /// Whether a token is genuine and for us; says which secret it belongs to.
    pub(super) fn verify(
        &self,
        scheme: &Scheme,
        token: &str,
        keys: &[(usize, &Key)],
        inquiry: &Inquiry<'_>,
    ) -> Result<usize, Rejection> {
        if token.len() > MAX_TOKEN_BYTES.max(inquiry.request.body.len()) {
            return Err(Rejection::Token("it is too long"));
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Rejection::Token("it has not three parts"))?;
        let (header, claims) = signed.split_once('.').ok_or(Rejection::Token("it has not three parts"))?;
        if header.len() > MAX_HEADER_BYTES {
            return Err(Rejection::Token("its header is too long"));
        }
        let part = |text: &str| {
            BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| Rejection::Token("a part of it is not base64url"))
        };
        let header: Header = serde_json::from_slice(&part(header)?)
            .map_err(|_| Rejection::Token("its header is not what it should be"))?;
        if header.alg != self.name() || header.crit.is_some() {
            return Err(Rejection::Token("its header names another algorithm, or an extension"));
        }
        let matched = self.matching_key(scheme, &header, signed.as_bytes(), &part(signature)?, keys, inquiry)?;
        let claims: Map<String, Value> =
            serde_json::from_slice(&part(claims)?).map_err(|_| Rejection::Token("its claims are not a JSON object"))?;
        self.check_times(scheme, &claims, inquiry.now)?;
        self.check_claims(&claims, inquiry)?;
        match &self.secret_claim {
            None => Ok(matched),
            Some(claim) => {
                let value = claims.get(claim).and_then(Value::as_str).unwrap_or_default().as_bytes();
                let named = keys.iter().find(|(_, key)| key.text().is_some_and(|text| any_equal(text, &[value])));
                named.map(|(secret, _)| *secret).ok_or_else(|| Rejection::NotForUs(format!("claim `{claim}`")))
            }
        }
    }

    /// A token that says what it must, signed with a shared key as its issuer would.
    pub(super) fn write(&self, key: &MacKey, now: SystemTime, request: &Request<'_>) -> Result<String, Rejection> {
        let text = |template: &Template| template.text(Values::of(Scope::of(request))).map(Value::String);
        let (issued, expires) = (unix_seconds(now), unix_seconds(now + LIFETIME));
        let mut claims = Map::from_iter([("iat".to_owned(), issued.into()), ("exp".to_owned(), expires.into())]);
        for (claim, template) in [("iss", &self.issuer), ("aud", &self.audience)] {
            if let Some(template) = template {
                claims.insert(claim.to_owned(), text(template)?);
            }
        }
        if let Some(BodyClaim { claim, algorithm, encoding }) = &self.body_claim {
            claims.insert(claim.clone(), encoding.encode(&algorithm.digest(&[request.body])).into());
        }
        let part = |json: String| BASE64URL_NOPAD.encode(json.as_bytes());
        let header = serde_json::json!({ "alg": self.name(), "typ": "JWT" });
        let signed = format!("{}.{}", part(header.to_string()), part(Value::Object(claims).to_string()));
        let code = BASE64URL_NOPAD.encode(&key.mac(&[signed.as_bytes()]));
        Ok(format!("{signed}.{code}"))
    }

    fn matching_key(
        &self,
        scheme: &Scheme,
        header: &Header,
        signed: &[u8],
        signature: &[u8],
        keys: &[(usize, &Key)],
        inquiry: &Inquiry<'_>,
    ) -> Result<usize, Rejection> {
        if let Some(url) = &scheme.jwks {
            let unfetched = |stale| Rejection::Unfetched { url: url.clone(), stale };
            let document = (inquiry.documents)(url.as_str()).ok_or_else(|| unfetched(false))?;
            let Document::Keys(known) = &*document else { return Err(Rejection::Token("no key set is at `jwks`")) };
            let named = |(name, _): &&(Option<String>, PublicKey)| header.kid.is_none() || *name == header.kid;
            let mut candidates = known.iter().filter(named).peekable();
            if candidates.peek().is_none() {
                // The provider may have a new key since.
                return Err(unfetched(true));
            }
            let signing = self.signing().unwrap_or(Signing::RsaSha256);
            let found = candidates.any(|(_, key)| key.verifies(signing, signed, signature));
            return if found { Ok(0) } else { Err(Rejection::Mismatch { secrets: known.len() }) };
        }
        let made = |key: &Key| match (key, self.signing()) {
            (Key::Public(key), Some(signing)) => key.verifies(signing, signed, signature),
            (key, None) => key.made(&[signed.into()], &[signature.to_vec()]),
            _ => false,
        };
        let found = keys.iter().fold(None, |found, (secret, key)| if made(key) { Some(*secret) } else { found });
        found.ok_or(Rejection::Mismatch { secrets: keys.len() })
    }

    fn check_times(&self, scheme: &Scheme, claims: &Map<String, Value>, now: SystemTime) -> Result<(), Rejection> {
        let (now, leeway) = (unix_seconds(now), scheme.tolerance.as_secs());
        let time = |claim: &'static str| match claims.get(claim) {
            None => Ok(None),
            Some(Value::Number(number)) => match number.as_f64() {
                Some(seconds) if (0.0..1e15).contains(&seconds) => Ok(Some(seconds as u64)),
                _ => Err(Rejection::Token("a time in its claims is none")),
            },
            Some(_) => Err(Rejection::Token("a time in its claims is none")),
        };
        let too_old = |by: u64| Err(Rejection::TooOld { by: Duration::from_secs(by) });
        let too_new = |by: u64| Err(Rejection::TooNew { by: Duration::from_secs(by) });
        if let Some(end) = time("exp")?
            && now > end + leeway
        {
            return too_old(now - end - leeway);
        }
        if let Some(start) = time("nbf")?
            && start > now + leeway
        {
            return too_new(start - now - leeway);
        }
        match (time("iat")?, self.max_age) {
            (Some(issued), _) if issued > now + leeway => too_new(issued - now - leeway),
            (Some(issued), Some(max)) if now.saturating_sub(issued) > max.as_secs() => {
                too_old(now - issued - max.as_secs())
            }
            (None, Some(_)) => Err(Rejection::Token("it does not say when it was issued")),
            _ => Ok(()),
        }
    }

    fn check_claims(&self, claims: &Map<String, Value>, inquiry: &Inquiry<'_>) -> Result<(), Rejection> {
        let text = |template: &Template| template.text(Values::of(Scope::of(inquiry.request)));
        if let Some(issuer) = &self.issuer
            && claims.get("iss").and_then(Value::as_str) != Some(&text(issuer)?)
        {
            return Err(Rejection::Token("it is from another issuer"));
        }
        if let Some(audience) = &self.audience {
            let wanted = text(audience)?;
            let named = match claims.get("aud") {
                Some(Value::String(one)) => *one == wanted,
                Some(Value::Array(several)) => several.iter().any(|one| one.as_str() == Some(&wanted)),
                _ => false,
            };
            if !named {
                return Err(Rejection::Token("it is for another audience"));
            }
        }
        if let Some(BodyClaim { claim, algorithm, encoding }) = &self.body_claim {
            let hash = claims.get(claim).and_then(Value::as_str).and_then(|text| encoding.decode(text).ok());
            let hash = hash.ok_or(Rejection::BodyHash)?;
            if !any_equal(&algorithm.digest(&[inquiry.request.body]), &[hash]) {
                return Err(Rejection::BodyHash);
            }
        }
        Ok(())
    }
}
