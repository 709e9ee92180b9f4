//! Secrets that the provider chooses and sends once, unsigned, when a webhook is set up.
//!
//! They are kept in the file that the source's `secrets` name, where the operator can read them. The first one
//! wins: a second handshake would let anybody replace the secret.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::secret::Secret;

/// The file of a secret that is not there before the provider sends it.
pub(super) struct Captured(PathBuf);

impl Captured {
    pub(super) fn new(file: &Path) -> Self {
        Self(file.to_owned())
    }

    /// The file, for messages.
    pub(super) fn file(&self) -> &Path {
        &self.0
    }

    /// Keeps the secret, readable by its owner only. Fails with `AlreadyExists` when there is one.
    pub(super) fn keep(&self, secret: &Secret) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.0)?;
        let written = file.write_all(secret.expose()).and_then(|()| file.sync_all());
        if written.is_err() {
            // Half a secret would shut the provider out.
            std::fs::remove_file(&self.0)?;
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_secret_wins() {
        let folder = tempfile::tempdir().unwrap();
        let captured = Captured::new(&folder.path().join("secret"));
        captured.keep(&Secret::new("first")).unwrap();
        let again = captured.keep(&Secret::new("second")).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(captured.file()).unwrap(), b"first");
    }
}
