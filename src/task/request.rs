//! What a client asks for when it delegates a task.

use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use url::Url;

use super::record::Callback;
use super::{Status, a2a};
use crate::event::name;

/// The longest callback URL; servers rarely take more.
const MAX_URL: usize = 8192;
/// The largest `metadata`, which is kept with the state: what is larger is for the agent alone.
const MAX_METADATA: usize = 16 * 1024;
/// The longest time until a deadline.
const MAX_DEADLINE: Duration = Duration::from_secs(366 * 24 * 3600);

/// A task as a client asks for it. The agent gets the whole object; these are the fields that Hookbridge knows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    /// The client's own id for it.
    pub(crate) task_id: Option<String>,
    pub(crate) callback: Option<Callback>,
    pub(crate) deadline: Option<SystemTime>,
    pub(crate) metadata: Option<Value>,
    /// What A2A calls the conversation that a task belongs to.
    pub(crate) context_id: Option<String>,
}

/// What holds where the client says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Defaults {
    /// The time until a task without a deadline fails.
    pub(crate) deadline: Option<Duration>,
}

impl Request {
    /// Reads the body of a request. The error says what is wrong with it.
    pub(crate) fn read(body: &[u8], defaults: Defaults, now: SystemTime) -> Result<Self, String> {
        let body: Map<String, Value> =
            super::object::read(body).map_err(|error| format!("the body must be a JSON object: {error}"))?;
        let task_id = text(&body, "task_id")?.map(str::to_owned);
        if task_id.as_deref().is_some_and(|id| !name::is_token(id)) {
            return Err("`task_id` must have 1 to 64 of A-Z a-z 0-9 _ -".to_owned());
        }
        let metadata = body.get("metadata").filter(|metadata| !metadata.is_null());
        if metadata.is_some_and(|metadata| !metadata.is_object()) {
            return Err("`metadata` must be an object".to_owned());
        }
        if metadata.is_some_and(|metadata| metadata.to_string().len() > MAX_METADATA) {
            return Err(format!("`metadata` is larger than {MAX_METADATA} bytes; put it under another key"));
        }
        let deadline = match text(&body, "deadline")? {
            Some(deadline) => Some(moment(deadline, now)?),
            None => defaults.deadline.map(|after| now + after),
        };
        let context_id = ["context_id", "contextId"].into_iter().find_map(|key| body.get(key)?.as_str());
        let in_message = || body.get("message")?.get("contextId")?.as_str();
        let context_id = context_id.or_else(in_message).filter(|id| !id.is_empty() && id.len() <= 256);
        let context_id = context_id.map(str::to_owned);
        Ok(Self { task_id, callback: callback(&body)?, deadline, metadata: metadata.cloned(), context_id })
    }
}

fn text<'a>(body: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, String> {
    match body.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("`{key}` must be a text")),
    }
}

fn moment(deadline: &str, now: SystemTime) -> Result<SystemTime, String> {
    let due = match OffsetDateTime::parse(deadline, &Rfc3339) {
        Ok(time) => SystemTime::from(time),
        Err(_) => {
            let after = humantime::parse_duration(deadline).map_err(|_| {
                "`deadline` must be a duration such as `30m` or a time such as `2026-12-01T12:00:00Z`".to_owned()
            })?;
            now.checked_add(after).ok_or("`deadline` is too far away")?
        }
    };
    match due.duration_since(now) {
        Ok(left) if left > MAX_DEADLINE => Err("`deadline` is more than a year away".to_owned()),
        Ok(left) if !left.is_zero() => Ok(due),
        _ => Err("`deadline` has passed already".to_owned()),
    }
}

fn callback(body: &Map<String, Value>) -> Result<Option<Callback>, String> {
    let (named, push) = (text(body, "callback_url")?, a2a::find(body)?);
    let url = match (named, &push) {
        (Some(_), Some(_)) => {
            return Err("has both `callback_url` and a push notification configuration: use one".to_owned());
        }
        (Some(url), None) => url,
        (None, Some(push)) => &push.url,
        (None, None) if body.get("callback_on").is_some() => {
            return Err("`callback_on` without `callback_url` has no effect".to_owned());
        }
        (None, None) => return Ok(None),
    };
    if url.len() > MAX_URL {
        return Err(format!("the callback URL is longer than {MAX_URL} bytes"));
    }
    let url: Url = url.parse().map_err(|error| format!("the callback URL is not a URL: {error}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the callback URL must not carry a user name or password".to_owned());
    }
    Ok(Some(Callback { url, on: asked_for(body)?, push }))
}

