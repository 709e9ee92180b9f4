//! Every row of the outcome table, and what agents learn of it.

use std::time::{Duration, Instant};

use data_encoding::BASE64;

use crate::harness::{Hookbridge, Message, Nats, Receiver, Reply, eventually, free_port, sign};

/// An endpoint `crm` at the receiver, signed in both forms with two secrets.
fn crm(receiver: &Receiver) -> String {
    format!(
        "[endpoints.crm]\nurl = \"{}\"\nsecrets = [\"plain:whsec_{}\", \"plain:text secret\"]\n\
         signatures = [\"standard-webhooks\", \"x-signature\"]\nheaders = {{ x-tenant = \"7\" }}\n",
        receiver.url("/hooks"),
        BASE64.encode(b"key bytes")
    )
}

const TO_CRM: [(&str, &str); 2] = [("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", "m-1")];

async fn receipt(nats: &Nats, outcome: &str) -> serde_json::Value {
    nats.message("RECEIPTS", &format!("receipts.a.{outcome}.m-1")).await.json()
}

async fn dead(nats: &Nats) -> Message {
    nats.message("DEAD", "dead.a.m-1").await
}

#[tokio::test]
async fn a_delivery_is_posted_unchanged_and_signed_by_every_secret_in_both_forms() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let _hookbridge = Hookbridge::start(&nats, &crm(&receiver)).await;
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [TO_CRM[0], TO_CRM[1], ("content-type", "text/plain"), ("traceparent", traceparent)];
    let body = [b'{', 0xff, 0x00, b'}'];

    nats.publish("outbox.a", &headers, body.to_vec()).await;

    let delivered = receiver.next().await;
    assert_eq!((delivered.path.as_str(), &delivered.body[..]), ("/hooks", &body[..]));
    for (name, value) in [
        ("webhook-id", "m-1"),
        ("content-type", "text/plain"),
        ("traceparent", traceparent),
        ("x-tenant", "7"),
        ("user-agent", concat!("hookbridge/", env!("CARGO_PKG_VERSION"))),
    ] {
        assert_eq!(delivered.header(name), value, "{name}");
    }
    let timestamp = delivered.header("webhook-timestamp");
    let both = [&b"key bytes"[..], b"text secret"].map(|key| sign::v1(key, "m-1", timestamp, &body)).join(" ");
    assert_eq!(delivered.header("webhook-signature"), both);
    let both = ["key bytes", "text secret"].map(|key| sign::hex(key, &body)).join(", ");
    assert_eq!(delivered.header("x-signature"), both);

    let receipt = receipt(&nats, "delivered").await;
    for (key, value) in
        [("delivery", "m-1"), ("message", "m-1"), ("agent", "a"), ("destination", "crm"), ("outcome", "delivered")]
    {
        assert_eq!(receipt[key], value, "{key}");
    }
    assert_eq!((receipt["attempt"].as_u64(), receipt["status"].as_u64()), (Some(1), Some(204)));
    assert!(receipt["duration_ms"].is_u64(), "{receipt}");
}

#[tokio::test]
async fn any_2xx_is_delivered_and_nothing_else() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let hookbridge = Hookbridge::start(&nats, &format!("{}\n[egress]\nretry = []", crm(&receiver))).await;
    for status in [200, 202, 299, 301, 400, 401, 404, 500, 503, 429] {
        receiver.then(Reply::Status(status));
        let id = format!("s-{status}");
        nats.publish("outbox.a", &[TO_CRM[0], ("Nats-Msg-Id", &id)], "x").await;
        receiver.next().await;
        let outcome = if (200..300).contains(&status) { "delivered" } else { "dead" };
        let receipt = nats.message("RECEIPTS", &format!("receipts.a.{outcome}.{id}")).await.json();
        assert_eq!(receipt["status"], status);
    }
    assert_eq!(receiver.unread(), 0, "a redirect was followed");
    assert_eq!(nats.count("DEAD").await, 7);
    let name = "hookbridge_egress_dead_letters_total{destination=\"crm\",reason=\"exhausted\"}";
    assert_eq!(hookbridge.metric(name).await, 7.0);
}

