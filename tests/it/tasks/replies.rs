//! Agents that delegate over HTTP, and hear of the outcome as an event.

use serde_json::{Value, json};

use crate::harness::{Answer, Hookbridge, Nats, Receiver, eventually, free_port, mistakes, post};

/// Two agents behind two gateways of the same process would be two of these; here the planner delegates to the writer
/// as it would to any HTTP API.
fn office(gateway: u16) -> String {
    format!(
        r#"
        [gateway]
        listen = "127.0.0.1:{gateway}"
        public_url = "http://127.0.0.1:{gateway}"
        [replies]
        keys = ["plain:reply key"]
        [agents.planner]
        events = ["events.callbacks.planner.>"]
        [agents.writer]
        [callbacks]
        allow = ["http://127.0.0.1:{gateway}/callbacks/"]
        secrets = ["plain:callback secret"]
        [clients.planner]
        token = "plain:planner-token"
        agents = ["writer"]
        [endpoints.writer]
        url = "http://127.0.0.1:{gateway}/agents/writer/tasks"
        secrets = ["plain:x"]
        [endpoints.writer.auth]
        bearer = "plain:planner-token"
        "#
    )
}

const ASKS: [(&str, &str); 3] =
    [("Hookbridge-Endpoint", "writer"), ("Nats-Msg-Id", "ask-1"), ("Hookbridge-Reply", "job-1")];

