//! Messages whose header block the NATS client library cannot read harm nobody but their sender.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use futures_util::TryStreamExt;
use hookbridge::app::Roles;
use serde_json::json;

use crate::harness::{Configuration, Hookbridge, Nats, Receiver, Reply, eventually, request, run, within};
use crate::tasks::{Office, SHOP};

/// Header blocks that nats-server stores and the client library does not read.
const BLOCKS: [&[u8]; 12] = [
    b"NATS/2.0\r\nA: b\r\n\r\n",
    b"nats/1.0\r\nA: b\r\n\r\n",
    b"NATS/1.1\r\nA: b\r\n\r\n",
    b"FOO\r\n\r\n",
    b"\r\n",
    b"NATS/1\r\n\r\n",
    b"A: b\r\n\r\n",
    b"NATS/1.0\r\nno colon\r\n\r\n",
    b"NATS/1.0\r\nA b: c\r\n\r\n",
    b"NATS/1.0\r\nA: b\rc\r\n\r\n",
    b"NATS/1.0\r\nA: \xff\r\n\r\n",
    b"NATS/1.0\r\n folded: first\r\n\r\n",
];

/// Header blocks that the client library reads as a status of the server, or reads only where nothing is added to them.
/// nats-server takes a status away before it stores a message, but not from a first line that ends unusually.
const STATUSES: [&[u8]; 10] = [
    b"NATS/1.0 404 No Messages\nA: b\n\n",
    b"NATS/1.0 408 Request Timeout\nNats-Pending-Messages: 1\n\n",
    b"NATS/1.0 409 Consumer Deleted\n\n",
    b"NATS/1.0 100 Idle Heartbeat\nNats-Last-Consumer: 99\n\n",
    b"NATS/1.0 100 FlowControl Request\n\n",
    b"NATS/1.0 503\n\n",
    b"NATS/1.0 404 No Messages",
    b"NATS/1.0 503",
    b"NATS/1.0\r\n",
    b"NATS/1.0 404 No Messages\r\n\r\n",
];

/// What comes before the ack wait of 30 s was not left to it.
const BEFORE_THE_ACK_WAIT: Duration = Duration::from_secs(25);

fn endpoint(receiver: &Receiver) -> String {
    format!("[endpoints.crm]\nurl = \"{}\"\nsignatures = []\n", receiver.url("/"))
}

fn good(number: usize) -> String {
    format!(r#"{{"endpoint":"crm","id":"good-{number}","payload":{number}}}"#)
}

/// Waits until every good message was delivered, and tells how often each was.
async fn delivered(receiver: &mut Receiver, count: usize) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    let every = async {
        while all.len() < count {
            *all.entry(receiver.next().await.header("webhook-id").to_owned()).or_default() += 1;
        }
    };
    let in_time = tokio::time::timeout(BEFORE_THE_ACK_WAIT, every).await.is_ok();
    assert!(in_time, "{} of {count} were delivered before the ack wait", all.len());
    all
}

/// Waits until the courier's durable has nothing in flight and nothing left.
async fn settled(nats: &Nats) {
    eventually("everything to be acked", async || {
        let mut durable: PullConsumer = nats.jetstream().get_consumer_from_stream("courier", "OUTBOX").await.ok()?;
        let info = durable.info().await.ok()?;
        (info.num_ack_pending == 0 && info.num_pending == 0).then_some(())
    })
    .await;
}

/// How many messages a stream has on a subject.
async fn stored(nats: &Nats, stream: &str, subject: &str) -> usize {
    let stream = nats.jetstream().get_stream(stream).await.unwrap();
    let subjects = stream.info_with_subjects(subject).await.unwrap();
    subjects.try_fold(0, |sum, (_, count)| async move { Ok(sum + count) }).await.unwrap()
}

