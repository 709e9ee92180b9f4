//! Replies: an agent that delegates over HTTP gets the callback as an event, and needs no server for it.
//!
//! The callback's URL holds a token that only Hookbridge can make, for one agent and one task. Nothing is kept for it
//! until it is used: the token is a code over both names.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Map, Value};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use url::Url;

use super::Status;
use crate::clock::unix_seconds;
use crate::secret::{KeyError, KeyRing, Reload, Secret, SecretRef};

/// How many characters of the code a token has: 128 bits.
const CODE: usize = 32;
/// How long a token is good.
pub(crate) const GOOD_FOR: Duration = Duration::from_secs(30 * 24 * 3600);
/// What the code is for, so that none made for something else fits.
const PURPOSE: &str = "hookbridge reply v1";

/// A key that tokens are made with.
#[derive(Clone)]
struct ReplyKey(Hmac<Sha256>);

/// What replies need: keys, of which the first makes tokens and all check them, and where the gateway is.
#[derive(Clone)]
pub(crate) struct Replies {
    keys: Arc<KeyRing<ReplyKey>>,
    public_url: Option<Url>,
}

impl ReplyKey {
    fn new(secret: &Secret) -> Result<Self, String> {
        let key = Hmac::new_from_slice(secret.expose()).map_err(|_| "cannot be used as an HMAC key".to_owned())?;
        Ok(Self(key))
    }

    /// The token that was given out at this time, in seconds since 1970.
    fn token(&self, agent: &str, task_id: &str, given: u64) -> String {
        let (mut code, given) = (self.0.clone(), given.to_string());
        // None of the parts can hold a line break.
        for part in [PURPOSE, "\n", agent, "\n", task_id, "\n", &given] {
            code.update(part.as_bytes());
        }
        format!("{given}-{}", &HEXLOWER.encode(&code.finalize().into_bytes())[..CODE])
    }
}

impl Replies {
    /// Reads the keys.
    pub(crate) fn load(keys: &[SecretRef], public_url: Option<&Url>) -> Result<Self, KeyError> {
        let keys = Arc::new(KeyRing::load(keys.to_vec(), ReplyKey::new)?);
        Ok(Self { keys, public_url: public_url.cloned() })
    }

    /// What SIGHUP reads again.
    pub(crate) fn secrets(&self) -> Arc<dyn Reload> {
        self.keys.clone()
    }

    /// Whether this is a token for an agent's task that is still good. Every key is tried, in constant time.
    pub(crate) fn fits(&self, agent: &str, task_id: &str, token: &str, now: SystemTime) -> bool {
        let Some(given) = token.split_once('-').and_then(|(given, _)| given.parse::<u64>().ok()) else { return false };
        let fits = |key: &ReplyKey| bool::from(key.token(agent, task_id, given).as_bytes().ct_eq(token.as_bytes()));
        let is_ours = self.keys.keys().iter().filter(|key| fits(key)).count() > 0;
        is_ours && unix_seconds(now) <= given.saturating_add(GOOD_FOR.as_secs())
    }

    /// A message's body with the URL in it that calls back to the agent, the same for every attempt: `stored` is when
    /// the message was. The error says why it cannot be.
    pub(crate) fn put_into(
        &self,
        body: &Bytes,
        agent: &str,
        task_id: &str,
        stored: SystemTime,
    ) -> Result<Bytes, String> {
        let keys = self.keys.keys();
        let (Some(key), Some(public_url)) = (keys.first(), &self.public_url) else {
            return Err("replies need `replies.keys` and `gateway.public_url` in the configuration".to_owned());
        };
        let members: Map<String, Value> = serde_json::from_slice(body)
            .map_err(|_| "a message that wants a reply must be a JSON object: it gets a `callback_url`".to_owned())?;
        if members.contains_key("callback_url") {
            return Err("the message has a `callback_url` already, and wants a reply at another".to_owned());
        }
        let token = key.token(agent, task_id, unix_seconds(stored));
        let base = public_url.as_str().trim_end_matches('/');
        let url = Value::from(format!("{base}/callbacks/{agent}/{task_id}?token={token}"));
        let Some(open) = body.iter().position(|byte| *byte == b'{') else { return Err("is no JSON object".to_owned()) };
        let comma = if members.is_empty() { "" } else { "," };
        let put = format!("{{\"callback_url\":{url}{comma}");
        Ok([&body[..open], put.as_bytes(), &body[open + 1..]].concat().into())
    }
}

/// What a reply tells of how far the work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tells {
    /// A state that Hookbridge knows.
    State(Status),
    /// A state in words of its own, or a part of a result: more may come.
    Other,
    /// Nothing of the kind: it is the reply.
    Nothing,
}

impl Tells {
    /// Reads a reply, in its own words or in those of A2A.
    pub(crate) fn read(body: &[u8]) -> Self {
        let Ok(body) = serde_json::from_slice::<Map<String, Value>>(body) else { return Self::Nothing };
        let own = body.get("status");
        if own.is_some_and(|own| own.is_string() || own.get("state").is_some_and(Value::is_string)) {
            return Self::of(own);
        }
        if let Some(status) = ["statusUpdate", "task"].into_iter().find_map(|key| body.get(key)?.get("status")) {
            return Self::of(Some(status));
        }
        // A2A's other notifications, and those of its version 0.3, which name their kind.
        if ["artifactUpdate", "message"].into_iter().any(|key| body.get(key).is_some_and(Value::is_object)) {
            return Self::Other;
        }
        match own {
            None if body.get("kind").is_some_and(Value::is_string) => Self::Other,
            None => Self::Nothing,
            status => Self::of(status),
        }
    }

