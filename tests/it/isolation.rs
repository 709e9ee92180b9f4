//! One destination never harms another: places, rates and breakers of their own.

use std::time::{Duration, Instant};

use crate::harness::{Hookbridge, Nats, Receiver, Reply, eventually};

fn endpoint(name: &str, receiver: &Receiver, more: &str) -> String {
    format!("[endpoints.{name}]\nurl = \"{}\"\nsignatures = []\n{more}\n", receiver.url("/"))
}

async fn publish(nats: &Nats, endpoint: &str, count: usize) {
    for number in 0..count {
        let id = format!("{endpoint}-{number}");
        nats.publish("outbox.a", &[("Hookbridge-Endpoint", endpoint), ("Nats-Msg-Id", &id)], "x").await;
    }
}

async fn delivered(nats: &Nats, endpoint: &str, count: usize) {
    for number in 0..count {
        nats.message("RECEIPTS", &format!("receipts.a.delivered.{endpoint}-{number}")).await;
    }
}

#[tokio::test]
async fn an_endpoint_that_hangs_holds_nobody_else_up() {
    let (nats, hanging, healthy) = (Nats::start().await, Receiver::start().await, Receiver::start().await);
    hanging.otherwise(Reply::Hang);
    let egress = "[egress]\ntimeout = \"60s\"\nconcurrency = 16\n";
    let config =
        format!("{egress}{}{}", endpoint("hanging", &hanging, "max_concurrent = 8"), endpoint("healthy", &healthy, ""));
    let hookbridge = Hookbridge::start(&nats, &config).await;

    publish(&nats, "hanging", 100).await;
    publish(&nats, "healthy", 100).await;

    delivered(&nats, "healthy", 100).await;
    assert!(hanging.connections() <= 8, "{}", hanging.connections());
    eventually("what is over to wait in NATS", async || (nats.count("RETRY").await >= 92).then_some(())).await;
    assert!(hookbridge.metric("hookbridge_egress_held_total{destination=\"hanging\",why=\"busy\"}").await >= 92.0);
}

#[tokio::test]
async fn attempts_begin_no_more_often_than_the_rate_and_none_is_lost() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let _hookbridge = Hookbridge::start(&nats, &endpoint("slow", &receiver, "rate = \"20/s burst 5\"")).await;
    let begun = Instant::now();

    publish(&nats, "slow", 30).await;

    delivered(&nats, "slow", 30).await;
    // 5 at once and 25 more at 20 a second; the server fires a schedule at its time, never before.
    assert!(begun.elapsed() >= Duration::from_millis(1200), "{:?}", begun.elapsed());
    assert_eq!(receiver.unread(), 30);
}

#[tokio::test]
async fn an_endpoint_that_fails_is_left_alone_and_what_waits_comes_when_it_recovers() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    receiver.otherwise(Reply::Status(500));
    let breaker = "breaker = { failures = 3, open = \"2s\", longest = \"2s\" }\nretry = [\"100ms\", \"60s\", \"60s\"]";
    let hookbridge = Hookbridge::start(&nats, &endpoint("crm", &receiver, breaker)).await;
    publish(&nats, "crm", 3).await;
    for _ in 0..3 {
        receiver.next().await;
    }
    let open = "hookbridge_egress_breaker_open{destination=\"crm\"}";
    eventually("the breaker to open", async || (hookbridge.metric(open).await == 1.0).then_some(())).await;
    let record = nats.message("KV_hookbridge_endpoints", "$KV.hookbridge_endpoints.breaker.e_crm").await.json();
    assert_eq!(record["state"], "open");

    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", "late")], "x").await;

    let receipt = nats.message("RECEIPTS", "receipts.a.retrying.late").await.json();
    assert_eq!((receipt["attempt"].as_u64(), receipt["reason"].as_str()), (Some(0), Some("breaker")));
    receiver.otherwise(Reply::Status(204));
    nats.message("RECEIPTS", "receipts.a.delivered.late").await;
    delivered(&nats, "crm", 3).await;
    eventually("the breaker to close", async || (hookbridge.metric(open).await == 0.0).then_some(())).await;
}

#[tokio::test]
async fn another_courier_leaves_alone_what_one_has_found_to_fail() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    receiver.otherwise(Reply::Close);
    let breaker = "breaker = { failures = 1, open = \"60s\" }\nretry = [\"100ms\"]";
    let config = endpoint("crm", &receiver, breaker);
    let first = Hookbridge::start(&nats, &config).await;
    publish(&nats, "crm", 1).await;
    receiver.next().await;
    nats.message("KV_hookbridge_endpoints", "$KV.hookbridge_endpoints.breaker.e_crm").await;
    first.stop().await.unwrap();

    let second = Hookbridge::start(&nats, &config).await;
    let open = "hookbridge_egress_breaker_open{destination=\"crm\"}";
    eventually("the second to hear of it", async || (second.metric(open).await == 1.0).then_some(())).await;
    receiver.unread();
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", "late")], "x").await;

    let receipt = nats.message("RECEIPTS", "receipts.a.retrying.late").await.json();
    assert_eq!(receipt["reason"], "breaker");
    assert_eq!(receiver.unread(), 0);
}

#[tokio::test]
async fn no_header_of_an_agent_takes_more_room_than_its_message_has() {
    let (nats, hanging, healthy) = (Nats::start().await, Receiver::start().await, Receiver::start().await);
    hanging.otherwise(Reply::Hang);
    let egress = "[egress]\ntimeout = \"10m\"\n";
    let config = format!("{egress}{}{}", endpoint("hanging", &hanging, ""), endpoint("healthy", &healthy, ""));
    let _hookbridge = Hookbridge::start(&nats, &config).await;

    for bytes in ["4294967295", "18446744073709551615", "33554432"] {
        let headers = [("Hookbridge-Endpoint", "hanging"), ("Hookbridge-Body-Bytes", bytes)];
        nats.publish("outbox.evil", &headers, "x").await;
    }
    publish(&nats, "healthy", 20).await;

    delivered(&nats, "healthy", 20).await;
}