#[tokio::test]
async fn every_kind_is_dead_lettered_once() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let hookbridge = Hookbridge::start(&nats, &endpoint(&receiver)).await;

    nats.publish_blocks(BLOCKS.map(|block| ("outbox.a", block, "kept"))).await;
    nats.publish("outbox.a", &[], good(0)).await;

    assert_eq!(delivered(&mut receiver, 1).await["good-0"], 1);
    for letter in nats.messages("DEAD", "dead.a.*", BLOCKS.len()).await {
        assert_eq!((letter.header("Hookbridge-Reason"), &letter.payload[..]), (Some("malformed"), &b"kept"[..]));
    }
    assert_eq!(nats.messages("RECEIPTS", "receipts.a.dead.*", BLOCKS.len()).await.len(), BLOCKS.len());
    settled(&nats).await;
    assert_eq!(stored(&nats, "DEAD", "dead.a.*").await, BLOCKS.len());
    assert_eq!(stored(&nats, "OUTBOX", "outbox.>").await, 1);
    let counted = hookbridge.metric("hookbridge_egress_unreadable_total{stream=\"OUTBOX\"}").await;
    assert_eq!(counted, BLOCKS.len() as f64);
}

#[tokio::test]
async fn what_looks_like_a_status_is_delivered_and_retried_like_any_message() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let text = format!("{}\n[egress]\nretry = [\"1s\"]", endpoint(&receiver));
    let hookbridge = Hookbridge::start(&nats, &text).await;
    STATUSES.iter().for_each(|_| receiver.then(Reply::Status(503)));
    let bodies: Vec<String> = (0..STATUSES.len()).map(good).collect();
    let messages = STATUSES.iter().zip(&bodies).map(|(block, body)| ("outbox.a", *block, body.as_str()));

    nats.publish_blocks(messages).await;

    let mut attempts = BTreeMap::<String, usize>::new();
    for _ in 0..2 * STATUSES.len() {
        *attempts.entry(receiver.next().await.header("webhook-id").to_owned()).or_default() += 1;
    }
    assert!(attempts.len() == STATUSES.len() && attempts.values().all(|times| *times == 2), "{attempts:?}");
    settled(&nats).await;
    eventually("RETRY to be empty", async || (stored(&nats, "RETRY", "retry.>").await == 0).then_some(())).await;
    assert_eq!(receiver.unread(), 0);
    assert_eq!(stored(&nats, "DEAD", "dead.>").await, 0);
    assert_eq!(hookbridge.metric("hookbridge_egress_unreadable_total{stream=\"OUTBOX\"}").await, 0.0);
}

#[tokio::test]
async fn what_looks_like_a_status_stops_neither_retries_nor_a_line() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let _hookbridge = Hookbridge::start(&nats, &(endpoint(&receiver) + "ordered = true\n")).await;
    for (number, block) in STATUSES.into_iter().enumerate() {
        let body = good(number);
        nats.publish_blocks([("retry.due.x", block, "forged"), ("outbox.a", block, body.as_str())]).await;
    }
    for number in 0..STATUSES.len() {
        assert_eq!(receiver.next().await.header("webhook-id"), format!("good-{number}"));
    }
    settled(&nats).await;
    eventually("RETRY to be empty", async || (stored(&nats, "RETRY", "retry.>").await == 0).then_some(())).await;
    assert_eq!(receiver.unread(), 0);
    assert_eq!(stored(&nats, "DEAD", "dead.>").await, 0);
}

#[tokio::test]
async fn a_record_that_looks_like_a_status_does_not_hide_those_behind_it() {
    let (nats, receiver) = (Nats::start().await, Receiver::start().await);
    let hookbridge = Hookbridge::start(&nats, &endpoint(&receiver)).await;
    let removed = "hookbridge_egress_unreadable_total{stream=\"KV_hookbridge_endpoints\"}";
    let configuration = Configuration::new(&endpoint(&receiver));
    let next = AtomicUsize::new(0);
    for (round, block) in STATUSES.into_iter().take(4).enumerate() {
        let subject = format!("$KV.hookbridge_endpoints.state.e_{round}");
        let (command, receipts) = match round % 2 {
            0 => ("pause", "receipts.a.retrying.*"),
            _ => ("resume", "receipts.a.delivered.*"),
        };
        let before = stored(&nats, "RECEIPTS", receipts).await;
        nats.publish_blocks([(subject.as_str(), block, "{}")]).await;
        // What is said about the endpoint stands behind the record.
        let mut said = configuration.hookbridge(&["endpoints", command, "crm"]);
        run(said.args(["--nats", &nats.url()])).await.assert_code(0);
        eventually("it to be heard of", async || {
            if command == "pause" {
                nats.publish("outbox.a", &[], good(next.fetch_add(1, Ordering::Relaxed))).await;
            }
            (stored(&nats, "RECEIPTS", receipts).await > before).then_some(())
        })
        .await;
        let all = async || (hookbridge.metric(removed).await == (round + 1) as f64).then_some(());
        eventually("the record to be removed", all).await;
    }
}

