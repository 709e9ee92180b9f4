//! How deliveries authenticate themselves to an endpoint, against a real token server.

use std::time::{Duration, SystemTime};

use data_encoding::BASE64;
use hookbridge::app::{Options, Roles};
use hookbridge::clock::Clock;
use serde_json::json;

use crate::harness::{Hookbridge, Nats, Receiver, Reply, mistakes};

const TO_CRM: (&str, &str) = ("Hookbridge-Endpoint", "crm");

/// An endpoint `crm` at the receiver with this authentication.
fn crm(receiver: &Receiver, auth: &str) -> String {
    format!("[endpoints.crm]\nurl = \"{}\"\nsignatures = []\n{auth}\n", receiver.url("/hooks"))
}

/// The same with a token server.
fn with_tokens(receiver: &Receiver, tokens: &Receiver, more: &str) -> String {
    let auth = format!(
        "[endpoints.crm.auth.oauth2]\ntoken_url = \"{}\"\nclient_id = \"me\"\nclient_secret = \"plain:s3cret\"\n{more}",
        tokens.url("/token?tenant=1")
    );
    crm(receiver, &auth)
}

fn token(name: &str, expires_in: u64) -> Reply {
    Reply::Body(json!({"access_token": name, "token_type": "Bearer", "expires_in": expires_in}).to_string())
}

async fn publish(nats: &Nats, id: &str) {
    nats.publish("outbox.a", &[TO_CRM, ("Nats-Msg-Id", id)], "x").await;
}

async fn receipt(nats: &Nats, outcome: &str, id: &str) -> serde_json::Value {
    nats.message("RECEIPTS", &format!("receipts.a.{outcome}.{id}")).await.json()
}

#[tokio::test]
async fn basic_bearer_and_secret_headers_are_sent() {
    let basic = format!("Basic {}", BASE64.encode(b"me:p:w"));
    for (auth, header, expected) in [
        ("auth = { basic = { user = \"me\", password = \"plain:p:w\" } }", "authorization", basic.as_str()),
        ("auth = { bearer = \"plain:t0ken\" }", "authorization", "Bearer t0ken"),
        ("secret_headers = { X-Api-Key = \"plain:k3y\" }", "x-api-key", "k3y"),
    ] {
        let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
        let _hookbridge = Hookbridge::start(&nats, &crm(&receiver, auth)).await;
        publish(&nats, "m-1").await;
        assert_eq!(receiver.next().await.header(header), expected, "{auth}");
    }
}

#[tokio::test]
async fn a_secret_that_changed_is_sent_after_it_was_read_again() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "old").unwrap();
    let auth = format!("auth = {{ bearer = \"file:{}\" }}", file.path().display());
    let hookbridge = Hookbridge::start(&nats, &crm(&receiver, &auth)).await;
    publish(&nats, "m-1").await;
    assert_eq!(receiver.next().await.header("authorization"), "Bearer old");

    std::fs::write(file.path(), "new").unwrap();
    hookbridge.reload();

    publish(&nats, "m-2").await;
    assert_eq!(receiver.next().await.header("authorization"), "Bearer new");
}

#[tokio::test]
async fn one_token_is_fetched_for_many_deliveries() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let mut tokens = Receiver::scripted([token("t-1", 3600)]).await;
    let more = "scopes = [\"send\", \"read\"]\naudience = \"crm\"\nparameters = { resource = \"r\" }";
    let _hookbridge = Hookbridge::start(&nats, &with_tokens(&receiver, &tokens, more)).await;

    for index in 0..40 {
        publish(&nats, &format!("n-{index}")).await;
    }

    for _ in 0..40 {
        assert_eq!(receiver.next().await.header("authorization"), "Bearer t-1");
    }
    let asked = tokens.next().await;
    assert_eq!(asked.path, "/token?tenant=1");
    assert_eq!(asked.header("authorization"), format!("Basic {}", BASE64.encode(b"me:s3cret")));
    assert_eq!(asked.header("content-type"), "application/x-www-form-urlencoded");
    assert_eq!(asked.body, "grant_type=client_credentials&scope=send+read&audience=crm&resource=r");
    assert_eq!(tokens.unread(), 0, "the token was fetched more than once");
}