    fn of(status: Option<&Value>) -> Self {
        let state = status.and_then(|status| status.get("state")).or(status).and_then(Value::as_str);
        let word = state.unwrap_or_default();
        let word = word.strip_prefix("TASK_STATE_").unwrap_or(word).to_ascii_lowercase().replace('_', "-");
        word.parse().map_or(Self::Other, Self::State)
    }

    /// Whether nothing more is to come.
    pub(crate) fn is_last(self) -> bool {
        match self {
            Self::State(status) => status.is_terminal(),
            Self::Other => false,
            Self::Nothing => true,
        }
    }

    /// The word in the event's subject and type.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::State(status) => status.as_str(),
            Self::Other | Self::Nothing => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replies(keys: &[&str]) -> Replies {
        let keys: Vec<SecretRef> = keys.iter().map(|key| format!("plain:{key}").parse().unwrap()).collect();
        Replies::load(&keys, Some(&"https://hooks.example.com/base/".parse().unwrap())).unwrap()
    }

    fn put(body: &'static str) -> Result<String, String> {
        let put = replies(&["key"]).put_into(&Bytes::from_static(body.as_bytes()), "planner", "t-1", NOW);
        put.map(|body| String::from_utf8(body.to_vec()).unwrap())
    }

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    #[test]
    fn a_token_is_for_one_agent_one_task_and_its_time_and_outlives_a_change_of_keys() {
        let token = replies(&["old"]).keys.keys()[0].token("planner", "t-1", 7);
        assert_eq!(token.len(), "7-".len() + CODE);
        assert!(replies(&["new", "old"]).fits("planner", "t-1", &token, NOW));
        for (agent, task_id) in [("planner", "t-2"), ("writer", "t-1"), ("planner\nt", "1")] {
            assert!(!replies(&["old"]).fits(agent, task_id, &token, NOW));
        }
        let later = token.replacen('7', "8", 1);
        for wrong in ["", "7", "7-", "-", later.as_str()] {
            assert!(!replies(&["old"]).fits("planner", "t-1", wrong, NOW), "{wrong}");
        }
        assert!(!replies(&["new"]).fits("planner", "t-1", &token, NOW));
        let last = NOW + Duration::from_secs(7) + GOOD_FOR;
        assert!(replies(&["old"]).fits("planner", "t-1", &token, last));
        assert!(!replies(&["old"]).fits("planner", "t-1", &token, last + Duration::from_secs(1)));
    }

    #[test]
    fn the_url_is_put_in_front_and_the_rest_stays_as_it_is() {
        let sent = put(r#" {"prompt":"x", "n": 1.0}"#).unwrap();
        let start = r#" {"callback_url":"https://hooks.example.com/base/callbacks/planner/t-1?token="#;
        assert!(sent.starts_with(start) && sent.ends_with(r#"","prompt":"x", "n": 1.0}"#), "{sent}");
        assert!(serde_json::from_str::<Value>(&put("{}").unwrap()).is_ok());
        assert!(put("[]").unwrap_err().contains("JSON object"));
        assert!(put(r#"{"callback_url":"https://a.example/"}"#).unwrap_err().contains("already"));
        let none = Replies::load(&[], None).unwrap();
        assert!(none.put_into(&Bytes::from_static(b"{}"), "a", "t", NOW).unwrap_err().contains("replies.keys"));
    }

    #[test]
    fn a_reply_is_the_last_where_it_ends_or_tells_of_no_state() {
        let state = Tells::State;
        for (body, tells, is_last) in [
            (r#"{"status":"working"}"#, state(Status::Working), false),
            (r#"{"status":"completed","result":1}"#, state(Status::Completed), true),
            (r#"{"status":"queued"}"#, Tells::Other, false),
            (r#"{"answer":42}"#, Tells::Nothing, true),
            ("no JSON", Tells::Nothing, true),
            // Its own word counts, whatever else it has.
            (r#"{"task":"job-1","status":"completed"}"#, state(Status::Completed), true),
            (r#"{"task":{"id":"x"},"status":"failed"}"#, state(Status::Failed), true),
            (r#"{"status":"completed","message":{"text":"done"}}"#, state(Status::Completed), true),
            // A2A 1.0.
            (
                r#"{"statusUpdate":{"status":{"state":"TASK_STATE_INPUT_REQUIRED"}}}"#,
                state(Status::InputRequired),
                false,
            ),
            (r#"{"task":{"status":{"state":"TASK_STATE_COMPLETED"}}}"#, state(Status::Completed), true),
            (r#"{"artifactUpdate":{"artifact":{}}}"#, Tells::Other, false),
            (r#"{"message":{"parts":[]}}"#, Tells::Other, false),
            // A2A 0.3.
            (r#"{"kind":"task","status":{"state":"working"}}"#, state(Status::Working), false),
            (r#"{"kind":"status-update","status":{"state":"canceled"},"final":true}"#, state(Status::Canceled), true),
            (r#"{"kind":"artifact-update","artifact":{}}"#, Tells::Other, false),
        ] {
            assert_eq!(
                (Tells::read(body.as_bytes()), Tells::read(body.as_bytes()).is_last()),
                (tells, is_last),
                "{body}"
            );
        }
    }
}
