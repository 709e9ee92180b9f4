//! What a courier does with a message, but for NATS and HTTP: see `crate::measures`.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::HeaderMap;
use serde_json::json;

use super::destination::{Destination, Destinations};
use super::intake::{Message, Original, understand};
use super::payload::Payload;
use super::retry::{Decision, Outcome, Progress, decide};
use super::route::{Route, route};
use super::send::request;
use crate::config::{self, Config, Layers};
use crate::event::{Headers, trace};
use crate::outbound::Guard;
use crate::task::{Applied, Cause, Record, Update};

const CONFIGURATION: &str = "[endpoints.crm]\nurl = 'https://crm.example.com/in'\nsecrets = ['plain:s3cret']\n";
/// The time of everything.
const NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn original() -> Original {
    let mut headers = Headers::default();
    headers.push("Hookbridge-Endpoint", "crm");
    headers.push("Nats-Msg-Id", "72d3162e-cc78-11e3-81ab-4c9367dc0958");
    Original {
        subject: "outbox.planner".to_owned(),
        headers,
        payload: format!("{{\"pad\": \"{}\"}}", "x".repeat(1012)).into(),
        sequence: 1,
        stored: NOW,
        stream: "OUTBOX".into(),
    }
}

fn configured() -> (Config, Destinations) {
    let layers = Layers { builtin: Some(("measures", CONFIGURATION)), ..Layers::default() };
    let config = config::load(&layers).expect("it is valid");
    let destinations = Destinations::new(&config).expect("the secret is there");
    (config, destinations)
}

fn routed() -> (Message, Destination) {
    let ((config, destinations), original) = (configured(), original());
    let message = understand(&original).expect("it is understood");
    let mut routes = route(&destinations, &Guard::new(&config.egress), &original.subject, &message);
    let destination = routes.pop().and_then(|route| route.destination.ok());
    (message, destination.expect("it goes to the endpoint"))
}

/// A message of 1 KB that names its endpoint in a header.
pub fn understand_a_message() -> impl Fn() -> bool {
    let original = original();
    move || understand(&original).is_ok()
}

/// That message to its endpoint.
pub fn route_a_message() -> impl Fn() -> bool {
    let ((config, destinations), original) = (configured(), original());
    let (guard, message) = (Guard::new(&config.egress), understand(&original));
    move || {
        let Ok(message) = &message else { return false };
        let routes = route(&destinations, &guard, &original.subject, message);
        matches!(routes.as_slice(), [Route { destination: Ok(_), .. }])
    }
}

/// The request of its attempt: headers, and the body signed.
pub fn make_a_request() -> impl Fn() -> bool {
    let ((message, destination), trace) = (routed(), trace::Context::fresh());
    let payload = Payload { body: message.body.clone(), content_type: message.content_type.clone() };
    move || matches!(request(&destination, &message, &payload, &HeaderMap::new(), &trace, NOW), Ok(Some(_)))
}

/// What follows from a failed attempt.
pub fn decide_a_retry() -> impl Fn() -> bool {
    let ((_, destination), outcome) = (routed(), Outcome::Refused { status: 500 });
    let progress = Progress { attempt: 2, stored: NOW, now: NOW + Duration::from_secs(5), chance: 0.5 };
    move || matches!(decide(&outcome, destination.policy(), progress), Decision::RetryAt(_))
}

/// An agent's result of 1 KB: read, and applied to the record of its task as that is read and written.
pub fn apply_an_update() -> impl Fn() -> bool {
    let at = "1970-01-01T00:00:00Z";
    let record = json!({
        "task_id": "t-1", "agent": "planner", "client": "shop", "status": "submitted", "created_at": at,
        "updated_at": at, "request": "0".repeat(64), "sequence": 0,
        "callback": { "url": "https://shop.example.com/cb", "on": ["completed"] },
        "history": [{ "number": 0, "status": "submitted", "at": at, "sequence": 0 }],
    });
    let update = json!({ "task_id": "t-1", "status": "completed", "result": "x".repeat(1000) });
    let (record, update) = (record.to_string(), Bytes::from(update.to_string()));
    let cause = Cause { agent: "planner", sequence: 1, delivery: "d-1", now: NOW };
    move || {
        let (record, update) = (serde_json::from_str::<Record>(&record), Update::read("t-1", &update));
        let (Ok(record), Ok(update)) = (record, update) else { return false };
        matches!(record.apply(&update, cause), Applied::Moved(moved) if serde_json::to_vec(&moved).is_ok())
    }
}
