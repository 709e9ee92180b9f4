//! A list in a body, taken apart into events of their own.

use hookbridge::app::{Options, Roles};

use crate::harness::{Answer, Hookbridge, Nats, eventually};

const SPLIT: &str = r#"
[sources.own]
verify = "none"
id = "header:X-Id"
type = "json:/kind"
split = true
max_body = "6MiB"
[sources.own.batch]
items = "json:/events"
type = ["json:/kind", "item:/type"]
id = "item:/id"
"#;

async fn post(hookbridge: &Hookbridge, body: impl Into<bytes::Bytes>) -> Answer {
    hookbridge.post("/hooks/own", &[("content-type", "application/vnd.list+json")], body).await
}

/// A list of events with these numbers.
fn numbered(numbers: impl IntoIterator<Item = usize>) -> String {
    let items: Vec<String> = numbers.into_iter().map(|n| format!(r#"{{"id":"e-{n}","type":"t"}}"#)).collect();
    format!(r#"{{"kind":"k","events":[{}]}}"#, items.join(","))
}

#[tokio::test]
async fn every_item_is_a_message_of_its_own_byte_for_byte() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SPLIT).await;
    let (first, second) =
        (r#"{ "id" : "a-1",  "type":"made", "n":1.0, "e":"\u00e9" }"#, r#"{"type":"sold","id":"a-2"}"#);
    let body = format!("{{\"kind\":\"order\",\n\"events\": [\n {first} ,\t{second}\r\n]}}");

    let answer = post(&hookbridge, body).await;

    answer.assert_status(202);
    assert_eq!(answer.json(), serde_json::json!({ "id": "a-1", "duplicate": false, "events": 2 }));
    for (subject, id, payload) in [("events.own.order.made", "a-1", first), ("events.own.order.sold", "a-2", second)] {
        let event = nats.message("EVENTS", subject).await;
        assert_eq!(event.payload, payload.as_bytes());
        assert_eq!((event.header("ce-id"), event.header("ce-datacontenttype")), (Some(id), Some("application/json")));
        assert_eq!(event.header("Nats-Msg-Id"), Some(&format!("own:{id}")[..]));
    }
    assert_eq!(nats.count("EVENTS").await, 2);
}

#[tokio::test]
async fn a_batch_that_comes_again_stores_what_is_missing_and_nothing_twice() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SPLIT).await;
    let word = |answer: &Answer| (answer.json()["duplicate"].as_bool().unwrap(), answer.json()["events"].clone());

    assert_eq!(word(&post(&hookbridge, numbered(0..2)).await), (false, 2.into()));
    assert_eq!(word(&post(&hookbridge, numbered(0..2)).await), (true, 2.into()));
    assert_eq!(nats.count("EVENTS").await, 2);

    assert_eq!(word(&post(&hookbridge, numbered(0..4)).await), (false, 4.into()));
    assert_eq!(nats.count("EVENTS").await, 4);
    assert_eq!((hookbridge.counted("own", "stored").await, hookbridge.counted("own", "duplicate").await), (2.0, 1.0));
}

#[tokio::test]
async fn items_without_an_id_are_named_by_their_request_or_their_bytes() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SPLIT).await;
    let (body, twice) = (r#"{"events":[{"n":1},{"n":2}]}"#, r#"{"events":[{"n":7},{"n":7},{"n":8}]}"#);
    let named = async || hookbridge.post("/hooks/own", &[("x-id", "whole")], body).await.json();

    assert_eq!(named().await, serde_json::json!({ "id": "whole", "duplicate": false, "events": 2 }));
    assert_eq!(named().await["duplicate"], true);
    let mut ids: Vec<String> = Vec::new();
    for event in nats.messages("EVENTS", "events.own.>", 2).await {
        ids.push(event.header("ce-id").unwrap().to_owned());
    }
    ids.sort();
    assert_eq!(ids, ["whole.0", "whole.1"]);

    // Nobody repeats himself within one request: equal items are different events.
    assert_eq!(post(&hookbridge, twice).await.json()["duplicate"], false);
    assert_eq!(nats.count("EVENTS").await, 5);
    assert_eq!(post(&hookbridge, twice).await.json()["duplicate"], true);
    assert_eq!(nats.count("EVENTS").await, 5);
}

