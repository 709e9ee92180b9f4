//! Every kind of outbox message, the malformed ones included.

use crate::harness::{Hookbridge, Nats, Receiver, Reply};

/// Message headers, as a test writes them.
type Headers = &'static [(&'static str, &'static str)];

fn endpoints(receiver: &Receiver) -> String {
    format!(
        "[endpoints.crm]\nurl = \"{}\"\nsignatures = []\n\
         [endpoints.private]\nurl = \"{}\"\nsignatures = []\nagents = [\"boss\"]\n\
         [callbacks]\nallow = [\"{}\"]\nagents = [\"a\"]\nsecrets = [\"plain:s\"]",
        receiver.url("/crm"),
        receiver.url("/private"),
        receiver.url("/cb")
    )
}

/// The reason and the detail of the one dead letter that a message gets.
async fn dead(nats: &Nats, agent: &str) -> (String, String) {
    let dead = nats.message("DEAD", &format!("dead.{agent}.>")).await;
    let receipt = nats.message("RECEIPTS", &format!("receipts.{agent}.dead.>")).await.json();
    assert_eq!(receipt["reason"].as_str(), dead.header("Hookbridge-Reason"));
    let header = |name| dead.header(name).unwrap().to_owned();
    (header("Hookbridge-Reason"), header("Hookbridge-Detail"))
}

