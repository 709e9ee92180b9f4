//! Pulls that a server or a durable refuses: the courier asks for less, or says what is wrong.

use async_nats::jetstream::consumer::{PullConsumer, pull};

use crate::harness::{Hookbridge, Nats, Receiver, eventually};

const TO_CRM: [(&str, &str); 1] = [("Hookbridge-Endpoint", "crm")];

fn crm(receiver: &Receiver) -> String {
    format!("[endpoints.crm]\nurl = \"{}\"\nsignatures = []", receiver.url("/"))
}

/// Changes the courier's durable on OUTBOX as an operator would.
async fn change(nats: &Nats, change: impl FnOnce(&mut pull::Config)) {
    let stream = nats.jetstream().get_stream("OUTBOX").await.unwrap();
    let found: PullConsumer = stream.get_consumer("courier").await.unwrap();
    let mut config: pull::Config =
        async_nats::jetstream::consumer::FromConsumer::try_from_consumer_config(found.cached_info().config.clone())
            .unwrap();
    change(&mut config);
    stream.update_consumer(config).await.unwrap();
}

async fn each_is_delivered(nats: &Nats, receiver: &mut Receiver, name: &str) {
    for index in 0..100 {
        nats.publish("outbox.a", &[TO_CRM[0], ("Nats-Msg-Id", &format!("{name}-{index}"))], "x").await;
    }
    let mut ids = std::collections::BTreeSet::new();
    while ids.len() < 100 {
        ids.insert(receiver.next().await.header("webhook-id").to_owned());
    }
    assert!(ids.iter().all(|id| id.starts_with(name)), "{ids:?}");
}

#[tokio::test]
async fn a_server_that_limits_pulls_gets_smaller_ones() {
    let limits = "jetstream { store_dir: \"$FOLDER/jetstream\", limits { max_request_batch: 7 } }";
    let nats = Nats::start_as(limits).await;
    let mut receiver = Receiver::start().await;
    let hookbridge = Hookbridge::start(&nats, &crm(&receiver)).await;

    each_is_delivered(&nats, &mut receiver, "server").await;
    assert_eq!(hookbridge.admin("/readyz").await.status, 200);
}

#[tokio::test]
async fn a_durable_that_limits_pulls_gets_smaller_ones() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let _hookbridge = Hookbridge::start(&nats, &crm(&receiver)).await;

    change(&nats, |durable| durable.max_batch = 3).await;
    each_is_delivered(&nats, &mut receiver, "batch").await;
    change(&nats, |durable| durable.max_expires = std::time::Duration::from_secs(1)).await;
    each_is_delivered(&nats, &mut receiver, "expires").await;
    change(&nats, |durable| durable.max_bytes = 64 * 1024).await;
    each_is_delivered(&nats, &mut receiver, "bytes").await;
}

#[tokio::test]
async fn a_message_that_no_pull_may_bring_is_named_and_delivered_once_it_may() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    // Pulls that wait keep what they were allowed when they were made.
    Hookbridge::start(&nats, &crm(&receiver)).await.stop().await.unwrap();
    change(&nats, |durable| durable.max_bytes = 1000).await;
    let hookbridge = Hookbridge::start(&nats, &crm(&receiver)).await;
    nats.publish("outbox.a", &[TO_CRM[0], ("Nats-Msg-Id", "large")], "x".repeat(5000)).await;

    let metric = "hookbridge_nats_pulls_interrupted_total{stream=\"OUTBOX\",reason=\"server\"}";
    let named = async || (hookbridge.metric(metric).await >= 1.0).then_some(());
    eventually("the pull that brings nothing to be counted", named).await;
    change(&nats, |durable| durable.max_bytes = 0).await;
    assert_eq!(receiver.next().await.header("webhook-id"), "large");
}

#[tokio::test]
async fn a_message_whose_headers_begin_with_a_status_holds_nothing_up() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let _hookbridge = Hookbridge::start(&nats, &crm(&receiver)).await;
    for status in ["404 No Messages", "408 Request Timeout", "409 Consumer Deleted", "100 Idle Heartbeat", "503"] {
        let block = format!("NATS/1.0 {status}\r\nHookbridge-Endpoint: crm\r\n\r\n");
        nats.publish_blocks([("outbox.a", block.as_bytes(), "x")]).await;
    }
    each_is_delivered_besides(&nats, &mut receiver).await;
    let settled = async || {
        let durable = nats.consumer("OUTBOX", "courier").await?;
        (durable.num_ack_pending == 0 && durable.num_pending == 0).then_some(())
    };
    eventually("every message to have its end", settled).await;
}

/// 100 messages reach the receiver, whatever else does.
async fn each_is_delivered_besides(nats: &Nats, receiver: &mut Receiver) {
    for index in 0..100 {
        nats.publish("outbox.a", &[TO_CRM[0], ("Nats-Msg-Id", &format!("good-{index}"))], "x").await;
    }
    let mut ids = std::collections::BTreeSet::new();
    while ids.len() < 100 {
        let id = receiver.next().await.header("webhook-id").to_owned();
        ids.extend(id.starts_with("good-").then_some(id));
    }
}

#[tokio::test]
async fn a_durable_that_is_paused_is_named_until_it_goes_on() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let hookbridge = Hookbridge::start(&nats, &crm(&receiver)).await;
    let until = std::time::SystemTime::now() + std::time::Duration::from_secs(3600);
    let stream = nats.jetstream().get_stream("OUTBOX").await.unwrap();
    stream.pause_consumer("courier", until.into()).await.unwrap();

    let paused = async || {
        let page = hookbridge.admin("/readyz").await;
        (page.status == 503 && page.text().contains("durable courier on OUTBOX is paused")).then_some(())
    };
    eventually("the pause to be named", paused).await;

    stream.resume_consumer("courier").await.unwrap();
    each_is_delivered(&nats, &mut receiver, "resumed").await;
    eventually("it to be ready", async || (hookbridge.admin("/readyz").await.status == 200).then_some(())).await;
}