#[tokio::test]
async fn an_empty_list_is_nothing_and_no_list_is_one_event() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SPLIT).await;

    let empty = post(&hookbridge, r#"{"kind":"k","events":[]}"#).await;
    empty.assert_status(202);
    assert_eq!(empty.json()["events"], 0);
    assert_eq!(nats.count("EVENTS").await, 0);

    for (index, body) in [
        r#"{"kind":"k","events":{"a":1}}"#,
        r#"{"kind":"k"}"#,
        r#"{"kind":"k","events":[1],"events":[2]}"#,
        r#"{"kind":"k","events":[1}"#,
        "no JSON at all",
        "",
    ]
    .into_iter()
    .enumerate()
    {
        let answer = post(&hookbridge, body).await;
        answer.assert_status(202);
        assert_eq!(answer.json()["events"], serde_json::Value::Null, "{body}");
        assert_eq!(nats.count("EVENTS").await, index as u64 + 1, "{body}");
    }
    let whole = nats.message("EVENTS", "events.own.k").await;
    assert_eq!(whole.payload, &br#"{"kind":"k","events":{"a":1}}"#[..]);
    assert_eq!(whole.header("ce-datacontenttype"), Some("application/vnd.list+json"));
}

#[tokio::test]
async fn odd_items_are_events_too() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SPLIT).await;
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let body = format!(r#"{{"kind":"k","events":[null,1,"x",[],{{}},{{"id":7,"type":true}},{{"id":{{}}}},{deep}]}}"#);

    assert_eq!(post(&hookbridge, body).await.json()["events"], 8);

    assert_eq!(nats.message("EVENTS", "events.own.k.true").await.header("ce-id"), Some("7"));
    let payloads: Vec<String> = nats
        .messages("EVENTS", "events.own.>", 8)
        .await
        .iter()
        .map(|event| String::from_utf8(event.payload.to_vec()).unwrap())
        .collect();
    for payload in ["null", "1", "\"x\"", "[]", "{}", &deep] {
        assert!(payloads.iter().any(|stored| stored == payload), "{payload:.20}");
    }
}

#[tokio::test]
async fn a_thousand_items_are_taken_apart_and_one_more_is_413() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SPLIT).await;

    let answer = post(&hookbridge, numbered(0..1000)).await;
    answer.assert_status(202);
    assert_eq!((answer.json()["events"].clone(), nats.count("EVENTS").await), (1000.into(), 1000));

    post(&hookbridge, numbered(1000..2001)).await.assert_status(413);
    assert_eq!((nats.count("EVENTS").await, hookbridge.counted("own", "too-many-items").await), (1000, 1.0));
}

