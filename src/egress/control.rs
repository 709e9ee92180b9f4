//! What an operator can do about destinations and deliveries while couriers run.
//!
//! Everything is a word in the bucket, which the couriers follow: it holds also when the process that said it ends,
//! and for couriers that start later. The command line sits on these functions.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use serde_json::Value;
use url::Url;

use super::holds;
use super::inquiry::{Found, inquire};
use super::pointer::{Pointer, Why, waiting_everywhere, waiting_of};
use super::receipt::{self, Status};
use super::registry;
use super::seal::{Sealer, Summary};
use super::standing::{Cancel, Record, State, cancel_key, state_key};
use crate::broker::{Outgoing, Visitor};
use crate::clock::{Clock, rfc3339, unix_millis};
use crate::config::{self, Config, StreamKind};
use crate::event::headers::Headers;
use crate::event::{Name, id};
use crate::outbound::public_url;

/// How often a key is written again that somebody else wrote meanwhile.
const WRITES: u32 = 5;
/// The ending that was asked for.
const CANCELLED: &str = "cancelled";
/// How long the outbox may take to confirm.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);
/// How long a courier may take to cancel a test that failed.
const CANCEL_WITHIN: Duration = Duration::from_secs(2);

/// A visit that may say something.
pub(crate) struct Control {
    visitor: Visitor,
    sealer: Sealer,
    clock: Clock,
    /// Who speaks.
    by: String,
}

/// What is said about a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Deliveries wait.
    Pause,
    /// They go on.
    Resume,
    /// They are dead.
    Disable,
    /// They are made again.
    Enable,
    /// What was published until now is not delivered.
    Cancel,
}

/// What became of a word about one delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cancelled {
    /// A courier ended it.
    Now,
    /// It had ended before, so.
    Ended(&'static str),
    /// No courier has met it yet; one that does will end it.
    Marked,
}

/// An endpoint of run time, or what is said of a destination.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) key: String,
    pub(crate) value: Value,
}

/// A delivery that waits.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) agent: String,
    pub(crate) delivery_id: String,
    pub(crate) destination: String,
    /// The attempt that comes next.
    pub(crate) attempt: u32,
    pub(crate) held: Option<&'static str>,
    /// When it is due, as the server has it.
    pub(crate) due: String,
}

/// The token of an endpoint.
pub(crate) fn of_endpoint(name: &Name) -> String {
    id::endpoint_token(name)
}

/// The destination's token of a key that says until when it is held, and the agent where it is a callback.
pub(crate) fn held(key: &str) -> Option<(&str, Option<&str>)> {
    holds::read_key(key)
}

/// The token of all callbacks to a URL's origin.
pub(crate) fn of_callback(url: &Url) -> String {
    id::callback_token(url)
}

impl Control {
    /// Over a visit, with the keys of the configuration.
    pub(crate) fn new(visitor: Visitor, config: &Config, clock: Clock, by: &str) -> anyhow::Result<Self> {
        let sealer = Sealer::load(config).context("egress.seal_keys")?;
        Ok(Self { visitor, sealer, clock, by: by.to_owned() })
    }

    /// Says something about a destination. `false`: it was so already.
    pub(crate) async fn say(&self, token: &str, word: Word, reason: &str) -> anyhow::Result<bool> {
        let key = state_key(token);
        for _ in 0..WRITES {
            let (found, revision) = self.visitor.endpoint_key(&key).await?;
            let found = found.map(|found| self.sealer.authentic::<Record>(&key, &found));
            let before = found.and_then(Result::ok).unwrap_or_default();
            let mut after = Record { reason: reason.to_owned(), by: self.by.clone(), at: self.now(), ..before.clone() };
            match word {
                Word::Pause => (after.state, after.url) = (Some(State::Paused), None),
                Word::Disable => (after.state, after.url) = (Some(State::Disabled), None),
                Word::Resume if before.state == Some(State::Paused) => (after.state, after.url) = (None, None),
                Word::Enable if before.state == Some(State::Disabled) => (after.state, after.url) = (None, None),
                Word::Resume | Word::Enable => return Ok(false),
                Word::Cancel => after.cancelled_through = Some(self.last_of_outbox().await?),
            }
            let word = self.sealer.word(&key, &after);
            if self.visitor.write_endpoint_key(&key, word.into(), revision).await? {
                return Ok(before.state != after.state || before.cancelled_through != after.cancelled_through);
            }
        }
        bail!("somebody else keeps writing {key}")
    }

    /// Lifts what a destination asked for with `Retry-After`: that of an endpoint, or of all agents' callbacks to an
    /// origin. `false`: nothing is held.
    pub(crate) async fn lift(&self, token: &str) -> anyhow::Result<bool> {
        let mut lifted = false;
        for said in self.said().await? {
            if holds::read_key(&said.key).is_some_and(|(of, _)| of == token) {
                lifted |= self.lift_one(&said.key).await?;
            }
        }
        Ok(lifted)
    }

