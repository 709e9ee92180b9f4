//! Published and synthetic requests of every provider get the right verdict, through the gateway's own door.
//!
//! The requests are in `data/providers.json`, or in the file that `HOOKBRIDGE_VECTORS` names: each has the
//! secrets as an operator would paste them, the clock, and what a correct receiver does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use data_encoding::BASE64;
use hookbridge::app::{Options, Roles};
use hookbridge::clock::Clock;
use hookbridge::signature::{Verify, preset};
use serde::Deserialize;
use serde_json::Value;

use crate::harness::{Answer, Hookbridge, Nats, send};

/// Providers whose documented id is shared by different events, so that it would swallow some of them: the
/// presets say why they take another one, or none.
const OTHER_ID: [&str; 3] = ["adyen", "postmark", "webex"];

/// One request, and what a correct receiver does with it.
#[derive(Deserialize)]
struct Vector {
    kind: Kind,
    provider: String,
    #[serde(default)]
    variant: Option<String>,
    name: String,
    secrets: Vec<String>,
    #[serde(default)]
    verify_token: Option<String>,
    /// Handshakes have their request apart.
    #[serde(default)]
    request: Option<Sent>,
    #[serde(flatten)]
    sent: Option<Sent>,
    now_unix: u64,
    #[serde(default)]
    certs: BTreeMap<String, String>,
    #[serde(default)]
    policy: bool,
    why: String,
    #[serde(default)]
    expect: Option<String>,
    #[serde(default)]
    extract: Option<Extract>,
    #[serde(flatten)]
    answer: Expected,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Verify,
    Handshake,
}

#[derive(Deserialize, Clone)]
struct Sent {
    method: String,
    url: String,
    headers: BTreeMap<String, OneOrMany>,
    #[serde(default)]
    body_base64: Option<String>,
    #[serde(default)]
    body_rule: Option<BodyRule>,
}

#[derive(Deserialize, Clone)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize, Clone)]
struct BodyRule {
    prefix: String,
    unit: String,
    repeat: usize,
    suffix: String,
}

#[derive(Deserialize)]
struct Extract {
    #[serde(default)]
    event_type: Option<String>,
    #[serde(default)]
    delivery_id: Option<String>,
}

/// What the answer to a handshake must be; what is not said is free.
#[derive(Deserialize)]
struct Expected {
    #[serde(default)]
    expect_status: Option<u16>,
    #[serde(default)]
    expect_status_any: Option<Vec<u16>>,
    #[serde(default)]
    expect_body: Option<String>,
    #[serde(default)]
    expect_body_contains: Option<String>,
    #[serde(default)]
    expect_body_not_contains: Option<String>,
    #[serde(default)]
    expect_body_json: Option<Value>,
    #[serde(default)]
    expect_content_type: Option<String>,
    #[serde(default)]
    expect_headers: BTreeMap<String, String>,
    #[serde(default)]
    expect_no_header: Option<String>,
}

impl Vector {
    fn sent(&self) -> &Sent {
        self.request.as_ref().or(self.sent.as_ref()).unwrap()
    }

    fn title(&self) -> String {
        format!("{} {} {}: {}", self.provider, self.variant.as_deref().unwrap_or(""), self.name, self.why)
    }

    /// The preset that an operator would name for this provider.
    fn preset(&self) -> Option<String> {
        let names: BTreeSet<&str> = preset::names().collect();
        let special = self.variant.as_ref().map(|variant| format!("{}-{variant}", self.provider));
        special.into_iter().chain([self.provider.clone()]).find(|name| names.contains(name.as_str()))
    }

