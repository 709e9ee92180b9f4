//! The same webhook is one event, whoever of us was restarted in between.

use std::time::{Duration, UNIX_EPOCH};

use futures_util::future::join_all;
use hookbridge::clock::Clock;

use crate::harness::{Answer, Hookbridge, Nats, eventually};

/// One source with delivery ids, and one whose deliveries are told apart by their bodies.
const SOURCES: &str = r#"
[sources.named]
verify = "none"
id = "header:X-Id"
[sources.nameless]
verify = "none"
"#;

/// The middle of a window of five minutes.
const NOW: u64 = 1_760_000_250;

fn clock() -> Clock {
    Clock::fixed(UNIX_EPOCH + Duration::from_secs(NOW))
}

async fn named(hookbridge: &Hookbridge) -> Answer {
    hookbridge.post("/hooks/named", &[("x-id", "same")], "any").await
}

async fn nameless(hookbridge: &Hookbridge) -> Answer {
    hookbridge.post("/hooks/nameless", &[], "same").await
}

/// Checks what the answers to one webhook of each source say of it.
async fn assert_duplicates(hookbridge: &Hookbridge, expected: bool) {
    for answer in [named(hookbridge).await, nameless(hookbridge).await] {
        assert_eq!(answer.assert_status(202).json()["duplicate"], expected, "{}", answer.text());
    }
}

#[tokio::test]
async fn over_a_restart_of_the_gateway() {
    let (nats, clock) = (Nats::start().await, clock());
    let hookbridge = Hookbridge::start_at(&nats, &clock, SOURCES).await;
    assert_duplicates(&hookbridge, false).await;
    hookbridge.stop().await.unwrap();

    let hookbridge = Hookbridge::start_at(&nats, &clock, SOURCES).await;
    assert_duplicates(&hookbridge, true).await;
    assert_eq!(nats.count("EVENTS").await, 2);
}

#[tokio::test]
async fn over_a_kill_of_nats_under_a_running_gateway() {
    let (mut nats, clock) = (Nats::start().await, clock());
    let hookbridge = Hookbridge::start_at(&nats, &clock, SOURCES).await;
    assert_duplicates(&hookbridge, false).await;

    for _ in 0..2 {
        nats.kill();
        nats.run_again().await;
        let back = async || (named(&hookbridge).await.status == 202).then_some(());
        eventually("the gateway to recover", back).await;
        assert_duplicates(&hookbridge, true).await;
    }
    assert_eq!(nats.count("EVENTS").await, 2);
}

#[tokio::test]
async fn when_the_confirmation_got_lost_and_everything_was_restarted() {
    let (mut nats, clock) = (Nats::start().await, clock());
    let text = format!("{SOURCES}[gateway]\nlisten = \"127.0.0.1:0\"\npublish_timeout = \"300ms\"");
    let hookbridge = Hookbridge::start_at(&nats, &clock, &text).await;

    nats.pause();
    named(&hookbridge).await.assert_status(503);
    nameless(&hookbridge).await.assert_status(503);
    nats.go_on();
    eventually("both to be stored late", async || (nats.count("EVENTS").await == 2).then_some(())).await;
    hookbridge.stop().await.unwrap();
    nats.kill();
    nats.run_again().await;

    let hookbridge = Hookbridge::start_at(&nats, &clock, &text).await;
    assert_duplicates(&hookbridge, true).await;
    assert_eq!(nats.count("EVENTS").await, 2);
}

#[tokio::test]
async fn across_two_gateways_at_once() {
    let (nats, clock) = (Nats::start().await, clock());
    let one = Hookbridge::start_at(&nats, &clock, SOURCES).await;
    let other = Hookbridge::start_at(&nats, &clock, SOURCES).await;

    let twenty = |hookbridge| {
        join_all((0..10).map(move |_| async move { (named(hookbridge).await, nameless(hookbridge).await) }))
    };
    let (left, right) = tokio::join!(twenty(&one), twenty(&other));

    let first = |answer: &Answer| answer.assert_status(202).json()["duplicate"] == false;
    let answers: Vec<_> = left.into_iter().chain(right).collect();
    assert_eq!(answers.iter().filter(|(named, _)| first(named)).count(), 1);
    assert_eq!(answers.iter().filter(|(_, nameless)| first(nameless)).count(), 1);
    assert_eq!(nats.count("EVENTS").await, 2);
}

#[tokio::test]
async fn and_one_id_of_two_sources_is_two_events() {
    let nats = Nats::start().await;
    let text = format!("{SOURCES}[sources.other]\nverify = \"none\"\nid = \"header:X-Id\"");
    let hookbridge = Hookbridge::start(&nats, &text).await;
    for path in ["/hooks/named", "/hooks/other"] {
        let answer = hookbridge.post(path, &[("x-id", "same")], "any").await;
        assert_eq!(answer.json()["duplicate"], false, "{path}");
    }
    assert_eq!(nats.count("EVENTS").await, 2);
}