#[tokio::test]
async fn an_envelope_on_the_bare_subject_goes_where_it_says() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let _hookbridge = Hookbridge::start(&nats, &endpoints(&receiver)).await;
    let to_crm = r#"{"endpoint":"crm","id":"e-1","payload":{"b": 1.0,"a":2}}"#;
    let to_callback =
        format!(r#"{{"callback_url":"{}","payload":"text","content_type":"text/plain"}}"#, receiver.url("/cb/1"));

    nats.publish("outbox.a", &[], to_crm).await;
    let delivered = receiver.next().await;
    assert_eq!((delivered.path.as_str(), &delivered.body[..]), ("/crm", &br#"{"b": 1.0,"a":2}"#[..]));
    assert_eq!((delivered.header("webhook-id"), delivered.header("content-type")), ("e-1", "application/json"));

    nats.publish("outbox.a", &[], to_callback).await;
    let delivered = receiver.next().await;
    assert_eq!((delivered.path.as_str(), &delivered.body[..]), ("/cb/1", &b"text"[..]));
    assert!(delivered.header("webhook-id").starts_with("m_"), "{delivered:?}");
    assert_eq!(delivered.header("content-type"), "text/plain");
}

#[tokio::test]
async fn every_kind_of_malformed_message_is_a_dead_letter_with_its_body_and_a_reason() {
    let twice = r#"{"endpoint":"crm","endpoint":"crm","payload":1}"#;
    let cases: [(Headers, &str, &str); 10] = [
        (&[("Hookbridge-Endpoint", "crm"), ("Hookbridge-Task-Id", "t")], "x", "two routing headers"),
        (&[("Hookbridge-Callback-Url", "not a url")], "x", "is not a URL"),
        (&[("nats-msg-id", "x"), ("Hookbridge-Endpoint", "crm")], "x", "Nats-Msg-Id"),
        (&[("content-type", "te\u{1}xt"), ("Hookbridge-Endpoint", "crm")], "x", "content type"),
        (&[], r#"{"endpoint":"crm","callback_url":"https://x/","payload":1}"#, "endpoint and callback_url"),
        (&[], r#"{"endpoint":"crm","task_id":"t","payload":1}"#, "endpoint and task_id"),
        (&[], r#"{"endpoint":"crm"}"#, "needs `payload`"),
        (&[], r#"{"endpoint":"crm","payload":1,"extra":2}"#, "unknown key `extra`"),
        (&[], r#"{"endpoint":7,"payload":1}"#, "must be a text"),
        (&[], twice, "occurs twice"),
    ];
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let _hookbridge = Hookbridge::start(&nats, &endpoints(&receiver)).await;
    for (index, (headers, body, expected)) in cases.into_iter().enumerate() {
        let agent = format!("agent-{index}");
        nats.publish(&format!("outbox.{agent}"), headers, body).await;
        let (reason, detail) = dead(&nats, &agent).await;
        assert_eq!(reason, "malformed", "{body}: {detail}");
        assert!(detail.contains(expected), "{expected:?} is not in {detail:?}");
        let letter = nats.message("DEAD", &format!("dead.{agent}.>")).await;
        assert_eq!(letter.payload, body);
    }
    nats.publish("outbox.bad$name.x", &[], "x").await;
    assert_eq!(dead(&nats, "_").await.0, "malformed");
    assert_eq!(receiver.unread(), 0);
}

#[tokio::test]
async fn nobody_to_send_to_is_unroutable_with_the_nearest_name() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let _hookbridge = Hookbridge::start(&nats, &endpoints(&receiver)).await;
    let cases: [(&str, Headers, &str, &str); 5] = [
        ("b", &[("Hookbridge-Endpoint", "crn")], "x", "did you mean `crm`?"),
        ("c", &[], r#"{"endpoint":"nothing like it","payload":1}"#, "there is no endpoint"),
        ("d", &[("Hookbridge-Task-Id", "t-1")], "x", "there is no task `t-1`"),
        ("e", &[], r#"{"task_id":"t-2","status":"working"}"#, "there is no task `t-2`"),
        ("f", &[], "just text", "names no destination"),
    ];
    for (agent, headers, body, expected) in cases {
        nats.publish(&format!("outbox.{agent}"), headers, body).await;
        let (reason, detail) = dead(&nats, agent).await;
        assert_eq!(reason, "unroutable");
        assert!(detail.contains(expected), "{expected:?} is not in {detail:?}");
    }
    assert_eq!(receiver.unread(), 0);
}

#[tokio::test]
async fn an_agent_that_may_not_is_forbidden() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let _hookbridge = Hookbridge::start(&nats, &endpoints(&receiver)).await;
    nats.publish("outbox.intern", &[("Hookbridge-Endpoint", "private")], "x").await;
    assert_eq!(dead(&nats, "intern").await.0, "forbidden");
    nats.publish("outbox.guest", &[("Hookbridge-Callback-Url", &receiver.url("/cb"))], "x").await;
    assert_eq!(dead(&nats, "guest").await.0, "forbidden");
    nats.publish("outbox.boss", &[("Hookbridge-Endpoint", "private")], "x").await;
    assert_eq!(receiver.next().await.path, "/private");
    assert_eq!(receiver.unread(), 0);
}

#[tokio::test]
async fn ids_with_dots_blanks_and_wildcards_become_safe_and_stay_one_delivery() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let _hookbridge = Hookbridge::start(&nats, &endpoints(&receiver)).await;
    for id in ["a.b", "a b", "*", ">", "receipts.x.>", &"long".repeat(40)] {
        nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", id)], "x").await;
        let delivered = receiver.next().await;
        let safe = delivered.header("webhook-id");
        assert!(safe.starts_with("h_") && safe.len() == 28, "{id:?} became {safe}");
        nats.message("RECEIPTS", &format!("receipts.a.delivered.{safe}")).await;
    }
    assert_eq!(nats.count("RECEIPTS").await, 6);
}

#[tokio::test]
async fn one_id_published_twice_is_one_delivery_whoever_publishes_it() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let _hookbridge = Hookbridge::start(&nats, &endpoints(&receiver)).await;
    let headers = [("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", "same")];
    assert!(!nats.publish("outbox.a", &headers, "first").await);
    assert!(nats.publish("outbox.b", &headers, "second").await, "the ack says that it is a duplicate");
    assert_eq!(receiver.next().await.body, "first");
    nats.message("RECEIPTS", "receipts.a.delivered.same").await;
    assert_eq!(receiver.unread(), 0);
}

#[tokio::test]
async fn two_agents_with_one_envelope_id_keep_their_own_retries() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    for _ in 0..2 {
        receiver.then(Reply::Status(500));
    }
    let text = format!("{}\n[egress]\nretry = [\"1s\"]", endpoints(&receiver));
    let _hookbridge = Hookbridge::start(&nats, &text).await;
    for agent in ["a", "b"] {
        let body = format!(r#"{{"endpoint":"crm","id":"same","payload":"of {agent}"}}"#);
        nats.publish(&format!("outbox.{agent}"), &[], body).await;
        receiver.next().await;
    }
    let mut bodies = [receiver.next().await.body, receiver.next().await.body];
    bodies.sort();
    assert_eq!(bodies, [&b"\"of a\""[..], b"\"of b\""]);
    for agent in ["a", "b"] {
        nats.message("RECEIPTS", &format!("receipts.{agent}.delivered.same")).await;
    }
}

#[tokio::test]
async fn what_others_write_into_retry_is_refused_and_counted() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let hookbridge = Hookbridge::start(&nats, &endpoints(&receiver)).await;
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", "real")], "x").await;
    nats.message("RECEIPTS", "receipts.a.delivered.real").await;
    let pointer = |sequence, token, attempt| {
        vec![
            ("Hookbridge-Outbox-Sequence", sequence),
            ("Hookbridge-Agent", "a"),
            ("Hookbridge-Message-Id", "real"),
            ("Hookbridge-Delivery-Id", "real"),
            ("Hookbridge-Destination", "private"),
            ("Hookbridge-Destination-Token", token),
            ("Hookbridge-Attempt", attempt),
        ]
    };
    nats.publish("retry.due.e_crm.x", &[], "no headers").await;
    nats.publish("retry.due.e_crm.real", &pointer("99", "e_crm", "1"), "").await;
    nats.publish("retry.due.e_private.real", &pointer("1", "e_private", "1"), "").await;
    nats.publish("retry.due.e_crm.other", &pointer("1", "e_crm", "1"), "").await;
    nats.publish("retry.due.e_crm.real", &pointer("1", "e_crm", "0"), "").await;
    nats.publish("retry.due.e_crm.real", &pointer("1", "e_crm", "1001"), "").await;

    let counted = async || (hookbridge.metric("hookbridge_egress_retries_forged_total").await == 6.0).then_some(());
    crate::harness::eventually("six forged messages to be counted", counted).await;
    assert_eq!(receiver.next().await.path, "/crm");
    assert_eq!((receiver.unread(), nats.count("DEAD").await), (0, 0));
    let empty = async || (nats.count("RETRY").await == 0).then_some(());
    crate::harness::eventually("RETRY to be empty", empty).await;
}

#[tokio::test]
async fn a_body_that_fits_no_dead_letter_is_left_out_and_said_so() {
    let nats = Nats::start_with("max_payload: 64KB").await;
    let text = "[streams.events]\nmax_age = \"7d\"";
    let _hookbridge = Hookbridge::start(&nats, text).await;
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "none"), ("Nats-Msg-Id", "big")], vec![b'x'; 50 * 1024]).await;
    let dead = nats.message("DEAD", "dead.a.big").await;
    assert_eq!((dead.header("Hookbridge-Body"), dead.payload.len()), (Some("too-large"), 0));
}

#[tokio::test]
async fn one_envelope_id_twice_is_two_deliveries_and_neither_is_swallowed() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([Reply::Hold]).await);
    let text = format!("{}\n[egress]\ntimeout = \"20s\"", endpoints(&receiver));
    let _hookbridge = Hookbridge::start(&nats, &text).await;
    let body = |text| format!(r#"{{"endpoint":"crm","id":"same","payload":"{text}"}}"#);
    nats.publish("outbox.a", &[], body("first")).await;
    receiver.next().await;
    nats.publish("outbox.a", &[], body("second")).await;
    assert_eq!(receiver.next().await.body, "\"second\"");
    receiver.release();
    nats.messages("RECEIPTS", "receipts.a.delivered.same", 2).await;
}

