//! What can happen to a cluster, each as long as the caller asks for.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::Value;

use super::fleet::{Counted, Fleet, Kind, Rates, Sent, publish};
use crate::harness::cluster::NAMES;
use crate::harness::{Cluster, eventually, within};

/// Some of everything.
pub(crate) const MIXED: Rates = Rates { webhooks: 20, deliveries: 20, tasks: 4 };

/// So many outbox messages at once, without waiting for an ack before the next is sent.
pub(crate) async fn burst(messages: usize, couriers: usize) -> Counted {
    let fleet = Fleet::start(1, couriers).await;
    let agent = async_nats::jetstream::new(fleet.cluster.client().await);
    let begun = Instant::now();
    let published = futures_util::stream::iter(0..messages).for_each_concurrent(1000, |number| {
        let agent = &agent;
        async move { publish(agent, &format!("m-0-{number}"), Some("crm"), "{}".to_owned()).await }
    });
    within("the burst to be stored", published).await;
    let sent = Sent { deliveries: messages, took: begun.elapsed(), ..Sent::default() };
    let counted = fleet.count(sent).await;
    counted.assert_whole(&fleet);
    assert_eq!(counted.redelivered, 0, "{counted}");
    counted
}

/// How a server falls silent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Silence {
    /// Its process stands still.
    Stopped,
    /// The network carries nothing to it and from it, and closes nothing.
    CutOff,
}

/// The server of the first gateway falls silent under traffic; `most` is how long webhooks may be refused.
pub(crate) async fn silent_server(fleet: &Fleet, silence: Silence, most: Duration) -> Counted {
    let traffic = fleet.traffic(MIXED).await;
    traffic.reaches(Kind::Webhooks, 20).await;
    let silent = fleet.cluster.server_of("hookbridge-gateway").await;
    match silence {
        Silence::Stopped => fleet.cluster.nodes[silent].pause(),
        Silence::CutOff => fleet.cluster.cut_off(silent, true),
    }
    let begun = Instant::now();
    // A webhook of its own each time: one that was stored before the silence would be a duplicate.
    let mut number = 0;
    while fleet.webhook(0, &format!("{silence:?}-{number}")).await != 202 {
        number += 1;
        let waited = begun.elapsed();
        assert!(waited < most, "{silence:?}: no webhook was stored for {waited:?}\n{}", fleet.complaints());
    }
    fleet.cluster.server_of_but("hookbridge-gateway", silent).await;
    traffic.for_another(Kind::Deliveries, 40).await;
    match silence {
        Silence::Stopped => fleet.cluster.nodes[silent].go_on(),
        Silence::CutOff => fleet.cluster.reconnect(silent),
    }
    fleet.cluster.settled().await;
    let counted = fleet.count(traffic.stop().await).await;
    counted.assert_whole(fleet);
    counted
}

