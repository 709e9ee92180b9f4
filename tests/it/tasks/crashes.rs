//! Deadlines and crashes: whatever was restarted in between, a task ends, and its end is told.

use hookbridge::app::Roles;
use serde_json::json;

use super::{Office, shop};
use crate::harness::{Configuration, Hookbridge, Nats, Receiver};

#[tokio::test]
async fn a_task_without_a_result_fails_at_its_deadline() {
    let mut office = Office::open().await;
    office.delegate("t-1", json!({"deadline": "1s"})).await.assert_status(202);
    office.say("planner", "u-1", json!({"task_id": "t-1", "status": "working"})).await;
    assert_eq!(office.told().await["status"], "working");
    let told = office.told().await;
    assert_eq!((&told["status"], &told["error"]["code"]), (&json!("failed"), &json!("deadline-exceeded")));
    let task = office.becomes("t-1", "failed").await;
    assert!(task["error"]["message"].as_str().unwrap().contains("by the deadline"), "{task}");
    let called_off = office.nats.message("TASKS", "tasks.planner.t-1.cancel").await.json();
    assert_eq!(called_off["cause"], "deadline");
    // A late result is refused.
    office.say("planner", "u-2", json!({"task_id": "t-1", "status": "completed"})).await;
    office.receipt("dead", "u-2").await;
}

#[tokio::test]
async fn a_deadline_that_passes_after_the_end_changes_nothing() {
    let mut office = Office::open().await;
    office.delegate("t-1", json!({"deadline": "1s"})).await.assert_status(202);
    office.say("planner", "u-1", json!({"task_id": "t-1", "status": "completed"})).await;
    assert_eq!(office.told().await["status"], "completed");
    crate::harness::eventually("the deadline to pass", async || (office.nats.count("RETRY").await == 0).then_some(()))
        .await;
    assert_eq!(office.get("/tasks/t-1").await.json()["status"], "completed");
    assert_eq!(office.receiver.unread(), 0);
    assert_eq!(office.nats.count("DEAD").await, 0);
}

#[tokio::test]
async fn a_deadline_that_passes_while_everything_is_down_is_kept_afterwards() {
    let (mut nats, receiver) = (Nats::start().await, Receiver::start().await);
    let text = shop(&receiver);
    let hookbridge = Hookbridge::start(&nats, &text).await;
    let office = Office { nats, receiver, hookbridge };
    office.delegate("t-1", json!({"deadline": "1s"})).await.assert_status(202);
    let Office { nats: server, receiver, hookbridge } = office;
    nats = server;
    hookbridge.stop().await.unwrap();
    let due = std::time::Instant::now() + std::time::Duration::from_millis(1100);
    nats.kill();
    tokio::time::sleep_until(due.into()).await;
    nats.run_again().await;
    let hookbridge = Hookbridge::start(&nats, &text).await;
    let mut office = Office { nats, receiver, hookbridge };
    assert_eq!(office.told().await["error"]["code"], "deadline-exceeded");
}

#[tokio::test]
async fn a_deadline_that_nobody_set_is_no_deadline() {
    let office = Office::open().await;
    office.delegate("t-1", json!({"deadline": "1h"})).await.assert_status(202);
    let deadline = office.get("/tasks/t-1").await.json()["deadline"].as_str().unwrap().to_owned();
    for (subject, due) in [
        ("retry.due.t_planner.t-1", deadline.as_str()),
        ("retry.due.t_planner.t-1", "2020-01-01T00:00:00.000Z"),
        ("retry.due.t_writer.t-1", deadline.as_str()),
    ] {
        let headers = [("Hookbridge-Task-Id", "t-1"), ("Hookbridge-Task-Deadline", due)];
        office.nats.publish(subject, &headers, "").await;
    }
    crate::harness::eventually("the forgeries to be refused", async || {
        (office.hookbridge.metric("hookbridge_egress_retries_forged_total").await == 2.0).then_some(())
    })
    .await;
    assert_eq!(office.get("/tasks/t-1").await.json()["status"], "submitted");
}

