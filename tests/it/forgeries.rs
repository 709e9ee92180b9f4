//! What a recorded request, a handshake or an odd list of headers cannot be turned into.

use std::time::{Duration, UNIX_EPOCH};

use hookbridge::app::{Options, Roles};
use hookbridge::clock::Clock;

use crate::harness::{Hookbridge, Nats, send, sign};

/// X signs a challenge for whoever asks; what it signed must not pass as an event afterwards.
#[tokio::test]
async fn a_challenge_that_was_signed_is_no_event() {
    let nats = Nats::start().await;
    let text = "[sources.x]\npreset = \"x-twitter\"\nsecrets = [\"plain:consumer\"]\n[sources.li]\npreset = \"linkedin\"\nsecrets = [\"plain:s\"]";
    let hookbridge = Hookbridge::start(&nats, text).await;

    for challenge in ["12345", "true", "abc"] {
        let asked = send("GET", &hookbridge.url(&format!("/hooks/x?crc_token={challenge}")), &[], "").await;
        let code = asked.json()["response_token"].as_str().unwrap().to_owned();
        hookbridge.post("/hooks/x", &[("x-twitter-webhooks-signature", &code)], challenge).await.assert_status(401);
        let asked =
            send("GET", &hookbridge.url(&format!("/hooks/li?challengeCode=hmacsha256={challenge}")), &[], "").await;
        let code = asked.json()["challengeResponse"].as_str().unwrap().to_owned();
        hookbridge.post("/hooks/li", &[("x-li-signature", &code)], challenge).await.assert_status(401);
    }

    assert_eq!(nats.count("EVENTS").await, 0);
}

#[tokio::test]
async fn a_secret_that_could_not_be_read_back_is_not_taken() {
    let (nats, folder) = (Nats::start().await, tempfile::tempdir().unwrap());
    let file = folder.path().join("notion");
    let text = format!("[sources.notion]\npreset = \"notion\"\nsecrets = [\"file:{}\"]", file.display());
    let hookbridge = Hookbridge::start(&nats, &text).await;

    let long = format!("{{\"verification_token\":\"{}\"}}", "A".repeat(70_000));
    hookbridge.post("/hooks/notion", &[], long).await.assert_status(400);

    assert!(!file.exists());
    let fine = hookbridge.post("/hooks/notion", &[], "{\"verification_token\":\"fine\"}").await;
    assert!(fine.status.is_success() && file.exists());
}

#[tokio::test]
async fn a_list_of_signed_headers_copies_nothing_twice() {
    let nats = Nats::start().await;
    let text =
        "[sources.contentful]\npreset = \"contentful\"\nsecrets = [\"plain:s\"]\npublic_url = \"https://h.example/\"";
    let hookbridge = Hookbridge::start(&nats, text).await;
    let (names, value) = (format!("x-contentful-timestamp{}", ",x".repeat(5_000)), "A".repeat(8_000));

    let headers = [
        ("x-contentful-signed-headers", &names[..]),
        ("x", &value),
        ("x-contentful-timestamp", "1"),
        ("x-contentful-signature", "00"),
    ];
    hookbridge.post("/hooks/contentful", &headers, "{}").await.assert_status(401);

    let counter = "hookbridge_ingress_rejections_total{source=\"contentful\",reason=\"ambiguous\"}";
    assert_eq!(hookbridge.metric(counter).await, 1.0);
}

/// Recorded Standard Webhooks can be renamed, doubled and cut in another place; none of it passes.
#[tokio::test]
async fn a_recorded_request_cannot_be_dressed_up_as_another() {
    let nats = Nats::start().await;
    let clock = Clock::fixed(UNIX_EPOCH + Duration::from_secs(1_760_000_000));
    let options = Options { clock, ..Options::default() };
    let text = "[sources.svix]\npreset = \"svix\"\nsecrets = [\"plain:s3cret\"]";
    let hookbridge = Hookbridge::start_with(&nats, Roles::Gateway, text, options).await;
    hookbridge.ready().await;
    let body = "{\"type\":\"a\",\"note\":\"x.1760000000.{}\"}";
    let signature = sign::v1(b"s3cret", "msg_1", "1760000000", body.as_bytes());
    let post = async |headers: &[(&str, &str)], body: &str| {
        hookbridge.post("/hooks/svix", headers, body.to_owned()).await.status.as_u16()
    };
    let time = "1760000000";

    let genuine = [("svix-id", "msg_1"), ("svix-timestamp", time), ("svix-signature", &signature)];
    assert_eq!(post(&genuine, body).await, 202);
    let renamed = [
        ("webhook-id", "msg_1"),
        ("webhook-timestamp", time),
        ("webhook-signature", &signature),
        ("svix-id", "x"),
        ("svix-id", "x"),
    ];
    assert_eq!(post(&renamed, body).await, 401);
    let cut = "msg_1.1760000000.{\"type\":\"a\",\"note\":\"x";
    let cut = [("svix-id", cut), ("svix-timestamp", time), ("svix-signature", &signature)];
    assert_eq!(post(&cut, "{}\"}").await, 401);

    assert_eq!(nats.count("EVENTS").await, 1);
}