#[tokio::test]
async fn a_burst_holds_back_nothing_of_what_came_with_it() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let _hookbridge = Hookbridge::start(&nats, &endpoint(&receiver)).await;
    let bodies: Vec<String> = (0..200).map(good).collect();
    let burst = (0..1000).map(|number| match number % 5 {
        0 => ("outbox.b", &b""[..], bodies[number / 5].as_str()),
        _ => ("outbox.a", BLOCKS[number % BLOCKS.len()], "kept"),
    });

    nats.publish_blocks(burst).await;

    let delivered = delivered(&mut receiver, bodies.len()).await;
    assert!(delivered.values().all(|times| *times == 1), "{delivered:?}");
    settled(&nats).await;
    assert_eq!(receiver.unread(), 0);
    assert_eq!(stored(&nats, "DEAD", "dead.a.*").await, 800);
    assert_eq!(stored(&nats, "DEAD", "dead.b.*").await, 0);
}

#[tokio::test]
async fn two_couriers_write_one_dead_letter_each() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let _first = Hookbridge::start(&nats, &endpoint(&receiver)).await;
    let _second = Hookbridge::start(&nats, &endpoint(&receiver)).await;
    for number in 0..40 {
        nats.publish_blocks([("outbox.a", BLOCKS[number % 5], "kept")]).await;
        nats.publish("outbox.b", &[], good(number)).await;
    }
    // Two cannot know what the other has in hand, so some may come only after the ack wait.
    let mut seen = BTreeMap::<String, usize>::new();
    while seen.len() < 40 {
        *seen.entry(receiver.next().await.header("webhook-id").to_owned()).or_default() += 1;
    }
    settled(&nats).await;
    assert_eq!(receiver.unread(), 0);
    assert!(seen.values().all(|times| *times == 1), "{seen:?}");
    assert_eq!(stored(&nats, "DEAD", "dead.>").await, 40);
}

#[tokio::test]
async fn a_restart_of_the_server_has_no_courier_take_what_another_has_in_hand() {
    const IN_HAND: usize = 8;
    let (mut nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let configuration = Configuration::new(&endpoint(&receiver));
    let first = configuration.courier(&nats);
    first.ready().await;
    receiver.otherwise(Reply::Hold);
    for number in 0..IN_HAND {
        nats.publish("outbox.a", &[], good(number)).await;
    }
    for _ in 0..IN_HAND {
        receiver.next().await;
    }
    let _second = Hookbridge::start_as(&nats, Roles::Courier, &endpoint(&receiver)).await;

    // The server forgets who watches, and only the second comes back at once.
    first.pause().await;
    nats.kill();
    nats.run_again().await;
    receiver.otherwise(Reply::Status(204));
    // What is asked for again comes before what is new.
    nats.publish("outbox.a", &[], good(IN_HAND)).await;

    assert_eq!(receiver.next().await.header("webhook-id"), format!("good-{IN_HAND}"));
    first.go_on().await;
    (0..IN_HAND).for_each(|_| receiver.release());
    settled(&nats).await;
    assert_eq!(receiver.unread(), 0);
}

#[tokio::test]
async fn a_start_finds_what_was_there_before() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    Hookbridge::start(&nats, &endpoint(&receiver)).await.stop().await.unwrap();
    nats.publish_blocks(BLOCKS.map(|block| ("outbox.a", block, "kept"))).await;
    nats.publish_blocks(BLOCKS.map(|block| ("retry.due.x", block, "forged"))).await;
    nats.publish("outbox.a", &[], good(0)).await;

    let _hookbridge = Hookbridge::start(&nats, &endpoint(&receiver)).await;

    delivered(&mut receiver, 1).await;
    settled(&nats).await;
    assert_eq!(stored(&nats, "DEAD", "dead.>").await, BLOCKS.len());
    eventually("RETRY to be empty", async || (stored(&nats, "RETRY", "retry.>").await == 0).then_some(())).await;
}

