//! What a source with `quarantine = true` rejects is kept for people to study, and no secret with it.

use std::time::{Duration, Instant, UNIX_EPOCH};

use hookbridge::app::{Options, Roles};
use hookbridge::clock::Clock;

use crate::harness::nats::Message;
use crate::harness::{Answer, Configuration, Hookbridge, Nats, eventually, run, sign};

const GITHUB: &str = r#"
[sources.github]
preset = "github"
secrets = ["plain:s3cret", "plain:older"]
quarantine = true
"#;

/// A webhook with a wrong signature.
async fn forged(hookbridge: &Hookbridge, id: &str, body: impl Into<bytes::Bytes>) -> Answer {
    let body = body.into();
    let signature = sign::hex("guess", &body);
    hookbridge.post("/hooks/github?from=x", &sign::github(&signature, "push", id), body).await
}

async fn counted(hookbridge: &Hookbridge, outcome: &str) -> f64 {
    let name = format!("hookbridge_ingress_quarantined_total{{source=\"github\",outcome=\"{outcome}\"}}");
    hookbridge.metric(&name).await
}

async fn wait_for(hookbridge: &Hookbridge, outcome: &str, count: f64) {
    let reached = async || (counted(hookbridge, outcome).await == count).then_some(());
    eventually(&format!("{count} {outcome}"), reached).await;
}

/// Everything that a message shows.
fn dump(message: &Message) -> String {
    let headers = message.headers.iter().map(|(name, values)| format!("{name}: {values:?}\n"));
    let body = String::from_utf8_lossy(&message.payload);
    format!("{}\n{}{body}", message.subject, headers.collect::<String>())
}

#[tokio::test]
async fn a_rejected_request_is_kept_with_its_precise_reason() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, GITHUB).await;
    let signature = sign::hex("guess", b"{\"a\":1}");
    forged(&hookbridge, "d-1", "{\"a\":1}").await.assert_status(401);

    let kept = nats.message("QUARANTINE", "quarantine.>").await;
    assert_eq!((&kept.subject[..], &kept.payload[..]), ("quarantine.github.mismatch", &b"{\"a\":1}"[..]));
    for (name, expected) in [
        ("Hookbridge-Source", "github"),
        ("Hookbridge-Reason", "mismatch with all 2 secrets"),
        ("Hookbridge-Method", "POST"),
        ("Hookbridge-Query", "from=x"),
        ("Hookbridge-Peer", "127.0.0.1"),
        ("Hookbridge-Body-Bytes", "7"),
        ("http-x-github-event", "push"),
        ("http-x-github-delivery", "d-1"),
        ("http-x-hub-signature-256", &signature),
        ("http-content-type", "application/json"),
    ] {
        assert_eq!(kept.header(name), Some(expected), "{}", dump(&kept));
    }
    let received = kept.header("Hookbridge-Received").unwrap();
    assert!(received.len() == 24 && received.ends_with('Z'), "{received}");
    assert_eq!(kept.header("ce-id"), None, "it is no event");
    wait_for(&hookbridge, "kept", 1.0).await;
}

#[tokio::test]
async fn what_is_genuine_and_what_nobody_asked_to_keep_is_not_kept() {
    let nats = Nats::start().await;
    let text = format!("{GITHUB}[sources.other]\npreset = \"github\"\nsecrets = [\"plain:s3cret\"]");
    let hookbridge = Hookbridge::start(&nats, &text).await;
    let signature = sign::hex("older", b"{}");
    hookbridge.post("/hooks/github", &sign::github(&signature, "push", "1"), "{}").await.assert_status(202);
    hookbridge.post("/hooks/other", &sign::github(&signature, "push", "2"), "{}").await.assert_status(401);
    hookbridge.post("/hooks/nobody", &sign::github(&signature, "push", "3"), "{}").await.assert_status(404);
    hookbridge.post("/hooks/github", &[("content-encoding", "gzip")], "{}").await.assert_status(415);

    // What was to be kept would have been on its way before the gateway ended.
    hookbridge.stop().await.unwrap();
    assert_eq!((nats.count("QUARANTINE").await, nats.count("EVENTS").await), (0, 1));
}

