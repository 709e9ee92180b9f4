//! Agents and clients that speak Agent2Agent (A2A), with the official SDKs: what they send is understood, and what is
//! sent to them is.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::process::Command;

use crate::harness::{Hookbridge, Nats, node_with_packages, python_with_packages, run};

/// One source for each way of proving oneself.
const SOURCES: &str = r#"
[sources.token]
preset = "a2a"
secrets = ["plain:t0ken"]
[sources.bearer]
preset = "a2a"
secrets = ["plain:b3arer"]
[sources.apikey]
preset = "a2a"
secrets = ["plain:ApiKey k3y"]
"#;

#[tokio::test]
async fn push_notifications_of_the_python_sdk_become_events() {
    let python = python().await;
    let agent = || {
        let mut agent = Command::new(&python);
        agent.arg(folder().join("notify.py"));
        agent
    };
    // It sends the token beside the other header.
    let both = ("token", json!({ "token": "t0ken", "authentication": { "scheme": "Bearer", "credentials": "other" } }));
    its_notifications_become_events(agent, "application/json", &both).await;
}

#[tokio::test]
async fn push_notifications_of_the_javascript_sdk_become_events() {
    let folder = node().await;
    let agent = || {
        let mut agent = Command::new("node");
        agent.arg(folder.join("notify.js"));
        agent
    };
    // It sends the other header only.
    let both =
        ("bearer", json!({ "token": "other", "authentication": { "scheme": "Bearer", "credentials": "b3arer" } }));
    its_notifications_become_events(agent, "application/a2a+json", &both).await;
}

/// An agent sends a status update and a task to each source; `both` is a source and a configuration that has a token
/// and an authentication.
async fn its_notifications_become_events(
    agent: impl Fn() -> Command,
    content_type: &str,
    (source, both): &(&str, Value),
) {
    let configured = |scheme: &str, credentials: &str| {
        json!({ "authentication": { "scheme": scheme, "credentials": credentials } }).to_string()
    };
    let (right, wrong) = (
        [
            ("token", json!({ "token": "t0ken" }).to_string()),
            ("bearer", configured("Bearer", "b3arer")),
            ("apikey", configured("ApiKey", "k3y")),
        ],
        [
            ("token", json!({}).to_string()),
            ("token", json!({ "token": "t0kem" }).to_string()),
            ("bearer", configured("Bearer", "b3are")),
            ("apikey", configured("ApiKey", "k3yy")),
        ],
    );
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SOURCES).await;
    let notify = async |source: &str, configured: &str| {
        run(agent().arg(hookbridge.url(&format!("/hooks/{source}"))).arg(configured))
            .await
            .assert_code(0)
            .stderr
            .clone()
    };

    for (source, configured) in &right {
        let log = notify(source, configured).await;
        assert_eq!(hookbridge.counted(source, "stored").await, 2.0, "{source}: {log}");
        let update = nats.message("EVENTS", &format!("events.{source}.statusUpdate.TASK_STATE_WORKING")).await;
        assert_eq!(update.header("ce-datacontenttype"), Some(content_type));
        assert_eq!(update.json()["statusUpdate"]["metadata"], json!({ "progress": 0.5 }));
        let task = nats.message("EVENTS", &format!("events.{source}.task")).await;
        assert_eq!(task.json()["task"]["artifacts"][0]["parts"], json!([{ "text": "42" }]));
    }
    notify(source, &both.to_string()).await;
    assert_eq!(hookbridge.counted(source, "duplicate").await, 2.0);

    for (source, configured) in &wrong {
        let before = hookbridge.counted(source, "rejected").await;
        let log = notify(source, configured).await;
        assert_eq!(hookbridge.counted(source, "rejected").await, before + 2.0, "{source}: {log}");
    }
    assert_eq!(nats.count("EVENTS").await, 6);
}

#[tokio::test]
async fn the_token_may_come_in_either_header_and_only_json_is_taken() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SOURCES).await;
    let post = async |content_type: &str, headers: &[(&str, &str)], key: &str| {
        let headers = [&[("content-type", content_type)], headers].concat();
        hookbridge.post("/hooks/token", &headers, format!(r#"{{"{key}":{{"taskId":"t-1"}}}}"#)).await
    };
    let (json, one, other) = ("application/a2a+json", "X-A2A-Notification-Token", "A2A-Notification-Token");

    post(json, &[(one, "t0ken")], "message").await.assert_status(202);
    post(json, &[(other, "t0ken")], "artifactUpdate").await.assert_status(202);
    post("application/json; charset=utf-8", &[(one, "t0ken"), (other, "t0ken")], "statusUpdate")
        .await
        .assert_status(202);
    for headers in
        [&[][..], &[(one, "t0ke")], &[(other, "")], &[("Authorization", "Basic t0ken")], &[("token", "t0ken")]]
    {
        post(json, headers, "task").await.assert_status(401);
    }
    post("text/plain", &[(one, "t0ken")], "task").await.assert_status(415);

    assert_eq!(
        nats.subjects("EVENTS").await,
        ["events.token.artifactUpdate", "events.token.message", "events.token.statusUpdate"]
    );
}

#[tokio::test]
async fn both_sdks_read_all_of_what_is_sent_and_python_is_strict_about_it() {
    let sent = sent();
    let files: Vec<PathBuf> = sent.iter().map(|(name, _)| folder().join(format!("bodies/{name}.json"))).collect();

    let python = run(Command::new(python().await).arg(folder().join("parse.py")).args(&files)).await;
    let javascript = run(Command::new("node").arg(node().await.join("parse.js")).args(&files)).await;

    for reader in [python, javascript] {
        let read: Value = serde_json::from_str(&reader.assert_code(0).stdout).unwrap();
        for (name, notification) in &sent {
            assert_eq!(as_doubles(&read[name]), as_doubles(notification), "{name}");
        }
    }
}

/// What `src/task/a2a.rs` is held to: the bodies of push notifications, by name.
fn sent() -> Vec<(String, Value)> {
    let read = |path: PathBuf| {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, serde_json::from_slice(&fs::read(path).unwrap()).unwrap())
    };
    let sent: Vec<_> =
        fs::read_dir(folder().join("bodies")).unwrap().map(|entry| read(entry.unwrap().path())).collect();
    assert!(sent.len() > 10, "{sent:?}");
    sent
}

/// Protobuf's JSON has no other numbers.
fn as_doubles(value: &Value) -> Value {
    match value {
        Value::Number(number) => number.as_f64().into(),
        Value::Array(items) => items.iter().map(as_doubles).collect(),
        Value::Object(members) => members.iter().map(|(key, value)| (key.clone(), as_doubles(value))).collect(),
        other => other.clone(),
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/a2a")
}

async fn python() -> PathBuf {
    python_with_packages("a2a-python", &folder()).await
}

async fn node() -> PathBuf {
    const FILES: [&str; 4] = ["package.json", "package-lock.json", "notify.js", "parse.js"];
    node_with_packages("a2a-javascript", &folder(), &FILES, &[]).await
}
