//! Who may send how much: strangers by their address, sources by their own limits.
//!
//! The tests come from 127.0.0.1, which is exempt, and speak through a trusted proxy where they want to be
//! somebody. The rates are so slow that a bucket which is empty stays so.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::harness::{Answer, Hookbridge, Nats, eventually, request, send_raw, sign};

/// A bucket of three for every stranger.
const PROXIED: &str = r#"
[gateway]
trusted_proxies = ["127.0.0.0/8"]
peer_rate = "1/h burst 3"
"#;

const STRANGER: &str = "198.51.100.1";
const PROVIDER: &str = "198.51.100.2";

async fn start(nats: &Nats, gateway: &str, source: &str) -> Hookbridge {
    Hookbridge::start(nats, &format!("{gateway}{}{source}", sign::SOURCES)).await
}

/// A genuine webhook, through the proxy.
async fn genuine(hookbridge: &Hookbridge, sender: &str, id: &str) -> Answer {
    let signature = sign::hex("s3cret", b"{}");
    let mut headers = sign::github(&signature, "push", id);
    headers.push(("x-forwarded-for", sender));
    hookbridge.post("/hooks/github", &headers, "{}").await
}

/// A webhook with a wrong signature, through the proxy.
async fn forged(hookbridge: &Hookbridge, sender: &str) -> Answer {
    let signature = sign::hex("guess", b"{}");
    let mut headers = sign::github(&signature, "push", "1");
    headers.push(("x-forwarded-for", sender));
    hookbridge.post("/hooks/github", &headers, "{}").await
}

async fn counted(hookbridge: &Hookbridge, outcome: &str) -> f64 {
    let name = format!("hookbridge_ingress_requests_total{{source=\"github\",outcome=\"{outcome}\"}}");
    hookbridge.metric(&name).await
}

/// Checks that this is a 429 that says when to come again, about an hour from now.
#[track_caller]
fn assert_in_an_hour(answer: &Answer) {
    answer.assert_status(429);
    let seconds: u64 = answer.header("retry-after").parse().unwrap();
    assert!((3000..=3600).contains(&seconds), "{seconds}");
}

#[tokio::test]
async fn a_stranger_uses_up_his_own_bucket_and_nobody_elses() {
    let nats = Nats::start().await;
    let hookbridge = start(&nats, PROXIED, "").await;
    for _ in 0..3 {
        forged(&hookbridge, STRANGER).await.assert_status(401);
    }

    let refused = forged(&hookbridge, STRANGER).await;
    assert_in_an_hour(&refused);
    assert_eq!(refused.json()["detail"], "too many requests from your address that prove nothing");
    assert_in_an_hour(&genuine(&hookbridge, STRANGER, "1").await);
    genuine(&hookbridge, PROVIDER, "2").await.assert_status(202);
    forged(&hookbridge, PROVIDER).await.assert_status(401);

    assert_eq!(nats.count("EVENTS").await, 1);
    assert_eq!((counted(&hookbridge, "rejected").await, counted(&hookbridge, "peer-rate").await), (4.0, 2.0));
}

#[tokio::test]
async fn genuine_requests_use_up_nothing_of_their_peers_bucket() {
    let nats = Nats::start().await;
    let hookbridge = start(&nats, PROXIED, "").await;
    for id in 0..20 {
        genuine(&hookbridge, PROVIDER, &id.to_string()).await.assert_status(202);
    }
    for _ in 0..3 {
        forged(&hookbridge, PROVIDER).await.assert_status(401);
    }
    assert_in_an_hour(&forged(&hookbridge, PROVIDER).await);
}

