//! Ready means that storing works: what does not is named, on the page and in the gauge, and repaired where it can be.

use std::time::Duration;

use hookbridge::app::Roles;

use crate::harness::{Answer, Hookbridge, Nats, Receiver, eventually, sign};

async fn post(hookbridge: &Hookbridge, id: &str) -> Answer {
    let signature = sign::hex("s3cret", b"{}");
    hookbridge.post("/hooks/github", &sign::github(&signature, "push", id), "{}").await
}

/// Waits until the page says 503 with these words.
async fn not_ready(hookbridge: &Hookbridge, words: &[&str]) {
    let named = async || {
        let page = hookbridge.admin("/readyz").await;
        (page.status == 503 && words.iter().all(|word| page.text().contains(word))).then_some(())
    };
    eventually(&format!("/readyz to say {words:?}"), named).await;
    assert_eq!(hookbridge.metric("hookbridge_nats_ready").await, 0.0);
}

async fn ready_again(hookbridge: &Hookbridge) {
    eventually("/readyz to be 200", async || (hookbridge.admin("/readyz").await.status == 200).then_some(())).await;
    assert_eq!(hookbridge.metric("hookbridge_nats_ready").await, 1.0);
}

#[tokio::test]
async fn an_idle_process_proves_that_it_can_store_and_leaves_nothing_behind() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, sign::SOURCES).await;
    let bucket = nats.jetstream().get_stream("KV_hookbridge_endpoints").await.unwrap();
    let before = bucket.cached_info().state.last_sequence;

    // Both roles write a value at each round of probes.
    let probed = async || {
        let state = &nats.jetstream().get_stream("KV_hookbridge_endpoints").await.ok()?.cached_info().state.clone();
        (state.last_sequence >= before + 4).then_some(state.messages)
    };
    let left = eventually("two rounds of probes", async || probed().await).await;
    assert!(left <= 2, "{left}");
    for stream in ["EVENTS", "OUTBOX", "RETRY", "RECEIPTS", "DEAD", "TASKS", "KV_hookbridge_tasks"] {
        let found = nats.jetstream().get_stream(stream).await.unwrap();
        assert_eq!(found.cached_info().state.last_sequence, 0, "{stream}");
    }
    assert_eq!(hookbridge.admin("/readyz").await.status, 200);
}

#[tokio::test]
async fn a_server_that_is_stopped_makes_the_roles_not_ready_until_it_goes_on() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, sign::SOURCES).await;
    nats.pause();
    not_ready(&hookbridge, &["nats-server"]).await;
    nats.go_on();
    ready_again(&hookbridge).await;
    let stored = async || (post(&hookbridge, "1").await.status == 202).then_some(());
    eventually("a webhook to be stored", stored).await;
}

#[tokio::test]
async fn a_full_disk_is_named_until_there_is_room() {
    let Some(mut nats) = Nats::start_on_a_disk_of("12m").await else { return };
    let hookbridge = Hookbridge::start(&nats, sign::SOURCES).await;
    let large = format!("\"{}\"", "x".repeat(700 * 1024));
    let signature = sign::hex("s3cret", large.as_bytes());
    let mut answers = Vec::new();
    while answers.len() < 40 && answers.last() != Some(&503) {
        let id = format!("large-{}", answers.len());
        let headers = sign::github(&signature, "push", &id);
        answers.push(hookbridge.post("/hooks/github", &headers, large.clone()).await.status.as_u16());
    }
    assert_eq!((answers.first(), answers.last()), (Some(&202), Some(&503)), "{answers:?}");
    not_ready(&hookbridge, &["disk", "no space left"]).await;

    nats.kill();
    nats.run_again().await;
    nats.jetstream().get_stream("EVENTS").await.unwrap().purge().await.unwrap();
    ready_again(&hookbridge).await;
    let stored = async || (post(&hookbridge, "small").await.status == 202).then_some(());
    eventually("a webhook to be stored", stored).await;
}

#[tokio::test]
async fn a_full_stream_is_named_until_it_has_room() {
    let nats = Nats::start().await;
    let text = format!("{}\n[streams.events]\nmax_bytes = \"64KiB\"", sign::SOURCES);
    let hookbridge = Hookbridge::start(&nats, &text).await;
    let filled = async |index: usize| post(&hookbridge, &format!("{index}")).await.status == 503;
    let mut index = 0;
    while !filled(index).await {
        index += 1;
        assert!(index < 1000, "the stream has no limit");
    }
    not_ready(&hookbridge, &["EVENTS", "full"]).await;
    nats.jetstream().get_stream("EVENTS").await.unwrap().purge().await.unwrap();
    ready_again(&hookbridge).await;
    post(&hookbridge, "after").await.assert_status(202);
}