#[tokio::test]
async fn the_subject_and_the_reason_say_what_was_wrong() {
    let nats = Nats::start().await;
    let standard = "[sources.standard]\npreset = \"standard-webhooks\"\nsecrets = [\"plain:key\"]\nquarantine = true";
    let clock = Clock::fixed(UNIX_EPOCH + Duration::from_secs(1_700_000_000));
    let options = Options { clock, ..Options::default() };
    let hookbridge = Hookbridge::start_with(&nats, Roles::Both, &format!("{GITHUB}{standard}"), options).await;
    hookbridge.ready().await;
    let at = |timestamp: &'static str| {
        let signature = sign::v1(b"key", "m-1", timestamp, b"{}");
        async move |hookbridge: &Hookbridge| {
            let headers =
                [("webhook-id", "m-1"), ("webhook-timestamp", timestamp), ("webhook-signature", &signature[..])];
            hookbridge.post("/hooks/standard", &headers, "{}").await.assert_status(401);
        }
    };
    at("1699999288")(&hookbridge).await;
    at("1700000301")(&hookbridge).await;
    hookbridge.post("/hooks/github", &[], "{}").await.assert_status(401);
    hookbridge.post("/hooks/github", &[("x-hub-signature-256", "sha256=zz")], "{}").await.assert_status(401);

    for (subject, reason) in [
        ("quarantine.standard.too-old", "too old by 412 s"),
        ("quarantine.standard.too-new", "from the future by 1 s more than allowed"),
        ("quarantine.github.missing", "nothing at `header:x-hub-signature-256`"),
        ("quarantine.github.malformed", "`header:x-hub-signature-256` is malformed: "),
    ] {
        let kept = nats.message("QUARANTINE", subject).await;
        assert!(kept.header("Hookbridge-Reason").unwrap().starts_with(reason), "{}", dump(&kept));
        assert_eq!(kept.header("Hookbridge-Received"), Some("2023-11-14T22:13:20.000Z"));
    }
}

/// One source for every way of showing a secret instead of a code made with it.
const SHOWING: &str = r#"
[sources.token]
preset = "gitlab"
secrets = ["plain:header-s3cret"]
path_token = "plain:path-s3cret"
quarantine = true
[sources.basic]
secrets = ["plain:me:basic-s3cret"]
verify = { algorithm = "basic" }
quarantine = true
[sources.query]
secrets = ["plain:query-s3cret"]
verify = { algorithm = "token", signature = "query:key" }
quarantine = true
[sources.field]
secrets = ["plain:field-s3cret"]
verify = { algorithm = "token", signature = "json:/key | form:key" }
quarantine = true
[sources.bearer]
secrets = ["plain:bearer-s3cret"]
verify = { algorithm = "jwt", header = "X-Proof", jwt = { algorithms = ["HS256"] } }
quarantine = true
[sources.code]
preset = "github"
secrets = ["plain:code-s3cret"]
quarantine = true
"#;