#[tokio::test]
async fn what_does_not_depend_on_an_item_is_not_looked_for_in_every_one() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SPLIT).await;
    // The type of the whole stands behind five megabytes; reading them for each item would take minutes.
    let items: Vec<String> = (0..1000).map(|n| format!(r#"{{"id":"{n}","pad":"{}"}}"#, "x".repeat(5000))).collect();
    let body = format!(r#"{{"events":[{}],"kind":"late"}}"#, items.join(","));

    // Nobody waits for an answer longer than the harness does.
    post(&hookbridge, body).await.assert_status(202);

    assert_eq!(nats.subjects("EVENTS").await, ["events.own.late"]);
}

#[tokio::test]
async fn a_batch_that_the_stream_had_no_room_for_is_503_and_its_repeat_completes_it() {
    let nats = Nats::start().await;
    let full = format!("{SPLIT}[streams.events]\nmax_bytes = \"4KiB\"");
    let hookbridge = Hookbridge::start(&nats, &full).await;
    let answer = post(&hookbridge, numbered(0..100)).await;
    answer.assert_status(503);
    assert_eq!(answer.header("retry-after"), "5");
    let stored = nats.count("EVENTS").await;
    assert!((1..100).contains(&stored), "{stored}");
    hookbridge.stop().await.unwrap();

    let options = Options { update_streams: true, ..Options::default() };
    let wide = format!("{SPLIT}[streams.events]\nmax_bytes = \"40MiB\"");
    let hookbridge = Hookbridge::start_with(&nats, Roles::Gateway, &wide, options).await;
    hookbridge.ready().await;
    assert_eq!(post(&hookbridge, numbered(0..100)).await.json()["duplicate"], false);
    assert_eq!(nats.count("EVENTS").await, 100);
    assert_eq!(post(&hookbridge, numbered(0..100)).await.json()["duplicate"], true);
}

#[tokio::test]
async fn a_batch_during_which_nats_dies_is_never_half_taken_nor_doubled() {
    let mut nats = Nats::start().await;
    let text = format!("{SPLIT}[gateway]\nlisten = \"127.0.0.1:0\"\npublish_timeout = \"1s\"");
    let hookbridge = Hookbridge::start(&nats, &text).await;
    let body = numbered(0..1000);

    let mut answer = Box::pin(post(&hookbridge, body.clone()));
    let begun = eventually("the first items", async || (nats.count("EVENTS").await > 0).then_some(()));
    let early = tokio::select! {
        early = &mut answer => Some(early),
        () = begun => None,
    };
    nats.kill();
    let first = match early {
        Some(early) => early,
        None => answer.await,
    };
    assert!(first.status == 503 || first.status == 202, "{}", first.status);
    nats.run_again().await;
    let after = nats.count("EVENTS").await;
    assert!(first.status == 503 || after == 1000, "answered {} and stored {after}", first.status);

    let complete = async || (post(&hookbridge, body.clone()).await.status == 202).then_some(());
    eventually("the repeat to be taken", complete).await;
    assert_eq!(nats.count("EVENTS").await, 1000);
    assert_eq!(post(&hookbridge, body).await.json()["duplicate"], true);
}

#[tokio::test]
async fn what_the_server_cannot_take_as_a_whole_is_413_though_its_items_are_small() {
    let nats = Nats::start_with("max_payload: 128KB").await;
    let hookbridge = Hookbridge::start(&nats, SPLIT).await;
    post(&hookbridge, numbered(0..2)).await.assert_status(202);
    let long = numbered(0..900) + &" ".repeat(64 * 1024);
    post(&hookbridge, long).await.assert_status(413);
    assert_eq!(nats.count("EVENTS").await, 2);
}

#[tokio::test]
async fn only_the_wanted_items_of_a_batch_are_published() {
    let nats = Nats::start().await;
    let text = SPLIT.replace("split = true", "split = true\ntypes = [\"k.w*\"]");
    let hookbridge = Hookbridge::start(&nats, &text).await;
    let body = |types: [&str; 2]| {
        format!(
            r#"{{"kind":"k","events":[{{"id":"{0}1","type":"{0}"}},{{"id":"{1}2","type":"{1}"}}]}}"#,
            types[0], types[1]
        )
    };

    let some = post(&hookbridge, body(["other", "wanted"])).await;
    assert_eq!(some.assert_status(202).json(), serde_json::json!({ "id": "wanted2", "duplicate": false, "events": 1 }));
    let none = post(&hookbridge, body(["other", "others"])).await;
    assert_eq!(none.assert_status(202).json()["filtered"], true);

    assert_eq!(nats.subjects("EVENTS").await, ["events.own.k.wanted"]);
    assert_eq!(hookbridge.counted("own", "filtered").await, 1.0);
}
