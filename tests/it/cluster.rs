//! Three nats-servers as one cluster: what is promised of one server is promised of three, whichever of them dies,
//! falls silent or lags behind.
//!
//! `make check-slow` runs the same at full length.

mod fleet;
mod scenarios;

use std::time::Duration;

use hookbridge::app::{Options, Roles};

use self::fleet::{Fleet, Kind, Rates};
use self::scenarios::{MIXED, Silence, Slow};
use crate::harness::{Cluster, Hookbridge, eventually};

/// How long webhooks may be refused when a server falls silent: 15 s until it is left, and an election.
const LEFT_WITHIN: Duration = Duration::from_secs(25);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_is_delivered_once_each_and_nothing_is_redelivered() {
    scenarios::burst(3000, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_is_left_and_without_a_quorum_nothing_is_ready() {
    let fleet = Fleet::start(1, 1).await;
    scenarios::silent_server(&fleet, Silence::CutOff, LEFT_WITHIN).await;
    scenarios::silent_server(&fleet, Silence::Stopped, LEFT_WITHIN).await;
    scenarios::no_quorum(&fleet, MIXED, Duration::from_secs(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_every_task_is_told_through_a_slow_follower() {
    let stutters = Slow::Stutters(Duration::from_millis(40), Duration::from_millis(60));
    scenarios::slow_follower(60, 20, &[Slow::Lags(Duration::from_millis(300)), stutters]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_election_loses_no_receipt() {
    scenarios::election_of_receipts(30, 240).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_leaders_and_a_rolling_restart_lose_and_double_nothing() {
    let mut fleet = Fleet::start(2, 2).await;
    scenarios::leader_kills(&mut fleet, MIXED, 1).await;
    scenarios::rolling_restart(&mut fleet, MIXED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_dies_during_the_start_ends_no_process() {
    scenarios::starts_without_a_leader(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_replica_grows_to_three_under_traffic_and_shrinks_again() {
    scenarios::growing(MIXED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_lost_its_leader_is_named() {
    scenarios::leaderless_outbox(Rates { deliveries: 20, ..Rates::default() }, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_can_lose_a_stream_is_named_where_streams_are_replicated() {
    let fleet = Fleet::start(0, 1).await;
    let version = fleet.cluster.version().await;
    let affected = scenarios::can_lose_streams(&fleet.cluster).await;
    let note = format!("nats-server {version} (n");
    let checked = fleet.check(3).await;
    checked.assert_code(0);
    assert_eq!(checked.stdout.contains(&note), affected, "{checked}");
    if affected {
        let courier = &fleet.couriers[0];
        let line = courier.complains("permanently stops a replicated stream").await;
        assert!(line.contains(&note) && line.contains("WARN"), "{line}");
        eventually("the note", async || {
            let (status, page) = Fleet::readyz(courier).await;
            (status == 200 && page.contains(&note)).then_some(())
        })
        .await;
    } else {
        assert_eq!(Fleet::readyz(&fleet.couriers[0]).await.1, "ready\n");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_harness_moves_leaders_and_kills_pauses_and_cuts_off_servers() {
    let mut fleet = Fleet::start(1, 1).await;
    fleet.cluster.lead("OUTBOX", 1).await;
    fleet.cluster.lead_consumer("OUTBOX", "courier", 2).await;
    assert_eq!(fleet.cluster.consumer_leader("OUTBOX", "courier").await.as_deref(), Some("n3"));
    let traffic = fleet.traffic(MIXED).await;
    traffic.reaches(Kind::Deliveries, 10).await;
    let on = fleet.cluster.server_of("hookbridge-gateway").await;
    fleet.cluster.nodes[on].pause();
    fleet.cluster.nodes[on].go_on();
    fleet.cluster.slow_down(on, Duration::from_millis(50));
    fleet.cluster.cut_off(on, true);
    fleet.cluster.reconnect(on);

    fleet.cluster.nodes[1].kill();
    let elected = async || fleet.cluster.leader("OUTBOX").await.filter(|leader| leader != "n2");
    let leader = eventually("another leader", elected).await;
    assert_ne!(Cluster::index(&leader), 1);
    fleet.cluster.nodes[1].run();
    fleet.cluster.settled().await;
    let text = Fleet::text(&fleet.witness) + &fleet.cluster.section(0, 3);
    let within_the_test = Hookbridge::start_from(&text, Roles::Both, Options::default()).await;
    within_the_test.ready().await;
    within_the_test.stop().await.unwrap();
    let counted = fleet.count(traffic.stop().await).await;
    assert_eq!(counted.webhooks_lost + counted.webhooks_doubled, 0, "{counted}");
}
