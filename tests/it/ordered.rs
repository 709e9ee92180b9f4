//! Ordered endpoints: one at a time, in the order of the stream.

use crate::harness::{Configuration, Hookbridge, Nats, Receiver, Reply, eventually, run};

fn ordered(receiver: &Receiver, more: &str) -> String {
    format!("[endpoints.crm]\nurl = \"{}\"\nsignatures = []\nordered = true\n{more}\n", receiver.url("/"))
}

async fn publish(nats: &Nats, number: usize) {
    let id = format!("m-{number}");
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", &id)], "x").await;
}

#[tokio::test]
async fn a_failure_holds_back_what_comes_after_it() {
    let nats = Nats::start().await;
    let mut receiver =
        // The kept connection that closes, and the fresh one that follows within the same attempt.
        Receiver::scripted([Reply::Status(500), Reply::Close, Reply::Close, Reply::Status(204), Reply::Status(503)])
            .await;
    let _hookbridge = Hookbridge::start(&nats, &ordered(&receiver, "")).await;

    for number in 0..5 {
        publish(&nats, number).await;
    }

    for expected in ["m-0", "m-0", "m-0", "m-0", "m-1", "m-1", "m-2", "m-3", "m-4"] {
        assert_eq!(receiver.next().await.header("webhook-id"), expected);
    }
    nats.message("RECEIPTS", "receipts.a.delivered.m-4").await;
    assert_eq!(nats.message("RECEIPTS", "receipts.a.delivered.m-0").await.json()["attempt"], 3);
}

#[tokio::test]
async fn what_is_dead_holds_nobody_back() {
    let nats = Nats::start().await;
    let mut receiver = Receiver::scripted([Reply::Status(500), Reply::Status(500)]).await;
    let _hookbridge = Hookbridge::start(&nats, &ordered(&receiver, "retry = [\"50ms\"]")).await;

    publish(&nats, 0).await;
    publish(&nats, 1).await;

    nats.message("DEAD", "dead.a.m-0").await;
    for expected in ["m-0", "m-0", "m-1"] {
        assert_eq!(receiver.next().await.header("webhook-id"), expected);
    }
}

