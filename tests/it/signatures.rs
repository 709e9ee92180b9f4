//! What signs a delivery: secrets that end, ed25519 keys, other providers' forms; and that nothing leaves unsigned.

use std::time::{Duration, SystemTime};

use hookbridge::app::{Options, Roles};
use hookbridge::clock::Clock;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use data_encoding::{BASE64, HEXLOWER};

use crate::harness::{Configuration, Hookbridge, Nats, Receiver, mistakes, run, sign};

const JANUARY: &str = "2020-01-01T00:00:00Z";
const IN_HUNDRED_YEARS: &str = "2126-01-01T00:00:00Z";

fn to_crm(id: &str) -> [(&str, &str); 2] {
    [("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", id)]
}

fn crm(receiver: &Receiver, rest: &str) -> String {
    format!("[endpoints.crm]\nurl = \"{}\"\n{rest}\n", receiver.url("/hooks"))
}

/// The courier at a time that the test sets.
async fn courier_at(nats: &Nats, clock: &Clock, text: &str) -> Hookbridge {
    let options = Options { clock: clock.clone(), ..Options::default() };
    let hookbridge = Hookbridge::start_with(nats, Roles::Courier, text, options).await;
    hookbridge.ready().await;
    hookbridge
}

fn after_now(seconds: u64) -> (SystemTime, String) {
    let until = SystemTime::now() + Duration::from_secs(seconds);
    (until, humantime::format_rfc3339_millis(until).to_string())
}

#[tokio::test]
async fn the_overlap_of_two_secrets_ends_by_itself() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let (until, written) = after_now(3600);
    let clock = Clock::fixed(until - Duration::from_secs(1));
    let secrets = format!("secrets = [\"plain:new\", {{ secret = \"plain:old\", until = \"{written}\" }}]");
    let _hookbridge = courier_at(&nats, &clock, &crm(&receiver, &secrets)).await;

    nats.publish("outbox.a", &to_crm("m-1"), "x").await;
    let before = receiver.next().await;
    clock.set(until + Duration::from_secs(1));
    nats.publish("outbox.a", &to_crm("m-2"), "x").await;
    let after = receiver.next().await;

    let of = |keys: &[&str], id: &str, timestamp: &str| {
        keys.iter().map(|key| sign::v1(key.as_bytes(), id, timestamp, b"x")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(before.header("webhook-signature"), of(&["new", "old"], "m-1", before.header("webhook-timestamp")));
    assert_eq!(after.header("webhook-signature"), of(&["new"], "m-2", after.header("webhook-timestamp")));
}

#[tokio::test]
async fn a_delivery_without_a_secret_that_holds_is_not_sent_and_says_why() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let (until, written) = after_now(3600);
    let clock = Clock::fixed(until);
    let secrets = format!("secrets = [{{ secret = \"plain:old\", until = \"{written}\" }}]");
    let config = format!("[egress]\nretry = []\n{}", crm(&receiver, &secrets));
    let _hookbridge = courier_at(&nats, &clock, &config).await;

    nats.publish("outbox.a", &to_crm("m-1"), "x").await;

    let receipt = nats.message("RECEIPTS", "receipts.a.dead.m-1").await.json();
    assert_eq!(
        (receipt["error_class"].as_str(), receipt["attempt"].as_u64()),
        (Some("unsigned"), Some(1)),
        "{receipt}"
    );
    let reason = nats.message("DEAD", "dead.a.m-1").await;
    assert!(format!("{reason:?}").contains("every secret that could sign it has ended"), "{reason:?}");
    assert_eq!(receiver.unread(), 0);
}

#[tokio::test]
async fn a_source_takes_an_old_secret_until_its_end() {
    let nats = Nats::start().await;
    let (until, written) = after_now(3600);
    let clock = Clock::fixed(until - Duration::from_secs(1));
    let source = format!(
        "[sources.github]\npreset = \"github\"\n\
         secrets = [\"plain:new\", {{ secret = \"plain:old\", until = \"{written}\" }}]"
    );
    let hookbridge = Hookbridge::start_at(&nats, &clock, &source).await;
    let status = async |secret: &str, id: &str| {
        let signature = sign::hex(secret, b"{}");
        hookbridge.post("/hooks/github", &sign::github(&signature, "push", id), "{}").await.status.as_u16()
    };

    assert_eq!((status("old", "1").await, status("new", "2").await), (202, 202));
    clock.set(until);
    assert_eq!((status("old", "3").await, status("new", "4").await), (401, 202));
}

