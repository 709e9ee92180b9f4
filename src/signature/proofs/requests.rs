//! The genuine requests of `tests/it/data/providers.json`, and a judge of them and of what is made of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64;
use http::{HeaderMap, HeaderName, Method};
use serde_json::Value;

use crate::event::Request;
use crate::secret::Secret;
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
    now: SystemTime,
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
