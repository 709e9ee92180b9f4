//! What an agent says of a task.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::Status;

/// An agent's update, as it stands in its message.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Update {
    pub(crate) status: Status,
    /// The whole object, as the agent wrote it.
    pub(crate) body: Map<String, Value>,
}

impl Update {
    /// Reads a message about the task of this id. The error says what is wrong with it.
    pub(crate) fn read(task_id: &str, body: &[u8]) -> Result<Self, String> {
        let body: Map<String, Value> =
            super::object::read(body).map_err(|error| format!("an update of a task is a JSON object: {error}"))?;
        if body.get("task_id").is_some_and(|named| named != task_id) {
            return Err("`task_id` names another task than the header".to_owned());
        }
        let word = body.get("status").ok_or("an update of a task needs `status`")?;
        let status = word.as_str().ok_or("`status` must be a text")?.parse()?;
        Ok(Self { status, body })
    }

    /// One of the fields that the task's record keeps.
    pub(crate) fn field(&self, name: &str) -> Option<&Value> {
        self.body.get(name).filter(|value| !value.is_null())
    }
}

/// What the receiver of a callback gets: the agent's message, byte for byte, with `task_id` put in front where the
/// agent named the task in a header alone.
pub(crate) fn callback_body(task_id: &str, update: &Update, body: &Bytes) -> Bytes {
    if update.body.contains_key("task_id") {
        return body.clone();
    }
    let Some(open) = body.iter().position(|byte| *byte == b'{') else { return body.clone() };
    // It has a `status`, so there is something after the comma. A task's id needs no escaping.
    let named = format!("{{\"task_id\":\"{task_id}\",");
    [&body[..open], named.as_bytes(), &body[open + 1..]].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Update, String> {
        Update::read("t-1", body.as_bytes())
    }

    #[test]
    fn an_update_is_an_object_with_a_state() {
        let update = read(r#"{"task_id":"t-1","status":"working","progress":0.5}"#).unwrap();
        assert_eq!((update.status, update.field("progress")), (Status::Working, Some(&Value::from(0.5))));
        assert_eq!(update.field("message"), None);
        for (wrong, says) in [
            ("[]", "JSON object"),
            ("x", "JSON object"),
            ("{}", "needs `status`"),
            (r#"{"status":1}"#, "must be a text"),
            (r#"{"status":"done"}"#, "must be one of"),
            (r#"{"task_id":"t-2","status":"working"}"#, "another task"),
        ] {
            assert!(read(wrong).unwrap_err().contains(says), "{wrong}");
        }
    }

    #[test]
    fn a_callback_has_the_agents_bytes_and_the_task() {
        for (said, sent) in [
            (r#"{"task_id":"t-1","status":"failed"}"#, r#"{"task_id":"t-1","status":"failed"}"#),
            (r#" { "status":"failed", "n":1.0 }"#, r#" {"task_id":"t-1", "status":"failed", "n":1.0 }"#),
        ] {
            let body = Bytes::from_static(said.as_bytes());
            assert_eq!(callback_body("t-1", &read(said).unwrap(), &body), sent);
        }
    }
}
