//! Ordered endpoints: one delivery at a time, in the order of the stream.
//!
//! Each has a line, a durable of its own on OUTBOX of which the server gives out one message at a time, over all
//! couriers. What fails goes back to the line and holds up what comes after it, until it is delivered or dead. The
//! price: the line sees every message on its subjects, also those that are not for its endpoint, one by one.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};

use super::destination::{Destination, Endpoint};
use super::intake::{self, Message, Target};
use super::reason::{Reason, Refusal};
use super::route::{self, Route};
use super::standing::{Standing, Subject};
use super::worker::{Answer, Job, Worker};
use crate::broker::{ReadError, Received};
use crate::config::AgentPattern;
use crate::event::{Name, subject};

/// What the names of lines begin with.
const PREFIX: &str = "ordered_";

/// The lines that are known to exist.
#[derive(Clone, Default)]
pub(super) struct Lines(Arc<RwLock<HashMap<Name, Line>>>);

/// What a line is there for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    /// Its endpoint is ordered, and takes messages on these subjects.
    Open(Vec<String>),
    /// Its endpoint is ordered no more: what it holds it still delivers, and asks the receipts before.
    Closing,
}

impl Lines {
    fn get(&self, endpoint: &Name) -> Option<Line> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(endpoint).cloned()
    }

    /// Whether the line of an endpoint is there as the endpoint is now.
    fn is_open(&self, endpoint: &Endpoint) -> bool {
        self.get(&endpoint.name) == Some(Line::Open(subjects(endpoint)))
    }

    /// Whether a line works for this endpoint, too.
    pub(super) fn works_for(&self, endpoint: &Name) -> bool {
        self.get(endpoint).is_some()
    }

    fn all(&self) -> HashMap<Name, Line> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, endpoint: Name, line: Option<Line>) {
        let mut lines = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match line {
            Some(line) => lines.insert(endpoint, line),
            None => lines.remove(&endpoint),
        };
    }
}

/// The name of an endpoint's line.
pub(super) fn durable(endpoint: &Name) -> String {
    format!("{PREFIX}{endpoint}")
}

/// The subjects on which an ordered endpoint takes messages: those that it lists, else all of the agents that may use
/// it. NATS wants them without overlap; where some do, everything is looked at.
pub(super) fn subjects(endpoint: &Endpoint) -> Vec<String> {
    let of_agent = |pattern: &AgentPattern| match pattern {
        AgentPattern::Any => vec!["outbox.>".to_owned()],
        AgentPattern::Named(name) => vec![format!("outbox.{name}"), format!("outbox.{name}.>")],
    };
    let mut subjects = endpoint.subjects.clone();
    if subjects.is_empty() {
        subjects = endpoint.agents.iter().flat_map(of_agent).collect();
    }
    subjects.dedup();
    let overlaps = |(index, one): (usize, &String)| subjects[..index].iter().any(|other| subject::overlap(one, other));
    if subjects.iter().enumerate().any(overlaps) { vec!["outbox.>".to_owned()] } else { subjects }
}

/// Whether a route of a message is what the line of this endpoint works on. An endpoint that is gone still gets the
/// dead letters of what named it.
fn is_for(route: &Route, endpoint: &Name, message: &Message) -> bool {
    match &route.destination {
        Ok(Destination::Endpoint(there)) => there.name == *endpoint,
        Ok(Destination::Callback { .. }) => false,
        Err(_) => matches!(&message.target, Target::Endpoint(name) if name == endpoint.as_str()),
    }
}

/// The endpoint of a route, if it is ordered and may be used.
fn ordered(route: &Route) -> Option<&Arc<Endpoint>> {
    match &route.destination {
        Ok(Destination::Endpoint(endpoint)) if endpoint.ordered => Some(endpoint),
        _ => None,
    }
}

