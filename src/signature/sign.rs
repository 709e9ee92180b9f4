//! Writing signatures: the schemes that verify what comes in, read the other way.
//!
//! What goes out ([`super::outgoing`]) and samples ([`super::Sample`]) put things into requests in ways of their
//! own, and have the signature itself from here.

use std::time::SystemTime;

use data_encoding::BASE64;

use super::key::{Key, WHPK, WHSK};
use super::mac::Hash;
use super::profile::Naming;
use super::template::{Need, Values};
use super::verify::{identified, required};
use super::{Algorithm, Rejection, Scheme};
use crate::event::Place;
use crate::event::place::Scope;
use crate::secret::Secret;

impl Scheme {
    /// Prepares a secret to sign with. The error says what is wrong and never repeats the value.
    pub(super) fn signing_key(&self, secret: &Secret) -> Result<Key, String> {
        if self.algorithm == Algorithm::Ed25519 { Key::private(secret) } else { self.key(secret) }
    }

    /// Whether a secret of this form signs in this way: a private key belongs where its public one does.
    pub(super) fn takes_to_sign(&self, secret: &Secret) -> bool {
        match secret.expose().strip_prefix(WHSK) {
            Some(rest) => self.takes(&Secret::new([WHPK, rest].concat())),
            None => self.takes(secret),
        }
    }

    /// What stands beside the signatures among the entries of their header: the timestamp, and `filler` for what
    /// else is read there.
    pub(super) fn beside(&self, now: SystemTime, filler: &str) -> Vec<String> {
        let timestamps = self.timestamp.iter().flat_map(|places| places.iter()).filter_map(|place| match place {
            Place::Entry(name) => Some(entry(name, &self.unit.write(now))),
            _ => None,
        });
        let needs = self.signed.needs().filter_map(|need| match need {
            Need::At(Place::Entry(name)) => Some(entry(name, filler)),
            _ => None,
        });
        timestamps.chain(needs).collect()
    }

    /// The signature of what is in scope, with its prefix. Everything that it covers is already there.
    pub(super) fn signature(
        &self,
        key: &Key,
        scope: Scope<'_>,
        id: Option<&Naming>,
        now: SystemTime,
    ) -> Result<String, Rejection> {
        let text = match (self.algorithm, key, &self.jwt) {
            (Algorithm::Basic, Key::Text(pair), _) => return Ok(format!("Basic {}", BASE64.encode(pair.expose()))),
            (Algorithm::Token, Key::Text(secret), _) => String::from_utf8_lossy(secret.expose()).into_owned(),
            (Algorithm::Jwt, Key::Mac(key), Some(jwt)) => jwt.write(key, now, scope.request)?,
            _ => self.encoding.encode(&self.code(key, scope, id)?),
        };
        Ok(format!("{}{text}", self.prefix))
    }

    /// The bytes of the signature, for algorithms whose signature is a code.
    pub(super) fn code(&self, key: &Key, scope: Scope<'_>, id: Option<&Naming>) -> Result<Vec<u8>, Rejection> {
        let timestamp = self.timestamp.as_ref().map(|places| required(places, scope)).transpose()?;
        let id = match id {
            Some(naming) if self.signed.has_id() => Some(identified(naming, scope)?),
            _ => None,
        };
        let values =
            Values { timestamp: timestamp.as_deref(), id: id.as_deref(), secret: key.text(), ..Values::of(scope) };
        let pieces = self.signed.fill(values)?;
        match key {
            Key::Mac(key) => Ok(key.mac(&pieces)),
            Key::Text(_) => Ok(Hash::Sha256.digest(&pieces)),
            Key::Private(pair) => Ok(pair.sign(&pieces.concat()).as_ref().to_vec()),
            // A public key makes no signatures; none is prepared for signing.
            Key::Public(_) => Err(Rejection::NoWay),
        }
    }
}

/// An entry of the signature's header: by name, or as it is where it goes by its position.
fn entry(name: &str, text: &str) -> String {
    if name.parse::<usize>().is_ok() { text.to_owned() } else { format!("{name}={text}") }
}
