//! What one source can say for itself: types, names, methods, sizes, answers.

use serde_json::json;

use crate::harness::{Hookbridge, Nats, request, sign};

#[tokio::test]
async fn a_type_that_is_not_wanted_is_answered_and_counted_and_not_published() {
    let nats = Nats::start().await;
    let text = format!("{}types = [\"push\", \"issues.*\"]", sign::SOURCES);
    let hookbridge = Hookbridge::start(&nats, &text).await;
    let signature = sign::hex("s3cret", b"{\"action\":\"opened\"}");
    let post = async |event: &str, id: &str| {
        hookbridge.post("/hooks/github", &sign::github(&signature, event, id), "{\"action\":\"opened\"}").await
    };

    post("issues", "1").await.assert_status(202);
    let filtered = post("star", "2").await;
    assert_eq!(filtered.json(), json!({ "id": "2", "duplicate": false, "filtered": true }));
    post("push", "3").await.assert_status(202);

    // `push` comes with an action here, which makes it another type than the listed one.
    assert_eq!(nats.count("EVENTS").await, 1);
    let filtered = "hookbridge_ingress_requests_total{source=\"github\",outcome=\"filtered\"}";
    assert_eq!(hookbridge.metric(filtered).await, 2.0);
}

#[tokio::test]
async fn a_source_says_more_than_its_preset_and_wins() {
    let nats = Nats::start().await;
    let text = format!(
        "{}type = \"repo.{{json:/repository/name}}.{{header:X-GitHub-Event}}\"\nid = [\"header:X-GitHub-Delivery\", \"json:/repository/name\"]",
        sign::SOURCES
    );
    let hookbridge = Hookbridge::start(&nats, &text).await;
    let body = "{\"repository\":{\"name\":\"hello\"}}";
    let signature = sign::hex("s3cret", body.as_bytes());

    hookbridge.post("/hooks/github", &sign::github(&signature, "push", "d1"), body).await.assert_status(202);

    let event = nats.message("EVENTS", "events.github.repo.hello.push").await;
    assert_eq!((event.header("ce-type"), event.header("ce-id")), (Some("repo.hello.push"), Some("d1.hello")));
}

#[tokio::test]
async fn half_an_id_is_no_id() {
    let nats = Nats::start().await;
    let text = "[sources.a]\nverify = \"none\"\nid = [\"header:X-Channel\", \"header:X-Number\"]";
    let hookbridge = Hookbridge::start(&nats, text).await;

    let whole = hookbridge.post("/hooks/a", &[("x-channel", "c"), ("x-number", "1")], "x").await;
    assert_eq!(whole.json()["id"], "c.1");
    let half = hookbridge.post("/hooks/a", &[("x-number", "1")], "y").await;
    assert!(half.json()["id"].as_str().unwrap().starts_with("sha256:"));
}

#[tokio::test]
async fn without_a_hash_window_equal_bodies_are_different_events() {
    let nats = Nats::start().await;
    let text = "[sources.a]\nverify = \"none\"\ndedupe_hash_window = \"0s\"";
    let hookbridge = Hookbridge::start(&nats, text).await;

    for _ in 0..2 {
        assert_eq!(hookbridge.post("/hooks/a", &[], "ping").await.json()["duplicate"], false);
    }

    assert_eq!(nats.count("EVENTS").await, 2);
}

#[tokio::test]
async fn methods_content_types_and_sizes_are_the_sources_own() {
    let nats = Nats::start().await;
    let text = r#"
        [gateway]
        max_body = "1KiB"
        [sources.a]
        verify = "none"
        methods = ["POST", "PUT"]
        content_types = ["application/json"]
        max_body = "2KiB"
        [sources.b]
        verify = "none"
        max_body = "10B"
        "#;
    let hookbridge = Hookbridge::start(&nats, text).await;
    let json = [("content-type", "application/JSON; charset=utf-8")];

    assert_eq!(request("PUT", &hookbridge.url("/hooks/a"), &json, "x".repeat(2048)).await.status, 202);
    hookbridge.post("/hooks/a", &json, "x".repeat(2049)).await.assert_status(413);
    hookbridge.post("/hooks/a", &[("content-type", "text/plain")], "x").await.assert_status(415);
    hookbridge.post("/hooks/a", &[], "x").await.assert_status(415);
    let refused = request("PATCH", &hookbridge.url("/hooks/a"), &json, "x").await;
    assert_eq!((refused.status.as_u16(), refused.header("allow")), (405, "POST, PUT"));
    hookbridge.post("/hooks/b", &[], "x".repeat(11)).await.assert_status(413);
}

#[tokio::test]
async fn a_provider_is_answered_as_it_wants() {
    let nats = Nats::start().await;
    let text = r#"
        [sources.text]
        verify = "none"
        answer = { status = 200, text = "[accepted]" }
        [sources.json]
        verify = "none"
        answer = { status = 201, json = { type = "message", text = "ok" } }
        [sources.xero]
        preset = "xero"
        secrets = ["plain:s"]
        "#;
    let hookbridge = Hookbridge::start(&nats, text).await;

    for _ in 0..2 {
        let answer = hookbridge.post("/hooks/text", &[], "x").await;
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "[accepted]"));
    }
    let answer = hookbridge.post("/hooks/json", &[], "x").await;
    assert_eq!((answer.status.as_u16(), answer.json()), (201, json!({ "type": "message", "text": "ok" })));
    let refused = hookbridge.post("/hooks/xero", &[("x-xero-signature", "AAAA")], "x").await;
    assert_eq!((refused.status.as_u16(), refused.text().as_str()), (401, ""));
}

#[tokio::test]
async fn a_body_as_large_as_github_s_largest_arrives_byte_for_byte() {
    let nats = Nats::start_with("max_payload: 32MB").await;
    let text = format!("{}max_body = \"25MB\"", sign::SOURCES);
    let hookbridge = Hookbridge::start(&nats, &text).await;
    let body = format!("{{\"pad\":\"{}\"}}", "x".repeat(25_000_000 - 10));
    let signature = sign::hex("s3cret", body.as_bytes());

    assert_eq!(body.len(), 25_000_000);
    hookbridge.post("/hooks/github", &sign::github(&signature, "push", "big"), body.clone()).await.assert_status(202);

    let event = nats.message("EVENTS", "events.github.push").await;
    assert!(event.payload == body, "another body of {} bytes", event.payload.len());
}
