//! Whatever a stranger sends is refused cleanly, counted by its reason, and told nothing.

use std::collections::BTreeSet;

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
    let cases: Vec<(&str, Vec<(&str, &str)>, String, &str)> = vec![
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
