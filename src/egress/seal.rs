//! Records of the bucket that only who holds the key can write or read.
//!
//! The definition of an endpoint holds secrets: it is sealed as a whole (XChaCha20-Poly1305, random nonces), and what
//! stands beside it in clear is bound to it and to its key in the bucket. Words about destinations are no secret;
//! they carry a tag. So whoever can write the bucket can neither redirect signed traffic nor move a record elsewhere.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::broker::Names;
use crate::config::Config;
use crate::secret::{KeyError, KeyRing, Secret};

/// The bytes of a key.
const KEY: usize = 32;
/// The bytes of a nonce, which stands in front of what it sealed.
const NONCE: usize = 24;
/// The member of a record that is its tag.
const TAG: &str = "tag";
/// What is sealed is bound to its purpose.
const ENDPOINT: &str = "hookbridge endpoint 1";
const WORD: &str = "hookbridge word 1";

/// Seals with the first key and opens with every one. Without a key, words are taken as they are and no endpoint is.
#[derive(Default)]
pub(crate) struct Sealer {
    keys: Vec<XChaCha20Poly1305>,
    /// The bucket whose records these are.
    bucket: String,
}

/// What stands in clear beside a sealed endpoint, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) url: String,
    pub(crate) subjects: Vec<String>,
    /// Grows with every change.
    pub(crate) revision: u64,
    pub(crate) by: String,
    pub(crate) at: String,
    /// The endpoint is taken away. The record stays, or an older one could take its place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) deleted: bool,
}

/// An endpoint as it stands in the bucket.
#[derive(Serialize, Deserialize)]
struct Sealed {
    #[serde(flatten)]
    summary: Summary,
    sealed: String,
}

impl Sealer {
    /// Reads the keys.
    pub(crate) fn load(config: &Config) -> Result<Self, KeyError> {
        let keys = KeyRing::load(config.egress.seal_keys.clone(), key)?;
        let bucket = Names::new(config.nats.prefix.clone()).endpoints_bucket();
        Ok(Self { keys: keys.keys().iter().cloned().collect(), bucket })
    }

