//! Who gets a message. Pure: the same message and configuration give the same routes, at any time.

use super::destination::{Callbacks, Destination, Destinations};
use super::intake::{Message, Target};
use super::reason::{Reason, Refusal};
use super::task::Call;
use crate::config::{AgentPattern, nearest};
use crate::event::{id, subject};
use crate::outbound::{Guard, public_url};

/// One delivery of a message: its id, and where it goes or why it cannot.
pub(super) struct Route {
    pub(super) delivery_id: String,
    /// The endpoint's name or the URL without query and userinfo; empty where nobody was named.
    pub(super) public_name: String,
    /// What metrics call the destination.
    pub(super) metric_name: String,
    /// The subject token of the destination; none where there is no destination.
    pub(super) token: Option<String>,
    pub(super) destination: Result<Destination, Refusal>,
    /// What there is to know before the callback of a task is sent.
    pub(super) call: Option<Call>,
    /// Why it says nothing any more, where that is so.
    pub(super) superseded: Option<String>,
}

/// The routes of a message; never none, since a message that nobody wants is a dead letter. Of a replay, only the route
/// of the delivery that it repeats.
pub(super) fn route(destinations: &Destinations, guard: &Guard, subject: &str, message: &Message) -> Vec<Route> {
    let mut routes = all(destinations, guard, subject, message);
    let Some(only) = &message.only else { return routes };
    routes.retain(|route| route.delivery_id == *only);
    if routes.is_empty() {
        let detail = "no endpoint that wants this message now has this delivery id: the one it was for is gone, \
                      has another name, or no longer lists the subject";
        routes.push(Route::nowhere(only.clone(), Refusal::new(Reason::Unroutable, detail)));
    }
    routes
}

fn all(destinations: &Destinations, guard: &Guard, subject: &str, message: &Message) -> Vec<Route> {
    match &message.target {
        Target::Endpoint(name) => vec![to_endpoint(destinations, name, message)],
        Target::Callback(url) => {
            let policy = destinations.callbacks.clone();
            let destination = Destination::Callback { url: url.clone(), policy: policy.clone(), headers: None };
            let checked = allowed(&policy.agents, &message.agent, "callbacks");
            let checked = checked.and_then(|()| may_reach(&policy, guard, url));
            vec![Route::new(message.id.clone(), &destination, checked)]
        }
        // Where an update goes depends on the state of its task: see `egress::task`.
        Target::Task(task) => {
            let detail = format!("`{}` is a task, and goes where its client wants it", subject::token(task));
            vec![Route::nowhere(message.id.clone(), Refusal::new(Reason::Unroutable, detail))]
        }
        Target::FanOut => fan_out(destinations, subject, message),
    }
}

impl Route {
    /// The route to a destination, or the reason why nothing goes there.
    pub(super) fn new(delivery_id: String, destination: &Destination, checked: Result<(), Refusal>) -> Self {
        Self {
            delivery_id,
            public_name: destination.public_name(),
            metric_name: destination.metric_name().to_owned(),
            token: Some(destination.token()),
            destination: checked.map(|()| destination.clone()),
            call: None,
            superseded: None,
        }
    }

    /// The route of what says nothing any more.
    pub(super) fn superseded(delivery_id: &str, detail: String) -> Self {
        let nowhere = Self::nowhere(delivery_id.to_owned(), Refusal::new(Reason::Illegal, detail.as_str()));
        Self { superseded: Some(detail), ..nowhere }
    }

    /// The route of a message that has no destination.
    pub(super) fn nowhere(delivery_id: String, refusal: Refusal) -> Self {
        let (public_name, metric_name) = (String::new(), String::new());
        let destination = Err(refusal);
        Self { delivery_id, public_name, metric_name, token: None, destination, call: None, superseded: None }
    }
}

fn to_endpoint(destinations: &Destinations, name: &str, message: &Message) -> Route {
    let Some(endpoint) = destinations.endpoints.get(name) else {
        // What is no token is no near miss either, and may be megabytes.
        let asked = subject::token(name);
        let near = nearest(&asked, destinations.endpoints.keys().map(|name| name.as_str()));
        let hint = near.map_or(String::new(), |near| format!(", did you mean `{near}`?"));
        let detail = format!("there is no endpoint `{asked}`{hint}");
        return Route::nowhere(message.id.clone(), Refusal::new(Reason::Unroutable, detail));
    };
    let checked = allowed(&endpoint.agents, &message.agent, &format!("endpoint `{name}`"));
    Route::new(message.id.clone(), &Destination::Endpoint(endpoint.clone()), checked)
}

fn fan_out(destinations: &Destinations, subject: &str, message: &Message) -> Vec<Route> {
    let routes: Vec<Route> = destinations
        .wanting(subject, message.event_type.as_deref())
        .map(|endpoint| {
            let delivery_id = id::fan_out(&message.id, endpoint.name.as_str());
            let checked = allowed(&endpoint.agents, &message.agent, &format!("endpoint `{}`", endpoint.name));
            Route::new(delivery_id, &Destination::Endpoint(endpoint.clone()), checked)
        })
        .collect();
    if routes.is_empty() {
        let detail = "the message names no destination, and no endpoint's `subjects` match its subject";
        return vec![Route::nowhere(message.id.clone(), Refusal::new(Reason::Unroutable, detail))];
    }
    routes
}

/// Whether a callback may go to a URL, by the policy for it and by the address guard.
pub(super) fn may_reach(callbacks: &Callbacks, guard: &Guard, url: &url::Url) -> Result<(), Refusal> {
    let forbidden = |detail: String| Err(Refusal::new(Reason::Forbidden, detail));
    if !url.username().is_empty() || url.password().is_some() {
        return forbidden("a callback URL must not carry a user name or password".to_owned());
    }
    guard.check_url(url).map_err(|blocked| Refusal::new(Reason::Forbidden, blocked.to_string()))?;
    if !callbacks.allow.iter().any(|pattern| pattern.allows(url)) {
        return forbidden(format!("no prefix in {} allows {}", callbacks.listed_in, public_url(url)));
    }
    Ok(())
}

fn allowed(agents: &[AgentPattern], agent: &str, what: &str) -> Result<(), Refusal> {
    if agents.iter().any(|pattern| pattern.allows(agent)) {
        return Ok(());
    }
    Err(Refusal::new(Reason::Forbidden, format!("agent `{agent}` may not use {what}")))
}