#[tokio::test]
async fn what_is_deleted_under_a_running_process_is_made_again_and_counted() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let text = format!(
        "{}\n[agents.planner]\nevents = [\"events.>\"]\n[endpoints.crm]\nurl = \"{}\"\nsignatures = []\n\
         [clients.shop]\ntoken = \"plain:token-of-the-shop\"\nagents = [\"planner\"]",
        sign::SOURCES,
        receiver.url("/")
    );
    let hookbridge = Hookbridge::start(&nats, &text).await;
    // Whoever listens answers publishes that no stream takes, with silence.
    let _listens = nats.listen(">").await;
    let streams =
        ["EVENTS", "OUTBOX", "RETRY", "RECEIPTS", "DEAD", "TASKS"].map(|name| (name, format!("stream {name}")));
    let buckets = ["hookbridge_endpoints", "hookbridge_tasks"];
    let buckets = buckets.map(|name| (format!("KV_{name}"), format!("bucket {name}")));
    let all = streams.map(|(name, what)| (name.to_owned(), what)).into_iter().chain(buckets);
    for (index, (stream, asset)) in all.enumerate() {
        nats.jetstream().delete_stream(&stream).await.unwrap();

        made_again(&hookbridge, &asset).await;
        let task = format!("{{\"task_id\":\"t-{index}\",\"prompt\":\"x\"}}");
        let asked = [("authorization", "Bearer token-of-the-shop"), ("content-type", "application/json")];
        let works = async || {
            let delegated = hookbridge.post("/agents/planner/tasks", &asked, task.clone()).await.status;
            (post(&hookbridge, &format!("{index}")).await.status == 202 && delegated == 202).then_some(())
        };
        eventually(&format!("webhooks and tasks without {stream}"), works).await;
        ready_again(&hookbridge).await;
        let id = format!("m-{index}");
        nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", &id)], "x").await;
        assert_eq!(receiver.next().await.header("webhook-id"), id);
        nats.message("RECEIPTS", &format!("receipts.a.delivered.{id}")).await;
    }
    for (stream, durable) in [("OUTBOX", "courier"), ("RETRY", "courier")] {
        nats.jetstream().get_stream(stream).await.unwrap().delete_consumer(durable).await.unwrap();
        made_again(&hookbridge, &format!("durable {durable} on {stream}")).await;
    }
}

async fn made_again(hookbridge: &Hookbridge, asset: &str) {
    let metric = format!("hookbridge_nats_assets_recreated_total{{asset=\"{asset}\"}}");
    let made = async || (hookbridge.metric(&metric).await >= 1.0).then_some(());
    eventually(&format!("{asset} to be made again"), made).await;
}

#[tokio::test]
async fn a_gateway_alone_makes_again_what_it_needs() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start_as(&nats, Roles::Gateway, sign::SOURCES).await;
    nats.jetstream().delete_stream("EVENTS").await.unwrap();
    let stored = async || (post(&hookbridge, "1").await.status == 202).then_some(());
    eventually("a webhook to be stored", stored).await;
    ready_again(&hookbridge).await;
}

#[tokio::test]
async fn a_webhook_that_comes_while_nats_restarts_is_stored_instead_of_refused() {
    let mut nats = Nats::start().await;
    let text = format!("{}\n[gateway]\npublish_timeout = \"60s\"", sign::SOURCES);
    let hookbridge = Hookbridge::start(&nats, &text).await;
    nats.kill();
    not_ready(&hookbridge, &["connection"]).await;

    let (answer, ()) = tokio::join!(post(&hookbridge, "1"), async {
        tokio::task::yield_now().await;
        nats.run();
    });
    answer.assert_status(202);
    assert_eq!(nats.count("EVENTS").await, 1);
}

#[tokio::test]
async fn a_stream_that_has_no_leader_for_a_moment_costs_no_webhook() {
    let nats = Nats::start().await;
    let text = format!("{}\n[gateway]\npublish_timeout = \"60s\"", sign::SOURCES);
    let hookbridge = Hookbridge::start(&nats, &text).await;
    nats.jetstream().delete_stream("EVENTS").await.unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(100), post(&hookbridge, "1")).await.unwrap();
    answer.assert_status(202);
}
