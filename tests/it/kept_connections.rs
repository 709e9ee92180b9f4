//! Connections that senders keep: how long they may be idle, and which one makes room.

use std::time::Duration;

use crate::harness::{Configuration, Hookbridge, Nats, Wire, eventually, webhook};

fn open(gateway: &str) -> String {
    format!("[gateway]\nlisten = \"127.0.0.1:0\"\n{gateway}\n[sources.open]\nverify = \"none\"")
}

async fn closed(hookbridge: &Hookbridge, reason: &str) -> f64 {
    hookbridge.metric(&format!("hookbridge_ingress_idle_closed_total{{reason=\"{reason}\"}}")).await
}

#[tokio::test]
async fn a_connection_that_was_idle_for_longer_than_header_timeout_answers_the_next_request() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, &open("header_timeout = \"300ms\"")).await;
    let (mut kept, mut unused) = (Wire::connect(&hookbridge.url("")).await, Wire::connect(&hookbridge.url("")).await);
    let mut stray = Wire::connect(&hookbridge.url("")).await;
    kept.post().await;
    stray.post().await;
    // Some old clients end a body with a line end that is not counted.
    stray.write("\r\n").await;

    assert!(kept.is_silent_for(Duration::from_secs(1)).await, "it was closed");
    for wire in [&mut kept, &mut unused, &mut stray] {
        wire.post().await;
        wire.post().await;
    }
    assert_eq!(nats.count("EVENTS").await, 8);
    assert_eq!(hookbridge.metric("hookbridge_ingress_connections").await, 3.0);
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_idle_timeout_whether_or_not_it_was_used() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, &open("idle_timeout = \"300ms\"")).await;
    let (mut kept, mut unused) = (Wire::connect(&hookbridge.url("")).await, Wire::connect(&hookbridge.url("")).await);
    kept.post().await;
    kept.assert_ends().await;
    unused.assert_ends().await;
    assert_eq!(closed(&hookbridge, "idle").await, 2.0);
}

#[tokio::test]
async fn headers_have_their_time_from_their_first_byte() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, &open("header_timeout = \"2s\"")).await;
    let mut wire = Wire::connect(&hookbridge.url("")).await;
    wire.post().await;
    // Idle and slow take longer than the limit together, and each by itself does not.
    for _ in 0..2 {
        let text = webhook();
        let (first, second) = text.split_at(20);
        assert!(wire.is_silent_for(Duration::from_millis(1200)).await, "it was closed while idle");
        wire.write(first).await;
        assert!(wire.is_silent_for(Duration::from_millis(1200)).await, "it was given up too early");
        wire.write(second).await;
        assert!(wire.answer().await.is_some_and(|answer| answer.starts_with("HTTP/1.1 202 ")));
    }
    wire.write("POST /hooks/open HT").await;
    let answer = wire.answer().await.expect("an answer to slow headers");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    wire.assert_ends().await;
    assert_eq!(nats.count("EVENTS").await, 3);
}

#[tokio::test]
async fn the_beginning_of_a_request_behind_another_one_is_kept_and_has_its_time() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, &open("header_timeout = \"2s\"")).await;
    let mut wire = Wire::connect(&hookbridge.url("")).await;
    let text = webhook();
    let (first, second) = text.split_at(20);
    wire.write(&format!("{}{first}", webhook())).await;
    assert!(wire.answer().await.is_some());
    // By now the connection would be idle if nothing had followed.
    assert!(wire.is_silent_for(Duration::from_millis(700)).await);
    wire.write(second).await;
    assert!(wire.answer().await.is_some_and(|answer| answer.starts_with("HTTP/1.1 202 ")));
    wire.post().await;

    wire.write(&format!("{}{first}", webhook())).await;
    assert!(wire.answer().await.is_some());
    let answer = wire.answer().await.expect("an answer to slow headers");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(nats.count("EVENTS").await, 4);
}

