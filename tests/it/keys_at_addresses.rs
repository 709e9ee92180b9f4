//! Public keys that stand at an address: fetched when they are needed, seldom, and from nowhere else.

use std::time::{Duration, Instant, UNIX_EPOCH};

use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use futures_util::future::join_all;
use hookbridge::clock::Clock;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::harness::{Answer, Hookbridge, Nats, Receiver, Reply, eventually, mistakes, sign};

/// 2030-01-01, while the certificate of the tests is valid.
const NOW: u64 = 1_893_456_000;
/// When it is not valid any more: it ends with 2126.
const TOO_LATE: u64 = 4_960_000_000;

/// A key of the tests' own, made once by `openssl genpkey -algorithm RSA`, and a certificate for it.
const RSA_KEY: &str = include_str!("data/test_rsa.pem");
const CERTIFICATE: &str = include_str!("data/test_rsa.crt");

/// A private key with a name.
struct Signer {
    kid: &'static str,
    key: Key,
}

enum Key {
    P256(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl Signer {
    fn p256(kid: &'static str) -> Self {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self { kid, key: Key::P256(EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap()) }
    }

    fn rsa(kid: &'static str) -> Self {
        let base64: String = RSA_KEY.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = BASE64.decode(base64.as_bytes()).unwrap();
        Self { kid, key: Key::Rsa(RsaKeyPair::from_pkcs8(&der).unwrap()) }
    }

    fn jwk(&self) -> Value {
        let number = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
        match &self.key {
            Key::P256(key) => {
                let point = key.public_key().as_ref();
                let (x, y) = (number(&point[1..33]), number(&point[33..]));
                json!({ "kid": self.kid, "kty": "EC", "crv": "P-256", "x": x, "y": y })
            }
            Key::Rsa(key) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(key.public());
                json!({ "kid": self.kid, "kty": "RSA", "n": number(&public.n), "e": number(&public.e) })
            }
        }
    }

    fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.key {
            Key::P256(key) => key.sign(&random, bytes).unwrap().as_ref().to_vec(),
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, bytes, &mut signature).unwrap();
                signature
            }
        }
    }

    fn token(&self, header: Value, claims: &Value) -> String {
        let signed = format!("{}.{}", part(&header), part(claims));
        let signature = BASE64URL_NOPAD.encode(&self.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    fn header(&self) -> Value {
        let algorithm = if matches!(self.key, Key::P256(_)) { "ES256" } else { "RS256" };
        json!({ "alg": algorithm, "kid": self.kid, "typ": "JWT" })
    }
}

fn part(value: &Value) -> String {
    BASE64URL_NOPAD.encode(value.to_string().as_bytes())
}

fn set(signers: &[&Signer]) -> Reply {
    Reply::Body(json!({ "keys": signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>() }).to_string())
}

/// What a genuine token says about a body.
fn claims(body: &str) -> Value {
    json!({
        "iss": "https://issuer.example",
        "aud": ["other", "hookbridge"],
        "exp": NOW + 3600,
        "iat": NOW,
        "hash": HEXLOWER.encode(&Sha256::digest(body)),
    })
}

fn source(name: &str, algorithm: &str, keys: &str) -> String {
    format!(
        r#"
[sources.{name}]
id = "header:X-Id"
[sources.{name}.verify]
header = "Authorization"
prefix = "Bearer "
algorithm = "jwt"
jwks = "{keys}"
tolerance = "1m"
jwt = {{ algorithms = ["{algorithm}"], issuer = "https://issuer.example", audience = "hookbridge", body_claim = {{ claim = "hash" }} }}
"#
    )
}

/// A gateway, its clock, and the server where the keys are.
struct Setting {
    nats: Nats,
    hookbridge: Hookbridge,
    clock: Clock,
    keys: Receiver,
}

impl Setting {
    async fn start(algorithm: &str, first: Reply) -> Self {
        let (nats, keys, clock) = (Nats::start().await, Receiver::start().await, Clock::fixed(at(NOW)));
        keys.otherwise(first);
        let text = source("own", algorithm, &keys.url("/keys"));
        let hookbridge = Hookbridge::start_at(&nats, &clock, &text).await;
        Self { nats, hookbridge, clock, keys }
    }

    async fn send(&self, token: &str, id: &str) -> Answer {
        let bearer = format!("Bearer {token}");
        self.hookbridge.post("/hooks/own", &[("authorization", &bearer), ("x-id", id)], "{}").await
    }

    /// A token that is right in every respect, by this signer.
    async fn genuine(&self, signer: &Signer, id: &str) -> Answer {
        self.send(&signer.token(signer.header(), &claims("{}")), id).await
    }
}

fn at(seconds: u64) -> std::time::SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

#[tokio::test]
async fn a_genuine_token_is_taken_and_the_set_is_fetched_once_for_all() {
    for (algorithm, signer) in [("ES256", Signer::p256("one")), ("RS256", Signer::rsa("one"))] {
        let mut setting = Setting::start(algorithm, set(&[&signer])).await;

        let ids: Vec<String> = (0..20).map(|index| index.to_string()).collect();
        let answers = join_all(ids.iter().map(|id| setting.genuine(&signer, id))).await;

        for answer in answers {
            answer.assert_status(202);
        }
        let unnamed = signer.token(json!({ "alg": algorithm }), &claims("{}"));
        setting.send(&unnamed, "unnamed").await.assert_status(202);
        assert_eq!(setting.keys.next().await.path, "/keys");
        assert_eq!((setting.keys.unread(), setting.nats.count("EVENTS").await), (0, 21), "{algorithm}");
    }
}

#[tokio::test]
async fn everything_else_is_the_same_401() {
    let (signer, stranger) = (Signer::p256("one"), Signer::p256("one"));
    let setting = Setting::start("ES256", set(&[&signer])).await;
    let but = |changes: Value| {
        let mut claims = claims("{}");
        let object = claims.as_object_mut().unwrap();
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => drop(object.remove(name)),
                value => drop(object.insert(name.clone(), value.clone())),
            }
        }
        signer.token(signer.header(), &claims)
    };
    let headed = |header: Value| signer.token(header, &claims("{}"));
    let point = BASE64URL_NOPAD.decode(signer.jwk()["x"].as_str().unwrap().as_bytes()).unwrap();
    let shared = |key: &[u8], algorithm: &str| {
        let signed = format!("{}.{}", part(&json!({ "alg": algorithm, "kid": "one" })), part(&claims("{}")));
        format!("{signed}.{}", BASE64URL_NOPAD.encode(&sign::hmac(key, signed.as_bytes())))
    };
    let none = format!("{}.{}.", part(&json!({ "alg": "none" })), part(&claims("{}")));
    let good = signer.token(signer.header(), &claims("{}"));
    let (head, signature) = good.rsplit_once('.').unwrap();

    let mut bodies = Vec::new();
    for (name, token, reason) in [
        ("another body's hash", but(claims("{} ")), "body-hash"),
        ("no hash", but(json!({ "hash": null })), "body-hash"),
        ("another issuer", but(json!({ "iss": "https://issuer.example.evil" })), "token"),
        ("no issuer", but(json!({ "iss": null })), "token"),
        ("another audience", but(json!({ "aud": "hookbridge2" })), "token"),
        ("no audience", but(json!({ "aud": null })), "token"),
        ("an audience that is none", but(json!({ "aud": { "hookbridge": 1 } })), "token"),
        ("over", but(json!({ "exp": NOW - 61 })), "too-old"),
        ("over by far", but(json!({ "exp": 0 })), "too-old"),
        ("an end that is no time", but(json!({ "exp": "tomorrow" })), "token"),
        ("an end without end", but(json!({ "exp": 1e300 })), "token"),
        ("not yet", but(json!({ "nbf": NOW + 61 })), "too-new"),
        ("from the future", but(json!({ "iat": NOW + 61 })), "too-new"),
        ("none", none, "token"),
        ("None", headed(json!({ "alg": "None", "kid": "one" })), "token"),
        ("another algorithm", headed(json!({ "alg": "RS256", "kid": "one" })), "token"),
        ("a public key as a shared one", shared(&point, "HS256"), "token"),
        ("the same in disguise", shared(&point, "ES256"), "mismatch"),
        ("an extension", headed(json!({ "alg": "ES256", "kid": "one", "crit": ["b64"] })), "token"),
        (
            "two algorithms",
            head.replacen(
                head.split('.').next().unwrap(),
                &BASE64URL_NOPAD.encode(br#"{"alg":"none","alg":"ES256"}"#),
                1,
            ) + "."
                + signature,
            "token",
        ),
        ("another's signature", stranger.token(stranger.header(), &claims("{}")), "mismatch"),
        ("no signature", format!("{head}."), "mismatch"),
        ("two parts", head.to_owned(), "token"),
        ("four parts", format!("{good}.{signature}"), "mismatch"),
        ("padded", format!("{good}="), "token"),
        ("no token", "x".to_owned(), "token"),
        ("dots", "..".to_owned(), "token"),
        ("long", format!("{head}.{}", "A".repeat(20_000)), "mismatch"),
    ] {
        let before = setting.hookbridge.rejected("own", reason).await;
        let answer = setting.send(&token, name).await;
        assert_eq!(answer.status, 401, "{name}");
        assert_eq!(setting.hookbridge.rejected("own", reason).await, before + 1.0, "{name} is not {reason}");
        bodies.push(answer.text());
    }
    bodies.dedup();
    assert_eq!((bodies.len(), setting.nats.count("EVENTS").await), (1, 0), "{bodies:?}");
    setting.genuine(&signer, "good").await.assert_status(202);
}

