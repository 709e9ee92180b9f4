//! Signing what goes out, with the same schemes that verify what comes in.

use std::time::SystemTime;

use http::{HeaderMap, HeaderName, Method};

use super::Scheme;
use super::key::Key;
use super::scheme::SchemeError;
use super::template::Values;
use crate::event::place::Scope;
use crate::event::{Place, Request};

impl Scheme {
    /// Refuses a scheme that an outgoing request cannot be signed with. `id` is where its delivery id goes.
    pub fn validate_signing(&self) -> Result<(), SchemeError> {
        let wrong = |key, reason| Err(SchemeError { key, reason });
        if !self.algorithm.is_hmac() {
            return wrong("algorithm", "needs a key that signs: use one of the hmac algorithms");
        }
        if self.header().is_none() || self.signature.len() != 1 {
            return wrong("signature", "must be one header");
        }
        if !self.signed.can_be_sent() {
            return wrong("signed", "may hold {body}, {body:sha256}, {timestamp} and {id} only");
        }
        if self.each.is_some() || self.body_hash.is_some() || !self.when.is_empty() {
            return wrong("signed", "`each`, `body_hash` and `when` are for requests that come in");
        }
        // Verification asks for a timestamp wherever one is said to be, also where the body holds it.
        if self.timestamp.is_some() && self.timestamp_place().is_none() {
            return wrong("timestamp", "must be a header, or an entry of the signature's header by name");
        }
        Ok(())
    }

    fn timestamp_place(&self) -> Option<&Place> {
        match self.timestamp.as_ref()?.iter().next()? {
            place @ Place::Header(_) => Some(place),
            place @ Place::Entry(name) if self.separator.is_some() && name.parse::<usize>().is_err() => Some(place),
            _ => None,
        }
    }

    /// The headers that sign these bytes with every key. `now` is the time of the attempt.
    pub(crate) fn sign(&self, keys: &[Key], id: &str, now: SystemTime, body: &[u8]) -> Vec<(HeaderName, String)> {
        let Some(header) = self.header() else { return Vec::new() };
        let timestamp = self.unit.write(now);
        let none = HeaderMap::new();
        let request = Request::new(&Method::POST, "", None, &none, body);
        let values = Values { timestamp: Some(&timestamp), id: Some(id), ..Values::of(Scope::of(&request)) };
        // What an outgoing request has not was refused when the configuration was loaded.
        let pieces = self.signed.fill(values).unwrap_or_default();
        let codes = keys.iter().filter_map(|key| match key {
            Key::Mac(key) => Some(format!("{}{}", self.prefix, self.encoding.encode(&key.mac(&pieces)))),
            Key::Text(_) | Key::Public(_) => None,
        });
        let mut headers = Vec::with_capacity(2);
        let entry = match self.timestamp_place() {
            Some(Place::Entry(name)) => Some(format!("{name}={timestamp}")),
            Some(Place::Header(name)) => {
                headers.push((name.clone(), timestamp.clone()));
                None
            }
            _ => None,
        };
        let value = match &self.separator {
            Some(separator) => entry.into_iter().chain(codes).collect::<Vec<_>>().join(separator),
            None => codes.take(1).collect(),
        };
        headers.push((header.clone(), value));
        headers
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::secret::Secret;
    use crate::signature::preset_files::FILES;
    use crate::signature::profile::Naming;
    use crate::signature::{Genuine, Inquiry, Rejection, Ways, preset};

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_760_000_000)
    }

    fn verify(scheme: &Scheme, secret: &Secret, headers: &HeaderMap, body: &[u8]) -> Result<Genuine, Rejection> {
        let (ways, id) = (Ways::new(vec![scheme.clone()]), Naming::from_iter("header:webhook-id".parse::<Place>()));
        let request = Request::new(&Method::POST, "", None, headers, body);
        let inquiry = Inquiry { request: &request, id: Some(&id), now: now(), documents: &|_| None };
        ways.verify(&[ways.credential(secret).unwrap()], &inquiry)
    }

    #[test]
    fn whatever_can_sign_what_goes_out_verifies_it() {
        let mut count = 0;
        for (name, _) in FILES {
            let profile = preset::find(name).unwrap().profile;
            let Some(scheme) = profile.schemes().next().filter(|scheme| scheme.validate_signing().is_ok()) else {
                continue;
            };
            let usable = |text: &&str| scheme.takes(&Secret::new(*text)) && scheme.key(&Secret::new(*text)).is_ok();
            let secret = ["text", "whsec_c2VjcmV0", "00ff"].into_iter().find(usable).unwrap();
            let secret = Secret::new(secret);
            let mut headers = HeaderMap::new();
            headers.insert("webhook-id", "id-1".parse().unwrap());
            for (header, value) in scheme.sign(&[scheme.key(&secret).unwrap()], "id-1", now(), b"{}") {
                headers.insert(header, value.parse().unwrap());
            }
            assert_eq!(verify(scheme, &secret, &headers, b"{}"), Ok(Genuine { secret: 0 }), "{name}: {headers:?}");
            let changed = verify(scheme, &secret, &headers, b"{ }");
            assert!(matches!(changed, Err(Rejection::Mismatch { .. })), "{name}: {changed:?}");
            count += 1;
        }
        assert!(count > 60, "{count}");
    }
}