#[tokio::test]
async fn no_secret_of_any_kind_is_kept() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SHOWING).await;
    let everywhere = [
        ("authorization", "Basic bWU6b2xkLXMzY3JldA=="),
        ("proxy-authorization", "Bearer proxy-s3cret"),
        ("cookie", "session=cookie-s3cret"),
        ("set-cookie", "session=cookie-s3cret"),
        ("x-api-key", "key-s3cret"),
        ("x-gitlab-token", "old-s3cret"),
        ("x-original-url", "/hooks/token/path-s3cret?key=old-s3cret"),
        ("x-note", "Bearer proxy-s3cret, as in proxy-authorization"),
        ("x-kept", "yes"),
    ];
    for (path, source) in [
        ("/hooks/token/path-s3cret?token=old-s3cret", "token"),
        ("/hooks/basic?password=old-s3cret", "basic"),
        ("/hooks/query?key=old-s3cret&a=1", "query"),
        ("/hooks/field?access_token=field-s3cret", "field"),
        ("/hooks/bearer?a=bearer%2Ds3cret&b=bearer-s3cret", "bearer"),
        ("/hooks/code?a=code-s3cret&code-s3cret=1", "code"),
    ] {
        let own = format!("{{\"key\":\"not {}-s3cret\"}}", if source == "token" { "header" } else { source });
        // A token of the source that expects one there, and nothing to the others.
        let proof = if source == "bearer" { "jwt.s3cret.old" } else { "none" };
        let headers = [&everywhere[..], &[("x-proof", proof)]].concat();
        hookbridge.post(path, &headers, own).await.assert_status(401);
        let kept = nats.message("QUARANTINE", &format!("quarantine.{source}.>")).await;
        let shown = dump(&kept);
        assert!(!shown.contains("s3cret") && !shown.contains("bWU6"), "{shown}");
        assert_eq!((kept.header("http-x-kept"), &kept.payload[..]), (Some("yes"), &b""[..]), "{shown}");
        assert!(kept.header("Hookbridge-Body-Left-Out").is_some(), "{shown}");
        let left_out = kept.header("Hookbridge-Left-Out").unwrap();
        for name in ["authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key", "x-gitlab-token"] {
            assert!(left_out.split(", ").any(|left| left == name), "{shown}");
        }
    }
    let kept = nats.message("QUARANTINE", "quarantine.query.>").await;
    assert_eq!(kept.header("Hookbridge-Query"), Some("key=***&a=1"));
    // A wrong token in the body is one as well.
    hookbridge.post("/hooks/field", &[], "key=old-s3cret").await.assert_status(401);
    let kept = nats.messages("QUARANTINE", "quarantine.field.>", 2).await.pop().unwrap();
    assert_eq!(kept.header("Hookbridge-Body-Left-Out"), Some("a secret belongs at `json:/key`"));
    assert!(!dump(&kept).contains("s3cret"), "{}", dump(&kept));
}

#[tokio::test]
async fn no_sender_can_set_a_header_that_nats_reads() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, GITHUB).await;
    let headers = [("nats-msg-id", "same"), ("nats-expected-stream", "EVENTS"), ("nats-rollup", "all")];
    for _ in 0..2 {
        hookbridge.post("/hooks/github", &headers, "{}").await.assert_status(401);
    }
    for kept in nats.messages("QUARANTINE", "quarantine.github.missing", 2).await {
        assert!(kept.headers.iter().all(|(name, _)| !name.to_string().to_lowercase().starts_with("nats-")));
        assert_eq!(kept.header("http-nats-msg-id"), Some("same"));
    }
}

#[tokio::test]
async fn a_large_body_is_cut() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, GITHUB).await;
    forged(&hookbridge, "1", vec![b'x'; 65_536]).await.assert_status(401);
    forged(&hookbridge, "2", vec![b'x'; 300_000]).await.assert_status(401);
    for (index, kept) in nats.messages("QUARANTINE", "quarantine.>", 2).await.iter().enumerate() {
        let (bytes, cut) = [("65536", None), ("300000", Some("65536"))][index];
        assert_eq!((kept.header("Hookbridge-Body-Bytes"), kept.header("Hookbridge-Body-Cut")), (Some(bytes), cut));
        assert_eq!(kept.payload.len(), 65_536);
    }
}

#[tokio::test]
async fn a_server_that_takes_little_is_sent_less() {
    let nats = Nats::start_with("max_payload: 72KB").await;
    let hookbridge = Hookbridge::start(&nats, GITHUB).await;
    // The gateway takes bodies up to max_payload without the room for headers.
    forged(&hookbridge, "1", vec![b'x'; 8 * 1024]).await.assert_status(401);
    assert_eq!(nats.message("QUARANTINE", "quarantine.>").await.payload.len(), 8 * 1024);
    hookbridge.ready().await;
}

