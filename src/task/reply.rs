//! Replies: an agent that delegates over HTTP gets the callback as an event, and needs no server for it.
//!
//! The callback's URL holds a token that only Hookbridge can make, for one agent and one task. Nothing is kept for it
//! until it is used: the token is a code over both names.

use std::sync::Arc;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Map, Value};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use url::Url;

use super::Status;
use crate::secret::{KeyError, KeyRing, Reload, Secret, SecretRef};

/// How many characters of the code a token has: 128 bits.
const TOKEN: usize = 32;
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

    fn token(&self, agent: &str, task_id: &str) -> String {
        let mut code = self.0.clone();
        // Neither name can hold a line break.
        for part in [PURPOSE, "\n", agent, "\n", task_id] {
            code.update(part.as_bytes());
        }
        let mut token = HEXLOWER.encode(&code.finalize().into_bytes());
        token.truncate(TOKEN);
        token
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

    /// Whether this is the token for an agent's task. Every key is tried, in constant time.
    pub(crate) fn fits(&self, agent: &str, task_id: &str, token: &str) -> bool {
        let fits = |key: &ReplyKey| bool::from(key.token(agent, task_id).as_bytes().ct_eq(token.as_bytes()));
        self.keys.keys().iter().filter(|key| fits(key)).count() > 0
    }

    /// A message's body with the URL in it that calls back to the agent. The error says why it cannot be.
    pub(crate) fn put_into(&self, body: &Bytes, agent: &str, task_id: &str) -> Result<Bytes, String> {
        let keys = self.keys.keys();
        let (Some(key), Some(public_url)) = (keys.first(), &self.public_url) else {
            return Err("replies need `replies.keys` and `gateway.public_url` in the configuration".to_owned());
        };
        let members: Map<String, Value> = serde_json::from_slice(body)
            .map_err(|_| "a message that wants a reply must be a JSON object: it gets a `callback_url`".to_owned())?;
        if members.contains_key("callback_url") {
            return Err("the message has a `callback_url` already, and wants a reply at another".to_owned());
        }
        let token = key.token(agent, task_id);
        let base = public_url.as_str().trim_end_matches('/');
        let url = Value::from(format!("{base}/callbacks/{agent}/{task_id}?token={token}"));
        let Some(open) = body.iter().position(|byte| *byte == b'{') else { return Err("is no JSON object".to_owned()) };
        let comma = if members.is_empty() { "" } else { "," };
        let put = format!("{{\"callback_url\":{url}{comma}");
        Ok([&body[..open], put.as_bytes(), &body[open + 1..]].concat().into())
    }
}

/// The state that a callback tells, in its own words or in those of A2A; none where it tells of no state.
pub(crate) fn told_status(body: &[u8]) -> Option<Status> {
    let body: Map<String, Value> = serde_json::from_slice(body).ok()?;
    if let Some(word) = body.get("status").and_then(Value::as_str) {
        return word.parse().ok();
    }
    let a2a = ["statusUpdate", "task"].into_iter().find_map(|key| body.get(key))?;
    let state = a2a.get("status")?.get("state")?.as_str()?;
    state.strip_prefix("TASK_STATE_")?.to_ascii_lowercase().replace('_', "-").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replies(keys: &[&str]) -> Replies {
        let keys: Vec<SecretRef> = keys.iter().map(|key| format!("plain:{key}").parse().unwrap()).collect();
        Replies::load(&keys, Some(&"https://hooks.example.com/base/".parse().unwrap())).unwrap()
    }

    fn put(body: &'static str) -> Result<String, String> {
        let put = replies(&["key"]).put_into(&Bytes::from_static(body.as_bytes()), "planner", "t-1");
        put.map(|body| String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn a_token_is_for_one_agent_and_one_task_and_outlives_a_change_of_keys() {
        let token = replies(&["old"]).keys.keys()[0].token("planner", "t-1");
        assert_eq!(token.len(), TOKEN);
        assert!(replies(&["new", "old"]).fits("planner", "t-1", &token));
        for (agent, task_id) in [("planner", "t-2"), ("writer", "t-1"), ("planner\nt", "1")] {
            assert!(!replies(&["old"]).fits(agent, task_id, &token));
        }
        assert!(!replies(&["new"]).fits("planner", "t-1", &token) && !replies(&["old"]).fits("planner", "t-1", ""));
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
        assert!(none.put_into(&Bytes::from_static(b"{}"), "a", "t").unwrap_err().contains("replies.keys"));
    }

    #[test]
    fn a_callbacks_state_is_read_in_both_ways_of_saying_it() {
        for (body, status) in [
            (r#"{"status":"working"}"#, Some(Status::Working)),
            (r#"{"statusUpdate":{"status":{"state":"TASK_STATE_INPUT_REQUIRED"}}}"#, Some(Status::InputRequired)),
            (r#"{"task":{"status":{"state":"TASK_STATE_COMPLETED"}}}"#, Some(Status::Completed)),
            (r#"{"status":"done"}"#, None),
            (r#"{"result":1}"#, None),
            ("no JSON", None),
        ] {
            assert_eq!(told_status(body.as_bytes()), status, "{body}");
        }
    }
}
