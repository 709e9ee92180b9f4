//! Values that never print.
//!
//! The configuration holds a [`SecretRef`], which says where a secret is; [`KeyRing`] holds the values and
//! reads them again on SIGHUP, so that a rotation needs no restart.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use serde::{Deserialize, Deserializer, de};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

/// The largest secret that is read from a file; a signing key is far smaller, a wrong path may be far larger.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// Secret bytes. `Debug` prints `***`, and the memory is overwritten when the last copy goes.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<Vec<u8>>>);

impl Secret {
    /// Wraps bytes that are already in memory.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Arc::new(Zeroizing::new(bytes.into())))
    }

    /// The bytes themselves: for a MAC or a comparison, never for a message.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

/// Where a secret is: `env:NAME`, `file:PATH` or, for development, `plain:TEXT`.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct SecretRef(Place);

#[derive(Clone)]
enum Place {
    Env(String),
    File(PathBuf),
    Plain(Secret),
}

/// Why a secret is not there. The text names the place, never the value.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The reference has none of the three forms. The text is not repeated: it may be the secret itself.
    #[error("a secret is written `env:NAME`, `file:PATH` or, for development only, `plain:TEXT`")]
    Form,
    /// The environment variable is not set, or not text.
    #[error("environment variable `{0}` is not set")]
    Unset(String),
    /// The file cannot be read.
    #[error("secret file `{path}` cannot be read: {source}")]
    Unreadable {
        /// The file's path.
        path: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is larger than any secret.
    #[error("secret file `{0}` is larger than {MAX_SECRET_BYTES} bytes")]
    TooLarge(String),
    /// The value is there and empty: it would sign and verify for anybody.
    #[error("secret `{0}` is empty")]
    Empty(String),
}

impl SecretRef {
    /// Reads the value now. A trailing line end of a file is not part of it.
    pub fn resolve(&self) -> Result<Secret, SecretError> {
        let secret = match &self.0 {
            Place::Env(name) => Secret::new(std::env::var(name).map_err(|_| SecretError::Unset(name.clone()))?),
            Place::File(path) => read_file(path)?,
            Place::Plain(secret) => secret.clone(),
        };
        if secret.expose().is_empty() {
            return Err(SecretError::Empty(self.to_string()));
        }
        Ok(secret)
    }
}

impl SecretRef {
    /// Whether it is a file that is not there.
    pub(crate) fn is_absent_file(&self) -> bool {
        matches!(&self.0, Place::File(path) if !path.exists())
    }

    /// The file that it is in, if it is in one.
    pub(crate) fn file(&self) -> Option<&std::path::Path> {
        match &self.0 {
            Place::File(path) => Some(path),
            Place::Env(_) | Place::Plain(_) => None,
        }
    }
}

fn read_file(path: &std::path::Path) -> Result<Secret, SecretError> {
    let name = || path.display().to_string();
    let unreadable = |source| SecretError::Unreadable { path: name(), source };
    if std::fs::metadata(path).map_err(unreadable)?.len() > MAX_SECRET_BYTES {
        return Err(SecretError::TooLarge(name()));
    }
    let mut bytes = std::fs::read(path).map_err(unreadable)?;
    while bytes.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        bytes.pop();
    }
    Ok(Secret::new(bytes))
}

impl FromStr for SecretRef {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        let (kind, rest) = text.split_once(':').ok_or(SecretError::Form)?;
        match kind {
            "env" if !rest.is_empty() => Ok(Self(Place::Env(rest.to_owned()))),
            "file" if !rest.is_empty() => Ok(Self(Place::File(rest.into()))),
            "plain" => Ok(Self(Place::Plain(Secret::new(rest)))),
            _ => Err(SecretError::Form),
        }
    }
}

impl TryFrom<String> for SecretRef {
    type Error = SecretError;

    fn try_from(text: String) -> Result<Self, SecretError> {
        text.parse()
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Env(name) => write!(formatter, "env:{name}"),
            Place::File(path) => write!(formatter, "file:{}", path.display()),
            Place::Plain(_) => formatter.write_str("plain:***"),
        }
    }
}

impl fmt::Debug for SecretRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// One of several secrets: a [`SecretRef`] alone, or a table that also says until when it holds:
/// `{ secret = "env:OLD", until = "2026-12-01T00:00:00Z" }`. Two may overlap while a secret is changed, and the
/// overlap ends by itself.
#[derive(Clone)]
pub struct SecretEntry {
    secret: SecretRef,
    until: Option<SystemTime>,
}

impl SecretEntry {
    /// Where the secret is.
    pub fn reference(&self) -> &SecretRef {
        &self.secret
    }

