//! Stopping and starting in the middle of the work.

use hookbridge::app::Roles;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Configuration, Hookbridge, Nats, Receiver, Reply, within};

fn crm(receiver: &Receiver, egress: &str) -> String {
    format!("[endpoints.crm]\nurl = \"{}\"\nsignatures = []\n[egress]\n{egress}", receiver.url("/"))
}

const TO_CRM: [(&str, &str); 2] = [("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", "m-1")];

#[tokio::test]
async fn what_is_published_while_no_courier_runs_is_delivered_when_one_starts() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let text = crm(&receiver, "");
    Hookbridge::start_as(&nats, Roles::Courier, &text).await.stop().await.unwrap();
    nats.publish("outbox.a", &TO_CRM, "x").await;

    let _hookbridge = Hookbridge::start_as(&nats, Roles::Courier, &text).await;
    assert_eq!(receiver.next().await.header("webhook-id"), "m-1");
    nats.message("RECEIPTS", "receipts.a.delivered.m-1").await;
}

#[tokio::test]
async fn a_waiting_retry_outlives_courier_and_nats() {
    let mut nats = Nats::start().await;
    let mut receiver = Receiver::scripted([Reply::Status(500)]).await;
    let text = crm(&receiver, "retry = [\"2s\"]");
    let hookbridge = Hookbridge::start(&nats, &text).await;
    nats.publish("outbox.a", &TO_CRM, "x").await;
    receiver.next().await;
    nats.message("RECEIPTS", "receipts.a.retrying.m-1").await;
    hookbridge.stop().await.unwrap();
    nats.kill();
    nats.run_again().await;

    let _hookbridge = Hookbridge::start(&nats, &text).await;
    assert_eq!(receiver.next().await.header("webhook-id"), "m-1");
    assert_eq!(nats.message("RECEIPTS", "receipts.a.delivered.m-1").await.json()["attempt"], 2);
    assert_eq!(receiver.unread(), 0);
}

#[tokio::test]
async fn nats_killed_in_mid_delivery_gives_one_delivery_and_one_receipt() {
    let mut nats = Nats::start().await;
    let mut receiver = Receiver::scripted([Reply::Hold]).await;
    let hookbridge = Hookbridge::start(&nats, &crm(&receiver, "timeout = \"20s\"")).await;
    nats.publish("outbox.a", &TO_CRM, "x").await;
    receiver.next().await;

    nats.kill();
    receiver.release();
    nats.run_again().await;

    nats.message("RECEIPTS", "receipts.a.delivered.m-1").await;
    hookbridge.ready().await;
    hookbridge.stop().await.unwrap();
    assert_eq!((receiver.unread(), nats.count("RECEIPTS").await), (0, 1));
}

#[tokio::test]
async fn a_stopping_courier_finishes_the_delivery_that_it_holds() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([Reply::Hold]).await);
    let hookbridge = Hookbridge::start(&nats, &crm(&receiver, "timeout = \"20s\"")).await;
    nats.publish("outbox.a", &TO_CRM, "x").await;
    receiver.next().await;

    let stopped = tokio::spawn(hookbridge.stop());
    receiver.release();
    within("the courier to stop", stopped).await.unwrap().unwrap();
    assert_eq!(nats.message("RECEIPTS", "receipts.a.delivered.m-1").await.json()["attempt"], 1);
    assert_eq!(receiver.unread(), 0);
}

#[tokio::test]
async fn a_delivery_that_outlasts_the_grace_is_made_by_the_next_courier() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([Reply::Hang]).await);
    let text = format!("shutdown_grace = \"200ms\"\n{}", crm(&receiver, "timeout = \"20s\""));
    let hookbridge = Hookbridge::start(&nats, &text).await;
    nats.publish("outbox.a", &TO_CRM, "x").await;
    receiver.next().await;
    hookbridge.stop().await.unwrap();
    // What the old courier held is offered again when its ack wait ends; asking for it now saves the wait.
    let outbox = nats.jetstream().get_stream("OUTBOX").await.unwrap();
    outbox.delete_consumer("courier").await.unwrap();

    let _hookbridge = Hookbridge::start(&nats, &text).await;
    assert_eq!(receiver.next().await.header("webhook-id"), "m-1");
    nats.message("RECEIPTS", "receipts.a.delivered.m-1").await;
}