#[tokio::test]
async fn deliveries_that_wait_for_a_token_wait_for_one_fetch() {
    let (nats, mut receiver, mut tokens) = (Nats::start().await, Receiver::start().await, Receiver::start().await);
    tokens.then(Reply::Hold);
    tokens.otherwise(token("t-1", 3600));
    let text = format!("{}[egress]\ntimeout = \"20s\"", with_tokens(&receiver, &tokens, "style = \"body\""));
    let hookbridge = Hookbridge::start(&nats, &text).await;
    for index in 0..5 {
        publish(&nats, &format!("n-{index}")).await;
    }
    let asked = tokens.next().await;
    assert_eq!(asked.body, "grant_type=client_credentials&client_id=me&client_secret=s3cret");
    let waiting = async || (hookbridge.metric("hookbridge_egress_deliveries").await == 5.0).then_some(());
    crate::harness::eventually("all five to wait", waiting).await;

    // An answer without a token is the outcome for all five; what comes after the second that it counts fetches again.
    tokens.release();

    let failed = nats.messages("RECEIPTS", "receipts.a.retrying.*", 5).await;
    for receipt in failed.iter().map(crate::harness::Message::json) {
        assert_eq!(receipt["error_class"], "auth", "{receipt}");
    }
    assert_eq!(tokens.unread(), 0, "somebody else fetched, too");
    assert_eq!(receiver.unread(), 0, "something was sent without a token");
}

#[tokio::test]
async fn a_token_is_fetched_again_before_it_expires() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let mut tokens = Receiver::scripted([token("t-1", 600), token("t-2", 600)]).await;
    let (begin, clock) = (SystemTime::now(), Clock::fixed(SystemTime::now()));
    let options = Options { clock: clock.clone(), ..Options::default() };
    let text = with_tokens(&receiver, &tokens, "");
    let hookbridge = Hookbridge::start_with(&nats, Roles::Courier, &text, options).await;
    hookbridge.ready().await;

    for (seconds, expected) in [(0, "Bearer t-1"), (530, "Bearer t-1"), (550, "Bearer t-2")] {
        clock.set(begin + Duration::from_secs(seconds));
        publish(&nats, &format!("at-{seconds}")).await;
        assert_eq!(receiver.next().await.header("authorization"), expected, "after {seconds} s");
    }
    assert_eq!(tokens.unread(), 2);
}

#[tokio::test]
async fn a_token_that_the_endpoint_refuses_is_fetched_anew_for_the_next_attempt() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([Reply::Status(401)]).await);
    let tokens = Receiver::scripted([token("t-1", 3600), token("t-2", 3600)]).await;
    let _hookbridge = Hookbridge::start(&nats, &with_tokens(&receiver, &tokens, "")).await;

    publish(&nats, "m-1").await;

    assert_eq!(receiver.next().await.header("authorization"), "Bearer t-1");
    assert_eq!(receiver.next().await.header("authorization"), "Bearer t-2");
    assert_eq!(receipt(&nats, "delivered", "m-1").await["attempt"], 2);
    assert_eq!(receipt(&nats, "retrying", "m-1").await["error_class"], "status");
}