#[tokio::test]
async fn a_failure_is_retried_by_the_schedule_with_the_same_id_and_a_new_signature() {
    let nats = Nats::start().await;
    // A kept connection that closes is followed by a fresh one within the same attempt.
    let mut receiver = Receiver::scripted([Reply::Status(500), Reply::Close, Reply::Close]).await;
    let text = format!("{}\n[egress]\nretry = [\"1200ms\", \"300ms\"]", crm(&receiver));
    let _hookbridge = Hookbridge::start(&nats, &text).await;

    nats.publish("outbox.a", &TO_CRM, "body").await;

    let (first, second) = (receiver.next().await, receiver.next().await);
    let (again, third) = (receiver.next().await, receiver.next().await);
    assert!(second.at - first.at >= Duration::from_millis(1080), "{:?}", second.at - first.at);
    assert_eq!(second.headers, again.headers);
    for attempt in [&first, &second, &again, &third] {
        assert_eq!((attempt.header("webhook-id"), &attempt.body[..]), ("m-1", &b"body"[..]));
        let signature = sign::v1(b"key bytes", "m-1", attempt.header("webhook-timestamp"), b"body");
        assert!(attempt.header("webhook-signature").starts_with(&signature));
    }
    assert_ne!(first.header("webhook-timestamp"), second.header("webhook-timestamp"));
    let retrying = nats.messages("RECEIPTS", "receipts.a.retrying.m-1", 2).await;
    assert_eq!(retrying[0].json()["error_class"], "status");
    assert_eq!(retrying[1].json()["error_class"], "protocol");
    assert!(retrying[0].json()["next_attempt_at"].is_string());
    assert_eq!(receipt(&nats, "delivered").await["attempt"], 3);
}

#[tokio::test]
async fn after_the_last_attempt_a_delivery_is_dead_and_the_dead_letter_has_everything() {
    let nats = Nats::start().await;
    let mut receiver = Receiver::scripted([Reply::Status(500), Reply::Status(502), Reply::Status(503)]).await;
    let _hookbridge = Hookbridge::start(&nats, &crm(&receiver)).await;
    let headers = [TO_CRM[0], TO_CRM[1], ("content-type", "text/plain"), ("x-own", "kept")];

    nats.publish("outbox.a", &headers, "the body").await;

    for _ in 0..3 {
        receiver.next().await;
    }
    let dead = dead(&nats).await;
    assert_eq!(dead.payload, "the body");
    for (name, value) in [
        ("Hookbridge-Reason", "exhausted"),
        ("Hookbridge-Destination", "crm"),
        ("Hookbridge-Attempt", "3"),
        ("Hookbridge-Endpoint", "crm"),
        ("Hookbridge-Subject", "outbox.a"),
        ("content-type", "text/plain"),
        ("x-own", "kept"),
    ] {
        assert_eq!(dead.header(name), Some(value), "{name}");
    }
    let receipt = receipt(&nats, "dead").await;
    assert_eq!((receipt["reason"].as_str(), receipt["status"].as_u64()), (Some("exhausted"), Some(503)));
    assert_eq!(nats.count("RETRY").await, 0);
}

#[tokio::test]
async fn retry_after_is_obeyed_and_counts_as_an_attempt() {
    let nats = Nats::start().await;
    let busy =
        [Reply::With(429, "retry-after: 1"), Reply::With(503, "retry-after: 1"), Reply::With(429, "retry-after: 1")];
    let mut receiver = Receiver::scripted(busy).await;
    let _hookbridge = Hookbridge::start(&nats, &crm(&receiver)).await;

    nats.publish("outbox.a", &TO_CRM, "x").await;

    let first = receiver.next().await.at;
    assert!(receiver.next().await.at - first >= Duration::from_secs(1));
    receiver.next().await;
    assert_eq!(receipt(&nats, "dead").await["attempt"], 3);
}

#[tokio::test]
async fn a_receiver_that_hangs_closes_or_talks_nonsense_costs_an_attempt_and_no_more_than_the_timeout() {
    for (reply, error) in [(Reply::Hang, "timeout"), (Reply::Garbage, "protocol"), (Reply::Close, "protocol")] {
        let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([reply.clone()]).await);
        let text = format!("{}\n[egress]\ntimeout = \"500ms\"", crm(&receiver));
        let _hookbridge = Hookbridge::start(&nats, &text).await;
        nats.publish("outbox.a", &TO_CRM, "x").await;
        receiver.next().await;
        let retrying = receipt(&nats, "retrying").await;
        assert_eq!(retrying["error_class"], error, "{reply:?}: {retrying}");
        assert_eq!(receipt(&nats, "delivered").await["attempt"], 2);
    }
}

