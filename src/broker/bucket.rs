//! The bucket of what is said about endpoints.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::kv::{Operation, Store, UpdateErrorKind};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{Broker, Names, Visitor};

/// How long to wait before watching again.
const AGAIN: Duration = Duration::from_millis(500);
/// The most keys that a visit reads.
const MOST_KEYS: usize = 100_000;

/// The bucket did not take it, or did not answer.
#[derive(Debug, thiserror::Error)]
#[error("bucket of endpoints: {0}")]
pub(crate) struct BucketError(String);

fn failed(error: &dyn std::fmt::Display) -> BucketError {
    BucketError(error.to_string())
}

async fn open(jetstream: &jetstream::Context, names: &Names) -> Result<Store, BucketError> {
    jetstream.get_key_value(names.endpoints_bucket()).await.map_err(|error| failed(&error))
}

impl Broker {
    /// Writes a key.
    pub(crate) async fn put_endpoint(&self, key: &str, value: Bytes) -> Result<(), BucketError> {
        let store = open(&self.jetstream, &self.names).await?;
        store.put(key, value).await.map(drop).map_err(|error| failed(&error))
    }

    /// Removes a key.
    pub(crate) async fn remove_endpoint(&self, key: &str) -> Result<(), BucketError> {
        let store = open(&self.jetstream, &self.names).await?;
        store.purge(key).await.map(drop).map_err(|error| failed(&error))
    }

    /// Removes a key, and what removing leaves: a key that nobody writes again would leave it for ever. Who does not
    /// hear of it in time takes the key for there.
    pub(crate) async fn forget_endpoint(&self, key: &str) -> Result<(), BucketError> {
        self.remove_endpoint(key).await?;
        let store = open(&self.jetstream, &self.names).await?;
        let left = store.entry(key).await.map_err(|error| failed(&error))?;
        if let Some(left) = left.filter(|left| left.operation != Operation::Put) {
            // A bucket's stream lets nobody delete single messages, but purge one subject up to a place.
            let subject = format!("$KV.{}.{key}", self.names.endpoints_bucket());
            let purged = store.stream.purge().sequence(left.revision + 1).filter(subject).await;
            purged.map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// Removes a key, and what removing leaves, if its value is `over`. Who writes it meanwhile is not in the way.
    pub(crate) async fn forget_endpoint_if(&self, key: &str, over: impl Fn(&[u8]) -> bool) -> Result<(), BucketError> {
        let store = open(&self.jetstream, &self.names).await?;
        let Some(entry) = store.entry(key).await.map_err(|error| failed(&error))? else { return Ok(()) };
        if entry.operation == Operation::Put {
            if !over(&entry.value) {
                return Ok(());
            }
            store.purge_expect_revision(key, Some(entry.revision)).await.map_err(|error| failed(&error))?;
        }
        let Some(left) = store.entry(key).await.map_err(|error| failed(&error))? else { return Ok(()) };
        if left.operation != Operation::Put {
            let subject = format!("$KV.{}.{key}", self.names.endpoints_bucket());
            let purged = store.stream.purge().sequence(left.revision + 1).filter(subject).await;
            purged.map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// Calls `found` for every key there is now.
    pub(crate) async fn read_endpoints(&self, found: impl Fn(&str, &[u8])) -> Result<(), BucketError> {
        let store = open(&self.jetstream, &self.names).await?;
        let mut keys = store.keys().await.map_err(|error| failed(&error))?;
        while let Some(key) = keys.next().await {
            let key = key.map_err(|error| failed(&error))?;
            if let Some(value) = store.get(&key).await.map_err(|error| failed(&error))? {
                found(&key, &value);
            }
        }
        Ok(())
    }

    /// Calls `changed` for every key there is and for every change, until stopped; `None` is a removed one.
    /// Begins anew with every connection.
    pub(crate) async fn watch_endpoints(&self, stop: &CancellationToken, changed: impl Fn(&str, Option<&[u8]>)) {
        while !stop.is_cancelled() {
            let Some(Some(ready)) = stop.run_until_cancelled(self.ready()).await else { return };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.lost(ready.connection) => continue,
                ended = self.follow_endpoints(&changed) => {
                    if let Err(error) = ended {
                        tracing::debug!("Watching the bucket of endpoints ended: {error}");
                    }
                }
            }
            stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await;
        }
    }

    async fn follow_endpoints(&self, changed: &impl Fn(&str, Option<&[u8]>)) -> Result<(), BucketError> {
        let store = open(&self.jetstream, &self.names).await?;
        let mut watch = store.watch_with_history(">").await.map_err(|error| failed(&error))?;
        while let Some(entry) = watch.next().await {
            let entry = entry.map_err(|error| failed(&error))?;
            let value = (entry.operation == Operation::Put).then_some(&entry.value[..]);
            changed(&entry.key, value);
        }
        Ok(())
    }
}

impl Visitor {
    /// A key's value, and its revision; 0 for a key that is not there.
    pub(crate) async fn endpoint_key(&self, key: &str) -> Result<(Option<Bytes>, u64), BucketError> {
        let entry = open(&self.jetstream, &self.names).await?.entry(key).await.map_err(|error| failed(&error))?;
        Ok(entry
            .map_or((None, 0), |entry| ((entry.operation == Operation::Put).then_some(entry.value), entry.revision)))
    }

    /// Writes a key whose revision is this one. `false`: somebody else wrote it meanwhile.
    pub(crate) async fn write_endpoint_key(&self, key: &str, value: Bytes, revision: u64) -> Result<bool, BucketError> {
        let store = open(&self.jetstream, &self.names).await?;
        match store.update(key, value, revision).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Every key and its value.
    pub(crate) async fn endpoint_keys(&self) -> Result<Vec<(String, Bytes)>, BucketError> {
        let store = open(&self.jetstream, &self.names).await?;
        let mut keys = store.keys().await.map_err(|error| failed(&error))?.take(MOST_KEYS);
        let mut all = Vec::new();
        while let Some(key) = keys.next().await {
            let key = key.map_err(|error| failed(&error))?;
            if let Some(value) = store.get(&key).await.map_err(|error| failed(&error))? {
                all.push((key, value));
            }
        }
        all.sort();
        Ok(all)
    }
}
