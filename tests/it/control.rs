//! Pausing, disabling, cancelling, testing: said once, followed by every courier, and each with its receipt.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::{Configuration, Ended, Hookbridge, Nats, Receiver, Reply, eventually, run};

fn crm(receiver: &Receiver) -> String {
    format!(
        "[endpoints.crm]\nurl = \"{}\"\nsignatures = []\nretry = [\"60s\", \"60s\"]\nagents = [\"a\"]\n\
         [callbacks]\nallow = [\"*\"]\nsignatures = []\n",
        receiver.url("/")
    )
}

/// Runs a command of an operator.
async fn hookbridge(nats: &Nats, text: &str, arguments: &[&str]) -> Ended {
    let url = nats.url();
    let arguments = [arguments, &["--nats", &url]].concat();
    run(&mut Configuration::new(text).hookbridge(&arguments)).await
}

async fn publish(nats: &Nats, id: &str) {
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", id)], "x").await;
}

async fn receipt(nats: &Nats, outcome: &str, id: &str) -> serde_json::Value {
    nats.message("RECEIPTS", &format!("receipts.a.{outcome}.{id}")).await.json()
}

#[tokio::test]
async fn a_paused_endpoint_holds_its_deliveries_and_resumed_gets_each_once() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let text = crm(&receiver);
    let _couriers = [Hookbridge::start(&nats, &text).await, Hookbridge::start(&nats, &text).await];
    hookbridge(&nats, &text, &["endpoints", "pause", "crm", "--reason", "moving house"]).await.assert_code(0);
    // Each courier takes some of these; once all of them wait, both have heard.
    let probes = AtomicUsize::new(0);
    eventually("both to have heard", async || {
        let first = probes.fetch_add(16, Ordering::Relaxed);
        for number in first..first + 16 {
            publish(&nats, &format!("probe-{number}")).await;
        }
        for number in first..first + 16 {
            let last = nats.message("RECEIPTS", &format!("receipts.a.*.probe-{number}")).await.json();
            if last["reason"] != "paused" {
                return None;
            }
        }
        Some(())
    })
    .await;

    for number in 0..300 {
        publish(&nats, &format!("m-{number}")).await;
    }
    let held = receipt(&nats, "retrying", "m-299").await;
    assert_eq!((held["reason"].as_str(), held["attempt"].as_u64()), (Some("paused"), Some(0)));
    eventually("all to wait", async || (nats.count("RETRY").await >= 300).then_some(())).await;
    // Nothing but probes from before both had heard.
    while let Some(early) = receiver.arrived() {
        assert!(early.header("webhook-id").starts_with("probe-"), "{early:?}");
    }

    hookbridge(&nats, &text, &["endpoints", "resume", "crm"]).await.assert_code(0);

    for number in 0..300 {
        receipt(&nats, "delivered", &format!("m-{number}")).await;
    }
    let mut arrived: Vec<String> = Vec::new();
    while arrived.len() < 300 {
        let id = receiver.next().await.header("webhook-id").to_owned();
        arrived.extend(id.starts_with("m-").then_some(id));
    }
    arrived.sort();
    arrived.dedup();
    let more = std::iter::from_fn(|| receiver.arrived()).filter(|more| more.header("webhook-id").starts_with("m-"));
    assert_eq!((arrived.len(), more.count()), (300, 0));
}

#[tokio::test]
async fn a_disabled_endpoint_is_dead_to_what_waits_and_what_comes_until_it_is_enabled() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([Reply::Status(500)]).await);
    let text = crm(&receiver);
    let _courier = Hookbridge::start(&nats, &text).await;
    publish(&nats, "waits").await;
    receiver.next().await;
    receipt(&nats, "retrying", "waits").await;

    hookbridge(&nats, &text, &["endpoints", "disable", "crm", "--reason", "sold"]).await.assert_code(0);

    let dead = receipt(&nats, "dead", "waits").await;
    assert_eq!((dead["reason"].as_str(), dead["attempt"].as_u64()), (Some("endpoint-disabled"), Some(1)));
    assert!(dead["detail"].as_str().unwrap().contains("sold"), "{dead}");
    publish(&nats, "comes").await;
    assert_eq!(receipt(&nats, "dead", "comes").await["reason"], "endpoint-disabled");
    let listed = hookbridge(&nats, &text, &["endpoints", "list"]).await;
    assert!(listed.stdout.contains("disabled") && listed.stdout.contains("sold"), "{listed}");

    hookbridge(&nats, &text, &["endpoints", "enable", "crm"]).await.assert_code(0);
    eventually("the endpoint to be enabled", async || {
        let id = format!("again-{}", nats.count("OUTBOX").await);
        publish(&nats, &id).await;
        let last = nats.message("RECEIPTS", &format!("receipts.a.*.{id}")).await.json();
        (last["outcome"] == "delivered").then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_that_answered_410_can_be_enabled() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([Reply::Status(410)]).await);
    let text = crm(&receiver);
    let _courier = Hookbridge::start(&nats, &text).await;
    publish(&nats, "gone").await;
    receipt(&nats, "dead", "gone").await;
    receiver.next().await;

    let enabled = hookbridge(&nats, &text, &["endpoints", "enable", "crm"]).await;

    enabled.assert_code(0);
    let test = hookbridge(&nats, &text, &["endpoints", "test", "crm"]).await;
    let delivered = receiver.next().await;
    assert!(delivered.header("webhook-id").starts_with("a-test-"), "{test}");
    test.assert_code(0);
    assert!(test.stdout.contains("\"outcome\":\"delivered\""), "{test}");
}

