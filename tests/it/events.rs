//! What agents find on their subjects.

use std::time::{Duration, UNIX_EPOCH};

use hookbridge::app::{Options, Roles};
use hookbridge::clock::Clock;

use crate::harness::{Hookbridge, Nats, sign};

const OPEN: &str = r#"
[sources.open]
verify = "none"
type = "header:X-Type"
id = "header:X-Id"
headers = ["X-Region", "X-Odd"]
"#;

#[tokio::test]
async fn a_verified_webhook_is_stored_byte_for_byte_with_its_headers() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, sign::SOURCES).await;
    let body = br#"{"action":"opened", "n":1.0 }"#;
    let signature = sign::hex("s3cret", body);
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut headers = sign::github(&signature, "issues", "delivery-1");
    headers.push(("traceparent", traceparent));

    let answer = hookbridge.post("/hooks/github", &headers, &body[..]).await;

    answer.assert_status(202);
    assert_eq!(answer.json(), serde_json::json!({ "id": "delivery-1", "duplicate": false }));
    let event = nats.message("EVENTS", "events.>").await;
    assert_eq!(event.subject, "events.github.issues.opened");
    assert_eq!(event.payload, &body[..]);
    for (name, value) in [
        ("ce-specversion", "1.0"),
        ("ce-id", "delivery-1"),
        ("ce-source", "/hooks/github"),
        ("ce-type", "issues.opened"),
        ("ce-datacontenttype", "application/json"),
        ("Nats-Msg-Id", "github:delivery-1"),
        ("traceparent", traceparent),
    ] {
        assert_eq!(event.header(name), Some(value), "{name}");
    }
    assert!(event.header("ce-time").unwrap().ends_with('Z'));
}

#[tokio::test]
async fn a_webhook_sent_twice_is_stored_once_also_after_a_restart_of_nats_and_gateway() {
    let mut nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, sign::SOURCES).await;
    let signature = sign::hex("s3cret", b"{}");
    let headers = sign::github(&signature, "push", "same");

    let first = hookbridge.post("/hooks/github", &headers, "{}").await;
    let second = hookbridge.post("/hooks/github", &headers, "{}").await;
    assert_eq!((first.status, first.json()["duplicate"].as_bool()), (second.status, Some(false)));
    assert_eq!(second.json(), serde_json::json!({ "id": "same", "duplicate": true }));

    hookbridge.stop().await.unwrap();
    nats.kill();
    nats.run_again().await;
    let hookbridge = Hookbridge::start(&nats, sign::SOURCES).await;
    let third = hookbridge.post("/hooks/github", &headers, "{}").await;
    assert_eq!(third.json(), serde_json::json!({ "id": "same", "duplicate": true }));
    assert_eq!(nats.count("EVENTS").await, 1);
}

#[tokio::test]
async fn without_a_delivery_id_equal_bodies_are_one_event_within_the_window_only() {
    let nats = Nats::start().await;
    let clock = Clock::fixed(UNIX_EPOCH + Duration::from_secs(1_760_000_099));
    let options = Options { clock: clock.clone(), ..Options::default() };
    let text = "[sources.open]\nverify = \"none\"";
    let hookbridge = Hookbridge::start_with(&nats, Roles::Gateway, text, options).await;
    hookbridge.ready().await;
    let post = async |body: &'static str| hookbridge.post("/hooks/open", &[], body).await.json()["duplicate"].clone();

    assert_eq!(post("same").await, false);
    clock.set(UNIX_EPOCH + Duration::from_secs(1_760_000_101));
    assert_eq!(post("same").await, true, "two seconds later, across the border of a window");
    assert_eq!(post("other").await, false);
    clock.set(UNIX_EPOCH + Duration::from_secs(1_760_000_101 + 300));
    assert_eq!(post("same").await, false, "a window later");
    assert_eq!(nats.count("EVENTS").await, 3);
}

