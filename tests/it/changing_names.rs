//! Names that point elsewhere from one question to the next, asked of a name server of the test's own.
//!
//! A friendly receiver listens on 127.0.0.2, which may be reached; a canary at the same port on 127.0.0.1, which may
//! not.

use tokio::net::TcpListener;

use crate::harness::{Dns, Hookbridge, Nats, Receiver, eventually};

const NAME: &str = "moving.example.test";
const FRIEND: &str = "127.0.0.2";
const CANARY: &str = "127.0.0.1";

/// A friend, and a canary at the same port.
async fn both() -> (Receiver, Receiver) {
    for _ in 0..100 {
        let port = TcpListener::bind((FRIEND, 0)).await.unwrap().local_addr().unwrap().port();
        if TcpListener::bind((CANARY, port)).await.is_ok() {
            return (Receiver::at(&format!("{FRIEND}:{port}")).await, Receiver::at(&format!("{CANARY}:{port}")).await);
        }
    }
    panic!("no port is free on both addresses")
}

async fn start(nats: &Nats, dns: &Dns, egress: &str) -> Hookbridge {
    let text = format!(
        "[egress]\nallow_networks = [\"{FRIEND}/32\"]\nretry = []\nnameservers = [\"{}\"]\n{egress}\n\
         [callbacks]\nallow = [\"*\"]\nsecrets = [\"plain:s\"]",
        dns.address()
    );
    Hookbridge::start(nats, &text).await
}

async fn send(nats: &Nats, id: &str, port: u16) {
    let url = format!("http://{NAME}:{port}/");
    nats.publish("outbox.a", &[("Hookbridge-Callback-Url", &url), ("Nats-Msg-Id", id)], "x").await;
}

/// What became of a message: `delivered` or `dead` and why.
async fn outcome(nats: &Nats, id: &str) -> String {
    let receipt = nats.message("RECEIPTS", &format!("receipts.a.*.{id}")).await.json();
    let outcome = receipt["outcome"].as_str().unwrap();
    if outcome == "dead" { receipt["reason"].as_str().unwrap().to_owned() } else { outcome.to_owned() }
}

#[tokio::test]
async fn what_a_name_points_to_after_it_was_checked_is_never_connected_to() {
    let (nats, dns, (mut friend, canary)) = (Nats::start().await, Dns::start().await, both().await);
    dns.say(NAME, &[FRIEND, CANARY]);
    let _hookbridge = start(&nats, &dns, "max_connection_age = \"0s\"").await;

    send(&nats, "first", friend.port()).await;
    friend.next().await;
    assert_eq!(dns.asked(NAME), 1, "one connection stands on one look-up");
    send(&nats, "second", friend.port()).await;

    assert_eq!(outcome(&nats, "first").await, "delivered");
    assert_eq!(outcome(&nats, "second").await, "forbidden");
    assert_eq!((dns.asked(NAME), friend.connections(), canary.connections()), (2, 1, 0));
}

#[tokio::test]
async fn a_name_that_flutters_is_followed_to_where_it_may_and_refused_elsewhere() {
    let (nats, dns, (mut friend, canary)) = (Nats::start().await, Dns::start().await, both().await);
    let both_at_once = format!("{FRIEND} {CANARY}");
    let answers: Vec<&str> = (0..200).map(|index| [FRIEND, CANARY, FRIEND, &both_at_once][index % 4]).collect();
    dns.say(NAME, &answers);
    let _hookbridge = start(&nats, &dns, "max_connection_age = \"0s\"").await;

    for index in 0..200 {
        send(&nats, &format!("m-{index}"), friend.port()).await;
    }

    let receipts = nats.messages("RECEIPTS", "receipts.>", 200).await;
    let of = |outcome: &str| receipts.iter().filter(|receipt| receipt.subject.contains(outcome)).count();
    let forbidden = receipts.iter().filter(|receipt| receipt.json()["reason"] == "forbidden").count();
    assert_eq!((of(".dead."), of(".delivered.")), (forbidden, 200 - forbidden));
    assert!((90..=110).contains(&forbidden), "{forbidden}");
    assert_eq!((friend.unread(), friend.connections()), (200 - forbidden, 200 - forbidden));
    assert_eq!(canary.connections(), 0);
}

#[tokio::test]
async fn a_connection_is_used_again_while_it_is_young() {
    let (nats, dns, (mut friend, _canary)) = (Nats::start().await, Dns::start().await, both().await);
    dns.say(NAME, &[FRIEND]);
    let _hookbridge = start(&nats, &dns, "").await;

    for index in 0..20 {
        send(&nats, &format!("m-{index}"), friend.port()).await;
        friend.next().await;
        assert_eq!(outcome(&nats, &format!("m-{index}")).await, "delivered");
    }

    assert_eq!((friend.connections(), dns.asked(NAME)), (1, 1));
}

#[tokio::test]
async fn under_constant_traffic_a_changed_address_is_noticed_within_the_age_of_a_connection() {
    let (nats, dns, (friend, canary)) = (Nats::start().await, Dns::start().await, both().await);
    dns.say(NAME, &[FRIEND]);
    let _hookbridge = start(&nats, &dns, "max_connection_age = \"1s\"").await;
    send(&nats, "before", friend.port()).await;
    assert_eq!(outcome(&nats, "before").await, "delivered");
    dns.say(NAME, &[CANARY]);

    // Traffic without a pause, so that no connection is ever idle for long.
    let number = std::sync::atomic::AtomicUsize::new(0);
    let begun = std::time::Instant::now();
    eventually("the changed address to be noticed", async || {
        let id = format!("m-{}", number.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        send(&nats, &id, friend.port()).await;
        (outcome(&nats, &id).await == "forbidden").then_some(())
    })
    .await;

    assert!(number.into_inner() > 1, "the connection was not used again at all");
    assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
    assert_eq!((friend.connections(), canary.connections()), (1, 0));
}

#[tokio::test]
async fn a_name_that_no_server_knows_is_tried_again_and_one_that_never_answers_is_given_up() {
    let (nats, dns) = (Nats::start().await, Dns::start().await);
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let _hookbridge = start(&nats, &dns, "timeout = \"1s\"").await;
    let deaf = Nats::start().await;
    let text = format!(
        "[egress]\nretry = []\ntimeout = \"1s\"\nnameservers = [\"{}\"]\n\
         [callbacks]\nallow = [\"*\"]\nsecrets = [\"plain:s\"]",
        silent.local_addr().unwrap()
    );
    let _other = Hookbridge::start(&deaf, &text).await;

    send(&nats, "unknown", 8080).await;
    send(&deaf, "unanswered", 8080).await;

    assert_eq!(outcome(&nats, "unknown").await, "exhausted");
    assert_eq!(outcome(&deaf, "unanswered").await, "exhausted");
}