#[tokio::test]
async fn one_delivery_is_cancelled_with_its_receipt_and_no_other() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    receiver.otherwise(Reply::Status(500));
    let text = crm(&receiver);
    let _courier = Hookbridge::start(&nats, &text).await;
    for id in ["one", "other"] {
        publish(&nats, id).await;
        receiver.next().await;
        receipt(&nats, "retrying", id).await;
    }
    let listed = hookbridge(&nats, &text, &["deliveries", "list", "--endpoint", "crm"]).await;
    assert!(listed.stdout.contains("one ") && listed.stdout.contains("attempt 2"), "{listed}");

    let cancel = ["deliveries", "cancel", "--agent", "a", "--delivery", "one", "--reason", "changed my mind"];
    let cancelled = hookbridge(&nats, &text, &cancel).await;

    cancelled.assert_code(0);
    let receipt = receipt(&nats, "cancelled", "one").await;
    assert_eq!((receipt["attempt"].as_u64(), receipt["detail"].as_str()), (Some(1), Some("changed my mind")));
    let other = async || (nats.subjects("RETRY").await == ["retry.at.e_crm.other"]).then_some(());
    eventually("only the other one to wait", other).await;
    assert_eq!(nats.count("DEAD").await, 0);
    let again = hookbridge(&nats, &text, &cancel).await;
    assert!(again.code == Some(1) && again.stderr.contains("had ended before: cancelled"), "{again}");
}

#[tokio::test]
async fn a_delivery_that_is_cancelled_while_it_is_attempted_is_not_tried_again() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([Reply::Hang]).await);
    let text = crm(&receiver);
    let _courier = Hookbridge::start(&nats, &text).await;
    publish(&nats, "one").await;
    receiver.next().await;

    let cancel = ["deliveries", "cancel", "--agent", "a", "--delivery", "one", "--wait", "10ms"];
    let marked = hookbridge(&nats, &text, &cancel).await;

    assert!(marked.stdout.contains("the courier that meets it will cancel it"), "{marked}");
    assert_eq!(receipt(&nats, "cancelled", "one").await["attempt"], 1);
    eventually("the mark to be gone", async || {
        (nats.count("RETRY").await == 0 && nats.is_gone("cancel.a.one").await).then_some(())
    })
    .await;
    let bucket = async || (nats.count("KV_hookbridge_endpoints").await == 0).then_some(());
    eventually("nothing to be left of it", bucket).await;
}

#[tokio::test]
async fn what_waits_is_listed_page_by_page() {
    let (nats, receiver) = (Nats::start().await, Receiver::start().await);
    receiver.otherwise(Reply::Status(500));
    let text = crm(&receiver);
    let _courier = Hookbridge::start(&nats, &text).await;
    for index in 0..5 {
        publish(&nats, &format!("m-{index}")).await;
        receipt(&nats, "retrying", &format!("m-{index}")).await;
    }
    let list = async |more: &[&str]| hookbridge(&nats, &text, &[&["deliveries", "list"], more].concat()).await;

    let first = list(&["--endpoint", "crm", "--agent", "a", "--limit", "3"]).await;
    assert!(first.assert_code(0).stdout.lines().count() == 3 && first.stdout.starts_with("m-0 "), "{first}");
    let (_, after) = first.stderr.trim_end().split_once("go on with --after ").unwrap();
    let rest = list(&["--json", "--after", after]).await;
    assert!(rest.assert_code(0).stdout.lines().count() == 2 && rest.stdout.contains("\"m-4\""), "{rest}");
    assert_eq!(rest.stderr, "");
    assert_eq!(list(&["--agent", "b"]).await.stdout, "");
    assert_eq!(list(&["--callback", "https://a.example/"]).await.stdout, "");
    assert_eq!(list(&["--limit", "0"]).await.code, Some(2));
}