#[tokio::test]
async fn an_answer_of_2_gb_is_not_read_and_one_that_stalls_costs_no_attempt() {
    for reply in [Reply::Endless, Reply::Stall] {
        let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([reply]).await);
        let text = format!("{}\n[egress]\ntimeout = \"1s\"", crm(&receiver));
        let _hookbridge = Hookbridge::start(&nats, &text).await;
        nats.publish("outbox.a", &TO_CRM, "x").await;
        receiver.next().await;
        assert_eq!(receipt(&nats, "delivered").await["attempt"], 1, "the status is the answer");
        assert_eq!(receiver.unread(), 0);
    }
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_or_not_resolved_is_tried_again() {
    let nats = Nats::start().await;
    let closed = free_port();
    let no_tls = Receiver::scripted([Reply::Garbage]).await;
    let text = format!(
        "[endpoints.closed]\nurl = \"http://127.0.0.1:{closed}/\"\nsignatures = []\n\
         [endpoints.unknown]\nurl = \"http://no-such-host.invalid/\"\nsignatures = []\n\
         [endpoints.no-tls]\nurl = \"https://127.0.0.1:{}/\"\nsignatures = []\n\
         [egress]\nretry = []\ntimeout = \"20s\"",
        no_tls.port()
    );
    let _hookbridge = Hookbridge::start(&nats, &text).await;
    for (endpoint, expected) in [("closed", "connect"), ("unknown", "dns"), ("no-tls", "tls")] {
        nats.publish("outbox.a", &[("Hookbridge-Endpoint", endpoint), ("Nats-Msg-Id", endpoint)], "x").await;
        let receipt = nats.message("RECEIPTS", &format!("receipts.a.dead.{endpoint}")).await.json();
        assert_eq!((receipt["error_class"].as_str(), receipt["reason"].as_str()), (Some(expected), Some("exhausted")));
    }
}

#[tokio::test]
async fn gone_is_dead_at_once_disables_the_endpoint_and_ends_what_waits_for_it() {
    let nats = Nats::start().await;
    let mut receiver = Receiver::scripted([Reply::Status(500), Reply::Status(410)]).await;
    let text = format!("{}\n[egress]\nretry = [\"1h\"]", crm(&receiver));
    let hookbridge = Hookbridge::start(&nats, &text).await;
    nats.publish("outbox.a", &[TO_CRM[0], ("Nats-Msg-Id", "waits")], "x").await;
    nats.message("RECEIPTS", "receipts.a.retrying.waits").await;

    nats.publish("outbox.a", &TO_CRM, "x").await;

    assert_eq!(receipt(&nats, "dead").await["reason"], "gone");
    let swept = nats.message("RECEIPTS", "receipts.a.dead.waits").await.json();
    assert_eq!(swept["reason"], "endpoint-disabled");
    eventually("RETRY to be empty", async || (nats.count("RETRY").await == 0).then_some(())).await;

    // It holds over a restart, and ends when the URL changes.
    hookbridge.stop().await.unwrap();
    let hookbridge = Hookbridge::start(&nats, &text).await;
    nats.publish("outbox.a", &[TO_CRM[0], ("Nats-Msg-Id", "later")], "x").await;
    let later = nats.message("RECEIPTS", "receipts.a.dead.later").await.json();
    assert_eq!(later["reason"], "endpoint-disabled");
    receiver.next().await;
    receiver.next().await;
    assert_eq!(receiver.unread(), 0);
    hookbridge.stop().await.unwrap();

    let _hookbridge = Hookbridge::start(&nats, &text.replace("/hooks\"", "/moved\"")).await;
    nats.publish("outbox.a", &[TO_CRM[0], ("Nats-Msg-Id", "moved")], "x").await;
    assert_eq!(receiver.next().await.path, "/moved");
}

#[tokio::test]
async fn a_callback_that_is_gone_leaves_other_callbacks_untouched() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([Reply::Status(410)]).await);
    let text = format!("[callbacks]\nallow = [\"{}\"]\nsecrets = [\"plain:s\"]", receiver.url("/cb/"));
    let _hookbridge = Hookbridge::start(&nats, &text).await;
    let to = |id| [("Hookbridge-Callback-Url", receiver.url("/cb/1?token=hidden")), ("Nats-Msg-Id", id)];
    let publish = async |id: String| {
        let headers = to(id);
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        nats.publish("outbox.a", &headers, "x").await;
    };

    publish("m-1".to_owned()).await;
    let dead = receipt(&nats, "dead").await;
    assert_eq!(
        (dead["reason"].as_str(), dead["destination"].as_str()),
        (Some("gone"), Some(&receiver.url("/cb/1")[..]))
    );
    publish("m-2".to_owned()).await;
    nats.message("RECEIPTS", "receipts.a.delivered.m-2").await;
    assert_eq!(receiver.next().await.path, "/cb/1?token=hidden");
}

