//! The status decides an attempt as soon as it is there, whatever the rest of the head or the body does.

use hookbridge::app::Roles;
use serde_json::{Value, json};

use crate::harness::{Act, Hookbridge, Hostile, Nats, Receiver, Reply, eventually};

/// So long that nothing in these tests can have waited for it.
const PATIENT: &str = "[egress]\ntimeout = \"10m\"\n";

fn endpoint(name: &str, url: &str, more: &str) -> String {
    format!("[endpoints.{name}]\nurl = \"{url}\"\nsignatures = []\n{more}\n")
}

async fn publish(nats: &Nats, endpoint: &str, id: &str) {
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", endpoint), ("Nats-Msg-Id", id)], "x").await;
}

async fn receipt(nats: &Nats, id: &str) -> Value {
    nats.message("RECEIPTS", &format!("receipts.a.*.{id}")).await.json()
}

#[tokio::test]
async fn odd_headers_are_not_held_against_a_status() {
    let many = "x: y\r\n".repeat(150);
    let large = format!("x: {}\r\n", "y".repeat(100_000));
    let nats = Nats::start().await;
    let heads = [
        ("a-space-before-the-colon", "X-Powered-By : PHP\r\n"),
        ("a-leading-space", " x: y\r\n"),
        ("a-folded-line", "x: y\r\n z\r\n"),
        ("a-folded-first-line", "\tx\r\nx: y\r\n"),
        ("other-characters-in-a-name", "x(y)\u{e9}: z\r\n"),
        ("no-name", ": x\r\n"),
        ("no-colon", "this is no header\r\n"),
        ("a-zero", "x: \0\r\n"),
        ("a-lone-carriage-return", "x: a\rb\r\n"),
        ("many", &many),
        ("large", &large),
        ("a-length-that-is-none", "content-length: -1\r\n"),
        ("a-transfer-coding-that-is-none", "transfer-encoding: nonsense\r\n"),
    ];
    let mut receivers = Vec::new();
    let mut text = PATIENT.to_owned();
    for (name, lines) in heads {
        for (status, words) in [(200, "OK"), (503, "Busy")] {
            let answer =
                format!("HTTP/1.1 {status} {words}\r\n{lines}Retry-After : 1200\r\ncontent-length: 2\r\n\r\nok");
            let receiver = Hostile::playing(vec![Act::Request, Act::Say(answer.into_bytes())]).await;
            text += &endpoint(&format!("{name}-{status}"), &receiver.url("http"), "retry = [\"1m\"]");
            receivers.push(receiver);
        }
    }
    let _hookbridge = Hookbridge::start_as(&nats, Roles::Courier, &text).await;

    for (name, _) in heads {
        for status in [200, 503] {
            publish(&nats, &format!("{name}-{status}"), &format!("{name}-{status}")).await;
        }
    }

    for (name, _) in heads {
        let accepted = receipt(&nats, &format!("{name}-200")).await;
        assert_eq!(
            (&accepted["outcome"], &accepted["status"]),
            (&json!("delivered"), &json!(200)),
            "{name}: {accepted}"
        );
        let busy = receipt(&nats, &format!("{name}-503")).await;
        assert_eq!((&busy["outcome"], &busy["status"]), (&json!("retrying"), &json!(503)), "{name}: {busy}");
        // What is beyond the bound of a head is not read.
        if name != "large" {
            assert!(busy["detail"].as_str().unwrap().contains("Retry-After: 20m"), "{name}: {busy}");
        }
    }
}

#[tokio::test]
async fn a_head_that_stalls_behind_its_status_is_not_waited_for() {
    let nats = Nats::start().await;
    let say = |text: &str| Act::Say(text.as_bytes().to_vec());
    let rows = [
        ("stalls", vec![Act::Request, say("HTTP/1.1 200 OK\r\nx: y\r\n"), Act::Hang]),
        (
            "stalls-after-hints",
            vec![Act::Request, say("HTTP/1.1 103 Hints\r\nx: y\r\n\r\nHTTP/1.1 200 OK\r\n"), Act::Hang],
        ),
        ("endless", vec![Act::Request, say("HTTP/1.1 200 OK\r\nx: "), Act::Forever(b"y".to_vec())]),
    ];
    let mut receivers = Vec::new();
    let mut text = PATIENT.to_owned();
    for (name, script) in &rows {
        let receiver = Hostile::playing(script.clone()).await;
        text += &endpoint(name, &receiver.url("http"), "");
        receivers.push(receiver);
    }
    let _hookbridge = Hookbridge::start_as(&nats, Roles::Courier, &text).await;

    for (name, _) in &rows {
        publish(&nats, name, name).await;
    }

    for (name, _) in &rows {
        let receipt = receipt(&nats, name).await;
        assert_eq!((&receipt["outcome"], &receipt["attempt"]), (&json!("delivered"), &json!(1)), "{name}: {receipt}");
    }
    for receiver in &receivers {
        eventually("the connection to be left", async || (receiver.open() == 0).then_some(())).await;
    }
}

#[tokio::test]
async fn an_answer_to_a_request_that_is_not_read_to_its_end_counts() {
    let nats = Nats::start().await;
    let early = b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let receiver = Hostile::playing(vec![Act::Anything, Act::Say(early.to_vec())]).await;
    let _hookbridge =
        Hookbridge::start_as(&nats, Roles::Courier, &endpoint("crm", &receiver.url("http"), "retry = [\"1h\"]")).await;

    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", "m-1")], vec![b'x'; 900_000]).await;

    assert_eq!(receipt(&nats, "m-1").await["status"], 413);
}

#[tokio::test]
async fn a_body_that_does_not_end_holds_neither_the_receipt_nor_the_line_up() {
    let nats = Nats::start().await;
    let stream = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: x\n\n";
    let open = vec![Act::Request, Act::Say(stream.as_bytes().to_vec()), Act::Hang];
    let receiver = Hostile::playing(open).await;
    let text = format!("{PATIENT}{}", endpoint("crm", &receiver.url("http"), "ordered = true\nmax_concurrent = 1"));
    let _hookbridge = Hookbridge::start_as(&nats, Roles::Courier, &text).await;

    for number in 0..5 {
        publish(&nats, "crm", &format!("m-{number}")).await;
    }

    for number in 0..5 {
        let receipt = receipt(&nats, &format!("m-{number}")).await;
        assert_eq!((&receipt["outcome"], &receipt["attempt"]), (&json!("delivered"), &json!(1)), "{receipt}");
    }
    eventually("the bodies to be left", async || (receiver.open() == 0).then_some(())).await;
}

#[tokio::test]
async fn a_captured_body_that_drips_is_told_as_far_as_it_came() {
    let nats = Nats::start().await;
    let receiver = Receiver::scripted([Reply::Stall]).await;
    let text = format!("{PATIENT}{}", endpoint("crm", &receiver.url("/"), "capture_response = true"));
    let _hookbridge = Hookbridge::start_as(&nats, Roles::Courier, &text).await;

    publish(&nats, "crm", "m-1").await;

    let receipt = receipt(&nats, "m-1").await;
    assert_eq!(receipt["outcome"], "delivered");
    assert_eq!(
        (&receipt["response"]["body_base64"], &receipt["response"]["incomplete"]),
        (&json!("eA=="), &json!(true))
    );
}