#[tokio::test]
async fn everything_that_proves_nothing_is_charged() {
    let nats = Nats::start().await;
    let gateway = r#"
[gateway]
trusted_proxies = ["127.0.0.0/8"]
peer_rate = "1/h"
max_body = "1KiB"
body_timeout = "100ms"
"#;
    let source = "[sources.listed]\nverify = \"none\"\nnetworks = [\"203.0.113.0/24\"]\n[sources.token]\nverify = \"none\"\npath_token = \"plain:t0ken\"";
    let hookbridge = start(&nats, gateway, source).await;
    let large = "x".repeat(1025);
    for (index, (method, path, header, body, expected)) in [
        ("POST", "/hooks/nobody", ("x-a", "b"), "", 404),
        ("POST", "/elsewhere", ("x-a", "b"), "", 404),
        ("POST", "/hooks/token/guess", ("x-a", "b"), "", 404),
        ("GET", "/hooks/github", ("x-a", "b"), "", 405),
        ("POST", "/hooks/listed", ("x-a", "b"), "", 403),
        ("POST", "/hooks/github", ("x-a", "b"), &large[..], 413),
        ("POST", "/hooks/github", ("content-encoding", "gzip"), "", 415),
        ("POST", "/hooks/github", ("x-a", "b"), "", 401),
    ]
    .into_iter()
    .enumerate()
    {
        let sender = format!("198.51.100.{index}");
        let headers = [header, ("x-forwarded-for", &sender[..])];
        request(method, &hookbridge.url(path), &headers, body.to_owned()).await.assert_status(expected);
        assert_in_an_hour(&genuine(&hookbridge, &sender, "1").await);
    }

    let slow =
        "POST /hooks/github HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 198.51.100.100\r\ncontent-length: 9\r\n\r\nx";
    assert!(send_raw(&hookbridge.url("/"), slow.as_bytes()).await.starts_with("HTTP/1.1 408 "));
    assert_in_an_hour(&genuine(&hookbridge, "198.51.100.100", "1").await);
    assert_eq!(nats.count("EVENTS").await, 0);
}

#[tokio::test]
async fn a_sender_that_goes_away_in_the_middle_is_charged() {
    let nats = Nats::start().await;
    let hookbridge = start(&nats, &PROXIED.replace("burst 3", "burst 1"), "").await;
    let mut stream = TcpStream::connect(hookbridge.url("").replace("http://", "")).await.unwrap();
    let half =
        format!("POST /hooks/github HTTP/1.1\r\nhost: x\r\nx-forwarded-for: {STRANGER}\r\ncontent-length: 9\r\n\r\nx");
    stream.write_all(half.as_bytes()).await.unwrap();
    let arrived = async || (hookbridge.metric("hookbridge_ingress_body_bytes").await > 0.0).then_some(());
    eventually("half of a body to arrive", arrived).await;
    drop(stream);

    let noticed = async || (counted(&hookbridge, "broken-off").await == 1.0).then_some(());
    eventually("the end of the body to be noticed", noticed).await;
    assert_in_an_hour(&genuine(&hookbridge, STRANGER, "1").await);
}

