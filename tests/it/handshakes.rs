//! Providers that ask whether somebody is there get their answer, and nothing of it becomes an event.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::{Hookbridge, Nats, Receiver, Reply, request, send, sign};

fn asana(file: &Path) -> String {
    format!("[sources.asana]\npreset = \"asana\"\nsecrets = [\"file:{}\"]", file.display())
}

fn bare_hex(secret: &str, body: &[u8]) -> String {
    sign::hex(secret, body).replace("sha256=", "")
}

#[tokio::test]
async fn a_secret_that_the_provider_chooses_is_kept_once_and_used_from_then_on() {
    let (nats, folder) = (Nats::start().await, tempfile::tempdir().unwrap());
    let file = folder.path().join("asana");
    let hookbridge = Hookbridge::start(&nats, &asana(&file)).await;
    let signed = bare_hex("chosen", b"{\"events\":[{\"action\":\"x\"}]}");
    let event = async |hookbridge: &Hookbridge| {
        let body = "{\"events\":[{\"action\":\"x\"}]}";
        hookbridge.post("/hooks/asana", &[("x-hook-signature", &signed)], body).await.status.as_u16()
    };

    assert_eq!(event(&hookbridge).await, 401, "there is no secret yet");
    let answer = hookbridge.post("/hooks/asana", &[("x-hook-secret", "chosen")], "{}").await;
    assert_eq!((answer.status.as_u16(), answer.header("x-hook-secret")), (200, "chosen"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "chosen");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(event(&hookbridge).await, 202);

    let again = hookbridge.post("/hooks/asana", &[("x-hook-secret", "attacker")], "{}").await;
    again.assert_status(403);
    assert!(!again.headers.contains_key("x-hook-secret"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "chosen");
    assert_eq!(
        hookbridge.metric("hookbridge_ingress_requests_total{source=\"asana\",outcome=\"handshake\"}").await,
        1.0
    );

    hookbridge.stop().await.unwrap();
    let hookbridge = Hookbridge::start(&nats, &asana(&file)).await;
    hookbridge.post("/hooks/asana", &[("x-hook-secret", "attacker")], "{}").await.assert_status(403);
    assert_eq!(event(&hookbridge).await, 202);
    assert_eq!(nats.count("EVENTS").await, 1);
}

#[tokio::test]
async fn a_token_that_is_to_be_copied_back_is_in_the_file_and_nowhere_else() {
    let (nats, folder) = (Nats::start().await, tempfile::tempdir().unwrap());
    let file = folder.path().join("notion");
    let text = format!("[sources.notion]\npreset = \"notion\"\nsecrets = [\"file:{}\"]", file.display());
    let hookbridge = Hookbridge::start(&nats, &text).await;

    let body = "{\"verification_token\":\"secret_tok3n\"}";
    let answer = hookbridge.post("/hooks/notion", &[("content-type", "application/json")], body).await;

    assert!(answer.status.is_success() && !answer.text().contains("tok3n"), "{answer:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "secret_tok3n");
    assert_eq!(nats.count("EVENTS").await, 0);
    let signature = sign::hex("secret_tok3n", b"{\"type\":\"page.created\",\"id\":\"1\"}");
    let body = "{\"type\":\"page.created\",\"id\":\"1\"}";
    hookbridge.post("/hooks/notion", &[("x-notion-signature", &signature)], body).await.assert_status(202);
}

#[tokio::test]
async fn a_verify_token_opens_a_subscription_and_nothing_else_does() {
    let nats = Nats::start().await;
    let text = r#"
        [sources.meta]
        preset = "meta"
        secrets = ["plain:app"]
        verify_token = "plain:mine"
        [sources.without]
        preset = "meta"
        secrets = ["plain:app"]
        "#;
    let hookbridge = Hookbridge::start(&nats, text).await;
    let subscribe = async |source: &str, token: &str| {
        let query = format!("hub.mode=subscribe&hub.challenge=<b>1158</b>&hub.verify_token={token}");
        request("GET", &hookbridge.url(&format!("/hooks/{source}?{}", query.replace(['<', '>'], "%3C"))), &[], "").await
    };

    let answer = subscribe("meta", "mine").await;
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").starts_with("text/plain"));
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    for (source, token) in [("meta", "other"), ("meta", ""), ("meta", "mine&hub.verify_token=mine"), ("without", "")] {
        let refused = subscribe(source, token).await;
        refused.assert_status(403);
        assert!(!refused.text().contains("1158"));
    }
}

#[tokio::test]
async fn what_could_be_an_event_is_never_signed_for_a_stranger() {
    let nats = Nats::start().await;
    let text = "[sources.x]\npreset = \"x-twitter\"\nsecrets = [\"plain:consumer\"]";
    let hookbridge = Hookbridge::start(&nats, text).await;
    let ask =
        async |token: &str| request("GET", &hookbridge.url(&format!("/hooks/x?crc_token={token}")), &[], "").await;

    assert_eq!(ask("MTYwNDk-_=").await.status, 200);
    for token in ["%7B%22a%22:1%7D", "[1]", "a%20b", "", &"x".repeat(300), "a%0D%0Ab"] {
        ask(token).await.assert_status(400);
    }
    request("GET", &hookbridge.url("/hooks/x"), &[], "").await.assert_status(405);
}

#[tokio::test]
async fn an_echo_splits_no_headers() {
    let nats = Nats::start().await;
    let text = "[sources.ce]\npreset = \"cloudevents\"\n[sources.own]\nverify = \"none\"\n[[sources.own.handshake]]\nname = \"echo\"\nmethods = [\"GET\"]\nverified = false\nheaders = { X-Echo = \"{query:c}\" }";
    let hookbridge = Hookbridge::start(&nats, text).await;

    let allowed =
        request("OPTIONS", &hookbridge.url("/hooks/ce"), &[("webhook-request-origin", "emitter.example")], "").await;
    assert_eq!((allowed.status.as_u16(), allowed.header("webhook-allowed-origin")), (200, "emitter.example"));
    let split = request("GET", &hookbridge.url("/hooks/own?c=a%0D%0AX-Evil:%201"), &[], "").await;
    split.assert_status(400);
    assert!(!split.headers.contains_key("x-evil"));
    assert_eq!(request("GET", &hookbridge.url("/hooks/own?c=fine"), &[], "").await.header("x-echo"), "fine");
}

#[tokio::test]
async fn other_methods_are_405_and_the_answer_says_which_are_taken() {
    let nats = Nats::start().await;
    let text = r#"
        [gateway]
        public_url = "https://hooks.example.com"
        [sources.trello]
        preset = "trello"
        secrets = ["plain:s"]
        "#;
    let hookbridge = Hookbridge::start(&nats, text).await;

    assert_eq!(request("HEAD", &hookbridge.url("/hooks/trello"), &[], "").await.status, 200);
    let refused = request("DELETE", &hookbridge.url("/hooks/trello"), &[], "").await;
    refused.assert_status(405);
    assert_eq!(refused.header("allow"), "HEAD, POST");
}

/// A source whose genuine `confirm` messages make the gateway call a URL, as AWS SNS wants it.
fn confirming(receiver: &Receiver) -> String {
    format!(
        r#"
        [sources.topic]
        secrets = ["plain:s3cret"]
        [sources.topic.verify]
        header = "X-Signature"
        prefix = "sha256="
        algorithm = "hmac-sha256"
        [[sources.topic.handshake]]
        name = "confirm"
        when = {{ "json:/type" = "confirm" }}
        confirm = {{ at = "json:/url", urls = ["{}"] }}
        "#,
        receiver.url("/confirm/")
    )
}

async fn confirm(hookbridge: &Hookbridge, url: &str) -> u16 {
    let body = serde_json::json!({ "type": "confirm", "url": url }).to_string();
    let signature = sign::hex("s3cret", body.as_bytes());
    hookbridge.post("/hooks/topic", &[("x-signature", &signature)], body).await.status.as_u16()
}

#[tokio::test]
async fn a_subscription_is_confirmed_before_the_answer_and_only_where_it_may_be() {
    let replies = [Reply::Status(200), Reply::Status(500), Reply::With(302, "location: http://127.0.0.1:1/")];
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted(replies).await);
    let hookbridge = Hookbridge::start(&nats, &confirming(&receiver)).await;

    assert_eq!(confirm(&hookbridge, &receiver.url("/confirm/1?token=t")).await, 200);
    assert_eq!(receiver.next().await.path, "/confirm/1?token=t");
    for url in ["http://127.0.0.2:9/confirm/", "https://example.com/", &receiver.url("/other"), "file:///etc/passwd"] {
        assert_eq!(confirm(&hookbridge, url).await, 400, "{url}");
    }
    assert_eq!(receiver.unread(), 0, "a URL that may not be called was called");

    assert_eq!(confirm(&hookbridge, &receiver.url("/confirm/2")).await, 503, "a 500 confirms nothing");
    assert_eq!(confirm(&hookbridge, &receiver.url("/confirm/3")).await, 503, "a redirect confirms nothing");
    let forged = format!("{{\"type\":\"confirm\",\"url\":\"{}\"}}", receiver.url("/confirm/4"));
    let wrong = sign::hex("other", forged.as_bytes());
    hookbridge.post("/hooks/topic", &[("x-signature", &wrong)], forged).await.assert_status(401);
    assert_eq!((receiver.next().await.path, receiver.next().await.path), ("/confirm/2".into(), "/confirm/3".into()));
    assert_eq!((receiver.unread(), nats.count("EVENTS").await), (0, 0));
}

#[tokio::test]
async fn a_server_that_never_confirms_does_not_keep_the_sender_waiting_for_ever() {
    let (nats, receiver) = (Nats::start().await, Receiver::scripted([Reply::Hang]).await);
    let hookbridge = Hookbridge::start(&nats, &confirming(&receiver)).await;

    assert_eq!(confirm(&hookbridge, &receiver.url("/confirm/1")).await, 503);
}

#[tokio::test]
async fn a_handshake_that_must_prove_itself_does() {
    let nats = Nats::start().await;
    let text = "[sources.discord]\npreset = \"discord\"\nsecrets = [\"plain:c3d7c48ab0ca492e1b182da0706a22fdcc702c30bba93970082380b7b508b24d\"]";
    let hookbridge = Hookbridge::start(&nats, text).await;

    let ping = "{\"type\":1}";
    let headers = [("x-signature-timestamp", "1760000000"), ("x-signature-ed25519", &"0".repeat(128)[..])];
    send("POST", &hookbridge.url("/hooks/discord"), &headers, ping).await.assert_status(401);
    send("POST", &hookbridge.url("/hooks/discord"), &[], ping).await.assert_status(401);
}
