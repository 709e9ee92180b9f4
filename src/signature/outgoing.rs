//! A request on its way out: it is given the headers that a way of proving looks for, and then its signatures.
//!
//! Its body is never touched. What stands in a header already stays, unless the way says what must be there.

use std::borrow::Cow;
use std::time::SystemTime;

use http::Method;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use url::Url;

use super::key::Key;
use super::profile::Naming;
use super::signing_form::{SigningForm, room};
use super::template::Need;
use super::{Rejection, Scheme, sendable};
use crate::clock::{unix_millis, unix_seconds};
use crate::event::place::Scope;
use crate::event::{Place, Request};

/// What stands where something must and nobody cares what.
const FILLER: &str = "hookbridge";

/// A request of which everything is known but the signatures.
pub(crate) struct Outgoing<'a> {
    /// The message id, the same on every attempt.
    pub(crate) id: &'a str,
    /// The event type, where the message has one.
    pub(crate) event_type: Option<&'a str>,
    /// The time of the attempt.
    pub(crate) now: SystemTime,
    pub(crate) body: &'a [u8],
    /// Where it goes. A form whose signature is a query parameter adds to it.
    pub(crate) url: Cow<'a, Url>,
    pub(crate) headers: &'a mut HeaderMap,
}

/// Why a request has no signature; it must not be sent.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsigned {
    /// Nothing to sign with is left.
    #[error("every secret that could sign it has ended")]
    NoKey,
    /// The form has no way of signing such a request.
    #[error("the form has no way of signing a message like this: see its content type")]
    NoWay,
    /// The form has a place for fewer signatures than there are secrets.
    #[error("the form has no place for as many signatures as there are secrets")]
    NoRoom,
    /// Something that must be signed is not fit for it.
    #[error("{0}")]
    Unfit(Rejection),
    /// A header cannot carry what it should.
    #[error("header `{0}` cannot carry what it should")]
    Header(HeaderName),
}

