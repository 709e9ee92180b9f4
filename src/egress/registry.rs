//! The endpoints there are now: those of the configuration, and those that came at run time.
//!
//! Endpoints of run time are sealed records of the bucket (`endpoint.<name>`), which every courier follows. A record
//! that does not open, is older than what was seen, or cannot work changes nothing: what was valid before stays.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use url::Url;

use super::destination::{Destinations, Endpoint};
use super::seal::Sealer;
use crate::config::{self, Config, StreamKind};
use crate::event::Name;
use crate::secret::{KeyError, Reload};

/// What the keys of endpoints begin with; their name follows.
const PREFIX: &str = "endpoint.";

/// The key of an endpoint.
pub(crate) fn key(name: &Name) -> String {
    format!("{PREFIX}{name}")
}

/// All destinations, as they are now.
pub(crate) struct Registry {
    configured: Destinations,
    now: ArcSwap<Destinations>,
    sealer: Arc<Sealer>,
    config: Config,
    dynamic: Mutex<Dynamic>,
    /// Whether `now` is behind `dynamic`.
    changed: AtomicBool,
}

#[derive(Default)]
struct Dynamic {
    endpoints: BTreeMap<Name, Arc<Endpoint>>,
    /// The highest revision seen of each, also of those that are gone.
    revisions: HashMap<Name, u64>,
}

impl Registry {
    /// Prepares every configured destination; the error names the one whose secrets cannot be used.
    pub(crate) fn new(config: &Config) -> Result<Self, (String, KeyError)> {
        let configured = Destinations::new(config)?;
        let sealer = Sealer::load(config).map_err(|error| ("egress.seal_keys".to_owned(), error))?;
        let now = ArcSwap::from_pointee(configured.clone());
        Ok(Self {
            configured,
            now,
            sealer: Arc::new(sealer),
            config: config.clone(),
            dynamic: Mutex::default(),
            changed: AtomicBool::new(false),
        })
    }

    /// The destinations, for one message. Many changes at once are put together only once.
    pub(super) fn now(&self) -> Arc<Destinations> {
        if self.changed.swap(false, Ordering::AcqRel) {
            let dynamic = self.dynamic.lock().unwrap_or_else(PoisonError::into_inner);
            self.now.store(Arc::new(self.configured.with(&dynamic.endpoints)));
        }
        self.now.load_full()
    }

    pub(super) fn sealer(&self) -> Arc<Sealer> {
        self.sealer.clone()
    }

    /// The key rings that SIGHUP reads again.
    pub(crate) fn secrets(&self) -> Vec<Arc<dyn Reload>> {
        self.configured.secrets()
    }

    /// Hears of a key of the bucket. `Ok(false)`: it is about something else. The error says why a record is refused.
    pub(super) fn hears(&self, key: &str, record: Option<&[u8]>) -> Result<bool, String> {
        let Some(name) = key.strip_prefix(PREFIX) else { return Ok(false) };
        let name: Name = name.parse().map_err(|_| "is not the name of an endpoint".to_owned())?;
        let mut dynamic = self.dynamic.lock().unwrap_or_else(PoisonError::into_inner);
        match record {
            // Whoever deletes an endpoint writes that it is gone.
            None if dynamic.endpoints.contains_key(&name) => return Err("was taken away by somebody else".to_owned()),
            None => {}
            Some(record) => {
                let (revision, endpoint) = self.read(&name, key, record)?;
                let seen = dynamic.revisions.get(&name).copied().unwrap_or(0);
                if revision < seen {
                    return Err(format!("is revision {revision}, and {seen} was there before"));
                }
                dynamic.revisions.insert(name.clone(), revision);
                match endpoint {
                    Some(endpoint) => drop(dynamic.endpoints.insert(name, Arc::new(endpoint))),
                    None => drop(dynamic.endpoints.remove(&name)),
                }
            }
        }
        self.changed.store(true, Ordering::Release);
        Ok(true)
    }

    fn read(&self, name: &Name, key: &str, record: &[u8]) -> Result<(u64, Option<Endpoint>), String> {
        let (summary, table) = self.sealer.open(key, record)?;
        if summary.deleted {
            return Ok((summary.revision, None));
        }
        if self.configured.endpoints.contains_key(name) {
            return Err("has the name of a configured endpoint, which stays".to_owned());
        }
        let endpoint: config::Endpoint = serde_json::from_slice(&table).map_err(|error| error.to_string())?;
        if let Some(mistake) = config::endpoint_mistakes(&self.config, name, &endpoint).into_iter().next() {
            return Err(format!("{}: {}", mistake.key, mistake.reason));
        }
        let endpoint = Endpoint::new(name, &endpoint, &self.config.egress, self.kept_for());
        let endpoint = endpoint.map_err(|error| error.to_string())?;
        Ok((summary.revision, Some(endpoint)))
    }

    /// How long OUTBOX keeps a message.
    pub(super) fn kept_for(&self) -> Option<Duration> {
        self.config.streams.limits(StreamKind::Outbox).max_age
    }

    /// Whether an endpoint is one of the configuration, and so was there when the process began.
    pub(super) fn is_configured(&self, name: &Name) -> bool {
        self.configured.endpoints.contains_key(name)
    }

    /// The URL of the destination of this token, where it is an endpoint.
    pub(super) fn url_of(&self, token: &str) -> Option<Url> {
        let now = self.now();
        token.strip_prefix("e_").and_then(|name| now.endpoints.get(name)).map(|endpoint| endpoint.url.clone())
    }
}
