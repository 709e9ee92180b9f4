//! Webhooks that arrive together are stored together where the server syncs always, and answered each for itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_nats::jetstream::stream;
use futures_util::future::join_all;
use hookbridge::app::Roles;
use tokio::sync::watch;

use crate::harness::{Answer, Hookbridge, Message, Nats, eventually, mistakes, within};

const SYNCED: &str = r#"
[nats]
durability = "synced"
[gateway]
publish_timeout = "25s"
[sources.open]
verify = "none"
id = "header:X-Id"
"#;

async fn gateway(nats: &Nats, text: &str) -> Hookbridge {
    Hookbridge::start_as(nats, Roles::Gateway, text).await
}

async fn post(hookbridge: &Hookbridge, id: &str, body: &'static str) -> Answer {
    hookbridge.post("/hooks/open", &[("x-id", id)], body).await
}

fn numbered(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| format!("w-{number}")).collect()
}

/// Posts all of them while the server stands still, so that they wait together.
async fn burst(nats: &Nats, hookbridge: &Hookbridge, ids: &[String], body: &'static str) -> Vec<Answer> {
    nats.pause();
    let held = async {
        let all = (ids.len() * body.len()) as f64;
        let is_held = async || (hookbridge.metric("hookbridge_ingress_body_bytes").await >= all).then_some(());
        eventually("every webhook to wait", is_held).await;
        nats.go_on();
    };
    tokio::join!(join_all(ids.iter().map(|id| post(hookbridge, id, body))), held).0
}

/// How many batches came to this.
async fn batches(hookbridge: &Hookbridge, outcome: &str) -> f64 {
    hookbridge.metric(&format!("hookbridge_ingress_batches_total{{outcome=\"{outcome}\"}}")).await
}

/// How often each message id stands in EVENTS.
fn counted(messages: &[Message]) -> BTreeMap<&str, usize> {
    let mut counted = BTreeMap::new();
    for message in messages {
        *counted.entry(message.header("Nats-Msg-Id").unwrap()).or_default() += 1;
    }
    counted
}

async fn stored(nats: &Nats) -> Vec<Message> {
    nats.all("EVENTS").await.into_iter().map(|(message, _)| message).collect()
}

#[tokio::test]
async fn many_webhooks_at_once_are_stored_once_each_and_answered_each_with_its_own_id() {
    let nats = Nats::start_synced().await;
    let hookbridge = gateway(&nats, SYNCED).await;
    let ids = numbered(0..300);

    for (id, answer) in ids.iter().zip(burst(&nats, &hookbridge, &ids, "body").await) {
        assert_eq!(answer.assert_status(202).json(), serde_json::json!({ "id": id, "duplicate": false }));
    }

    let messages = stored(&nats).await;
    assert_eq!((messages.len(), counted(&messages).len()), (300, 300));
    assert!(batches(&hookbridge, "stored").await >= 1.0);
    let in_batches = messages.iter().filter(|message| message.header("Nats-Batch-Id").is_some()).count();
    let told = hookbridge.metric("hookbridge_ingress_batched_events_total{outcome=\"stored\"}").await;
    assert_eq!(in_batches as f64, told);
    for message in &messages {
        assert_eq!((&message.subject[..], &message.payload[..]), ("events.open.unknown", &b"body"[..]));
        assert_eq!(format!("open:{}", message.header("ce-id").unwrap()), message.header("Nats-Msg-Id").unwrap());
    }
}

#[tokio::test]
async fn repeats_in_a_burst_are_told_apart_from_what_they_were_stored_with() {
    let nats = Nats::start_synced().await;
    let other = gateway(&nats, SYNCED).await;
    // This gateway has not seen them, so only the stream knows that they are repeats.
    let before: Vec<String> = (0..6).map(|number| format!("w-{}", number * 30)).collect();
    for answer in burst(&nats, &other, &before, "body").await {
        answer.assert_status(202);
    }
    let hookbridge = gateway(&nats, SYNCED).await;
    let mut ids = numbered(0..180);
    ids.extend(numbered(50..70));

    let answers = burst(&nats, &hookbridge, &ids, "body").await;

    let mut fresh: BTreeMap<&str, usize> = ids.iter().map(|id| (&id[..], 0)).collect();
    for (id, answer) in ids.iter().zip(&answers) {
        let json = answer.assert_status(202).json();
        assert_eq!(json["id"], **id);
        *fresh.get_mut(&id[..]).unwrap() += usize::from(json["duplicate"] == false);
    }
    for (id, fresh) in fresh {
        assert_eq!(fresh, usize::from(!before.iter().any(|known| known == id)), "{id}");
    }
    let messages = stored(&nats).await;
    assert_eq!((messages.len(), counted(&messages).len()), (180, 180));
    assert!(batches(&hookbridge, "repeat").await >= 1.0, "no batch was refused for a repeat");

    // By now this gateway knows them all.
    let refused = batches(&hookbridge, "repeat").await;
    for answer in burst(&nats, &hookbridge, &numbered(0..180), "body").await {
        assert_eq!(answer.assert_status(202).json()["duplicate"], true);
    }
    assert_eq!(batches(&hookbridge, "repeat").await, refused);
}

