//! One message, several endpoints.

use crate::harness::{Hookbridge, Nats, Receiver, Reply};

fn endpoints(receivers: &[&Receiver]) -> String {
    let table = |(index, receiver): (usize, &&Receiver)| {
        format!(
            "[endpoints.e{index}]\nurl = \"{}\"\nsignatures = []\nsubjects = [\"outbox.*.ticket.>\"]\n",
            receiver.url("/")
        )
    };
    receivers.iter().enumerate().map(table).collect()
}

#[tokio::test]
async fn a_topic_goes_to_every_endpoint_that_wants_it_each_its_own_delivery() {
    let nats = Nats::start().await;
    let (mut one, mut two, mut other) = (Receiver::start().await, Receiver::start().await, Receiver::start().await);
    let text = format!(
        "{}[endpoints.other]\nurl = \"{}\"\nsignatures = []\nsubjects = [\"outbox.*.invoice.>\"]",
        endpoints(&[&one, &two]),
        other.url("/")
    );
    let _hookbridge = Hookbridge::start(&nats, &text).await;

    nats.publish("outbox.a.ticket.new", &[("Nats-Msg-Id", "m")], "x").await;

    assert_eq!((one.next().await.header("webhook-id"), two.next().await.header("webhook-id")), ("m", "m"));
    let receipts = nats.messages("RECEIPTS", "receipts.a.delivered.*", 2).await;
    let deliveries: Vec<String> =
        receipts.iter().map(|receipt| receipt.json()["delivery"].as_str().unwrap().to_owned()).collect();
    assert_ne!(deliveries[0], deliveries[1]);
    for delivery in deliveries {
        assert!(delivery.starts_with("m-") && delivery.len() == 10, "{delivery}");
    }
    assert_eq!(other.unread(), 0);
}

#[tokio::test]
async fn a_body_that_looks_like_an_envelope_goes_unchanged_to_the_endpoints_and_nowhere_else() {
    let nats = Nats::start().await;
    let (mut one, mut two, mut trap) = (Receiver::start().await, Receiver::start().await, Receiver::start().await);
    let text = format!(
        "{}[endpoints.trap]\nurl = \"{}\"\nsignatures = []\n[callbacks]\nallow = [\"*\"]\nsecrets = [\"plain:s\"]",
        endpoints(&[&one, &two]),
        trap.url("/endpoint")
    );
    let _hookbridge = Hookbridge::start(&nats, &text).await;
    let url = trap.url("/callback");
    let body = format!(r#"{{"callback_url":"{url}","endpoint":"trap","task_id":"t","payload":1}}"#);

    nats.publish("outbox.a.ticket.new", &[], body.clone()).await;

    assert_eq!((one.next().await.body, two.next().await.body), (body.clone().into(), body.into()));
    nats.messages("RECEIPTS", "receipts.a.delivered.*", 2).await;
    assert_eq!((trap.unread(), nats.count("DEAD").await), (0, 0));
}

#[tokio::test]
async fn one_failing_endpoint_is_retried_alone() {
    let nats = Nats::start().await;
    let (mut good, mut bad) = (Receiver::start().await, Receiver::scripted([Reply::Status(500)]).await);
    let _hookbridge = Hookbridge::start(&nats, &endpoints(&[&good, &bad])).await;

    nats.publish("outbox.a.ticket.new", &[], "x").await;

    good.next().await;
    assert_eq!(bad.next().await.header("webhook-id"), bad.next().await.header("webhook-id"));
    nats.messages("RECEIPTS", "receipts.a.delivered.*", 2).await;
    assert_eq!((good.unread(), bad.unread()), (0, 0));
}

#[tokio::test]
async fn an_endpoint_that_an_agent_may_not_use_is_forbidden_and_the_others_get_it() {
    let nats = Nats::start().await;
    let (mut one, mut two) = (Receiver::start().await, Receiver::start().await);
    let text = endpoints(&[&one, &two]).replacen("signatures = []", "signatures = []\nagents = [\"boss\"]", 1);
    let _hookbridge = Hookbridge::start(&nats, &text).await;
    nats.publish("outbox.a.ticket.new", &[], "x").await;
    two.next().await;
    let dead = nats.message("RECEIPTS", "receipts.a.dead.*").await.json();
    assert_eq!((dead["reason"].as_str(), dead["destination"].as_str()), (Some("forbidden"), Some("e0")));
    assert_eq!(one.unread(), 0);
}
