//! Which ways of proving an outgoing request can have, and why the others cannot be.
//!
//! The body is sent as it is, so nothing may have to stand in it; and what is not a shared secret must be a key
//! that is ours.

use http::HeaderName;

use super::profile::Naming;
use super::scheme::SchemeError;
use super::template::Need;
use super::{Algorithm, Scheme};
use crate::event::Place;

/// Headers that frame the request or say what it is. Nothing is put there.
const FIXED: [&str; 9] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "traceparent",
    "tracestate",
    "transfer-encoding",
    "user-agent",
];

/// What a header that must be there, and that nobody gave, can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MadeUp {
    /// The time in seconds.
    Time,
    /// Something that no other request has.
    Unique,
}

pub(super) fn wrong(key: &'static str, reason: &'static str) -> SchemeError {
    SchemeError { key, reason }
}

/// Refuses a way in which no outgoing request can be signed. `id` is where its delivery id goes.
pub(super) fn check(scheme: &Scheme, id: Option<&Naming>) -> Result<(), SchemeError> {
    let jwt = scheme.jwt.as_ref();
    let elsewhere = scheme.jwks.is_some() || scheme.certificate.is_some();
    let signing = scheme.algorithm != Algorithm::Ed25519 && scheme.algorithm.signing().is_some();
    if elsewhere || signing || jwt.is_some_and(|jwt| jwt.signing().is_some()) {
        return Err(wrong("algorithm", "needs the provider's private key: shared secrets sign, and `whsk_` keys"));
    }
    if scheme.each.is_some() || scheme.signature.iter().any(Place::reads_body) {
        return Err(wrong("signature", "stands inside the body, and the body is sent as it is"));
    }
    let header_is_fixed = |place: &Place| matches!(place, Place::Header(name) if is_fixed(name));
    if !scheme.signature.iter().all(|place| matches!(place, Place::Header(_) | Place::Numbered(_) | Place::Query(_)))
        || scheme.signature.iter().any(header_is_fixed)
    {
        return Err(wrong("signature", "must be a header that is free, or a query parameter"));
    }
    if scheme.secret_at.is_some() || jwt.is_some_and(|jwt| jwt.secret_claim.is_some()) {
        return Err(wrong("secret_at", "is for requests that come in"));
    }
    check_timestamp(scheme)?;
    check_hash(scheme)?;
    check_signed(scheme, id)?;
    let possible = |condition: &super::Conditions| {
        condition
            .wishes()
            .all(|(places, _)| places.iter().any(|place| can_be_put(scheme, place) || header_is_fixed(place)))
    };
    if !scheme.when.each().all(|condition| possible(&condition)) {
        return Err(wrong("when", "asks for something in the body, and the body is sent as it is"));
    }
    Ok(())
}

/// Refuses a way that covers a header which nobody gives a request. `carried` are those that it has anyway.
pub(super) fn check_headers(scheme: &Scheme, id: Option<&Naming>, carried: &[HeaderName]) -> Result<(), SchemeError> {
    let timestamps = || scheme.timestamp.iter().flat_map(|places| places.iter());
    let given = |place: &Place| match place {
        Place::Header(name) => {
            carried.contains(name)
                || made_up(name).is_some()
                || timestamps().any(|timestamp| timestamp == place)
                || id.is_some_and(|id| id.places().contains(&place))
                || scheme.when.wishes().any(|(places, _)| places.iter().any(|wished| wished == place))
        }
        _ => true,
    };
    let missing = |need: Need<'_>| matches!(need, Need::At(place) if !given(place));
    if scheme.signed.needs().any(missing) {
        return Err(wrong("signed", "covers a header that the request has not: give it one with `headers`"));
    }
    Ok(())
}

/// What a header of this name can hold, if its name says so.
pub(super) fn made_up(name: &HeaderName) -> Option<MadeUp> {
    let says = |words: &[&str]| words.iter().any(|word| name.as_str().contains(word));
    match () {
        () if says(&["time"]) => Some(MadeUp::Time),
        () if says(&["nonce", "token", "reference", "-id"]) => Some(MadeUp::Unique),
        () => None,
    }
}

/// Whether something can be put at a place beside what a request has already.
pub(super) fn can_be_put(scheme: &Scheme, place: &Place) -> bool {
    let hash = || scheme.body_hash.iter().flat_map(|hash| hash.at.iter());
    match place {
        Place::Header(name) => !is_fixed(name),
        Place::Query(_) => scheme.signature.contains(place) || hash().any(|at| at == place),
        _ => false,
    }
}

fn is_fixed(name: &HeaderName) -> bool {
    FIXED.contains(&name.as_str())
}

fn check_timestamp(scheme: &Scheme) -> Result<(), SchemeError> {
    let first = scheme.timestamp.as_ref().and_then(|places| places.iter().next());
    match first {
        Some(place) if place.reads_body() => {
            Err(wrong("timestamp", "stands inside the body, and the body is sent as it is"))
        }
        Some(Place::Entry(_)) if scheme.separator.is_some() => Ok(()),
        Some(Place::Header(name)) if !is_fixed(name) => Ok(()),
        Some(_) => Err(wrong("timestamp", "must be a header, or an entry of the signature's header")),
        None => Ok(()),
    }
}

fn check_hash(scheme: &Scheme) -> Result<(), SchemeError> {
    match scheme.body_hash.as_ref().and_then(|hash| hash.at.iter().next()) {
        Some(Place::Query(_)) | None => Ok(()),
        Some(Place::Header(name)) if !is_fixed(name) => Ok(()),
        Some(_) => Err(wrong("body_hash", "must be a header or a query parameter")),
    }
}

fn check_signed(scheme: &Scheme, id: Option<&Naming>) -> Result<(), SchemeError> {
    let is_header = |place: &Place| matches!(place, Place::Header(name) if !is_fixed(name));
    let has_headers = |id: &Naming| id.parts().iter().all(|(_, places)| places.iter().any(|place| is_header(place)));
    if scheme.signed.has_id() && !id.is_some_and(has_headers) {
        return Err(wrong("signed", "has {id}, and the id is no header"));
    }
    let is_timestamp =
        |place: &Place| scheme.timestamp.iter().flat_map(|places| places.iter()).any(|timestamp| timestamp == place);
    for need in scheme.signed.needs() {
        match need {
            Need::At(Place::Header(_) | Place::Body) | Need::Headers(_) => {}
            Need::At(place) if is_timestamp(place) => {}
            Need::At(place) if !place.reads_body() => {
                return Err(wrong("signed", "covers something that the request does not have"));
            }
            Need::At(_) | Need::Line(_) => {
                return Err(wrong("signed", "covers single values of the body, which it may not have"));
            }
        }
    }
    Ok(())
}