impl Worker {
    /// Makes the lines that are missing and takes away those that are no longer needed. Returns those to work on.
    pub(super) async fn prepare_lines(&self) -> Result<HashSet<Name>, ReadError> {
        let now = self.registry.now();
        let ordered = now.endpoints.values().filter(|endpoint| endpoint.ordered);
        for endpoint in ordered.filter(|endpoint| !self.lines.is_open(endpoint)) {
            self.broker.make_line(&durable(&endpoint.name), &subjects(endpoint)).await?;
            self.lines.set(endpoint.name.clone(), Some(Line::Open(subjects(endpoint))));
        }
        self.close_lines().await?;
        Ok(self.lines.all().into_keys().collect())
    }

    /// Closes the lines of endpoints that are ordered no more: what they hold is delivered first.
    async fn close_lines(&self) -> Result<(), ReadError> {
        let now = self.registry.now();
        let is_ordered = |name: &Name| now.endpoints.get(name).is_some_and(|endpoint| endpoint.ordered);
        let known = self.lines.all();
        let changed = known.iter().any(|(name, line)| !is_ordered(name) || *line == Line::Closing);
        if !changed && self.lines_looked_at.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        for (durable, is_empty) in self.broker.lines(PREFIX).await? {
            let Ok(name) = durable.trim_start_matches(PREFIX).parse::<Name>() else { continue };
            if is_ordered(&name) {
                continue;
            }
            if is_empty {
                self.broker.remove_line(&durable).await?;
                self.lines.set(name, None);
            } else if known.get(&name) != Some(&Line::Closing) {
                tracing::warn!("Endpoint {name} is ordered no more; what its line holds is delivered first");
                self.lines.set(name, Some(Line::Closing));
            }
        }
        Ok(())
    }

    /// Takes out the routes that a line works on. `false`: a line is not there yet, and the message has to come again.
    pub(super) fn leave_to_lines(&self, subject: &str, routes: &mut Vec<Route>) -> bool {
        if routes.iter().filter_map(ordered).any(|endpoint| !self.lines.is_open(endpoint)) {
            return false;
        }
        routes.retain_mut(|route| {
            let Some(endpoint) = ordered(route).cloned() else { return true };
            let takes = subjects(&endpoint);
            if takes.iter().any(|pattern| subject::matches(pattern, subject)) {
                return false;
            }
            let detail = format!(
                "endpoint `{}` is ordered and takes only what is published on {}",
                endpoint.name,
                takes.join(", ")
            );
            route.destination = Err(Refusal::new(Reason::Unroutable, detail));
            true
        });
        true
    }

    fn is_open(&self, message: &Message, original: &intake::Original, route: &Route) -> bool {
        let Ok(destination) = &route.destination else { return false };
        let standing = self.standings.standing(Subject {
            token: route.token.as_deref().unwrap_or_default(),
            url: destination.url().as_str(),
            agent: &message.agent,
            delivery_id: &route.delivery_id,
            sequence: original.sequence,
        });
        standing == Standing::Open
    }

    /// Deals with a message in the line of an endpoint.
    pub(super) async fn in_order(&self, endpoint: &Name, received: &Received) -> Answer {
        let original = self.received(received);
        // What is not understood, or not for this endpoint, is dealt with elsewhere.
        let Ok(message) = intake::understand(&original) else { return Answer::Ack };
        match self.lines.get(endpoint) {
            Some(Line::Open(_) | Line::Closing) => {}
            None => return Answer::Again,
        }
        let routes = route::route(&self.registry.now(), &self.guard, &original.subject, &message);
        let Some(route) = routes.iter().find(|route| is_for(route, endpoint, &message)) else { return Answer::Ack };
        let made = match self.ledger.progress(&message.agent, &route.delivery_id, original.about()).await {
            Ok(made) => made,
            Err(error) => {
                tracing::warn!("The line of {endpoint} has to wait: {error}");
                return Answer::Again;
            }
        };
        // It is given out again and again until it is due, unless somebody said something about it meanwhile.
        let due = made.due().filter(|due| *due > self.clock.now() && made.held().is_none());
        if let (Some(due), true) = (due, self.is_open(&message, &original, route)) {
            return Answer::AgainAt(due);
        }
        let job = Job {
            original: &original,
            message: &message,
            route,
            attempt: made.attempt.saturating_add(1),
            held: made.held(),
            in_line: true,
            turn: None,
            received: Some(received),
        };
        self.work(&job, true).await
    }
}
