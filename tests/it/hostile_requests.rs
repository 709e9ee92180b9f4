//! Requests that somebody made to hurt: each has a plain answer, soon, and always the same one.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL_NOPAD, HEXUPPER};

use crate::harness::{Answer, Hookbridge, Nats, request, send_raw, sign};

/// One source for every way of saying a signature.
const SOURCES: &str = r#"
[gateway]
listen = "127.0.0.1:0"
max_body = "2MiB"
max_headers = "64KiB"
[sources.github]
preset = "github"
secrets = ["plain:s3cret"]
[sources.stripe]
preset = "stripe"
secrets = ["plain:s3cret"]
[sources.standard]
preset = "standard-webhooks"
secrets = ["plain:whsec_czNjcmV0"]
[sources.docusign]
preset = "docusign"
secrets = ["plain:s3cret"]
[sources.twilio]
preset = "twilio"
secrets = ["plain:s3cret"]
public_url = "https://hooks.example.com/twilio"
[sources.sign]
preset = "dropbox-sign"
secrets = ["plain:s3cret"]
[sources.adyen]
preset = "adyen"
secrets = ["plain:73336372657473336372657473336372"]
[sources.token]
[sources.token.verify]
header = "Authorization"
prefix = "Bearer "
algorithm = "jwt"
jwt = { algorithms = ["HS256"] }
"#;

/// How long any of them may take, on a machine that has other things to do.
const SOON: Duration = Duration::from_secs(5);

async fn start(nats: &Nats) -> Hookbridge {
    let text = SOURCES.replace("[sources.token]\n", "[sources.token]\nsecrets = [\"plain:s3cret\"]\n");
    Hookbridge::start(nats, &text).await
}

fn now() -> String {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().to_string()
}

/// A request, and why it is not genuine.
struct Hostile {
    name: &'static str,
    source: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    reason: &'static str,
}

