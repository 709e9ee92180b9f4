//! NATS absent, gone and back; servers and streams that cannot be worked with.

use hookbridge::app::Roles;

use crate::harness::{Hookbridge, Nats, Receiver, Reply, eventually, sign};

#[tokio::test]
async fn without_nats_webhooks_are_503_and_with_it_they_are_stored_without_a_restart() {
    let mut nats = Nats::absent("").await;
    let hookbridge = Hookbridge::start_without_nats(&nats, Roles::Both, sign::SOURCES).await;
    let signature = sign::hex("s3cret", b"{}");
    let post = async |id: &str| hookbridge.post("/hooks/github", &sign::github(&signature, "push", id), "{}").await;

    // A gateway that has waited for NATS for a while lets senders in all the same.
    hookbridge.listens().await;
    let early = post("1").await;
    early.assert_status(503);
    assert_eq!(early.header("retry-after"), "5");
    assert_eq!(hookbridge.admin("/readyz").await.status, 503);
    assert_eq!(hookbridge.admin("/livez").await.status, 200);

    nats.run();
    hookbridge.ready().await;
    post("1").await.assert_status(202);
    assert_eq!(hookbridge.admin("/readyz").await.status, 200);

    nats.kill();
    post("2").await.assert_status(503);
    assert_eq!(hookbridge.admin("/readyz").await.status, 503);
    assert_eq!(hookbridge.admin("/livez").await.status, 200);

    nats.run();
    let stored = async || (post("2").await.status == 202).then_some(());
    eventually("the gateway to recover", stored).await;
    // The event that was answered 503 may have been stored late; its repeat is the same event either way.
    assert_eq!(nats.count("EVENTS").await, 2);
    assert_eq!(hookbridge.metric("hookbridge_nats_ready").await, 1.0);
}

#[tokio::test]
async fn a_courier_that_loses_nats_goes_on_delivering_when_it_is_back() {
    let mut nats = Nats::start().await;
    let mut receiver = Receiver::start().await;
    let text = format!("[endpoints.crm]\nurl = \"{}\"\nsignatures = []", receiver.url("/"));
    let _hookbridge = Hookbridge::start(&nats, &text).await;
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", "before")], "x").await;
    assert_eq!(receiver.next().await.header("webhook-id"), "before");
    nats.message("RECEIPTS", "receipts.a.delivered.before").await;

    nats.kill();
    nats.run_again().await;
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", "after")], "x").await;
    assert_eq!(receiver.next().await.header("webhook-id"), "after");
    nats.message("RECEIPTS", "receipts.a.delivered.after").await;
    assert_eq!(receiver.unread(), 0, "a delivery was made twice");
}

/// What it would lead to could not be written down: it would be made again.
#[tokio::test]
async fn no_attempt_begins_while_nats_is_away() {
    const MESSAGES: usize = 60;
    let mut nats = Nats::start().await;
    let mut receiver = Receiver::start().await;
    receiver.otherwise(Reply::Hold);
    let text = format!("[endpoints.crm]\nurl = \"{}\"\nsignatures = []\nmax_concurrent = 1", receiver.url("/"));
    let hookbridge = Hookbridge::start(&nats, &text).await;
    for number in 0..MESSAGES {
        let id = format!("m-{number}");
        nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", &id)], "x").await;
    }
    let mut requests = Vec::new();
    // So many that the next ones stand in line.
    while requests.len() < 10 {
        receiver.release();
        if let Some(request) = receiver.arrived() {
            requests.push(request);
        }
        tokio::task::yield_now().await;
    }
    nats.kill();
    let noticed = async || (hookbridge.metric("hookbridge_nats_ready").await == 0.0).then_some(());
    eventually("the loss to be noticed", noticed).await;
    let away = std::time::Instant::now();
    // Whoever stands in line has every chance to go on.
    for _ in 0..100 {
        receiver.release();
        hookbridge.admin("/livez").await.assert_status(200);
    }
    let back = std::time::Instant::now();
    nats.run_again().await;
    hookbridge.ready().await;
    eventually("every delivery to be made", async || {
        receiver.release();
        let receipts = nats.subjects("RECEIPTS").await;
        let delivered = receipts.iter().filter(|subject| subject.starts_with("receipts.a.delivered.")).count();
        (delivered == MESSAGES).then_some(())
    })
    .await;
    requests.extend(std::iter::from_fn(|| receiver.arrived()));
    let begun = requests.iter().filter(|request| request.at > away && request.at < back).count();
    // One may have been on its way when the connection broke.
    assert!(begun <= 1, "{begun} attempts began while NATS was away");
    assert_eq!(requests.len(), MESSAGES, "something was sent twice");
}

#[tokio::test]
async fn a_server_without_jetstream_is_refused_with_a_clear_sentence() {
    let nats = Nats::without_jetstream().await;
    let hookbridge = Hookbridge::start_without_nats(&nats, Roles::Both, "").await;
    let error = hookbridge.ended().await.unwrap_err();
    assert!(error.to_string().contains("JetStream is not enabled"), "{error}");
}

#[tokio::test]
async fn an_incompatible_stream_is_refused_and_left_alone() {
    let nats = Nats::start().await;
    let existing = async_nats::jetstream::stream::Config {
        name: "EVENTS".to_owned(),
        subjects: vec!["events.>".to_owned()],
        max_age: std::time::Duration::from_secs(3600),
        duplicate_window: std::time::Duration::from_secs(60),
        ..Default::default()
    };
    nats.jetstream().create_stream(existing).await.unwrap();

    let hookbridge = Hookbridge::start_without_nats(&nats, Roles::Both, "").await;
    let error = hookbridge.ended().await.unwrap_err().to_string();
    for expected in
        ["stream EVENTS", "max_age is 1h, not 7days", "duplicate_window is 1m, not 3days", "--update-streams"]
    {
        assert!(error.contains(expected), "{expected:?} is not in: {error}");
    }
    let found = nats.jetstream().get_stream("EVENTS").await.unwrap().get_info().await.unwrap();
    assert_eq!(found.config.max_age, std::time::Duration::from_secs(3600));
}

