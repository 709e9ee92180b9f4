//! The bucket of endpoint states.

use std::time::Duration;

use async_nats::jetstream::kv::{Operation, Store};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use super::Broker;

/// How long to wait before watching again.
const AGAIN: Duration = Duration::from_millis(500);

/// The bucket did not take it.
#[derive(Debug, thiserror::Error)]
#[error("bucket of endpoint states: {0}")]
pub(crate) struct BucketError(String);

impl Broker {
    /// Writes an endpoint's state.
    pub(crate) async fn put_endpoint(&self, endpoint: &str, value: Bytes) -> Result<(), BucketError> {
        let store = self.endpoints().await?;
        store.put(endpoint, value).await.map(drop).map_err(|error| BucketError(error.to_string()))
    }

    /// Removes a key.
    pub(crate) async fn remove_endpoint(&self, endpoint: &str) -> Result<(), BucketError> {
        let store = self.endpoints().await?;
        store.purge(endpoint).await.map(drop).map_err(|error| BucketError(error.to_string()))
    }

    /// Calls `found` for every state there is now.
    pub(crate) async fn read_endpoints(&self, found: impl Fn(&str, &[u8])) -> Result<(), BucketError> {
        let failed = |error: &dyn std::fmt::Display| BucketError(error.to_string());
        let store = self.endpoints().await?;
        let mut keys = store.keys().await.map_err(|error| failed(&error))?;
        while let Some(key) = keys.next().await {
            let key = key.map_err(|error| failed(&error))?;
            if let Some(value) = store.get(&key).await.map_err(|error| failed(&error))? {
                found(&key, &value);
            }
        }
        Ok(())
    }

    /// Calls `changed` for every state there is and for every change, until stopped; `None` is a removed one.
    /// Begins anew with every connection.
    pub(crate) async fn watch_endpoints(&self, stop: &CancellationToken, changed: impl Fn(&str, Option<&[u8]>)) {
        while !stop.is_cancelled() {
            let Some(Some(ready)) = stop.run_until_cancelled(self.ready()).await else { return };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.lost(ready.connection) => continue,
                ended = self.follow_endpoints(&changed) => {
                    if let Err(error) = ended {
                        tracing::debug!("Watching endpoint states ended: {error}");
                    }
                }
            }
            stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await;
        }
    }

    async fn follow_endpoints(&self, changed: &impl Fn(&str, Option<&[u8]>)) -> Result<(), BucketError> {
        let failed = |error: &dyn std::fmt::Display| BucketError(error.to_string());
        let store = self.endpoints().await?;
        let mut watch = store.watch_with_history(">").await.map_err(|error| failed(&error))?;
        while let Some(entry) = watch.next().await {
            let entry = entry.map_err(|error| failed(&error))?;
            let value = (entry.operation == Operation::Put).then_some(&entry.value[..]);
            changed(&entry.key, value);
        }
        Ok(())
    }

    async fn endpoints(&self) -> Result<Store, BucketError> {
        let store = self.jetstream.get_key_value(self.names.endpoints_bucket()).await;
        store.map_err(|error| BucketError(error.to_string()))
    }
}