#[tokio::test]
async fn a_message_whose_body_is_gone_when_its_retry_is_due_is_dead_and_said_so() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([Reply::Status(500)]).await);
    let text = format!("{}\n[egress]\nretry = [\"1s\"]", crm(&receiver));
    let _hookbridge = Hookbridge::start(&nats, &text).await;
    nats.publish("outbox.a", &TO_CRM, "x").await;
    receiver.next().await;
    nats.message("RECEIPTS", "receipts.a.retrying.m-1").await;

    nats.jetstream().get_stream("OUTBOX").await.unwrap().purge().await.unwrap();

    let receipt = receipt(&nats, "dead").await;
    assert_eq!((receipt["reason"].as_str(), receipt["attempt"].as_u64()), (Some("expired"), Some(1)));
    let dead = dead(&nats).await;
    assert_eq!((dead.header("Hookbridge-Destination"), dead.payload.len()), (Some("crm"), 0));
}

#[tokio::test]
async fn one_connection_carries_many_deliveries() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let _hookbridge = Hookbridge::start(&nats, &crm(&receiver)).await;
    let begun = Instant::now();
    for index in 0..50 {
        nats.publish("outbox.a", &[TO_CRM[0], ("Nats-Msg-Id", &format!("n-{index}"))], "x").await;
        receiver.next().await;
    }
    let connections = receiver.connections();
    assert!(connections <= 2, "{connections} connections for 50 deliveries in {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_signature_form_of_the_operators_own_is_a_table() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let form = "{ header = \"X-Own\", prefix = \"v0=\", algorithm = \"hmac-sha256\", encoding = \"hex\", \
                signed = \"v0:{timestamp}:{body}\", timestamp = \"header:webhook-timestamp\" }";
    let text =
        format!("[endpoints.crm]\nurl = \"{}\"\nsecrets = [\"plain:s\"]\nsignatures = [{form}]", receiver.url("/"));
    let _hookbridge = Hookbridge::start(&nats, &text).await;
    nats.publish("outbox.a", &TO_CRM, "body").await;
    let delivered = receiver.next().await;
    let signed = format!("v0:{}:body", delivered.header("webhook-timestamp"));
    assert_eq!(delivered.header("x-own"), sign::hex("s", signed.as_bytes()).replace("sha256=", "v0="));
    assert_eq!((delivered.header("webhook-signature"), delivered.header("webhook-id")), ("", "m-1"));
}

#[tokio::test]
async fn every_row_of_the_outcome_table_is_counted() {
    let nats = Nats::start().await;
    let script =
        [Reply::Status(204), Reply::Status(500), Reply::Close, Reply::Close, Reply::With(429, "retry-after: 1")];
    let receiver = Receiver::scripted(script).await;
    let text = format!(
        "{}[callbacks]\nallow = [\"*\"]\nsecrets = [\"plain:s\"]\n[egress]\nretry = [\"100ms\", \"100ms\", \"100ms\"]",
        crm(&receiver)
    );
    let hookbridge = Hookbridge::start(&nats, &text).await;
    nats.publish("outbox.a", &TO_CRM, "x").await;
    nats.message("RECEIPTS", "receipts.a.delivered.m-1").await;
    nats.publish("outbox.a", &[TO_CRM[0], ("Nats-Msg-Id", "m-2")], "x").await;
    nats.message("RECEIPTS", "receipts.a.delivered.m-2").await;
    receiver.then(Reply::Status(410));
    nats.publish("outbox.a", &[TO_CRM[0], ("Nats-Msg-Id", "m-3")], "x").await;
    nats.message("RECEIPTS", "receipts.a.dead.m-3").await;
    nats.publish("outbox.a", &[TO_CRM[0], ("Nats-Msg-Id", "m-4")], "x").await;
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "none")], "x").await;
    nats.publish("outbox.a", &[("Hookbridge-Callback-Url", "http://10.0.0.1/")], "x").await;
    nats.publish("outbox.a", &[("Hookbridge-Callback-Url", "no url")], "x").await;
    nats.messages("RECEIPTS", "receipts.a.dead.*", 5).await;

    let attempts = "hookbridge_egress_attempts_total{destination=\"crm\",";
    let dead = "hookbridge_egress_dead_letters_total{destination=";
    for (name, count) in [
        (format!("{attempts}outcome=\"delivered\",error=\"none\"}}"), 2.0),
        (format!("{attempts}outcome=\"retrying\",error=\"status\"}}"), 2.0),
        (format!("{attempts}outcome=\"retrying\",error=\"protocol\"}}"), 1.0),
        (format!("{attempts}outcome=\"dead\",error=\"status\"}}"), 1.0),
        (format!("{dead}\"crm\",reason=\"gone\"}}"), 1.0),
        (format!("{dead}\"crm\",reason=\"endpoint-disabled\"}}"), 1.0),
        (format!("{dead}\"\",reason=\"unroutable\"}}"), 1.0),
        (format!("{dead}\"callback\",reason=\"forbidden\"}}"), 1.0),
        (format!("{dead}\"\",reason=\"malformed\"}}"), 1.0),
    ] {
        let counted = async || (hookbridge.metric(&name).await == count).then_some(());
        eventually(&name, counted).await;
    }
}

