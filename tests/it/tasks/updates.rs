//! What an agent says moves the task, or is refused with a reason.

use serde_json::json;

use super::{Office, hangs};
use crate::harness::Reply;

#[tokio::test]
async fn an_update_that_must_not_be_is_refused_with_the_reason_and_changes_nothing() {
    let mut office = Office::open().await;
    office.delegate("t-1", json!({})).await.assert_status(202);
    for (id, update, reason, detail) in [
        ("w-1", json!({"task_id": "t-9", "status": "working"}), "unroutable", "there is no task `t-9`"),
        ("w-2", json!({"task_id": "t-1"}), "malformed", "needs `status`"),
        ("w-3", json!({"task_id": "t-1", "status": "done"}), "malformed", "must be one of"),
        ("w-4", json!({"task_id": "t-1", "status": "submitted"}), "illegal-transition", "cannot become submitted"),
        ("w-5", json!({"task_id": "../x", "status": "working"}), "unroutable", "there is no task"),
    ] {
        office.say("planner", id, update).await;
        let receipt = office.receipt("dead", id).await;
        assert_eq!(receipt["reason"], reason, "{id}: {receipt}");
        assert!(receipt["detail"].as_str().unwrap().contains(detail), "{receipt}");
    }
    office.say("writer", "w-6", json!({"task_id": "t-1", "status": "completed"})).await;
    let receipt = office.nats.message("RECEIPTS", "receipts.writer.dead.w-6").await.json();
    assert_eq!(receipt["reason"], "forbidden");
    assert_eq!(office.get("/tasks/t-1").await.json()["status"], "submitted");

    office.say("planner", "u-1", json!({"task_id": "t-1", "status": "failed", "error": "no"})).await;
    assert_eq!(office.told().await["error"], "no");
    office.say("planner", "u-2", json!({"task_id": "t-1", "status": "completed"})).await;
    let receipt = office.receipt("dead", "u-2").await;
    assert_eq!(receipt["detail"], "task `t-1` is failed and cannot become completed");
    assert_eq!(office.receiver.unread(), 0);
}

#[tokio::test]
async fn a_client_hears_of_the_states_that_it_asked_for_and_no_other() {
    let mut office = Office::open().await;
    office.delegate("t-1", json!({"callback_on": ["input-required", "completed"]})).await.assert_status(202);
    for (id, status) in [("u-1", "working"), ("u-2", "input-required"), ("u-3", "working"), ("u-4", "completed")] {
        office.say("planner", id, json!({"task_id": "t-1", "status": status})).await;
        office.receipt("delivered", id).await;
    }
    assert_eq!(office.told().await["status"], "input-required");
    assert_eq!(office.told().await["status"], "completed");
    assert_eq!(office.receiver.unread(), 0);
    assert_eq!(office.receipt("delivered", "u-3").await["reason"], "no-callback");
}

#[tokio::test]
async fn everybody_on_nats_hears_of_each_move() {
    let office = Office::open().await;
    let mut heard = office.nats.listen("tasks.*.*.state").await;
    office.delegate("t-1", json!({})).await.assert_status(202);
    for (id, status) in [("u-1", "working"), ("u-2", "completed")] {
        office.say("planner", id, json!({"task_id": "t-1", "status": status})).await;
        let message = crate::harness::within("a state", futures_util::StreamExt::next(&mut heard)).await.unwrap();
        assert_eq!(message.subject.as_str(), "tasks.planner.t-1.state");
        let told: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        assert_eq!(
            (&told["task_id"], &told["agent"], &told["status"]),
            (&json!("t-1"), &json!("planner"), &json!(status))
        );
    }
}

#[tokio::test]
async fn updates_in_quick_succession_are_told_in_their_order() {
    let mut office = Office::open().await;
    for number in 0..20 {
        let task = format!("t-{number}");
        office.delegate(&task, json!({})).await.assert_status(202);
    }
    for number in 0..20 {
        for (step, status) in ["working", "input-required", "working", "completed"].into_iter().enumerate() {
            let update = json!({"task_id": format!("t-{number}"), "status": status, "step": step});
            office.say("planner", &format!("u-{number}-{step}"), update).await;
        }
    }
    let mut last = std::collections::HashMap::<String, i64>::new();
    while last.values().filter(|step| **step == 3).count() < 20 {
        let told = office.told().await;
        let (task, step) = (told["task_id"].as_str().unwrap().to_owned(), told["step"].as_i64().unwrap());
        let before = last.insert(task, step).unwrap_or(-1);
        assert!(before < step, "{told} after {before}");
    }
}