/// Couriers that share the work never let a step overtake another, also while one is on its way elsewhere.
#[tokio::test]
async fn several_couriers_tell_each_task_in_its_order() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let text = shop(&receiver) + "[egress]\nretry = [\"100ms\", \"100ms\", \"100ms\", \"100ms\"]\nbreaker = \"none\"\n";
    let gateway = Hookbridge::start_as(&nats, Roles::Gateway, &text).await;
    let configuration = Configuration::new(&text);
    let office = Office { nats, receiver: Receiver::start().await, hookbridge: gateway };
    let couriers: Vec<_> = (0..3).map(|_| configuration.courier(&office.nats)).collect();
    const TASKS: usize = 40;
    const STEPS: usize = 5;
    for number in 0..TASKS {
        let task = json!({"task_id": format!("t-{number}"), "callback_url": receiver.url("/cb")});
        office.hookbridge.post("/agents/planner/tasks", &[super::SHOP], task.to_string()).await.assert_status(202);
    }
    // Every fifth attempt fails, and comes again while later steps are told.
    for number in 0..TASKS * STEPS {
        receiver.then(crate::harness::Reply::Status(if number % 5 == 0 { 500 } else { 204 }));
    }
    for step in 0..STEPS {
        for number in 0..TASKS {
            let status = if step + 1 == STEPS { "completed" } else { "working" };
            let update = json!({"task_id": format!("t-{number}"), "status": status, "step": step});
            office.say("planner", &format!("u-{number}-{step}"), update).await;
        }
    }
    let mut last = std::collections::HashMap::<String, i64>::new();
    while last.values().filter(|step| **step == STEPS as i64 - 1).count() < TASKS {
        let told: serde_json::Value = serde_json::from_slice(&receiver.next().await.body).unwrap();
        let (task, step) = (told["task_id"].as_str().unwrap().to_owned(), told["step"].as_i64().unwrap());
        // The same one comes again where it failed.
        let before = last.insert(task, step).unwrap_or(-1);
        assert!(before <= step, "{told} after {before}");
    }
    for number in 0..TASKS {
        office.receipt("delivered", &format!("u-{number}-{}", STEPS - 1)).await;
    }
    assert_eq!(office.nats.count("DEAD").await, 0);
    for courier in couriers {
        courier.signal("TERM").await;
        courier.ended().await.assert_code(0);
    }
}

/// A courier that dies at any moment loses no transition and no callback.
#[tokio::test]
async fn couriers_that_are_killed_leave_each_task_with_its_end_told() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let text = shop(&receiver);
    let gateway = Hookbridge::start_as(&nats, Roles::Gateway, &text).await;
    let configuration = Configuration::new(&text);
    let office = Office { nats, receiver: Receiver::start().await, hookbridge: gateway };
    let mut courier = configuration.courier(&office.nats);
    const TASKS: usize = 60;
    for number in 0..TASKS {
        let task = json!({"task_id": format!("t-{number}"), "callback_url": receiver.url("/cb")});
        office.hookbridge.post("/agents/planner/tasks", &[super::SHOP], task.to_string()).await.assert_status(202);
    }
    let mut states = office.nats.listen("tasks.*.*.state").await;
    for number in 0..TASKS {
        for status in ["working", "completed"] {
            let update = json!({"task_id": format!("t-{number}"), "status": status});
            office.say("planner", &format!("u-{number}-{status}"), update).await;
        }
        if number % 12 == 11 {
            // In the middle of whatever it does: right after a move was written.
            crate::harness::within("a move", futures_util::StreamExt::next(&mut states)).await;
            courier.kill().await;
            courier = configuration.courier(&office.nats);
        }
    }
    let mut ends = std::collections::BTreeSet::new();
    let mut ended_before = std::collections::BTreeSet::new();
    while ends.len() < TASKS {
        let told: serde_json::Value = serde_json::from_slice(&receiver.next().await.body).unwrap();
        let task = told["task_id"].as_str().unwrap().to_owned();
        if told["status"] == "completed" {
            ends.insert(task);
        } else {
            assert!(!ends.contains(&task), "{told} after its end");
            ended_before.insert(task);
        }
    }
    for number in 0..TASKS {
        office.becomes(&format!("t-{number}"), "completed").await;
        office.receipt("delivered", &format!("u-{number}-completed")).await;
    }
    assert_eq!(office.nats.count("DEAD").await, 0);
    courier.signal("TERM").await;
    courier.ended().await.assert_code(0);
}