    /// The table of a source that takes this request. Captured secrets go into `folder`.
    fn source(&self, name: &str, preset: &str, folder: &Path) -> String {
        let profile = preset::find(preset).unwrap().profile;
        let text = |text: &str| serde_json::to_string(text).unwrap();
        let plain = |secret: &str| text(&format!("plain:{secret}"));
        let captures = format!("{:?}", profile.handshake).contains("capture: Some");
        let secrets: Vec<String> = match (&self.secrets[..], &profile.verify) {
            (_, Some(Verify::None)) if !format!("{:?}", profile.handshake).contains("mac: Some") => Vec::new(),
            ([], _) if captures => vec![text(&format!("file:{}/{name}", folder.display()))],
            // The key that the one vector of a handshake that proves itself without saying its secret uses.
            ([], _) => vec![plain("apikey")],
            (secrets, _) => secrets.iter().map(|secret| plain(secret)).collect(),
        };
        let endpoint = self.sent().url.split('?').next().unwrap();
        let mut table = format!("[sources.{name}]\npreset = {preset:?}\nsecrets = [{}]\n", secrets.join(", "));
        writeln!(table, "public_url = {}", text(endpoint)).unwrap();
        if let Some(token) = &self.verify_token {
            writeln!(table, "verify_token = {}", plain(token)).unwrap();
        }
        table
    }

    fn body(&self) -> Vec<u8> {
        match (&self.sent().body_base64, &self.sent().body_rule) {
            (Some(body), _) => BASE64.decode(body.as_bytes()).unwrap(),
            (None, Some(rule)) => format!("{}{}{}", rule.prefix, rule.unit.repeat(rule.repeat), rule.suffix).into(),
            (None, None) => Vec::new(),
        }
    }

    fn url_to_confirm(&self) -> Option<String> {
        let body: Value = serde_json::from_slice(&self.body()).ok()?;
        body.get("SubscribeURL")?.as_str().map(str::to_owned)
    }

    async fn send(&self, hookbridge: &Hookbridge, name: &str) -> Answer {
        let sent = self.sent();
        let query = sent.url.split_once('?').map_or(String::new(), |(_, query)| format!("?{query}"));
        let mut headers = Vec::new();
        for (header, value) in &sent.headers {
            match value {
                OneOrMany::One(value) => headers.push((header.as_str(), value.as_str())),
                OneOrMany::Many(values) => headers.extend(values.iter().map(|value| (header.as_str(), value.as_str()))),
            }
        }
        send(&sent.method, &hookbridge.url(&format!("/hooks/{name}{query}")), &headers, self.body()).await
    }
}

/// What is wrong with the answer to a handshake.
fn wrong_answer(expected: &Expected, answer: &Answer) -> Option<String> {
    let (status, text) = (answer.status.as_u16(), answer.text());
    let statuses = expected.expect_status_any.clone().unwrap_or_else(|| expected.expect_status.into_iter().collect());
    if !statuses.contains(&status) {
        return Some(format!("status {status} is not one of {statuses:?}; {text}"));
    }
    if expected.expect_body.as_ref().is_some_and(|body| *body != text) {
        return Some(format!("body {text:?} is not {:?}", expected.expect_body));
    }
    if expected.expect_body_contains.as_ref().is_some_and(|part| !text.contains(part)) {
        return Some(format!("body {text:?} does not contain {:?}", expected.expect_body_contains));
    }
    if expected.expect_body_not_contains.as_ref().is_some_and(|part| text.contains(part)) {
        return Some(format!("body {text:?} contains {:?}", expected.expect_body_not_contains));
    }
    if expected
        .expect_body_json
        .as_ref()
        .is_some_and(|json| serde_json::from_str::<Value>(&text).ok().as_ref() != Some(json))
    {
        return Some(format!("body {text:?} is not {:?}", expected.expect_body_json));
    }
    if expected.expect_content_type.as_ref().is_some_and(|start| !answer.header("content-type").starts_with(start)) {
        return Some(format!("content type {:?}", answer.header("content-type")));
    }
    for (name, value) in &expected.expect_headers {
        if answer.header(name) != value {
            return Some(format!("header {name} is {:?}", answer.header(name)));
        }
    }
    let unwanted = expected.expect_no_header.as_ref().filter(|name| answer.headers.contains_key(name.as_str()));
    unwanted.map(|name| format!("header {name} is there"))
}