#[tokio::test]
async fn the_end_does_not_wait_for_a_callback_that_waits_and_takes_its_place() {
    let mut office = Office::open_with("[egress]\nretry = [\"1h\"]\n").await;
    office.delegate("t-1", json!({})).await.assert_status(202);
    office.receiver.then(Reply::Status(500));
    office.say("planner", "u-1", json!({"task_id": "t-1", "status": "working"})).await;
    office.receipt("retrying", "u-1").await;
    office.say("planner", "u-2", json!({"task_id": "t-1", "status": "completed"})).await;

    assert_eq!(office.told().await["status"], "working");
    assert_eq!(office.told().await["status"], "completed");
    let receipt = office.receipt("cancelled", "u-1").await;
    assert_eq!((receipt["reason"].as_str(), receipt["attempt"].as_u64()), (Some("superseded"), Some(1)));
    office.receipt("delivered", "u-2").await;
    assert_eq!(office.receiver.unread(), 0, "the older one was sent again");
}

#[tokio::test]
async fn the_end_does_not_overtake_a_callback_that_is_on_its_way() {
    let mut office = Office::open().await;
    office.delegate("t-1", json!({})).await.assert_status(202);
    office.receiver.then(Reply::Hold);
    office.say("planner", "u-1", json!({"task_id": "t-1", "status": "working"})).await;
    assert_eq!(office.told().await["status"], "working");
    office.say("planner", "u-2", json!({"task_id": "t-1", "status": "completed"})).await;
    // The state moves on, and everybody can ask for it.
    office.becomes("t-1", "completed").await;
    assert_eq!(office.receiver.unread(), 0, "it overtook");
    office.receiver.release();
    assert_eq!(office.told().await["status"], "completed");
    office.receipt("delivered", "u-1").await;
    office.receipt("delivered", "u-2").await;
}

#[tokio::test]
async fn a_receiver_that_hangs_takes_no_more_than_one_place_for_each_task() {
    let mut office = Office::open_with("[egress]\ntimeout = \"3s\"\nretry = [\"1h\"]\n").await;
    office.delegate("t-1", json!({})).await.assert_status(202);
    office.delegate("t-2", json!({"callback_on": []})).await.assert_status(202);
    hangs(&office.receiver);
    for number in 0..30 {
        let update = json!({"task_id": "t-1", "status": "working", "n": number});
        office.say("planner", &format!("u-{number}"), update).await;
    }
    office.say("planner", "u-end", json!({"task_id": "t-1", "status": "completed"})).await;
    assert_eq!(office.told().await["n"], 0);
    office.becomes("t-1", "completed").await;
    // Others are not held up.
    office.say("planner", "o-1", json!({"task_id": "t-2", "status": "completed"})).await;
    office.becomes("t-2", "completed").await;
    office.receiver.otherwise(Reply::Status(204));
    let end = office.told().await;
    assert_eq!(end["status"], "completed", "{end}");
    office.receipt("delivered", "u-end").await;
    assert_eq!(office.receipt("cancelled", "u-7").await["reason"], "superseded");
}

#[tokio::test]
async fn a_flood_of_updates_of_one_task_holds_up_no_other() {
    let office = Office::open_with("[egress]\ntimeout = \"3s\"\nconcurrency = 48\nretry = [\"1h\"]\n").await;
    office.delegate("t-1", json!({})).await.assert_status(202);
    office.delegate("t-2", json!({"callback_on": []})).await.assert_status(202);
    hangs(&office.receiver);
    for number in 0..100 {
        let update = json!({"task_id": "t-1", "status": "working", "n": number});
        office.say("planner", &format!("u-{number}"), update).await;
    }
    office.say("planner", "o-1", json!({"task_id": "t-2", "status": "completed"})).await;
    office.becomes("t-2", "completed").await;
    office.say("planner", "u-end", json!({"task_id": "t-1", "status": "completed"})).await;
    office.becomes("t-1", "completed").await;
    office.receiver.otherwise(Reply::Status(204));
    office.receipt("delivered", "u-end").await;
    // Each has come to an end, also those that were put off.
    crate::harness::eventually("a receipt of every update", async || {
        let told = office.nats.subjects("RECEIPTS").await;
        let ended = |id: &str| {
            ["delivered", "cancelled"].into_iter().any(|end| told.contains(&format!("receipts.planner.{end}.{id}")))
        };
        (0..100).all(|number| ended(&format!("u-{number}"))).then_some(())
    })
    .await;
    assert_eq!(office.nats.count("DEAD").await, 0);
}

