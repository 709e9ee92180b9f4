//! Endpoints that were switched off while running, shared by all couriers through a bucket.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::broker::{Broker, BucketError};
use crate::clock::rfc3339;
use crate::event::Name;

/// How long to wait before reading the bucket again.
const LOAD_AGAIN: Duration = Duration::from_millis(500);

/// What the bucket says of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    state: State,
    /// The URL that it is true of. Another URL in the configuration is another endpoint.
    url: String,
    reason: String,
    at: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Disabled,
}

/// The states as this process knows them.
#[derive(Clone, Default)]
pub(super) struct EndpointStates(Arc<RwLock<HashMap<String, Record>>>);

impl EndpointStates {
    /// Whether deliveries to this endpoint are dead at once.
    pub(super) fn is_disabled(&self, endpoint: &Name, url: &Url) -> bool {
        let states = self.0.read().unwrap_or_else(PoisonError::into_inner);
        states.get(endpoint.as_str()).is_some_and(|record| record.url == url.as_str())
    }

    /// Disables an endpoint, here at once and for the others through the bucket.
    pub(super) async fn disable(
        &self,
        broker: &Broker,
        endpoint: &Name,
        url: &Url,
        now: SystemTime,
    ) -> Result<(), BucketError> {
        let reason = "410 Gone".to_owned();
        let record = Record { state: State::Disabled, url: url.to_string(), reason, at: rfc3339(now) };
        let value = serde_json::to_vec(&record).unwrap_or_default();
        self.set(endpoint.as_str(), Some(record));
        broker.put_endpoint(endpoint.as_str(), value.into()).await
    }

    fn set(&self, endpoint: &str, record: Option<Record>) {
        let mut states = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match record {
            Some(record) => states.insert(endpoint.to_owned(), record),
            None => states.remove(endpoint),
        };
    }

    /// Reads the bucket once, so that no delivery is made before it is known what is disabled.
    pub(super) async fn load(&self, broker: &Broker) {
        let found = |endpoint: &str, value: &[u8]| self.set(endpoint, serde_json::from_slice(value).ok());
        while broker.ready().await.is_some()
            && let Err(error) = broker.read_endpoints(found).await
        {
            tracing::warn!("No delivery begins before it is known which endpoints are disabled: {error}");
            tokio::time::sleep(LOAD_AGAIN).await;
        }
    }

    /// Follows the bucket until stopped. A record that cannot be read enables: it is nobody's word.
    /// What is not about an endpoint's state, `other` takes.
    pub(super) async fn follow(
        &self,
        broker: &Broker,
        stop: &CancellationToken,
        other: impl Fn(&str, Option<&[u8]>) -> bool,
    ) {
        let changed = |endpoint: &str, value: Option<&[u8]>| {
            if other(endpoint, value) {
                return;
            }
            let record = value.and_then(|value| serde_json::from_slice(value).ok());
            tracing::debug!(endpoint.name = endpoint, "Endpoint state changed: {record:?}");
            self.set(endpoint, record);
        };
        broker.watch_endpoints(stop, changed).await;
    }
}
