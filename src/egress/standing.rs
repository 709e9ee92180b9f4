//! What operators and receivers have said about destinations and deliveries, as this process knows it.
//!
//! The words stand in the bucket, one key for each destination (`state.<token>`) and one for each delivery that is
//! to be cancelled (`cancel.<agent>.<delivery id>`). Every courier follows them, asks before it sends and before it
//! schedules, and then takes off what waits.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::seal::Sealer;

/// What the keys of destinations begin with; their token follows.
const STATE: &str = "state.";
/// What the keys of deliveries begin with; agent and delivery id follow.
const CANCEL: &str = "cancel.";

/// What the bucket says of one destination.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<State>,
    /// The URL that the state is true of; none is any. Another URL is another endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) url: Option<String>,
    /// Deliveries of messages up to this sequence of OUTBOX are cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cancelled_through: Option<u64>,
    pub(crate) reason: String,
    pub(crate) by: String,
    pub(crate) at: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Disabled,
    Paused,
}

/// What the bucket says of one delivery: that it is to be cancelled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cancel {
    /// The last sequence of OUTBOX that is meant: what is published later, or sent again, is another message.
    pub(crate) through: u64,
    pub(crate) reason: String,
    pub(crate) by: String,
    pub(crate) at: String,
}

/// What may happen to a delivery now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Open,
    /// It waits.
    Paused,
    /// It is dead.
    Disabled(String),
    /// It is over.
    Cancelled(String),
}

/// What has to be taken off the stream after a change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sweep {
    /// What waits for a destination that is disabled, or is cancelled.
    Settle(String),
    /// What waits for a destination that was paused.
    Resume(String),
    /// One delivery.
    Cancel { agent: String, delivery_id: String },
}

/// A delivery, as far as anything can be said about it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject<'a> {
    pub(super) token: &'a str,
    pub(super) url: &'a str,
    pub(super) agent: &'a str,
    pub(super) delivery_id: &'a str,
    pub(super) sequence: u64,
}

/// The key of a destination.
pub(crate) fn state_key(token: &str) -> String {
    format!("{STATE}{token}")
}

/// The key of a delivery.
pub(crate) fn cancel_key(agent: &str, delivery_id: &str) -> String {
    format!("{CANCEL}{agent}.{delivery_id}")
}

/// The words as this process knows them. Cheap to clone.
#[derive(Clone)]
pub(super) struct Standings {
    said: Arc<RwLock<Said>>,
    sealer: Arc<Sealer>,
    pub(super) changed: Arc<Notify>,
}

#[derive(Default)]
struct Said {
    destinations: HashMap<String, Record>,
    deliveries: HashMap<String, Cancel>,
    sweeps: BTreeSet<Sweep>,
}

impl Standings {
    pub(super) fn new(sealer: Arc<Sealer>) -> Self {
        Self { said: Arc::default(), sealer, changed: Arc::default() }
    }

    /// Hears of a key of the bucket. `Ok(false)`: it is about something else. The error is a record that nobody with
    /// the key has written.
    pub(super) fn hears(&self, key: &str, value: Option<&[u8]>) -> Result<bool, String> {
        if let Some(token) = key.strip_prefix(STATE) {
            let record = value.map(|value| self.sealer.authentic::<Record>(key, value)).transpose()?;
            if record.is_none() && self.sealer.can_seal() && self.of(token).is_some() {
                // Whoever takes a word back says so.
                return Err("was taken away by somebody else".to_owned());
            }
            self.set(token, record);
        } else if let Some((agent, delivery_id)) = key.strip_prefix(CANCEL).and_then(|rest| rest.split_once('.')) {
            let cancel = value.map(|value| self.sealer.authentic::<Cancel>(key, value)).transpose()?;
            let mut said = self.said.write().unwrap_or_else(PoisonError::into_inner);
            match cancel {
                Some(cancel) => {
                    said.deliveries.insert(key.to_owned(), cancel);
                    let (agent, delivery_id) = (agent.to_owned(), delivery_id.to_owned());
                    said.sweeps.insert(Sweep::Cancel { agent, delivery_id });
                }
                None => drop(said.deliveries.remove(key)),
            }
        } else {
            return Ok(false);
        }
        self.changed.notify_one();
        Ok(true)
    }

    /// Takes over what is said of a destination, here at once.
    pub(super) fn set(&self, token: &str, record: Option<Record>) {
        let mut said = self.said.write().unwrap_or_else(PoisonError::into_inner);
        let is_paused = |record: Option<&Record>| record.is_some_and(|record| record.state == Some(State::Paused));
        // Nobody knows what was said before the first word.
        let before = said.destinations.get(token);
        let may_wait = is_paused(before) || (before.is_none() && record.is_some());
        if may_wait && !is_paused(record.as_ref()) {
            said.sweeps.insert(Sweep::Resume(token.to_owned()));
        }
        match record {
            Some(record) => {
                if record.state == Some(State::Disabled) || record.cancelled_through.is_some() {
                    said.sweeps.insert(Sweep::Settle(token.to_owned()));
                }
                said.destinations.insert(token.to_owned(), record);
            }
            None => drop(said.destinations.remove(token)),
        }
    }

    /// What is said of a destination.
    pub(super) fn of(&self, token: &str) -> Option<Record> {
        self.said.read().unwrap_or_else(PoisonError::into_inner).destinations.get(token).cloned()
    }

