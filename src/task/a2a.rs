//! Agent2Agent push notifications: what a client configures, and what it is then told.
//!
//! [`find`] reads the configuration that came with a task, in the spelling of version 1.0 or of 0.3. [`body`] and
//! [`headers`] make the callback that such a client expects. All of it is pure: the same update gives the same
//! bytes on every attempt.
//!
//! A2A's JSON is that of protobuf messages, and strict readers refuse a document for one key that they do not know.
//! So what an agent says beyond the places that A2A has goes into `metadata`, where everything is allowed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use url::Url;

use crate::clock::rfc3339;

/// The longest token, and the longest credentials: they are kept with the state and sent as headers.
const MAX_HEADER: usize = 4096;
/// What a push notification is labelled with.
pub(crate) const CONTENT_TYPE: &str = "application/a2a+json";

/// How deeply lists and objects may be nested in what an agent says. Readers of protobuf's JSON give up after a
/// hundred messages within each other, every level is two of them, and the places where they stand are up to six.
const MAX_NESTING: usize = 40;

/// The last second that a protobuf timestamp can say, 9999-12-31T23:59:59Z.
const LAST_SECOND: Duration = Duration::from_secs(253_402_300_799);

/// Where a client wants to be told, and how it knows that it is us.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PushConfig {
    pub(crate) url: String,
    pub(crate) token: Option<String>,
    /// The value of the header: scheme and credentials.
    pub(crate) authorization: Option<String>,
}

/// What became of a task, in the words of the agent.
#[derive(Clone, Copy)]
pub(crate) struct Update<'a> {
    pub(crate) task_id: &'a str,
    /// `submitted`, `working`, `input-required`, `auth-required`, `completed`, `failed`, `canceled` or `rejected`.
    pub(crate) status: &'a str,
    pub(crate) at: SystemTime,
    pub(crate) message_id: &'a str,
    /// What the agent published: `progress`, `message`, `result`, `error`, and whatever else it has to say.
    pub(crate) body: &'a Map<String, Value>,
    pub(crate) context_id: Option<&'a str>,
}

/// The push notification configuration in the body of a new task, if there is one. The error says what is wrong
/// with it and never repeats a value.
pub(crate) fn find(body: &Map<String, Value>) -> Result<Option<PushConfig>, String> {
    const NAMES: [&str; 2] = ["taskPushNotificationConfig", "pushNotificationConfig"];
    let within = body.get("configuration").and_then(Value::as_object);
    let objects = [(within, "configuration."), (Some(body), "")];
    let found = objects.into_iter().filter_map(|(object, path)| Some((object?, path))).flat_map(|(object, path)| {
        NAMES.into_iter().filter_map(move |name| Some((format!("{path}{name}"), said(object, name)?)))
    });
    match &found.collect::<Vec<_>>()[..] {
        [] => Ok(None),
        [(path, config)] => unnest(path, config).map(Some),
        [(one, _), (other, _), ..] => {
            Err(format!("`{one}` and `{other}` both configure push notifications: which one is meant is not clear"))
        }
    }
}

/// Whatever the receiver may want to see before it believes us. Both spellings of the token's header are in use.
pub(crate) fn headers(config: &PushConfig) -> Vec<(&'static str, String)> {
    let token = |name| config.token.clone().map(|token| (name, token));
    let authorization = config.authorization.clone().map(|value| ("authorization", value));
    [token("x-a2a-notification-token"), token("a2a-notification-token"), authorization].into_iter().flatten().collect()
}

/// The body of a push notification: a status update, or the whole task when it is completed with a result.
pub(crate) fn body(update: &Update<'_>) -> Vec<u8> {
    let (id, context_id, metadata) = (update.task_id, update.context_id(), update.metadata());
    let status = Status { state: state(update.status), message: update.message(), timestamp: timestamp(update.at) };
    let notification = match update.result() {
        None => Notification::StatusUpdate(StatusUpdate { task_id: id, context_id, status, metadata }),
        Some(result) => {
            let artifacts = [Artifact { artifact_id: "result", parts: [Part::of(result)] }];
            Notification::Task(Task { id, context_id, status, artifacts, metadata })
        }
    };
    serde_json::to_vec(&notification).expect("every key is a text, and JSON has no other numbers")
}

