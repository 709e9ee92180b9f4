//! What an endpoint is sent: as it is, wrapped, transformed, and no more than it takes.

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::harness::{Hookbridge, Nats, Receiver, Reply, eventually, mistakes, sign};

const TO_CRM: [(&str, &str); 2] = [("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", "m-1")];

/// An endpoint `crm` at the receiver with further keys.
fn crm(receiver: &Receiver, keys: &str) -> String {
    let key = BASE64.encode(b"key bytes");
    format!("[endpoints.crm]\nurl = \"{}\"\nsecrets = [\"plain:whsec_{key}\"]\n{keys}\n", receiver.url("/"))
}

async fn dead(nats: &Nats) -> Value {
    nats.message("RECEIPTS", "receipts.a.dead.m-1").await.json()
}

#[tokio::test]
async fn a_cloud_event_is_sent_signed_and_the_same_on_every_attempt() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([Reply::Status(500)]).await);
    let text = format!("{}\n[egress]\nretry = [\"1100ms\"]", crm(&receiver, "payload = \"cloudevents\""));
    let _hookbridge = Hookbridge::start(&nats, &text).await;
    let body =
        r#"{"endpoint":"crm","id":"m-1","type":"order.paid","payload":{"total": 1.50,"n":123456789012345678901}}"#;

    nats.publish("outbox.a", &[], body).await;

    let (first, second) = (receiver.next().await, receiver.next().await);
    assert_eq!(first.body, second.body);
    assert_ne!(first.header("webhook-timestamp"), second.header("webhook-timestamp"));
    for attempt in [&first, &second] {
        assert_eq!(attempt.header("content-type"), "application/cloudevents+json");
        let signature = sign::v1(b"key bytes", "m-1", attempt.header("webhook-timestamp"), &attempt.body);
        assert_eq!(attempt.header("webhook-signature"), signature);
    }
    let text = std::str::from_utf8(&first.body).unwrap();
    assert!(text.ends_with(r#""data":{"total": 1.50,"n":123456789012345678901}}"#), "{text}");
    let event: Value = serde_json::from_str(text).unwrap();
    for (name, value) in [
        ("specversion", "1.0"),
        ("id", "m-1"),
        ("source", "/agents/a"),
        ("type", "order.paid"),
        ("datacontenttype", "application/json"),
    ] {
        assert_eq!(event[name], value, "{name}");
    }
    let stored = nats.jetstream().get_stream("OUTBOX").await.unwrap().get_raw_message(1).await.unwrap().time;
    let (seconds, time) = (stored.unix_timestamp(), humantime::parse_rfc3339(event["time"].as_str().unwrap()).unwrap());
    assert_eq!(time.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs(), u64::try_from(seconds).unwrap());
}

#[tokio::test]
async fn what_is_not_json_is_base64_in_a_cloud_event_and_text_in_a_standard_webhook() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let both = format!(
        "{}[endpoints.plain]\nurl = \"{}\"\nsignatures = []\npayload = \"standard-webhooks\"",
        crm(&receiver, "payload = \"cloudevents\""),
        receiver.url("/plain")
    );
    let _hookbridge = Hookbridge::start(&nats, &both).await;
    let text = ("content-type", "text/plain");

    nats.publish("outbox.a.note", &[TO_CRM[0], TO_CRM[1], text], "hi \"you\"").await;
    let event: Value = serde_json::from_slice(&receiver.next().await.body).unwrap();
    assert_eq!((&event["data_base64"], event.get("data")), (&json!(BASE64.encode(b"hi \"you\"")), None));
    assert_eq!((&event["type"], &event["datacontenttype"]), (&json!("note"), &json!("text/plain")));

    let to_plain = [("Hookbridge-Endpoint", "plain"), ("Nats-Msg-Id", "m-2"), text, ("ce-type", "note%20new")];
    nats.publish("outbox.a", &to_plain, "hi \"you\"").await;
    let delivered = receiver.next().await;
    let webhook: Value = serde_json::from_slice(&delivered.body).unwrap();
    assert_eq!((&webhook["type"], &webhook["data"]), (&json!("note new"), &json!("hi \"you\"")));
    assert!(webhook["timestamp"].is_string());
    assert_eq!(delivered.header("content-type"), "application/json");
}

