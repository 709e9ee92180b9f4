//! The engine: whether a request is genuine, and if not, why.
//!
//! It works on the raw body, tries every secret, and compares in constant time. It does no I/O: a key that
//! stands at an address is asked of the caller, and [`Rejection::Unfetched`] says which one is not there yet.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use data_encoding::BASE64;
use http::HeaderName;
use url::Url;

use super::key::{Key, Pieces};
use super::mac::{Hash, any_equal};
use super::profile::Naming;
use super::public_key::PublicKey;
use super::template::Values;
use super::{Algorithm, Document, Rejection, Scheme};
use crate::event::json::Pointer;
use crate::event::place::{Ambiguous, Scope};
use crate::event::{Place, Places, Request};
use crate::secret::Secret;

/// The most signatures of one request that are looked at; honest senders list one per secret.
const MAX_CLAIMS: usize = 16;
/// The most entries of a signature's header: signatures, a timestamp, and versions that are not known here.
const MAX_ENTRIES: usize = 32;
/// The most numbered headers that carry signatures; DocuSign has up to 100 keys.
const MAX_NUMBERED: usize = 100;

/// Different ways of proving the same thing; one that applies and accepts is enough.
#[derive(Clone, Debug)]
pub struct Ways(Vec<Scheme>);

/// A secret, prepared for each of the ways that it belongs to.
pub(crate) type Credential = Vec<Option<Key>>;

/// A request, and what it is judged by.
pub(crate) struct Inquiry<'a> {
    pub(crate) request: &'a Request<'a>,
    /// The source's place of the delivery id, for schemes that sign it.
    pub(crate) id: Option<&'a Naming>,
    pub(crate) now: SystemTime,
    /// The document at an address, if it is known.
    pub(crate) documents: &'a dyn Fn(&str) -> Option<Arc<Document>>,
}

/// The request is genuine. Only [`Ways::verify`] makes one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Genuine {
    /// The position of the secret that it was proved with.
    pub(crate) secret: usize,
}

impl Ways {
    /// The ways, in the order in which they are tried.
    pub fn new(schemes: Vec<Scheme>) -> Self {
        Self(schemes)
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Scheme> {
        self.0.iter()
    }

    /// Prepares a secret. The error says what is wrong and never repeats the value.
    pub(crate) fn credential(&self, secret: &Secret) -> Result<Credential, String> {
        let mut reason = "has a form that no way of proving takes".to_owned();
        let mut credential = Credential::with_capacity(self.0.len());
        for scheme in &self.0 {
            credential.push(match scheme.takes(secret).then(|| scheme.key(secret)) {
                Some(Ok(key)) => Some(key),
                Some(Err(wrong)) => {
                    reason = wrong;
                    None
                }
                None => None,
            });
        }
        // Ways may read the same text differently; one that can use it is enough.
        if credential.iter().all(Option::is_none) { Err(reason) } else { Ok(credential) }
    }

    /// Whether the request comes from somebody who knows one of the secrets.
    pub(crate) fn verify(&self, credentials: &[Credential], inquiry: &Inquiry<'_>) -> Result<Genuine, Rejection> {
        let mut why = Rejection::NoWay;
        for (position, scheme) in self.0.iter().enumerate() {
            if !scheme.when.hold(Scope::of(inquiry.request)) {
                continue;
            }
            let keys: Vec<(usize, &Key)> = credentials
                .iter()
                .enumerate()
                .filter_map(|(secret, credential)| Some((secret, credential.get(position)?.as_ref()?)))
                .collect();
            if keys.is_empty() && scheme.needs_secret() {
                continue;
            }
            match scheme.verify(&keys, inquiry) {
                Ok(secret) => return Ok(Genuine { secret }),
                Err(rejection) if rejection.depth() >= why.depth() => why = rejection,
                Err(_) => {}
            }
        }
        Err(why)
    }
}

impl Scheme {
    pub(super) fn verify(&self, keys: &[(usize, &Key)], inquiry: &Inquiry<'_>) -> Result<usize, Rejection> {
        let Some(list) = &self.each else { return self.verify_item(keys, inquiry, None) };
        let items = items(list, inquiry.request.body)?;
        let mut secret = Err(Rejection::Missing(format!("json:{list}")));
        for item in items {
            secret = Ok(self.verify_item(keys, inquiry, Some(item))?);
        }
        secret
    }

