//! What RETRY has lost is found in the receipts and in the tasks, and has an end all the same: scheduled again, or dead
//! where OUTBOX has lost it, too.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::harness::{Configuration, Hookbridge, Nats, Receiver, Reply, eventually, run};
use crate::tasks::{SHOP, shop};

/// How many deliveries wait.
const WAITING: usize = 50;

/// A receiver that has failed every delivery once, so that all of them wait.
struct Failing {
    nats: Nats,
    receiver: Receiver,
    hookbridge: Hookbridge,
    text: String,
}

impl Failing {
    /// `every` is how often the courier repairs.
    async fn open(every: &str) -> Self {
        let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
        receiver.otherwise(Reply::Status(503));
        let text = format!(
            r#"
            {}
            [egress]
            retry = ["12s", "12s", "12s", "12s", "12s", "12s"]
            breaker = "none"
            repair_every = "{every}"
            [endpoints.crm]
            url = "{}"
            signatures = []
            "#,
            shop(&receiver),
            receiver.url("/crm")
        );
        let hookbridge = Hookbridge::start(&nats, &text).await;
        for number in 0..WAITING {
            let id = format!("w-{number}");
            nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", &id)], "{}").await;
        }
        for _ in 0..WAITING {
            receiver.next().await;
        }
        nats.messages("RECEIPTS", "receipts.a.retrying.*", WAITING).await;
        Self { nats, receiver, hookbridge, text }
    }

    /// Waits until everything waits in RETRY, each as a schedule.
    async fn all_wait(&self, count: usize) {
        eventually("everything to wait", async || {
            let waiting = self.nats.retries().await;
            let all = waiting.len() == count && waiting.iter().all(|(_, at)| at.subject.starts_with("retry.at."));
            all.then_some(())
        })
        .await;
    }

    /// Waits until every delivery has ended, and counts how. Of the receiver's requests none came twice.
    async fn all_end(&mut self) -> (usize, usize) {
        let (delivered, dead) = eventually("every delivery to have an end", async || {
            let receipts = self.nats.subjects("RECEIPTS").await;
            let of = |outcome: &str| receipts.iter().filter(|receipt| receipt.starts_with(outcome)).count();
            let (delivered, dead) = (of("receipts.a.delivered."), of("receipts.a.dead."));
            (delivered + dead >= WAITING).then_some((delivered, dead))
        })
        .await;
        eventually("RETRY to be empty", async || (self.nats.count("RETRY").await == 0).then_some(())).await;
        let mut seen = HashMap::<String, usize>::new();
        while seen.values().sum::<usize>() < delivered {
            let request = self.receiver.next().await;
            if request.path == "/crm" {
                *seen.entry(request.header("webhook-id").to_owned()).or_default() += 1;
            }
        }
        assert_eq!((seen.len(), self.receiver.unread()), (delivered, 0), "{seen:?}");
        assert_eq!(delivered + dead, WAITING);
        assert_eq!(self.hookbridge.metric("hookbridge_egress_retries_forged_total").await, 0.0);
        (delivered, dead)
    }

    async fn repaired(&self, outcome: &str) -> f64 {
        self.hookbridge.metric(&format!("hookbridge_egress_repaired_total{{outcome=\"{outcome}\"}}")).await
    }

