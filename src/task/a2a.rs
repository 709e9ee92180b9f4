//! Agent2Agent push notifications: what a client configures, and what it is then told.
//!
//! [`find`] reads the configuration that came with a task, in the spelling of version 1.0 or of 0.3. [`body`] and
//! [`headers`] make the callback that such a client expects. All of it is pure: the same update gives the same
//! bytes on every attempt.
//!
//! A2A's JSON is that of protobuf messages, and strict readers refuse a document for one key that they do not know.
//! So what an agent says beyond the places that A2A has goes into `metadata`, where everything is allowed.

mod notification;
mod push;

use serde_json::{Map, Value};

pub(crate) use notification::{Update, body};
pub(crate) use push::{PushConfig, find, headers};

/// What a push notification is labelled with.
pub(crate) const CONTENT_TYPE: &str = "application/a2a+json";

/// What is under a key; null says nothing.
fn said<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|value| !value.is_null())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use http::HeaderValue;
    use proptest::prelude::*;
    use serde_json::json;

    use super::notification::{LAST_SECOND, MAX_NESTING, is_deeper, timestamp};
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
