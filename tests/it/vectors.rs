//! Published and synthetic signatures get the right verdict, through the gateway's own door.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use data_encoding::BASE64;
use hookbridge::app::{Options, Roles};
use hookbridge::clock::Clock;
use serde::Deserialize;

use crate::harness::{Hookbridge, Nats};

/// One request, and what a correct receiver does with it.
#[derive(Deserialize)]
struct Vector {
    provider: String,
    name: String,
    secrets: Vec<String>,
    headers: BTreeMap<String, String>,
    body_base64: String,
    now_unix: u64,
    expect: String,
    why: String,
    extract: Option<Extract>,
}

#[derive(Deserialize)]
struct Extract {
    event_type: String,
    delivery_id: String,
}

#[tokio::test]
async fn every_signature_vector_gets_its_verdict() {
    let vectors: Vec<Vector> = serde_json::from_str(include_str!("data/signatures.json")).unwrap();
    let mut sources = String::new();
    for (index, vector) in vectors.iter().enumerate() {
        let secrets: Vec<String> = vector.secrets.iter().map(|secret| format!("plain:{secret}")).collect();
        writeln!(sources, "[sources.v{index}]\npreset = {:?}\nsecrets = {secrets:?}", vector.provider).unwrap();
    }
    let (nats, clock) = (Nats::start().await, Clock::fixed(UNIX_EPOCH));
    let options = Options { clock: clock.clone(), ..Options::default() };
    let hookbridge = Hookbridge::start_with(&nats, Roles::Gateway, &sources, options).await;
    hookbridge.ready().await;

    for (index, vector) in vectors.iter().enumerate() {
        clock.set(UNIX_EPOCH + Duration::from_secs(vector.now_unix));
        let headers: Vec<(&str, &str)> = vector.headers.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        let body = BASE64.decode(vector.body_base64.as_bytes()).unwrap();
        let answer = hookbridge.post(&format!("/hooks/v{index}"), &headers, body).await;

        let expected = if vector.expect == "accept" { 202 } else { 401 };
        assert_eq!(answer.status, expected, "{} {}: {}", vector.provider, vector.name, vector.why);
        if let Some(extract) = &vector.extract {
            let event = nats.message("EVENTS", &format!("events.v{index}.>")).await;
            assert_eq!(event.header("ce-id"), Some(&extract.delivery_id[..]));
            assert_eq!(event.header("ce-type"), Some(&extract.event_type[..]));
        }
    }
}
