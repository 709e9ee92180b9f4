//! Looking up names: by the system, or by name servers of the operator's, with the guard behind either.
//!
//! An answer is refused as a whole if any address in it is, and nothing of it goes on but the addresses that were
//! judged: no scope, no port. Nothing is cached here, so that each connection stands on a look-up of its own; the
//! connector that asks bounds the time.

use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{Resolver, TokioResolver};
use hyper_util::client::legacy::connect::dns::Name;
use tower_service::Service;
use url::{Host, Url};

use super::connect::no_descriptor_left;
use super::guard::{Blocked, Guard};
use crate::config::NameServer;

/// How long one question to a name server may take before it is asked again.
const QUESTION: Duration = Duration::from_secs(2);
/// How often a name server is asked once more.
const REPEATS: usize = 2;
/// Questions under way at once over one connection to a name server.
const MAX_QUESTIONS: usize = 1024;
/// The most addresses of an answer that are tried.
const MAX_ADDRESSES: usize = 16;

/// Who is asked.
pub(super) enum Names {
    System,
    Servers(Result<Box<TokioResolver>, String>),
}

/// The resolver of the HTTP client: names in, addresses out that may be reached.
#[derive(Clone)]
pub(super) struct Guarded(pub(super) Guard);

/// Why a name gave no address to connect to.
#[derive(Debug)]
pub(super) enum ResolveError {
    /// The answer holds an address that must not be reached, or the name itself must not be.
    Blocked(Blocked),
    /// There is no answer.
    Dns(String),
    /// There is no file descriptor to ask with.
    NoDescriptor(std::io::Error),
}

impl Names {
    /// The system's resolver, unless there are name servers.
    pub(super) fn new(servers: &[NameServer]) -> Self {
        if servers.is_empty() {
            return Self::System;
        }
        let config = ResolverConfig::from_name_servers(servers.iter().map(|server| name_server(server.0)).collect());
        let builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options());
        Self::Servers(builder.build().map(Box::new).map_err(|error| error.to_string()))
    }

    /// The addresses of a host, at most so many of them that all can be judged and tried.
    async fn look_up(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        let mut addresses: Vec<IpAddr> = match self {
            Self::System => {
                let answer = tokio::net::lookup_host((host, 0)).await.map_err(|error| error.to_string())?;
                answer.map(|address| address.ip()).collect()
            }
            Self::Servers(resolver) => {
                let resolver = resolver.as_ref().map_err(Clone::clone)?;
                // The root's dot: no search domain is tried.
                let name = format!("{}.", host.strip_suffix('.').unwrap_or(host));
                resolver.lookup_ip(name).await.map_err(|error| error.to_string())?.iter().collect()
            }
        };
        if addresses.is_empty() {
            return Err("it has no address".to_owned());
        }
        addresses.dedup();
        Ok(addresses)
    }
}

impl Guard {
    /// Checks a URL as an attempt would, its host resolved. A host that cannot be resolved within this time passes:
    /// it may have an address when it is needed, and is checked again then.
    pub(crate) async fn foresee(&self, url: &Url, within: Duration) -> Result<(), Blocked> {
        self.check_url(url)?;
        let Some(Host::Domain(host)) = url.host() else { return Ok(()) };
        match tokio::time::timeout(within, self.names().look_up(host)).await {
            Ok(Ok(addresses)) => self.check_answer(host, &addresses),
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

fn options() -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = QUESTION;
    options.attempts = REPEATS;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.max_active_requests = MAX_QUESTIONS;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options
}

impl Service<Name> for Guarded {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = ResolveError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ResolveError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ResolveError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let guard = self.0.clone();
        Box::pin(async move {
            let host = name.as_str();
            guard.check_host(host).map_err(ResolveError::Blocked)?;
            let addresses = guard.names().look_up(host).await.map_err(ResolveError::unanswered)?;
            guard.check_answer(host, &addresses).map_err(ResolveError::Blocked)?;
            let addresses: Vec<_> =
                addresses.into_iter().take(MAX_ADDRESSES).map(|address| SocketAddr::new(address, 0)).collect();
            Ok(addresses.into_iter())
        })
    }
}

impl ResolveError {
    fn unanswered(error: String) -> Self {
        no_descriptor_left().map_or(Self::Dns(error), Self::NoDescriptor)
    }
}

impl fmt::Display for ResolveError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocked(blocked) => blocked.fmt(formatter),
            Self::Dns(error) => write!(formatter, "the host cannot be resolved: {error}"),
            Self::NoDescriptor(error) => error.fmt(formatter),
        }
    }
}

impl std::error::Error for ResolveError {}
