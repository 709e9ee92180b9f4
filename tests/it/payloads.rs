//! What an endpoint is sent: wrapped, limited, authenticated; and what of its answer an agent gets to see.

use data_encoding::BASE64;

use crate::harness::{Hookbridge, Nats, Receiver, Reply, eventually, mistakes, sign};

fn endpoint(receiver: &Receiver, more: &str) -> String {
    format!("[endpoints.crm]\nurl = \"{}\"\nsecrets = [\"plain:s3cret\"]\n{more}\n", receiver.url("/hooks"))
}

async fn publish(nats: &Nats, id: &str, headers: &[(&str, &str)], body: &str) {
    let headers = [headers, &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", id)]].concat();
    nats.publish("outbox.a", &headers, body.to_owned()).await;
}

async fn receipt(nats: &Nats, outcome: &str, id: &str) -> serde_json::Value {
    nats.message("RECEIPTS", &format!("receipts.a.{outcome}.{id}")).await.json()
}

#[tokio::test]
async fn a_body_is_wrapped_as_a_cloud_event_the_same_on_every_attempt_and_signed_as_it_is_sent() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([Reply::Status(500)]).await);
    let _courier = Hookbridge::start(&nats, &endpoint(&receiver, "payload = \"cloudevents\"")).await;

    publish(&nats, "m-1", &[("ce-type", "order.paid")], r#"{"amount": 1.50}"#).await;

    let (first, second) = (receiver.next().await, receiver.next().await);
    assert_eq!(first.body, second.body);
    assert_eq!(first.header("content-type"), "application/cloudevents+json");
    let signature = sign::v1(b"s3cret", "m-1", second.header("webhook-timestamp"), &second.body);
    assert_eq!(second.header("webhook-signature"), signature);
    let text = String::from_utf8(first.body.to_vec()).unwrap();
    assert!(text.contains(r#"{"amount": 1.50}"#), "{text}");
    let event: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (key, value) in [("specversion", "1.0"), ("id", "m-1"), ("type", "order.paid"), ("source", "/agents/a")] {
        assert_eq!(event[key], value, "{key}");
    }
}

#[tokio::test]
async fn a_body_is_wrapped_as_standard_webhooks_have_it() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let _courier = Hookbridge::start(&nats, &endpoint(&receiver, "payload = \"standard-webhooks\"")).await;

    publish(&nats, "m-1", &[("ce-type", "order.paid")], r#"{"order":7}"#).await;

    let body: serde_json::Value = serde_json::from_slice(&receiver.next().await.body).unwrap();
    assert_eq!((body["type"].as_str(), body["data"]["order"].as_u64()), (Some("order.paid"), Some(7)));
    assert!(body["timestamp"].is_string(), "{body}");
}

#[tokio::test]
async fn a_body_that_is_too_large_for_its_endpoint_is_dead_at_once() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let _courier = Hookbridge::start(&nats, &endpoint(&receiver, "max_body = \"1KiB\"")).await;

    publish(&nats, "large", &[], &"x".repeat(1025)).await;
    publish(&nats, "fits", &[], &"x".repeat(1024)).await;

    assert_eq!(receipt(&nats, "dead", "large").await["reason"], "too-large");
    assert_eq!(receiver.next().await.header("webhook-id"), "fits");
}

#[tokio::test]
async fn an_agent_that_called_an_api_gets_the_answer_with_its_receipt() {
    let (nats, receiver) = (Nats::start().await, Receiver::start().await);
    receiver.then(Reply::Body("{\"ticket\":42}".to_owned()));
    receiver.then(Reply::With(422, "set-cookie: s3cret\r\nlocation: /tickets/7\r\ncontent-type: text/plain"));
    let _courier = Hookbridge::start(&nats, &endpoint(&receiver, "capture_response = true\nretry = []")).await;

    publish(&nats, "first", &[], "x").await;
    let delivered = receipt(&nats, "delivered", "first").await;
    publish(&nats, "second", &[], "x").await;
    let dead = receipt(&nats, "dead", "second").await;

    assert_eq!(delivered["response"]["status"], 200);
    let text = delivered["response"]["body"].as_str().map(str::to_owned);
    let bytes = || BASE64.decode(delivered["response"]["body_base64"].as_str().unwrap().as_bytes()).unwrap();
    assert_eq!(text.unwrap_or_else(|| String::from_utf8(bytes()).unwrap()), "{\"ticket\":42}");
    assert_eq!(
        (dead["response"]["status"].as_u64(), &dead["response"]["headers"]["location"]),
        (Some(422), &"/tickets/7".into())
    );
    assert!(!dead.to_string().contains("s3cret"), "{dead}");
}

#[tokio::test]
async fn without_asking_nothing_of_an_answer_is_kept() {
    let (nats, receiver) = (Nats::start().await, Receiver::scripted([Reply::Body("s3cret".to_owned())]).await);
    let _courier = Hookbridge::start(&nats, &endpoint(&receiver, "")).await;
    publish(&nats, "m-1", &[], "x").await;
    let receipt = receipt(&nats, "delivered", "m-1").await;
    assert!(receipt.get("response").is_none_or(serde_json::Value::is_null), "{receipt}");
}

#[tokio::test]
async fn deliveries_authenticate_by_user_token_and_secret_headers() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    for (auth, header, value) in [
        ("auth = { basic = { user = \"u\", password = \"plain:p\" } }", "authorization", "Basic dTpw"),
        ("auth = { bearer = \"plain:t0ken\" }", "authorization", "Bearer t0ken"),
        ("secret_headers = { x-api-key = \"plain:k3y\" }", "x-api-key", "k3y"),
    ] {
        let courier = Hookbridge::start(&nats, &endpoint(&receiver, auth)).await;
        publish(&nats, &format!("m-{}", header.len() + value.len()), &[], "x").await;
        assert_eq!(receiver.next().await.header(header), value);
        courier.stop().await.unwrap();
    }
}