    /// Whether there is a key at all.
    pub(crate) fn can_seal(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Seals an endpoint's table. The error is a missing key.
    pub(crate) fn seal(&self, key: &str, summary: Summary, table: &[u8]) -> Result<Vec<u8>, String> {
        let bound = self.bound(ENDPOINT, key, &summary);
        let sealed = BASE64.encode(&self.encrypt(table, &bound)?);
        serde_json::to_vec(&Sealed { summary, sealed }).map_err(|error| error.to_string())
    }

    /// Opens an endpoint's record: what stands in clear, and the table.
    pub(crate) fn open(&self, key: &str, record: &[u8]) -> Result<(Summary, Vec<u8>), String> {
        let Sealed { summary, sealed } = serde_json::from_slice(record).map_err(|error| error.to_string())?;
        let sealed = BASE64.decode(sealed.as_bytes()).map_err(|_| "is not base64")?;
        let table = self.decrypt(&sealed, &self.bound(ENDPOINT, key, &summary))?;
        Ok((summary, table))
    }

    /// A word about a destination, with its tag where there is a key.
    pub(crate) fn word(&self, key: &str, record: &impl Serialize) -> Vec<u8> {
        let mut record = members(record);
        if self.can_seal()
            && let Ok(tag) = self.encrypt(&[], &self.bound(WORD, key, &record))
        {
            record.insert(TAG.to_owned(), BASE64.encode(&tag).into());
        }
        serde_json::to_vec(&record).unwrap_or_default()
    }

    /// Reads a word; with a key, only one that was written with it.
    pub(crate) fn authentic<T: DeserializeOwned>(&self, key: &str, word: &[u8]) -> Result<T, String> {
        let mut record: Map<String, Value> = serde_json::from_slice(word).map_err(|error| error.to_string())?;
        let tag = record.remove(TAG);
        if self.can_seal() {
            let tag = tag.as_ref().and_then(Value::as_str).ok_or("has no tag, and egress.seal_keys are configured")?;
            let tag = BASE64.decode(tag.as_bytes()).map_err(|_| "has a tag that is not base64")?;
            self.decrypt(&tag, &self.bound(WORD, key, &record))?;
        }
        serde_json::from_value(Value::Object(record)).map_err(|error| error.to_string())
    }

    /// What is bound to a sealed text: its purpose, its bucket and its key there, and what stands in clear. So a record
    /// is worth nothing in the bucket of another installation that has the same key.
    fn bound(&self, purpose: &str, key: &str, clear: &impl Serialize) -> Vec<u8> {
        // Sorted members: the same record gives the same bytes, whoever wrote it.
        let clear = serde_json::to_string(&members(clear)).unwrap_or_default();
        [purpose, &self.bucket, key, &clear].join("\n").into_bytes()
    }

    fn encrypt(&self, message: &[u8], bound: &[u8]) -> Result<Vec<u8>, String> {
        let key = self.keys.first().ok_or("there is no key to seal with: set egress.seal_keys")?;
        let nonce: [u8; NONCE] = rand::random();
        let sealed = key
            .encrypt(&XNonce::from(nonce), Payload { msg: message, aad: bound })
            .map_err(|_| "is too long to be sealed".to_owned())?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    fn decrypt(&self, sealed: &[u8], bound: &[u8]) -> Result<Vec<u8>, String> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE>().ok_or("is too short to be sealed")?;
        let payload = || Payload { msg: sealed, aad: bound };
        let opened = self.keys.iter().find_map(|key| key.decrypt(&XNonce::from(*nonce), payload()).ok());
        opened.ok_or_else(|| "was not written with any of egress.seal_keys, or was changed since".to_owned())
    }
}

/// A key: 32 bytes, in base64 or hexadecimal.
fn key(secret: &Secret) -> Result<XChaCha20Poly1305, String> {
    let text = secret.expose();
    let decoded = HEXLOWER_PERMISSIVE.decode(text).or_else(|_| BASE64.decode(text)).unwrap_or_default();
    let key: [u8; KEY] = decoded
        .try_into()
        .map_err(|_| "is not 32 bytes in base64 or hexadecimal; make one with `openssl rand -base64 32`".to_owned())?;
    Ok(XChaCha20Poly1305::new(&key.into()))
}

fn members(record: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(record) {
        Ok(Value::Object(members)) => members,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(keys: &[&str]) -> Sealer {
        let keys = keys.iter().map(|text| key(&Secret::new(*text)).unwrap()).collect();
        Sealer { keys, bucket: "bucket".to_owned() }
    }

    const FIRST: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    const SECOND: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn summary() -> Summary {
        let (url, by, at) = ("https://a.example/".to_owned(), "cli".to_owned(), "now".to_owned());
        Summary { url, subjects: vec!["outbox.>".to_owned()], revision: 1, by, at, deleted: false }
    }

    #[test]
    fn what_was_sealed_opens_under_its_own_key_and_name_and_nothing_shows() {
        let sealer = sealer(&[FIRST]);
        let record = sealer.seal("endpoint.crm", summary(), b"a secret table").unwrap();
        assert!(!String::from_utf8_lossy(&record).contains("secret"));
        assert_eq!(sealer.open("endpoint.crm", &record).unwrap(), (summary(), b"a secret table".to_vec()));
        assert!(sealer.open("endpoint.other", &record).is_err());
        assert!(self::sealer(&[SECOND]).open("endpoint.crm", &record).is_err());
        let elsewhere = Sealer { bucket: "other".to_owned(), ..self::sealer(&[FIRST]) };
        assert!(elsewhere.open("endpoint.crm", &record).is_err());
    }

    #[test]
    fn no_byte_of_a_record_can_be_changed() {
        let sealer = sealer(&[FIRST]);
        let record = sealer.seal("endpoint.crm", summary(), b"table").unwrap();
        for index in 0..record.len() {
            let mut changed = record.clone();
            changed[index] ^= 1;
            assert!(sealer.open("endpoint.crm", &changed).is_err(), "byte {index}");
        }
    }

    #[test]
    fn old_keys_open_what_the_new_one_no_longer_seals() {
        let record = sealer(&[FIRST]).seal("endpoint.crm", summary(), b"table").unwrap();
        assert!(sealer(&[SECOND, FIRST]).open("endpoint.crm", &record).is_ok());
    }

    #[test]
    fn a_word_needs_its_tag_only_where_there_is_a_key() {
        let (with, without) = (sealer(&[FIRST]), Sealer::default());
        let word = with.word("state.e_crm", &summary());
        assert_eq!(with.authentic::<Summary>("state.e_crm", &word), Ok(summary()));
        assert_eq!(without.authentic::<Summary>("state.e_crm", &word), Ok(summary()));
        assert!(with.authentic::<Summary>("state.e_other", &word).is_err());
        let bare = without.word("state.e_crm", &summary());
        assert!(with.authentic::<Summary>("state.e_crm", &bare).unwrap_err().contains("no tag"));
        assert_eq!(without.authentic::<Summary>("state.e_crm", &bare), Ok(summary()));
    }

    #[test]
    fn a_key_of_the_wrong_length_is_told_how_one_is_made() {
        for text in ["short", "AAEC", &FIRST[2..]] {
            assert!(key(&Secret::new(text)).err().unwrap().contains("openssl rand"), "{text}");
        }
    }
}