#[tokio::test]
async fn a_test_that_fails_is_not_tried_again() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([Reply::Status(500)]).await);
    let text = crm(&receiver);
    let _courier = Hookbridge::start(&nats, &text).await;

    let failed = hookbridge(&nats, &text, &["endpoints", "test", "crm"]).await;

    assert!(failed.code == Some(1) && failed.stdout.contains("\"outcome\":\"retrying\""), "{failed}");
    nats.message("RECEIPTS", "receipts.*.cancelled.*").await;
    eventually("nothing to wait", async || (nats.count("RETRY").await == 0).then_some(())).await;
    receiver.next().await;
    assert_eq!((receiver.unread(), nats.count("DEAD").await), (0, 0));
}

#[tokio::test]
async fn a_word_that_came_too_late_cancels_nothing_that_is_sent_again() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([Reply::Hold]).await);
    let text = crm(&receiver);
    let courier = Hookbridge::start(&nats, &text).await;
    publish(&nats, "one").await;
    receiver.next().await;
    let cancel = ["deliveries", "cancel", "--agent", "a", "--delivery", "one", "--wait", "10ms"];
    hookbridge(&nats, &text, &cancel).await.assert_code(0);
    receiver.release();
    receipt(&nats, "delivered", "one").await;

    let again = ["deliveries", "redeliver", "--agent", "a", "--delivery", "one"];
    hookbridge(&nats, &text, &again).await.assert_code(0);
    assert_eq!(receiver.next().await.header("webhook-id"), "one");

    // Nor what an agent publishes later under an id that somebody has cancelled.
    let cancel = ["deliveries", "cancel", "--agent", "a", "--delivery", "later", "--wait", "10ms"];
    hookbridge(&nats, &text, &cancel).await.assert_code(0);
    courier.stop().await.unwrap();
    let _courier = Hookbridge::start(&nats, &text).await;
    publish(&nats, "later").await;
    assert_eq!(receiver.next().await.header("webhook-id"), "later");
}

#[tokio::test]
async fn everything_for_a_destination_that_was_published_until_now_is_cancelled_and_later_messages_are_not() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    receiver.otherwise(Reply::Status(500));
    let text = crm(&receiver);
    let courier = Hookbridge::start(&nats, &text).await;
    for number in 0..5 {
        publish(&nats, &format!("m-{number}")).await;
        receiver.next().await;
        receipt(&nats, "retrying", &format!("m-{number}")).await;
    }
    courier.stop().await.unwrap();
    publish(&nats, "unseen").await;

    hookbridge(&nats, &text, &["endpoints", "cancel", "crm"]).await.assert_code(0);
    receiver.otherwise(Reply::Status(204));
    publish(&nats, "later").await;
    let _courier = Hookbridge::start(&nats, &text).await;

    for id in ["m-0", "m-1", "m-2", "m-3", "m-4", "unseen"] {
        receipt(&nats, "cancelled", id).await;
    }
    receipt(&nats, "delivered", "later").await;
    assert_eq!(receiver.next().await.header("webhook-id"), "later");
    assert_eq!((receiver.unread(), nats.count("DEAD").await), (0, 0));
}

#[tokio::test]
async fn callbacks_to_one_origin_can_be_paused_and_others_go_on() {
    let (nats, mut paused, mut open) = (Nats::start().await, Receiver::start().await, Receiver::start().await);
    let text = crm(&open);
    hookbridge_prepares(&nats, &text).await;
    let origin = paused.url("/");
    hookbridge(&nats, &text, &["endpoints", "pause", "--callback", &origin]).await.assert_code(0);
    let _courier = Hookbridge::start(&nats, &text).await;

    for (id, url) in [("held", paused.url("/x?y=1")), ("free", open.url("/x"))] {
        nats.publish("outbox.a", &[("Hookbridge-Callback-Url", &url), ("Nats-Msg-Id", id)], "x").await;
    }

    assert_eq!(open.next().await.path, "/x");
    assert_eq!(receipt(&nats, "retrying", "held").await["reason"], "paused");
    assert_eq!(paused.unread(), 0);
    hookbridge(&nats, &text, &["endpoints", "resume", "--callback", &origin]).await.assert_code(0);
    assert_eq!(paused.next().await.path, "/x?y=1");
}

/// Lets the streams and buckets be made.
async fn hookbridge_prepares(nats: &Nats, text: &str) {
    Hookbridge::start(nats, text).await.stop().await.unwrap();
}

#[tokio::test]
async fn nothing_is_said_of_an_endpoint_that_is_not_there() {
    let (nats, receiver) = (Nats::start().await, Receiver::start().await);
    let text = crm(&receiver);
    hookbridge_prepares(&nats, &text).await;

    let refused = hookbridge(&nats, &text, &["endpoints", "pause", "crn"]).await;

    assert!(refused.code == Some(1) && refused.stderr.contains("there is no endpoint `crn`"), "{refused}");
    let bare = hookbridge(&nats, &text, &["endpoints", "pause"]).await;
    bare.assert_code(2);
}
