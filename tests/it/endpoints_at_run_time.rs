//! Endpoints that come, change and go while couriers run; and records that nobody with the key has written.

use serde_json::Value;

use crate::harness::{Configuration, Ended, Hookbridge, Nats, Receiver, eventually, run, sign};

const KEY: &str = "[egress]\nseal_keys = [\"plain:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\"]\n";
const RECORD: &str = "$KV.hookbridge_endpoints.endpoint.crm";

async fn endpoints(nats: &Nats, text: &str, arguments: &[&str]) -> Ended {
    let url = nats.url();
    let arguments = [&["endpoints"], arguments, &["--nats", &url]].concat();
    run(&mut Configuration::new(text).hookbridge(&arguments)).await
}

async fn put(nats: &Nats, text: &str, table: &str) -> Ended {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    std::fs::write(file.path(), table).unwrap();
    endpoints(nats, text, &["put", "crm", "--file", file.path().to_str().unwrap()]).await
}

fn table(receiver: &Receiver) -> String {
    format!(
        "url = \"{}\"\nsecrets = [\"plain:run time s3cret\"]\nsubjects = [\"outbox.*.ticket.>\"]\n",
        receiver.url("/")
    )
}

/// Publishes until an answer has this outcome: couriers follow within a second.
async fn until(nats: &Nats, outcome: &str) -> Value {
    eventually(outcome, async || {
        let id = format!("m-{}", nats.count("OUTBOX").await);
        nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", &id)], "x").await;
        let receipt = nats.message("RECEIPTS", &format!("receipts.a.*.{id}")).await.json();
        (receipt["outcome"] == outcome).then_some(receipt)
    })
    .await
}

#[tokio::test]
async fn an_endpoint_comes_changes_and_goes_while_couriers_run() {
    let (nats, mut first, mut second) = (Nats::start().await, Receiver::start().await, Receiver::start().await);
    let _courier = Hookbridge::start(&nats, KEY).await;

    put(&nats, KEY, &table(&first)).await.assert_code(0);
    until(&nats, "delivered").await;
    let delivered = first.next().await;
    let (id, timestamp) = (delivered.header("webhook-id"), delivered.header("webhook-timestamp"));
    let expected = sign::v1(b"run time s3cret", id, timestamp, b"x");
    assert_eq!(delivered.header("webhook-signature"), expected);
    nats.publish("outbox.a.ticket.new", &[("Nats-Msg-Id", "fan-out")], "x").await;
    assert!(first.next().await.header("webhook-id").starts_with("fan-out"));

    put(&nats, KEY, &table(&second)).await.assert_code(0);
    eventually("the change", async || {
        until(&nats, "delivered").await;
        (second.connections() > 0).then_some(())
    })
    .await;
    second.next().await;

    endpoints(&nats, KEY, &["delete", "crm"]).await.assert_code(0);
    assert_eq!(until(&nats, "dead").await["reason"], "unroutable");
}

#[tokio::test]
async fn a_courier_that_starts_later_knows_the_endpoint_and_no_secret_stands_in_the_bucket() {
    let (nats, receiver) = (Nats::start().await, Receiver::start().await);
    Hookbridge::start(&nats, KEY).await.stop().await.unwrap();
    put(&nats, KEY, &table(&receiver)).await.assert_code(0);

    let record = nats.message("KV_hookbridge_endpoints", RECORD).await;
    let clear = String::from_utf8_lossy(&record.payload).into_owned();
    assert!(clear.contains(&receiver.url("/")) && !clear.contains("s3cret"), "{clear}");
    let listed = endpoints(&nats, KEY, &["list"]).await;
    assert!(listed.stdout.contains("run time") && !listed.stdout.contains("s3cret"), "{listed}");

    let _courier = Hookbridge::start(&nats, KEY).await;
    until(&nats, "delivered").await;
}

