//! Making a connection to one of the addresses that a host has, without waiting long for any of them.
//!
//! The next address is tried a moment after the one before, which goes on meanwhile, IPv6 and IPv4 in turn; the first
//! connection that stands is the one (RFC 8305, section 5). All addresses come from one answer that the guard has
//! judged. Who calls bounds the time.

use std::error::Error;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Uri;
use http::uri::Scheme;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use super::resolve::Guarded;

/// How long one address is waited for before the next one is tried as well.
const NEXT_AFTER: Duration = Duration::from_millis(250);
/// The errors of a process, and of a machine, that has no file descriptor left (EMFILE, ENFILE).
const NO_DESCRIPTOR: [i32; 2] = [24, 23];

/// Resolves and connects.
#[derive(Clone)]
pub(super) struct Connector(pub(super) Guarded);

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let mut resolver = self.0.clone();
        Box::pin(async move {
            let host = uri.host().ok_or("the URL has no host")?.trim_matches(['[', ']']);
            let default = if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
            let port = uri.port_u16().unwrap_or(default);
            let addresses: Vec<IpAddr> = match host.parse() {
                Ok(address) => vec![address],
                Err(_) => resolver.call(host.parse::<Name>()?).await?.map(|address| address.ip()).collect(),
            };
            let stream = first(in_turn(&addresses).map(|address| SocketAddr::new(address, port))).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(stream))
        })
    }
}

/// The addresses of both families in turn, beginning with the family of the first.
fn in_turn(addresses: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    let begins_with = addresses.first().map(IpAddr::is_ipv6);
    let (one, other): (Vec<IpAddr>, Vec<IpAddr>) =
        addresses.iter().partition(|address| Some(address.is_ipv6()) == begins_with);
    let (mut one, mut other) = (one.into_iter().fuse(), other.into_iter().fuse());
    let mut is_other = false;
    std::iter::from_fn(move || {
        is_other = !is_other;
        if is_other { one.next().or_else(|| other.next()) } else { other.next().or_else(|| one.next()) }
    })
}

/// The first connection that stands; the first error where none does.
async fn first(mut addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let (mut attempts, mut failure) = (FuturesUnordered::new(), None);
    let mut next = addresses.next();
    loop {
        if let Some(address) = next.take() {
            attempts.push(TcpStream::connect(address));
            next = addresses.next();
        } else if attempts.is_empty() {
            return Err(failure.unwrap_or_else(|| io::Error::other("the host has no address")));
        }
        let tried = match next {
            Some(_) => tokio::time::timeout(NEXT_AFTER, attempts.next()).await,
            None => Ok(attempts.next().await),
        };
        match tried {
            Ok(Some(Ok(stream))) => return Ok(stream),
            // No other address helps against it.
            Ok(Some(Err(error))) if is_out_of_descriptors(&error) => return Err(error),
            Ok(Some(Err(error))) => failure = failure.or(Some(error)),
            Ok(None) | Err(_) => {}
        }
    }
}

/// Whether it is the want of file descriptors, in this process or on this machine.
pub(super) fn is_out_of_descriptors(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|number| NO_DESCRIPTOR.contains(&number))
}

/// The want of file descriptors, if there is none left at this moment. Resolvers do not say why they fail.
pub(super) fn no_descriptor_left() -> Option<io::Error> {
    std::fs::File::open("/dev/null").err().filter(is_out_of_descriptors)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn families_take_turns_beginning_with_the_first() {
        let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let given = ips(&["::1", "::2", "::3", "10.0.0.1", "10.0.0.2"]);
        assert_eq!(in_turn(&given).collect::<Vec<_>>(), ips(&["::1", "10.0.0.1", "::2", "10.0.0.2", "::3"]));
        let given = ips(&["10.0.0.1", "10.0.0.2", "::1"]);
        assert_eq!(in_turn(&given).collect::<Vec<_>>(), ips(&["10.0.0.1", "::1", "10.0.0.2"]));
        assert_eq!(in_turn(&[]).count(), 0);
    }

    #[tokio::test]
    async fn an_address_that_refuses_is_passed_over_at_once_and_all_of_them_are_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = listener.local_addr().unwrap();
        let closed = SocketAddr::new("127.0.0.2".parse().unwrap(), there.port());

        assert_eq!(first([closed, there].into_iter()).await.unwrap().peer_addr().unwrap(), there);
        let refused = first([closed, closed].into_iter()).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(first(std::iter::empty()).await.is_err());
    }
}
