//! Three nats-servers as one cluster: what is promised of one server is promised of three, whichever of them dies,
//! falls silent or lags behind.
//!
//! `make check-slow` runs the same at full length.

use crate::harness::{Cluster, eventually};

mod fleet;
mod scenarios;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_is_delivered_once_each_and_nothing_is_redelivered() {
    let counted = scenarios::burst(3000, 1).await;
    assert_eq!(counted.redelivered, 0, "{counted}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_harness_moves_leaders_and_kills_pauses_and_cuts_off_servers() {
    let mut fleet = fleet::Fleet::start(1, 1).await;
    fleet.cluster.lead("OUTBOX", 1).await;
    fleet.cluster.lead_consumer("OUTBOX", "courier", 2).await;
    assert_eq!(fleet.cluster.consumer_leader("OUTBOX", "courier").await.as_deref(), Some("n3"));
    let on = fleet.cluster.server_of("hookbridge-gateway").await;

    fleet.cluster.nodes[on].pause();
    fleet.cluster.nodes[on].go_on();
    fleet.cluster.cut_off(on, true);
    fleet.cluster.reconnect(on);
    assert_eq!(fleet.webhook(0, "1").await, 202);

    fleet.cluster.nodes[1].kill();
    let elected = async || fleet.cluster.leader("OUTBOX").await.filter(|leader| leader != "n2");
    let leader = eventually("another leader", elected).await;
    assert_ne!(Cluster::index(&leader), 1);
    fleet.cluster.nodes[1].run();
    fleet.cluster.settled().await;
    fleet.cluster.terminate(0, "USR2").await;
    fleet.cluster.nodes[0].run();
    fleet.cluster.settled().await;
}
