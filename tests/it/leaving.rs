//! A process that is asked to stop: first it says so, then it closes its port, and no request that has arrived is lost.

use std::time::Duration;

use crate::harness::{Answer, Configuration, Nats, Program, Receiver, Reply, Wire, eventually, request, webhook};

const OPEN: &str = "[sources.open]\nverify = \"none\"";

async fn admin(program: &Program, page: &str) -> Answer {
    request("GET", &format!("{}{page}", program.admin().await), &[], "").await
}

fn says_close(answer: &str) -> bool {
    answer.contains("\r\nconnection: close\r\n")
}

#[tokio::test]
async fn during_the_delay_nothing_is_ready_and_everything_is_served_until_a_second_signal() {
    let nats = Nats::start().await;
    let configuration = Configuration::new(&format!("shutdown_delay = \"1h\"\n{OPEN}"));
    let gateway = configuration.gateway(&nats);
    gateway.ready().await;
    let url = gateway.gateway().await;
    let (mut kept, mut busy, mut idle) =
        (Wire::connect(&url).await, Wire::connect(&url).await, Wire::connect(&url).await);
    assert!(!says_close(&kept.post().await));
    idle.post().await;
    let text = webhook();
    let (head, rest) = text.split_at(text.len() - 2);
    busy.write(head).await;
    let is_in = async || admin(&gateway, "/metrics").await.text().contains("ingress_body_bytes 6").then_some(());
    eventually("the request to have begun", is_in).await;

    gateway.signal("TERM").await;
    let unready = async || (admin(&gateway, "/readyz").await.status == 503).then_some(());
    eventually("the process to be unready", unready).await;
    assert_eq!(admin(&gateway, "/readyz").await.text(), "shutting down\n");
    assert_eq!(admin(&gateway, "/livez").await.status, 200);
    assert!(admin(&gateway, "/metrics").await.text().contains("hookbridge_nats_ready 0\n"));
    let mut new = Wire::connect(&url).await;
    for wire in [&mut kept, &mut new] {
        let answer = wire.post().await;
        assert!(says_close(&answer), "{answer}");
        wire.assert_ends().await;
    }
    busy.write(rest).await;
    let answer = busy.answer().await.expect("an answer to what was in progress");
    assert!(answer.starts_with("HTTP/1.1 202 ") && says_close(&answer), "{answer}");
    assert!(idle.is_silent_for(Duration::from_millis(300)).await, "an idle connection is closed with the port");

    gateway.signal("TERM").await;
    let refused = async || Wire::try_connect(&url).await.is_none().then_some(());
    eventually("the port to close", refused).await;
    gateway.ended().await.assert_code(0);
    idle.assert_ends().await;
    assert_eq!(nats.count("EVENTS").await, 5);
}

#[tokio::test]
async fn the_delay_ends_by_itself_and_without_one_the_port_closes_at_once() {
    let nats = Nats::start().await;
    for delay in ["300ms", "0s"] {
        let configuration = Configuration::new(&format!("shutdown_delay = \"{delay}\"\n{OPEN}"));
        let gateway = configuration.gateway(&nats);
        gateway.ready().await;
        gateway.signal("INT").await;
        let ended = gateway.ended().await;
        assert_eq!(ended.stderr.contains("Shutting down in 300ms"), delay == "300ms", "{ended}");
        ended.assert_code(0);
    }
}

#[tokio::test]
async fn a_courier_goes_on_during_the_delay() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let text =
        format!("shutdown_delay = \"1h\"\n{OPEN}\n[endpoints.crm]\nurl = \"{}\"\nsignatures = []", receiver.url("/"));
    let program = Configuration::new(&text).serve(&nats);
    program.ready().await;
    program.signal("TERM").await;
    program.complains("Shutting down in 3600s").await;

    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", "m-1")], "x").await;
    assert_eq!(receiver.next().await.header("webhook-id"), "m-1");
    nats.message("RECEIPTS", "receipts.a.delivered.m-1").await;
    program.signal("TERM").await;
    program.ended().await.assert_code(0);
}