#[tokio::test]
async fn a_body_over_the_endpoints_limit_is_dead_at_once_with_both_sizes() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let _hookbridge = Hookbridge::start(&nats, &crm(&receiver, "max_body = \"1KiB\"")).await;

    nats.publish("outbox.a", &TO_CRM, vec![b'x'; 1025]).await;

    let receipt = dead(&nats).await;
    assert_eq!((receipt["reason"].as_str(), receipt["attempt"].as_u64()), (Some("too-large"), Some(0)));
    let detail = receipt["detail"].as_str().unwrap();
    assert!(detail.contains("1025") && detail.contains("1024"), "{detail}");
    let letter = nats.message("DEAD", "dead.a.m-1").await;
    assert_eq!((letter.payload.len(), letter.header("Hookbridge-Reason")), (1025, Some("too-large")));
    nats.publish("outbox.a", &[TO_CRM[0], ("Nats-Msg-Id", "m-2")], vec![b'x'; 1024]).await;
    assert_eq!(receiver.next().await.header("webhook-id"), "m-2");
}

#[tokio::test]
async fn a_transformation_selects_and_renames_before_the_body_is_wrapped_and_signed() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let keys =
        "payload = \"standard-webhooks\"\ntransform = '''\n{id: .order.id, kind: \"order\", total: .order.total}\n'''";
    let _hookbridge = Hookbridge::start(&nats, &crm(&receiver, keys)).await;

    nats.publish("outbox.a.order", &TO_CRM, r#"{"order":{"id":7,"total":1.50,"secret":true}}"#).await;

    let delivered = receiver.next().await;
    let text = std::str::from_utf8(&delivered.body).unwrap();
    assert!(text.ends_with(r#""data":{"id":7,"kind":"order","total":1.50}}"#), "{text}");
    let signature = sign::v1(b"key bytes", "m-1", delivered.header("webhook-timestamp"), &delivered.body);
    assert_eq!(delivered.header("webhook-signature"), signature);
}

#[tokio::test]
async fn a_body_that_the_transformation_does_not_fit_is_dead_at_once_and_said_without_the_body() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let keys = "transform = \"[{a: .x[], b: .y[]}] | {n: length}\"";
    let hookbridge = Hookbridge::start(&nats, &crm(&receiver, keys)).await;
    let many = format!("[{}]", vec!["0"; 2000].join(","));
    for (id, body, expected) in [
        ("not-json", "s3cret".to_owned(), "not JSON"),
        ("misfit", r#"{"x":"s3cret"}"#.to_owned(), "does not fit"),
        ("hostile", format!("{{\"x\":{many},\"y\":{many}}}"), "more work"),
        ("large", format!("\"{}\"", "x".repeat(1 << 20)), "1048578 bytes"),
    ] {
        nats.publish("outbox.a", &[TO_CRM[0], ("Nats-Msg-Id", id)], body).await;
        let receipt = nats.message("RECEIPTS", &format!("receipts.a.dead.{id}")).await.json();
        assert_eq!((&receipt["reason"], &receipt["attempt"]), (&json!("transform"), &json!(0)), "{receipt}");
        let detail = receipt["detail"].as_str().unwrap();
        assert!(detail.contains(expected) && !detail.contains("s3cret"), "{detail}");
    }
    assert_eq!(receiver.unread(), 0);
    let name = "hookbridge_egress_dead_letters_total{destination=\"crm\",reason=\"transform\"}";
    eventually("all to be counted", async || (hookbridge.metric(name).await == 4.0).then_some(())).await;
}

#[tokio::test]
async fn a_callback_gets_the_body_as_it_is() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let callbacks = format!("[callbacks]\nallow = [\"{}\"]\nsecrets = [\"plain:s\"]", receiver.url("/"));
    let _hookbridge = Hookbridge::start(&nats, &callbacks).await;
    nats.publish("outbox.a", &[("Hookbridge-Callback-Url", &receiver.url("/cb"))], " {\"a\": 1} ").await;
    assert_eq!(receiver.next().await.body, " {\"a\": 1} ");
}

#[test]
fn mistakes_in_what_is_sent_name_key_and_reason() {
    for (keys, expected) in [
        ("payload = \"xml\"", "endpoints.crm.payload: "),
        ("max_body = \"0\"", "endpoints.crm.max_body: a limit of 0"),
        ("transform = \"{id: .a\"", "endpoints.crm.transform: line 1, column 8: expected closing brace"),
        (
            "transform = \"reduce .[] as $x (0; .)\"",
            "endpoints.crm.transform: line 1, column 1: `reduce` is not available",
        ),
    ] {
        let text = format!("[endpoints.crm]\nurl = \"https://a.example/\"\nsignatures = []\n{keys}");
        let said = mistakes(&text);
        assert!(said.contains(expected), "{keys}: {said}");
    }
}