#[tokio::test]
async fn a_refused_stranger_is_not_read() {
    let nats = Nats::start().await;
    let hookbridge = start(&nats, &PROXIED.replace("burst 3", "burst 1"), "").await;
    forged(&hookbridge, STRANGER).await.assert_status(401);

    let head =
        format!("POST /hooks/github HTTP/1.1\r\nhost: x\r\nx-forwarded-for: {STRANGER}\r\ncontent-length: 9\r\n\r\n");
    let answer = send_raw(&hookbridge.url("/"), head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn addresses_inside_are_exempt_and_so_is_everybody_when_the_rate_is_none() {
    let nats = Nats::start().await;
    let unlisted = start(&nats, "[gateway]\npeer_rate = \"1/h\"", "").await;
    let off = start(&nats, "[gateway]\ntrusted_proxies = [\"127.0.0.0/8\"]\npeer_rate = \"none\"", "").await;
    for hookbridge in [unlisted, off] {
        for _ in 0..10 {
            forged(&hookbridge, STRANGER).await.assert_status(401);
        }
        genuine(&hookbridge, STRANGER, "1").await.assert_status(202);
    }
}

#[tokio::test]
async fn a_source_takes_no_more_than_its_rate_and_nothing_is_stored_of_the_rest() {
    let nats = Nats::start().await;
    let hookbridge = start(&nats, PROXIED, "rate = \"1/h burst 2\"").await;
    for id in ["1", "2"] {
        genuine(&hookbridge, PROVIDER, id).await.assert_status(202);
    }

    let refused = genuine(&hookbridge, PROVIDER, "3").await;
    assert_in_an_hour(&refused);
    assert_eq!(refused.json()["detail"], "too many requests to this source");
    assert_in_an_hour(&genuine(&hookbridge, STRANGER, "4").await);
    forged(&hookbridge, PROVIDER).await.assert_status(401);

    assert_eq!(nats.count("EVENTS").await, 2);
    assert_eq!((counted(&hookbridge, "stored").await, counted(&hookbridge, "source-rate").await), (2.0, 2.0));
}

#[tokio::test]
async fn a_stranger_cannot_use_up_a_sources_rate() {
    let nats = Nats::start().await;
    let hookbridge = start(&nats, "[gateway]\npeer_rate = \"none\"", "rate = \"1/h\"").await;
    for _ in 0..10 {
        forged(&hookbridge, STRANGER).await.assert_status(401);
    }
    genuine(&hookbridge, PROVIDER, "1").await.assert_status(202);
    assert_in_an_hour(&genuine(&hookbridge, PROVIDER, "2").await);
}

#[tokio::test]
async fn a_source_has_no_more_in_hand_than_its_places_and_they_come_back() {
    let nats = Nats::start().await;
    let gateway = "[gateway]\npublish_timeout = \"500ms\"";
    let hookbridge = start(&nats, gateway, "max_concurrent = 1\n[sources.open]\nverify = \"none\"").await;

    nats.pause();
    let (one, other) = tokio::join!(genuine(&hookbridge, PROVIDER, "1"), genuine(&hookbridge, PROVIDER, "2"));
    nats.go_on();

    let (busy, held) = if one.status == 429 { (one, other) } else { (other, one) };
    busy.assert_status(429);
    assert_eq!((busy.header("retry-after"), busy.header("connection")), ("1", ""));
    assert_eq!(busy.json()["detail"], "too many requests to this source at once");
    held.assert_status(503);
    let stored = async || (genuine(&hookbridge, PROVIDER, "3").await.status == 202).then_some(());
    eventually("the place to be free again", stored).await;
    assert_eq!(counted(&hookbridge, "source-busy").await, 1.0);
}

#[tokio::test]
async fn only_its_networks_may_send_to_a_source() {
    let nats = Nats::start().await;
    let hookbridge = start(&nats, PROXIED, "networks = [\"198.51.100.2/32\", \"2001:db8::/32\"]").await;
    genuine(&hookbridge, PROVIDER, "1").await.assert_status(202);
    genuine(&hookbridge, "2001:db8::7", "2").await.assert_status(202);

    // Before size and body: what is announced here never comes.
    let head = format!(
        "POST /hooks/github HTTP/1.1\r\nhost: x\r\nx-forwarded-for: {STRANGER}\r\ncontent-length: 9000000\r\n\r\n"
    );
    let answer = send_raw(&hookbridge.url("/"), head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    let refused = genuine(&hookbridge, STRANGER, "3").await;
    refused.assert_status(403);
    assert_eq!(refused.json()["detail"], "your address may not send to this source");
    let get = request("GET", &hookbridge.url("/hooks/github"), &[("x-forwarded-for", STRANGER)], "").await;
    get.assert_status(405);

    assert_eq!(nats.count("EVENTS").await, 2);
    assert_eq!(counted(&hookbridge, "forbidden-network").await, 2.0);
}

/// Every customer of a provider sends from the same addresses: one of them cannot shut out the others.
#[tokio::test]
async fn a_listed_network_is_not_shut_out_by_what_fails_from_it() {
    let nats = Nats::start().await;
    let hookbridge = start(&nats, PROXIED, "networks = [\"198.51.100.0/24\"]").await;
    for _ in 0..5 {
        forged(&hookbridge, PROVIDER).await.assert_status(401);
    }
    genuine(&hookbridge, PROVIDER, "1").await.assert_status(202);
}

#[tokio::test]
async fn what_an_untrusted_peer_says_of_itself_is_ignored() {
    let nats = Nats::start().await;
    let inside = start(&nats, "", "networks = [\"127.0.0.0/8\"]").await;
    genuine(&inside, STRANGER, "1").await.assert_status(202);
    let outside = start(&nats, "", "networks = [\"198.51.100.0/24\"]").await;
    genuine(&outside, PROVIDER, "2").await.assert_status(403);

    // And a trusted one is believed about its own neighbor only, not about what stood there before.
    let proxied = start(&nats, PROXIED, "networks = [\"198.51.100.2/32\"]").await;
    genuine(&proxied, &format!("{PROVIDER}, {STRANGER}"), "3").await.assert_status(403);
    genuine(&proxied, &format!("{STRANGER}, {PROVIDER}"), "4").await.assert_status(202);
}
