//! The links of a process: one for each role that it has.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::{Broker, Link};

/// How long to wait before looking again at a link that was lost a moment ago.
const SOON: Duration = Duration::from_millis(20);

/// A role, as far as its connection is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Gateway,
    Courier,
}

/// The brokers in use now. The courier's may be replaced.
#[derive(Clone)]
pub(crate) struct Links {
    brokers: Arc<Mutex<[Option<Broker>; 2]>>,
    changed: Arc<watch::Sender<()>>,
}

impl Default for Links {
    fn default() -> Self {
        Self { brokers: Arc::default(), changed: Arc::new(watch::channel(()).0) }
    }
}

impl Links {
    /// Puts a role's broker in place.
    pub(crate) fn set(&self, role: Role, broker: Broker) {
        self.brokers.lock().unwrap_or_else(PoisonError::into_inner)[role as usize] = Some(broker);
        self.changed.send_replace(());
    }

    /// All brokers in use.
    pub(crate) fn all(&self) -> Vec<Broker> {
        self.brokers.lock().unwrap_or_else(PoisonError::into_inner).iter().flatten().cloned().collect()
    }

    /// Why the process is not ready, if it is not: the first link over which nothing can be stored now. No link at all
    /// is one of these.
    pub(crate) fn trouble(&self) -> Option<String> {
        let brokers = self.all();
        if brokers.is_empty() {
            return Some(Link::Connecting.to_string());
        }
        brokers.iter().find_map(Broker::trouble)
    }

    /// How often each stream was another one than this process had seen before. All links share what is known.
    pub(crate) fn replacements(&self) -> Vec<(&'static str, u64)> {
        self.all().first().map(Broker::replacements).unwrap_or_default()
    }

    /// Waits until every link is ready.
    pub(crate) async fn ready(&self) {
        let mut changed = self.changed.subscribe();
        loop {
            let all_ready = async {
                for broker in self.all() {
                    broker.ready().await;
                }
            };
            tokio::select! {
                () = all_ready => if self.trouble().is_none() {
                    return;
                } else {
                    tokio::time::sleep(SOON).await;
                },
                // An error means that the process is about to end.
                changed = changed.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    }
}
