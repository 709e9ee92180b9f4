//! `[endpoints.<name>.tls]` and `[callbacks.tls]`

use std::path::PathBuf;

use serde::Deserialize;

use crate::tls::{self, TlsError};

/// TLS of one's own towards a destination. Connections with it are shared with no other destination. The files are
/// read at start and again on SIGHUP.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientTls {
    /// Certificate authorities (PEM) instead of the system's: no other is believed here.
    pub ca: Option<PathBuf>,
    /// The client's certificate chain (PEM), its own certificate first; needs `key`.
    pub certificate: Option<PathBuf>,
    /// The key of `certificate` (PEM, not encrypted).
    pub key: Option<PathBuf>,
}

impl ClientTls {
    /// Whether nothing is named.
    pub(crate) fn is_empty(&self) -> bool {
        self.ca.is_none() && self.certificate.is_none() && self.key.is_none()
    }

    /// Reads the files and sees that they fit each other.
    pub(crate) fn load(&self) -> Result<rustls::ClientConfig, TlsError> {
        tls::client_with(self.ca.as_deref(), self.certificate.as_deref(), self.key.as_deref())
    }
}