    /// The first moment at which it no longer holds; without one it always does.
    pub fn until(&self) -> Option<SystemTime> {
        self.until
    }

    /// Whether it holds at this time.
    pub(crate) fn holds(&self, now: SystemTime) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

impl From<SecretRef> for SecretEntry {
    fn from(secret: SecretRef) -> Self {
        Self { secret, until: None }
    }
}

impl fmt::Display for SecretEntry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.secret.fmt(formatter)
    }
}

impl fmt::Debug for SecretEntry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SecretEntry").field("secret", &self.secret).field("until", &self.until).finish()
    }
}

impl<'de> Deserialize<'de> for SecretEntry {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            secret: SecretRef,
            until: Until,
        }
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = SecretEntry;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a secret such as `env:NAME`, or a table with `secret` and `until`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SecretEntry, E> {
                text.parse::<SecretRef>().map(SecretEntry::from).map_err(E::custom)
            }

            fn visit_map<M: de::MapAccess<'de>>(self, map: M) -> Result<SecretEntry, M::Error> {
                let Table { secret, until } = Table::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(SecretEntry { secret, until: Some(until.0) })
            }
        }
        value.deserialize_any(Visitor)
    }
}

/// A moment, written as a text. TOML has times of its own, and who writes one is told to put it in quotes.
struct Until(SystemTime);

impl<'de> Deserialize<'de> for Until {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        const WRONG: &str = "is not an RFC 3339 time in quotes, such as \"2026-12-01T00:00:00Z\"";
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Until;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an RFC 3339 time in quotes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Until, E> {
                let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| E::custom(WRONG))?;
                Ok(Until(time.into()))
            }

            fn visit_map<M: de::MapAccess<'de>>(self, _: M) -> Result<Until, M::Error> {
                Err(de::Error::custom(WRONG))
            }
        }
        value.deserialize_any(Visitor)
    }
}

/// What a user of secrets makes of them, one value per secret: prepared keys, a bearer token.
type Prepare<K> = dyn Fn(&Secret) -> Result<K, String> + Send + Sync;

/// The secrets of one source or endpoint, prepared for use and replaceable while in use.
pub(crate) struct KeyRing<K> {
    entries: Vec<SecretEntry>,
    /// Whether a file may be missing: somebody else brings it.
    absent: bool,
    prepare: Box<Prepare<K>>,
    keys: ArcSwap<Keys<K>>,
}

/// The keys of a ring, and until when each of them holds.
struct Keys<K> {
    all: Arc<Vec<K>>,
    /// One for each key; empty where all hold for ever.
    until: Vec<Option<SystemTime>>,
}

/// A secret that cannot be read, or that does not have the form its scheme needs.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It is not there.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// It is there and unusable.
    #[error("secret `{place}` {reason}")]
    Unusable {
        /// Where the secret is.
        place: String,
        /// What is wrong with it; never the value.
        reason: String,
    },
    /// A file of certificates or their key cannot be used. The text says which, and why.
    #[error("{0}")]
    Certificate(String),
}

impl<K: 'static> KeyRing<K> {
    /// Reads and prepares all secrets, also those that have ended; one that fails makes the whole ring fail.
    pub(crate) fn load(
        secrets: impl IntoIterator<Item = impl Into<SecretEntry>>,
        prepare: impl Fn(&Secret) -> Result<K, String> + Send + Sync + 'static,
    ) -> Result<Self, KeyError> {
        Self::read(secrets.into_iter().map(Into::into).collect(), false, Box::new(prepare))
    }

    /// Reads and prepares all secrets but the files that are not there yet.
    pub(crate) fn load_present(
        secrets: impl IntoIterator<Item = impl Into<SecretEntry>>,
        prepare: impl Fn(&Secret) -> Result<K, String> + Send + Sync + 'static,
    ) -> Result<Self, KeyError> {
        Self::read(secrets.into_iter().map(Into::into).collect(), true, Box::new(prepare))
    }

    fn read(entries: Vec<SecretEntry>, absent: bool, prepare: Box<Prepare<K>>) -> Result<Self, KeyError> {
        let keys = ArcSwap::from_pointee(read_all(&entries, absent, &prepare)?);
        Ok(Self { entries, absent, prepare, keys })
    }

    /// The keys as they are now, also those that have ended.
    pub(crate) fn keys(&self) -> Arc<Vec<K>> {
        self.keys.load().all.clone()
    }

    /// The keys that hold at this time. They are copied only once one of them has ended.
    pub(crate) fn at(&self, now: SystemTime) -> Arc<Vec<K>>
    where
        K: Clone,
    {
        let keys = self.keys.load();
        let holds = |until: &Option<SystemTime>| until.is_none_or(|until| now < until);
        if keys.until.iter().all(holds) {
            return keys.all.clone();
        }
        let those = keys.all.iter().zip(&keys.until).filter(|(_, until)| holds(until));
        Arc::new(those.map(|(key, _)| key.clone()).collect())
    }
}