#[tokio::test]
async fn an_unknown_key_is_looked_for_once_and_a_new_one_is_found_after_half_a_minute() {
    let (old, new) = (Signer::p256("old"), Signer::p256("new"));
    let mut setting = Setting::start("ES256", set(&[&old])).await;
    setting.genuine(&old, "1").await.assert_status(202);
    setting.keys.next().await;

    setting.keys.otherwise(set(&[&new]));
    for second in 0..30 {
        setting.clock.set(at(NOW + second));
        setting.genuine(&new, "2").await.assert_status(401);
    }
    assert_eq!(setting.keys.unread(), 0, "the set was asked for again within 30 s");

    setting.clock.set(at(NOW + 30));
    setting.genuine(&new, "3").await.assert_status(202);
    setting.genuine(&old, "4").await.assert_status(401);
    setting.genuine(&Signer::p256("third"), "5").await.assert_status(401);
    assert_eq!(setting.keys.unread(), 1);
    assert_eq!(setting.hookbridge.rejected("own", "unknown-key").await, 32.0);
}

#[tokio::test]
async fn without_any_keys_a_request_is_503_and_comes_again() {
    let signer = Signer::p256("one");
    let mut setting = Setting::start("ES256", Reply::Close).await;

    let early = setting.genuine(&signer, "1").await;
    early.assert_status(503);
    assert_eq!(early.header("retry-after"), "5");
    assert!(!early.text().contains("127.0.0.1"), "{}", early.text());
    setting.send("nonsense", "2").await.assert_status(401);
    setting.keys.otherwise(set(&[&signer]));
    setting.genuine(&signer, "1").await.assert_status(503);
    assert_eq!(setting.keys.unread(), 1, "the server was asked again within 30 s");

    setting.clock.set(at(NOW + 30));
    setting.genuine(&signer, "1").await.assert_status(202);
    assert_eq!(setting.hookbridge.counted("own", "not-now").await, 2.0);
}

