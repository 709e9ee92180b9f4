//! Handshakes are answered as the provider expects, never published, and give nothing away.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use futures_util::FutureExt;
use futures_util::future::join_all;

use crate::harness::{Answer, Hookbridge, Nats, Receiver, Reply, eventually, mistakes, request, send_raw, sign};

const META: &str = r#"
[sources.meta]
preset = "meta"
secrets = ["plain:app-secret"]
verify_token = "plain:my-own-text"
"#;

fn captures(preset: &str, file: &Path) -> String {
    format!("[sources.{preset}]\npreset = \"{preset}\"\nsecrets = [\"file:{}\"]", file.display())
}

async fn asana_handshake(hookbridge: &Hookbridge, secret: &str) -> Answer {
    hookbridge.post("/hooks/asana", &[("x-hook-secret", secret)], "").await
}

/// An event with this one id in it, signed with a secret.
async fn asana_event(hookbridge: &Hookbridge, secret: &str, id: &str) -> Answer {
    let body = format!(r#"{{"events":[{{"action":"added","resource":{{"resource_type":"task","gid":"{id}"}}}}]}}"#);
    let signature = sign::bare(secret, body.as_bytes());
    hookbridge.post("/hooks/asana", &[("x-hook-signature", &signature)], body).await
}

#[tokio::test]
async fn a_secret_that_the_provider_chooses_is_kept_and_verifies_from_then_on() {
    let (nats, folder) = (Nats::start().await, tempfile::tempdir().unwrap());
    let file = folder.path().join("asana");
    let hookbridge = Hookbridge::start(&nats, &captures("asana", &file)).await;
    asana_event(&hookbridge, "chosen", "0").await.assert_status(401);
    assert!(!file.exists());

    let shaken = asana_handshake(&hookbridge, "chosen").await;
    shaken.assert_status(200);
    assert_eq!((shaken.header("x-hook-secret"), shaken.text().as_str()), ("chosen", ""));
    assert_eq!(std::fs::read(&file).unwrap(), b"chosen");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    asana_event(&hookbridge, "chosen", "1").await.assert_status(202);
    asana_event(&hookbridge, "guessed", "2").await.assert_status(401);

    let again = asana_handshake(&hookbridge, "forged").await;
    again.assert_status(403);
    assert_eq!(again.header("x-hook-secret"), "");
    assert_eq!(std::fs::read(&file).unwrap(), b"chosen");
    asana_event(&hookbridge, "forged", "3").await.assert_status(401);

    hookbridge.stop().await.unwrap();
    let hookbridge = Hookbridge::start(&nats, &captures("asana", &file)).await;
    asana_event(&hookbridge, "chosen", "4").await.assert_status(202);
    asana_handshake(&hookbridge, "forged").await.assert_status(403);
    assert_eq!(std::fs::read(&file).unwrap(), b"chosen");
    assert_eq!(nats.count("EVENTS").await, 2);
    assert_eq!(hookbridge.counted("asana", "handshake-refused").await, 1.0);
}

#[tokio::test]
async fn of_many_handshakes_at_once_one_wins() {
    let (nats, folder) = (Nats::start().await, tempfile::tempdir().unwrap());
    let file = folder.path().join("asana");
    let hookbridge = Hookbridge::start(&nats, &captures("asana", &file)).await;

    let secrets: Vec<String> = (0..20).map(|index| format!("secret-{index}")).collect();
    let answers = join_all(secrets.iter().map(|secret| asana_handshake(&hookbridge, secret))).await;

    let won: Vec<&str> =
        answers.iter().filter(|answer| answer.status == 200).map(|a| a.header("x-hook-secret")).collect();
    assert_eq!(won.len(), 1, "{won:?}");
    assert!(answers.iter().all(|answer| answer.status == 200 || answer.status == 403));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), won[0]);
    asana_event(&hookbridge, won[0], "1").await.assert_status(202);
}

#[tokio::test]
async fn a_deleted_file_lets_the_provider_begin_again_after_a_reload() {
    let (nats, folder) = (Nats::start().await, tempfile::tempdir().unwrap());
    let file = folder.path().join("asana");
    let hookbridge = Hookbridge::start(&nats, &captures("asana", &file)).await;
    asana_handshake(&hookbridge, "first").await.assert_status(200);

    std::fs::remove_file(&file).unwrap();
    asana_handshake(&hookbridge, "second").await.assert_status(403);
    hookbridge.reload();

    asana_handshake(&hookbridge, "second").await.assert_status(200);
    asana_event(&hookbridge, "first", "1").await.assert_status(401);
    asana_event(&hookbridge, "second", "2").await.assert_status(202);
}