/// A2A's `StreamResponse`. An enum, so that a body has one key whatever happens.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Notification<'a> {
    StatusUpdate(StatusUpdate<'a>),
    Task(Task<'a>),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusUpdate<'a> {
    task_id: &'a str,
    context_id: &'a str,
    status: Status<'a>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<&'a str, Cow<'a, Value>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Task<'a> {
    id: &'a str,
    context_id: &'a str,
    status: Status<'a>,
    artifacts: [Artifact<'a>; 1],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<&'a str, Cow<'a, Value>>,
}

#[derive(Serialize)]
struct Status<'a> {
    state: &'static str,
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Message<'a> {
    message_id: &'a str,
    role: &'static str,
    task_id: &'a str,
    context_id: &'a str,
    parts: [Part<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Artifact<'a> {
    artifact_id: &'static str,
    parts: [Part<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Part<'a> {
    Text(Cow<'a, str>),
    Data(&'a Value),
}

impl<'a> Update<'a> {
    /// A2A wants a context for every task; one without is a context of its own.
    fn context_id(&self) -> &'a str {
        self.context_id.filter(|id| !id.is_empty()).unwrap_or(self.task_id)
    }

    /// What the task was for, once it is done.
    fn result(&self) -> Option<&'a Value> {
        said(self.body, "result").filter(|_| self.status == "completed")
    }

    fn message(&self) -> Option<Message<'a>> {
        let text = said(self.body, "message").filter(|message| !is_empty(message)).or_else(|| self.error())?;
        let (message_id, task_id, context_id) = (self.message_id, self.task_id, self.context_id());
        Some(Message { message_id, role: "ROLE_AGENT", task_id, context_id, parts: [Part::of(text)] })
    }

    /// What an error says of itself in words, else all of it.
    fn error(&self) -> Option<&'a Value> {
        let error = said(self.body, "error").filter(|error| !is_empty(error))?;
        let words = error.get("message").filter(|message| message.is_string() && !is_empty(message));
        Some(words.unwrap_or(error))
    }

    /// Everything that the agent said and that stands nowhere else.
    fn metadata(&self) -> BTreeMap<&'a str, Cow<'a, Value>> {
        let elsewhere = |key: &str, value: &Value| match key {
            "message" => true,
            "error" => value.is_null(),
            "result" => value.is_null() || self.result().is_some(),
            "task_id" => value == self.task_id,
            "status" => value == self.status,
            _ => false,
        };
        let rest = self.body.iter().filter(|(key, value)| !elsewhere(key, value));
        rest.map(|(key, value)| (key.as_str(), shallow(value))).collect()
    }
}

impl<'a> Part<'a> {
    fn of(value: &'a Value) -> Self {
        match value {
            Value::String(text) => Self::Text(Cow::Borrowed(text)),
            value if is_deeper(value, MAX_NESTING) => Self::Text(Cow::Owned(value.to_string())),
            value => Self::Data(value),
        }
    }
}

/// A value that every reader can read: one that is too deep is told as the text of its JSON.
fn shallow(value: &Value) -> Cow<'_, Value> {
    if is_deeper(value, MAX_NESTING) { Cow::Owned(value.to_string().into()) } else { Cow::Borrowed(value) }
}

fn is_deeper(value: &Value, levels: usize) -> bool {
    let deeper = |inner: &Value| is_deeper(inner, levels - 1);
    match value {
        Value::Array(items) => levels == 0 || items.iter().any(deeper),
        Value::Object(members) => levels == 0 || members.values().any(deeper),
        _ => false,
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_str().is_some_and(str::is_empty)
}

/// What is under a key; null says nothing.
fn said<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|value| !value.is_null())
}

fn state(status: &str) -> &'static str {
    match status {
        "submitted" => "TASK_STATE_SUBMITTED",
        "working" => "TASK_STATE_WORKING",
        "input-required" => "TASK_STATE_INPUT_REQUIRED",
        "auth-required" => "TASK_STATE_AUTH_REQUIRED",
        "completed" => "TASK_STATE_COMPLETED",
        "failed" => "TASK_STATE_FAILED",
        "canceled" => "TASK_STATE_CANCELED",
        "rejected" => "TASK_STATE_REJECTED",
        _ => "TASK_STATE_UNSPECIFIED",
    }
}