#[tokio::test]
async fn the_signal_after_the_one_that_ends_the_delay_stops_at_once() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([Reply::Hang]).await);
    let endpoint = format!("[endpoints.crm]\nurl = \"{}\"\nsignatures = []\ntimeout = \"1h\"", receiver.url("/"));
    let text = format!("shutdown_delay = \"1h\"\nshutdown_grace = \"1h\"\n{endpoint}\nretry = []");
    let program = Configuration::new(&text).serve(&nats);
    program.ready().await;
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm")], "x").await;
    receiver.next().await;
    program.signal("TERM").await;
    program.complains("Shutting down in 3600s").await;
    program.signal("TERM").await;
    program.complains("Stopping: finishing what is held").await;
    program.signal("TERM").await;
    let ended = program.ended().await;
    assert!(ended.stderr.contains("stopped at once by a second signal"), "{ended}");
    ended.assert_code(1);
}

#[tokio::test]
async fn what_has_arrived_when_the_signal_comes_is_answered_on_kept_and_on_new_connections() {
    let nats = Nats::start().await;
    for round in 0..3 {
        let gateway = Configuration::new(OPEN).gateway(&nats);
        gateway.ready().await;
        let url = gateway.gateway().await;
        let mut wires = Vec::new();
        for index in 0..30 {
            let mut wire = Wire::connect(&url).await;
            if index % 3 > 0 {
                wire.post().await;
            }
            wires.push(wire);
        }
        // Half of them are parked, the others have been used a moment ago.
        assert!(wires[0].is_silent_for(Duration::from_millis(200)).await);
        for wire in &mut wires[15..] {
            wire.post().await;
        }
        // The gateway stands still; what is sent now is in its sockets, and in its port's queue, when it finds the
        // signal.
        gateway.pause().await;
        gateway.signal("TERM").await;
        let mut rests = Vec::new();
        for (index, wire) in wires.iter_mut().enumerate() {
            let text = webhook();
            let (begins, rest) = text.split_at(if index % 5 == 0 { 20 } else { text.len() });
            wire.write(begins).await;
            rests.push(rest.to_owned());
        }
        for _ in 0..30 {
            let mut wire = Wire::connect(&url).await;
            wire.write(&webhook()).await;
            wires.push(wire);
        }
        gateway.go_on().await;
        for (wire, rest) in wires.iter_mut().zip(&rests) {
            wire.write(rest).await;
        }
        for (index, wire) in wires.iter_mut().enumerate() {
            let answer = wire.answer().await.unwrap_or_else(|| panic!("round {round}: request {index} got no answer"));
            assert!(answer.starts_with("HTTP/1.1 202 ") && says_close(&answer), "{answer}");
            wire.assert_ends().await;
        }
        gateway.ended().await.assert_code(0);
    }
}

#[tokio::test]
async fn senders_that_keep_sending_lose_no_request_to_a_stop() {
    let nats = Nats::start().await;
    for _ in 0..5 {
        let gateway = Configuration::new(OPEN).gateway(&nats);
        gateway.ready().await;
        let url = gateway.gateway().await;
        let sender = |url: String| async move {
            let mut answered = 0;
            // Until the port is closed.
            while let Some(mut wire) = Wire::try_connect(&url).await {
                loop {
                    wire.write(&webhook()).await;
                    let Some(answer) = wire.answer().await else { return (answered, false) };
                    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
                    answered += 1;
                    if says_close(&answer) {
                        break;
                    }
                }
            }
            (answered, true)
        };
        let senders: Vec<_> = (0..16).map(|_| tokio::spawn(sender(url.clone()))).collect();
        let stored = async || (nats.count("EVENTS").await > 200).then_some(());
        eventually("senders to be under way", stored).await;
        gateway.signal("TERM").await;
        for sender in senders {
            let (answered, is_complete) = sender.await.unwrap();
            assert!(is_complete, "a request got no answer after {answered} others");
        }
        gateway.ended().await.assert_code(0);
        nats.jetstream().get_stream("EVENTS").await.unwrap().purge().await.unwrap();
    }
}
