//! The state of a task, asked for, listed, followed, and called off.

use std::collections::BTreeSet;

use futures_util::StreamExt;
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use super::{OTHER, Office, SHOP};
use crate::harness::{request, within};

#[tokio::test]
async fn another_clients_task_is_as_if_it_were_not_there() {
    let office = Office::open().await;
    office.delegate("t-1", json!({})).await.assert_status(202);
    for (method, path) in [("GET", "/tasks/t-1"), ("DELETE", "/tasks/t-1"), ("GET", "/tasks/t-1/events")] {
        let theirs = request(method, &office.hookbridge.url(path), &[OTHER], "").await;
        theirs.assert_status(404);
        let none = request(method, &office.hookbridge.url(&path.replace("t-1", "t-9")), &[OTHER], "").await;
        assert_eq!(theirs.body, none.body);
    }
    let listed = request("GET", &office.hookbridge.url("/tasks"), &[OTHER], "").await;
    assert_eq!(listed.json(), json!({"tasks": []}));
    for odd in ["/tasks/a.b", "/tasks/%3E", "/tasks/*", "/tasks/%ff"] {
        office.get(odd).await.assert_status(404);
    }
}

#[tokio::test]
async fn a_list_has_every_task_once_however_small_its_pages_are() {
    let office = Office::open().await;
    let all: BTreeSet<String> = (0..23).map(|number| format!("t-{number}")).collect();
    for task in &all {
        office.delegate(task, json!({})).await.assert_status(202);
    }
    for task in ["t-3", "t-7"] {
        office.say("planner", &format!("u-{task}"), json!({"task_id": task, "status": "failed"})).await;
        office.becomes(task, "failed").await;
    }
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = office.get(&format!("/tasks?limit=5{cursor}")).await.json();
        let tasks = page["tasks"].as_array().unwrap();
        assert!(tasks.len() <= 5);
        found.extend(tasks.iter().map(|task| task["task_id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!((found.len(), found.into_iter().collect::<BTreeSet<_>>()), (23, all));
    let failed = office.get("/tasks?status=failed&agent=planner").await.json();
    let ids: BTreeSet<_> = failed["tasks"].as_array().unwrap().iter().map(|task| task["task_id"].as_str()).collect();
    assert_eq!(ids, [Some("t-3"), Some("t-7")].into());
    assert_eq!(office.get("/tasks?agent=writer").await.json(), json!({"tasks": []}));
    office.get("/tasks?status=done").await.assert_status(422);
}

/// Reads events of a task until so many have come.
async fn follow(office: &Office, last: Option<&str>, count: usize) -> Vec<(String, Value)> {
    let mut asking = http::Request::get(office.hookbridge.url("/tasks/t-1/events")).header(SHOP.0, SHOP.1);
    if let Some(last) = last {
        asking = asking.header("last-event-id", last);
    }
    let client = Client::builder(TokioExecutor::new()).build_http::<http_body_util::Empty<bytes::Bytes>>();
    let asking = client.request(asking.body(http_body_util::Empty::new()).unwrap());
    let answer = within("the stream", asking).await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let (mut body, mut text) = (answer.into_body().into_data_stream(), String::new());
    while text.matches("\n\n").count() < count {
        let Some(piece) = within("an event", body.next()).await else { break };
        text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
    }
    let event = |event: &str| {
        let line = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
        (line("id: "), serde_json::from_str(&line("data: ")).unwrap())
    };
    text.split_terminator("\n\n").map(event).collect()
}

#[tokio::test]
async fn a_task_can_be_followed_and_what_was_missed_comes_first() {
    let office = Office::open().await;
    office.delegate("t-1", json!({})).await.assert_status(202);
    let (seen, ()) = tokio::join!(follow(&office, None, 3), async {
        office.say("planner", "u-1", json!({"task_id": "t-1", "status": "working", "message": "half"})).await;
        office.becomes("t-1", "working").await;
        office.say("planner", "u-2", json!({"task_id": "t-1", "status": "completed", "result": 7})).await;
    });
    let states: Vec<_> = seen.iter().map(|(_, data)| data["status"].as_str().unwrap()).collect();
    assert_eq!(states, ["submitted", "working", "completed"]);
    assert_eq!(seen[2].1["result"], 7);
    // The stream ends with the task, and goes on where it was left.
    let rest = follow(&office, Some(&seen[0].0), 100).await;
    assert_eq!(rest.iter().map(|(id, _)| id).collect::<Vec<_>>(), [&seen[1].0, &seen[2].0]);
    assert!(follow(&office, Some(&seen[2].0), 1).await.is_empty());
    let wrong = [SHOP, ("last-event-id", "x")];
    request("GET", &office.hookbridge.url("/tasks/t-1/events"), &wrong, "").await.assert_status(422);
}

#[tokio::test]
async fn those_who_follow_are_bounded_in_number_and_let_go_when_the_gateway_stops() {
    let office = Office::open_with("[tasks]\nmax_streams = 1\n").await;
    office.delegate("t-1", json!({})).await.assert_status(202);
    let client = Client::builder(TokioExecutor::new()).build_http::<http_body_util::Empty<bytes::Bytes>>();
    let asking = http::Request::get(office.hookbridge.url("/tasks/t-1/events")).header(SHOP.0, SHOP.1);
    let first = within("the stream", client.request(asking.body(http_body_util::Empty::new()).unwrap())).await.unwrap();
    let second = office.get("/tasks/t-1/events").await;
    assert!(!second.assert_status(429).header("retry-after").is_empty());
    office.hookbridge.stop().await.unwrap();
    within("the end of the stream", first.into_body().collect()).await.unwrap();
}

#[tokio::test]
async fn a_task_that_is_called_off_is_canceled_and_its_agent_is_told() {
    let mut office = Office::open().await;
    office.delegate("t-1", json!({})).await.assert_status(202);
    let mut told = office.nats.listen("tasks.planner.t-1.cancel").await;
    let delete = || async { request("DELETE", &office.hookbridge.url("/tasks/t-1"), &[SHOP], "").await };
    let canceled = delete().await;
    assert_eq!(canceled.assert_status(200).json()["status"], "canceled");
    let message = within("the agent to be told", told.next()).await.unwrap();
    assert_eq!(
        serde_json::from_slice::<Value>(&message.payload).unwrap(),
        json!({"task_id": "t-1", "status": "canceled", "cause": "client"})
    );
    // Again it is the same.
    assert_eq!(delete().await.assert_status(200).json()["status"], "canceled");
    assert_eq!(office.told().await["status"], "canceled");
    office.say("planner", "u-1", json!({"task_id": "t-1", "status": "completed"})).await;
    assert_eq!(office.receipt("dead", "u-1").await["detail"], "task `t-1` is canceled and cannot become completed");
    // What an agent answers when it is told is nobody's mistake.
    office.say("planner", "u-0", json!({"task_id": "t-1", "status": "canceled"})).await;
    assert_eq!(office.receipt("cancelled", "u-0").await["reason"], "superseded");
    // What has ended is not called off.
    office.delegate("t-2", json!({"callback_on": []})).await.assert_status(202);
    office.say("planner", "u-2", json!({"task_id": "t-2", "status": "completed"})).await;
    office.becomes("t-2", "completed").await;
    request("DELETE", &office.hookbridge.url("/tasks/t-2"), &[SHOP], "").await.assert_status(409);
}

#[tokio::test]
async fn the_state_of_an_ended_task_is_forgotten_in_time_and_an_open_one_is_not() {
    let office = Office::open_with("[tasks]\nretention = \"1m\"\n").await;
    office.delegate("t-1", json!({})).await.assert_status(202);
    office.delegate("t-2", json!({})).await.assert_status(202);
    office.say("planner", "u-1", json!({"task_id": "t-1", "status": "completed"})).await;
    office.becomes("t-1", "completed").await;
    let bucket = office.nats.jetstream().get_stream("KV_hookbridge_tasks").await.unwrap();
    let ttl = async |task: &str| {
        let kept = bucket.direct_get_last_for_subject(format!("$KV.hookbridge_tasks.{task}")).await.unwrap();
        kept.headers.get("Nats-TTL").map(|ttl| ttl.to_string())
    };
    assert_eq!(ttl("t-1").await.as_deref(), Some("60s"));
    assert_eq!(ttl("t-2").await, None);
}