fn timestamp(at: SystemTime) -> String {
    rfc3339(at.clamp(UNIX_EPOCH, UNIX_EPOCH + LAST_SECOND))
}

/// Version 0.3 has the configuration itself in an object within.
fn unnest(path: &str, config: &Value) -> Result<PushConfig, String> {
    const INNER: &str = "pushNotificationConfig";
    let outer = object(path, config)?;
    let Some(inner) = said(outer, INNER) else { return read(path, outer) };
    let inner_path = format!("{path}.{INNER}");
    if let Some(key) = ["url", "token", "authentication"].into_iter().find(|key| said(outer, key).is_some()) {
        return Err(format!("`{path}.{key}` and `{inner_path}` both configure push notifications: only one may"));
    }
    read(&inner_path, object(&inner_path, inner)?)
}

fn read(path: &str, config: &Map<String, Value>) -> Result<PushConfig, String> {
    let url = text(path, config, "url")?.ok_or_else(|| format!("`{path}.url` is missing"))?.to_owned();
    let token = text(path, config, "token")?.map(|token| header_value(&format!("{path}.token"), token.to_owned()));
    let authorization = said(config, "authentication").map(|value| authorization(path, value));
    Ok(PushConfig { url, token: token.transpose()?, authorization: authorization.transpose()?.flatten() })
}

/// Scheme and credentials. A scheme without credentials has nothing to send.
fn authorization(path: &str, authentication: &Value) -> Result<Option<String>, String> {
    let path = &format!("{path}.authentication");
    let authentication = object(path, authentication)?;
    let (scheme, credentials) = (scheme(path, authentication)?, text(path, authentication, "credentials")?);
    let Some(credentials) = credentials else { return Ok(None) };
    let scheme = scheme.ok_or_else(|| format!("`{path}.scheme` is missing"))?;
    header_value(&format!("{path}.credentials"), format!("{scheme} {credentials}")).map(Some)
}

/// Version 0.3 has a list, of which the credentials belong to the first.
fn scheme<'a>(path: &str, authentication: &'a Map<String, Value>) -> Result<Option<&'a str>, String> {
    let one = text(path, authentication, "scheme")?;
    let Some(list) = said(authentication, "schemes") else {
        return one.map(|one| token(path, "scheme", one)).transpose();
    };
    if one.is_some() {
        return Err(format!("`{path}` has both `scheme` and `schemes`: only one may be there"));
    }
    let texts = list.as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
    let texts = texts.ok_or_else(|| format!("`{path}.schemes` is not a list of texts"))?;
    texts.first().map(|first| token(path, "schemes", first)).transpose()
}

/// The name of a scheme is a token of HTTP, as the names of headers are.
fn token<'a>(path: &str, key: &str, scheme: &'a str) -> Result<&'a str, String> {
    match HeaderName::from_bytes(scheme.as_bytes()) {
        Ok(_) => Ok(scheme),
        Err(_) => Err(format!("`{path}.{key}` is not the name of an HTTP authentication scheme")),
    }
}

fn header_value(path: &str, value: String) -> Result<String, String> {
    // Blanks around a value are not part of it, so they would not arrive.
    match HeaderValue::from_str(&value) {
        Ok(_) if value.len() > MAX_HEADER => Err(format!("`{path}` is longer than {MAX_HEADER} bytes")),
        Ok(_) if value.trim() == value => Ok(value),
        _ => Err(format!("`{path}` is not what an HTTP header can carry")),
    }
}

fn object<'a>(path: &str, value: &'a Value) -> Result<&'a Map<String, Value>, String> {
    value.as_object().ok_or_else(|| format!("`{path}` is not an object"))
}