#[tokio::test]
async fn what_was_delivered_before_a_restart_is_not_sent_again_when_its_ack_was_lost() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let text = crm(&receiver, "");
    let hookbridge = Hookbridge::start(&nats, &text).await;
    nats.publish("outbox.a", &TO_CRM, "x").await;
    receiver.next().await;
    nats.message("RECEIPTS", "receipts.a.delivered.m-1").await;
    hookbridge.stop().await.unwrap();
    // A durable that has forgotten everything is the worst that a lost ack can be.
    let outbox = nats.jetstream().get_stream("OUTBOX").await.unwrap();
    outbox.delete_consumer("courier").await.unwrap();

    let hookbridge = Hookbridge::start(&nats, &text).await;
    let found = async || (hookbridge.metric("hookbridge_egress_already_done_total").await == 1.0).then_some(());
    crate::harness::eventually("the repeat to be recognised", found).await;
    assert_eq!(receiver.unread(), 0);
}

#[tokio::test]
async fn a_stopping_gateway_answers_what_it_has_begun_and_takes_nothing_new() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, "[sources.open]\nverify = \"none\"").await;
    let url = hookbridge.url("");
    let mut stream = TcpStream::connect(url.replace("http://", "")).await.unwrap();
    stream.write_all(b"POST /hooks/open HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbo").await.unwrap();
    let begun = async || (hookbridge.metric("hookbridge_ingress_body_bytes").await == 2.0).then_some(());
    crate::harness::eventually("the request to have begun", begun).await;

    let stopped = tokio::spawn(hookbridge.stop());
    let refused = async || TcpStream::connect(url.replace("http://", "")).await.err();
    crate::harness::eventually("the listener to close", refused).await;
    stream.write_all(b"dy").await.unwrap();
    let mut answer = String::new();
    within("an answer", stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    within("the gateway to stop", stopped).await.unwrap().unwrap();
    assert_eq!(nats.count("EVENTS").await, 1);
}

#[tokio::test]
async fn a_courier_killed_in_mid_attempt_is_followed_by_one_that_makes_the_delivery() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([Reply::Hang]).await);
    let text = crm(&receiver, "timeout = \"20s\"");
    let courier = Configuration::new(&text).serve(&nats);
    courier.ready().await;
    nats.publish("outbox.a", &TO_CRM, "x").await;
    receiver.next().await;
    courier.signal("KILL").await;
    courier.ended().await;
    // What it held is offered again when its ack wait ends; asking for it now saves the wait.
    let outbox = nats.jetstream().get_stream("OUTBOX").await.unwrap();
    outbox.delete_consumer("courier").await.unwrap();

    let _courier = Configuration::new(&text).serve(&nats);
    let delivered = receiver.next().await;
    assert_eq!((delivered.header("webhook-id"), &delivered.body[..]), ("m-1", &b"x"[..]));
    nats.message("RECEIPTS", "receipts.a.delivered.m-1").await;
}

#[tokio::test]
async fn a_gateway_killed_in_mid_request_is_followed_by_one_that_takes_the_repeat() {
    let nats = Nats::start().await;
    let text = "[sources.open]\nverify = \"none\"\nid = \"header:x-id\"";
    let gateway = Configuration::new(text).serve(&nats);
    gateway.ready().await;
    let address = gateway.gateway().await.replace("http://", "");
    let mut stream = TcpStream::connect(&address).await.unwrap();
    stream.write_all(b"POST /hooks/open HTTP/1.1\r\nhost: x\r\nx-id: 1\r\ncontent-length: 4\r\n\r\nbo").await.unwrap();
    gateway.signal("KILL").await;
    gateway.ended().await;
    let mut answer = String::new();
    drop(within("the connection to end", stream.read_to_string(&mut answer)).await);
    assert_eq!(answer, "", "nothing was promised");

    let hookbridge = Hookbridge::start(&nats, text).await;
    let repeat = hookbridge.post("/hooks/open", &[("x-id", "1")], "body").await;
    assert_eq!(repeat.assert_status(202).json()["duplicate"], false);
    assert_eq!(nats.count("EVENTS").await, 1);
}