#[tokio::test]
async fn headers_that_no_client_writes_are_buried_and_block_nobody() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let hookbridge = Hookbridge::start(&nats, &endpoints(&receiver)).await;
    for header in ["X: a\rb", "X y: b", "no colon", "N\u{e9}: b"] {
        nats.publish_raw("outbox.a", header, "kept").await;
    }
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", "good")], "x").await;

    assert_eq!(receiver.next().await.header("webhook-id"), "good");
    nats.message("RECEIPTS", "receipts.a.delivered.good").await;
    for letter in nats.messages("DEAD", "dead.a.*", 4).await {
        assert_eq!((letter.header("Hookbridge-Reason"), &letter.payload[..]), (Some("malformed"), &b"kept"[..]));
    }
    assert_eq!(nats.messages("RECEIPTS", "receipts.a.dead.*", 4).await.len(), 4);
    hookbridge.ready().await;
    assert_eq!(hookbridge.admin("/readyz").await.status, 200);
}

#[tokio::test]
async fn ids_that_look_like_each_others_places_all_wait_and_all_arrive() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted(vec![Reply::Status(500); 3]).await);
    let text = format!("{}\n[egress]\nretry = [\"2s\"]", endpoints(&receiver));
    let _hookbridge = Hookbridge::start(&nats, &text).await;
    // The third is message 3 of OUTBOX, and its place beside `same` must not be that of `same-3`.
    for id in ["same-3", "same", "same"] {
        nats.publish("outbox.a", &[], format!(r#"{{"endpoint":"crm","id":"{id}","payload":1}}"#)).await;
        receiver.next().await;
    }
    nats.messages("RECEIPTS", "receipts.a.retrying.*", 3).await;
    for _ in 0..3 {
        receiver.next().await;
    }
    nats.messages("RECEIPTS", "receipts.a.delivered.*", 3).await;
}