#[tokio::test]
async fn an_end_that_was_said_before_a_later_word_still_ends_the_task() {
    let mut office = Office::open().await;
    office.delegate("t-1", json!({})).await.assert_status(202);
    // Whatever order they are applied in: the end stands, and it is told last.
    for (id, status) in [("u-1", "failed"), ("u-2", "working")] {
        office.say("planner", id, json!({"task_id": "t-1", "status": status})).await;
    }
    office.becomes("t-1", "failed").await;
    while office.told().await["status"] != "failed" {}
    office.receipt("delivered", "u-1").await;
    assert_eq!(office.receiver.unread(), 0);
}

#[tokio::test]
async fn a_client_that_was_taken_out_of_the_configuration_is_told_nothing_more() {
    let office = Office::open().await;
    let task = json!({"task_id": "t-1", "callback_url": office.receiver.url("/cb")}).to_string();
    office.hookbridge.post("/agents/planner/tasks", &[super::OTHER], task).await.assert_status(202);
    let Office { nats, receiver, hookbridge } = office;
    hookbridge.stop().await.unwrap();
    let text = super::shop(&receiver).replace("[clients.other]", "[clients.another]");
    let hookbridge = crate::harness::Hookbridge::start(&nats, &text).await;
    let mut office = Office { nats, receiver, hookbridge };
    office.say("planner", "u-1", json!({"task_id": "t-1", "status": "completed"})).await;
    assert_eq!(office.receipt("dead", "u-1").await["reason"], "forbidden");
    assert_eq!(office.receiver.unread(), 0);
}

#[tokio::test]
async fn a_key_that_occurs_twice_is_refused() {
    let office = Office::open().await;
    office.delegate("t-1", json!({})).await.assert_status(202);
    let twice = r#"{"task_id":"t-1","status":"failed","status":"completed"}"#;
    office.nats.publish("outbox.planner", &[("Nats-Msg-Id", "u-1")], twice).await;
    assert_eq!(office.receipt("dead", "u-1").await["reason"], "malformed");
    let twice = r#"{"task_id":"t-2","task_id":"t-3"}"#;
    office.hookbridge.post("/agents/planner/tasks", &[super::SHOP], twice).await.assert_status(422);
}

#[tokio::test]
async fn a_duplicate_result_is_told_once() {
    let mut office = Office::open().await;
    office.delegate("t-1", json!({})).await.assert_status(202);
    let result = json!({"task_id": "t-1", "status": "completed", "result": 1});
    office.say("planner", "u-1", result.clone()).await;
    assert_eq!(office.told().await["result"], 1);
    // The same message under the same id is none to NATS; under another one it is a second result.
    office.say("planner", "u-1", result.clone()).await;
    office.say("planner", "u-2", result).await;
    assert_eq!(office.receipt("dead", "u-2").await["reason"], "illegal-transition");
    assert_eq!(office.receiver.unread(), 0);
}

#[tokio::test]
async fn two_workers_that_race_leave_one_result() {
    let mut office = Office::open().await;
    office.delegate("t-1", json!({})).await.assert_status(202);
    for number in 0..10 {
        let update = json!({"task_id": "t-1", "status": "completed", "result": number});
        office.say("planner", &format!("u-{number}"), update).await;
    }
    let told = office.told().await;
    for number in 0..10 {
        let outcome = if told["result"] == number { "delivered" } else { "dead" };
        office.receipt(outcome, &format!("u-{number}")).await;
    }
    assert_eq!(office.get("/tasks/t-1").await.json()["result"], told["result"]);
    assert_eq!(office.receiver.unread(), 0);
}