#[tokio::test]
async fn bodies_that_are_empty_or_not_utf_8_are_events_too() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, OPEN).await;
    let odd = [0xff, 0x00, 0xfe, b'\r', b'\n'];

    hookbridge.post("/hooks/open", &[("x-id", "empty"), ("x-type", "a")], "").await.assert_status(202);
    hookbridge.post("/hooks/open", &[("x-id", "odd"), ("x-type", "b")], odd.to_vec()).await.assert_status(202);

    assert!(nats.message("EVENTS", "events.open.a").await.payload.is_empty());
    assert_eq!(nats.message("EVENTS", "events.open.b").await.payload, &odd[..]);
}

#[tokio::test]
async fn types_and_ids_from_outside_become_safe_subjects_and_headers() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, OPEN).await;
    let post = async |event_type: &str, id: &str| {
        let headers = [("x-type", event_type), ("x-id", id)];
        hookbridge.post("/hooks/open", &headers, "x").await.assert_status(202);
    };

    post("order.*.>", "1").await;
    post("a b/c", "an id with blanks").await;
    post("", "3").await;

    let expected = ["events.open.a_b.c", "events.open.order._._", "events.open.unknown"];
    assert_eq!(nats.subjects("EVENTS").await, expected);
    let event = nats.message("EVENTS", "events.open.a_b.c").await;
    assert!(event.header("ce-id").unwrap().starts_with("sha256:"), "{event:?}");
    assert_eq!(event.header("ce-type"), Some("a%20b/c"));
}

#[tokio::test]
async fn only_listed_request_headers_pass_and_none_can_pose_as_nats_own() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, OPEN).await;
    let headers = [
        ("x-region", "eu"),
        ("x-odd", "caf\u{e9}"),
        ("x-secret", "hidden"),
        ("nats-msg-id", "forged"),
        ("nats-rollup", "all"),
        ("ce-id", "forged"),
    ];

    hookbridge.post("/hooks/open", &headers, "x").await.assert_status(202);

    let event = nats.message("EVENTS", "events.>").await;
    let mut names: Vec<String> = event.headers.iter().map(|(name, _)| name.to_string()).collect();
    names.sort();
    let expected =
        ["Nats-Msg-Id", "ce-id", "ce-source", "ce-specversion", "ce-time", "ce-type", "http-x-region", "traceparent"];
    assert_eq!(names, expected);
    assert_eq!(event.header("http-x-region"), Some("eu"));
    assert!(event.header("Nats-Msg-Id").unwrap().starts_with("open:sha256:"));
}

#[tokio::test]
async fn an_agent_finds_its_events_on_the_durable_named_like_it() {
    let nats = Nats::start().await;
    let text = format!("{}\n[agents.planner]\nevents = [\"events.github.push\"]", sign::SOURCES);
    let hookbridge = Hookbridge::start(&nats, &text).await;
    let signature = sign::hex("s3cret", b"{}");
    hookbridge.post("/hooks/github", &sign::github(&signature, "issues", "1"), "{}").await.assert_status(202);
    hookbridge.post("/hooks/github", &sign::github(&signature, "push", "2"), "{}").await.assert_status(202);

    let stream = nats.jetstream().get_stream("EVENTS").await.unwrap();
    let mut durable = stream.get_consumer::<async_nats::jetstream::consumer::pull::Config>("planner").await.unwrap();
    assert_eq!(durable.info().await.unwrap().num_pending, 1);
    let tasks = nats.jetstream().get_stream("TASKS").await.unwrap();
    let mut tasks = tasks.get_consumer::<async_nats::jetstream::consumer::pull::Config>("planner").await.unwrap();
    assert_eq!(tasks.info().await.unwrap().config.filter_subject, "tasks.planner.*");
}

#[tokio::test]
async fn with_a_prefix_everything_lives_under_it() {
    let nats = Nats::start().await;
    let text = format!("{}\n[nats]\nprefix = \"acme\"", sign::SOURCES);
    let hookbridge = Hookbridge::start(&nats, &text).await;
    let signature = sign::hex("s3cret", b"{}");
    hookbridge.post("/hooks/github", &sign::github(&signature, "push", "1"), "{}").await.assert_status(202);

    let event = nats.message("acme_EVENTS", "acme.events.github.push").await;
    assert_eq!(event.header("Nats-Msg-Id"), Some("github:1"));
    assert!(nats.jetstream().get_key_value("acme_hookbridge_tasks").await.is_ok());
}
