//! Whatever a stranger sends is refused cleanly, counted by its reason, and told nothing.

use std::collections::BTreeSet;
use std::time::{Duration, UNIX_EPOCH};

use hookbridge::app::{Options, Roles};
use hookbridge::clock::Clock;

use crate::harness::{Hookbridge, Nats, send, sign};

const SOURCES: &str = r#"
[gateway]
public_url = "https://hooks.example.com"
[sources.github]
preset = "github"
secrets = ["plain:s3cret"]
[sources.stripe]
preset = "stripe"
secrets = ["plain:s3cret"]
[sources.shopify]
preset = "shopify"
secrets = ["plain:s3cret"]
[sources.mailgun]
preset = "mailgun"
secrets = ["plain:s3cret"]
[sources.adyen]
preset = "adyen"
secrets = ["plain:aabb"]
[sources.docusign]
preset = "docusign"
secrets = ["plain:s3cret"]
[sources.twilio]
preset = "twilio"
secrets = ["plain:s3cret"]
[sources.postmark]
preset = "postmark"
secrets = ["plain:user:password"]
[sources.sns]
preset = "aws-sns"
secrets = ["plain:arn:aws:sns:us-east-1:1:t"]
[sources.token]
secrets = ["plain:s3cret"]
[sources.token.verify]
algorithm = "jwt"
header = "Authorization"
prefix = "Bearer "
jwt = { algorithms = ["HS256"] }
"#;

/// Source, headers, body, and the word that it is counted under.
type Case<'a> = (&'a str, Vec<(&'a str, &'a str)>, String, &'a str);

fn sns(address: &str) -> String {
    serde_json::json!({
        "Type": "Notification", "MessageId": "1", "TopicArn": "arn:aws:sns:us-east-1:1:t", "Message": "m",
        "Timestamp": "2025-10-09T08:53:20.000Z", "SignatureVersion": "2", "Signature": "AAAA",
        "SigningCertURL": address,
    })
    .to_string()
}

#[tokio::test]
async fn every_trick_is_one_and_the_same_401_and_counted_by_its_reason() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SOURCES).await;
    let genuine = sign::hex("s3cret", b"{}");
    let (upper, bare) = (genuine.to_uppercase().replace("SHA256", "sha256"), genuine.replace("sha256=", ""));
    let many = format!("t=1760000000,{}", vec![format!("v1={bare}"); 17].join(","));
    let flood = format!("t=1760000000,{}", vec!["v1=00"; 3_000].join(","));
    let numbered: Vec<(String, String)> =
        (1..=90).map(|number| (format!("x-docusign-signature-{number}"), "AA==".to_owned())).collect();
    let numbered: Vec<(&str, &str)> = numbered.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    let hub = "x-hub-signature-256";
    let stripe = "stripe-signature";
    let bomb = "[".repeat(900_000);
    let form = "a=1&".repeat(10_000);
    let urlencoded = ("content-type", "application/x-www-form-urlencoded");
    let cases: Vec<Case<'_>> = vec![
        ("github", vec![(hub, &genuine), (hub, &genuine)], "{}".into(), "ambiguous"),
        ("github", vec![(hub, &upper)], "{}".into(), "malformed"),
        ("github", vec![(hub, &bare)], "{}".into(), "version"),
        ("github", vec![(hub, "sha256=é")], "{}".into(), "malformed"),
        ("github", vec![(hub, "")], "{}".into(), "missing"),
        ("github", vec![(hub, "sha256=")], "{}".into(), "mismatch"),
        ("stripe", vec![(stripe, &many)], "{}".into(), "ambiguous"),
        ("stripe", vec![(stripe, &flood)], "{}".into(), "ambiguous"),
        ("stripe", vec![(stripe, "t=1,t=2,v1=00")], "{}".into(), "ambiguous"),
        ("stripe", vec![(stripe, "t=1760000000,v2=00")], "{}".into(), "version"),
        ("shopify", vec![("x-shopify-hmac-sha256", "AAA")], "{}".into(), "malformed"),
        ("shopify", vec![("x-shopify-hmac-sha256", "AAAB====")], "{}".into(), "malformed"),
        ("mailgun", vec![], bomb.clone(), "no-way"),
        ("mailgun", vec![], "{\"signature\":{\"signature\":\"00\",\"signature\":\"00\"}}".into(), "missing"),
        ("mailgun", vec![], format!("{{\"signature\":{{\"signature\":[{}]}}}}", "1,".repeat(9) + "1"), "missing"),
        ("adyen", vec![], bomb, "missing"),
        ("adyen", vec![], format!("{{\"notificationItems\":[{}1]}}", "1,".repeat(2_000)), "ambiguous"),
        ("adyen", vec![], "{\"notificationItems\":[]}".into(), "missing"),
        ("docusign", numbered, "{}".into(), "mismatch"),
        ("twilio", vec![("x-twilio-signature", "AAAA"), urlencoded], form, "ambiguous"),
        ("postmark", vec![("authorization", "Basic !!!")], "{}".into(), "malformed"),
        ("postmark", vec![("authorization", "Basic")], "{}".into(), "malformed"),
        ("sns", vec![], sns("https://sns.us-east-1.amazonaws.com.evil.example/a.pem"), "malformed"),
        ("sns", vec![], sns("https://sns.us-east-1.amazonaws.com@evil.example/a.pem"), "malformed"),
        ("sns", vec![], sns("https://sns.us-east-1.amazonaws.com:8443/a.pem"), "malformed"),
        ("sns", vec![], sns("https://sns.us-east-1.amazonaws.com/a.pem?1"), "malformed"),
        ("sns", vec![], sns("http://127.0.0.1/a.pem"), "malformed"),
        ("sns", vec![], sns("https://sns.s3.amazonaws.com/a.pem"), "malformed"),
        ("token", vec![("authorization", "Bearer a.b")], "{}".into(), "token"),
        ("token", vec![("authorization", "Bearer eyJhbGciOiJub25lIn0.e30.")], "{}".into(), "token"),
        ("token", vec![("authorization", "Bearer eyJhbGciOiJIUzI1NiJ9.e30.AAAA")], "{}".into(), "mismatch"),
    ];

    let mut bodies = BTreeSet::new();
    for (source, headers, body, reason) in &cases {
        let counter = format!("hookbridge_ingress_rejections_total{{source=\"{source}\",reason=\"{reason}\"}}");
        let before = hookbridge.metric(&counter).await;
        let answer = send("POST", &hookbridge.url(&format!("/hooks/{source}")), headers, body.clone()).await;
        assert_eq!(answer.status, 401, "{source} {reason}: {}", answer.text());
        assert_eq!(hookbridge.metric(&counter).await, before + 1.0, "{source}: not counted as {reason}");
        bodies.insert(answer.text());
    }

    assert_eq!(bodies.len(), 1, "the answer tells more than it should: {bodies:?}");
    assert_eq!(nats.count("EVENTS").await, 0);
}

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

#[tokio::test]
async fn a_timestamp_of_forty_digits_is_refused_although_it_is_signed() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SOURCES).await;
    let time = "1".repeat(40);
    let code = sign::hex("s3cret", format!("{time}.{{}}").as_bytes()).replace("sha256=", "");

    let signature = format!("t={time},v1={code}");
    hookbridge.post("/hooks/stripe", &[("stripe-signature", &signature)], "{}").await.assert_status(401);

    let counter = "hookbridge_ingress_rejections_total{source=\"stripe\",reason=\"malformed\"}";
    assert_eq!(hookbridge.metric(counter).await, 1.0);
}
