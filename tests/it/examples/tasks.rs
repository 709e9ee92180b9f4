//! The agents that do tasks, as their page says to run them.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::process::Command;

use super::{block, example};
use crate::harness::{
    Hookbridge, Nats, Program, Receiver, Reply, eventually, python, python_with_packages, request, within,
};

const TOKEN: (&str, &str) = ("authorization", "Bearer orchestrator-token");

/// A Hookbridge with the page's configuration, and the two receivers that it names.
struct Crew {
    python: std::path::PathBuf,
    nats: Nats,
    hookbridge: Hookbridge,
    client: (Program, String),
    chat: Program,
}

impl Crew {
    async fn gather() -> Self {
        let python = python_with_packages("examples-python", &example("python")).await;
        let nats = Nats::start().await;
        let ((client, client_url), (chat, chat_url)) =
            (receiver("receiver-secret").await, receiver("chat-secret").await);
        let mut text = block("tasks/README.md", "toml");
        for (there, here) in [("http://127.0.0.1:8090/", &client_url), ("http://127.0.0.1:8091/", &chat_url)] {
            assert!(text.contains(there), "{text}");
            text = text.replace(there, here);
        }
        let hookbridge = Hookbridge::start(&nats, &text).await;
        Self { python, nats, hookbridge, client: (client, client_url), chat }
    }

    /// One of the programs.
    fn program(&self, file: &str, arguments: &[&str]) -> Program {
        let mut command = Command::new(&self.python);
        command.arg(example("tasks").join(file)).args(["--nats", &self.nats.url()]).args(arguments);
        Program::start(command.env("HOOKBRIDGE_TOKEN", "orchestrator-token").env("PYTHONDONTWRITEBYTECODE", "1"))
    }

    /// One of the agents, ready.
    async fn agent(&self, file: &str, arguments: &[&str]) -> Program {
        let program = self.program(file, arguments);
        program.says("\"ready\"").await;
        program
    }

    /// Delegates a task, with callbacks at the client's receiver.
    async fn delegate(&self, agent: &str, task_id: &str, more: Value) {
        let mut task = json!({"task_id": task_id, "callback_url": self.client.1});
        task.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let path = format!("/agents/{agent}/tasks");
        self.hookbridge.post(&path, &[TOKEN], task.to_string()).await.assert_status(202);
    }

    /// Waits until a task has this state.
    async fn becomes(&self, task_id: &str, status: &str) -> Value {
        let url = self.hookbridge.url(&format!("/tasks/{task_id}"));
        eventually(&format!("{task_id} to be {status}"), async || {
            let task = request("GET", &url, &[TOKEN], "").await.json();
            (task["status"] == status).then_some(task)
        })
        .await
    }

    /// What the client was told of each task, once all of them have ended for it. All is signed, none came twice, and
    /// none after the end.
    async fn told(&self, tasks: usize) -> BTreeMap<String, Vec<Value>> {
        eventually("every end to be told", async || {
            let told = self.told_by_now();
            (told.values().filter(|steps| is_end(steps.last().unwrap())).count() == tasks).then_some(told)
        })
        .await
    }

    fn told_by_now(&self) -> BTreeMap<String, Vec<Value>> {
        let mut told = BTreeMap::<String, Vec<Value>>::new();
        for delivery in deliveries(&self.client.0) {
            assert_eq!(
                (&delivery["verified"], &delivery["duplicate"]),
                (&json!(["standard-webhooks", "x-signature"]), &json!(false)),
                "{delivery}"
            );
            let steps = told.entry(delivery["body"]["task_id"].as_str().unwrap().to_owned()).or_default();
            if let Some(before) = steps.last() {
                assert!(!is_end(before), "{delivery} after {before}");
                let (before, now) = (before["progress"].as_f64(), delivery["body"]["progress"].as_f64());
                assert!(now.is_none() || before < now, "{delivery} after {before:?}");
            }
            steps.push(delivery["body"].clone());
        }
        told
    }