#[tokio::test]
async fn an_agent_delegates_to_another_over_http_and_neither_has_a_server() {
    let nats = Nats::start().await;
    let _hookbridge = Hookbridge::start(&nats, &office(free_port())).await;

    nats.publish("outbox.planner", &ASKS, r#"{"task_id":"job-1","prompt":"write"}"#).await;

    let offered = nats.message("TASKS", "tasks.writer.job-1").await.json();
    assert_eq!(offered["prompt"], "write");
    for (id, status) in [("w-1", "working"), ("w-2", "completed")] {
        let update = json!({"task_id": "job-1", "status": status, "result": "text"}).to_string();
        nats.publish("outbox.writer", &[("Nats-Msg-Id", id)], update).await;
        let event = nats.message("EVENTS", &format!("events.callbacks.planner.job-1.{status}")).await;
        assert_eq!((&event.json()["status"], &event.json()["result"]), (&json!(status), &json!("text")));
        let kind = format!("callback.{status}");
        for (name, value) in
            [("ce-source", "/callbacks/planner"), ("ce-type", kind.as_str()), ("ce-id", id), ("ce-subject", "job-1")]
        {
            assert_eq!(event.header(name), Some(value), "{name}");
        }
    }
    let durable = nats.consumer("EVENTS", "planner").await.unwrap();
    assert_eq!(durable.num_pending, 2);
}

/// The URL that an agent's message brings to its receiver.
async fn url_of(nats: &Nats, receiver: &mut Receiver, task_id: &str) -> String {
    let headers = [("Hookbridge-Endpoint", "peer"), ("Nats-Msg-Id", task_id), ("Hookbridge-Reply", task_id)];
    nats.publish("outbox.planner", &headers, r#"{"prompt":"x"}"#).await;
    let body: Value = serde_json::from_slice(&receiver.next().await.body).unwrap();
    assert_eq!(body["prompt"], "x");
    body["callback_url"].as_str().unwrap().to_owned()
}

async fn with_peer() -> (Nats, Receiver, Hookbridge) {
    let (nats, receiver) = (Nats::start().await, Receiver::start().await);
    let peer = format!("[endpoints.peer]\nurl = \"{}\"\nsecrets = [\"plain:x\"]\n", receiver.url("/"));
    let hookbridge = Hookbridge::start(&nats, &(office(free_port()) + &peer)).await;
    (nats, receiver, hookbridge)
}

#[tokio::test]
async fn a_reply_is_taken_until_the_last_one_and_repeats_of_it_are_known() {
    let (nats, mut receiver, _hookbridge) = with_peer().await;
    let url = url_of(&nats, &mut receiver, "job-1").await;
    let reply = |id: &'static str, body: &'static str| {
        let url = url.clone();
        async move { post(&url, &[("webhook-id", id)], body).await }
    };
    let taken = |answer: Answer| (answer.assert_status(202).json()["duplicate"].as_bool().unwrap(), answer.json());
    assert_eq!(taken(reply("r-1", r#"{"status":"working"}"#).await), (false, json!({"id": "r-1", "duplicate": false})));
    assert!(taken(reply("r-1", r#"{"status":"working"}"#).await).0);
    assert!(!taken(reply("r-2", r#"{"status":"failed"}"#).await).0);
    // What was lost on the way back may be sent again; anything else comes too late.
    assert!(taken(reply("r-2", r#"{"status":"failed"}"#).await).0);
    reply("r-3", r#"{"status":"completed"}"#).await.assert_status(410);
    reply("r-4", r#"{"status":"working"}"#).await.assert_status(410);
    assert_eq!(nats.count("EVENTS").await, 2);

    // In words of its own, more may come.
    let url = url_of(&nats, &mut receiver, "job-3").await;
    for body in
        [r#"{"status":"queued"}"#, r#"{"artifactUpdate":{}}"#, r#"{"kind":"task","status":{"state":"completed"}}"#]
    {
        post(&url, &[], body).await.assert_status(202);
    }
    post(&url, &[], r#"{"status":"queued","again":1}"#).await.assert_status(410);
    nats.message("EVENTS", "events.callbacks.planner.job-3.completed").await;
    assert_eq!(nats.messages("EVENTS", "events.callbacks.planner.job-3.unknown", 2).await.len(), 2);

    // One that tells of no state is the reply, and there is no second.
    let url = url_of(&nats, &mut receiver, "job-2").await;
    post(&url, &[], r#"{"answer":42}"#).await.assert_status(202);
    post(&url, &[], r#"{"answer":43}"#).await.assert_status(410);
    assert!(taken(post(&url, &[], r#"{"answer":42}"#).await).0);
    // Under the id of the last one, too.
    let url = url_of(&nats, &mut receiver, "job-4").await;
    post(&url, &[("webhook-id", "r-1")], r#"{"status":"completed"}"#).await.assert_status(202);
    post(&url, &[("webhook-id", "r-1")], r#"{"status":"failed"}"#).await.assert_status(410);
    let event = nats.message("EVENTS", "events.callbacks.planner.job-2.unknown").await;
    assert_eq!(event.json()["answer"], 42);
}

#[tokio::test]
async fn a_reply_without_its_own_token_is_none() {
    let (nats, mut receiver, hookbridge) = with_peer().await;
    let url = url_of(&nats, &mut receiver, "job-1").await;
    let (address, token) = url.split_once("?token=").unwrap();
    for wrong in [
        address.to_owned(),
        format!("{address}?token="),
        format!("{address}?token={}", token.to_uppercase()),
        format!("{address}?token={}", token.split_once('-').unwrap().1),
        format!("{address}?token=9{token}"),
        format!("{}?token={token}", address.replace("job-1", "job-2")),
        format!("{}?token={token}", address.replace("planner", "writer")),
        format!("{}?token={token}", address.replace("job-1", "job%201")),
    ] {
        post(&wrong, &[], r#"{"status":"completed"}"#).await.assert_status(401);
    }
    crate::harness::request("GET", &url, &[], "").await.assert_status(405);
    assert_eq!(nats.count("EVENTS").await, 0);
    // Where A2A has it, it is as good.
    post(
        address,
        &[("x-a2a-notification-token", token)],
        r#"{"statusUpdate":{"status":{"state":"TASK_STATE_WORKING"}}}"#,
    )
    .await
    .assert_status(202);
    nats.message("EVENTS", "events.callbacks.planner.job-1.working").await;
    assert_eq!(hookbridge.metric("hookbridge_task_requests_total{client=\"\",outcome=\"replied\"}").await, 1.0);
}

#[tokio::test]
async fn a_message_that_cannot_carry_the_url_is_dead_with_the_reason() {
    let (nats, receiver, _hookbridge) = with_peer().await;
    for (id, reply, body, says) in [
        ("m-1", "job-1", "text", "JSON object"),
        ("m-2", "job-1", r#"{"callback_url":"https://a.example/"}"#, "already"),
        ("m-3", "job 1", "{}", "Hookbridge-Reply"),
    ] {
        let headers = [("Hookbridge-Endpoint", "peer"), ("Nats-Msg-Id", id), ("Hookbridge-Reply", reply)];
        nats.publish("outbox.planner", &headers, body).await;
        let receipt = nats.message("RECEIPTS", &format!("receipts.planner.dead.{id}")).await.json();
        assert_eq!(receipt["reason"], "malformed");
        assert!(receipt["detail"].as_str().unwrap().contains(says), "{receipt}");
    }
    // By subject, or to nobody; and with an update of a task.
    for (id, subject, body) in [
        ("m-4", "outbox.planner", r#"{"x":1}"#),
        ("m-5", "outbox.planner.topic", r#"{"x":1}"#),
        ("m-6", "outbox.planner", r#"{"task_id":"t","status":"working"}"#),
    ] {
        nats.publish(subject, &[("Nats-Msg-Id", id), ("Hookbridge-Reply", "job-1")], body).await;
        let receipt = nats.message("RECEIPTS", &format!("receipts.planner.dead.{id}")).await.json();
        assert!(receipt["detail"].as_str().unwrap().contains("needs one endpoint"), "{receipt}");
    }
    eventually("nothing to be sent", async || (receiver.connections() == 0).then_some(())).await;
    let wrong = mistakes("[replies]\nkeys = [\"plain:x\"]\n");
    assert!(wrong.contains("gateway.public_url"), "{wrong}");
}
