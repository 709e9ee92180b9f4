//! A list in a body becomes one event per item, all stored before the answer.

use serde_json::json;

use crate::harness::{Hookbridge, Nats, eventually};

const SPLIT: &str = r#"
[sources.list]
verify = "none"
id = "header:X-Id"
type = "header:X-Type"
batch = { items = "json:/events", type = "item:/type", id = "item:/id" }
split = true
"#;

#[tokio::test]
async fn each_item_is_an_event_of_its_own_byte_for_byte() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SPLIT).await;
    let body = r#"{"n":2, "events":[ {"id":"a","type":"order.paid", "x": 1.0}, {"type":"order.sent"},7]}"#;

    let headers = [("x-id", "whole"), ("x-type", "order")];
    let answer = hookbridge.post("/hooks/list", &headers, body).await;

    assert_eq!(answer.json(), json!({ "id": "whole", "duplicate": false, "events": 3 }));
    let paid = nats.message("EVENTS", "events.list.order.paid").await;
    assert_eq!(paid.payload, r#"{"id":"a","type":"order.paid", "x": 1.0}"#);
    assert_eq!((paid.header("ce-id"), paid.header("Nats-Msg-Id")), (Some("a"), Some("list:a")));
    assert_eq!(paid.header("ce-datacontenttype"), Some("application/json"));
    // An item without an id is named by the whole and its place, one without a type by the type of the whole.
    assert_eq!(nats.message("EVENTS", "events.list.order.sent").await.header("ce-id"), Some("whole.1"));
    let seven = nats.message("EVENTS", "events.list.order").await;
    assert_eq!((&seven.payload[..], seven.header("ce-id")), (&b"7"[..], Some("whole.2")));
}

#[tokio::test]
async fn a_batch_that_comes_again_adds_only_what_is_not_there() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SPLIT).await;
    let post = async |body: &str| hookbridge.post("/hooks/list", &[], body.to_owned()).await.json();

    assert_eq!(post(r#"{"events":[{"id":"a"},{"id":"b"}]}"#).await["duplicate"], false);
    assert_eq!(post(r#"{"events":[{"id":"a"},{"id":"b"}]}"#).await["duplicate"], true);
    assert_eq!(post(r#"{"events":[{"id":"b"},{"id":"c"}]}"#).await["duplicate"], false);

    assert_eq!(nats.count("EVENTS").await, 3);
}

#[tokio::test]
async fn a_body_without_a_list_is_one_event_and_an_empty_list_none() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SPLIT).await;

    let one = hookbridge.post("/hooks/list", &[("x-id", "1")], "{\"events\":{}}").await.json();
    assert_eq!(one, json!({ "id": "1", "duplicate": false }));
    let none = hookbridge.post("/hooks/list", &[("x-id", "2")], "{\"events\":[]}").await.json();
    assert_eq!(none, json!({ "id": "2", "duplicate": false, "events": 0 }));

    assert_eq!(nats.count("EVENTS").await, 1);
}

#[tokio::test]
async fn a_thousand_items_are_taken_and_one_more_is_413() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SPLIT).await;
    let list = |items: usize| {
        let items: Vec<_> = (0..items).map(|index| json!({ "id": format!("i{index}") })).collect();
        json!({ "events": items }).to_string()
    };

    assert_eq!(hookbridge.post("/hooks/list", &[], list(1000)).await.json()["events"], 1000);
    hookbridge.post("/hooks/list", &[], list(1001)).await.assert_status(413);

    assert_eq!(nats.count("EVENTS").await, 1000);
}

#[tokio::test]
async fn a_batch_that_nats_did_not_confirm_is_503_and_its_repeat_completes_it_without_doubles() {
    let mut nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SPLIT).await;
    let items: Vec<_> = (0..200).map(|index| json!({ "id": format!("i{index}") })).collect();
    let body = json!({ "events": items }).to_string();

    nats.kill();
    hookbridge.post("/hooks/list", &[], body.clone()).await.assert_status(503);
    nats.run_again().await;
    let again = async || (hookbridge.post("/hooks/list", &[], body.clone()).await.status == 202).then_some(());
    eventually("the batch to be stored", again).await;

    assert_eq!(nats.count("EVENTS").await, 200);
}

#[tokio::test]
async fn a_list_that_is_not_to_be_taken_apart_stays_whole() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, &SPLIT.replace("split = true", "")).await;

    hookbridge.post("/hooks/list", &[("x-type", "t")], "{\"events\":[1,2]}").await.assert_status(202);

    assert_eq!(nats.message("EVENTS", "events.list.t").await.payload, "{\"events\":[1,2]}");
    assert_eq!(nats.count("EVENTS").await, 1);
}