#[tokio::test]
async fn a_source_without_a_place_for_the_providers_secret_is_a_mistake_at_load() {
    let none = mistakes("[sources.asana]\npreset = \"asana\"");
    assert!(none.contains("sources.asana.secrets") && none.contains("name a `file:`"), "{none}");

    let nowhere = mistakes("[sources.asana]\npreset = \"asana\"\nsecrets = [\"file:/no/such/folder/secret\"]");
    assert!(nowhere.contains("sources.asana.secrets") && nowhere.contains("/no/such/folder"), "{nowhere}");
}

#[tokio::test]
async fn a_secret_that_could_not_be_used_is_not_kept_and_shuts_nobody_out() {
    let (nats, folder) = (Nats::start().await, tempfile::tempdir().unwrap());
    let file = folder.path().join("notion");
    let hookbridge = Hookbridge::start(&nats, &captures("notion", &file)).await;
    let huge = format!(r#"{{"verification_token":"{}"}}"#, "x".repeat(100_000));
    for bad in [
        huge.as_str(),
        r#"{"verification_token":""}"#,
        r#"{"verification_token":"with blanks"}"#,
        r#"{"verification_token":"line\nend"}"#,
        r#"{"verification_token":{"a":1}}"#,
        r#"{"verification_token":[]}"#,
    ] {
        hookbridge.post("/hooks/notion", &[], bad.to_owned()).await.assert_status(400);
        assert!(!file.exists(), "{bad:.60}");
    }

    hookbridge.post("/hooks/notion", &[], r#"{"verification_token":"good"}"#).await.assert_status(200);
    hookbridge.stop().await.unwrap();
    Hookbridge::start(&nats, &captures("notion", &file)).await.stop().await.unwrap();
}

#[tokio::test]
async fn a_secret_of_the_wrong_form_is_refused_before_it_is_kept() {
    let (nats, folder) = (Nats::start().await, tempfile::tempdir().unwrap());
    let file = folder.path().join("own");
    let text = format!(
        r#"
[sources.own]
secrets = ["file:{}"]
[sources.own.verify]
header = "X-Signature"
algorithm = "hmac-sha256"
key = "hex"
[[sources.own.handshake]]
name = "secret"
when = {{ "header:X-Secret" = true }}
verified = false
capture = "header:X-Secret"
"#,
        file.display()
    );
    let hookbridge = Hookbridge::start(&nats, &text).await;

    let refused = hookbridge.post("/hooks/own", &[("x-secret", "not-hex")], "").await;
    refused.assert_status(400);
    assert!(!refused.text().contains("not-hex") && !file.exists(), "{}", refused.text());
    hookbridge.post("/hooks/own", &[("x-secret", "c0ffee")], "").await.assert_status(200);

    let signature = data_encoding::HEXLOWER.encode(&sign::hmac(&[0xc0, 0xff, 0xee], b"x"));
    hookbridge.post("/hooks/own", &[("x-signature", &signature)], "x").await.assert_status(202);
}

#[tokio::test]
async fn notions_token_is_kept_and_neither_published_nor_answered() {
    let (nats, folder) = (Nats::start().await, tempfile::tempdir().unwrap());
    let file = folder.path().join("notion");
    let hookbridge = Hookbridge::start(&nats, &captures("notion", &file)).await;

    let answer = hookbridge.post("/hooks/notion", &[], r#"{"verification_token":"secret_tMrlL1qK5vuQAh"}"#).await;

    answer.assert_status(200);
    assert_eq!((answer.text().as_str(), answer.header("content-length")), ("", "0"));
    assert!(answer.headers.values().all(|value| !value.as_bytes().starts_with(b"secret")));
    assert_eq!(std::fs::read(&file).unwrap(), b"secret_tMrlL1qK5vuQAh");
    let body = r#"{"id":"n-1","type":"page.created"}"#;
    let signature = sign::hex("secret_tMrlL1qK5vuQAh", body.as_bytes());
    hookbridge.post("/hooks/notion", &[("x-notion-signature", &signature)], body).await.assert_status(202);
    assert_eq!(nats.subjects("EVENTS").await, ["events.notion.page.created"]);
    assert_eq!((nats.count("EVENTS").await, hookbridge.counted("notion", "handshake").await), (1, 1.0));
}

#[tokio::test]
async fn a_subscription_is_echoed_to_whoever_knows_the_token_only() {
    let nats = Nats::start().await;
    let text = format!("{META}[sources.mute]\npreset = \"meta\"\nsecrets = [\"plain:app-secret\"]");
    let hookbridge = Hookbridge::start(&nats, &text).await;
    let ask = async |source: &str, token: &str| {
        let query = format!("hub.mode=subscribe&hub.challenge=%3Cscript%3E1158{token}");
        request("GET", &hookbridge.url(&format!("/hooks/{source}?{query}")), &[], "").await
    };

    let right = ask("meta", "&hub.verify_token=my-own-text").await;
    right.assert_status(200);
    assert_eq!(right.text(), "<script>1158");
    assert_eq!(right.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(right.header("x-content-type-options"), "nosniff");
    for wrong in [
        "&hub.verify_token=my-own-tex",
        "&hub.verify_token=",
        "",
        "&hub.verify_token=my-own-text&hub.verify_token=my-own-text",
    ] {
        let refused = ask("meta", wrong).await;
        refused.assert_status(403);
        assert!(!refused.text().contains("1158"), "{wrong}");
    }
    ask("mute", "&hub.verify_token=my-own-text").await.assert_status(403);
    ask("mute", "").await.assert_status(403);

    assert_eq!(nats.count("EVENTS").await, 0);
    assert_eq!(hookbridge.counted("meta", "handshake").await, 1.0);
    assert_eq!(hookbridge.counted("meta", "handshake-refused").await, 4.0);
}

#[tokio::test]
async fn zoom_gets_its_code_once_it_has_proved_itself_and_for_a_challenge_only() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, "[sources.zoom]\npreset = \"zoom\"\nsecrets = [\"plain:z00m\"]").await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs().to_string();
    let ask = async |token: &str, secret: &str| {
        let token = serde_json::to_string(token).unwrap();
        let body = format!(r#"{{"event":"endpoint.url_validation","payload":{{"plainToken":{token}}}}}"#);
        let signature = format!("v0={}", sign::bare(secret, format!("v0:{now}:{body}").as_bytes()));
        let headers = [("x-zm-signature", &signature[..]), ("x-zm-request-timestamp", &now)];
        hookbridge.post("/hooks/zoom", &headers, body).await
    };

    let answer = ask("qgg8vlvZRS6UYooatFL8Aw", "z00m").await;
    answer.assert_status(200);
    let expected = serde_json::json!({
        "plainToken": "qgg8vlvZRS6UYooatFL8Aw",
        "encryptedToken": sign::bare("z00m", b"qgg8vlvZRS6UYooatFL8Aw"),
    });
    assert_eq!((answer.json(), answer.header("content-type")), (expected, "application/json"));
    ask("qgg8vlvZRS6UYooatFL8Aw", "wrong").await.assert_status(401);
    for event in [r#"{"a":1}"#, "v0:1760000000:{}", "a b", "", &"x".repeat(257)] {
        ask(event, "z00m").await.assert_status(400);
    }
    assert_eq!(nats.count("EVENTS").await, 0);
}

#[tokio::test]
async fn a_code_that_anybody_can_have_proves_no_event() {
    let nats = Nats::start().await;
    let text = r#"
[sources.x]
preset = "x"
secrets = ["plain:consumer"]
[sources.linkedin]
preset = "linkedin"
secrets = ["plain:client"]
"#;
    let hookbridge = Hookbridge::start(&nats, text).await;
    let ask = async |path: &str| request("GET", &hookbridge.url(path), &[], "").await;

    let answer = ask("/hooks/x?crc_token=harmless123").await;
    answer.assert_status(200);
    let code = format!("sha256={}", BASE64.encode(&sign::hmac(b"consumer", b"harmless123")));
    assert_eq!(answer.json(), serde_json::json!({ "response_token": code }));
    for event in ["%7B%22a%22%3A1%7D", "%5B1%5D", "a%20b", "%00", "", &"x".repeat(257)] {
        ask(&format!("/hooks/x?crc_token={event}")).await.assert_status(400);
    }
    let headers = [("x-twitter-webhooks-signature", &code[..])];
    hookbridge.post("/hooks/x", &headers, "harmless123").await.assert_status(401);

    let answer = ask("/hooks/linkedin?challengeCode=hmacsha256%3Dharmless").await;
    let code = answer.json()["challengeResponse"].as_str().unwrap().to_owned();
    hookbridge.post("/hooks/linkedin", &[("x-li-signature", &code)], "harmless").await.assert_status(401);

    let event = r#"{"for_user_id":"1","tweet_create_events":[]}"#;
    let code = format!("sha256={}", BASE64.encode(&sign::hmac(b"consumer", event.as_bytes())));
    let headers = [("x-twitter-webhooks-signature", &code[..])];
    hookbridge.post("/hooks/x", &headers, event).await.assert_status(202);
    assert_eq!(nats.subjects("EVENTS").await, ["events.x.tweet_create_events"]);
}

#[tokio::test]
async fn what_is_echoed_cannot_become_another_header() {
    let nats = Nats::start().await;
    let text = r#"
[sources.own]
verify = "none"
[[sources.own.handshake]]
name = "echo"
methods = ["GET"]
when = { "query:c" = true }
verified = false
headers = { "X-Echo" = "{query:c}" }
text = "{query:c}"
"#;
    let hookbridge = Hookbridge::start(&nats, text).await;
    for split in ["a%0d%0aSet-Cookie:%20b=c", "a%0ab", "a%00b", "a%7fb"] {
        let raw = format!("GET /hooks/own?c={split} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = send_raw(&hookbridge.url("/"), raw.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(!answer.contains("et-cookie") && !answer.contains("Set-Cookie"), "{answer}");
    }
    let whole = request("GET", &hookbridge.url("/hooks/own?c=a%C3%A9+b"), &[], "").await;
    whole.assert_status(200);
    assert_eq!(whole.text(), "a\u{e9} b");
    assert_eq!(whole.headers.get("x-echo").unwrap().as_bytes(), "a\u{e9} b".as_bytes());
}

#[tokio::test]
async fn permission_is_asked_by_options_and_a_callback_is_tried_by_head() {
    let nats = Nats::start().await;
    let text = r#"
[sources.cloud]
preset = "cloudevents"
[sources.trello]
preset = "trello"
secrets = ["plain:s"]
public_url = "https://hooks.example.com/trello"
"#;
    let hookbridge = Hookbridge::start(&nats, text).await;
    let ask = async |method: &str, path: &str, headers: &[(&str, &str)]| {
        request(method, &hookbridge.url(path), headers, "").await
    };

    let permission = ask("OPTIONS", "/hooks/cloud", &[("webhook-request-origin", "eventemitter.example.com")]).await;
    permission.assert_status(200);
    assert_eq!(permission.header("webhook-allowed-origin"), "eventemitter.example.com");
    assert_eq!(permission.header("webhook-allowed-rate"), "*");
    ask("HEAD", "/hooks/trello", &[]).await.assert_status(200);

    for (method, path, allowed) in [
        ("OPTIONS", "/hooks/cloud", "OPTIONS, POST"),
        ("GET", "/hooks/cloud", "OPTIONS, POST"),
        ("GET", "/hooks/trello", "HEAD, POST"),
        ("PUT", "/hooks/trello", "HEAD, POST"),
    ] {
        let refused = ask(method, path, &[]).await;
        refused.assert_status(405);
        assert_eq!(refused.header("allow"), allowed, "{method} {path}");
    }
    let event = [("ce-type", "t"), ("ce-id", "1"), ("ce-source", "s"), ("webhook-request-origin", "x")];
    ask("POST", "/hooks/cloud", &event).await.assert_status(202);
    assert_eq!((nats.count("EVENTS").await, hookbridge.counted("trello", "handshake").await), (1, 1.0));
}

/// A source whose subscriptions are confirmed by a call.
fn confirming(urls: &str, gateway: &str) -> String {
    format!(
        r#"
[gateway]
listen = "127.0.0.1:0"
{gateway}
[sources.own]
secrets = ["plain:s3cret"]
[sources.own.verify]
header = "X-Signature"
algorithm = "hmac-sha256"
[[sources.own.handshake]]
name = "confirmation"
when = {{ "json:/confirm" = true }}
confirm = {{ at = "json:/confirm", urls = ["{urls}"] }}
text = "confirmed"
"#
    )
}

async fn confirm(hookbridge: &Hookbridge, url: &str) -> Answer {
    let body = serde_json::json!({ "confirm": url }).to_string();
    let signature = sign::bare("s3cret", body.as_bytes());
    hookbridge.post("/hooks/own", &[("x-signature", &signature)], body).await
}

#[tokio::test]
async fn a_subscription_is_confirmed_by_one_call_before_the_answer() {
    let nats = Nats::start().await;
    let mut provider = Receiver::scripted([Reply::Hold]).await;
    let hookbridge = Hookbridge::start(&nats, &confirming(&provider.url("/yes"), "")).await;
    let url = provider.url("/yes/1?token=t0ken");

    let mut answer = Box::pin(confirm(&hookbridge, &url));
    let called = tokio::select! {
        called = provider.next() => called,
        early = &mut answer => panic!("answered before the call: {early:?}"),
    };
    assert_eq!(called.path, "/yes/1?token=t0ken");
    assert!((&mut answer).now_or_never().is_none(), "answered before the call was");
    provider.release();

    let answer = answer.await;
    answer.assert_status(200);
    assert_eq!(answer.text(), "confirmed");
    assert_eq!((provider.unread(), nats.count("EVENTS").await), (0, 0));
    assert_eq!(hookbridge.counted("own", "handshake").await, 1.0);
}

#[tokio::test]
async fn a_confirmation_that_fails_is_503_and_a_redirect_is_a_failure() {
    let nats = Nats::start().await;
    let mut provider = Receiver::scripted([
        Reply::Status(500),
        Reply::With(302, "location: /yes/elsewhere"),
        // The kept connection, and the fresh one over which the request goes out once more.
        Reply::Close,
        Reply::Close,
        Reply::Garbage,
        Reply::Endless,
    ])
    .await;
    let hookbridge = Hookbridge::start(&nats, &confirming(&provider.url("/yes"), "")).await;

    for failure in ["500", "302", "no answer", "no HTTP", "too much"] {
        let answer = confirm(&hookbridge, &provider.url("/yes/1?token=t0ken")).await;
        assert_eq!(answer.status, 503, "{failure}");
        assert_eq!(answer.header("retry-after"), "5");
        assert!(!answer.text().contains("t0ken") && !answer.text().contains("127.0.0.1"), "{}", answer.text());
        provider.next().await;
    }
    assert_eq!(provider.unread(), 1, "a redirect was followed");

    confirm(&hookbridge, &provider.url("/yes/1")).await.assert_status(200);
    assert_eq!(nats.count("EVENTS").await, 0);
}

#[tokio::test]
async fn nobody_else_is_called() {
    let nats = Nats::start().await;
    let (provider, other) = (Receiver::start().await, Receiver::start().await);
    let hookbridge = Hookbridge::start(&nats, &confirming(&provider.url("/yes"), "")).await;
    let port = provider.port();
    for url in [
        other.url("/yes"),
        provider.url("/no"),
        provider.url("/yesterday"),
        provider.url("/yes/../no"),
        provider.url("/yes/%2e%2e/no"),
        format!("https://127.0.0.1:{port}/yes"),
        format!("http://127.0.0.1:{port}@127.0.0.1:{}/yes", other.port()),
        format!("http://localhost:{port}/yes"),
        "http://127.0.0.1/yes".to_owned(),
        "file:///etc/passwd".to_owned(),
        "//127.0.0.1/yes".to_owned(),
        String::new(),
    ] {
        assert_eq!(confirm(&hookbridge, &url).await.status, 400, "{url}");
    }
    let unsigned = serde_json::json!({ "confirm": provider.url("/yes") }).to_string();
    hookbridge.post("/hooks/own", &[("x-signature", "00")], unsigned).await.assert_status(401);

    assert_eq!((provider.connections(), other.connections()), (0, 0));
    assert_eq!(nats.count("EVENTS").await, 0);
}

#[tokio::test]
async fn a_provider_that_hangs_holds_nobody_longer_than_a_fetch_or_the_request_may_take() {
    let nats = Nats::start().await;
    let provider = Receiver::start().await;
    for (reply, gateway, longest) in [
        (Reply::Hang, "", Duration::from_secs(9)),
        (Reply::Stall, "request_timeout = \"500ms\"", Duration::from_secs(4)),
    ] {
        provider.otherwise(reply);
        let hookbridge = Hookbridge::start(&nats, &confirming(&provider.url("/yes"), gateway)).await;
        let begun = Instant::now();
        confirm(&hookbridge, &provider.url("/yes")).await.assert_status(503);
        assert!(begun.elapsed() < longest, "{:?}", begun.elapsed());

        let body = r#"{"an":"event"}"#;
        let signature = sign::bare("s3cret", body.as_bytes());
        let event = async || hookbridge.post("/hooks/own", &[("x-signature", &signature)], body).await;
        eventually("an event to be stored", async || (event().await.status == 202).then_some(())).await;
    }
}