    fn verify_item(
        &self,
        keys: &[(usize, &Key)],
        inquiry: &Inquiry<'_>,
        item: Option<&[u8]>,
    ) -> Result<usize, Rejection> {
        let scope = Scope { request: inquiry.request, item, entries: &[] };
        let texts = self.texts(scope)?;
        let entries = self.entries(&texts)?;
        let scope = Scope { entries: &entries, ..scope };
        let claims = self.claims(&entries)?;
        if let Some(jwt) = &self.jwt {
            let token = String::from_utf8_lossy(&claims[0]);
            return jwt.verify(self, &token, keys, inquiry);
        }
        let timestamp = self.timestamp.as_ref().map(|places| required(places, scope)).transpose()?;
        let id = match inquiry.id {
            Some(naming) if self.signed.has_id() => Some(identified(naming, scope)?),
            _ => None,
        };
        let values = Values { timestamp: timestamp.as_deref(), id: id.as_deref(), ..Values::of(scope) };
        let secret = self.matching_secret(keys, &claims, values, inquiry)?;
        if let (Some(text), Some(places)) = (&timestamp, &self.timestamp) {
            self.check_listed(places, scope)?;
            self.unit.check(text, &places.to_string(), (self.tolerance, self.future), inquiry.now)?;
        }
        self.check_body_hash(scope)?;
        self.check_secret_at(keys, scope)?;
        Ok(secret)
    }