#[tokio::test]
async fn a_token_is_fetched_once_used_until_it_is_refused_and_then_fetched_anew() {
    let (nats, mut receiver, mut tokens) = (Nats::start().await, Receiver::start().await, Receiver::start().await);
    let token = |name: &str| {
        Reply::Body(format!("{{\"access_token\":\"{name}\",\"token_type\":\"Bearer\",\"expires_in\":3600}}"))
    };
    tokens.then(token("first"));
    tokens.then(token("second"));
    let oauth2 = format!(
        "[endpoints.crm.auth.oauth2]\ntoken_url = \"{}\"\nclient_id = \"me\"\nclient_secret = \"plain:s3cret\"\nscopes = [\"a\", \"b\"]",
        tokens.url("/token")
    );
    let _courier = Hookbridge::start(&nats, &endpoint(&receiver, &oauth2)).await;

    for number in 0..5 {
        publish(&nats, &format!("m-{number}"), &[], "x").await;
    }
    for _ in 0..5 {
        assert_eq!(receiver.next().await.header("authorization"), "Bearer first");
    }
    let asked = tokens.next().await;
    let form = String::from_utf8(asked.body.to_vec()).unwrap();
    assert!(form.contains("grant_type=client_credentials") && form.contains("scope=a+b"), "{form}");
    assert_eq!(asked.header("authorization"), format!("Basic {}", BASE64.encode(b"me:s3cret")));

    receiver.then(Reply::Status(401));
    publish(&nats, "again", &[], "x").await;
    assert_eq!(receiver.next().await.header("authorization"), "Bearer first");
    assert_eq!(receiver.next().await.header("authorization"), "Bearer second");
    tokens.next().await;
    assert_eq!(tokens.unread(), 0);
}

#[tokio::test]
async fn without_a_token_nothing_is_sent_and_the_receipt_says_so() {
    let (nats, mut receiver, tokens) = (Nats::start().await, Receiver::start().await, Receiver::start().await);
    tokens.otherwise(Reply::Status(500));
    let oauth2 = format!(
        "[endpoints.crm.auth.oauth2]\ntoken_url = \"{}\"\nclient_id = \"me\"\nclient_secret = \"plain:hush\"",
        tokens.url("/token")
    );
    let _courier = Hookbridge::start(&nats, &endpoint(&receiver, &oauth2)).await;

    publish(&nats, "m-1", &[], "x").await;

    let dead = receipt(&nats, "dead", "m-1").await;
    assert_eq!((dead["error_class"].as_str(), dead["reason"].as_str()), (Some("auth"), Some("exhausted")));
    assert!(!dead.to_string().contains("hush"), "{dead}");
    assert_eq!(receiver.unread(), 0);
    eventually("three tries", async || (tokens.connections() > 0).then_some(())).await;
}

#[test]
fn what_cannot_work_is_a_mistake() {
    for (more, expected) in [
        ("auth = { }", "endpoints.crm"),
        ("auth = { bearer = \"plain:x\", basic = { user = \"u\", password = \"plain:p\" } }", "endpoints.crm"),
        ("capture_response = true\ncapture_headers = [\"set-cookie\"]", "never captured"),
        ("max_body = \"0B\"", "sends nothing"),
        ("payload = \"xml\"", "payload"),
    ] {
        let text = format!("[endpoints.crm]\nurl = \"https://a.example/\"\nsecrets = [\"plain:x\"]\n{more}\n");
        assert!(mistakes(&text).contains(expected), "{more}: {}", mistakes(&text));
    }
}

#[tokio::test]
async fn a_transformation_selects_and_renames_and_what_it_cannot_make_is_dead_with_a_reason() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let transform = "transform = \"{id: .order.id, kind: \\\"order\\\"}\"\npayload = \"standard-webhooks\"";
    let _courier = Hookbridge::start(&nats, &endpoint(&receiver, transform)).await;

    publish(&nats, "good", &[], r#"{"order":{"id":7,"secret":"x"}}"#).await;
    publish(&nats, "bad", &[], "not JSON").await;

    let body: serde_json::Value = serde_json::from_slice(&receiver.next().await.body).unwrap();
    assert_eq!(body["data"], serde_json::json!({"id": 7, "kind": "order"}));
    assert_eq!(receipt(&nats, "dead", "bad").await["reason"], "transform");
}

#[test]
fn a_transformation_without_bounds_or_sense_is_a_mistake() {
    for program in ["def f: f; f", "[range(1000000000)]", "{id:", "recurse", "reduce .[] as $x (0; . + $x)", "env"] {
        let text = format!(
            "[endpoints.crm]\nurl = \"https://a.example/\"\nsecrets = [\"plain:x\"]\ntransform = {program:?}\n"
        );
        assert!(mistakes(&text).contains("transform"), "{program}: {}", mistakes(&text));
    }
}