/// Two of three servers stand still: every process says that it is not ready and why, and is ready again by itself.
pub(crate) async fn no_quorum(fleet: &Fleet, rates: Rates, lasts: Duration) -> Counted {
    let traffic = fleet.traffic(rates).await;
    traffic.reaches(Kind::Webhooks, 20).await;
    let left = fleet.cluster.server_of("hookbridge-gateway").await;
    let stopped: Vec<_> = (0..NAMES.len()).filter(|index| *index != left).collect();
    let begun = Instant::now();
    stopped.iter().for_each(|index| fleet.cluster.nodes[*index].pause());
    for program in fleet.gateways.iter().chain(&fleet.couriers) {
        let reason = eventually("a process that is not ready", async || {
            let (status, page) = Fleet::readyz(program).await;
            // A process whose server stands still has to find another one first.
            (status == 503 && page.contains("quorum")).then_some(page)
        });
        reason.await;
    }
    // As long as there is no quorum nothing can be stored, so nothing may call itself ready.
    while begun.elapsed() < lasts {
        for program in fleet.gateways.iter().chain(&fleet.couriers) {
            let (status, page) = Fleet::readyz(program).await;
            assert_eq!(status, 503, "ready without a quorum: {page}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    stopped.iter().for_each(|index| fleet.cluster.nodes[*index].go_on());
    for program in fleet.gateways.iter().chain(&fleet.couriers) {
        program.ready().await;
    }
    fleet.cluster.settled().await;
    let counted = fleet.count(traffic.stop().await).await;
    counted.assert_whole(fleet);
    counted
}

/// How a follower is slow.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Slow {
    /// What is replicated to it comes this much later, and everything else at once.
    Lags(Duration),
    /// It runs this long, then stands still this long, in turn.
    Stutters(Duration, Duration),
}

/// So many tasks with a courier that knows only a slow follower, while the first server leads everything; once for
/// each way of being slow.
pub(crate) async fn slow_follower(tasks: usize, per_second: u32, ways: &[Slow]) -> Vec<Counted> {
    let mut fleet = Fleet::without_processes(Duration::from_millis(30)).await;
    let text = Fleet::text(&fleet.witness);
    for (role, server) in [("gateway", 0), ("courier", 1), ("courier", 2)] {
        let pinned = fleet.cluster.pinned(server);
        fleet.add(role, &format!("{text}{pinned}"));
    }
    fleet.ready().await;
    lead_everything(&fleet.cluster, 0).await;
    let mut all = Vec::new();
    for slow in ways {
        all.push(slowly(&fleet, tasks, per_second, *slow).await);
    }
    all
}

async fn slowly(fleet: &Fleet, tasks: usize, per_second: u32, slow: Slow) -> Counted {
    if let Slow::Lags(delay) = slow {
        fleet.cluster.lag(2, delay);
    }
    let traffic = fleet.traffic(Rates { tasks: per_second, ..Rates::default() }).await;
    let stutter = async {
        let Slow::Stutters(runs, stands) = slow else { return std::future::pending().await };
        loop {
            tokio::time::sleep(runs).await;
            fleet.cluster.nodes[2].pause();
            tokio::time::sleep(stands).await;
            fleet.cluster.nodes[2].go_on();
        }
    };
    // It is slow until the last task has been told of, if all goes well.
    let told = async {
        traffic.reaches(Kind::Tasks, tasks).await;
        fleet.count(traffic.stop().await).await
    };
    let counted = tokio::select! {
        () = stutter => unreachable!("it stutters for as long as it is let"),
        counted = told => counted,
    };
    fleet.cluster.nodes[2].go_on();
    fleet.cluster.reconnect(2);
    counted.assert_whole(fleet);
    counted
}

/// Makes a server the leader of every stream, bucket and courier's durable.
async fn lead_everything(cluster: &Cluster, index: usize) {
    for stream in streams(cluster).await {
        cluster.lead(&stream, index).await;
    }
    for stream in ["OUTBOX", "RETRY"] {
        cluster.lead_consumer(stream, "courier", index).await;
    }
}

/// The names of all streams, those of buckets too.
pub(crate) async fn streams(cluster: &Cluster) -> Vec<String> {
    let names = cluster.ask("$JS.API.STREAM.NAMES", Value::Null).await;
    names["streams"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// RECEIPTS has to elect a new leader, and everything else goes on: nothing is connected to the server that dies.
pub(crate) async fn election_of_receipts(per_second: u32, after: usize) -> Counted {
    let mut fleet = Fleet::without_processes(Duration::ZERO).await;
    let text = Fleet::text(&fleet.witness);
    for (role, server) in [("gateway", 1), ("courier", 1), ("courier", 2)] {
        let pinned = fleet.cluster.pinned(server);
        fleet.add(role, &format!("{text}{pinned}"));
    }
    fleet.ready().await;
    lead_everything(&fleet.cluster, 1).await;
    fleet.cluster.lead("RECEIPTS", 0).await;
    let traffic = fleet.traffic(Rates { deliveries: per_second, ..Rates::default() }).await;
    traffic.reaches(Kind::Deliveries, per_second as usize).await;
    fleet.cluster.nodes[0].kill();
    traffic.for_another(Kind::Deliveries, after).await;
    fleet.cluster.nodes[0].run();
    fleet.cluster.settled().await;
    let sent = traffic.stop().await;
    let counted = fleet.count(sent).await;
    counted.assert_whole(&fleet);
    counted
}

/// The leaders of streams are killed in turn, each started again after an election, under traffic.
pub(crate) async fn leader_kills(fleet: &mut Fleet, rates: Rates, kills: usize) -> Counted {
    let traffic = fleet.traffic(rates).await;
    for kill in 0..kills {
        traffic.for_another(Kind::Deliveries, 20).await;
        let stream = ["OUTBOX", "EVENTS", "RECEIPTS", "TASKS", "RETRY", "KV_hookbridge_tasks"][kill % 6];
        let leads = async || fleet.cluster.leader(stream).await;
        let leader = Cluster::index(&eventually("a leader to kill", leads).await);
        fleet.cluster.nodes[leader].kill();
        let elected = async || fleet.cluster.leader(stream).await.filter(|new| *new != NAMES[leader]);
        eventually("another leader", elected).await;
        fleet.cluster.nodes[leader].run();
        fleet.cluster.settled().await;
    }
    let counted = fleet.count(traffic.stop().await).await;
    counted.assert_whole(fleet);
    counted
}

/// Every server is stopped gracefully and started again, one after the other, under traffic.
pub(crate) async fn rolling_restart(fleet: &mut Fleet, rates: Rates) -> Counted {
    let traffic = fleet.traffic(rates).await;
    for (index, signal) in ["TERM", "USR2", "TERM"].into_iter().enumerate() {
        traffic.for_another(Kind::Deliveries, 20).await;
        fleet.cluster.terminate(index, signal).await;
        fleet.cluster.nodes[index].run();
        fleet.cluster.settled().await;
    }
    let counted = fleet.count(traffic.stop().await).await;
    counted.assert_whole(fleet);
    counted
}

/// Four processes start on empty names while the leader that makes their streams is killed, so many times: each time
/// one stream later. None of them ends.
pub(crate) async fn starts_without_a_leader(times: usize) {
    let mut fleet = Fleet::without_processes(Duration::ZERO).await;
    let text = Fleet::text(&fleet.witness);
    for round in 0..times {
        let (leader, before) = (fleet.cluster.meta_leader().await, streams_now(&fleet.cluster).await);
        for (number, role) in ["gateway", "gateway", "courier", "courier"].into_iter().enumerate() {
            let section = fleet.cluster.section(number, 3);
            fleet.add(role, &format!("{text}{section}prefix = \"r{round}\"\n"));
        }
        let wanted = before + 1 + round * 2 % 8;
        eventually("some streams", async || (streams_now(&fleet.cluster).await >= wanted).then_some(())).await;
        fleet.cluster.nodes[leader].kill();
        fleet.processes_ready().await;
        fleet.cluster.nodes[leader].run();
        fleet.cluster.settled().await;
        for program in fleet.gateways.drain(..).chain(fleet.couriers.drain(..)) {
            program.signal("TERM").await;
            program.ended().await.assert_code(0);
        }
    }
}

async fn streams_now(cluster: &Cluster) -> usize {
    let names = cluster.ask("$JS.API.STREAM.NAMES", Value::Null).await;
    names["total"].as_u64().unwrap() as usize
}

/// What one replica has of a stream.
async fn last_sequence(cluster: &Cluster, index: usize, stream: &str) -> u64 {
    let page =
        eventually("the monitoring page", async || cluster.monitor(index, "/jsz?streams=true&accounts=true").await);
    let page = page.await;
    let accounts = page["account_details"].as_array().unwrap();
    let mut details = accounts.iter().flat_map(|account| account["stream_detail"].as_array().into_iter().flatten());
    let found = details.find(|detail| detail["name"] == stream).unwrap_or_else(|| panic!("no {stream} in {page}"));
    found["state"]["last_seq"].as_u64().unwrap()
}

/// Whether the version of the servers is one that loses a replicated stream to a wrong `Nats-Expected-Last-Msg-Id`.
pub(crate) async fn can_lose_streams(cluster: &Cluster) -> bool {
    let version = cluster.version().await;
    version.starts_with("2.14.") || ["2.15.0", "2.15.1", "2.15.2", "2.15.3"].contains(&version.as_str())
}

/// A publish with a header that stops a replicated stream for good on some versions of nats-server, while one replica
/// is behind, under traffic: every process and `check --online` name the stream. Then, if it is asked for, the cure of
/// `docs/nats-stream-without-leader.md`: nothing that was acked is lost.
///
/// None without the cure, and where this version of nats-server refuses the publish.
pub(crate) async fn leaderless_outbox(rates: Rates, cure: bool) -> Option<Counted> {
    let mut fleet = Fleet::start(1, 1).await;
    let traffic = fleet.traffic(rates).await;
    traffic.reaches(Kind::Deliveries, 20).await;
    let group = fleet.cluster.raft_group("OUTBOX").await;
    fleet.cluster.lead("OUTBOX", 0).await;
    let behind = 2;
    fleet.cluster.nodes[behind].kill();
    traffic.for_another(Kind::Deliveries, 40).await;

    fleet.cluster.nats().provoke("outbox.planner", &[("Nats-Expected-Last-Msg-Id", "wrong")]).await;
    if !can_lose_streams(&fleet.cluster).await {
        traffic.for_another(Kind::Deliveries, 20).await;
        fleet.cluster.nodes[behind].run();
        fleet.cluster.settled().await;
        let counted = fleet.count(traffic.stop().await).await;
        counted.assert_whole(&fleet);
        return None;
    }
    fleet.cluster.nodes[behind].run();
    for program in fleet.gateways.iter().chain(&fleet.couriers) {
        eventually("a note", async || {
            Fleet::readyz(program).await.1.contains("stream OUTBOX has no leader").then_some(())
        })
        .await;
    }
    let checked = fleet.check(3).await;
    assert!(checked.stderr.contains("stream OUTBOX has no leader") && checked.code == Some(1), "{checked}");

    if !cure {
        return None;
    }

    // The runbook: compare, then stop, forget, start, whoever has the most first.
    let mut order = Vec::new();
    for index in 0..NAMES.len() {
        order.push((last_sequence(&fleet.cluster, index, "OUTBOX").await, index));
    }
    order.sort_by_key(|(last, index)| (u64::MAX - last, *index));
    assert_eq!(order[2].1, behind, "{order:?}");
    for (_, index) in order {
        fleet.cluster.terminate(index, "TERM").await;
        std::fs::remove_dir_all(fleet.cluster.nodes[index].store().join("$SYS/_js_").join(&group)).unwrap();
        fleet.cluster.nodes[index].run();
        eventually("the server to be back", async || fleet.cluster.monitor(index, "/jsz").await).await;
        fleet.cluster.whole().await;
    }
    eventually("a leader of OUTBOX", async || fleet.cluster.leader("OUTBOX").await).await;
    fleet.cluster.settled().await;
    let counted = fleet.count(traffic.stop().await).await;
    counted.assert_whole(&fleet);
    for program in fleet.gateways.iter().chain(&fleet.couriers) {
        eventually("no note", async || (!Fleet::readyz(program).await.1.contains("no leader")).then_some(())).await;
    }
    let kept = fleet.cluster.nats().count("OUTBOX").await;
    let acked = counted.sent.deliveries + 2 * counted.sent.tasks;
    assert_eq!(kept, acked as u64, "messages of OUTBOX, and those that were acked");
    Some(counted)
}

/// A running deployment with one replica grows to three under traffic, loses a server, and shrinks again.
pub(crate) async fn growing(rates: Rates) -> Counted {
    let mut fleet = Fleet::without_processes(Duration::ZERO).await;
    let line = format!("[endpoints.line]\nurl = \"{}\"\nsignatures = []\nordered = true\n", fleet.witness.url("/line"));
    let text = format!("{}{line}", Fleet::text(&fleet.witness))
        .replace("[agents.planner]", "[agents.planner]\nevents = [\"events.>\"]");
    let (one, three) = (fleet.cluster.section(0, 1), fleet.cluster.section(0, 3));
    fleet.add("gateway", &format!("{text}{one}"));
    fleet.add("courier", &format!("{text}{one}"));
    fleet.ready().await;
    let durables = [
        ("OUTBOX", "courier"),
        ("OUTBOX", "ordered_line"),
        ("RETRY", "courier"),
        ("EVENTS", "planner"),
        ("TASKS", "planner"),
    ];
    fleet.cluster.consumer("OUTBOX", "ordered_line").await;
    assert_replicas(&fleet.cluster, &durables, 1).await;

    // A number of its own, which nats-server does not change with the stream's.
    fleet.cluster.set_replicas("EVENTS", "planner", 1).await;
    let checked = fleet.check(1).await;
    checked.assert_code(0);
    assert!(checked.stdout.contains("part of a cluster; with nats.replicas = 1"), "{checked}");
    let checked = fleet.check_text(&format!("{text}{three}")).await;
    for what in ["stream OUTBOX", "bucket hookbridge_endpoints", "bucket hookbridge_tasks", "durable planner on EVENTS"]
    {
        assert!(
            checked.stderr.contains(&format!("{what} exists and differs: replicas is 1, not 3")),
            "{what}: {checked}"
        );
    }
    checked.assert_code(1);

    let traffic = fleet.traffic(rates).await;
    traffic.reaches(Kind::Deliveries, 20).await;
    fleet.add_with("courier", &["--update-streams"], &format!("{text}{three}"));
    fleet.couriers[1].ready().await;
    assert_replicas(&fleet.cluster, &durables, 3).await;
    fleet.check_text(&format!("{text}{three}")).await.assert_code(0);
    let old = fleet.couriers.remove(0);
    old.signal("TERM").await;
    old.ended().await.assert_code(0);
    fleet.cluster.settled().await;
    let leader = Cluster::index(&eventually("a leader", async || fleet.cluster.leader("OUTBOX").await).await);
    fleet.cluster.nodes[leader].kill();
    traffic.for_another(Kind::Deliveries, 20).await;
    fleet.cluster.nodes[leader].run();
    fleet.cluster.settled().await;
    let counted = fleet.count(traffic.stop().await).await;
    counted.assert_whole(&fleet);

    // More than configured is kept until somebody asks for less.
    let checked = fleet.check_text(&format!("{text}{one}")).await;
    checked.assert_code(0);
    for what in ["stream OUTBOX", "bucket hookbridge_tasks"] {
        let kept = format!("{what} keeps more than configured: replicas is 3, not 1");
        assert!(checked.stdout.contains(&kept), "{what}: {checked}");
    }
    fleet.add_with("courier", &["--update-streams"], &format!("{text}{one}"));
    fleet.couriers[1].ready().await;
    assert_replicas(&fleet.cluster, &durables, 1).await;
    counted
}

/// Waits until every stream, bucket and durable has so many replicas, all up to date.
async fn assert_replicas(cluster: &Cluster, durables: &[(&str, &str)], replicas: usize) {
    let others = |info: &Value| {
        let followers = info["cluster"]["replicas"].as_array().map_or(&[][..], Vec::as_slice);
        followers.iter().filter(|follower| follower["current"] == true).count()
    };
    for stream in streams(cluster).await {
        eventually(&format!("{replicas} replicas of {stream}"), async || {
            let info = cluster.ask(&format!("$JS.API.STREAM.INFO.{stream}"), Value::Null).await;
            (info["config"]["num_replicas"] == replicas && others(&info) == replicas - 1).then_some(())
        })
        .await;
    }
    for (stream, durable) in durables {
        eventually(&format!("{replicas} replicas of {durable} on {stream}"), async || {
            let info = cluster.ask(&format!("$JS.API.CONSUMER.INFO.{stream}.{durable}"), Value::Null).await;
            (others(&info) == replicas - 1).then_some(())
        })
        .await;
    }
}
