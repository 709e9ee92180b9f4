//! `Retry-After` puts off and never shortens a schedule, and until then nothing else begins to that destination, in
//! any courier.

use std::time::{Duration, SystemTime};

use hookbridge::app::Roles;
use serde_json::{Value, json};

use crate::harness::{Configuration, Ended, Hookbridge, Nats, Receiver, Reply, eventually, run};

const KEY: &str = "[egress]\nseal_keys = [\"plain:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\"]\n";
const HELD: &str = "hookbridge_egress_held_total{destination=\"crm\",why=\"retry-after\"}";
const RECORD: &str = "$KV.hookbridge_endpoints.hold.e_crm";

fn crm(receiver: &Receiver, more: &str) -> String {
    format!(
        "[endpoints.crm]\nurl = \"{}\"\nsignatures = []\nretry = [\"100ms\", \"100ms\", \"100ms\"]\n{more}\n\
         [callbacks]\nallow = [\"*\"]\nsignatures = []\n",
        receiver.url("/")
    )
}

async fn publish(nats: &Nats, id: &str) {
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", id)], "x").await;
}

async fn call_back(nats: &Nats, agent: &str, url: &str, id: &str) {
    let subject = format!("outbox.{agent}");
    nats.publish(&subject, &[("Hookbridge-Callback-Url", url), ("Nats-Msg-Id", id)], "x").await;
}

async fn receipt(nats: &Nats, outcome: &str, id: &str) -> Value {
    nats.message("RECEIPTS", &format!("receipts.*.{outcome}.{id}")).await.json()
}

/// Runs a command of an operator.
async fn hookbridge(nats: &Nats, text: &str, arguments: &[&str]) -> Ended {
    let url = nats.url();
    let arguments = [arguments, &["--nats", &url]].concat();
    run(&mut Configuration::new(text).hookbridge(&arguments)).await
}

/// Publishes a message that has to wait, and checks how that is told.
async fn is_held(nats: &Nats, id: &str) {
    publish(nats, id).await;
    let held = receipt(nats, "*", id).await;
    let told = (&held["outcome"], &held["reason"], &held["attempt"]);
    assert_eq!(told, (&json!("retrying"), &json!("retry-after"), &json!(0)), "{held}");
}