    async fn lift_one(&self, key: &str) -> anyhow::Result<bool> {
        for _ in 0..WRITES {
            let (found, revision) = self.visitor.endpoint_key(key).await?;
            let record = found.and_then(|found| self.sealer.authentic::<holds::Record>(key, &found).ok());
            let Some(record) = record.filter(|record| record.ends(Duration::MAX, self.clock.now()).is_some()) else {
                return Ok(false);
            };
            let lifted = holds::Record { state: holds::State::Lifted, at: self.now(), by: self.by.clone(), ..record };
            if self.visitor.write_endpoint_key(key, self.sealer.word(key, &lifted).into(), revision).await? {
                return Ok(true);
            }
        }
        bail!("somebody else keeps writing {key}")
    }

    /// When the hold of a record ends, for a destination that may ask for so long at most; none if nothing is held.
    pub(crate) fn held_until(&self, record: &Value, most: Duration) -> Option<String> {
        let record: holds::Record = serde_json::from_value(record.clone()).ok()?;
        record.ends(most, self.clock.now()).map(rfc3339)
    }

    /// Cancels one delivery, and waits a moment for a courier to do it.
    pub(crate) async fn cancel(
        &self,
        agent: &Name,
        delivery_id: &str,
        reason: &str,
        patience: Duration,
    ) -> anyhow::Result<Cancelled> {
        if !self.is_waiting(agent, delivery_id).await?
            && let Some(ended) = self.ended(agent, delivery_id).await?
        {
            return Ok(Cancelled::Ended(ended));
        }
        let key = cancel_key(agent.as_str(), delivery_id);
        let through = self.last_of_outbox().await?;
        let cancel = Cancel { through, reason: reason.to_owned(), by: self.by.clone(), at: self.now() };
        let (_, revision) = self.visitor.endpoint_key(&key).await?;
        if !self.visitor.write_endpoint_key(&key, self.sealer.word(&key, &cancel).into(), revision).await? {
            bail!("somebody else says something about this delivery at the same time");
        }
        let met = async {
            let mut pace = tokio::time::interval(Duration::from_millis(100));
            loop {
                pace.tick().await;
                // The courier that ends it takes the mark away.
                if self.visitor.endpoint_key(&key).await?.0.is_none() {
                    return self.ended(agent, delivery_id).await;
                }
            }
        };
        match tokio::time::timeout(patience, met).await {
            Ok(Err(error)) => Err(error),
            Ok(Ok(Some(CANCELLED) | None)) => Ok(Cancelled::Now),
            Ok(Ok(Some(other))) => Ok(Cancelled::Ended(other)),
            Err(_) => Ok(Cancelled::Marked),
        }
    }

