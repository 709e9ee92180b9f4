//! Certificates and a server that speaks TLS, on loopback.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::within;

/// A certificate authority, and the files of what it signed.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub(crate) ca: PathBuf,
    folder: PathBuf,
}

/// The files of a certificate and its key.
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    pub(crate) fn new(folder: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let ca = folder.join(format!("{name}-ca.pem"));
        std::fs::write(&ca, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(params, key), ca, folder: folder.to_owned() }
    }

    /// A certificate for this host, good for years to come.
    pub(crate) fn sign(&self, host: &str) -> Identity {
        self.sign_until(host, 2100)
    }

    /// A certificate for this host that ends with the beginning of a year.
    pub(crate) fn sign_until(&self, host: &str, year: i32) -> Identity {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, host);
        (params.not_before, params.not_after) = (date_time_ymd(2000, 1, 1), date_time_ymd(year, 1, 1));
        let key = KeyPair::generate().unwrap();
        let path = |what: &str| {
            let issuer = self.ca.file_stem().unwrap().to_string_lossy();
            self.folder.join(format!("{issuer}-{host}-{year}-{what}.pem"))
        };
        let identity = Identity { certificate: path("certificate"), key: path("key") };
        std::fs::write(&identity.certificate, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(&identity.key, key.serialize_pem()).unwrap();
        identity
    }
}

/// A server that answers every request 204, and tells of each who the client said it is.
pub(crate) struct TlsReceiver {
    address: std::net::SocketAddr,
    arrived: mpsc::Receiver<Option<CertificateDer<'static>>>,
    connections: Arc<AtomicUsize>,
    server: tokio::task::JoinHandle<()>,
}

impl TlsReceiver {
    /// Shows a certificate; with an authority, it demands one of the client that this authority signed.
    pub(crate) async fn start(identity: &Identity, clients: Option<&Authority>) -> Self {
        let listener = TcpListener::bind((IpAddr::from([127, 0, 0, 1]), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, arrived) = mpsc::channel(1000);
        let connections = Arc::<AtomicUsize>::default();
        let server = tokio::spawn(accept(listener, acceptor(identity, clients), tell, connections.clone()));
        Self { address, arrived, connections, server }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}/", self.address)
    }

    /// The client's certificate of the next request, if it had one; waits for it.
    pub(crate) async fn next(&mut self) -> Option<CertificateDer<'static>> {
        within("a delivery over TLS", self.arrived.recv()).await.unwrap()
    }

    /// How many handshakes were carried through.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The requests that have arrived and were not looked at.
    pub(crate) fn unread(&mut self) -> usize {
        std::iter::from_fn(|| self.arrived.try_recv().ok()).count()
    }
}

impl Drop for TlsReceiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The certificate of a file.
pub(crate) fn certificate(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

/// What takes connections with a certificate; with an authority, it demands one of the client that it signed.
pub(crate) fn acceptor(identity: &Identity, clients: Option<&Authority>) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(certificate(&authority.ca)).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&identity.key).unwrap();
    Arc::new(builder.with_single_cert(vec![certificate(&identity.certificate)], key).unwrap()).into()
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    tell: mpsc::Sender<Option<CertificateDer<'static>>>,
    count: Arc<AtomicUsize>,
) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, tell, count) = (acceptor.clone(), tell.clone(), count.clone());
        connections.spawn(async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                count.fetch_add(1, Ordering::Relaxed);
                serve(stream, tell).await;
            }
        });
    }
}

async fn serve(mut stream: TlsStream<TcpStream>, tell: mpsc::Sender<Option<CertificateDer<'static>>>) {
    let client = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).map(|first| first.clone().into_owned());
    let mut bytes = Vec::new();
    while stream.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
        let head = String::from_utf8_lossy(&bytes).to_lowercase();
        let Some((head, _)) = head.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        if bytes.len() >= head.len() + 4 + length.unwrap_or(0) {
            drop(tell.send(client.clone()).await);
            bytes.clear();
            if stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.is_err() {
                return;
            }
        }
    }
}