#[tokio::test]
async fn an_ed25519_key_and_a_shared_secret_sign_one_delivery() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let forms = format!(
        "secrets = [\"plain:whsk_{}\", \"plain:shared\"]\nsignatures = [\"standard-webhooks\", \"x-signature\"]",
        BASE64.encode(&[&[7; 32], pair.public_key().as_ref()].concat())
    );
    let _hookbridge = Hookbridge::start(&nats, &crm(&receiver, &forms)).await;

    nats.publish("outbox.a", &to_crm("m-1"), "x").await;
    let delivered = receiver.next().await;

    let timestamp = delivered.header("webhook-timestamp");
    let value = delivered.header("webhook-signature");
    let (shared, private) = value.split_once(' ').unwrap();
    assert_eq!(shared, sign::v1(b"shared", "m-1", timestamp, b"x"));
    let signature = BASE64.decode(private.strip_prefix("v1a,").unwrap().as_bytes()).unwrap();
    let public = UnparsedPublicKey::new(&ED25519, pair.public_key().as_ref());
    public.verify(format!("m-1.{timestamp}.x").as_bytes(), &signature).unwrap();
    // The ed25519 key has no place in an HMAC.
    assert_eq!(delivered.header("x-signature"), sign::hex("shared", b"x"));
}

#[tokio::test]
async fn a_preset_signs_as_its_provider_does() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let forms = "secrets = [\"plain:one\", \"plain:two\"]\nsignatures = [\"preset:stripe\"]";
    let other = format!(
        "[endpoints.other]\nurl = \"{}\"\nsecrets = [\"plain:three\"]\nsignatures = [\"preset:pandadoc\", \"preset:gitlab\"]",
        receiver.url("/other?a=b")
    );
    let _hookbridge = Hookbridge::start(&nats, &format!("{}{other}", crm(&receiver, forms))).await;

    nats.publish("outbox.a", &to_crm("m-1"), "x").await;
    let stripe = receiver.next().await;
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "other"), ("Nats-Msg-Id", "m-2")], "x").await;
    let other = receiver.next().await;

    let timestamp = stripe.header("webhook-timestamp");
    let code = |key: &str| HEXLOWER.encode(&sign::hmac(key.as_bytes(), format!("{timestamp}.x").as_bytes()));
    assert_eq!(stripe.header("stripe-signature"), format!("t={timestamp},v1={},v1={}", code("one"), code("two")));
    assert_eq!(other.path, format!("/other?a=b&signature={}", sign::bare("three", b"x")));
    assert_eq!(other.header("x-gitlab-token"), "three");
}

#[tokio::test]
async fn what_a_courier_signs_a_gateway_takes() {
    let nats = Nats::start().await;
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let (private, public) = (BASE64.encode(&[7; 32]), BASE64.encode(pair.public_key().as_ref()));
    let sources = format!(
        "[sources.ed25519]\npreset = \"standard-webhooks\"\nsecrets = [\"plain:whpk_{public}\"]\n\
         [sources.twitch]\npreset = \"twitch\"\nsecrets = [\"plain:shared\"]\n"
    );
    let gateway = Hookbridge::start_as(&nats, Roles::Gateway, &sources).await;
    let endpoints = format!(
        "[egress]\nretry = []\n\
         [endpoints.ed25519]\nurl = \"{}\"\nsecrets = [\"plain:whsk_{private}\"]\n\
         [endpoints.twitch]\nurl = \"{}\"\nsecrets = [\"plain:shared\"]\nsignatures = [\"preset:twitch\"]\n",
        gateway.url("/hooks/ed25519"),
        gateway.url("/hooks/twitch"),
    );
    let _courier = Hookbridge::start_as(&nats, Roles::Courier, &endpoints).await;

    for endpoint in ["ed25519", "twitch"] {
        let id = format!("m-{endpoint}");
        nats.publish("outbox.a", &[("Hookbridge-Endpoint", endpoint), ("Nats-Msg-Id", &id)], "{}").await;
        let event = nats.message("EVENTS", &format!("events.{endpoint}.unknown")).await;
        assert_eq!((event.header("ce-id"), &event.payload[..]), (Some(id.as_str()), &b"{}"[..]));
    }
}

#[tokio::test]
async fn each_attempt_has_its_own_time_and_signature_and_the_same_id() {
    use crate::harness::Reply;
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    receiver.then(Reply::Status(500));
    let config = format!("[egress]\nretry = [\"1500ms\"]\n{}", crm(&receiver, "secrets = [\"plain:key\"]"));
    let _hookbridge = Hookbridge::start(&nats, &config).await;

    nats.publish("outbox.a", &to_crm("m-1"), "{ \"a\" : 1 }").await;

    let attempts = [receiver.next().await, receiver.next().await];
    for attempt in &attempts {
        let timestamp = attempt.header("webhook-timestamp");
        let expected = sign::v1(b"key", "m-1", timestamp, b"{ \"a\" : 1 }");
        assert_eq!((attempt.header("webhook-id"), attempt.header("webhook-signature")), ("m-1", expected.as_str()));
        assert_eq!(&attempt.body[..], b"{ \"a\" : 1 }");
    }
    assert_ne!(attempts[0].header("webhook-timestamp"), attempts[1].header("webhook-timestamp"));
}