/// The states that the client wants to hear of.
fn asked_for(body: &Map<String, Value>) -> Result<Vec<Status>, String> {
    let Some(listed) = body.get("callback_on").filter(|listed| !listed.is_null()) else {
        return Ok(Status::ALL.into_iter().filter(|status| *status != Status::Submitted).collect());
    };
    let listed = listed.as_array().ok_or("`callback_on` must be a list of states")?;
    let mut states = Vec::new();
    for word in listed {
        let status = word.as_str().ok_or("`callback_on` must be a list of states")?.parse()?;
        if !states.contains(&status) {
            states.push(status);
        }
    }
    Ok(states)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn read(body: &str) -> Result<Request, String> {
        Request::read(body.as_bytes(), Defaults::default(), NOW)
    }

    #[test]
    fn any_object_is_a_task_and_everything_is_optional() {
        let nothing = Request { task_id: None, callback: None, deadline: None, metadata: None, context_id: None };
        assert_eq!(read("{}").unwrap(), nothing);
        assert_eq!(read(r#"{"prompt":"do it","metadata":null}"#).unwrap(), nothing);
        let all = read(
            r#"{"task_id":"t-1","deadline":"90s","metadata":{"order":7},"callback_url":"https://a.example/x",
                "callback_on":["completed","failed","completed"],"message":{"contextId":"c-1"}}"#,
        )
        .unwrap();
        let callback = all.callback.unwrap();
        assert_eq!((all.task_id.as_deref(), all.deadline), (Some("t-1"), Some(NOW + Duration::from_secs(90))));
        assert_eq!((callback.url.as_str(), all.context_id.as_deref()), ("https://a.example/x", Some("c-1")));
        assert_eq!(callback.on, [Status::Completed, Status::Failed]);
    }

    #[test]
    fn without_a_list_the_client_hears_of_every_state_but_the_first() {
        let callback = read(r#"{"callback_url":"https://a.example/"}"#).unwrap().callback.unwrap();
        assert_eq!(callback.on, Status::ALL[1..]);
    }

    #[test]
    fn a_deadline_is_a_duration_or_a_time_ahead() {
        let deadline = |text: &str| read(&format!(r#"{{"deadline":"{text}"}}"#)).map(|request| request.deadline);
        assert_eq!(deadline("1970-01-01T00:01:00Z"), Ok(Some(NOW + Duration::from_secs(60))));
        assert_eq!(deadline("1970-01-01T01:01:00+01:00"), Ok(Some(NOW + Duration::from_secs(60))));
        for (wrong, says) in [
            ("0s", "passed"),
            ("1969-12-31T23:59:59Z", "passed"),
            ("400d", "a year"),
            ("9999-01-01T00:00:00Z", "a year"),
            ("soon", "a duration"),
            ("99999999999999999y", "a duration"),
        ] {
            assert!(deadline(wrong).unwrap_err().contains(says), "{wrong}");
        }
        let defaults = Defaults { deadline: Some(Duration::from_secs(5)) };
        assert_eq!(Request::read(b"{}", defaults, NOW).unwrap().deadline, Some(NOW + Duration::from_secs(5)));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let long = format!(r#"{{"callback_url":"https://a.example/{}"}}"#, "x".repeat(MAX_URL));
        let large = format!(r#"{{"metadata":{{"x":"{}"}}}}"#, "x".repeat(MAX_METADATA));
        for (wrong, says) in [
            ("[]", "JSON object"),
            ("", "JSON object"),
            (r#"{"task_id":"a.b"}"#, "`task_id` must have"),
            (r#"{"task_id":""}"#, "`task_id` must have"),
            (r#"{"task_id":7}"#, "must be a text"),
            (r#"{"deadline":60}"#, "must be a text"),
            (r#"{"metadata":[]}"#, "must be an object"),
            (&large, "larger than"),
            (r#"{"callback_url":"nowhere"}"#, "not a URL"),
            (r#"{"callback_url":"https://u:p@a.example/"}"#, "user name"),
            (&long, "longer than"),
            (r#"{"callback_on":["completed"]}"#, "no effect"),
            (r#"{"callback_url":"https://a.example/","callback_on":"completed"}"#, "list of states"),
            (r#"{"callback_url":"https://a.example/","callback_on":["done"]}"#, "must be one of"),
        ] {
            assert!(read(wrong).unwrap_err().contains(says), "{wrong}");
        }
    }
}
