//! The examples, end to end: a webhook comes in, an agent answers it, a receiver verifies what goes out.

mod tasks;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::process::Command;

use crate::harness::{Hookbridge, Nats, Program, node_with_packages, python, python_with_packages, sign};

#[tokio::test]
async fn the_python_agent_answers_a_webhook_and_the_receiver_verifies_the_answer() {
    let python = python_with_packages("examples-python", &example("python")).await;
    an_answer_arrives(Command::new(python).arg(example("python/agent.py"))).await;
}

#[tokio::test]
async fn the_typescript_agent_answers_a_webhook_and_the_receiver_verifies_the_answer() {
    const FILES: [&str; 4] = ["package.json", "package-lock.json", "tsconfig.json", "src/agent.ts"];
    let folder = node_with_packages("examples-typescript", &example("typescript"), &FILES, &["build"]).await;
    an_answer_arrives(Command::new("node").arg(folder.join("dist/agent.js"))).await;
}

/// The story, with an agent of any language.
async fn an_answer_arrives(agent: &mut Command) {
    let nats = Nats::start().await;
    let mut receiver = Command::new(python());
    receiver.arg(example("python/receiver.py")).args(["--listen", "127.0.0.1:0", "--require", "both"]);
    let receiver = Program::start(receiver.env("WEBHOOK_SECRET", "receiver-secret"));
    let listening: Value = serde_json::from_str(&receiver.says("listening").await).unwrap();
    let hookbridge = Hookbridge::start(&nats, &readme(listening["listening"].as_str().unwrap())).await;
    let agent = agent.env_remove("HOOKBRIDGE_AGENT").env_remove("HOOKBRIDGE_STREAM");
    let agent = Program::start(agent.args(["--nats", &nats.url(), "--endpoint", "receiver", "--events", "1"]));
    agent.says("\"ready\"").await;

    let body = r#"{"type":"order.created","order":42}"#;
    let signature = sign::hex("demo-secret", body.as_bytes());
    let headers =
        [("content-type", "application/json"), ("x-delivery-id", "order-42"), ("x-signature", signature.as_str())];
    hookbridge.post("/hooks/demo", &headers, body).await.assert_status(202);

    let agent = agent.ended().await;
    let answered = agent.assert_code(0).stdout.lines().last().unwrap();
    let answered: Value = serde_json::from_str(answered).unwrap_or_else(|error| panic!("{error}: {agent}"));
    assert_eq!(
        (&answered["event"], &answered["subject"], &answered["duplicate"]),
        (&json!("order-42"), &json!("events.demo.order.created"), &json!(false)),
        "{agent}"
    );
    let delivery: Value = serde_json::from_str(&receiver.says("\"verified\"").await).unwrap();
    assert_eq!(
        delivery,
        json!({
            "id": answered["answered"],
            "duplicate": false,
            "verified": ["standard-webhooks", "x-signature"],
            "body": {
                "event": "order-42",
                "type": "order.created",
                "summary": "order.created from /hooks/demo, 35 bytes with order, type",
            },
        })
    );
    let id = answered["answered"].as_str().unwrap();
    nats.message("RECEIPTS", &format!("receipts.planner.delivered.{id}")).await;

    receiver.signal("TERM").await;
    receiver.ended().await.assert_code(0);
}

/// The configuration that the examples' README gives, with the receiver where it is.
fn readme(receiver: &str) -> String {
    let block = block("README.md", "toml");
    assert!(block.contains("http://127.0.0.1:8090/"), "{block}");
    block.replace("http://127.0.0.1:8090/", receiver)
}

/// The first block of a language in one of the examples' pages.
fn block(page: &str, language: &str) -> String {
    let page = fs::read_to_string(example(page)).unwrap();
    let block = page.split(&format!("```{language}\n")).nth(1).and_then(|rest| rest.split("```").next());
    block.unwrap().to_owned()
}

fn example(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(path)
}
