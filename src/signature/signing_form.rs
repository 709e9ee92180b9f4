//! A form in which requests are signed on their way out: which ways of proving it has, which secrets belong to
//! them, and which way each of them signs in.
//!
//! What cannot be signed so is refused when the configuration is loaded ([`SigningForm::validate`]), with the
//! reason: the signature stands in the body, or only the provider has the key. What only a message can tell, such
//! as its content type, is an [`Unsigned`]: an unsigned request must not leave.

use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};

use super::key::{Key, PUBLIC, WHPK, WHSK};
use super::outgoing::{Outgoing, Unsigned, header, place};
use super::profile::Naming;
use super::scheme::SchemeError;
use super::{Algorithm, Conditions, Credential, Profile, Scheme, sendable};
use crate::event::Place;
use crate::event::place::Scope;
use crate::secret::Secret;

const FORM: &str = "application/x-www-form-urlencoded";
const MULTIPART: &str = "multipart/form-data";
/// The most signatures in one header; verification looks at no more.
const MAX_LISTED: usize = 16;
/// The most numbered headers; verification looks at no more.
const MAX_NUMBERED: usize = 100;

/// A form in which requests are signed: the ways of a provider that can be, its id and its type.
#[derive(Clone, Debug)]
pub struct SigningForm {
    /// In the order of preference: a secret signs in the first that takes it and that fits the request.
    ways: Vec<Scheme>,
    pub(super) id: Option<Naming>,
    pub(super) event_type: Option<Naming>,
    /// Why other ways cannot sign.
    unfit: Option<SchemeError>,
}

impl SigningForm {
    /// The form of a provider.
    pub fn new(profile: &Profile) -> Self {
        let (mut ways, mut unfit) = (Vec::new(), None);
        for scheme in profile.schemes() {
            match sendable::check(scheme, profile.id.as_ref()) {
                Ok(()) => ways.push(scheme.clone()),
                Err(error) => unfit = unfit.or(Some(error)),
            }
        }
        Self { ways, id: profile.id.clone(), event_type: profile.event_type.clone(), unfit }
    }

    /// Refuses a form that nothing can be signed in. `carried` are the headers that every request has anyway.
    pub fn validate(&self, carried: &[HeaderName]) -> Result<(), SchemeError> {
        match (self.ways.is_empty(), &self.unfit) {
            (true, Some(error)) => Err(error.clone()),
            (true, None) => Err(sendable::wrong("verify", "has no signature at all")),
            (false, _) => self.ways.iter().try_for_each(|way| sendable::check_headers(way, self.id.as_ref(), carried)),
        }
    }

    /// The ways that can sign.
    pub(crate) fn ways(&self) -> impl Iterator<Item = &Scheme> {
        self.ways.iter()
    }

    /// Prepares a secret. It is none of the form's where nothing is in what is returned: an ed25519 key signs in
    /// no form of shared secrets, nor the other way round. The error never repeats the value.
    pub(crate) fn credential(&self, secret: &Secret) -> Result<Credential, String> {
        let text = secret.expose();
        if text.starts_with(WHPK) {
            return Err(PUBLIC.to_owned());
        }
        let is_private = text.starts_with(WHSK);
        let (mut reason, mut credential) = (None, Credential::with_capacity(self.ways.len()));
        for way in &self.ways {
            let fits = (way.algorithm == Algorithm::Ed25519) == is_private && way.takes_to_sign(secret);
            let key = fits.then(|| way.signing_key(secret).and_then(|key| presentable(way, key)));
            credential.push(match key {
                Some(Err(wrong)) => {
                    reason = Some(wrong);
                    None
                }
                key => key.and_then(Result::ok),
            });
        }
        match reason.filter(|_| credential.iter().all(Option::is_none)) {
            Some(reason) => Err(reason),
            None => Ok(credential),
        }
    }