fn text<'a>(path: &str, object: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, String> {
    match said(object, key).map(Value::as_str) {
        None => Ok(None),
        Some(Some("")) => Err(format!("`{path}.{key}` is empty")),
        Some(Some(text)) => Ok(Some(text)),
        Some(None) => Err(format!("`{path}.{key}` is not a text")),
    }
}

impl fmt::Debug for PushConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |value: &Option<String>| value.as_ref().map(|_| "***");
        let (token, authorization) = (hidden(&self.token), hidden(&self.authorization));
        // Paths and queries of such addresses are often secrets as well.
        let origin = Url::parse(&self.url).ok().map(|url| url.origin().ascii_serialization());
        let mut shown = formatter.debug_struct("PushConfig");
        shown.field("origin", &origin).field("token", &token).field("authorization", &authorization).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// A file under `tests/it/a2a/bodies/`, which Python's strict parser reads in `tests/it/a2a.rs`.
    struct Golden {
        name: &'static str,
        text: &'static str,
        status: &'static str,
        context_id: Option<&'static str>,
        body: Value,
    }

    macro_rules! golden {
        ($name:literal, $status:literal, $context_id:expr, $body:tt) => {
            Golden {
                name: $name,
                text: include_str!(concat!("../../tests/it/a2a/bodies/", $name, ".json")),
                status: $status,
                context_id: $context_id,
                body: json!($body),
            }
        };
    }

    fn goldens() -> Vec<Golden> {
        let (deep, deeper) = (nested(MAX_NESTING), nested(MAX_NESTING + 1));
        vec![
            golden!("submitted", "submitted", None, {}),
            golden!("working", "working", Some("c-1"), {
                "task_id": "t-1", "status": "working", "progress": 0.5, "message": "halfway, \u{201c}über\u{201d} 🚀",
                "step": { "of": [1, 2.5, -3, 1e300, true, null, "x"], "": {} },
            }),
            golden!("input-required", "input-required", None, { "message": { "ask": "colour", "of": ["red", 2] } }),
            golden!("auth-required", "auth-required", None, { "message": ["sign", "in"], "result": "not yet" }),
            golden!("completed", "completed", Some("c-1"), { "message": "done", "result": null }),
            golden!("completed-text", "completed", Some("c-1"), { "status": "completed", "message": "done", "result": "42" }),
            golden!("completed-object", "completed", None, {
                "progress": 1, "result": { "total": 3, "items": [{ "id": 9007199254740993_u64 }, [], {}] }, "cost": null,
            }),
            golden!("completed-list", "completed", None, { "result": [1, [2, [3]], "four"] }),
            golden!("completed-number", "completed", None, { "result": 42 }),
            golden!("completed-false", "completed", None, { "result": false }),
            golden!("failed-text", "failed", Some(""), { "error": "no paper" }),
            golden!("failed-object", "failed", None, { "error": { "code": 7, "message": "no paper" } }),
            golden!("failed-code", "failed", None, { "error": { "code": 7 }, "message": "" }),
            golden!("canceled", "canceled", None, { "status": "working", "task_id": 1 }),
            golden!("rejected", "rejected", None, { "message": "not mine", "error": { "message": "not for me" } }),
            golden!("deep", "failed", None, { "message": deep, "error": deep, "extra": deeper }),
            golden!("deep-result", "completed", None, { "result": deep }),
            golden!("too-deep-result", "completed", None, { "result": deeper, "message": deeper }),
        ]
    }

    fn nested(levels: usize) -> Value {
        (0..levels).fold(json!(1), |inner, level| if level % 2 == 0 { json!([inner]) } else { json!({ "in": inner }) })
    }

    fn update<'a>(status: &'a str, context_id: Option<&'a str>, body: &'a Map<String, Value>) -> Update<'a> {
        let at = UNIX_EPOCH + Duration::from_millis(1_760_000_000_007);
        Update { task_id: "t-1", status, at, message_id: "m-1", body, context_id }
    }

    fn told(status: &str, said: &Value) -> Value {
        serde_json::from_slice(&body(&update(status, None, said.as_object().unwrap()))).unwrap()
    }

    #[test]
    fn what_is_sent_is_what_the_strict_parser_is_shown() {
        let goldens = goldens();
        let mut others = Vec::new();
        for golden in &goldens {
            let sent = body(&update(golden.status, golden.context_id, golden.body.as_object().unwrap()));
            if sent != golden.text.trim_end().as_bytes() {
                others.push(format!("{}.json: {}", golden.name, String::from_utf8(sent).unwrap()));
            }
        }
        assert!(others.is_empty(), "these should read otherwise:\n{}", others.join("\n"));
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/a2a/bodies");
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), goldens.len(), "a file is nobody's");
    }

    #[test]
    fn without_a_result_it_is_a_status_update_and_with_one_the_task() {
        let said = json!({ "message": "done", "result": { "a": 1 }, "progress": 1 });
        assert_eq!(
            told("working", &said),
            json!({ "statusUpdate": {
                "taskId": "t-1", "contextId": "t-1",
                "status": {
                    "state": "TASK_STATE_WORKING", "timestamp": "2025-10-09T08:53:20.007Z",
                    "message": {
                        "messageId": "m-1", "role": "ROLE_AGENT", "taskId": "t-1", "contextId": "t-1",
                        "parts": [{ "text": "done" }],
                    },
                },
                "metadata": { "progress": 1, "result": { "a": 1 } },
            }})
        );
        let task = told("completed", &said);
        assert_eq!(task["task"]["artifacts"], json!([{ "artifactId": "result", "parts": [{ "data": { "a": 1 } }] }]));
        assert_eq!(task["task"]["metadata"], json!({ "progress": 1 }));
        assert_eq!(task["task"]["status"]["message"]["parts"], json!([{ "text": "done" }]));
    }

    #[test]
    fn the_preset_for_such_notifications_takes_what_is_sent() {
        assert!(include_str!("../../presets/a2a.toml").contains(&format!("\"{CONTENT_TYPE}\"")));
    }

    #[test]
    fn every_status_has_its_state_and_any_other_none() {
        for (status, expected) in [
            ("submitted", "TASK_STATE_SUBMITTED"),
            ("working", "TASK_STATE_WORKING"),
            ("input-required", "TASK_STATE_INPUT_REQUIRED"),
            ("auth-required", "TASK_STATE_AUTH_REQUIRED"),
            ("completed", "TASK_STATE_COMPLETED"),
            ("failed", "TASK_STATE_FAILED"),
            ("canceled", "TASK_STATE_CANCELED"),
            ("rejected", "TASK_STATE_REJECTED"),
            ("", "TASK_STATE_UNSPECIFIED"),
        ] {
            assert_eq!(told(status, &json!({}))["statusUpdate"]["status"]["state"], expected, "{status}");
        }
    }

    #[test]
    fn a_time_that_a_timestamp_cannot_say_is_the_nearest_that_it_can() {
        let times = [(UNIX_EPOCH - Duration::from_secs(1), "1970-01-01T00:00:00.000Z")];
        let far = UNIX_EPOCH + LAST_SECOND + Duration::from_secs(86_400);
        for (at, expected) in times.into_iter().chain([(far, "9999-12-31T23:59:59.000Z")]) {
            assert_eq!(timestamp(at), expected);
        }
    }

    /// The configuration at one of the places where it may stand.
    fn given(path: &str, config: &Value) -> Result<Option<PushConfig>, String> {
        let body = path.rsplit('.').fold(config.clone(), |inner, key| json!({ key: inner }));
        find(body.as_object().unwrap())
    }

    const PLACES: [&str; 8] = [
        "configuration.taskPushNotificationConfig",
        "configuration.pushNotificationConfig",
        "taskPushNotificationConfig",
        "pushNotificationConfig",
        "configuration.taskPushNotificationConfig.pushNotificationConfig",
        "configuration.pushNotificationConfig.pushNotificationConfig",
        "taskPushNotificationConfig.pushNotificationConfig",
        "pushNotificationConfig.pushNotificationConfig",
    ];

    #[test]
    fn a_configuration_is_found_at_every_place_flat_and_nested() {
        let url = "https://shop.example.com/a2a".to_owned();
        let full = PushConfig { url, token: Some("t0ken".to_owned()), authorization: Some("Bearer abc".to_owned()) };
        let bare = PushConfig { token: None, authorization: None, ..full.clone() };
        for path in PLACES {
            for authentication in [
                json!({ "scheme": "Bearer", "credentials": "abc" }),
                json!({ "schemes": ["Bearer"], "credentials": "abc" }),
                json!({ "schemes": ["Bearer", "Basic"], "credentials": "abc", "scheme": null }),
            ] {
                let config = json!({
                    "id": "p-1", "taskId": "t", "url": full.url, "token": "t0ken", "authentication": authentication,
                });
                assert_eq!(given(path, &config), Ok(Some(full.clone())), "{path} {config}");
            }
            for config in [
                json!({ "url": full.url }),
                json!({ "url": full.url, "token": null, "authentication": null }),
                json!({ "url": full.url, "authentication": { "scheme": "Bearer" } }),
                json!({ "url": full.url, "authentication": { "schemes": [] } }),
                json!({ "url": full.url, "pushNotificationConfig": null }),
            ] {
                assert_eq!(given(path, &config), Ok(Some(bare.clone())), "{path} {config}");
            }
        }
    }

    #[test]
    fn a_body_without_a_configuration_has_none() {
        for body in [
            json!({}),
            json!({ "input": { "pushNotificationConfig": 1 } }),
            json!({ "configuration": { "historyLength": 2 } }),
            json!({ "configuration": "fast", "pushNotificationConfig": null }),
        ] {
            assert_eq!(find(body.as_object().unwrap()), Ok(None), "{body}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_the_secrets() {
        let url = "https://shop.example.com/s3cret";
        for (config, expected) in [
            (json!("s3cret"), "`pushNotificationConfig` is not an object"),
            (json!({}), "`pushNotificationConfig.url` is missing"),
            (json!({ "url": "" }), "`pushNotificationConfig.url` is empty"),
            (json!({ "url": ["s3cret"] }), "`pushNotificationConfig.url` is not a text"),
            (json!({ "url": url, "token": "" }), "`pushNotificationConfig.token` is empty"),
            (json!({ "url": url, "token": 7 }), "`pushNotificationConfig.token` is not a text"),
            (
                json!({ "url": url, "token": "s3cret\r\nx: y" }),
                "`pushNotificationConfig.token` is not what an HTTP header can carry",
            ),
            (
                json!({ "url": url, "token": " s3cret" }),
                "`pushNotificationConfig.token` is not what an HTTP header can carry",
            ),
            (
                json!({ "url": url, "authentication": "Bearer s3cret" }),
                "`pushNotificationConfig.authentication` is not an object",
            ),
            (
                json!({ "url": url, "authentication": { "credentials": "s3cret" } }),
                "`pushNotificationConfig.authentication.scheme` is missing",
            ),
            (
                json!({ "url": url, "authentication": { "schemes": [], "credentials": "s3cret" } }),
                "`pushNotificationConfig.authentication.scheme` is missing",
            ),
            (
                json!({ "url": url, "authentication": { "scheme": "Bearer s3cret" } }),
                "`pushNotificationConfig.authentication.scheme` is not the name of an HTTP authentication scheme",
            ),
            (
                json!({ "url": url, "authentication": { "schemes": [""], "credentials": "s3cret" } }),
                "`pushNotificationConfig.authentication.schemes` is not the name of an HTTP authentication scheme",
            ),
            (
                json!({ "url": url, "authentication": { "schemes": "s3cret" } }),
                "`pushNotificationConfig.authentication.schemes` is not a list of texts",
            ),
            (
                json!({ "url": url, "authentication": { "schemes": ["Bearer", 1] } }),
                "`pushNotificationConfig.authentication.schemes` is not a list of texts",
            ),
            (
                json!({ "url": url, "authentication": { "schemes": ["a"], "scheme": "b" } }),
                "`pushNotificationConfig.authentication` has both `scheme` and `schemes`: only one may be there",
            ),
            (
                json!({ "url": url, "authentication": { "scheme": "Bearer", "credentials": "" } }),
                "`pushNotificationConfig.authentication.credentials` is empty",
            ),
            (
                json!({ "url": url, "authentication": { "scheme": "Bearer", "credentials": "s3cret\0" } }),
                "`pushNotificationConfig.authentication.credentials` is not what an HTTP header can carry",
            ),
            (
                json!({ "url": url, "pushNotificationConfig": { "url": url } }),
                "`pushNotificationConfig.url` and `pushNotificationConfig.pushNotificationConfig` both configure push \
                 notifications: only one may",
            ),
        ] {
            assert_eq!(given("pushNotificationConfig", &config), Err(expected.to_owned()), "{config}");
        }
        let twice = json!({ "configuration": { "pushNotificationConfig": {} }, "taskPushNotificationConfig": {} });
        assert_eq!(
            find(twice.as_object().unwrap()).unwrap_err(),
            "`configuration.pushNotificationConfig` and `taskPushNotificationConfig` both configure push \
             notifications: which one is meant is not clear"
        );
    }

    #[test]
    fn the_token_goes_out_in_both_spellings_and_nothing_secret_is_printed() {
        let config = json!({
            "url": "https://shop.example.com/s3cret?a=s3cret", "token": "s3cret-1",
            "authentication": { "scheme": "Bearer", "credentials": "s3cret-2" },
        });
        let config = given("pushNotificationConfig", &config).unwrap().unwrap();
        let expected = [
            ("x-a2a-notification-token", "s3cret-1".to_owned()),
            ("a2a-notification-token", "s3cret-1".to_owned()),
            ("authorization", "Bearer s3cret-2".to_owned()),
        ];
        assert_eq!(headers(&config), expected);
        assert_eq!(
            format!("{config:?}"),
            r#"PushConfig { origin: Some("https://shop.example.com"), token: Some("***"), authorization: Some("***") }"#
        );
        let bare = PushConfig { token: None, authorization: None, ..config };
        assert!(headers(&bare).is_empty());
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
            (MAX_NESTING - 2..MAX_NESTING + 60).prop_map(nested),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(any_key(), inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn any_key() -> impl Strategy<Value = String> {
        prop_oneof![
            "(message|result|error|progress|status|task_id|url|token|authentication|scheme|schemes|credentials)",
            "(configuration|taskPushNotificationConfig|pushNotificationConfig)",
            ".{0,4}",
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

        #[test]
        fn whatever_an_agent_says_is_one_notification_that_readers_can_read(
            said in proptest::collection::btree_map(any_key(), any_value(), 0..6),
            status in "(submitted|working|completed|failed|x)",
            context_id in proptest::option::of(".{0,4}"),
            seconds in any::<u64>(),
        ) {
            let said: Map<String, Value> = said.into_iter().collect();
            let at = UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH);
            let update = Update { at, ..update(&status, context_id.as_deref(), &said) };
            let sent = body(&update);

            prop_assert_eq!(&sent, &body(&update));
            let told: Value = serde_json::from_slice(&sent).unwrap();
            let keys: Vec<&str> = told.as_object().unwrap().keys().map(String::as_str).collect();
            let done = status == "completed" && said.get("result").is_some_and(|result| !result.is_null());
            prop_assert_eq!(keys, [if done { "task" } else { "statusUpdate" }]);
            prop_assert!(!is_deeper(&told, MAX_NESTING + 6));
            let inner = told.as_object().unwrap().values().next().unwrap();
            prop_assert!(inner["contextId"].as_str().is_some_and(|id| !id.is_empty()));
            // Nothing is lost: what has a place of its own in A2A is there, the rest is metadata.
            for key in said.keys().filter(|key| !["message", "result", "error", "status", "task_id"].contains(&key.as_str())) {
                prop_assert!(inner["metadata"].get(key).is_some(), "{}", key);
            }
        }

        #[test]
        fn whatever_a_client_configures_is_understood_or_refused(
            said in proptest::collection::btree_map(any_key(), any_value(), 0..6),
        ) {
            let said: Map<String, Value> = said.into_iter().collect();
            for (name, value) in find(&said).ok().flatten().iter().flat_map(headers) {
                prop_assert!(HeaderValue::from_str(&value).is_ok(), "{}", name);
            }
        }
    }
}