    /// The notices in the chat, once there are so many.
    async fn notices(&self, count: usize) -> Vec<String> {
        let mut notices = eventually("the notices", async || {
            let notices = deliveries(&self.chat);
            (notices.len() >= count).then_some(notices)
        })
        .await;
        assert!(notices.iter().all(|notice| notice["duplicate"] == false), "{notices:?}");
        notices.sort_by_key(|notice| notice["body"]["text"].to_string());
        notices.iter().map(|notice| notice["body"]["text"].as_str().unwrap().to_owned()).collect()
    }
}

/// A receiver of webhooks with this secret, and where it listens.
async fn receiver(secret: &str) -> (Program, String) {
    let mut receiver = Command::new(python());
    receiver.arg(example("python/receiver.py")).args(["--listen", "127.0.0.1:0"]).env("WEBHOOK_SECRET", secret);
    let receiver = Program::start(&mut receiver);
    let listening: Value = serde_json::from_str(&receiver.says("listening").await).unwrap();
    let url = listening["listening"].as_str().unwrap().to_owned();
    (receiver, url)
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn deliveries(receiver: &Program) -> Vec<Value> {
    lines(&receiver.stdout()).into_iter().filter(|line| line.get("verified").is_some()).collect()
}

fn is_end(step: &Value) -> bool {
    step["status"] == "completed" || step["status"] == "failed" || step["status"] == "canceled"
}

#[tokio::test]
async fn jobs_are_delegated_done_told_to_the_client_and_noticed_in_the_chat() {
    let crew = Crew::gather().await;
    let mut old = Receiver::scripted([Reply::HoldBody(r#"{"ORDER": "A-42"}"#.to_owned())]).await;
    let worker = crew.agent("worker.py", &["--pace", "0.1"]).await;
    let legacy = crew.agent("legacy.py", &["--url", &old.url("/old")]).await;
    let notifier = crew.agent("notifier.py", &[]).await;
    let mut signals = crew.nats.listen("$JS.ACK.TASKS.legacy.>").await;
    let folder = tempfile::tempdir().unwrap();
    let jobs = folder.path().join("jobs.jsonl");
    std::fs::write(&jobs, block("tasks/README.md", "json")).unwrap();
    let gateway = crew.hookbridge.url("");
    let arguments = ["--gateway", &gateway, "--callback-url", &crew.client.1, jobs.to_str().unwrap()];
    let orchestrator = crew.program("orchestrator.py", &arguments);

    let called = old.next().await;
    assert_eq!((called.path.as_str(), called.header("idempotency-key")), ("/old", "old-1"));
    assert_eq!(serde_json::from_slice::<Value>(&called.body).unwrap(), json!({"order": "a-42"}));
    // While the call lasts, the task stays with its agent.
    let signal = within("a sign of progress", signals.next()).await.unwrap();
    assert_eq!(&signal.payload[..], b"+WPI");
    assert_eq!(crew.becomes("old-1", "working").await["message"], "waiting for the legacy system");
    old.release();

    let ended = orchestrator.ended().await;
    let mut outcomes = lines(&ended.assert_code(0).stdout);
    outcomes.sort_by_key(|outcome| outcome["task_id"].to_string());
    let error = json!({"code": "bad-task", "message": "`items` must be a list of texts"});
    assert_eq!(
        outcomes,
        [
            json!({"task_id": "count-1", "agent": "worker", "status": "completed", "result": {"words": [1, 2, 3]}}),
            json!({"task_id": "count-2", "agent": "worker", "status": "failed", "error": error}),
            json!({"task_id": "old-1", "agent": "legacy", "status": "completed", "result": {"ORDER": "A-42"}}),
        ]
    );
    let told = crew.told(3).await;
    let end = |task: &str| told[task].last().unwrap().clone();
    assert_eq!(end("count-1"), json!({"task_id": "count-1", "status": "completed", "result": {"words": [1, 2, 3]}}));
    assert_eq!(end("count-2")["error"]["code"], "bad-task");
    assert_eq!(end("old-1")["result"], json!({"ORDER": "A-42"}));
    assert_eq!(told["old-1"][0]["status"], "working");
    let notices =
        ["Task count-1 of worker: completed", "Task count-2 of worker: failed", "Task old-1 of legacy: completed"];
    assert_eq!(crew.notices(3).await, notices);

    // The same list again is the same tasks.
    let again = crew.program("orchestrator.py", &arguments).ended().await;
    let mut repeated = lines(&again.assert_code(0).stdout);
    repeated.sort_by_key(|outcome| outcome["task_id"].to_string());
    assert_eq!(repeated, outcomes);
    for program in [worker, legacy, notifier] {
        program.signal("TERM").await;
        program.ended().await.assert_code(0);
    }
    assert_eq!((crew.told_by_now(), crew.notices(3).await.len()), (told, 3));
    assert_eq!(crew.nats.count("DEAD").await, 0);
}

#[tokio::test]
async fn a_worker_that_is_killed_leaves_its_task_to_another_which_says_nothing_twice() {
    let crew = Crew::gather().await;
    let first = crew.agent("worker.py", &["--pace", "3600"]).await;
    crew.delegate("worker", "t-1", json!({"items": ["a", "b c"]})).await;
    crew.client.0.says("item 1 of 2").await;
    let second = crew.agent("worker.py", &["--pace", "0.1"]).await;
    first.kill().await;

    let taken: Value = serde_json::from_str(&second.says("taken").await).unwrap();
    assert_eq!(taken["task_id"], "t-1");
    assert_eq!(crew.becomes("t-1", "completed").await["result"], json!({"words": [1, 2]}));
    let told = crew.told(1).await;
    assert_eq!(told["t-1"][0]["progress"], 0.0);
    assert_eq!(told["t-1"].last().unwrap()["status"], "completed");
    second.says("completed").await;
    // Three messages: the second worker's first step was the first one's.
    assert_eq!(crew.nats.count("OUTBOX").await, 3);
    eventually("the task to be let go", async || {
        (crew.nats.consumer("TASKS", "worker").await?.num_ack_pending == 0).then_some(())
    })
    .await;
    assert_eq!(crew.nats.count("DEAD").await, 0);
}

#[tokio::test]
async fn a_worker_stops_what_is_called_off_and_takes_the_next_task() {
    let crew = Crew::gather().await;
    // Called off while nobody was there.
    crew.delegate("worker", "t-0", json!({"items": ["a"]})).await;
    let call_off = async |task: &str| {
        let url = crew.hookbridge.url(&format!("/tasks/{task}"));
        request("DELETE", &url, &[TOKEN], "").await.assert_status(200);
    };
    call_off("t-0").await;
    crew.nats.message("TASKS", "tasks.worker.t-0.state").await;
    let worker = crew.agent("worker.py", &["--pace", "3600"]).await;
    worker.says("ended-before").await;

    for task in ["t-1", "t-2"] {
        crew.delegate("worker", task, json!({"items": ["a"]})).await;
        crew.becomes(task, "working").await;
        call_off(task).await;
    }
    crew.delegate("worker", "t-3", json!({"items": []})).await;
    crew.becomes("t-3", "completed").await;

    let outcomes: Vec<_> = lines(&worker.stdout()).into_iter().filter(|line| line.get("outcome").is_some()).collect();
    assert_eq!(
        outcomes[..3],
        ["t-0", "t-1", "t-2"].map(|task| {
            json!({"task_id": task, "outcome": if task == "t-0" { "ended-before" } else { "called-off" }})
        })
    );
    assert_eq!(crew.told(4).await["t-1"].last().unwrap()["status"], "canceled");
    assert_eq!(crew.nats.count("DEAD").await, 0, "something was said of a task that had ended");
}

#[tokio::test]
async fn a_legacy_system_that_fails_or_keeps_silent_fails_the_task() {
    let crew = Crew::gather().await;
    let script = [Reply::Status(500), Reply::With(302, "location: http://127.0.0.1:1/"), Reply::Garbage, Reply::Hang];
    let old = Receiver::scripted(script).await;
    let _legacy = crew.agent("legacy.py", &["--url", &old.url("/"), "--timeout", "2"]).await;
    for task in ["t-1", "t-2", "t-3", "t-4"] {
        crew.delegate("legacy", task, json!({"input": task})).await;
        crew.becomes(task, "failed").await;
    }
    let error = async |task: &str| crew.becomes(task, "failed").await["error"].clone();
    assert_eq!(
        error("t-1").await,
        json!({"code": "legacy-status", "message": "the legacy system answered 500", "status": 500})
    );
    assert_eq!(error("t-2").await["status"], 302);
    assert_eq!(error("t-3").await["code"], "legacy-unreachable");
    assert_eq!(error("t-4").await, json!({"code": "legacy-unreachable", "message": "no answer within 2 s"}));
    assert!(crew.told(4).await.values().all(|steps| steps.last().unwrap()["status"] == "failed"));
}

#[tokio::test]
async fn a_notifier_tells_afterwards_what_happened_while_it_was_away() {
    let crew = Crew::gather().await;
    let notifier = crew.agent("notifier.py", &[]).await;
    notifier.signal("TERM").await;
    notifier.ended().await.assert_code(0);
    crew.delegate("worker", "t-1", json!({})).await;
    for (id, status) in [("w-1", "working"), ("w-2", "completed")] {
        let update = json!({"task_id": "t-1", "status": status});
        crew.nats.publish("outbox.worker", &[("Nats-Msg-Id", id)], update.to_string()).await;
        crew.becomes("t-1", status).await;
    }
    let _notifier = crew.agent("notifier.py", &[]).await;
    assert_eq!(crew.notices(1).await, ["Task t-1 of worker: completed"]);
    let receipt = crew.nats.message("RECEIPTS", "receipts.notifier.delivered.*").await.json();
    assert_eq!(receipt["destination"], "chat");
}

#[tokio::test]
async fn what_anybody_may_have_published_stops_neither_a_worker_nor_the_notifier() {
    let crew = Crew::gather().await;
    let worker = crew.agent("worker.py", &[]).await;
    let notifier = crew.agent("notifier.py", &[]).await;
    let named = ("Hookbridge-Task-Id", "t-1");
    for (headers, body) in [(&[][..], "{}"), (&[named], "what?"), (&[named], "\u{0}")] {
        crew.nats.publish("tasks.worker.t-1", headers, body).await;
    }
    for body in ["what?", "[]", "{}"] {
        crew.nats.publish("tasks.worker.t-1.state", &[], body).await;
    }
    crew.delegate("worker", "t-2", json!({"items": []})).await;
    worker.says("completed").await;
    assert_eq!(crew.notices(1).await, ["Task t-2 of worker: completed"]);
    for (program, count) in [(worker, 3), (notifier, 3)] {
        assert_eq!(program.stderr().lines().count(), count, "{}", program.stderr());
    }
}

#[tokio::test]
async fn an_orchestrator_says_what_was_refused_and_what_has_not_ended() {
    let crew = Crew::gather().await;
    let folder = tempfile::tempdir().unwrap();
    let jobs = folder.path().join("jobs.jsonl");
    let gateway = crew.hookbridge.url("");
    let run = async |text: &str, within: &str| {
        std::fs::write(&jobs, text).unwrap();
        let arguments = ["--gateway", &gateway, "--within", within, jobs.to_str().unwrap()];
        crew.program("orchestrator.py", &arguments).ended().await
    };
    let refused = run(r#"{"agent": "nobody", "task_id": "t-1"}"#, "60").await;
    let line = lines(&refused.assert_code(1).stdout).remove(0);
    assert_eq!((&line["status"], &line["error"]["status"]), (&json!("refused"), &json!(404)), "{line}");
    // Nobody works.
    let open = run(r#"{"agent": "worker", "task_id": "t-2"}"#, "2").await;
    assert_eq!(open.assert_code(1).stdout, "");
    assert!(open.stderr.contains("not all tasks have ended"), "{open}");
}