    async fn repair(&self, flags: &[&str]) -> Vec<Value> {
        let (configuration, url) = (Configuration::new(&self.text), self.nats.url());
        let arguments = [&["deliveries", "repair", "--json", "--nats", &url], flags].concat();
        let ended = run(&mut configuration.hookbridge(&arguments)).await;
        ended.assert_code(0);
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[tokio::test]
async fn the_command_schedules_again_what_was_purged() {
    let mut failing = Failing::open("0s").await;
    let task = json!({"task_id": "t-1", "callback_url": failing.receiver.url("/cb"), "deadline": "15s"});
    failing.hookbridge.post("/agents/planner/tasks", &[SHOP], task.to_string()).await.assert_status(202);
    failing.all_wait(WAITING + 1).await;
    assert_eq!(failing.repair(&[]).await, Vec::<Value>::new(), "nothing is lost yet");
    assert_eq!(failing.nats.purge("RETRY").await, WAITING as u64 + 1);
    failing.receiver.otherwise(Reply::Status(204));

    let outcomes = |found: &[Value]| {
        let of = |outcome: &str| found.iter().filter(|found| found["outcome"] == outcome).count();
        (of("rescheduled"), of("deadline"), of("dead"))
    };
    let found = failing.repair(&["--dry-run"]).await;
    assert_eq!((outcomes(&found), failing.nats.count("RETRY").await), ((WAITING, 1, 0), 0));
    let found = failing.repair(&[]).await;
    assert_eq!(outcomes(&found), (WAITING, 1, 0));
    assert_eq!(failing.repair(&[]).await, Vec::<Value>::new(), "it was repaired already");

    let told = failing.nats.message("RECEIPTS", "receipts.planner.delivered.*").await.json();
    assert_eq!(told["destination"], failing.receiver.url("/cb"));
    let mut callback = None;
    for _ in 0..=WAITING {
        let request = failing.receiver.next().await;
        if request.path == "/cb" {
            callback = Some(serde_json::from_slice::<Value>(&request.body).unwrap());
        }
    }
    assert_eq!(callback.unwrap()["error"]["code"], "deadline-exceeded");
    assert_eq!(failing.receiver.unread(), 0, "something was sent twice");
    failing.nats.messages("RECEIPTS", "receipts.a.delivered.*", WAITING).await;
}

#[tokio::test]
async fn couriers_find_what_was_purged_by_themselves() {
    let mut failing = Failing::open("500ms").await;
    let other = Hookbridge::start_as(&failing.nats, hookbridge::app::Roles::Courier, &failing.text).await;
    failing.all_wait(WAITING).await;
    failing.nats.purge("RETRY").await;
    failing.receiver.otherwise(Reply::Status(204));
    assert_eq!(failing.all_end().await, (WAITING, 0));
    let by_other = other.metric("hookbridge_egress_repaired_total{outcome=\"rescheduled\"}").await;
    assert_eq!(failing.repaired("rescheduled").await + by_other, WAITING as f64);
}

#[tokio::test]
async fn a_retry_stream_that_was_cut_off_loses_no_delivery() {
    let mut failing = Failing::open("500ms").await;
    failing.all_wait(WAITING).await;
    failing.nats.kill();
    failing.nats.cut("RETRY", 60);
    failing.receiver.otherwise(Reply::Status(204));
    failing.nats.run_again().await;
    assert_eq!(failing.all_end().await, (WAITING, 0));
    assert!(failing.repaired("rescheduled").await > 0.0, "the cut took nothing away");
}

#[tokio::test]
async fn what_waits_for_an_outbox_that_was_cut_off_is_dead_and_not_forged() {
    let mut failing = Failing::open("0s").await;
    failing.all_wait(WAITING).await;
    failing.nats.kill();
    failing.nats.cut("OUTBOX", 60);
    failing.receiver.otherwise(Reply::Status(204));
    failing.nats.run_again().await;
    let (_, dead) = failing.all_end().await;
    assert!(dead > 0, "the cut took nothing away");
    assert_expired(&failing.nats, dead).await;
}

#[tokio::test]
async fn what_waits_for_a_deleted_outbox_is_dead_and_not_forged() {
    let mut failing = Failing::open("0s").await;
    failing.all_wait(WAITING).await;
    failing.nats.delete("OUTBOX").await;
    failing.receiver.otherwise(Reply::Status(204));
    eventually("OUTBOX to be made again", async || failing.nats.has_stream("OUTBOX").await.then_some(())).await;
    // Others have the sequences now; nobody gets the wrong message.
    for number in 0..WAITING {
        let id = format!("new-{number}");
        failing.nats.publish("outbox.b", &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", &id)], "{}").await;
    }
    for _ in 0..WAITING {
        assert!(failing.receiver.next().await.header("webhook-id").starts_with("new-"));
    }
    failing.nats.messages("RECEIPTS", "receipts.b.delivered.*", WAITING).await;
    assert_eq!(failing.all_end().await, (0, WAITING));
    assert_expired(&failing.nats, WAITING).await;
}

#[tokio::test]
async fn what_both_streams_have_lost_is_dead() {
    let mut failing = Failing::open("500ms").await;
    failing.all_wait(WAITING).await;
    failing.nats.purge("OUTBOX").await;
    failing.nats.purge("RETRY").await;
    assert_eq!(failing.all_end().await, (0, WAITING));
    assert_expired(&failing.nats, WAITING).await;
    assert_eq!(failing.repaired("dead").await, WAITING as f64);
}

/// Of what has only to wait its turn no receipt tells: its message does.
#[tokio::test]
async fn what_waited_without_a_receipt_is_found_again() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    receiver.otherwise(Reply::Hold);
    let failing = Receiver::start().await;
    failing.otherwise(Reply::Status(503));
    let text = format!(
        "[egress]\ntimeout = \"90s\"\nrepair_every = \"500ms\"\nretry = [\"15s\"]\n[endpoints.down]\nurl = \"{}\"\nsignatures = []\n\
         [endpoints.crm]\nurl = \"{}\"\nsignatures = []\n\
         max_concurrent = 1\nsubjects = [\"outbox.a.>\"]\n[endpoints.log]\nurl = \"{}\"\nsignatures = []\n\
         max_concurrent = 1\nsubjects = [\"outbox.a.>\"]",
        failing.url("/"),
        receiver.url("/crm"),
        receiver.url("/log")
    );
    let hookbridge = Hookbridge::start(&nats, &text).await;
    for number in 0..20 {
        nats.publish("outbox.a.order", &[("Nats-Msg-Id", &format!("w-{number}"))], "{}").await;
    }
    // Its receipt tells that it waits, and so that something is lost.
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "down"), ("Nats-Msg-Id", "told")], "{}").await;
    nats.message("RECEIPTS", "receipts.a.retrying.told").await;
    let acked = async || {
        let courier = nats.consumer("OUTBOX", "courier").await?;
        (courier.ack_floor.stream_sequence == 21 && nats.count("RETRY").await == 41).then_some(())
    };
    eventually("everything to wait in RETRY", acked).await;
    eventually("most to wait for long", async || {
        let waiting = nats.retries().await;
        (waiting.iter().filter(|(_, at)| at.subject.starts_with("retry.at.")).count() >= 30).then_some(())
    })
    .await;
    nats.purge("RETRY").await;

    let all = async || {
        receiver.release();
        let receipts = nats.subjects("RECEIPTS").await;
        let delivered = receipts.iter().filter(|receipt| receipt.starts_with("receipts.a.delivered.")).count();
        (delivered == 40).then_some(())
    };
    eventually("every delivery to be made", all).await;
    let mut seen = HashMap::<(String, String), usize>::new();
    while seen.len() < 40 {
        let request = receiver.next().await;
        *seen.entry((request.path.clone(), request.header("webhook-id").to_owned())).or_default() += 1;
    }
    let name = "hookbridge_egress_repaired_total{outcome=\"rescheduled\"}";
    eventually("the repairs to be counted", async || (hookbridge.metric(name).await >= 10.0).then_some(())).await;
    assert!(seen.values().all(|count| *count == 1) && receiver.unread() == 0, "something was sent twice: {seen:?}");
    assert_eq!(hookbridge.metric("hookbridge_egress_retries_forged_total").await, 0.0);
}

async fn assert_expired(nats: &Nats, count: usize) {
    let letters = nats.messages("DEAD", "dead.a.*", count).await;
    for letter in &letters {
        assert_eq!(letter.header("Hookbridge-Reason"), Some("expired"), "{letter:?}");
        assert!(letter.payload.is_empty() && letter.header("Hookbridge-Detail").unwrap().contains("OUTBOX"));
        assert!(letter.header("Nats-Msg-Id").is_some(), "a repeat would be stored twice");
    }
    assert_eq!(nats.count("DEAD").await, count as u64);
}