#[tokio::test]
async fn a_result_of_5_mb_is_delivered_and_shown_whole() {
    let nats = crate::harness::Nats::start_with("max_payload: 8MB").await;
    let receiver = crate::harness::Receiver::start().await;
    let hookbridge = crate::harness::Hookbridge::start(&nats, &super::shop(&receiver)).await;
    let mut office = Office { nats, receiver, hookbridge };
    office.delegate("t-1", json!({})).await.assert_status(202);
    let result = "x".repeat(5_000_000);
    office.say("planner", "u-1", json!({"task_id": "t-1", "status": "completed", "result": result})).await;
    assert_eq!(office.told().await["result"].as_str().unwrap().len(), result.len());
    assert_eq!(office.becomes("t-1", "completed").await["result"].as_str().unwrap().len(), result.len());
    let listed = office.get("/tasks").await;
    assert!(listed.body.len() < 2000 && listed.json()["tasks"][0]["incomplete"] == true);
}

#[tokio::test]
async fn a_dead_callback_can_be_replayed_and_the_state_stays_as_it_is() {
    let mut office = Office::open_with("[egress]\nretry = []\n").await;
    office.delegate("t-1", json!({})).await.assert_status(202);
    office.receiver.then(Reply::Status(500));
    office.say("planner", "u-1", json!({"task_id": "t-1", "status": "completed"})).await;
    office.told().await;
    office.receipt("dead", "u-1").await;
    let config = crate::harness::Configuration::new(&super::shop(&office.receiver));
    let arguments = ["dead", "replay", "--sequence", "1", "--nats", &office.nats.url()];
    crate::harness::run(&mut config.hookbridge(&arguments)).await.assert_code(0);
    let again = office.receiver.next().await;
    assert_eq!(
        (again.header("webhook-id"), &again.body[..]),
        ("u-1", &br#"{"status":"completed","task_id":"t-1"}"#[..])
    );
}

#[tokio::test]
async fn a_client_that_speaks_a2a_is_told_in_its_own_shape() {
    let mut office = Office::open().await;
    let url = office.receiver.url("/a2a");
    let nested = json!({"pushNotificationConfig": {
        "url": url, "token": "tok", "authentication": {"schemes": ["Bearer"], "credentials": "cred"}
    }});
    let flat = json!({"url": url, "token": "tok", "authentication": {"scheme": "Bearer", "credentials": "cred"}});
    for (task, configuration) in [("t-0", nested), ("t-1", json!({"taskPushNotificationConfig": flat}))] {
        let body = json!({"task_id": task, "message": {"contextId": "c-1"}, "configuration": configuration});
        let taken = office.hookbridge.post("/agents/planner/tasks", &[super::SHOP], body.to_string()).await;
        taken.assert_status(202);
        let said = json!({"task_id": task, "status": "working", "message": "half", "progress": 0.5});
        office.say("planner", &format!("u-{task}-1"), said).await;
        let told = office.receiver.next().await;
        assert_eq!((told.path.as_str(), told.header("content-type")), ("/a2a", "application/a2a+json"));
        for (name, value) in
            [("x-a2a-notification-token", "tok"), ("a2a-notification-token", "tok"), ("authorization", "Bearer cred")]
        {
            assert_eq!(told.header(name), value, "{name}");
        }
        assert!(told.header("webhook-signature").starts_with("v1,"));
        let update: serde_json::Value = serde_json::from_slice(&told.body).unwrap();
        assert_eq!(update.as_object().unwrap().keys().collect::<Vec<_>>(), ["statusUpdate"]);
        let update = &update["statusUpdate"];
        assert_eq!((&update["taskId"], &update["contextId"]), (&json!(task), &json!("c-1")));
        assert_eq!(update["status"]["state"], "TASK_STATE_WORKING");
        office
            .say("planner", &format!("u-{task}-2"), json!({"task_id": task, "status": "completed", "result": {"x": 1}}))
            .await;
        let ended = office.told().await;
        assert_eq!(ended["task"]["status"]["state"], "TASK_STATE_COMPLETED");
        assert_eq!(ended["task"]["artifacts"][0]["parts"][0]["data"], json!({"x": 1}));
    }
    let shown = office.get("/tasks/t-1").await.text();
    assert!(!shown.contains("cred") && !shown.contains("tok\""), "{shown}");
}