    /// What stands at the places of the signature; at least one.
    pub(super) fn texts<'a>(&self, scope: Scope<'a>) -> Result<Vec<Cow<'a, str>>, Rejection> {
        let mut texts = Vec::with_capacity(1);
        for place in &self.signature {
            match place {
                Place::Numbered(name) => texts.extend(numbered(scope, name)),
                place => texts.extend(place.find(scope).map_err(|Ambiguous| ambiguous(place))?),
            }
        }
        texts.retain(|text| !text.is_empty());
        if texts.is_empty() { Err(Rejection::Missing(self.places())) } else { Ok(texts) }
    }

    pub(super) fn entries<'a>(&self, texts: &'a [Cow<'a, str>]) -> Result<Vec<&'a str>, Rejection> {
        let mut entries: Vec<&str> = Vec::with_capacity(texts.len());
        for text in texts {
            match &self.separator {
                Some(separator) => {
                    let parts = text.split(separator.as_str()).map(str::trim).filter(|entry| !entry.is_empty());
                    entries.extend(parts.take(MAX_ENTRIES + 1));
                }
                None => entries.push(text.as_ref()),
            }
        }
        let most = if texts.len() > 1 { MAX_NUMBERED } else { MAX_ENTRIES };
        if entries.len() > most { Err(Rejection::Ambiguous(self.places())) } else { Ok(entries) }
    }

    /// The signatures that the request claims, decoded. Foreign versions in a list are left alone.
    fn claims(&self, entries: &[&str]) -> Result<Vec<Vec<u8>>, Rejection> {
        let malformed = |reason| Rejection::Malformed { place: self.places(), reason };
        if self.algorithm == Algorithm::Basic {
            return basic(entries.first().copied().unwrap_or_default()).map(|pair| vec![pair]).map_err(malformed);
        }
        let known: Vec<&str> = entries.iter().filter_map(|entry| entry.strip_prefix(self.prefix.as_str())).collect();
        if known.is_empty() {
            return Err(Rejection::UnknownVersion { place: self.places(), prefix: self.prefix.clone() });
        }
        // Numbered headers have one entry each, and were bounded when they were read.
        if known.len() > MAX_CLAIMS && self.separator.is_some() {
            return Err(Rejection::Ambiguous(self.places()));
        }
        let (mut claims, mut reason) = (Vec::with_capacity(known.len()), "");
        for text in known {
            match self.encoding.decode(text) {
                Ok(claim) => claims.push(claim),
                Err(wrong) => reason = wrong,
            }
        }
        if claims.is_empty() { Err(malformed(reason)) } else { Ok(claims) }
    }

    /// The position of the secret that made one of the claims. All are tried, and none ends the search early.
    fn matching_secret(
        &self,
        keys: &[(usize, &Key)],
        claims: &[Vec<u8>],
        values: Values<'_>,
        inquiry: &Inquiry<'_>,
    ) -> Result<usize, Rejection> {
        let certified = self.certificate_key(values.scope, inquiry)?.map(Key::Public);
        // Each key that may have signed, and the secret that may be part of what it signed.
        let candidates: Vec<(usize, &Key, Option<&[u8]>)> = match &certified {
            None => keys.iter().map(|(secret, key)| (*secret, *key, key.text())).collect(),
            Some(key) if self.signed.has_secret() => {
                keys.iter().map(|(secret, own)| (*secret, key, own.text())).collect()
            }
            Some(key) => vec![(0, key, None)],
        };
        let mut found = None;
        for variant in 0..self.signed.variants() {
            let values = Values { variant, ..values };
            let mut pieces = self.signed.fill(Values { secret: Some(b""), ..values })?;
            for (secret, key, text) in &candidates {
                if self.signed.has_secret() {
                    pieces = self.signed.fill(Values { secret: *text, ..values })?;
                }
                if self.made(key, &pieces, claims) {
                    found = Some(*secret);
                }
            }
        }
        found.ok_or(Rejection::Mismatch { secrets: keys.len() })
    }

    /// Whether one of the claims was made with this key over these bytes, or is the key.
    fn made(&self, key: &Key, pieces: &Pieces<'_>, claims: &[Vec<u8>]) -> bool {
        match key {
            Key::Mac(key) => any_equal(&key.mac(pieces), claims),
            Key::Text(_) if self.algorithm == Algorithm::PlainSha256 => any_equal(&Hash::Sha256.digest(pieces), claims),
            Key::Text(text) => any_equal(text.expose(), claims),
            Key::Private(_) => false,
            Key::Public(key) => {
                let Some(signing) = self.algorithm.signing() else { return false };
                let message: Cow<'_, [u8]> = match pieces {
                    [one] => Cow::Borrowed(one),
                    several => several.concat().into(),
                };
                claims.iter().any(|claim| key.verifies(signing, &message, claim))
            }
        }
    }

    /// The key of the certificate that the request names, if this way goes by certificates.
    fn certificate_key(&self, scope: Scope<'_>, inquiry: &Inquiry<'_>) -> Result<Option<PublicKey>, Rejection> {
        let Some(certificate) = &self.certificate else { return Ok(None) };
        let address = required(&certificate.at, scope)?;
        let malformed = |reason| Rejection::Malformed { place: certificate.at.to_string(), reason };
        let url: Url = address.parse().map_err(|_| malformed("it is not a URL"))?;
        // A query would make one certificate look like many, each to be fetched.
        let plain = url.query().is_none() && url.username().is_empty() && url.password().is_none();
        if !plain || !certificate.urls.iter().any(|prefix| prefix.allows(&url)) {
            return Err(malformed("it is not an address where this provider's certificates are"));
        }
        match (inquiry.documents)(url.as_str()).as_deref() {
            None => Err(Rejection::Unfetched { url, stale: false }),
            Some(Document::Certificate { key, not_before, not_after }) => {
                if (*not_before..=*not_after).contains(&inquiry.now) {
                    Ok(Some(key.clone()))
                } else {
                    Err(malformed("the certificate there is not valid now"))
                }
            }
            Some(Document::Keys(_)) => Err(malformed("there is no certificate there")),
        }
    }

    /// A timestamp that is a header proves nothing unless it is among those that the request says are signed.
    fn check_listed(&self, places: &Places, scope: Scope<'_>) -> Result<(), Rejection> {
        let Some(list) = self.signed.list() else { return Ok(()) };
        let listed = Place::Header(list.clone()).find(scope).ok().flatten().unwrap_or_default();
        let is_listed = |place: &Place| match place {
            Place::Header(name) => listed.split(',').any(|entry| entry.trim().eq_ignore_ascii_case(name.as_str())),
            _ => true,
        };
        if places.iter().all(is_listed) {
            Ok(())
        } else {
            Err(Rejection::Missing(format!("{places} in header:{list}")))
        }
    }

    fn check_body_hash(&self, scope: Scope<'_>) -> Result<(), Rejection> {
        let Some(hash) = &self.body_hash else { return Ok(()) };
        let text = required(&hash.at, scope)?;
        let malformed = |reason| Rejection::Malformed { place: hash.at.to_string(), reason };
        let claimed = hash.encoding.decode(&text).map_err(malformed)?;
        let right = any_equal(&hash.algorithm.digest(&[scope.request.body]), &[claimed]);
        if right { Ok(()) } else { Err(Rejection::BodyHash) }
    }

    fn check_secret_at(&self, keys: &[(usize, &Key)], scope: Scope<'_>) -> Result<(), Rejection> {
        let Some(places) = &self.secret_at else { return Ok(()) };
        let value = required(places, scope)?;
        let named = keys.iter().any(|(_, key)| key.text().is_some_and(|text| any_equal(text, &[value.as_bytes()])));
        if named { Ok(()) } else { Err(Rejection::NotForUs(places.to_string())) }
    }
}

