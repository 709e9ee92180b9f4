//! What `tests/it` promises of a cluster, at full length. `make check-slow` runs it and prints what was counted.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../it/cluster/fleet.rs"]
mod fleet;
#[path = "../it/harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "tests/it uses the rest")]
mod harness;
#[path = "../it/cluster/scenarios.rs"]
mod scenarios;

use std::sync::Once;
use std::time::Duration;

use self::fleet::{Counted, Fleet, Rates};
use self::scenarios::{Silence, Slow};

/// Some of everything, as much as a small machine carries with three servers and four processes.
const LOAD: Rates = Rates { webhooks: 60, deliveries: 40, tasks: 5 };
/// How long webhooks may be refused when a server falls silent: 15 s until it is left, and an election.
const LEFT_WITHIN: Duration = Duration::from_secs(25);

/// Prints a row of the table.
#[expect(clippy::print_stderr, reason = "for whoever runs it")]
fn tell(what: &str, counted: &Counted) {
    static HEAD: Once = Once::new();
    HEAD.call_once(|| {
        eprintln!("| what | sent: webhooks, deliveries, tasks | lost | doubled | ends lost | receipts missing | dead | redelivered | 503 | seconds |");
        eprintln!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    });
    let sent = &counted.sent;
    eprintln!(
        "| {what} | {}, {}, {} | {} | {} | {} | {} | {} | {} | {} | {:.0} |",
        sent.webhooks,
        sent.deliveries,
        sent.tasks,
        counted.webhooks_lost + counted.deliveries_lost,
        counted.webhooks_doubled + counted.requests_doubled,
        counted.ends_lost,
        counted.receipts_missing,
        counted.dead_letters,
        counted.redelivered,
        sent.refused,
        sent.took.as_secs_f64(),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn burst() {
    tell("burst of 3,000", &scenarios::burst(3000, 2).await);
    tell("burst of 10,000", &scenarios::burst(10_000, 2).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_server() {
    let fleet = Fleet::start(2, 2).await;
    for round in 1..=3 {
        for silence in [Silence::CutOff, Silence::Stopped] {
            let counted = scenarios::silent_server(&fleet, silence, LEFT_WITHIN).await;
            tell(&format!("silent server, {silence:?}, {round}"), &counted);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_quorum() {
    let fleet = Fleet::start(2, 2).await;
    tell("no quorum for 20 s", &scenarios::no_quorum(&fleet, LOAD, Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_follower() {
    let ways = [
        Slow::Stutters(Duration::from_millis(40), Duration::from_millis(60)),
        Slow::Stutters(Duration::from_millis(20), Duration::from_millis(100)),
        Slow::Lags(Duration::from_millis(300)),
    ];
    let all = scenarios::slow_follower(1000, 30, &ways).await;
    ways.iter().zip(&all).for_each(|(slow, counted)| tell(&format!("slow follower, {slow:?}"), counted));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn election_of_receipts() {
    tell("election of RECEIPTS", &scenarios::election_of_receipts(40, 800).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_kills_and_rolling_restarts() {
    let mut fleet = Fleet::start(2, 2).await;
    tell("ten leader kills", &scenarios::leader_kills(&mut fleet, LOAD, 10).await);
    for round in 1..=3 {
        tell(&format!("rolling restart, {round}"), &scenarios::rolling_restart(&mut fleet, LOAD).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_without_a_leader() {
    scenarios::starts_without_a_leader(10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn growing() {
    tell("replicas from 1 to 3 and back", &scenarios::growing(LOAD).await);
}

/// `make drill-leaderless-stream` runs this alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaderless_stream() {
    match scenarios::leaderless_outbox(LOAD, true).await {
        Some(counted) => tell("OUTBOX without a leader, cured", &counted),
        None => refused(),
    }
}

#[expect(clippy::print_stderr, reason = "for whoever runs it")]
fn refused() {
    eprintln!("this version of nats-server refuses the publish: no stream was lost");
}
