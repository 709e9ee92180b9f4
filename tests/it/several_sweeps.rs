//! What is said of a destination is done once, however many couriers hear of it, and whoever of them dies.

use std::collections::BTreeMap;

use hookbridge::app::Roles;

use crate::harness::{Configuration, Ended, Hookbridge, Nats, Receiver, Reply, eventually, run};

fn crm(receiver: &Receiver, retry: &str) -> String {
    format!(
        "[endpoints.crm]\nurl = \"{}\"\nsignatures = []\n[egress]\nretry = {retry}\nbreaker = \"none\"\n",
        receiver.url("/hooks")
    )
}

async fn operator(nats: &Nats, text: &str, arguments: &[&str]) -> Ended {
    let url = nats.url();
    run(&mut Configuration::new(text).hookbridge(&[arguments, &["--nats", &url]].concat())).await
}

async fn send(nats: &Nats, id: &str) {
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", id)], id.to_owned()).await;
}

async fn nothing_waits(nats: &Nats) {
    eventually("RETRY to be empty", async || (nats.count("RETRY").await == 0).then_some(())).await;
}

/// Three couriers, and 200 deliveries that wait for an hour after a first attempt.
async fn two_hundred_that_wait() -> (Nats, Receiver, String, [Hookbridge; 3]) {
    let (nats, receiver) = (Nats::start().await, Receiver::start().await);
    receiver.otherwise(Reply::Status(500));
    let text = crm(&receiver, "[\"1h\"]");
    let couriers = [
        Hookbridge::start_as(&nats, Roles::Courier, &text).await,
        Hookbridge::start_as(&nats, Roles::Courier, &text).await,
        Hookbridge::start_as(&nats, Roles::Courier, &text).await,
    ];
    for index in 0..200 {
        send(&nats, &format!("m-{index}")).await;
    }
    nats.messages("RECEIPTS", "receipts.a.retrying.*", 200).await;
    (nats, receiver, text, couriers)
}

#[tokio::test]
async fn three_couriers_that_hear_of_a_disabled_endpoint_bury_each_delivery_once() {
    let (nats, _receiver, text, _couriers) = two_hundred_that_wait().await;

    operator(&nats, &text, &["endpoints", "disable", "crm"]).await.assert_code(0);

    nothing_waits(&nats).await;
    nats.messages("RECEIPTS", "receipts.a.dead.*", 200).await;
    assert_eq!((nats.count("DEAD").await, nats.count("RECEIPTS").await), (200, 400));
}

#[tokio::test]
async fn three_couriers_that_hear_of_a_cancelled_destination_tell_each_delivery_once() {
    let (nats, _receiver, text, _couriers) = two_hundred_that_wait().await;

    operator(&nats, &text, &["endpoints", "cancel", "crm"]).await.assert_code(0);

    nothing_waits(&nats).await;
    nats.messages("RECEIPTS", "receipts.a.cancelled.*", 200).await;
    assert_eq!((nats.count("DEAD").await, nats.count("RECEIPTS").await), (0, 400));
}

#[tokio::test]
async fn a_resumed_destination_is_served_though_the_courier_that_began_is_killed() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let text = crm(&receiver, "[]");
    let program = Configuration::new(&text).serve(&nats);
    program.ready().await;
    operator(&nats, &text, &["endpoints", "pause", "crm"]).await.assert_code(0);
    let mut probes = 0;
    loop {
        let id = format!("probe-{probes}");
        send(&nats, &id).await;
        if nats.message("RECEIPTS", &format!("receipts.a.*.{id}")).await.json()["reason"] == "paused" {
            break;
        }
        probes += 1;
        assert!(probes < 200, "the courier did not follow");
    }
    for index in 0..1000 {
        send(&nats, &format!("m-{index}")).await;
    }
    nats.messages("RECEIPTS", "receipts.a.retrying.*", 1001).await;
    receiver.unread();

    operator(&nats, &text, &["endpoints", "resume", "crm"]).await.assert_code(0);
    let mut seen = BTreeMap::<String, u32>::new();
    while seen.len() < 5 {
        *seen.entry(receiver.next().await.header("webhook-id").to_owned()).or_default() += 1;
    }
    program.signal("KILL").await;
    program.ended().await;
    assert!(nats.count("RETRY").await > 100, "the courier was too fast for this test");
    let _courier = Hookbridge::start_as(&nats, Roles::Courier, &text).await;
    while seen.keys().filter(|id| id.starts_with("m-")).count() < 1000 {
        *seen.entry(receiver.next().await.header("webhook-id").to_owned()).or_default() += 1;
    }
    nothing_waits(&nats).await;
}