    /// Whether there is a place for the signature of each of these secrets.
    pub(crate) fn has_room(&self, credentials: &[Credential]) -> bool {
        let first = |credential: &Credential| credential.iter().position(Option::is_some);
        let chosen: Vec<usize> = credentials.iter().filter_map(first).collect();
        let shares = |way: &Scheme, other: &Scheme| {
            way.header().is_some()
                && way.header() == other.header()
                && (way.separator.is_none() || way.separator != other.separator)
        };
        let used = || self.ways.iter().enumerate().filter(|(way, _)| chosen.contains(way));
        used().all(|(way, scheme)| {
            let signatures = chosen.iter().filter(|chosen| **chosen == way).count();
            signatures <= room(scheme) && used().all(|(other, rival)| other == way || !shares(scheme, rival))
        })
    }

    /// The headers that these secrets' signatures stand in.
    pub(crate) fn headers(&self, credentials: &[Credential]) -> Vec<&HeaderName> {
        let first = |credential: &Credential| credential.iter().position(Option::is_some);
        let chosen: Vec<usize> = credentials.iter().filter_map(first).collect();
        let used = self.ways.iter().enumerate().filter(|(way, _)| chosen.contains(way));
        let mut names: Vec<&HeaderName> = used.flat_map(|(_, way)| way.signature.iter().filter_map(header)).collect();
        names.dedup();
        names
    }

    /// Signs a request with every secret that belongs to the form.
    pub(crate) fn sign(&self, credentials: &[Credential], outgoing: &mut Outgoing<'_>) -> Result<(), Unsigned> {
        let mut usable = credentials.iter().filter(|credential| credential.iter().any(Option::is_some)).peekable();
        if usable.peek().is_none() {
            return Err(Unsigned::NoKey);
        }
        let fitting: Vec<bool> = self.ways.iter().map(|way| fits(way, outgoing)).collect();
        let mut chosen: Vec<Vec<&Key>> = vec![Vec::new(); self.ways.len()];
        for credential in usable {
            let mut ways = credential.iter().enumerate().filter(|(way, _)| fitting.get(*way) == Some(&true));
            if let Some((way, key)) = ways.find_map(|(way, key)| Some((way, key.as_ref()?))) {
                chosen[way].push(key);
            }
        }
        if chosen.iter().all(Vec::is_empty) {
            return Err(Unsigned::NoWay);
        }
        let mut written = Vec::new();
        for (way, keys) in self.ways.iter().zip(&chosen).filter(|(_, keys)| !keys.is_empty()) {
            self.prepare(way, outgoing)?;
            let signatures = self.signatures(way, keys, outgoing)?;
            place(way, signatures, &mut written, outgoing)?;
        }
        Ok(())
    }
}

/// How many signatures a way has a place for.
pub(super) fn room(way: &Scheme) -> usize {
    match way.signature.first() {
        _ if way.separator.is_some() => MAX_LISTED,
        Some(Place::Numbered(_)) => MAX_NUMBERED,
        _ => way.signature.len(),
    }
}

/// Whether a request can be signed in this way: its conditions hold, or what they ask for can be added.
fn fits(way: &Scheme, outgoing: &Outgoing<'_>) -> bool {
    let content_type = outgoing.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_form = content_type.starts_with(FORM) || content_type.starts_with(MULTIPART);
    let fulfilled = |condition: Conditions| {
        outgoing.look("", |request| condition.hold(Scope::of(request)))
            || condition.wishes().any(|(places, _)| places.iter().any(|place| sendable::can_be_put(way, place)))
    };
    (is_form || !way.signed.has_form()) && way.when.each().all(fulfilled)
}

/// A key whose text, where a header is to carry it, can stand in one.
fn presentable(way: &Scheme, key: Key) -> Result<Key, String> {
    let text = key.text().filter(|_| way.algorithm == Algorithm::Token);
    match text.map(HeaderValue::from_bytes) {
        Some(Ok(value)) if value.to_str().is_err() => Err("cannot stand in a header".to_owned()),
        Some(Err(_)) => Err("cannot stand in a header".to_owned()),
        _ => Ok(key),
    }
}
