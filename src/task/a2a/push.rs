//! The push notification configuration that a client brings with its task.

use std::fmt;

use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use url::Url;

use super::said;

/// The longest token, and the longest credentials: they are kept with the state and sent as headers.
const MAX_HEADER: usize = 4096;

/// Where a client wants to be told, and how it knows that it is us.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PushConfig {
    pub(crate) url: String,
    pub(crate) token: Option<String>,
    /// The value of the header: scheme and credentials.
    pub(crate) authorization: Option<String>,
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