#[tokio::test]
async fn an_operator_who_asks_for_it_gets_the_stream_changed() {
    let nats = Nats::start().await;
    let short = "[streams.events]\nmax_age = \"2h\"\nduplicate_window = \"1h\"";
    Hookbridge::start(&nats, short).await.stop().await.unwrap();

    let options = hookbridge::app::Options { update_streams: true, ..Default::default() };
    let hookbridge = Hookbridge::start_with(&nats, Roles::Both, "", options).await;
    hookbridge.ready().await;
    let found = nats.jetstream().get_stream("EVENTS").await.unwrap().get_info().await.unwrap();
    assert_eq!(found.config.max_age, std::time::Duration::from_secs(7 * 24 * 3600));
}

#[tokio::test]
async fn two_processes_with_one_configuration_start_beside_each_other() {
    let nats = Nats::start().await;
    let text = "[agents.planner]\nevents = [\"events.>\"]";
    let both = tokio::join!(Hookbridge::start(&nats, text), Hookbridge::start(&nats, text));
    both.0.stop().await.unwrap();
    both.1.stop().await.unwrap();
}

#[tokio::test]
async fn a_full_outbox_and_a_full_event_stream_refuse_instead_of_dropping() {
    let nats = Nats::start().await;
    let text = "[streams.events]\nmax_bytes = \"2KiB\"\n[sources.open]\nverify = \"none\"\nid = \"header:x-id\"";
    let hookbridge = Hookbridge::start(&nats, text).await;
    let mut answers = Vec::new();
    for id in ["1", "2", "3", "4"] {
        answers.push(hookbridge.post("/hooks/open", &[("x-id", id)], vec![b'x'; 500]).await.status.as_u16());
    }
    let stored = answers.iter().filter(|status| **status == 202).count();
    assert_eq!(answers.last(), Some(&503), "{answers:?}");
    assert_eq!(nats.count("EVENTS").await, stored as u64);
    assert_eq!(hookbridge.metric("hookbridge_ingress_unconfirmed_total{reason=\"full\"}").await, (4 - stored) as f64);
}

#[tokio::test]
async fn a_server_before_2_12_is_refused_with_a_clear_sentence() {
    let old = Nats::posing_as("2.11.9").await;
    let hookbridge = Hookbridge::start_without_nats(&old, Roles::Both, "").await;
    let error = hookbridge.ended().await.unwrap_err().to_string();
    assert!(error.contains("nats-server 2.11.9 is too old") && error.contains("2.12"), "{error}");
}

#[tokio::test]
async fn a_stream_near_its_limit_is_an_alarm() {
    let nats = Nats::start().await;
    let text = "[streams.dead]\nmax_messages = 5\n[streams.receipts]\nmax_messages = 100";
    Hookbridge::start(&nats, text).await.stop().await.unwrap();
    for index in 0..4 {
        nats.publish(&format!("dead.a.{index}"), &[], "x").await;
    }
    let hookbridge = Hookbridge::start(&nats, text).await;
    let alarmed =
        async |stream| hookbridge.metric(&format!("hookbridge_stream_alarm{{stream=\"{stream}\"}}")).await == 1.0;
    eventually("the alarm", async || alarmed("DEAD").await.then_some(())).await;
    assert!(!alarmed("RECEIPTS").await);
}

#[tokio::test]
async fn a_publish_that_is_not_confirmed_is_503_and_its_repeat_is_the_same_event() {
    let nats = Nats::start().await;
    let text = format!("{}[gateway]\nlisten = \"127.0.0.1:0\"\npublish_timeout = \"500ms\"", sign::SOURCES);
    let hookbridge = Hookbridge::start(&nats, &text).await;
    let signature = sign::hex("s3cret", b"{}");
    let post = async || hookbridge.post("/hooks/github", &sign::github(&signature, "push", "1"), "{}").await;

    nats.pause();
    post().await.assert_status(503);
    nats.go_on();

    let stored = async || (post().await.status == 202).then_some(());
    eventually("the repeat to be stored", stored).await;
    assert_eq!(nats.count("EVENTS").await, 1);
    assert_eq!(hookbridge.metric("hookbridge_ingress_unconfirmed_total{reason=\"unconfirmed\"}").await, 1.0);
}

#[tokio::test]
async fn a_durable_with_another_filter_is_refused_until_an_operator_asks_for_the_change() {
    let nats = Nats::start().await;
    let agent = |filter: &str| format!("[agents.planner]\nevents = [\"{filter}\"]");
    Hookbridge::start(&nats, &agent("events.github.>")).await.stop().await.unwrap();

    let changed = agent("events.billing.>");
    let refused = Hookbridge::start_without_nats(&nats, Roles::Gateway, &changed).await.ended().await;
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("durable planner on EVENTS") && error.contains("events.billing.>"), "{error}");

    let options = hookbridge::app::Options { update_streams: true, ..Default::default() };
    let hookbridge = Hookbridge::start_with(&nats, Roles::Gateway, &changed, options).await;
    hookbridge.ready().await;
    let stream = nats.jetstream().get_stream("EVENTS").await.unwrap();
    let found = stream.consumer_info("planner").await.unwrap();
    assert_eq!(found.config.filter_subject, "events.billing.>");
}