fn time(text: &Value) -> SystemTime {
    humantime::parse_rfc3339(text.as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn an_endpoint_that_asks_for_little_or_nothing_does_not_use_the_schedule_up() {
    for asked in ["retry-after: 1", "retry-after: 0", "retry-after: Wed, 21 Oct 2015 07:28:00 GMT"] {
        for status in [429, 503] {
            let (nats, receiver) = (Nats::start().await, Receiver::scripted([Reply::With(status, asked)]).await);
            let text = crm(&receiver, "").replace("[\"100ms\", ", "[\"1h\", ");
            let _hookbridge = Hookbridge::start_as(&nats, Roles::Courier, &text).await;

            publish(&nats, "m-1").await;

            let put_off = receipt(&nats, "*", "m-1").await;
            assert_eq!((&put_off["outcome"], &put_off["status"]), (&json!("retrying"), &json!(status)), "{put_off}");
            let wait = time(&put_off["next_attempt_at"]).duration_since(time(&put_off["at"])).unwrap();
            assert!(wait > Duration::from_secs(3000), "{asked}: {wait:?}");
        }
    }
}

#[tokio::test]
async fn what_was_asked_for_is_told_in_round_numbers_and_bounded() {
    let far = "retry-after: Fri, 31 Dec 9999 23:59:59 GMT";
    let (nats, receiver) = (Nats::start().await, Receiver::scripted([Reply::With(503, far)]).await);
    let text = crm(&receiver, "max_retry_after = \"2h\"\nmax_age = \"1h\"");
    let _hookbridge = Hookbridge::start_as(&nats, Roles::Courier, &text).await;

    publish(&nats, "m-1").await;

    let put_off = receipt(&nats, "retrying", "m-1").await;
    let detail = put_off["detail"].as_str().unwrap();
    assert!(detail.contains("Retry-After, limited to 2h by max_retry_after"), "{detail}");
    assert!(detail.contains("the last one that max_age or the retention of OUTBOX allows"), "{detail}");
    let wait = time(&put_off["next_attempt_at"]).duration_since(time(&put_off["at"])).unwrap();
    assert!(wait <= Duration::from_secs(3600), "{wait:?}");
}

#[tokio::test]
async fn nothing_begins_in_any_courier_before_the_time_that_an_endpoint_asked_for() {
    const ASKED: Duration = Duration::from_secs(8);
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    receiver.otherwise(Reply::With(429, "retry-after: 8"));
    let text = crm(&receiver, "");
    let couriers = [
        Hookbridge::start_as(&nats, Roles::Courier, &text).await,
        Hookbridge::start_as(&nats, Roles::Courier, &text).await,
        Hookbridge::start_as(&nats, Roles::Courier, &text).await,
    ];
    publish(&nats, "first").await;
    let first = receiver.next().await.at;
    nats.message("KV_hookbridge_endpoints", RECORD).await;
    let number = std::sync::atomic::AtomicUsize::new(0);
    for courier in &couriers {
        eventually("every courier to hold", async || {
            publish(&nats, &format!("m-{}", number.fetch_add(1, std::sync::atomic::Ordering::Relaxed))).await;
            (courier.metric(HELD).await >= 1.0).then_some(())
        })
        .await;
    }
    let number = number.into_inner();

    receiver.otherwise(Reply::Status(204));

    for number in 0..number {
        receipt(&nats, "delivered", &format!("m-{number}")).await;
        let held = receipt(&nats, "retrying", &format!("m-{number}")).await;
        assert_eq!((&held["reason"], &held["attempt"]), (&json!("retry-after"), &json!(0)), "{held}");
    }
    assert_eq!(receipt(&nats, "delivered", "first").await["attempt"], 2);
    for _ in 0..=number {
        let after = receiver.next().await.at - first;
        // Whole seconds count from when the answer was read.
        assert!(after >= ASKED - Duration::from_millis(50), "a request began after {after:?}");
    }
    assert_eq!(receiver.unread(), 0);
    eventually("the record to be taken away", async || nats.is_gone("hold.e_crm").await.then_some(())).await;
}

#[tokio::test]
async fn a_restart_keeps_it_the_list_shows_it_and_resuming_lifts_it() {
    for key in ["", KEY] {
        let (nats, mut receiver) =
            (Nats::start().await, Receiver::scripted([Reply::With(503, "retry-after: 7200")]).await);
        let text = format!("{key}{}", crm(&receiver, ""));
        let before = Hookbridge::start_as(&nats, Roles::Courier, &text).await;
        publish(&nats, "first").await;
        receipt(&nats, "retrying", "first").await;
        before.stop().await.unwrap();
        let _after = [
            Hookbridge::start_as(&nats, Roles::Courier, &text).await,
            Hookbridge::start_as(&nats, Roles::Courier, &text).await,
        ];
        is_held(&nats, "second").await;

        let list = hookbridge(&nats, &text, &["endpoints", "list", "--json"]).await;
        let line: Value = serde_json::from_str(list.assert_code(0).stdout.trim()).unwrap();
        let left = time(&line["held"][0]["until"]).duration_since(SystemTime::now()).unwrap();
        assert!((Duration::from_secs(7000)..=Duration::from_secs(7200)).contains(&left), "{line}");
        let list = hookbridge(&nats, &text, &["endpoints", "list"]).await;
        assert!(list.stdout.contains("held until 2"), "{}", list.stdout);
        receiver.unread();

        hookbridge(&nats, &text, &["endpoints", "resume", "crm"]).await.assert_code(0);

        receipt(&nats, "delivered", "second").await;
        publish(&nats, "third").await;
        assert_eq!(receipt(&nats, "*", "third").await["outcome"], "delivered");
        let list = hookbridge(&nats, &text, &["endpoints", "list"]).await;
        assert!(!list.stdout.contains("held"), "{}", list.stdout);
    }
}

#[tokio::test]
async fn a_callback_is_held_by_origin_and_agent() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([Reply::With(429, "retry-after: 3600")]).await);
    let text = crm(&receiver, "");
    let _hookbridge = Hookbridge::start_as(&nats, Roles::Courier, &text).await;
    call_back(&nats, "a", &receiver.url("/one"), "first").await;
    receipt(&nats, "retrying", "first").await;
    receiver.unread();

    call_back(&nats, "a", &receiver.url("/another"), "second").await;
    call_back(&nats, "b", &receiver.url("/one"), "third").await;
    publish(&nats, "fourth").await;

    assert_eq!(receipt(&nats, "*", "second").await["reason"], "retry-after");
    assert_eq!(receipt(&nats, "*", "third").await["outcome"], "delivered");
    assert_eq!(receipt(&nats, "*", "fourth").await["outcome"], "delivered");
    assert_eq!(receiver.unread(), 2);
    let list = async || {
        let list = hookbridge(&nats, &text, &["endpoints", "list"]).await;
        list.stdout.contains("held for agent a until").then_some(())
    };
    eventually("the list to show it", list).await;
    hookbridge(&nats, &text, &["endpoints", "resume", "--callback", &receiver.url("/")]).await.assert_code(0);
    receipt(&nats, "delivered", "second").await;
}

#[tokio::test]
async fn the_line_of_an_ordered_endpoint_waits_as_well() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([Reply::With(429, "retry-after: 5")]).await);
    // The delivery that was answered so is given up, and what comes behind it is not to blame.
    let text = crm(&receiver, "ordered = true\ngive_up_on = [429]");
    let _hookbridge = Hookbridge::start_as(&nats, Roles::Courier, &text).await;

    publish(&nats, "first").await;
    publish(&nats, "second").await;

    assert_eq!(receipt(&nats, "*", "first").await["outcome"], "dead");
    let first = receiver.next().await.at;
    assert_eq!(receipt(&nats, "retrying", "second").await["reason"], "retry-after");
    let after = receiver.next().await.at - first;
    assert!(after >= Duration::from_millis(4950), "{after:?}");
    assert_eq!(receipt(&nats, "delivered", "second").await["attempt"], 1);
}

#[tokio::test]
async fn a_record_of_somebody_else_holds_no_longer_than_the_policy_and_where_there_are_keys_not_at_all() {
    let record = r#"{"state":"held","until":"2999-01-01T00:00:00Z","at":"2998-01-01T00:00:00Z","by":"x"}"#;
    for (key, more) in [("", "max_retry_after = \"3s\""), (KEY, "")] {
        let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
        let hookbridge = Hookbridge::start_as(&nats, Roles::Courier, &format!("{key}{}", crm(&receiver, more))).await;
        let bucket = nats.jetstream().get_key_value("hookbridge_endpoints").await.unwrap();
        bucket.put("hold.e_crm", record.into()).await.unwrap();
        if !key.is_empty() {
            let refused = "hookbridge_egress_records_refused_total";
            eventually("it to be refused", async || (hookbridge.metric(refused).await >= 1.0).then_some(())).await;
        }

        publish(&nats, "m-1").await;

        receipt(&nats, "delivered", "m-1").await;
        receiver.next().await;
        if !key.is_empty() {
            assert_eq!(hookbridge.metric(HELD).await, 0.0);
        }
    }
}