    async fn is_waiting(&self, agent: &Name, delivery_id: &str) -> anyhow::Result<bool> {
        for subject in waiting_of(delivery_id) {
            let mut from = 1;
            while let Some(stored) = self.visitor.next(StreamKind::Retry, &subject, from).await? {
                from = stored.sequence + 1;
                if Pointer::read(&stored.headers).is_some_and(|pointer| pointer.agent == agent.as_str()) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// How a delivery ended, if it did.
    async fn ended(&self, agent: &Name, delivery_id: &str) -> anyhow::Result<Option<&'static str>> {
        Ok(match inquire(&self.visitor, agent.as_str(), delivery_id).await? {
            Found::Unknown | Found::Open => None,
            Found::Delivered(_) => Some("delivered"),
            Found::Dead => Some("dead"),
            Found::Cancelled => Some(CANCELLED),
        })
    }

    /// The visit itself, to look at streams.
    pub(crate) fn visitor(&self) -> &Visitor {
        &self.visitor
    }

    /// Shows what waits behind a place in RETRY, for one destination or for all, of one agent or of all. The place to
    /// go on behind, where there may be more.
    pub(crate) async fn waiting(
        &self,
        token: Option<&str>,
        agent: Option<&Name>,
        after: u64,
        limit: usize,
        mut seen: impl FnMut(Waiting),
    ) -> anyhow::Result<Option<u64>> {
        let (subject, mut from, mut left) = (waiting_everywhere(token), after.saturating_add(1), limit);
        while left > 0
            && let Some(stored) = self.visitor.next(StreamKind::Retry, &subject, from).await?
        {
            from = stored.sequence + 1;
            let Some(pointer) = Pointer::read(&stored.headers) else { continue };
            if agent.is_some_and(|agent| agent.as_str() != pointer.agent) {
                continue;
            }
            left -= 1;
            seen(Waiting {
                agent: pointer.agent,
                delivery_id: pointer.delivery_id,
                destination: pointer.destination,
                attempt: pointer.attempt,
                held: pointer.held.map(Why::as_str),
                due: stored.headers.get("Nats-Schedule").unwrap_or_default().trim_start_matches("@at ").to_owned(),
            });
        }
        Ok((left == 0).then(|| from - 1))
    }

    /// Creates or changes an endpoint. The table is that of `[endpoints.<name>]`, its secrets in clear.
    pub(crate) async fn put(&self, config: &Config, name: &Name, table: &Value) -> anyhow::Result<()> {
        if !self.sealer.can_seal() {
            bail!("endpoints of run time need a key to seal them with: set egress.seal_keys, also for the couriers");
        }
        if config.endpoints.contains_key(name) {
            bail!("endpoint `{name}` is in the configuration: change it there, or take another name");
        }
        let endpoint: config::Endpoint = serde_json::from_value(table.clone()).context("the endpoint's table")?;
        let mistakes = config::endpoint_mistakes(config, name, &endpoint);
        if !mistakes.is_empty() {
            let lines: Vec<String> = mistakes.iter().map(|found| format!("{}: {}", found.key, found.reason)).collect();
            bail!("{}", lines.join("\n"));
        }
        let (url, subjects) = (public_url(&endpoint.url), endpoint.subjects);
        let summary = Summary { url, subjects, ..self.summary() };
        self.write(name, &summary, &serde_json::to_vec(table)?).await
    }

    /// Takes an endpoint of run time away. `false`: there is none.
    pub(crate) async fn delete(&self, name: &Name) -> anyhow::Result<bool> {
        let key = registry::key(name);
        if !self.said().await?.iter().any(|said| said.key == key) {
            return Ok(false);
        }
        if !self.sealer.can_seal() {
            bail!("only who has the key that endpoints are sealed with can take one away: set egress.seal_keys");
        }
        // What only vanished could be put back by whoever kept it.
        self.write(name, &Summary { deleted: true, ..self.summary() }, b"null").await?;
        Ok(true)
    }

    fn summary(&self) -> Summary {
        let (by, at) = (self.by.clone(), self.now());
        Summary { url: String::new(), subjects: Vec::new(), revision: 0, by, at, deleted: false }
    }

    /// Writes an endpoint's record over whatever stands there.
    async fn write(&self, name: &Name, summary: &Summary, table: &[u8]) -> anyhow::Result<()> {
        let key = registry::key(name);
        for _ in 0..WRITES {
            let (found, written) = self.visitor.endpoint_key(&key).await?;
            let before =
                found.and_then(|found| self.sealer.open(&key, &found).ok()).map_or(0, |found| found.0.revision);
            // Grows also over a deletion, so that no old record can take the place of a newer one.
            let revision = unix_millis(self.clock.now()).max(before + 1);
            let record = self.sealer.seal(&key, Summary { revision, ..summary.clone() }, table);
            let record = record.map_err(anyhow::Error::msg)?;
            if self.visitor.write_endpoint_key(&key, record.into(), written).await? {
                return Ok(());
            }
        }
        bail!("somebody else keeps writing {key}")
    }

    /// Everything that the bucket says, as far as people may read it.
    pub(crate) async fn said(&self) -> anyhow::Result<Vec<Said>> {
        let all = self.visitor.endpoint_keys().await?;
        let readable = all.into_iter().filter_map(|(key, value)| {
            let mut value: Value = serde_json::from_slice(&value).ok()?;
            let members = value.as_object_mut()?;
            if members.get("deleted").is_some_and(|deleted| deleted == true) {
                return None;
            }
            members.remove("sealed");
            members.remove("tag");
            Some(Said { key, value })
        });
        Ok(readable.collect())
    }

    /// Publishes a test delivery to an endpoint as an agent, and waits for what becomes of its first attempt: the
    /// receipt. There is no second one.
    pub(crate) async fn test(
        &self,
        endpoint: &Name,
        agent: &Name,
        body: Bytes,
        patience: Duration,
    ) -> anyhow::Result<Option<Value>> {
        let message_id = format!("{agent}-test-{}", unix_millis(self.clock.now()));
        let mut headers = Headers::default();
        headers.push("Hookbridge-Endpoint", endpoint.as_str());
        headers.push("ce-type", "hookbridge.test");
        let subject = format!("outbox.{agent}");
        let outgoing = Outgoing { subject, headers, payload: body, message_id: Some(message_id.clone()) };
        self.visitor.store(StreamKind::Outbox, &outgoing, CONFIRM_WITHIN).await?;
        let id = id::message(&message_id);
        let arrives = async {
            let mut pace = tokio::time::interval(Duration::from_millis(100));
            loop {
                pace.tick().await;
                for status in [Status::Delivered, Status::Dead, Status::Cancelled, Status::Retrying] {
                    let subject = receipt::subject(agent.as_str(), status, &id);
                    if let Some(found) = self.visitor.last(StreamKind::Receipts, &subject).await? {
                        return anyhow::Ok(serde_json::from_slice(&found.payload)?);
                    }
                }
            }
        };
        let receipt: Option<Value> = tokio::time::timeout(patience, arrives).await.ok().transpose()?;
        let ended = receipt.as_ref().is_some_and(|receipt| receipt["outcome"] != Status::Retrying.as_str());
        if !ended {
            // Nobody waits for what would come of it later.
            self.cancel(agent, &id, "a test is not tried again", CANCEL_WITHIN).await?;
        }
        Ok(receipt)
    }

    async fn last_of_outbox(&self) -> anyhow::Result<u64> {
        Ok(self.visitor.sequences(StreamKind::Outbox).await?.map_or(0, |(_, last)| last))
    }

    fn now(&self) -> String {
        rfc3339(self.clock.now())
    }
}