#[tokio::test]
async fn a_delivery_that_waited_under_a_longer_schedule_is_made_under_a_shorter_one() {
    let (nats, mut receiver) =
        (Nats::start().await, Receiver::scripted([Reply::Status(500), Reply::Status(500)]).await);
    let longer = format!("{}\n[egress]\nretry = [\"100ms\", \"2s\"]", crm(&receiver));
    let hookbridge = Hookbridge::start(&nats, &longer).await;
    nats.publish("outbox.a", &TO_CRM, "x").await;
    receiver.next().await;
    receiver.next().await;
    hookbridge.stop().await.unwrap();

    let _hookbridge = Hookbridge::start(&nats, &format!("{}\n[egress]\nretry = []", crm(&receiver))).await;

    assert_eq!(receiver.next().await.header("webhook-id"), "m-1");
    assert_eq!(receipt(&nats, "delivered").await["attempt"], 3);
}

#[tokio::test]
async fn an_endpoint_has_waits_hopeless_statuses_and_ages_of_its_own() {
    let (nats, receiver) = (Nats::start().await, Receiver::start().await);
    receiver.otherwise(Reply::Status(401));
    let endpoint = |name: &str, more: &str| {
        format!("[endpoints.{name}]\nurl = \"{}\"\nsignatures = []\n{more}\n", receiver.url("/"))
    };
    let table = "retry = { first = \"50ms\", factor = 2.0, longest = \"100ms\", attempts = 4 }";
    let config = [
        endpoint("growing", table),
        endpoint("hopeless", "give_up_on = [400, 401]"),
        endpoint("old", "retry = [\"10s\", \"10s\"]\nmax_age = \"300ms\""),
    ];
    let _hookbridge = Hookbridge::start(&nats, &config.concat()).await;
    for name in ["growing", "hopeless", "old"] {
        nats.publish("outbox.a", &[("Hookbridge-Endpoint", name), ("Nats-Msg-Id", name)], "x").await;
    }

    for (name, reason, attempts) in [("growing", "exhausted", 4), ("hopeless", "refused", 1), ("old", "exhausted", 2)] {
        let receipt = nats.message("RECEIPTS", &format!("receipts.a.dead.{name}")).await.json();
        assert_eq!((receipt["reason"].as_str(), receipt["attempt"].as_u64()), (Some(reason), Some(attempts)), "{name}");
    }
}

#[tokio::test]
async fn a_retry_that_is_due_before_its_attempt_is_written_down_does_not_wait_for_the_ack_wait() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([Reply::Status(500)]).await);
    let _hookbridge = Hookbridge::start(&nats, &format!("{}\nretry = [\"50ms\"]", crm(&receiver))).await;
    // A receipt of a retry that is not taken is tried for a quarter of a minute; the delivery is in hand meanwhile.
    let mut receipts = nats.jetstream().get_stream("RECEIPTS").await.unwrap().get_info().await.unwrap().config;
    receipts.max_bytes = 1;
    receipts.discard = async_nats::jetstream::stream::DiscardPolicy::New;
    nats.jetstream().update_stream(&receipts).await.unwrap();

    nats.publish("outbox.a", &TO_CRM, "x").await;

    let (first, second) = (receiver.next().await.at, receiver.next().await.at);
    assert!(second - first < Duration::from_secs(25), "the retry came after {:?}", second - first);
}
