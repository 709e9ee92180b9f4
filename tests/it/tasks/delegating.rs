//! A client hands a task over, and the agent gets it once.

use serde_json::{Value, json};

use super::{OTHER, Office, SHOP};
use crate::harness::sign;

#[tokio::test]
async fn a_task_is_taken_offered_to_its_agent_and_told_step_by_step() {
    let mut office = Office::open().await;

    let taken = office.delegate("t-1", json!({"deadline": "1h", "metadata": {"order": 7}})).await;

    taken.assert_status(202);
    let url = office.hookbridge.url("/tasks/t-1");
    assert_eq!(taken.json(), json!({"task_id": "t-1", "status": "submitted", "status_url": url}));
    let offered = office.nats.message("TASKS", "tasks.planner.t-1").await;
    assert_eq!(offered.json()["prompt"], "do it");
    for (name, value) in [
        ("Hookbridge-Task-Id", "t-1"),
        ("ce-id", "t-1"),
        ("ce-source", "/agents/planner/tasks"),
        ("ce-type", "hookbridge.task"),
        ("ce-specversion", "1.0"),
        ("ce-datacontenttype", "application/json"),
    ] {
        assert_eq!(offered.header(name), Some(value), "{name}");
    }
    assert!(offered.header("traceparent").is_some());

    office.say("planner", "u-1", json!({"task_id": "t-1", "status": "working", "progress": 0.5})).await;
    let callback = office.receiver.next().await;
    assert_eq!(callback.path, "/cb");
    assert_eq!(callback.header("webhook-id"), "u-1");
    let timestamp = callback.header("webhook-timestamp");
    assert_eq!(callback.header("webhook-signature"), sign::v1(b"callback secret", "u-1", timestamp, &callback.body));
    assert_eq!(
        serde_json::from_slice::<Value>(&callback.body).unwrap(),
        json!({"task_id": "t-1", "status": "working", "progress": 0.5})
    );
    // Named in a header, and the rest is the agent's.
    let headers = [("Nats-Msg-Id", "u-2"), ("Hookbridge-Task-Id", "t-1")];
    office.nats.publish("outbox.planner", &headers, r#"{"status":"completed","result":{"x":1.0}}"#).await;
    assert_eq!(&office.receiver.next().await.body[..], br#"{"task_id":"t-1","status":"completed","result":{"x":1.0}}"#);

    office.receipt("delivered", "u-2").await;
    let task = office.becomes("t-1", "completed").await;
    assert_eq!((&task["result"], &task["metadata"]), (&json!({"x": 1.0}), &json!({"order": 7})));
    let history = task["history"].as_array().unwrap();
    let states: Vec<_> = history.iter().map(|step| step["status"].as_str().unwrap()).collect();
    assert_eq!(states, ["submitted", "working", "completed"]);
    assert_eq!(history[0].get("callback"), None);
    assert_eq!(history[2]["callback"], json!({"delivery": "u-2", "outcome": "delivered", "attempt": 1}));
}

#[tokio::test]
async fn the_same_task_again_is_answered_alike_and_offered_once_and_another_one_is_a_conflict() {
    let office = Office::open().await;
    let first = office.delegate("t-1", json!({})).await;
    let second = office.delegate("t-1", json!({})).await;
    assert_eq!((first.status.as_u16(), first.body), (second.status.as_u16(), second.body));
    assert_eq!(office.nats.count("TASKS").await, 1);

    office.delegate("t-1", json!({"prompt": "something else"})).await.assert_status(409);
    // The same body for another agent is another task.
    let task = json!({"task_id": "t-1", "callback_url": office.receiver.url("/cb"), "prompt": "do it"}).to_string();
    office.hookbridge.post("/agents/writer/tasks", &[SHOP], task.clone()).await.assert_status(409);
    // Whose it is stays unsaid.
    let others = office.hookbridge.post("/agents/planner/tasks", &[OTHER], task).await;
    others.assert_status(409);
    assert!(!others.text().contains("shop"), "{}", others.text());
    assert_eq!(office.nats.count("TASKS").await, 1);
}

#[tokio::test]
async fn a_client_without_an_id_gets_one_and_asks_nothing_more_than_an_object() {
    let office = Office::open().await;
    let taken = office.hookbridge.post("/agents/planner/tasks", &[SHOP], r#"{"prompt":"x"}"#).await;
    taken.assert_status(202);
    let task_id = taken.json()["task_id"].as_str().unwrap().to_owned();
    office.nats.message("TASKS", &format!("tasks.planner.{task_id}")).await;
    office.say("planner", "u-1", json!({"task_id": task_id, "status": "completed"})).await;
    office.becomes(&task_id, "completed").await;
    assert_eq!(office.receipt("delivered", "u-1").await["reason"], "no-callback");
}

#[tokio::test]
async fn a_signed_task_is_taken_and_signed_again_is_the_same_one() {
    let office = Office::open().await;
    let body = br#"{"prompt":"x"}"#;
    let timestamp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs().to_string();
    let signature = sign::v1(b"signing secret", "msg-1", &timestamp, body);
    let headers =
        [("webhook-id", "msg-1"), ("webhook-timestamp", timestamp.as_str()), ("webhook-signature", &signature)];
    let taken = office.hookbridge.post("/agents/planner/tasks", &headers, &body[..]).await;
    taken.assert_status(202);
    assert_eq!(taken.json()["task_id"], "msg-1");
    assert_eq!(office.hookbridge.post("/agents/planner/tasks", &headers, &body[..]).await.body, taken.body);
    office.hookbridge.post("/agents/planner/tasks", &headers, r#"{"prompt":"y"}"#).await.assert_status(401);
    let old = [headers[0], ("webhook-timestamp", "1700000000"), headers[2]];
    office.hookbridge.post("/agents/planner/tasks", &old, &body[..]).await.assert_status(401);
    assert_eq!(office.nats.count("TASKS").await, 1);
}

#[tokio::test]
async fn a_signed_request_that_was_recorded_calls_off_no_other_task() {
    let office = Office::open().await;
    for task in ["t-1", "t-2"] {
        let body = json!({"task_id": task, "cancel_task_id": task}).to_string();
        let timestamp =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs().to_string();
        let signature = sign::v1(b"signing secret", task, &timestamp, body.as_bytes());
        let headers =
            [("webhook-id", task), ("webhook-timestamp", timestamp.as_str()), ("webhook-signature", &signature)];
        office.hookbridge.post("/agents/planner/tasks", &headers, body.clone()).await.assert_status(202);
        let delete = async |task: &str| {
            let url = office.hookbridge.url(&format!("/tasks/{task}"));
            crate::harness::request("DELETE", &url, &headers, body.clone()).await
        };
        if task == "t-2" {
            delete("t-1").await.assert_status(422);
            assert_eq!(delete("t-2").await.assert_status(200).json()["status"], "canceled");
        }
    }
}

#[tokio::test]
async fn a_task_id_can_be_used_again_once_the_earlier_task_is_forgotten() {
    let mut office = Office::open().await;
    office.delegate("t-1", json!({"deadline": "1h"})).await.assert_status(202);
    office.say("planner", "u-1", json!({"task_id": "t-1", "status": "completed"})).await;
    assert_eq!(office.told().await["status"], "completed");
    // As if its time had come: what is left is a sign that there was something.
    let bucket = office.nats.jetstream().get_key_value("hookbridge_tasks").await.unwrap();
    bucket.delete("t-1").await.unwrap();
    office.get("/tasks/t-1").await.assert_status(404);

    office.delegate("t-1", json!({"deadline": "1s", "prompt": "again"})).await.assert_status(202);
    let offers = office.nats.messages("TASKS", "tasks.planner.t-1", 2).await;
    assert_eq!(offers[1].json()["prompt"], "again");
    assert_eq!(office.told().await["error"]["code"], "deadline-exceeded");
}

#[tokio::test]
async fn what_was_taken_is_answered_alike_also_when_it_could_not_be_taken_any_more() {
    let office = Office::open().await;
    let soon = std::time::SystemTime::now() + std::time::Duration::from_millis(2500);
    let task = json!({"task_id": "t-1", "deadline": humantime::format_rfc3339_millis(soon).to_string()}).to_string();
    let first = office.hookbridge.post("/agents/planner/tasks", &[SHOP], task.clone()).await;
    first.assert_status(202);
    office.becomes("t-1", "failed").await;
    let again = office.hookbridge.post("/agents/planner/tasks", &[SHOP], task).await;
    assert_eq!(again.assert_status(202).json()["status"], "failed");
}

#[tokio::test]
async fn the_same_task_many_times_at_once_is_one_task() {
    let office = Office::open().await;
    let asked = (0..30).map(|_| office.delegate("t-1", json!({"deadline": "1h"})));
    let answers = futures_util::future::join_all(asked).await;
    assert!(answers.iter().all(|answer| answer.assert_status(202).body == answers[0].body));
    assert_eq!((office.nats.count("TASKS").await, office.nats.count("RETRY").await), (1, 1));

    let asked = (0..30).map(|number| office.delegate("t-2", json!({"number": number})));
    let answers = futures_util::future::join_all(asked).await;
    let taken = answers.iter().filter(|answer| answer.status.as_u16() == 202).count();
    let refused = answers.iter().filter(|answer| answer.status.as_u16() == 409).count();
    assert_eq!((taken, refused), (1, 29));
}

#[tokio::test]
async fn an_idempotency_key_is_the_id_of_a_task_without_one() {
    let office = Office::open().await;
    let headers = [SHOP, ("idempotency-key", "order-7")];
    for _ in 0..2 {
        let taken = office.hookbridge.post("/agents/planner/tasks", &headers, "{}").await;
        assert_eq!(taken.assert_status(202).json()["task_id"], "order-7");
    }
    assert_eq!(office.nats.count("TASKS").await, 1);
}

#[tokio::test]
async fn a_bucket_of_an_earlier_version_is_made_fit() {
    let nats = crate::harness::Nats::start().await;
    let config = async_nats::jetstream::kv::Config { bucket: "hookbridge_tasks".to_owned(), ..Default::default() };
    nats.jetstream().create_key_value(config).await.unwrap();
    let receiver = crate::harness::Receiver::start().await;
    let hookbridge = crate::harness::Hookbridge::start(&nats, &super::shop(&receiver)).await;
    let office = Office { nats, receiver, hookbridge };
    office.delegate("t-1", json!({})).await.assert_status(202);
    office.say("planner", "u-1", json!({"task_id": "t-1", "status": "completed"})).await;
    office.becomes("t-1", "completed").await;
}

#[tokio::test]
async fn clients_that_cannot_be_told_apart_or_called_back_are_mistakes() {
    for (text, says) in [
        ("[clients.a]\ntoken = \"plain:x\"\n[clients.b]\ntoken = \"plain:x\"\n", "is that of client `a` too"),
        ("[clients.a]\n", "needs either"),
        ("[clients.a]\ntoken = \"plain:x\"\nsecrets = [\"plain:y\"]\n", "needs either"),
        ("[clients.a]\ntoken = \"plain:x\"\nagents = []\n", "delegate to nobody"),
        ("[clients.a]\ntoken = \"plain:x\"\ncallback_urls = [\"https://a.example/\"]\n", "callback_secrets"),
        ("[tasks]\nretention = \"1s\"\n", "shorter than a minute"),
        ("[tasks]\ndeadline = \"9000d\"\n", "at most a year"),
        ("[tasks]\nmax_body = \"1GiB\"\n", "could never be taken"),
        (
            "[clients.a]\ntoken = \"plain:x\"\n[egress]\nretry = [\"2h\"]\n[tasks]\nretention = \"1h\"\n",
            "shorter than egress.retry",
        ),
    ] {
        let mistakes = crate::harness::mistakes(text);
        assert!(mistakes.contains(says), "{text}: {mistakes}");
    }
}

#[tokio::test]
async fn who_does_not_prove_himself_learns_nothing_and_leaves_nothing() {
    let office = Office::open().await;
    office.delegate("t-1", json!({})).await.assert_status(202);
    for headers in [
        &[][..],
        &[("authorization", "Bearer wrong")],
        &[("authorization", "Bearer ")],
        &[("authorization", "Basic c2hvcDpzaG9w")],
        &[("authorization", "B")],
        &[("webhook-signature", "v1,AAAA")],
    ] {
        for (method, path) in [
            ("POST", "/agents/planner/tasks"),
            ("POST", "/agents/nobody/tasks"),
            ("GET", "/tasks/t-1"),
            ("GET", "/tasks/t-2"),
            ("GET", "/tasks"),
            ("DELETE", "/tasks/t-1"),
            ("GET", "/tasks/t-1/events"),
        ] {
            let body = if method == "POST" { "{}" } else { "" };
            let answer = crate::harness::request(method, &office.hookbridge.url(path), headers, body).await;
            answer.assert_status(401);
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
    }
    assert_eq!(office.nats.count("TASKS").await, 1);
}

#[tokio::test]
async fn what_cannot_be_done_is_said_at_once() {
    let office = Office::open().await;
    let url = |url: &str| json!({"callback_url": url}).to_string();
    for (path, client, body, status, says) in [
        ("/agents/nobody/tasks", SHOP, "{}".to_owned(), 404, "no such agent"),
        ("/agents/writer/tasks", OTHER, "{}".to_owned(), 403, "writer"),
        ("/agents/planner/tasks", SHOP, "[]".to_owned(), 422, "JSON object"),
        ("/agents/planner/tasks", SHOP, r#"{"task_id":"a b"}"#.to_owned(), 422, "task_id"),
        ("/agents/planner/tasks", SHOP, r#"{"deadline":"yesterday"}"#.to_owned(), 422, "deadline"),
        // Outside what is listed; a private address; another scheme; a port that speaks something else.
        ("/agents/planner/tasks", SHOP, url("https://elsewhere.example/"), 422, "callbacks.allow"),
        ("/agents/planner/tasks", SHOP, url("http://10.0.0.1/"), 422, "callbacks.allow"),
        ("/agents/planner/tasks", SHOP, url("ftp://127.0.0.1/"), 422, "callbacks.allow"),
    ] {
        let answer = office.hookbridge.post(path, &[client], body.clone()).await;
        answer.assert_status(status);
        assert!(answer.text().contains(says), "{path} {body}: {}", answer.text());
    }
    let put = crate::harness::request("PUT", &office.hookbridge.url("/tasks/t"), &[SHOP], "").await;
    assert_eq!(put.assert_status(405).header("allow"), "GET, DELETE");
    assert_eq!(office.nats.count("TASKS").await, 0);
    assert_eq!(
        office.hookbridge.metric("hookbridge_task_requests_total{client=\"shop\",outcome=\"invalid\"}").await,
        6.0
    );
}

#[tokio::test]
async fn a_callback_that_the_address_guard_refuses_is_refused_at_once() {
    let nats = crate::harness::Nats::start().await;
    let text = r#"
        [agents.planner]
        [clients.shop]
        token = "plain:shop-token"
        callback_urls = ["*"]
        callback_secrets = ["plain:x"]
        [egress]
        allow_networks = []
    "#;
    let hookbridge = crate::harness::Hookbridge::start(&nats, text).await;
    for url in [
        "http://127.0.0.1:8080/",
        "https://[::1]/",
        "https://169.254.169.254/",
        "https://localhost/",
        "https://a.example:22/",
    ] {
        let task = json!({"callback_url": url}).to_string();
        let answer = hookbridge.post("/agents/planner/tasks", &[SHOP], task).await;
        answer.assert_status(422);
        assert!(answer.text().contains("the callback URL"), "{url}: {}", answer.text());
    }
    assert_eq!(nats.count("TASKS").await, 0);
}

#[tokio::test]
async fn a_client_over_its_rate_is_told_when_to_come_again() {
    let office = Office::open_with("[clients.slow]\ntoken = \"plain:slow-token\"\nrate = \"1/h burst 2\"\n").await;
    let slow = [("authorization", "Bearer slow-token")];
    for _ in 0..2 {
        office.hookbridge.post("/agents/planner/tasks", &slow, "{}").await.assert_status(202);
    }
    let refused = office.hookbridge.post("/agents/planner/tasks", &slow, "{}").await;
    assert!(refused.assert_status(429).header("retry-after").parse::<u64>().unwrap() > 3000);
    office.delegate("t-1", json!({})).await.assert_status(202);
}

#[tokio::test]
async fn a_task_that_nats_did_not_confirm_is_a_503_and_can_be_asked_for_again() {
    let office = Office::open().await;
    let task = json!({"task_id": "t-1", "prompt": "x"}).to_string();
    // The state is written, the offer is not: as if the gateway had died in between.
    let office = {
        let Office { mut nats, receiver, hookbridge } = office;
        nats.kill();
        let refused = hookbridge.post("/agents/planner/tasks", &[SHOP], task.clone()).await;
        refused.assert_status(503);
        assert!(!refused.header("retry-after").is_empty());
        nats.run_again().await;
        hookbridge.ready().await;
        Office { nats, receiver, hookbridge }
    };
    office.hookbridge.post("/agents/planner/tasks", &[SHOP], task).await.assert_status(202);
    office.nats.message("TASKS", "tasks.planner.t-1").await;
}