#[tokio::test]
async fn at_max_connections_the_longest_idle_connection_makes_room_and_no_other() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, &open("max_connections = 4")).await;
    let url = hookbridge.url("");
    let text = webhook();
    let (head, rest) = text.split_at(text.len() - 2);
    let mut busy = Wire::connect(&url).await;
    busy.write(head).await;
    let begun = async || (hookbridge.metric("hookbridge_ingress_body_bytes").await == 6.0).then_some(());
    eventually("the request to have begun", begun).await;
    let mut slow = Wire::connect(&url).await;
    slow.post().await;
    slow.write("POST /hooks/open HT").await;
    let (mut older, mut younger) = (Wire::connect(&url).await, Wire::connect(&url).await);
    younger.post().await;
    older.post().await;
    younger.post().await;

    let mut fifth = Wire::connect(&url).await;
    fifth.post().await;
    older.assert_ends().await;
    younger.post().await;
    fifth.post().await;
    assert_eq!(closed(&hookbridge, "max-connections").await, 1.0);

    // `fifth` was used last; a sixth takes the place of `younger`.
    let mut sixth = Wire::connect(&url).await;
    sixth.post().await;
    younger.assert_ends().await;
    slow.write("TP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await;
    assert!(slow.answer().await.is_some_and(|answer| answer.starts_with("HTTP/1.1 202 ")), "headers had begun");
    busy.write(rest).await;
    assert!(busy.answer().await.is_some_and(|answer| answer.starts_with("HTTP/1.1 202 ")));
    assert_eq!(closed(&hookbridge, "max-connections").await, 2.0);
}

#[tokio::test]
async fn connections_that_nobody_uses_do_not_keep_a_webhook_out() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, &open("max_connections = 8")).await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(Wire::connect(&hookbridge.url("")).await);
    }
    let mut wire = Wire::connect(&hookbridge.url("")).await;
    wire.post().await;
    assert_eq!(hookbridge.metric("hookbridge_ingress_connections").await, 8.0);
}

#[tokio::test]
async fn a_request_that_arrives_as_the_idle_time_ends_is_answered() {
    let nats = Nats::start().await;
    let gateway = Configuration::new(&open("idle_timeout = \"1s\"")).gateway(&nats);
    let url = gateway.gateway().await;
    let mut wires = Vec::new();
    for _ in 0..20 {
        let mut wire = Wire::connect(&url).await;
        wire.post().await;
        wires.push(wire);
    }
    wires.extend([Wire::connect(&url).await, Wire::connect(&url).await]);
    // The gateway stands still until the time of all has passed; the requests are in its sockets before it goes on.
    gateway.pause().await;
    for wire in &mut wires {
        wire.write(&webhook()).await;
    }
    assert!(wires[0].is_silent_for(Duration::from_millis(1500)).await);
    gateway.go_on().await;
    for wire in &mut wires {
        let answer = wire.answer().await.expect("a request that had arrived was dropped");
        assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    }
}

#[tokio::test]
async fn a_connection_on_which_a_request_has_arrived_is_not_closed_to_make_room() {
    let nats = Nats::start().await;
    let gateway = Configuration::new(&open("max_connections = 3")).gateway(&nats);
    let url = gateway.gateway().await;
    let (mut first, mut second) = (Wire::connect(&url).await, Wire::connect(&url).await);
    let mut third = Wire::connect(&url).await;
    for wire in [&mut first, &mut second, &mut third] {
        wire.post().await;
        assert!(wire.is_silent_for(Duration::from_millis(300)).await);
    }
    gateway.pause().await;
    first.write(&webhook()).await;
    second.write(&webhook()).await;
    let mut fourth = Wire::connect(&url).await;
    fourth.write(&webhook()).await;
    gateway.go_on().await;
    for wire in [&mut first, &mut second, &mut fourth] {
        let answer = wire.answer().await.expect("a request that had arrived was dropped");
        assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    }
}
