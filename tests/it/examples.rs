//! The examples, end to end: a webhook comes in, an agent answers it, a receiver verifies what goes out.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::process::Command;

use crate::harness::{Hookbridge, Nats, Program, sign};

/// How long an installation may take: it asks a package registry.
const INSTALLED_WITHIN: Duration = Duration::from_secs(180);

#[tokio::test]
async fn the_python_agent_answers_a_webhook_and_the_receiver_verifies_the_answer() {
    let folder = installed("examples-python", &["requirements.txt"], async |to| {
        let venv = to.join("venv");
        succeeds(Command::new(python()).args(["-m", "venv"]).arg(&venv)).await;
        let mut pip = Command::new(venv.join("bin/python"));
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-r"]);
        succeeds(pip.arg(example("python/requirements.txt"))).await;
    });
    let folder = folder.await;
    an_answer_arrives(Command::new(folder.join("venv/bin/python")).arg(example("python/agent.py"))).await;
}

#[tokio::test]
async fn the_typescript_agent_answers_a_webhook_and_the_receiver_verifies_the_answer() {
    const FILES: [&str; 4] = ["package.json", "package-lock.json", "tsconfig.json", "src/agent.ts"];
    let folder = installed("examples-typescript", &FILES, async |to| {
        fs::create_dir_all(to.join("src")).unwrap();
        for file in FILES {
            fs::copy(example("typescript").join(file), to.join(file)).unwrap();
        }
        succeeds(Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(to)).await;
        succeeds(Command::new("npm").args(["run", "build"]).current_dir(to)).await;
    });
    let folder = folder.await;
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
    let readme = fs::read_to_string(example("README.md")).unwrap();
    let block = readme.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert!(block.contains("http://127.0.0.1:8090/"), "{block}");
    block.replace("http://127.0.0.1:8090/", receiver)
}

fn python() -> PathBuf {
    std::env::var_os("PYTHON").map_or("python3".into(), PathBuf::from)
}

fn example(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(path)
}

/// Runs a program to its end, which must be a good one.
async fn succeeds(command: &mut Command) {
    let ended = Program::start(command).ended_within(INSTALLED_WITHIN).await;
    assert_eq!(ended.code, Some(0), "{:?}\n{ended}", command.as_std());
}

/// A folder under `target/` with what was installed for some files of an example. It is made once, and again
/// when one of the files changes.
async fn installed(name: &str, files: &[&str], install: impl AsyncFnOnce(&Path)) -> PathBuf {
    let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(base).unwrap();
    let (folder, stamp) = (base.join(name), base.join(format!("{name}.sha256")));
    // Another run of the tests may be at it.
    let lock = File::create(base.join(format!("{name}.lock"))).unwrap();
    let locked = async {
        let mut pace = tokio::time::interval(Duration::from_millis(100));
        while lock.try_lock().is_err() {
            pace.tick().await;
        }
    };
    assert!(tokio::time::timeout(INSTALLED_WITHIN, locked).await.is_ok(), "{name} is locked by another run");

    let of = name.trim_start_matches("examples-");
    let mut hash = Sha256::new();
    for file in files {
        hash.update(fs::read(example(of).join(file)).unwrap());
    }
    let hash = HEXLOWER.encode(&hash.finalize());
    if fs::read_to_string(&stamp).is_ok_and(|stamped| stamped == hash) && folder.is_dir() {
        return folder;
    }
    drop(fs::remove_file(&stamp));
    drop(fs::remove_dir_all(&folder));
    fs::create_dir_all(&folder).unwrap();
    install(&folder).await;
    fs::write(&stamp, hash).unwrap();
    folder
}