#[tokio::test]
async fn whoever_can_write_the_bucket_cannot_redirect_anything() {
    let (nats, mut receiver, mut thief) = (Nats::start().await, Receiver::start().await, Receiver::start().await);
    let hookbridge = Hookbridge::start(&nats, KEY).await;
    put(&nats, KEY, &table(&thief)).await.assert_code(0);
    let old = nats.message("KV_hookbridge_endpoints", RECORD).await.payload;
    put(&nats, KEY, &table(&receiver)).await.assert_code(0);
    eventually("the change", async || {
        until(&nats, "delivered").await;
        (receiver.connections() > 0).then_some(())
    })
    .await;
    thief.unread();
    let mut edited: Value = nats.message("KV_hookbridge_endpoints", RECORD).await.json();
    edited["url"] = thief.url("/").into();

    let other_key = "[egress]\nseal_keys = [\"plain:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=\"]\n";
    nats.publish(RECORD, &[], serde_json::to_vec(&edited).unwrap()).await;
    nats.publish(RECORD, &[], old.clone()).await;
    nats.publish("$KV.hookbridge_endpoints.endpoint.moved", &[], old).await;
    nats.publish(RECORD, &[], "garbage").await;
    nats.publish("$KV.hookbridge_endpoints.state.e_crm", &[], r#"{"state":"disabled","reason":"","by":"","at":""}"#)
        .await;
    put(&nats, other_key, &table(&thief)).await.assert_code(0);

    let refused = "hookbridge_egress_records_refused_total";
    eventually("six records to be refused", async || (hookbridge.metric(refused).await >= 6.0).then_some(())).await;
    receiver.unread();
    until(&nats, "delivered").await;
    receiver.next().await;
    assert_eq!(thief.unread(), 0);
}

#[tokio::test]
async fn an_endpoint_that_was_deleted_is_not_brought_back_by_its_old_record() {
    let (nats, mut thief) = (Nats::start().await, Receiver::start().await);
    let hookbridge = Hookbridge::start(&nats, KEY).await;
    put(&nats, KEY, &table(&thief)).await.assert_code(0);
    until(&nats, "delivered").await;
    thief.next().await;
    let old = nats.message("KV_hookbridge_endpoints", RECORD).await.payload;
    endpoints(&nats, KEY, &["delete", "crm"]).await.assert_code(0);
    until(&nats, "dead").await;
    thief.unread();
    assert_eq!(endpoints(&nats, KEY, &["list"]).await.stdout, "");
    assert_eq!(endpoints(&nats, KEY, &["delete", "crm"]).await.code, Some(1));

    nats.publish(RECORD, &[], old).await;

    let refused = "hookbridge_egress_records_refused_total";
    eventually("the record to be refused", async || (hookbridge.metric(refused).await >= 1.0).then_some(())).await;
    assert_eq!(until(&nats, "dead").await["reason"], "unroutable");
    assert_eq!(thief.unread(), 0);
}

#[tokio::test]
async fn a_record_of_another_installation_with_the_same_key_is_not_believed() {
    let (nats, receiver) = (Nats::start().await, Receiver::start().await);
    let hookbridge = Hookbridge::start(&nats, KEY).await;
    let other = format!("[nats]\nprefix = \"other\"\n{KEY}");
    Hookbridge::start(&nats, &other).await.stop().await.unwrap();
    put(&nats, &other, &table(&receiver)).await.assert_code(0);
    let foreign = nats.message("KV_other_hookbridge_endpoints", "$KV.other_hookbridge_endpoints.endpoint.crm").await;

    nats.publish(RECORD, &[], foreign.payload).await;

    let refused = "hookbridge_egress_records_refused_total";
    eventually("the record to be refused", async || (hookbridge.metric(refused).await >= 1.0).then_some(())).await;
    until(&nats, "dead").await;
}

#[tokio::test]
async fn an_endpoint_that_cannot_work_is_refused_before_it_is_stored() {
    let (nats, receiver) = (Nats::start().await, Receiver::start().await);
    Hookbridge::start(&nats, KEY).await.stop().await.unwrap();
    for (text, table, expected) in [
        (KEY, "url = \"https://a.example/\"".to_owned(), "endpoints.crm.secrets"),
        (KEY, format!("{}colour = 1\n", table(&receiver)), "unknown field `colour`"),
        (KEY, table(&receiver).replace("plain:run time s3cret", "env:NOT_THERE"), "`NOT_THERE` is not set"),
        ("", table(&receiver), "set egress.seal_keys"),
        (
            &format!("{KEY}[endpoints.crm]\nurl = \"http://127.0.0.1/\"\nsignatures = []\n"),
            table(&receiver),
            "is in the configuration",
        ),
    ] {
        let refused = put(&nats, text, &table).await;
        assert!(refused.code == Some(2) && refused.stderr.contains(expected), "{expected}: {refused}");
        assert!(!refused.stderr.contains("s3cret"), "{refused}");
    }
}

#[tokio::test]
async fn fan_out_brings_only_the_types_that_an_endpoint_wants() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let text = format!(
        "{KEY}[endpoints.invoices]\nurl = \"{}\"\nsignatures = []\nsubjects = [\"outbox.>\"]\ntypes = [\"invoice.*\"]\n",
        receiver.url("/")
    );
    let _courier = Hookbridge::start(&nats, &text).await;

    nats.publish("outbox.a.x", &[("ce-type", "charge.made"), ("Nats-Msg-Id", "no")], "x").await;
    nats.publish("outbox.a.x", &[("ce-type", "invoice.paid"), ("Nats-Msg-Id", "yes")], "x").await;

    assert!(receiver.next().await.header("webhook-id").starts_with("yes"));
    assert_eq!(nats.message("RECEIPTS", "receipts.a.dead.no").await.json()["reason"], "unroutable");
}