#[tokio::test]
async fn every_request_gets_its_verdict() {
    let file = std::env::var("HOOKBRIDGE_VECTORS").ok();
    let text = file.map(|file| std::fs::read_to_string(file).unwrap());
    let text = text.as_deref().unwrap_or(include_str!("data/providers.json"));
    let vectors: Vec<Vector> = serde_json::from_str(text).unwrap();
    assert!(!vectors.is_empty());
    let (mut sources, mut documents, mut wrong, mut disputed) =
        (String::new(), BTreeMap::new(), Vec::new(), Vec::new());
    let (folder, mut sent) = (tempfile::tempdir().unwrap(), Vec::new());
    for (index, vector) in vectors.iter().enumerate() {
        let Some(preset) = vector.preset() else {
            wrong.push(format!("no preset for {}", vector.title()));
            continue;
        };
        let name = format!("v{index}");
        sources.push_str(&vector.source(&name, &preset, folder.path()));
        documents.extend(vector.certs.iter().map(|(url, pem)| (url.parse().unwrap(), pem.clone().into_bytes())));
        // A confirmation is called before it is answered.
        documents.extend(vector.url_to_confirm().map(|url| (url.parse().unwrap(), Vec::new())));
        sent.push((name, vector));
    }
    let (nats, clock) = (Nats::start_with("max_payload: 32MB").await, Clock::fixed(UNIX_EPOCH));
    let options = Options { clock: clock.clone(), documents: documents.into_iter().collect(), ..Options::default() };
    let text = format!("[gateway]\nmax_body = \"26MiB\"\n{sources}");
    let hookbridge = Hookbridge::start_with(&nats, Roles::Gateway, &text, options).await;
    hookbridge.ready().await;

    let mut before = 0;
    for (name, vector) in &sent {
        clock.set(UNIX_EPOCH + Duration::from_secs(vector.now_unix));
        let answer = vector.send(&hookbridge, name).await;
        let now = nats.count("EVENTS").await;
        let stored = now - std::mem::replace(&mut before, now);
        let mut complaint = match (&vector.kind, vector.expect.as_deref()) {
            (Kind::Handshake, _) => wrong_answer(&vector.answer, &answer)
                .or_else(|| (stored > 0).then(|| "a handshake was published".to_owned())),
            (Kind::Verify, Some("accept")) => {
                (!answer.status.is_success()).then(|| format!("answered {}", answer.status))
            }
            (Kind::Verify, _) => (!answer.status.is_client_error() || stored > 0)
                .then(|| format!("answered {}, {stored} stored", answer.status)),
        };
        if let Some(extract) = vector.extract.as_ref().filter(|_| complaint.is_none() && stored > 0) {
            let event = nats.message("EVENTS", &format!("events.{name}.>")).await;
            let found = |header: &str| event.header(header).map(percent_decoded);
            let (event_type, id) = (found("ce-type"), found("ce-id"));
            if extract.event_type.is_some() && extract.event_type != event_type {
                complaint = Some(format!("type is {event_type:?}, not {:?}", extract.event_type));
            }
            let another = OTHER_ID.contains(&vector.provider.as_str());
            if extract.delivery_id.is_some() && extract.delivery_id != id && !another {
                complaint = Some(format!("id is {id:?}, not {:?}", extract.delivery_id));
            }
        }
        if let Some(complaint) = complaint {
            let of = if vector.policy { &mut disputed } else { &mut wrong };
            of.push(format!("{} -> {complaint}", vector.title()));
        }
    }
    println!("{} requests; {} choices of policy that differ: {disputed:#?}", sent.len(), disputed.len());
    assert!(wrong.is_empty(), "{} of {} are wrong:\n{}", wrong.len(), vectors.len(), wrong.join("\n"));
}

fn percent_decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}