#[tokio::test]
async fn several_couriers_and_a_restart_keep_the_order() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    receiver.otherwise(Reply::Status(500));
    let text = ordered(&receiver, "retry = [\"500ms\", \"500ms\", \"500ms\", \"500ms\", \"500ms\"]");
    let first = Hookbridge::start(&nats, &text).await;
    let _second = Hookbridge::start(&nats, &text).await;
    for number in 0..20 {
        publish(&nats, number).await;
    }
    assert_eq!(receiver.next().await.header("webhook-id"), "m-0");
    first.stop().await.unwrap();

    receiver.otherwise(Reply::Status(204));

    nats.message("RECEIPTS", "receipts.a.delivered.m-19").await;
    let mut arrived = Vec::new();
    while arrived.last().is_none_or(|id| id != "m-19") {
        arrived.push(receiver.next().await.header("webhook-id").to_owned());
    }
    arrived.dedup();
    let first = arrived.iter().position(|id| id == "m-1").unwrap();
    assert_eq!(arrived[first..], (1..20).map(|number| format!("m-{number}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_ordered_endpoint_gets_its_share_of_a_fan_out_and_the_others_do_not_wait_for_it() {
    let (nats, mut ordered, mut other) = (Nats::start().await, Receiver::start().await, Receiver::start().await);
    ordered.otherwise(Reply::Hang);
    let subjects = "subjects = [\"outbox.*.ticket.>\"]";
    let both = format!(
        "{}[endpoints.other]\nurl = \"{}\"\nsignatures = []\n{subjects}\n",
        self::ordered(&ordered, subjects),
        other.url("/")
    );
    let _hookbridge = Hookbridge::start(&nats, &both).await;

    for number in 0..10 {
        nats.publish("outbox.a.ticket.new", &[("Nats-Msg-Id", &format!("t-{number}"))], "x").await;
    }

    for _ in 0..10 {
        other.next().await;
    }
    assert!(ordered.next().await.header("webhook-id").starts_with("t-0"));
}

#[tokio::test]
async fn what_an_ordered_endpoint_does_not_listen_to_is_dead_and_says_where_to_publish() {
    let (nats, receiver) = (Nats::start().await, Receiver::start().await);
    let _hookbridge = Hookbridge::start(&nats, &ordered(&receiver, "subjects = [\"outbox.*.ticket.>\"]")).await;

    publish(&nats, 0).await;

    let receipt = nats.message("RECEIPTS", "receipts.a.dead.m-0").await.json();
    assert_eq!(receipt["reason"], "unroutable");
    assert!(receipt["detail"].as_str().unwrap().contains("outbox.*.ticket.>"), "{receipt}");
}

#[tokio::test]
async fn what_stands_in_a_line_is_delivered_when_the_endpoint_is_ordered_no_more() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    receiver.otherwise(Reply::Status(500));
    let waits = "retry = [\"1s\", \"1s\", \"1s\", \"1s\", \"1s\", \"1s\", \"1s\", \"1s\"]";
    let first = Hookbridge::start(&nats, &ordered(&receiver, waits)).await;
    for number in 0..5 {
        publish(&nats, number).await;
    }
    receiver.next().await;
    first.stop().await.unwrap();
    receiver.otherwise(Reply::Status(204));

    let unordered = ordered(&receiver, waits).replace("ordered = true", "");
    let _second = Hookbridge::start(&nats, &unordered).await;

    for number in 0..5 {
        nats.message("RECEIPTS", &format!("receipts.a.delivered.m-{number}")).await;
    }
    eventually("the line to be taken away", async || (!nats.has_consumer("OUTBOX", "ordered_crm").await).then_some(()))
        .await;
}

#[tokio::test]
async fn an_ordered_endpoint_with_a_rate_gets_everything_in_order() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let _hookbridge = Hookbridge::start(&nats, &ordered(&receiver, "rate = \"10/s burst 1\"")).await;

    for number in 0..10 {
        publish(&nats, number).await;
    }

    for number in 0..10 {
        assert_eq!(receiver.next().await.header("webhook-id"), format!("m-{number}"));
    }
}

#[tokio::test]
async fn an_ordered_endpoint_that_may_be_used_by_more_agents_loses_none_of_theirs() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let text = |agents: &str| ordered(&receiver, &format!("agents = {agents}"));
    let first = Hookbridge::start(&nats, &text("[\"a\"]")).await;
    publish(&nats, 0).await;
    nats.message("RECEIPTS", "receipts.a.delivered.m-0").await;
    first.stop().await.unwrap();
    let headers = [("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", "b-1")];
    nats.publish("outbox.b", &headers, "x").await;

    let _second = Hookbridge::start(&nats, &text("[\"a\", \"b\"]")).await;
    publish(&nats, 2).await;

    for expected in ["m-0", "b-1", "m-2"] {
        assert_eq!(receiver.next().await.header("webhook-id"), expected);
    }
}

#[tokio::test]
async fn cancelling_the_head_of_a_line_lets_the_rest_go_on_long_before_it_is_due() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([Reply::Status(500)]).await);
    let text = ordered(&receiver, "retry = [\"1h\"]");
    let _hookbridge = Hookbridge::start(&nats, &text).await;
    publish(&nats, 0).await;
    publish(&nats, 1).await;
    assert_eq!(receiver.next().await.header("webhook-id"), "m-0");
    nats.message("RECEIPTS", "receipts.a.retrying.m-0").await;

    let url = nats.url();
    let cancel = ["deliveries", "cancel", "--agent", "a", "--delivery", "m-0", "--wait", "30s", "--nats", &url];
    run(&mut Configuration::new(&text).hookbridge(&cancel)).await.assert_code(0);

    nats.message("RECEIPTS", "receipts.a.cancelled.m-0").await;
    assert_eq!(receiver.next().await.header("webhook-id"), "m-1");
}
