//! Everything that a test needs to tell its story.

pub(crate) mod cluster;
mod collector;
mod dns;
mod hookbridge;
mod hostile;
mod http;
pub(crate) mod nats;
mod packages;
mod program;
mod proxy;
mod receiver;
pub(crate) mod sign;
pub(crate) mod tls;
mod witness;

pub(crate) use self::cluster::Cluster;
pub(crate) use self::collector::{Collector, attribute};
pub(crate) use self::dns::Dns;
pub(crate) use self::hookbridge::{Hookbridge, mistakes};
pub(crate) use self::hostile::{Act, Hostile};
pub(crate) use self::http::{Answer, Wire, post, request, send, send_raw, webhook};
pub(crate) use self::nats::{Message, Nats};
pub(crate) use self::packages::{node_with_packages, python, python_with_packages};
pub(crate) use self::program::{Configuration, Ended, Program, binary, free_port, run};
pub(crate) use self::receiver::{Receiver, Reply};
pub(crate) use self::witness::{Seen, Witness};

use std::future::Future;
use std::time::Duration;

/// How long anything may take before a test gives up on it. Generous: the machines are shared, and what was in
/// flight on a connection that broke comes again only after the ack wait of 30 s.
pub(crate) const DEADLINE: Duration = Duration::from_secs(100);

/// Waits for something, but not for ever.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {DEADLINE:?} for {what}"),
    }
}

/// Asks again and again until the answer is there, but not for ever.
pub(crate) async fn eventually<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    within(what, async {
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        loop {
            pace.tick().await;
            if let Some(value) = ask().await {
                return value;
            }
        }
    })
    .await
}