fn hostile(
    name: &'static str,
    source: &'static str,
    headers: impl IntoIterator<Item = (&'static str, String)>,
    body: impl Into<Vec<u8>>,
    reason: &'static str,
) -> Hostile {
    Hostile { name, source, headers: headers.into_iter().collect(), body: body.into(), reason }
}

impl Hostile {
    async fn send(&self, hookbridge: &Hookbridge) -> Answer {
        let headers: Vec<(&str, &str)> = self.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        hookbridge.post(&format!("/hooks/{}", self.source), &headers, self.body.clone()).await
    }
}

fn signatures() -> Vec<Hostile> {
    const GITHUB: &str = "x-hub-signature-256";
    let (right, now) = (sign::hex("s3cret", b"{}"), now());
    let stripe = sign::bare("s3cret", format!("{now}.{{}}").as_bytes());
    let listed = |count: usize| format!("t={now},{}v1={stripe}", format!("v1={},", "0".repeat(64)).repeat(count));
    let upper = format!("sha256={}", HEXUPPER.encode(&sign::hmac(b"s3cret", b"{}")));
    let docusign = |body: &[u8]| sign::hmac(b"s3cret", body);
    let unpadded = BASE64_NOPAD.encode(&docusign(b"{}"));
    let too_padded = format!("{}=", BASE64.encode(&docusign(b"{}")));
    let digits = "1".repeat(40);
    let long = format!("t={digits},v1={}", sign::bare("s3cret", format!("{digits}.{{}}").as_bytes()));
    let overflow = "9".repeat(20);
    let overflow = format!("t={overflow},v1={}", sign::bare("s3cret", format!("{overflow}.{{}}").as_bytes()));
    let both = || [(GITHUB, right.clone()), (GITHUB, right.clone())];
    vec![
        hostile("two equal signatures", "github", both(), "{}", "ambiguous"),
        hostile("upper-case hex", "github", [(GITHUB, upper)], "{}", "malformed"),
        hostile("a blank before", "github", [(GITHUB, right.replace('=', "= "))], "{}", "malformed"),
        hostile("half a byte", "github", [(GITHUB, right[..70].to_owned())], "{}", "malformed"),
        hostile("not ASCII", "github", [(GITHUB, "sha256=\u{e9}\u{1f600}".to_owned())], "{}", "malformed"),
        hostile("30 kB", "github", [(GITHUB, format!("sha256={}", "0".repeat(30_000)))], "{}", "mismatch"),
        hostile("another version", "github", [(GITHUB, right.replace("sha256", "sha1"))], "{}", "version"),
        hostile("seventeen signatures", "stripe", [("stripe-signature", listed(16))], "{}", "ambiguous"),
        hostile("10,000 entries", "stripe", [("stripe-signature", "v1=0,".repeat(10_000))], "{}", "ambiguous"),
        hostile("10,000 commas", "stripe", [("stripe-signature", ",".repeat(10_000))], "{}", "version"),
        hostile(
            "two times",
            "stripe",
            [("stripe-signature", format!("t={now},t={now},v1={stripe}"))],
            "{}",
            "ambiguous",
        ),
        hostile("no time", "stripe", [("stripe-signature", format!("v1={stripe}"))], "{}", "missing"),
        hostile("a time of 40 digits", "stripe", [("stripe-signature", long)], "{}", "malformed"),
        hostile("a time beyond 64 bits", "stripe", [("stripe-signature", overflow)], "{}", "malformed"),
        hostile("no padding", "docusign", [("x-docusign-signature-1", unpadded)], "{}", "malformed"),
        hostile("too much padding", "docusign", [("x-docusign-signature-1", too_padded)], "{}", "malformed"),
        hostile("no number", "docusign", [("x-docusign-signature-", "eA==".to_owned())], "{}", "missing"),
        hostile("another number", "docusign", [("x-docusign-signature-1x", "eA==".to_owned())], "{}", "missing"),
        hostile(
            "no id",
            "standard",
            [("webhook-signature", "v1,eA==".to_owned()), ("webhook-timestamp", now.clone())],
            "{}",
            "missing",
        ),
        hostile(
            "two ids",
            "standard",
            [
                ("webhook-signature", "v1,eA==".to_owned()),
                ("webhook-timestamp", now.clone()),
                ("webhook-id", "1".to_owned()),
                ("webhook-id", "1".to_owned()),
            ],
            "{}",
            "ambiguous",
        ),
    ]
}

fn bodies() -> Vec<Hostile> {
    let form = ("content-type", "application/x-www-form-urlencoded".to_owned());
    let twilio = ("x-twilio-signature", "eA==".to_owned());
    let keys: String = (0..10_000).map(|index| format!("k{index}=v&")).collect();
    let nested = "[".repeat(1_000_000);
    let objects = r#"{"a":"#.repeat(200_000);
    let item = |extra: &str| {
        format!(
            r#"{{"notificationItems":[{{"NotificationRequestItem":{{"pspReference":"p","merchantAccountCode":"m","eventCode":"e","success":"true"{extra}}}}}]}}"#
        )
    };
    let signature = r#","additionalData":{"hmacSignature":"eA==","hmacSignature":"eA=="}"#;
    let many = format!(r#"{{"notificationItems":[{}0]}}"#, "0,".repeat(1000));
    let bomb = format!(r#"{{"notificationItems":[{}"#, "[".repeat(1_000_000));
    vec![
        hostile("10,000 keys", "twilio", [form.clone(), twilio.clone()], keys, "ambiguous"),
        hostile("a million separators", "twilio", [form, twilio], "&".repeat(1_000_000), "mismatch"),
        hostile("10,000 keys where one is looked for", "sign", [], "json=%7B%7D&".repeat(10_000), "ambiguous"),
        hostile("a bomb in a field", "sign", [], format!("json={nested}"), "missing"),
        hostile("a megabyte of brackets", "adyen", [], nested, "missing"),
        hostile("200,000 objects", "adyen", [], objects, "missing"),
        hostile("brackets behind the list", "adyen", [], bomb, "missing"),
        hostile("two keys where the signature is", "adyen", [], item(signature), "missing"),
        hostile("two lists", "adyen", [], r#"{"notificationItems":[],"notificationItems":[]}"#, "missing"),
        hostile("an empty list", "adyen", [], r#"{"notificationItems":[]}"#, "missing"),
        hostile("a thousand and one items", "adyen", [], many, "ambiguous"),
        hostile("no JSON", "adyen", [], vec![0xff; 1_000_000], "missing"),
        hostile("nothing", "adyen", [], "", "missing"),
    ]
}

fn tokens() -> Vec<Hostile> {
    let bearer = |token: String| ("authorization", format!("Bearer {token}"));
    let part = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
    let signed = |header: &str, claims: &str| {
        let signed = format!("{}.{}", part(header), part(claims));
        let code = BASE64URL_NOPAD.encode(&sign::hmac(b"s3cret", signed.as_bytes()));
        format!("{signed}.{code}")
    };
    let (head, deep) = (r#"{"alg":"HS256"}"#, format!("{{\"a\":{}", "[".repeat(20_000)));
    let long = format!("{}.{}.eA", part(head), "A".repeat(58_000));
    vec![
        hostile("58 kB of a token", "token", [bearer(long)], "", "mismatch"),
        hostile("claims as a bomb", "token", [bearer(signed(head, &deep))], "", "token"),
        hostile("a header as a bomb", "token", [bearer(signed(&deep, "{}"))], "", "token"),
        hostile("claims that are a list", "token", [bearer(signed(head, "[]"))], "", "token"),
        hostile("nothing but dots", "token", [bearer(".".repeat(50_000))], "", "token"),
        hostile("no bearer", "token", [("authorization", signed(head, "{}"))], "", "version"),
        hostile("another case", "token", [("authorization", format!("bearer {}", signed(head, "{}")))], "", "version"),
        hostile("a time before time", "token", [bearer(signed(head, r#"{"exp":-1}"#))], "", "token"),
        hostile("a time beyond time", "token", [bearer(signed(head, r#"{"nbf":1e999}"#))], "", "token"),
        hostile("the last time", "token", [bearer(signed(head, r#"{"nbf":999999999999999}"#))], "", "too-new"),
    ]
}

#[tokio::test]
async fn what_is_not_genuine_is_the_same_401_soon_and_is_counted_by_its_reason() {
    let nats = Nats::start().await;
    let hookbridge = start(&nats).await;
    let mut seen: Vec<(&str, String)> = Vec::new();
    for hostile in signatures().into_iter().chain(bodies()).chain(tokens()) {
        let (name, source) = (hostile.name, hostile.source);
        let before = hookbridge.rejected(source, hostile.reason).await;
        let begun = Instant::now();
        let answer = hostile.send(&hookbridge).await;
        let took = begun.elapsed();

        assert_eq!(answer.status, 401, "{name}: {}", answer.text());
        assert!(took < SOON, "{name} took {took:?}");
        assert_eq!(hookbridge.rejected(source, hostile.reason).await, before + 1.0, "{name} is not {}", hostile.reason);
        let mut headers: Vec<_> = answer.headers.iter().filter(|(name, _)| *name != "date").collect();
        headers.sort_by_key(|(name, _)| name.as_str());
        seen.push((source, format!("{headers:?} {}", answer.text())));
    }
    seen.sort();
    seen.dedup();
    let sources: Vec<&str> = seen.iter().map(|(source, _)| *source).collect();
    assert_eq!(sources, ["adyen", "docusign", "github", "sign", "standard", "stripe", "token", "twilio"], "{seen:?}");
    assert_eq!(nats.count("EVENTS").await, 0);
}

#[tokio::test]
async fn what_is_odd_and_genuine_is_taken() {
    let nats = Nats::start().await;
    let hookbridge = start(&nats).await;
    let now = now();
    let stripe = sign::bare("s3cret", format!("{now}.{{}}").as_bytes());
    let fifteen = format!("v1={},", "0".repeat(64)).repeat(15);
    let docusign = BASE64.encode(&sign::hmac(b"s3cret", b"{}"));
    let mut numbered: Vec<(String, String)> =
        (1..=90).map(|number| (format!("x-docusign-signature-{number}"), "eA==".to_owned())).collect();
    numbered[89].1 = docusign;
    let numbered: Vec<(&str, &str)> = numbered.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    let right = sign::hex("s3cret", b"\xff\x00");
    let bomb = "[".repeat(1_000_000);
    let bombed = sign::hex("s3cret", bomb.as_bytes());

    let listed = format!(" t={now} , {fifteen} v1={stripe} ,, v0=foreign");
    hookbridge.post("/hooks/stripe", &[("stripe-signature", &listed)], "{}").await.assert_status(202);
    hookbridge.post("/hooks/docusign", &numbered, "{}").await.assert_status(202);
    hookbridge.post("/hooks/github", &[("x-hub-signature-256", &right)], &b"\xff\x00"[..]).await.assert_status(202);
    let begun = Instant::now();
    hookbridge.post("/hooks/github", &[("x-hub-signature-256", &bombed)], bomb).await.assert_status(202);

    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_eq!(nats.count("EVENTS").await, 4);
}

#[tokio::test]
async fn five_hundred_numbered_headers_are_413_and_header_bytes_that_are_no_text_are_401() {
    let nats = Nats::start().await;
    let hookbridge = start(&nats).await;
    let many: String = (1..=500).map(|number| format!("x-docusign-signature-{number}: eA==\r\n")).collect();
    let raw = |source: &str, headers: &[u8]| {
        let head = format!("POST /hooks/{source} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n");
        [head.as_bytes(), headers, b"\r\n{}"].concat()
    };

    let answer = send_raw(&hookbridge.url("/"), &raw("docusign", many.as_bytes())).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    for bytes in [
        &b"x-hub-signature-256: sha256=\xff\xfe\r\n"[..],
        b"x-hub-signature-256: \xc3\x28\r\n",
        b"x-hub-signature-256:\r\n",
    ] {
        let answer = send_raw(&hookbridge.url("/"), &raw("github", bytes)).await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    }
    assert_eq!(hookbridge.counted("github", "rejected").await, 3.0);
}

#[tokio::test]
async fn a_query_of_thousands_is_read_within_bounds() {
    let nats = Nats::start().await;
    let text = SOURCES.replace("[sources.token]\n", "[sources.token]\nsecrets = [\"plain:s3cret\"]\n")
        + "[sources.meta]\npreset = \"meta\"\nsecrets = [\"plain:x\"]\nverify_token = \"plain:t\"\n[sources.open]\nverify = \"none\"\ntype = \"query:t\"";
    let hookbridge = Hookbridge::start(&nats, &text).await;
    let (many, same) = ("a=1&".repeat(5000), "hub.verify_token=t&".repeat(1000));
    for (path, expected) in [
        (format!("/hooks/github?{many}"), 401),
        (format!("/hooks/twilio?{many}"), 401),
        (format!("/hooks/open?{many}"), 202),
    ] {
        let begun = Instant::now();
        let answer = hookbridge.post(&path, &[], "{}").await;
        assert_eq!(answer.status, expected, "{path:.30}: {}", answer.text());
        assert!(begun.elapsed() < SOON, "{path:.30} took {:?}", begun.elapsed());
    }
    let path = format!("/hooks/meta?hub.mode=subscribe&hub.challenge=1&{same}");
    request("GET", &hookbridge.url(&path), &[], "").await.assert_status(403);
    // A URL over the limit of headers never comes so far.
    let long = format!("POST /hooks/open?{} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", "a=1&".repeat(30_000));
    let answer = send_raw(&hookbridge.url("/"), long.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert!(answer.contains("application/problem+json"), "{answer}");
}
