//! Every row of the answer table.

use crate::harness::{Hookbridge, Nats, request, send_raw, sign};

const SOURCES: &str = r#"
[sources.github]
preset = "github"
secrets = ["plain:old", "plain:s3cret"]

[sources.billing]
secrets = ["plain:key"]
type = "json:/event"
id = "header:X-Delivery-Id"
[sources.billing.verify]
header = "X-Signature"
prefix = "v0="
algorithm = "hmac-sha256"
encoding = "hex"
signed = "v0:{timestamp}:{id}:{body}"
timestamp = "header:X-Timestamp"
tolerance = "5m"

[sources.unsigned]
verify = "none"
path_token = "plain:t0ken"
"#;

#[tokio::test]
async fn a_missing_wrong_or_malformed_signature_is_401_and_the_body_does_not_say_which() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SOURCES).await;
    let right = sign::hex("s3cret", b"{}");
    let mut bodies = Vec::new();
    for signature in ["", "sha256=", "sha256=zz", "nonsense", &sign::hex("other", b"{}"), &right[..40]] {
        let answer = hookbridge.post("/hooks/github", &sign::github(signature, "push", "1"), "{}").await;
        answer.assert_status(401);
        bodies.push(answer.text());
    }
    bodies.push(hookbridge.post("/hooks/github", &[], "{}").await.assert_status(401).text());
    bodies.push(
        hookbridge.post("/hooks/github", &sign::github(&right, "push", "1"), "{} ").await.assert_status(401).text(),
    );
    bodies.dedup();

    assert_eq!(bodies.len(), 1, "{bodies:?}");
    assert_eq!(nats.count("EVENTS").await, 0);
    let name = "hookbridge_ingress_requests_total{source=\"github\",outcome=\"rejected\"}";
    assert_eq!(hookbridge.metric(name).await, 8.0);
    assert_eq!(
        hookbridge.metric("hookbridge_ingress_rejections_total{source=\"github\",reason=\"missing\"}").await,
        2.0
    );
}

#[tokio::test]
async fn any_of_several_secrets_may_match() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SOURCES).await;
    for (secret, id) in [("old", "1"), ("s3cret", "2")] {
        let signature = sign::hex(secret, b"{}");
        hookbridge.post("/hooks/github", &sign::github(&signature, "push", id), "{}").await.assert_status(202);
    }
    assert_eq!(nats.count("EVENTS").await, 2);
}

#[tokio::test]
async fn a_scheme_of_the_operators_own_covers_timestamp_and_id() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SOURCES).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let post = async |timestamp: u64, id: &str, signed_id: &str| {
        let timestamp = timestamp.to_string();
        let signed = format!("v0:{timestamp}:{signed_id}:{{\"event\":\"paid\"}}");
        let signature = sign::hex("key", signed.as_bytes()).replace("sha256=", "v0=");
        let headers = [("x-signature", &signature[..]), ("x-timestamp", &timestamp), ("x-delivery-id", id)];
        hookbridge.post("/hooks/billing", &headers, r#"{"event":"paid"}"#).await.status.as_u16()
    };

    assert_eq!(post(now, "d-1", "d-1").await, 202);
    assert_eq!(post(now - 400, "d-2", "d-2").await, 401, "too old");
    assert_eq!(post(now + 400, "d-3", "d-3").await, 401, "from the future");
    assert_eq!(post(now, "d-4", "d-1").await, 401, "an id that was not signed");
    assert_eq!(nats.message("EVENTS", "events.>").await.subject, "events.billing.paid");
    assert_eq!(nats.count("EVENTS").await, 1);
}

#[tokio::test]
async fn an_unknown_source_a_foreign_path_and_a_wrong_token_are_the_same_404() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SOURCES).await;
    let mut bodies = Vec::new();
    for path in ["/hooks/nobody", "/", "/hooks", "/hooks/unsigned", "/hooks/unsigned/wrong", "/hooks/github/extra"] {
        bodies.push(hookbridge.post(path, &[], "{}").await.assert_status(404).text());
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    hookbridge.post("/hooks/unsigned/t0ken", &[], "{}").await.assert_status(202);
}

#[tokio::test]
async fn another_method_is_405_and_says_which_is_allowed() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SOURCES).await;
    for method in ["GET", "PUT", "DELETE", "PATCH"] {
        let answer = request(method, &hookbridge.url("/hooks/github"), &[], "").await;
        answer.assert_status(405);
        assert_eq!(answer.header("allow"), "POST");
    }
    let unknown = request("GET", &hookbridge.url("/hooks/nobody"), &[], "").await;
    unknown.assert_status(404);
}

#[tokio::test]
async fn a_compressed_body_is_415() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SOURCES).await;
    let answer = hookbridge.post("/hooks/github", &[("content-encoding", "gzip")], "x").await;
    answer.assert_status(415);
}

#[tokio::test]
async fn secrets_are_read_again_without_a_restart() {
    let nats = Nats::start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "first\n").unwrap();
    let text = format!("[sources.github]\npreset = \"github\"\nsecrets = [\"file:{}\"]", file.path().display());
    let hookbridge = Hookbridge::start(&nats, &text).await;
    let post = async |secret: &str, id: &str| {
        let signature = sign::hex(secret, b"{}");
        hookbridge.post("/hooks/github", &sign::github(&signature, "push", id), "{}").await.status.as_u16()
    };

    assert_eq!((post("first", "1").await, post("second", "2").await), (202, 401));
    std::fs::write(file.path(), "second\n").unwrap();
    hookbridge.reload();
    assert_eq!((post("first", "3").await, post("second", "4").await), (401, 202));
    std::fs::write(file.path(), "").unwrap();
    hookbridge.reload();
    assert_eq!(post("second", "5").await, 202, "a secret that is gone does not open or close anything");
}

#[tokio::test]
async fn every_row_of_the_answer_table_is_counted() {
    let nats = Nats::start().await;
    let text = format!(
        "{SOURCES}\n[gateway]\nlisten = \"127.0.0.1:0\"\nmax_body = \"1KiB\"\nbody_timeout = \"200ms\"\nmax_in_flight = \"1KiB\""
    );
    let hookbridge = Hookbridge::start(&nats, &text).await;
    let signature = sign::hex("s3cret", b"{}");
    let genuine = sign::github(&signature, "push", "1");
    for _ in 0..2 {
        hookbridge.post("/hooks/github", &genuine, "{}").await.assert_status(202);
    }
    hookbridge.post("/hooks/github", &[], "{}").await.assert_status(401);
    hookbridge.post("/hooks/nobody", &[], "{}").await.assert_status(404);
    request("GET", &hookbridge.url("/hooks/github"), &[], "").await.assert_status(405);
    hookbridge.post("/hooks/github", &[], vec![b'x'; 2000]).await.assert_status(413);
    hookbridge.post("/hooks/github", &[("content-encoding", "br")], "x").await.assert_status(415);
    let slow = "POST /hooks/github HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nx";
    assert!(send_raw(&hookbridge.url("/"), slow.as_bytes()).await.starts_with("HTTP/1.1 408 "));

    for (source, outcome, count) in [
        ("github", "stored", 1.0),
        ("github", "duplicate", 1.0),
        ("github", "rejected", 1.0),
        ("", "no-source", 1.0),
        ("github", "method", 1.0),
        ("github", "too-large", 1.0),
        ("github", "content-encoding", 1.0),
        ("github", "too-slow", 1.0),
    ] {
        let name = format!("hookbridge_ingress_requests_total{{source=\"{source}\",outcome=\"{outcome}\"}}");
        assert_eq!(hookbridge.metric(&name).await, count, "{name}");
    }
}