#[tokio::test]
async fn a_server_killed_amid_bursts_has_every_event_that_was_answered_and_none_twice() {
    const SENDERS: usize = 48;
    const KILLS: usize = 3;
    const BETWEEN: usize = 300;
    let mut nats = Nats::start_synced().await;
    let hookbridge = gateway(&nats, &SYNCED.replace("25s", "2s")).await;
    let ((told, answered), next) = (watch::channel(0_usize), AtomicUsize::new(0));
    let (finish, finished) = watch::channel(false);

    let sender = async || {
        let mut taken = Vec::new();
        while !*finished.borrow() {
            let id = format!("w-{}", next.fetch_add(1, Ordering::Relaxed));
            // As senders do: again until it is taken.
            while post(&hookbridge, &id, "body").await.status != 202 {}
            told.send_modify(|count| *count += 1);
            taken.push(id);
        }
        taken
    };
    let killer = async {
        let mut answered = answered;
        for _ in 0..KILLS {
            let enough = *answered.borrow() + BETWEEN;
            within("webhooks to be taken", answered.wait_for(|count| *count >= enough)).await.unwrap();
            nats.kill();
            nats.run_again().await;
        }
        let enough = *answered.borrow() + BETWEEN;
        within("webhooks to be taken", answered.wait_for(|count| *count >= enough)).await.unwrap();
        finish.send_replace(true);
    };
    let (taken, ()) = tokio::join!(join_all((0..SENDERS).map(|_| sender())), killer);

    let messages = stored(&nats).await;
    let counted = counted(&messages);
    for id in taken.iter().flatten() {
        assert_eq!(counted.get(&format!("open:{id}")[..]), Some(&1), "{id}");
    }
    assert!(counted.values().all(|count| *count == 1), "something is stored twice");
    assert!(batches(&hookbridge, "stored").await >= 1.0);
}

#[tokio::test]
async fn of_a_burst_that_does_not_fit_into_the_stream_what_fits_is_taken_and_the_rest_is_answered_503() {
    const BODY: &str = "a body that takes some room in the stream, so that not all of them fit";
    let nats = Nats::start_synced().await;
    let hookbridge = gateway(&nats, &format!("{SYNCED}\n[streams.events]\nmax_bytes = \"24KiB\"")).await;
    let ids = numbered(0..200);

    let answers = burst(&nats, &hookbridge, &ids, BODY).await;

    let (taken, refused): (Vec<_>, Vec<_>) = ids.iter().zip(&answers).partition(|(_, answer)| answer.status == 202);
    assert!(!taken.is_empty() && !refused.is_empty());
    for (_, answer) in &refused {
        answer.assert_status(503);
    }
    let messages = stored(&nats).await;
    let counted = counted(&messages);
    assert_eq!(counted.len(), taken.len());
    taken.iter().for_each(|(id, _)| assert_eq!(counted.get(&format!("open:{id}")[..]), Some(&1), "{id}"));
    let full = hookbridge.metric("hookbridge_ingress_unconfirmed_total{reason=\"full\"}").await;
    assert_eq!(full, refused.len() as f64);
}

#[tokio::test]
async fn a_webhook_that_comes_alone_is_stored_alone() {
    let nats = Nats::start_synced().await;
    let hookbridge = gateway(&nats, SYNCED).await;
    for id in numbered(0..3) {
        post(&hookbridge, &id, "body").await.assert_status(202);
    }
    assert!(stored(&nats).await.iter().all(|message| message.header("Nats-Batch-Id").is_none()));
    assert_eq!(batches(&hookbridge, "stored").await, 0.0);
}

#[tokio::test]
async fn unless_the_operator_says_that_the_server_syncs_always_nothing_is_gathered() {
    let nats = Nats::start_synced().await;
    let hookbridge = gateway(&nats, &SYNCED.replace("synced", "periodic")).await;
    for answer in burst(&nats, &hookbridge, &numbered(0..100), "body").await {
        answer.assert_status(202);
    }
    let messages = stored(&nats).await;
    assert_eq!(messages.len(), 100);
    assert!(messages.iter().all(|message| message.header("Nats-Batch-Id").is_none()));
    assert!(!takes_batches(&nats).await);
}

async fn takes_batches(nats: &Nats) -> bool {
    let events = nats.jetstream().get_stream("EVENTS").await.unwrap();
    events.get_info().await.unwrap().config.allow_atomic_publish
}

