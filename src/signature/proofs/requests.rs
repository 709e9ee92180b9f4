//! The genuine requests of `tests/it/data/providers.json`, and a judge of them and of what is made of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::{BASE64, HEXLOWER};
use http::{HeaderMap, HeaderName, Method};
use serde_json::{Value, json};

use crate::event::Request;
use crate::secret::Secret;
use crate::signature::mac::{Hash, MacKey};
use crate::signature::profile::Naming;
use crate::signature::{Credential, Document, Inquiry, Scheme, Verify, Ways, preset};

/// A request that can be changed.
#[derive(Clone)]
pub(super) struct Sent {
    pub(super) method: Method,
    pub(super) endpoint: String,
    pub(super) query: Option<String>,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

/// What a request is judged by.
#[derive(Clone)]
pub(super) struct Judge {
    pub(super) ways: Ways,
    pub(super) id: Option<Naming>,
    credentials: Vec<Credential>,
    pub(super) now: SystemTime,
    documents: BTreeMap<String, Arc<Document>>,
}

/// A genuine request, and the source that it is for.
pub(super) struct Genuine {
    pub(super) title: String,
    pub(super) preset: String,
    pub(super) sent: Sent,
    pub(super) secrets: Vec<Secret>,
    pub(super) judge: Judge,
}

impl Sent {
    pub(super) fn request(&self) -> Request<'_> {
        Request::new(&self.method, &self.endpoint, self.query.as_deref(), &self.headers, &self.body)
    }
}

impl Judge {
    pub(super) fn new(ways: Ways, id: Option<Naming>, secrets: &[Secret], now: SystemTime) -> Self {
        let credentials = secrets.iter().filter_map(|secret| ways.credential(secret).ok()).collect();
        Self { ways, id, credentials, now, documents: BTreeMap::new() }
    }

    pub(super) fn accepts(&self, sent: &Sent) -> bool {
        let request = sent.request();
        let documents = |url: &str| self.documents.get(url).cloned();
        let inquiry = Inquiry { request: &request, id: self.id.as_ref(), now: self.now, documents: &documents };
        self.ways.verify(&self.credentials, &inquiry).is_ok()
    }

    /// A judge who knows one of the ways only.
    pub(super) fn of(&self, scheme: &Scheme, secrets: &[Secret]) -> Self {
        let documents = self.documents.clone();
        Self { documents, ..Self::new(Ways::new(vec![scheme.clone()]), self.id.clone(), secrets, self.now) }
    }
}

/// Every request that must be accepted.
pub(super) fn genuine() -> Vec<Genuine> {
    let vectors: Vec<Value> = serde_json::from_str(include_str!("../../../tests/it/data/providers.json")).unwrap();
    vectors.iter().filter(|vector| vector["expect"] == "accept").filter_map(read).collect()
}

/// Requests of providers that sign in ways of their own and are not among the vectors, signed here.
pub(super) fn made() -> Vec<Genuine> {
    let (url, secret, now) = ("https://hooks.example.com/in", "correct horse battery staple", 1_760_000_000);
    let key = MacKey::new(Hash::Sha256, &Secret::new(secret)).unwrap();
    let code = |text: &str| HEXLOWER.encode(&key.mac(&[text]));
    let event = json!({ "event": {
        "event_time": "1669926463", "event_type": "signature_request_sent",
        "event_hash": code("1669926463signature_request_sent"),
    }});
    let form: String = url::form_urlencoded::byte_serialize(event.to_string().as_bytes()).collect();
    let list = "x-contentful-signed-headers,x-contentful-timestamp,x-contentful-topic";
    let lines = format!("x-contentful-signed-headers:{list};x-contentful-timestamp:{now}000;x-contentful-topic:a.b");
    let vector = |provider: &str, headers: Value, body: &str| {
        json!({
            "provider": provider, "name": "made here", "method": "POST", "url": url, "headers": headers,
            "body_base64": BASE64.encode(body.as_bytes()), "secrets": [secret], "now_unix": now,
        })
    };
    let contentful = json!({
        "x-contentful-signed-headers": list, "x-contentful-timestamp": format!("{now}000"), "x-contentful-topic": "a.b",
        "x-contentful-signature": code(&format!("POST\n/in\n{lines}\n{{}}")),
    });
    let all = [vector("dropbox-sign", json!({}), &format!("json={form}")), vector("contentful", contentful, "{}")];
    all.iter().filter_map(read).collect()
}

fn read(vector: &Value) -> Option<Genuine> {
    let text = |key: &str| vector[key].as_str().unwrap_or_default();
    let title = format!("{} {} {}", text("provider"), text("variant"), text("name"));
    let special = format!("{}-{}", text("provider"), text("variant"));
    let known = [special, text("provider").to_owned()].into_iter().find(|name| preset::find(name).is_some());
    let preset = known.unwrap_or_else(|| panic!("no preset for {title}"));
    let profile = preset::find(&preset)?.profile;
    // A source that asks for no proof has nothing to prove.
    let Some(Verify::Ways(ways)) = profile.verify else { return None };
    let (endpoint, query) = match text("url").split_once('?') {
        Some((endpoint, query)) => (endpoint, Some(query.to_owned())),
        None => (text("url"), None),
    };
    let mut headers = HeaderMap::new();
    for (name, values) in vector["headers"].as_object()? {
        for value in values.as_array().map_or(std::slice::from_ref(values), Vec::as_slice) {
            headers.append(name.parse::<HeaderName>().unwrap(), value.as_str()?.parse().unwrap());
        }
    }
    let sent = Sent {
        method: text("method").parse().unwrap(),
        endpoint: endpoint.to_owned(),
        query,
        headers,
        body: BASE64.decode(text("body_base64").as_bytes()).unwrap(),
    };
    let secrets: Vec<Secret> =
        vector["secrets"].as_array()?.iter().filter_map(Value::as_str).map(Secret::new).collect();
    let now = UNIX_EPOCH + Duration::from_secs(vector["now_unix"].as_u64()?);
    let mut judge = Judge::new(ways, profile.id, &secrets, now);
    let document =
        |(url, text): (&String, &Value)| Some((url.clone(), Document::parse(text.as_str()?.as_bytes()).ok()?));
    let documents = vector["certs"].as_object().into_iter().flatten().filter_map(document);
    judge.documents = documents.map(|(url, document)| (url, Arc::new(document))).collect();
    Some(Genuine { title, preset, sent, secrets, judge })
}