#[tokio::test]
async fn an_ordered_endpoint_goes_on() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let _hookbridge = Hookbridge::start(&nats, &(endpoint(&receiver) + "ordered = true\n")).await;
    for (number, block) in BLOCKS.into_iter().enumerate().take(5) {
        nats.publish_blocks([("outbox.a", block, "kept")]).await;
        nats.publish("outbox.a", &[], good(number)).await;
    }
    for number in 0..5 {
        assert_eq!(receiver.next().await.header("webhook-id"), format!("good-{number}"));
    }
    settled(&nats).await;
    assert_eq!(stored(&nats, "DEAD", "dead.>").await, 5);
}

#[tokio::test]
async fn a_server_that_is_killed_again_and_again_makes_no_dead_letter() {
    let (mut nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let hookbridge = Hookbridge::start(&nats, &endpoint(&receiver)).await;
    for round in 0..4 {
        for number in 0..50 {
            let headers = [("Hookbridge-Endpoint", "crm"), ("X", "caf\u{e9}")];
            nats.publish("outbox.a", &headers, format!("{round}-{number}")).await;
        }
        receiver.next().await;
        nats.kill();
        nats.run_again().await;
        hookbridge.ready().await;
    }
    settled(&nats).await;
    assert_eq!(stored(&nats, "DEAD", "dead.>").await, 0);
    assert_eq!(stored(&nats, "OUTBOX", "outbox.>").await, 200);
    assert_eq!(hookbridge.metric("hookbridge_egress_unreadable_total{stream=\"OUTBOX\"}").await, 0.0);
}

#[tokio::test]
async fn records_of_the_bucket_stop_no_delivery() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let subject = |number: usize| format!("$KV.hookbridge_endpoints.state.e_{number}");
    let hookbridge = Hookbridge::start(&nats, &endpoint(&receiver)).await;
    let over = AtomicBool::new(false);
    let writing = async {
        let mut pace = tokio::time::interval(Duration::from_millis(100));
        let mut number = 0;
        while !over.load(Ordering::Relaxed) {
            pace.tick().await;
            nats.publish_blocks([(subject(number).as_str(), BLOCKS[number % BLOCKS.len()], "{}")]).await;
            number += 1;
        }
        number
    };
    let delivering = async {
        let mut pace = tokio::time::interval(Duration::from_millis(50));
        for number in 0..30 {
            pace.tick().await;
            nats.publish("outbox.a", &[], good(number)).await;
            assert_eq!(receiver.next().await.header("webhook-id"), format!("good-{number}"));
        }
        over.store(true, Ordering::Relaxed);
    };
    let (written, ()) = tokio::join!(writing, delivering);

    let removed = "hookbridge_egress_unreadable_total{stream=\"KV_hookbridge_endpoints\"}";
    eventually("all to be removed", async || (hookbridge.metric(removed).await == written as f64).then_some(())).await;
    assert_eq!(hookbridge.metric("hookbridge_egress_unreadable_total{stream=\"OUTBOX\"}").await, 0.0);

    // One that is there before a start does not stop it, and what is said is heard as before.
    hookbridge.stop().await.unwrap();
    nats.publish_blocks(BLOCKS.map(|block| ("$KV.hookbridge_endpoints.state.e_zz", block, "{}"))).await;
    let hookbridge = Hookbridge::start(&nats, &endpoint(&receiver)).await;
    nats.publish("outbox.a", &[], good(100)).await;
    assert_eq!(receiver.next().await.header("webhook-id"), "good-100");
    let configuration = Configuration::new(&endpoint(&receiver));
    let command = |arguments: &[&str]| {
        let mut command = configuration.hookbridge(arguments);
        command.args(["--nats", &nats.url()]);
        command
    };
    run(&mut command(&["endpoints", "pause", "crm"])).await.assert_code(0);
    nats.publish_blocks([("$KV.hookbridge_endpoints.state.e_zz", BLOCKS[0], "{}")]).await;
    run(&mut command(&["endpoints", "list"])).await.assert_code(0);
    let next = AtomicUsize::new(101);
    eventually("the pause to be heard of", async || {
        nats.publish("outbox.a", &[], good(next.fetch_add(1, Ordering::Relaxed))).await;
        (stored(&nats, "RECEIPTS", "receipts.a.retrying.*").await > 0).then_some(())
    })
    .await;
    run(&mut command(&["endpoints", "resume", "crm"])).await.assert_code(0);
    let held = nats.message("RECEIPTS", "receipts.a.retrying.*").await.subject.replace("retrying", "delivered");
    nats.message("RECEIPTS", &held).await;
    drop(hookbridge);
}