/// Something that SIGHUP reads again.
pub(crate) trait Reload: Send + Sync {
    /// Reads the secrets again, and says how many there are. On an error the old ones stay in use.
    fn reload(&self) -> Result<usize, KeyError>;
}

impl<K: Send + Sync + 'static> Reload for KeyRing<K> {
    fn reload(&self) -> Result<usize, KeyError> {
        self.keys.store(Arc::new(read_all(&self.entries, self.absent, &self.prepare)?));
        Ok(self.entries.len())
    }
}

fn read_all<K: 'static>(entries: &[SecretEntry], absent: bool, prepare: &Prepare<K>) -> Result<Keys<K>, KeyError> {
    let there = || entries.iter().filter(|entry| !(absent && entry.secret.is_absent_file()));
    let read = |entry: &SecretEntry| {
        let unusable = |reason| KeyError::Unusable { place: entry.to_string(), reason };
        prepare(&entry.secret.resolve()?).map_err(unusable)
    };
    let all = there().map(read).collect::<Result<_, _>>()?;
    let ends = there().any(|entry| entry.until.is_some());
    let until = if ends { there().map(|entry| entry.until).collect() } else { Vec::new() };
    Ok(Keys { all: Arc::new(all), until })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_prints_its_value() {
        let secret: SecretRef = "plain:hunter2".parse().unwrap();
        assert_eq!(format!("{secret} {secret:?} {:?}", secret.resolve().unwrap()), "plain:*** plain:*** ***");
        let refused = SecretRef::try_from("hunter2".to_owned()).unwrap_err();
        assert!(!refused.to_string().contains("hunter2"));
    }

    #[test]
    fn an_empty_secret_is_an_error() {
        let secret: SecretRef = "plain:".parse().unwrap();
        assert!(matches!(secret.resolve(), Err(SecretError::Empty(_))));
    }

    #[test]
    fn a_files_line_end_is_not_part_of_the_secret() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "s3cret\r\n").unwrap();
        let secret: SecretRef = format!("file:{}", file.path().display()).parse().unwrap();
        assert_eq!(secret.resolve().unwrap().expose(), b"s3cret");
    }

    #[test]
    fn a_failed_reload_keeps_the_old_keys() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "first").unwrap();
        let reference: SecretRef = format!("file:{}", file.path().display()).parse().unwrap();
        let ring = KeyRing::load(vec![reference], |secret| Ok(secret.expose().to_vec())).unwrap();

        std::fs::write(file.path(), "").unwrap();
        assert!(ring.reload().is_err());
        assert_eq!(*ring.keys(), [b"first".to_vec()]);
        std::fs::write(file.path(), "second").unwrap();
        ring.reload().unwrap();
        assert_eq!(*ring.keys(), [b"second".to_vec()]);
    }

    fn entry(table: &str) -> Result<SecretEntry, String> {
        serde_json::from_str(table).map_err(|error| error.to_string())
    }

    #[test]
    fn a_secret_ends_at_its_moment_and_not_before_and_the_others_stay() {
        let end = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_796_083_200);
        let entries = [
            entry(r#"{"secret":"plain:old","until":"2026-12-01T02:00:00+02:00"}"#).unwrap(),
            entry(r#""plain:new""#).unwrap(),
        ];
        let ring = KeyRing::load(entries, |secret| Ok(secret.expose().to_vec())).unwrap();

        assert_eq!(*ring.at(end - std::time::Duration::from_millis(1)), [b"old".to_vec(), b"new".to_vec()]);
        assert_eq!(*ring.at(end), [b"new".to_vec()]);
        assert_eq!(ring.keys().len(), 2);
        ring.reload().unwrap();
        assert_eq!(*ring.at(end), [b"new".to_vec()]);
    }

    #[test]
    fn an_end_that_is_no_time_is_refused_without_the_secret() {
        for bad in [
            r#"{"secret":"plain:hunter2","until":"tomorrow"}"#,
            r#"{"secret":"plain:hunter2"}"#,
            r#"{"secret":"hunter2","until":"2026-12-01T00:00:00Z"}"#,
            r#"{"secret":"plain:hunter2","until":"2026-12-01T00:00:00Z","til":1}"#,
        ] {
            let reason = entry(bad).unwrap_err();
            assert!(!reason.contains("hunter2"), "{reason}");
        }
    }
}