#[tokio::test]
async fn a_check_says_which_secrets_end_and_warns_of_one_that_has() {
    let configuration = format!(
        "[endpoints.crm]\nurl = \"https://crm.example.com/\"\nsignatures = [\"preset:stripe\"]\n\
         secrets = [\"plain:a\", {{ secret = \"plain:b\", until = \"{IN_HUNDRED_YEARS}\" }}, \
         {{ secret = \"plain:c\", until = \"{JANUARY}\" }}]"
    );

    let checked = run(&mut Configuration::new(&configuration).hookbridge(&["check"])).await;

    checked.assert_code(0);
    for expected in [
        "signed as preset:stripe",
        "secret plain:*** holds until 2126-01-01T00:00:00Z",
        "secret plain:*** has ended, at 2020-01-01T00:00:00Z",
        "warning: endpoints.crm.secrets: `plain:***` has ended (2020-01-01T00:00:00Z)",
    ] {
        assert!(checked.stdout.contains(expected), "{expected:?} is not in: {checked}");
    }
}

#[test]
fn what_cannot_sign_is_a_mistake_with_its_reason() {
    let ended = format!("[{{ secret = \"plain:a\", until = \"{JANUARY}\" }}]");
    let left =
        format!("[\"plain:whsk_{}\", {{ secret = \"plain:a\", until = \"{JANUARY}\" }}]", BASE64.encode(&[1; 32]));
    let private = format!("[\"plain:whsk_{}\"]", BASE64.encode(&[1; 32]));
    let (one, two) = ("[\"plain:a\"]", "[\"plain:a\", \"plain:b\"]");
    for (secrets, forms, expected) in [
        (&ended[..], "[\"standard-webhooks\"]", "secrets: every one of them has ended"),
        (&left, "[\"standard-webhooks\", \"x-signature\"]", "secrets: none that signs as `x-signature` is left"),
        (&private, "[\"x-signature\"]", "secrets: none of them can sign as `x-signature`"),
        ("[\"plain:whpk_AAAA\"]", "[\"standard-webhooks\"]", "is a public key (`whpk_`), which verifies"),
        ("[\"plain:whsk_AAAA\"]", "[\"standard-webhooks\"]", "has neither 32 nor 64 bytes"),
        ("[\"plain:whsec_!\"]", "[\"standard-webhooks\"]", "has `whsec_` in front of what is not base64"),
        (one, "[\"preset:adyn\"]", "signatures: no preset `adyn`, did you mean `adyen`?"),
        (one, "[\"preset:mailgun\"]", "`preset:mailgun` cannot sign what goes out: `signature` stands inside the body"),
        (one, "[\"preset:sendgrid\"]", "`preset:sendgrid` cannot sign what goes out: `algorithm` needs the provider's"),
        (one, "[\"preset:bitpay\"]", "`preset:bitpay` cannot sign what goes out: `verify` has no signature at all"),
        (two, "[\"preset:shopify\"]", "`preset:shopify` has fewer places for signatures than there are secrets"),
        (one, "[\"standard-webhooks\", \"preset:openai\"]", "two forms write the header `webhook-signature`"),
        (
            one,
            "[{ algorithm = \"hmac-sha256\", header = \"host\" }]",
            "signatures.signature: must be a header that is free",
        ),
        (
            one,
            "[{ algorithm = \"hmac-sha256\", header = \"x-s\", signed = \"{header:x-tenant}.{body}\" }]",
            "signatures.signed: covers a header that the request has not",
        ),
    ] {
        let text =
            format!("[endpoints.crm]\nurl = \"https://a.example.com/\"\nsecrets = {secrets}\nsignatures = {forms}");
        let mistakes = mistakes(&text);
        assert!(mistakes.contains(expected), "{expected:?} is not in: {mistakes}");
    }
    for (entry, expected) in [
        ("{ secret = \"plain:s3cret\", until = \"soon\" }", "until: is not an RFC 3339 time in quotes"),
        ("{ secret = \"plain:s3cret\", until = 2126-01-01T00:00:00Z }", "until: is not an RFC 3339 time in quotes"),
        ("{ secret = \"plain:s3cret\", untl = \"2126-01-01T00:00:00Z\" }", "unknown key `untl`, did you mean `until`?"),
        ("{ secret = \"plain:s3cret\" }", "missing"),
    ] {
        let mistakes = mistakes(&format!("[endpoints.crm]\nurl = \"https://a.example.com/\"\nsecrets = [{entry}]"));
        assert!(mistakes.contains(expected) && !mistakes.contains("s3cret"), "{expected:?} is not in: {mistakes}");
    }
    let source = format!("[sources.a]\npreset = \"github\"\nsecrets = {ended}");
    assert!(mistakes(&source).contains("sources.a.secrets: every one of them has ended"));
}

#[test]
fn a_place_where_a_key_would_have_to_be_found_word_for_word_is_a_mistake() {
    for (verify, expected) in [
        (
            "{ algorithm = \"hmac-sha256\", header = \"x-s\", secret_at = \"header:x-t\" }",
            "secret_at: would never match",
        ),
        (
            "{ algorithm = \"jwt\", header = \"x-s\", jwt = { algorithms = [\"HS256\"], secret_claim = \"email\" } }",
            "has `secret_claim` without `jwks`",
        ),
    ] {
        let mistakes = mistakes(&format!("[sources.a]\nsecrets = [\"plain:a\"]\nverify = {verify}"));
        assert!(mistakes.contains(expected), "{expected:?} is not in: {mistakes}");
    }
}