#[tokio::test]
async fn a_flood_is_answered_and_only_so_much_of_it_is_kept() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, GITHUB).await;
    let begun = Instant::now();
    for id in 0..200 {
        forged(&hookbridge, &id.to_string(), "{}").await.assert_status(401);
    }
    let most = 50.0 + 10.0 * (begun.elapsed().as_secs_f64() + 1.0);

    let all = async || {
        let (kept, dropped) = (counted(&hookbridge, "kept").await, counted(&hookbridge, "dropped").await);
        (kept + dropped == 200.0).then_some(kept)
    };
    let kept = eventually("all to be kept or dropped", all).await;
    assert!(kept >= 16.0 && kept <= most, "{kept} of at most {most}");
    assert_eq!(nats.count("QUARANTINE").await as f64, kept);
}

#[tokio::test]
async fn a_server_that_does_not_answer_delays_no_answer_and_holds_up_no_more_than_a_few() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, &format!("[gateway]\npublish_timeout = \"80s\"\n{GITHUB}")).await;
    nats.pause();
    let begun = Instant::now();
    for id in 0..20 {
        forged(&hookbridge, &id.to_string(), "{}").await.assert_status(401);
    }
    assert!(begun.elapsed() < Duration::from_secs(80), "somebody waited for the stream");
    assert_eq!((counted(&hookbridge, "kept").await, counted(&hookbridge, "dropped").await), (0.0, 4.0));
    nats.go_on();
    wait_for(&hookbridge, "kept", 16.0).await;
}

#[tokio::test]
async fn without_nats_a_forgery_is_401_all_the_same_and_counted() {
    let mut nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, GITHUB).await;
    nats.kill();
    let away = async || (hookbridge.admin("/readyz").await.status == 503).then_some(());
    eventually("the gateway to notice", away).await;
    forged(&hookbridge, "1", "{}").await.assert_status(401);
    assert_eq!((counted(&hookbridge, "kept").await, counted(&hookbridge, "dropped").await), (0.0, 1.0));
}

#[tokio::test]
async fn a_stopping_gateway_finishes_what_it_keeps_and_waits_no_longer_than_it_may() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, GITHUB).await;
    for id in 0..10 {
        forged(&hookbridge, &id.to_string(), "{}").await.assert_status(401);
    }
    hookbridge.stop().await.unwrap();
    assert_eq!(nats.count("QUARANTINE").await, 10);

    let text = format!("shutdown_grace = \"200ms\"\n[gateway]\npublish_timeout = \"10m\"\n{GITHUB}");
    let hookbridge = Hookbridge::start(&nats, &text).await;
    nats.pause();
    forged(&hookbridge, "11", "{}").await.assert_status(401);
    hookbridge.stop().await.unwrap();
    nats.go_on();
}

#[tokio::test]
async fn people_see_it_with_tail_and_check_says_where_it_is() {
    let nats = Nats::start().await;
    let text = format!("[nats]\nprefix = \"acme\"\n{GITHUB}");
    let hookbridge = Hookbridge::start(&nats, &text).await;
    forged(&hookbridge, "1", "{\"a\":1}").await.assert_status(401);
    nats.message("acme_QUARANTINE", "acme.quarantine.github.mismatch").await;

    let configuration = Configuration::new(&text);
    let tail = ["tail", "--nats", &nats.url(), "--all", "--count", "1", "quarantine.>"];
    let seen = run(&mut configuration.hookbridge(&tail)).await;
    assert!(seen.assert_code(0).stdout.contains("── quarantine.github.mismatch"), "{seen}");
    assert!(seen.stdout.contains("Hookbridge-Reason: mismatch with all 2 secrets"), "{seen}");
    let checked = run(&mut configuration.hookbridge(&["check"])).await;
    let expected = "rejected requests are kept for 1day on acme.quarantine.github.<reason>";
    assert!(checked.assert_code(0).stdout.contains(expected), "{checked}");

    let nothing = Configuration::new("[sources.open]\nverify = \"none\"\nquarantine = true");
    let checked = run(&mut nothing.hookbridge(&["check"])).await;
    let expected = "warning: sources.open: `quarantine` keeps what is rejected, and with verify = \"none\" nothing is";
    assert!(checked.assert_code(0).stdout.contains(expected), "{checked}");
}
