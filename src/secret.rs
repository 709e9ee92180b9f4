//! Values that never print.
//!
//! The configuration holds a [`SecretRef`], which says where a secret is; [`KeyRing`] holds the values and
//! reads them again on SIGHUP, so that a rotation needs no restart.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::Deserialize;
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

/// What a user of secrets makes of them, one value per secret: prepared keys, a bearer token.
type Prepare<K> = dyn Fn(&Secret) -> Result<K, String> + Send + Sync;

/// The secrets of one source or endpoint, prepared for use and replaceable while in use.
pub(crate) struct KeyRing<K> {
    references: Vec<SecretRef>,
    /// Whether a file may be missing: somebody else brings it.
    absent: bool,
    prepare: Box<Prepare<K>>,
    keys: ArcSwap<Vec<K>>,
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
}

impl<K: 'static> KeyRing<K> {
    /// Reads and prepares all secrets; one that fails makes the whole ring fail.
    pub(crate) fn load(
        references: Vec<SecretRef>,
        prepare: impl Fn(&Secret) -> Result<K, String> + Send + Sync + 'static,
    ) -> Result<Self, KeyError> {
        Self::read(references, false, Box::new(prepare))
    }

    /// Reads and prepares all secrets but the files that are not there yet.
    pub(crate) fn load_present(
        references: Vec<SecretRef>,
        prepare: impl Fn(&Secret) -> Result<K, String> + Send + Sync + 'static,
    ) -> Result<Self, KeyError> {
        Self::read(references, true, Box::new(prepare))
    }

    fn read(references: Vec<SecretRef>, absent: bool, prepare: Box<Prepare<K>>) -> Result<Self, KeyError> {
        let keys = ArcSwap::from_pointee(read_all(&references, absent, &prepare)?);
        Ok(Self { references, absent, prepare, keys })
    }

    /// The keys as they are now.
    pub(crate) fn keys(&self) -> arc_swap::Guard<Arc<Vec<K>>> {
        self.keys.load()
    }
}

/// Something that SIGHUP reads again.
pub(crate) trait Reload: Send + Sync {
    /// Reads the secrets again, and says how many there are. On an error the old ones stay in use.
    fn reload(&self) -> Result<usize, KeyError>;
}

impl<K: Send + Sync + 'static> Reload for KeyRing<K> {
    fn reload(&self) -> Result<usize, KeyError> {
        self.keys.store(Arc::new(read_all(&self.references, self.absent, &self.prepare)?));
        Ok(self.references.len())
    }
}

fn read_all<K: 'static>(references: &[SecretRef], absent: bool, prepare: &Prepare<K>) -> Result<Vec<K>, KeyError> {
    let read = |reference: &SecretRef| {
        let unusable = |reason| KeyError::Unusable { place: reference.to_string(), reason };
        prepare(&reference.resolve()?).map_err(unusable)
    };
    references.iter().filter(|reference| !(absent && reference.is_absent_file())).map(read).collect()
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
        assert_eq!(**ring.keys(), [b"first".to_vec()]);
        std::fs::write(file.path(), "second").unwrap();
        ring.reload().unwrap();
        assert_eq!(**ring.keys(), [b"second".to_vec()]);
    }
}