#[tokio::test]
async fn news_of_tasks_cost_the_gateway_nothing_and_followers_go_on() {
    let office = Office::open_with("[sources.plain]\nverify = \"none\"\n").await;
    office.delegate("t-1", json!({})).await.assert_status(202);
    let over = AtomicBool::new(false);
    let spoiling = async {
        let mut pace = tokio::time::interval(Duration::from_millis(100));
        let mut number = 0;
        while !over.load(Ordering::Relaxed) {
            pace.tick().await;
            office.nats.publish_blocks([("tasks.planner.t-1.state", BLOCKS[number % BLOCKS.len()], "{}")]).await;
            number += 1;
        }
    };
    let following = async {
        let followed = office.get("/tasks/t-1/events").await.text();
        over.store(true, Ordering::Relaxed);
        followed
    };
    let working = async {
        let mut pace = tokio::time::interval(Duration::from_millis(50));
        for number in 0..60 {
            pace.tick().await;
            office.hookbridge.post("/hooks/plain", &[], format!("{number}")).await.assert_status(202);
        }
        office.say("planner", "u-1", json!({"task_id": "t-1", "status": "working"})).await;
        office.say("planner", "u-2", json!({"task_id": "t-1", "status": "completed"})).await;
    };
    let ((), followed, ()) = within("the end of the task", async { tokio::join!(spoiling, following, working) }).await;
    assert!(followed.contains("submitted") && followed.contains("completed"), "{followed}");
    assert_eq!(office.hookbridge.counted("plain", "stored").await, 60.0);
}

#[tokio::test]
async fn a_task_whose_receipt_or_record_is_spoilt_can_be_asked_for() {
    let office = Office::open().await;
    office.delegate("t-1", json!({})).await.assert_status(202);
    office.say("planner", "u-1", json!({"task_id": "t-1", "status": "completed"})).await;
    let delivery = eventually("the callback", async || {
        let shown = office.get("/tasks/t-1").await.json();
        shown["history"].as_array()?.iter().find_map(|step| Some(step["callback"]["delivery"].as_str()?.to_owned()))
    })
    .await;
    for block in BLOCKS {
        let subject = format!("receipts.planner.delivered.{delivery}");
        office.nats.publish_blocks([(subject.as_str(), block, "{}")]).await;
        office.get("/tasks/t-1").await.assert_status(200);
    }
    office.delegate("t-2", json!({})).await.assert_status(202);
    for block in BLOCKS {
        office.nats.publish_blocks([("$KV.hookbridge_tasks.t-3", block, "{}")]).await;
        office.get("/tasks/t-3").await.assert_status(404);
        let listed = request("GET", &office.hookbridge.url("/tasks"), &[SHOP], "").await;
        assert_eq!(listed.assert_status(200).json()["tasks"].as_array().unwrap().len(), 2);
    }
    let removed = "hookbridge_egress_unreadable_total{stream=\"KV_hookbridge_tasks\"}";
    assert_eq!(office.hookbridge.metric(removed).await, BLOCKS.len() as f64);
}

#[tokio::test]
async fn commands_that_look_back_go_on_behind_them() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, "[sources.plain]\nverify = \"none\"\n").await;
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "nowhere")], "x").await;
    nats.message("DEAD", "dead.a.*").await;
    nats.publish_blocks(BLOCKS.map(|block| ("dead.a.spoilt", block, "{}"))).await;
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "nobody")], "x").await;
    nats.messages("RECEIPTS", "receipts.a.dead.*", 2).await;

    let configuration = Configuration::new("[sources.plain]\nverify = \"none\"\n");
    let command = |arguments: &[&str]| {
        let mut command = configuration.hookbridge(arguments);
        command.args(["--nats", &nats.url()]);
        command
    };
    let listed = run(&mut command(&["dead", "list"])).await;
    listed.assert_code(0);
    assert!(listed.stdout.contains("nowhere") && listed.stdout.contains("nobody"), "{}", listed.stdout);
    drop(hookbridge);
}