#[tokio::test]
async fn an_answer_that_is_no_set_of_keys_is_no_keys() {
    let signer = Signer::p256("one");
    let setting = Setting::start("ES256", Reply::Status(404)).await;
    let mut now = NOW;
    for reply in [
        Reply::Status(404),
        Reply::With(302, "location: /elsewhere"),
        Reply::Body("<html>".to_owned()),
        Reply::Body("{}".to_owned()),
        Reply::Body(r#"{"keys":[]}"#.to_owned()),
        Reply::Body(r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#.to_owned()),
        Reply::Body(format!("{{\"keys\":{}", "[".repeat(200_000))),
        Reply::Endless,
        Reply::Garbage,
    ] {
        now += 30;
        setting.clock.set(at(now));
        setting.keys.otherwise(reply.clone());
        assert_eq!(setting.genuine(&signer, "1").await.status, 503, "{reply:.60?}");
    }
    assert_eq!(setting.nats.count("EVENTS").await, 0);
}

#[tokio::test]
async fn keys_of_an_hour_are_fetched_again_and_do_as_long_as_that_fails() {
    let (old, new) = (Signer::p256("one"), Signer::p256("one"));
    let mut setting = Setting::start("ES256", set(&[&old])).await;
    setting.genuine(&old, "1").await.assert_status(202);
    setting.keys.next().await;

    setting.keys.otherwise(Reply::Status(500));
    setting.clock.set(at(NOW + 3599));
    setting.genuine(&old, "2").await.assert_status(202);
    assert_eq!(setting.keys.unread(), 0);
    setting.clock.set(at(NOW + 3600));
    setting.genuine(&old, "3").await.assert_status(202);
    setting.genuine(&old, "4").await.assert_status(202);
    assert_eq!(setting.keys.unread(), 1);

    setting.keys.otherwise(Reply::Hang);
    setting.clock.set(at(NOW + 3630));
    let begun = Instant::now();
    setting.genuine(&old, "5").await.assert_status(202);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    setting.keys.next().await;

    // The same name for another key: only fetching again tells.
    setting.keys.otherwise(set(&[&new]));
    let forgotten = async || {
        setting.clock.set(setting.clock.now() + Duration::from_secs(30));
        (setting.genuine(&old, "6").await.status == 401).then_some(())
    };
    eventually("the old key to be forgotten", forgotten).await;
}

#[tokio::test]
async fn a_server_that_hangs_holds_a_request_no_longer_than_it_may_take() {
    let (nats, keys) = (Nats::start().await, Receiver::start().await);
    keys.otherwise(Reply::Hang);
    let text = format!("[gateway]\nrequest_timeout = \"500ms\"\n{}", source("own", "ES256", &keys.url("/keys")));
    let hookbridge = Hookbridge::start_at(&nats, &Clock::fixed(at(NOW)), &text).await;
    let signer = Signer::p256("one");
    let bearer = format!("Bearer {}", signer.token(signer.header(), &claims("{}")));

    let begun = Instant::now();
    hookbridge.post("/hooks/own", &[("authorization", &bearer)], "{}").await.assert_status(503);

    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_key_set_must_stand_where_nobody_can_change_it() {
    let strict = "[egress]\nallow_http = false\n";
    let text = format!("{strict}{}", source("own", "ES256", "http://keys.example/set"));
    let said = mistakes(&text);
    assert!(said.contains("sources.own.verify.jwks") && said.contains("not https"), "{said}");
    let said = mistakes(&source("own", "HS256", "https://keys.example/set"));
    assert!(said.contains("HS256 is for a shared secret"), "{said}");
}

/// A source that goes by a certificate whose address the request names.
fn certified(urls: &str) -> String {
    format!(
        r#"
[sources.own]
[sources.own.verify]
header = "X-Signature"
algorithm = "rsa-sha256"
encoding = "base64"
certificate = {{ at = "header:X-Certificate", urls = ["{urls}"] }}
"#
    )
}

async fn send_certified(hookbridge: &Hookbridge, address: &str, body: &str, sender: &str) -> Answer {
    let signature = BASE64.encode(&Signer::rsa("").sign(body.as_bytes()));
    let headers = [("x-signature", &signature[..]), ("x-certificate", address), ("x-forwarded-for", sender)];
    hookbridge.post("/hooks/own", &headers, body.to_owned()).await
}

#[tokio::test]
async fn a_certificate_is_fetched_once_and_counts_while_it_is_valid() {
    let (nats, mut server, clock) = (Nats::start().await, Receiver::start().await, Clock::fixed(at(NOW)));
    server.otherwise(Reply::Body(CERTIFICATE.to_owned()));
    let hookbridge = Hookbridge::start_at(&nats, &clock, &certified(&server.url("/certs/"))).await;
    let address = server.url("/certs/one.pem");

    for body in ["1", "2", "3"] {
        send_certified(&hookbridge, &address, body, "").await.assert_status(202);
    }
    assert_eq!(server.next().await.path, "/certs/one.pem");
    assert_eq!(server.unread(), 0);

    for time in [0, TOO_LATE] {
        clock.set(at(time));
        send_certified(&hookbridge, &address, "4", "").await.assert_status(401);
    }
    assert_eq!(nats.count("EVENTS").await, 3);
}

#[tokio::test]
async fn a_certificate_from_anywhere_else_is_401_without_a_call() {
    let (nats, clock) = (Nats::start().await, Clock::fixed(at(NOW)));
    let (server, other) = (Receiver::start().await, Receiver::start().await);
    let hookbridge = Hookbridge::start_at(&nats, &clock, &certified(&server.url("/certs/"))).await;
    let (port, foreign) = (server.port(), other.port());
    let mut bodies = Vec::new();
    for address in [
        other.url("/certs/one.pem"),
        server.url("/certs/one.pem?a=1"),
        server.url("/certs/one.pem?"),
        server.url("/certs"),
        server.url("/certs../one.pem"),
        server.url("/certs/../one.pem"),
        server.url("/certs/%2e%2e/one.pem"),
        server.url("/certs/..\\one.pem"),
        format!("https://127.0.0.1:{port}/certs/one.pem"),
        format!("ftp://127.0.0.1:{port}/certs/one.pem"),
        "http://127.0.0.1/certs/one.pem".to_owned(),
        format!("http://127.0.0.1:{port}@127.0.0.1:{foreign}/certs/one.pem"),
        format!("http://user@127.0.0.1:{port}/certs/one.pem"),
        format!("http://user:pass@127.0.0.1:{port}/certs/one.pem"),
        format!("http://127.0.0.2:{port}/certs/one.pem"),
        format!("http://localhost:{port}/certs/one.pem"),
        format!("http://[::1]:{port}/certs/one.pem"),
        format!("http://[::ffff:127.0.0.1]:{port}/certs/one.pem"),
        format!("http://127.0.0.1.evil.example:{port}/certs/one.pem"),
        format!("http://127.0.0.1:{port}.evil.example/certs/one.pem"),
        format!("//127.0.0.1:{port}/certs/one.pem"),
        "/certs/one.pem".to_owned(),
        "x".repeat(10_000),
    ] {
        let answer = send_certified(&hookbridge, &address, "x", "").await;
        assert_eq!(answer.status, 401, "{address}");
        bodies.push(answer.text());
    }
    let none = hookbridge.post("/hooks/own", &[("x-signature", "eA==")], "x").await;
    bodies.push(none.assert_status(401).text());

    bodies.dedup();
    assert_eq!((bodies.len(), nats.count("EVENTS").await), (1, 0), "{bodies:?}");
    assert_eq!((server.connections(), other.connections()), (0, 0));
}

#[tokio::test]
async fn whoever_may_choose_any_address_would_choose_the_key() {
    let said = mistakes(&certified("*"));
    assert!(said.contains("sources.own.verify.certificate"), "{said}");
}

#[tokio::test]
async fn a_stranger_pays_for_every_key_that_is_not_there() {
    let (nats, mut server) = (Nats::start().await, Receiver::start().await);
    server.otherwise(Reply::Status(404));
    let gateway = "[gateway]\ntrusted_proxies = [\"127.0.0.0/8\"]\npeer_rate = \"1/h burst 3\"\n";
    let text = format!("{gateway}{}", certified(&server.url("/certs/")));
    let hookbridge = Hookbridge::start_at(&nats, &Clock::fixed(at(NOW)), &text).await;

    let mut statuses = Vec::new();
    for index in 0..6 {
        let address = server.url(&format!("/certs/{index}.pem"));
        statuses.push(send_certified(&hookbridge, &address, "x", "198.51.100.1").await.status.as_u16());
    }

    assert_eq!(statuses, [503, 503, 503, 429, 429, 429]);
    assert_eq!(server.unread(), 3);
    server.otherwise(Reply::Body(CERTIFICATE.to_owned()));
    send_certified(&hookbridge, &server.url("/certs/good.pem"), "y", "198.51.100.2").await.assert_status(202);
}

#[tokio::test]
async fn strangers_who_name_many_certificates_do_not_drive_out_the_one_in_use() {
    let (nats, mut server) = (Nats::start().await, Receiver::start().await);
    server.otherwise(Reply::Body(CERTIFICATE.to_owned()));
    let text = format!("[gateway]\nrequest_timeout = \"2s\"\n{}", certified(&server.url("/certs/")));
    let hookbridge = Hookbridge::start_at(&nats, &Clock::fixed(at(NOW)), &text).await;
    let good = server.url("/certs/good.pem");
    send_certified(&hookbridge, &good, "before", "").await.assert_status(202);
    server.next().await;

    server.otherwise(Reply::Hang);
    let strange: Vec<String> = (0..100).map(|index| server.url(&format!("/certs/{index}.pem"))).collect();
    let mut flood = Box::pin(join_all(strange.iter().map(|address| send_certified(&hookbridge, address, "x", ""))));
    for _ in 0..4 {
        tokio::select! {
            _ = server.next() => {}
            _ = &mut flood => panic!("the flood was over before four were asked for"),
        }
    }
    let (flood, during) = tokio::join!(flood, send_certified(&hookbridge, &good, "during", ""));

    during.assert_status(202);
    assert!(flood.iter().all(|answer| answer.status == 503));
    send_certified(&hookbridge, &good, "after", "").await.assert_status(202);
}
