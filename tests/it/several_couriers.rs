//! Several couriers share the work, and one that dies hands its part over.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use hookbridge::app::Roles;

use crate::harness::{Configuration, Hookbridge, Nats, Seen, Witness, eventually};

/// How long a message may be worked on without a sign of life; then it is somebody else's.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// What a busy machine adds to that.
const MARGIN: Duration = Duration::from_secs(25);

fn endpoint(name: &str, witness: &Witness, more: &str) -> String {
    let url = witness.url(&format!("/{name}"));
    format!("[endpoints.{name}]\nurl = \"{url}\"\nsignatures = []\n{more}\n")
}

fn deliver_everything(_: &str, _: &str, _: usize) -> u16 {
    204
}

/// Every third delivery needs a second attempt.
fn deliver_some_later(_: &str, id: &str, nth: usize) -> u16 {
    if id.ends_with('3') && nth == 1 { 503 } else { 204 }
}

async fn publish(nats: &Nats, agent: &str, endpoint: &str, id: &str) {
    nats.publish(&format!("outbox.{agent}"), &[("Hookbridge-Endpoint", endpoint), ("Nats-Msg-Id", id)], "x").await;
}

/// Waits until nothing of OUTBOX and RETRY is left to come.
async fn done(nats: &Nats) {
    let idle = async |stream: &str| {
        let info = nats.consumer(stream, "courier").await;
        info.is_some_and(|info| info.num_pending == 0 && info.num_ack_pending == 0)
    };
    eventually("all work to be done", async || {
        (idle("OUTBOX").await && idle("RETRY").await && nats.count("RETRY").await == 0).then_some(())
    })
    .await;
}

/// The requests of each delivery.
fn by_delivery(seen: Vec<Seen>) -> HashMap<String, Vec<Seen>> {
    let mut deliveries = HashMap::<_, Vec<_>>::new();
    for seen in seen {
        deliveries.entry(seen.id.clone()).or_default().push(seen);
    }
    deliveries
}

async fn share(couriers: usize) {
    const MESSAGES: usize = 900;
    let (nats, witness) = (Nats::start().await, Witness::start(deliver_some_later).await);
    let text = endpoint("crm", &witness, "retry = [\"200ms\"]");
    let mut running = Vec::new();
    for _ in 0..couriers {
        running.push(Hookbridge::start_as(&nats, Roles::Courier, &text).await);
    }

    for number in 0..MESSAGES {
        publish(&nats, "a", "crm", &format!("m-{number}")).await;
    }
    done(&nats).await;

    let deliveries = by_delivery(witness.seen());
    assert_eq!(deliveries.len(), MESSAGES);
    for (id, seen) in deliveries {
        let expected = if id.ends_with('3') { 2 } else { 1 };
        assert_eq!(seen.len(), expected, "{id} was made more often than it had to be");
    }
    let mut shares = Vec::new();
    for courier in &running {
        let name = "hookbridge_egress_attempts_total{destination=\"crm\",outcome=\"delivered\",error=\"none\"}";
        shares.push(courier.metric(name).await);
    }
    assert_eq!(shares.iter().sum::<f64>(), MESSAGES as f64, "{shares:?}");
    assert!(shares.iter().all(|share| *share >= MESSAGES as f64 / 10.0), "{shares:?}");
}

#[tokio::test]
async fn two_couriers_share_the_work_and_make_no_delivery_twice() {
    share(2).await;
}

#[tokio::test]
async fn three_couriers_share_the_work_and_make_no_delivery_twice() {
    share(3).await;
}

#[tokio::test]
async fn one_that_dies_hands_its_part_over_within_the_ack_wait_and_the_line_it_held_goes_on_in_order() {
    const EACH: usize = 60;
    let (nats, witness) = (Nats::start().await, Witness::start(deliver_everything).await);
    let text = [
        "[egress]\ntimeout = \"90s\"\n".to_owned(),
        endpoint("crm", &witness, ""),
        endpoint("line", &witness, "ordered = true\nagents = [\"o\"]"),
    ];
    let configuration = Configuration::new(&text.concat());
    // The first has work in hand, the head of the line included, before there is a second.
    let first = configuration.courier(&nats);
    first.ready().await;
    witness.hold();
    let mut arrived = witness.arrived();
    for number in 0..EACH {
        publish(&nats, "a", "crm", &format!("first-{number}")).await;
        publish(&nats, "o", "line", &format!("line-{number}")).await;
    }
    crate::harness::within("the first to be at work", arrived.wait_for(|count| *count > EACH)).await.unwrap();
    let second = configuration.courier(&nats);
    second.ready().await;

    first.kill().await;
    let killed = Instant::now();
    let in_flight: HashSet<String> = witness.seen().into_iter().map(|seen| seen.id).collect();
    assert_eq!(in_flight.len(), EACH + 1, "{in_flight:?}");
    witness.release();
    // What is new need not wait for what is lost.
    for number in 0..EACH {
        publish(&nats, "a", "crm", &format!("second-{number}")).await;
    }
    for number in 0..EACH {
        nats.message("RECEIPTS", &format!("receipts.a.delivered.second-{number}")).await;
    }
    assert!(killed.elapsed() < ACK_WAIT, "new work took {:?}", killed.elapsed());
    for number in 0..EACH {
        nats.message("RECEIPTS", &format!("receipts.a.delivered.first-{number}")).await;
        nats.message("RECEIPTS", &format!("receipts.o.delivered.line-{number}")).await;
    }
    let took = killed.elapsed();
    assert!(took < ACK_WAIT + MARGIN, "handing over took {took:?}");

    done(&nats).await;
    let seen = witness.seen();
    let line: Vec<&Seen> = seen.iter().filter(|seen| seen.endpoint == "line").collect();
    let mut order: Vec<&str> = line.iter().map(|seen| seen.id.as_str()).collect();
    order.dedup();
    assert_eq!(order, (0..EACH).map(|number| format!("line-{number}")).collect::<Vec<_>>());
    let times: BTreeMap<String, usize> = by_delivery(seen).into_iter().map(|(id, seen)| (id, seen.len())).collect();
    assert_eq!(times.len(), 3 * EACH);
    for (id, count) in times {
        let expected = if in_flight.contains(&id) { 2 } else { 1 };
        assert_eq!(count, expected, "{id}");
    }
    second.signal("TERM").await;
    second.ended().await.assert_code(0);
}