#[tokio::test]
async fn a_stream_that_takes_no_batches_yet_is_told_to_and_nobody_takes_that_back() {
    let nats = Nats::start_synced().await;
    let periodic = SYNCED.replace("synced", "periodic");
    gateway(&nats, &periodic).await.stop().await.unwrap();
    assert!(!takes_batches(&nats).await);

    let hookbridge = gateway(&nats, SYNCED).await;
    assert!(takes_batches(&nats).await);
    for answer in burst(&nats, &hookbridge, &numbered(0..100), "body").await {
        answer.assert_status(202);
    }
    assert!(batches(&hookbridge, "stored").await >= 1.0);

    let beside = gateway(&nats, &periodic).await;
    assert!(takes_batches(&nats).await);
    post(&beside, "w-1000", "body").await.assert_status(202);
    let options = hookbridge::app::Options { update_streams: true, ..Default::default() };
    let text = format!("{periodic}\n[streams.events]\nmax_age = \"8d\"");
    let updating = Hookbridge::start_with(&nats, Roles::Gateway, &text, options).await;
    updating.ready().await;
    assert!(takes_batches(&nats).await);
}

#[tokio::test]
async fn webhooks_are_stored_one_by_one_once_somebody_has_the_stream_take_no_batches() {
    let nats = Nats::start_synced().await;
    let hookbridge = gateway(&nats, SYNCED).await;
    let found = nats.jetstream().get_stream("EVENTS").await.unwrap().cached_info().config.clone();
    let changed = stream::Config { allow_atomic_publish: false, ..found };
    nats.jetstream().update_stream(&changed).await.unwrap();

    for numbers in [0..100, 100..200] {
        for answer in burst(&nats, &hookbridge, &numbered(numbers), "body").await {
            assert_eq!(answer.assert_status(202).json()["duplicate"], false);
        }
    }
    assert_eq!(nats.count("EVENTS").await, 200);
    let disabled = batches(&hookbridge, "disabled").await;
    // Two rounds may have been on their way before the first answer.
    assert!((1.0..=2.0).contains(&disabled), "{disabled}");
    assert!(!takes_batches(&nats).await);
}

#[tokio::test]
async fn the_items_of_one_webhook_are_stored_together() {
    let nats = Nats::start_synced().await;
    let split = "split = true\n[sources.open.batch]\nitems = \"json:\"\nid = \"item:/id\"";
    let hookbridge = gateway(&nats, &format!("{SYNCED}{split}")).await;
    let items: Vec<String> = (0..200).map(|number| format!("{{\"id\":\"i-{number}\"}}")).collect();
    let body = format!("[{}]", items.join(","));
    let send = async || hookbridge.post("/hooks/open", &[("x-id", "whole")], body.clone()).await.json();

    assert_eq!(send().await, serde_json::json!({ "id": "whole", "duplicate": false, "events": 200 }));
    assert_eq!(send().await, serde_json::json!({ "id": "whole", "duplicate": true, "events": 200 }));

    assert_eq!(nats.count("EVENTS").await, 200);
    assert!(batches(&hookbridge, "stored").await >= 1.0);
}

#[tokio::test]
async fn a_gateway_that_stops_finishes_what_it_has_gathered() {
    let nats = Nats::start_synced().await;
    let hookbridge = gateway(&nats, SYNCED).await;
    let (url, ids) = (hookbridge.url("/hooks/open"), numbered(0..100));
    nats.pause();
    let send = async |id: &String| crate::harness::post(&url, &[("x-id", id)], "body").await;
    let posts = join_all(ids.iter().map(send));
    let stopping = async {
        let is_held = async || (hookbridge.metric("hookbridge_ingress_body_bytes").await >= 400.0).then_some(());
        eventually("every webhook to wait", is_held).await;
        let stopped = hookbridge.stop();
        nats.go_on();
        stopped.await.unwrap();
    };
    let (answers, ()) = tokio::join!(posts, stopping);
    for answer in answers {
        answer.assert_status(202);
    }
    assert_eq!(nats.count("EVENTS").await, 100);
}

#[tokio::test]
async fn a_webhook_that_the_server_never_answers_holds_up_nobody_else() {
    // What the server does not let a client publish, it does not answer.
    let nats = Nats::start_synced_with(
        "authorization { users: [
            { user: gateway, password: secret, permissions: { publish: { deny: \"events.open.silent\" } } }
            { user: anybody, password: secret }
        ] }
        no_auth_user: anybody",
    )
    .await;
    let user = "durability = \"synced\"\nuser = \"gateway\"\npassword = \"plain:secret\"";
    let text = SYNCED.replace("durability = \"synced\"", user) + "type = \"header:X-Type\"\n";
    let hookbridge = gateway(&nats, &text).await;

    let silent = hookbridge.post("/hooks/open", &[("x-id", "silent"), ("x-type", "silent")], "body");
    let others = async {
        for id in numbered(0..20) {
            post(&hookbridge, &id, "body").await.assert_status(202);
        }
        let ids = numbered(20..320);
        for answer in join_all(ids.iter().map(|id| post(&hookbridge, id, "body"))).await {
            answer.assert_status(202);
        }
    };
    tokio::select! {
        answer = silent => panic!("it was answered before the others: {answer:?}"),
        () = within("the others to be stored", others) => {}
    }
    assert_eq!(nats.count("EVENTS").await, 320);
}

#[test]
fn another_durability_than_those_there_are_is_a_mistake_that_names_them() {
    let text = mistakes("[nats]\ndurability = \"always\"");
    assert!(text.contains("nats.durability") && text.contains("periodic") && text.contains("synced"), "{text}");
}