    /// What may happen to a delivery now.
    pub(super) fn standing(&self, subject: Subject<'_>) -> Standing {
        let said = self.said.read().unwrap_or_else(PoisonError::into_inner);
        if said.destinations.is_empty() && said.deliveries.is_empty() {
            return Standing::Open;
        }
        // Few deliveries are ever cancelled one by one.
        let cancel = (!said.deliveries.is_empty()).then(|| cancel_key(subject.agent, subject.delivery_id));
        let cancel = cancel.and_then(|key| said.deliveries.get(&key));
        if let Some(cancel) = cancel.filter(|cancel| subject.sequence <= cancel.through) {
            return Standing::Cancelled(cancel.reason.clone());
        }
        let Some(record) = said.destinations.get(subject.token) else { return Standing::Open };
        if record.cancelled_through.is_some_and(|through| subject.sequence <= through) {
            return Standing::Cancelled(record.reason.clone());
        }
        if record.url.as_deref().is_some_and(|url| url != subject.url) {
            return Standing::Open;
        }
        match record.state {
            None => Standing::Open,
            Some(State::Paused) => Standing::Paused,
            Some(State::Disabled) => Standing::Disabled(record.reason.clone()),
        }
    }

    /// What has to be taken off the stream, since this was last asked.
    pub(super) fn sweeps(&self) -> BTreeSet<Sweep> {
        std::mem::take(&mut self.said.write().unwrap_or_else(PoisonError::into_inner).sweeps)
    }

    /// A sweep that failed is made again.
    pub(super) fn again(&self, sweep: Sweep) {
        self.said.write().unwrap_or_else(PoisonError::into_inner).sweeps.insert(sweep);
        self.changed.notify_one();
    }

    /// Since when there is a mark on this delivery alone.
    pub(super) fn marked_at(&self, agent: &str, delivery_id: &str) -> Option<SystemTime> {
        let said = self.said.read().unwrap_or_else(PoisonError::into_inner);
        humantime::parse_rfc3339(&said.deliveries.get(&cancel_key(agent, delivery_id))?.at).ok()
    }

    /// Whether there is a mark on this delivery alone.
    pub(super) fn is_marked(&self, agent: &str, delivery_id: &str) -> bool {
        let said = self.said.read().unwrap_or_else(PoisonError::into_inner);
        !said.deliveries.is_empty() && said.deliveries.contains_key(&cancel_key(agent, delivery_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standings() -> Standings {
        Standings::new(Arc::new(Sealer::default()))
    }

    fn subject(sequence: u64) -> Subject<'static> {
        Subject { token: "e_crm", url: "https://a.example/", agent: "a", delivery_id: "m-1", sequence }
    }

    fn hear(standings: &Standings, key: &str, value: Option<&str>) {
        assert_eq!(standings.hears(key, value.map(str::as_bytes)), Ok(true));
    }

    const REST: &str = r#""reason":"because","by":"cli","at":"now""#;

    #[test]
    fn a_destination_is_open_until_something_is_said_and_after_it_is_taken_back() {
        let standings = standings();
        assert_eq!(standings.standing(subject(1)), Standing::Open);
        hear(&standings, "state.e_crm", Some(&format!("{{\"state\":\"paused\",{REST}}}")));
        assert_eq!(standings.standing(subject(1)), Standing::Paused);
        hear(&standings, "state.e_crm", None);
        assert_eq!(standings.standing(subject(1)), Standing::Open);
        assert_eq!(standings.sweeps(), BTreeSet::from([Sweep::Resume("e_crm".to_owned())]));
    }

    #[test]
    fn another_url_is_another_endpoint() {
        let standings = standings();
        let said = |url| format!("{{\"state\":\"disabled\",\"url\":\"{url}\",{REST}}}");
        hear(&standings, "state.e_crm", Some(&said("https://b.example/")));
        assert_eq!(standings.standing(subject(1)), Standing::Open);
        hear(&standings, "state.e_crm", Some(&said("https://a.example/")));
        assert_eq!(standings.standing(subject(1)), Standing::Disabled("because".to_owned()));
    }

    #[test]
    fn what_was_published_before_a_cancel_is_cancelled_and_what_came_after_is_not() {
        let standings = standings();
        hear(&standings, "state.e_crm", Some(&format!("{{\"cancelled_through\":7,{REST}}}")));
        assert_eq!(standings.standing(subject(7)), Standing::Cancelled("because".to_owned()));
        assert_eq!(standings.standing(subject(8)), Standing::Open);
    }

    #[test]
    fn one_delivery_is_cancelled_and_no_other() {
        let standings = standings();
        hear(&standings, "cancel.a.m-1", Some(&format!("{{\"through\":1,{REST}}}")));
        assert_eq!(standings.standing(subject(1)), Standing::Cancelled("because".to_owned()));
        assert_eq!(standings.standing(subject(2)), Standing::Open);
        assert_eq!(standings.standing(Subject { agent: "b", ..subject(1) }), Standing::Open);
    }

    #[test]
    fn what_is_no_record_is_refused_and_changes_nothing() {
        let standings = standings();
        assert!(standings.hears("state.e_crm", Some(b"{}")).is_err());
        assert_eq!(standings.standing(subject(1)), Standing::Open);
        assert_eq!(standings.hears("breaker.e_crm", Some(b"{}")), Ok(false));
    }
}
