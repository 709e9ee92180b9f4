//! TLS for outgoing connections: the system's certificate authorities.

use bytes::Bytes;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};

/// An HTTP client for servers that the operator names: a collector, the operator's own gateway. What agents
/// and senders ask for goes through the address guard of [`crate::outbound`] instead.
pub(crate) fn http_client() -> Result<Client<HttpsConnector<HttpConnector>, Full<Bytes>>, rustls::Error> {
    let connector = HttpsConnectorBuilder::new().with_tls_config(client()?).https_or_http().enable_http1().build();
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}

/// The client's TLS settings.
///
/// A machine without certificate authorities, such as a bare container, can still speak plain HTTP; what is
/// missing is said once, and every https destination then fails with a TLS error that names it.
pub(crate) fn client() -> Result<ClientConfig, rustls::Error> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        tracing::warn!(
            "No certificate authorities on this machine: https destinations will fail; install ca-certificates or set SSL_CERT_FILE"
        );
    }
    let provider = rustls::crypto::ring::default_provider();
    let config = ClientConfig::builder_with_provider(provider.into()).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