impl SigningForm {
    /// Everything that the way looks for, but the signature.
    pub(super) fn prepare(&self, way: &Scheme, outgoing: &mut Outgoing<'_>) -> Result<(), Unsigned> {
        if let Some(Place::Header(name)) = way.timestamp.as_ref().and_then(|places| places.iter().next()) {
            outgoing.put(name, &way.unit.write(outgoing.now))?;
        }
        self.put_names(outgoing)?;
        for condition in way.when.each() {
            if outgoing.look("", |request| condition.hold(Scope::of(request))) {
                continue;
            }
            for (places, value) in condition.wishes() {
                let free = |place: &&Place| !way.signature.contains(place) && sendable::can_be_put(way, place);
                if let Some(Place::Header(name)) = places.iter().find(free) {
                    let value = value
                        .as_ref()
                        .and_then(Value::as_str)
                        .map_or_else(|| self.made_up(name, outgoing), str::to_owned);
                    outgoing.put(name, &value)?;
                }
            }
        }
        for need in way.signed.needs() {
            match need {
                Need::At(Place::Header(name)) => self.put_made_up(name, outgoing)?,
                Need::Headers(list) => self.put_listed(way, list, outgoing)?,
                Need::At(_) | Need::Line(_) => {}
            }
        }
        if let Some(hash) = &way.body_hash {
            let text = hash.encoding.encode(&hash.algorithm.digest(&[outgoing.body]));
            match hash.at.iter().next() {
                Some(Place::Query(name)) => drop(outgoing.url.to_mut().query_pairs_mut().append_pair(name, &text)),
                Some(Place::Header(name)) => outgoing.put(name, &text)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The id and the type, where the provider has them in headers and nothing stands there yet.
    fn put_names(&self, outgoing: &mut Outgoing<'_>) -> Result<(), Unsigned> {
        let id = self.id.as_ref().map(|naming| (naming, outgoing.id));
        let event_type = self.event_type.as_ref().zip(outgoing.event_type);
        for (naming, text) in id.into_iter().chain(event_type) {
            let parts = naming.parts();
            let last = parts.len().saturating_sub(1);
            for (position, (before, places)) in parts.into_iter().enumerate() {
                let text = if position == last { text.strip_prefix(before).unwrap_or(text) } else { FILLER };
                let names = || places.iter().filter_map(|place| header(place));
                if !names().any(|name| outgoing.headers.contains_key(name))
                    && let Some(name) = names().next()
                {
                    outgoing.put(name, text)?;
                }
            }
        }
        Ok(())
    }

    fn put_made_up(&self, name: &HeaderName, outgoing: &mut Outgoing<'_>) -> Result<(), Unsigned> {
        if outgoing.headers.contains_key(name) {
            return Ok(());
        }
        outgoing.put(name, &self.made_up(name, outgoing))
    }

    /// A header that lists others, and those; the timestamp's is worth nothing unless it is listed.
    fn put_listed(&self, way: &Scheme, list: &HeaderName, outgoing: &mut Outgoing<'_>) -> Result<(), Unsigned> {
        let timestamp = way.timestamp.iter().flat_map(|places| places.iter()).filter_map(header);
        let names: Vec<&str> = timestamp.map(HeaderName::as_str).chain([CONTENT_TYPE.as_str()]).collect();
        outgoing.put(list, &names.join(","))
    }

    /// What stands in a header that must be there: the id, a time, something that never was before.
    fn made_up(&self, name: &HeaderName, outgoing: &Outgoing<'_>) -> String {
        let is_id = |naming: &Naming| naming.places().into_iter().any(|place| header(place) == Some(name));
        match sendable::made_up(name) {
            _ if self.id.as_ref().is_some_and(is_id) => outgoing.id.to_owned(),
            Some(sendable::MadeUp::Time) => unix_seconds(outgoing.now).to_string(),
            Some(sendable::MadeUp::Unique) => format!("{}-{}", outgoing.id, unix_millis(outgoing.now)),
            None => FILLER.to_owned(),
        }
    }

    /// One signature with each key, and before them what else is among their entries.
    pub(super) fn signatures(
        &self,
        way: &Scheme,
        keys: &[&Key],
        outgoing: &Outgoing<'_>,
    ) -> Result<Vec<String>, Unsigned> {
        let endpoint = if way.needs_url() { endpoint(&outgoing.url) } else { String::new() };
        let beside = way.beside(outgoing.now, FILLER);
        let entries: Vec<&str> = beside.iter().map(String::as_str).collect();
        let signed = outgoing.look(&endpoint, |request| {
            let scope = Scope { entries: &entries, ..Scope::of(request) };
            let sign = |key: &&Key| way.signature(key, scope, self.id.as_ref(), outgoing.now);
            keys.iter().map(sign).collect::<Result<Vec<_>, _>>()
        });
        signed.map_err(Unsigned::Unfit)
    }
}

impl Outgoing<'_> {
    /// Looks at it as its receiver will.
    pub(super) fn look<T>(&self, endpoint: &str, see: impl FnOnce(&Request<'_>) -> T) -> T {
        see(&Request::new(&Method::POST, endpoint, self.url.query(), self.headers, self.body))
    }

    fn put(&mut self, name: &HeaderName, text: &str) -> Result<(), Unsigned> {
        let mut value = HeaderValue::from_str(text).map_err(|_| Unsigned::Header(name.clone()))?;
        value.set_sensitive(true);
        self.headers.insert(name, value);
        Ok(())
    }
}

/// Puts signatures where the way has them. `written` are the headers that this form wrote before.
pub(super) fn place(
    way: &Scheme,
    signatures: Vec<String>,
    written: &mut Vec<HeaderName>,
    outgoing: &mut Outgoing<'_>,
) -> Result<(), Unsigned> {
    if signatures.len() > room(way) {
        return Err(Unsigned::NoRoom);
    }
    if let Some(separator) = &way.separator
        && let Some(name) = way.header()
    {
        let before = outgoing.headers.get(name).filter(|_| written.contains(name));
        let beside = match before.and_then(|before| before.to_str().ok()) {
            Some(before) => vec![before.to_owned()],
            None => way.beside(outgoing.now, FILLER),
        };
        let value = beside.into_iter().chain(signatures).collect::<Vec<_>>().join(separator);
        written.push(name.clone());
        return outgoing.put(name, &value);
    }
    if let Some(Place::Numbered(name)) = way.signature.first() {
        for (number, signature) in (1..).zip(signatures) {
            let Ok(name) = format!("{name}{number}").parse() else { return Err(Unsigned::NoRoom) };
            outgoing.put(&name, &signature)?;
        }
        return Ok(());
    }
    for (place, signature) in way.signature.iter().zip(signatures) {
        match place {
            Place::Header(name) => outgoing.put(name, &signature)?,
            Place::Query(name) => drop(outgoing.url.to_mut().query_pairs_mut().append_pair(name, &signature)),
            _ => return Err(Unsigned::NoRoom),
        }
    }
    Ok(())
}

pub(super) fn header(place: &Place) -> Option<&HeaderName> {
    match place {
        Place::Header(name) => Some(name),
        _ => None,
    }
}

/// The URL as the receiver knows it, without query, fragment and user.
fn endpoint(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Both fail only for URLs without a host, which http and https URLs have.
    let _ = (url.set_username(""), url.set_password(None));
    url.into()
}