#[tokio::test]
async fn without_a_token_nothing_is_sent_and_the_attempt_failed_without_a_word_of_the_server() {
    let said = |status: &str, body: &str| {
        Reply::Raw(format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
    };
    let denied = r#"{"error":"invalid_client","error_description":"s3cret is wrong"}"#;
    for (reply, expected) in [
        (said("401 Unauthorized", denied), "answered 401 (invalid_client)"),
        (said("302 Found", ""), "answered 302"),
        (said("200 OK", "s3cret"), "no token"),
        (Reply::Body("x".repeat(100_000)), "more than 65536 bytes"),
        (Reply::Endless, "more than 65536 bytes"),
        (Reply::Close, "gave no answer"),
        (Reply::Hang, "no token within the time of the attempt"),
        (Reply::Stall, "no token within the time of the attempt"),
    ] {
        let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
        let tokens = Receiver::start().await;
        tokens.otherwise(reply.clone());
        let text = format!("{}[egress]\ntimeout = \"500ms\"\nretry = []", with_tokens(&receiver, &tokens, ""));
        let hookbridge = Hookbridge::start(&nats, &text).await;

        publish(&nats, "m-1").await;

        let receipt = receipt(&nats, "dead", "m-1").await;
        assert_eq!((&receipt["reason"], &receipt["error_class"]), (&json!("exhausted"), &json!("auth")), "{reply:?}");
        let detail = receipt["detail"].as_str().unwrap();
        assert!(detail.contains(expected) && detail.contains(&tokens.url("/token")), "{reply:?}: {detail}");
        assert!(!detail.contains("s3cret") && !detail.contains("tenant"), "{detail}");
        assert_eq!(receiver.unread(), 0);
        let name = "hookbridge_egress_attempts_total{destination=\"crm\",outcome=\"dead\",error=\"auth\"}";
        assert_eq!(hookbridge.metric(name).await, 1.0);
    }
}

#[tokio::test]
async fn a_token_server_at_a_private_address_is_not_asked() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let auth = "[endpoints.crm.auth.oauth2]\ntoken_url = \"https://10.0.0.1/token\"\nclient_id = \"me\"\n\
                client_secret = \"plain:s3cret\"";
    let _hookbridge = Hookbridge::start(&nats, &crm(&receiver, auth)).await;
    publish(&nats, "m-1").await;
    let receipt = receipt(&nats, "dead", "m-1").await;
    let detail = receipt["detail"].as_str().unwrap();
    assert!(receipt["error_class"] == "auth" && detail.contains("may not be reached"), "{receipt}");
    assert_eq!(receiver.unread(), 0);
}

#[test]
fn mistakes_name_key_and_reason_and_no_secret() {
    let oauth2 = |url: &str, more: &str| {
        format!(
            "auth = {{ oauth2 = {{ token_url = \"{url}\", client_id = \"me\", client_secret = \"plain:s3cret\"{more} }} }}"
        )
    };
    let (fine, http) = ("https://a.example/t", "http://a.example/t");
    for (keys, expected) in [
        ("auth = {}".to_owned(), "endpoints.crm.auth: needs exactly one"),
        (
            "auth = { bearer = \"plain:s3cret\", basic = { user = \"a\", password = \"plain:s3cret\" } }".to_owned(),
            "endpoints.crm.auth: needs exactly one",
        ),
        ("auth = { bearer = \"plain:\" }".to_owned(), "endpoints.crm.auth.bearer: secret `plain:***` is empty"),
        (
            "auth = { bearer = \"plain:s3cret\\n\" }".to_owned(),
            "endpoints.crm.auth.bearer: secret `plain:***` has bytes",
        ),
        ("auth = { basic = { user = \"a:b\", password = \"plain:s3cret\" } }".to_owned(), "auth.basic.user: must be"),
        ("auth = { token = \"s3cret\" }".to_owned(), "endpoints.crm.auth.token: unknown key"),
        (oauth2(http, ""), "auth.oauth2.token_url: is http"),
        (oauth2("https://u:s3cret@a.example/", ""), "auth.oauth2.token_url: must have neither"),
        (oauth2(fine, ", scopes = [\"a b\"]"), "auth.oauth2.scopes: `a b` is not a scope"),
        (oauth2(fine, ", parameters = { scope = \"a\" }"), "auth.oauth2.parameters.scope: is set by Hookbridge"),
        (oauth2(fine, ", style = \"post\""), "auth.oauth2.style: "),
        ("secret_headers = { webhook-id = \"plain:s3cret\" }".to_owned(), "secret_headers.webhook-id: is set by"),
        (
            "headers = { x-a = \"1\" }\nsecret_headers = { X-A = \"plain:s3cret\" }".to_owned(),
            "secret_headers.X-A: stands in `headers` as well",
        ),
        (
            "headers = { Authorization = \"1\" }\nauth = { bearer = \"plain:s3cret\" }".to_owned(),
            "headers.Authorization: is set by `auth`",
        ),
    ] {
        let strict = "[egress]\nallow_http = false";
        let said =
            mistakes(&format!("[endpoints.crm]\nurl = \"https://a.example/\"\nsignatures = []\n{keys}\n{strict}"));
        assert!(said.contains(expected) && !said.contains("s3cret"), "{keys}: {said}");
    }
}
