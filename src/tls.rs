//! TLS for outgoing connections: the system's certificate authorities, or those and the certificate of one's own that
//! an operator names files of.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};

/// The largest file of certificates that is read; the system's own is a quarter of it.
const MAX_FILE: u64 = 1024 * 1024;

/// An HTTP client for servers that the operator names: a collector, the operator's own gateway. What agents
/// and senders ask for goes through the address guard of [`crate::outbound`] instead.
pub(crate) fn http_client() -> Result<Client<HttpsConnector<HttpConnector>, Full<Bytes>>, rustls::Error> {
    let connector = HttpsConnectorBuilder::new().with_tls_config(client()?).https_or_http().enable_http1().build();
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}

/// What is wrong with a file of certificates or a key. Never a word of the key itself.
#[derive(Debug, thiserror::Error)]
#[error("`{}` {reason}", path.display())]
pub(crate) struct TlsError {
    /// The name of the file in the configuration: `ca`, `certificate` or `key`.
    pub(crate) key: &'static str,
    /// Where the file is.
    pub(crate) path: PathBuf,
    /// What is wrong with it.
    pub(crate) reason: String,
}

/// The client's TLS settings.
///
/// A machine without certificate authorities, such as a bare container, can still speak plain HTTP; what is
/// missing is said once, and every https destination then fails with a TLS error that names it.
pub(crate) fn client() -> Result<ClientConfig, rustls::Error> {
    Ok(trusting(system_authorities())?.with_no_client_auth())
}

/// TLS settings with authorities instead of the system's, or a certificate of one's own, or both.
pub(crate) fn client_with(
    ca: Option<&Path>,
    certificate: Option<&Path>,
    key: Option<&Path>,
) -> Result<ClientConfig, TlsError> {
    let (about, path) = ca.map_or(("certificate", certificate.unwrap_or(Path::new(""))), |ca| ("ca", ca));
    let unusable = |error: rustls::Error| wrong(about, path, error.to_string());
    let roots = ca.map_or_else(|| Ok(system_authorities()), authorities)?;
    let config = trusting(roots).map_err(unusable)?;
    match (certificate, key) {
        (None, None) => Ok(config.with_no_client_auth()),
        (Some(certificate), Some(key)) => {
            let chain = certificates("certificate", certificate)?;
            let private = PrivateKeyDer::from_pem_slice(&read("key", key)?);
            let private = private.map_err(|error| wrong("key", key, format!("holds no private key: {error}")))?;
            let unfit = |error| wrong("key", key, format!("does not go with `{}`: {error}", certificate.display()));
            config.with_client_auth_cert(chain, private).map_err(unfit)
        }
        (Some(certificate), None) => Err(wrong("certificate", certificate, "needs `key`".to_owned())),
        (None, Some(key)) => Err(wrong("key", key, "needs `certificate`".to_owned())),
    }
}

fn system_authorities() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        tracing::warn!(
            "No certificate authorities on this machine: https destinations will fail; install ca-certificates or set SSL_CERT_FILE"
        );
    }
    roots
}

fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca", path)? {
        let unfit = |error| wrong("ca", path, format!("holds a certificate that cannot be an authority: {error}"));
        roots.add(certificate).map_err(unfit)?;
    }
    Ok(roots)
}

fn trusting(roots: RootCertStore) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots))
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(key, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err(wrong(key, path, "holds no certificate (PEM)".to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(wrong(key, path, format!("is not PEM: {error}"))),
    }
}

fn read(key: &'static str, path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, TlsError> {
    let unreadable = |error: std::io::Error| wrong(key, path, format!("cannot be read: {error}"));
    let mut bytes = zeroize::Zeroizing::new(Vec::new());
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(wrong(key, path, format!("is larger than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}

fn wrong(key: &'static str, path: &Path, reason: String) -> TlsError {
    TlsError { key, path: path.to_owned(), reason }
}
