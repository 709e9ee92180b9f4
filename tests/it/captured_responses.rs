//! What an agent learns of an endpoint's answer, where the operator lets it.

use hookbridge::app::Roles;
use serde_json::{Value, json};

use crate::harness::{Hookbridge, Nats, Receiver, Reply, mistakes};

const TO_CRM: [(&str, &str); 2] = [("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", "m-1")];

/// An endpoint `crm` at the receiver whose answers are captured.
fn crm(receiver: &Receiver) -> String {
    format!("[endpoints.crm]\nurl = \"{}\"\nsignatures = []\ncapture_response = true\n", receiver.url("/"))
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

async fn receipt(nats: &Nats, outcome: &str) -> Value {
    nats.message("RECEIPTS", &format!("receipts.a.{outcome}.m-1")).await.json()
}

#[tokio::test]
async fn the_answer_is_in_every_receipt_of_an_attempt_that_had_one() {
    let nats = Nats::start().await;
    let json = "content-type: application/json\r\nset-cookie: s3cret\r\nx-request-id: r-1\r\nx-other: no\r\n";
    let receiver = Receiver::scripted([
        Reply::Raw(answer("500 Broken", "content-type: text/plain\r\n", "é")),
        // The kept connection, and the fresh one over which the request goes out once more.
        Reply::Close,
        Reply::Close,
        Reply::Raw(answer("200 OK", json, "{\"id\":42}")),
        Reply::Raw(answer("410 Gone", "", "bye")),
    ])
    .await;
    let _hookbridge = Hookbridge::start(&nats, &crm(&receiver)).await;

    nats.publish("outbox.a", &TO_CRM, "x").await;

    let retrying = nats.messages("RECEIPTS", "receipts.a.retrying.m-1", 2).await;
    let expected = json!({"status": 500, "headers": {"content-type": "text/plain"}, "body": "é", "truncated": false});
    assert_eq!(retrying[0].json()["response"], expected);
    assert_eq!(retrying[1].json().get("response"), None, "there was no answer");
    let headers = json!({"content-type": "application/json", "x-request-id": "r-1"});
    let expected = json!({"status": 200, "headers": headers, "body": "{\"id\":42}", "truncated": false});
    assert_eq!(receipt(&nats, "delivered").await["response"], expected);

    nats.publish("outbox.a", &[TO_CRM[0], ("Nats-Msg-Id", "m-2")], "x").await;
    let dead = nats.message("RECEIPTS", "receipts.a.dead.m-2").await.json();
    let expected = json!({"status": 410, "headers": {}, "body_base64": "Ynll", "truncated": false});
    assert_eq!((&dead["reason"], &dead["response"]), (&json!("gone"), &expected));
}

#[tokio::test]
async fn nothing_is_captured_unless_the_endpoint_asks_for_it() {
    let nats = Nats::start().await;
    let receiver = Receiver::scripted([Reply::Body("secret of theirs".to_owned())]).await;
    let text = crm(&receiver).replace("capture_response = true", "");
    let _hookbridge = Hookbridge::start(&nats, &text).await;
    nats.publish("outbox.a", &TO_CRM, "x").await;
    let receipt = receipt(&nats, "delivered").await;
    assert_eq!((receipt.get("response"), receipt.to_string().contains("theirs")), (None, false));
}

#[tokio::test]
async fn a_long_answer_is_cut_and_one_without_end_costs_no_attempt() {
    for reply in [Reply::Body("x".repeat(100_000)), Reply::Endless] {
        let (nats, receiver) = (Nats::start().await, Receiver::scripted([reply]).await);
        let _hookbridge = Hookbridge::start(&nats, &crm(&receiver)).await;
        nats.publish("outbox.a", &TO_CRM, "x").await;
        let receipt = receipt(&nats, "delivered").await;
        let response = &receipt["response"];
        assert_eq!((&receipt["attempt"], &response["truncated"]), (&json!(1), &json!(true)));
        let body = data_encoding::BASE64.decode(response["body_base64"].as_str().unwrap().as_bytes()).unwrap();
        assert_eq!(body, vec![b'x'; 64 * 1024]);
        assert_eq!(response.get("incomplete"), None);
    }
}

#[tokio::test]
async fn an_answer_that_stalls_or_breaks_off_is_told_as_incomplete_and_the_status_counts() {
    let half = "HTTP/1.1 201 Created\r\ncontent-type: text/plain\r\ncontent-length: 10\r\n\r\nhal".to_owned();
    for reply in [Reply::Stall, Reply::RawThenClose(half)] {
        let (nats, receiver) = (Nats::start().await, Receiver::scripted([reply.clone()]).await);
        let text = format!("{}[egress]\ntimeout = \"1s\"", crm(&receiver));
        let _hookbridge = Hookbridge::start(&nats, &text).await;
        nats.publish("outbox.a", &TO_CRM, "x").await;
        let receipt = receipt(&nats, "delivered").await;
        assert_eq!((&receipt["attempt"], &receipt["response"]["incomplete"]), (&json!(1), &json!(true)), "{reply:?}");
    }
}

#[tokio::test]
async fn a_receipt_is_cut_to_what_the_server_takes() {
    let nats = Nats::start_with("max_payload: 32KB").await;
    let receiver = Receiver::scripted([Reply::Body("x".repeat(60_000))]).await;
    let _hookbridge = Hookbridge::start_as(&nats, Roles::Courier, &crm(&receiver)).await;
    nats.publish("outbox.a", &TO_CRM, "x").await;
    let receipt = receipt(&nats, "delivered").await;
    assert_eq!(receipt["response"]["truncated"], true);
    assert!(receipt["response"]["body_base64"].as_str().unwrap().len() > 10_000, "{receipt}");
}

#[tokio::test]
async fn the_operator_says_which_headers_are_captured() {
    let (nats, receiver) = (Nats::start().await, Receiver::start().await);
    receiver.then(Reply::Raw(answer("200 OK", "x-own: 1\r\ncontent-type: text/plain\r\n", "hi")));
    let text = format!("{}capture_headers = [\"X-Own\"]", crm(&receiver));
    let _hookbridge = Hookbridge::start(&nats, &text).await;
    nats.publish("outbox.a", &TO_CRM, "x").await;
    assert_eq!(receipt(&nats, "delivered").await["response"]["headers"], json!({"x-own": "1"}));
}

#[test]
fn a_header_that_may_hold_a_secret_is_never_captured() {
    for name in ["Set-Cookie", "authorization", "not a name"] {
        let text =
            format!("[endpoints.crm]\nurl = \"https://a.example/\"\nsignatures = []\ncapture_headers = [\"{name}\"]");
        assert!(mistakes(&text).contains(&format!("endpoints.crm.capture_headers: `{name}`")), "{}", mistakes(&text));
    }
}