pub(super) fn items<'a>(list: &Pointer, body: &'a [u8]) -> Result<Vec<&'a [u8]>, Rejection> {
    let place = || format!("json:{list}");
    let items = list.items(body).ok_or_else(|| Rejection::Missing(place()))?;
    items.map_err(|_| Rejection::Ambiguous(place()))
}

pub(super) fn required<'a>(places: &Places, scope: Scope<'a>) -> Result<Cow<'a, str>, Rejection> {
    let found = places.find(scope).map_err(|Ambiguous| Rejection::Ambiguous(places.to_string()))?;
    found.filter(|text| !text.is_empty()).ok_or_else(|| Rejection::Missing(places.to_string()))
}

pub(super) fn identified<'a>(naming: &Naming, scope: Scope<'a>) -> Result<Cow<'a, str>, Rejection> {
    let found = naming.id(scope).map_err(|Ambiguous| Rejection::Ambiguous(naming.to_string()))?;
    found.filter(|text| !text.is_empty()).ok_or_else(|| Rejection::Missing(naming.to_string()))
}

fn ambiguous(place: &Place) -> Rejection {
    Rejection::Ambiguous(place.to_string())
}

/// The values of the headers that are numbered after a name, in any order.
fn numbered<'a>(scope: Scope<'a>, name: &str) -> impl Iterator<Item = Cow<'a, str>> {
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let named = move |header: &HeaderName| header.as_str().strip_prefix(name).is_some_and(is_number);
    let headers = scope.request.headers.iter().filter(move |(header, _)| named(header));
    headers.take(MAX_NUMBERED + 1).map(|(_, value)| String::from_utf8_lossy(value.as_bytes()))
}

/// `Basic` in any case and base64 (RFC 7617), as the pair that it stands for.
fn basic(value: &str) -> Result<Vec<u8>, &'static str> {
    let (scheme, code) = value.split_once(' ').ok_or("it is not HTTP Basic")?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err("it is not HTTP Basic");
    }
    BASE64.decode(code.trim().as_bytes()).map_err(|_| "its base64 is malformed")
}
