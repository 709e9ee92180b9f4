//! RECEIPTS that is deleted, cut off or full while Hookbridge runs: what was delivered is not sent again by the search
//! for what RETRY has lost, and what is published afterwards is repaired as ever.

use async_nats::jetstream::stream::DiscardPolicy;

use crate::harness::{Hookbridge, Nats, Receiver, Reply, eventually};

/// How many deliveries end before receipts are lost.
const DONE: usize = 30;

struct Shop {
    nats: Nats,
    crm: Receiver,
    /// Fails until it is told otherwise.
    down: Receiver,
    hookbridge: Hookbridge,
}

impl Shop {
    async fn open(crm: Receiver) -> Self {
        let (nats, down) = (Nats::start().await, Receiver::start().await);
        let text = format!(
            r#"
            [egress]
            retry = ["5s", "5s", "5s"]
            breaker = "none"
            repair_every = "500ms"
            [endpoints.crm]
            url = "{}"
            signatures = []
            retry = ["100ms", "100ms"]
            [endpoints.down]
            url = "{}"
            signatures = []
            "#,
            crm.url("/"),
            down.url("/")
        );
        let hookbridge = Hookbridge::start(&nats, &text).await;
        Self { nats, crm, down, hookbridge }
    }

    async fn publish(&self, endpoint: &str, id: &str) {
        self.nats.publish("outbox.a", &[("Hookbridge-Endpoint", endpoint), ("Nats-Msg-Id", id)], "{}").await;
    }

    /// Makes some deliveries of so many attempts each, and waits until nothing of them is left to be done.
    async fn deliver(&mut self, attempts: usize) {
        for number in 0..DONE {
            self.publish("crm", &format!("done-{number}")).await;
        }
        for _ in 0..DONE * attempts {
            self.crm.next().await;
        }
        self.nats.messages("RECEIPTS", "receipts.a.delivered.*", DONE).await;
        eventually("everything to be acked", async || {
            let (outbox, retry) = (self.nats.consumer("OUTBOX", "courier").await?, self.nats.count("RETRY").await);
            (outbox.num_ack_pending == 0 && outbox.num_pending == 0 && retry == 0).then_some(())
        })
        .await;
    }

    async fn repaired(&self) -> f64 {
        self.hookbridge.metric("hookbridge_egress_repaired_total{outcome=\"rescheduled\"}").await
    }

    /// Loses a waiting delivery and waits until it was repaired. After it, all of OUTBOX is looked at.
    async fn lose_another(&mut self, id: &str) {
        self.down.otherwise(Reply::Status(503));
        self.publish("down", id).await;
        self.down.next().await;
        self.nats.message("RECEIPTS", &format!("receipts.a.retrying.{id}")).await;
        eventually("it to wait in RETRY", async || (self.nats.count("RETRY").await == 1).then_some(())).await;
        self.down.otherwise(Reply::Status(204));
        assert_eq!(self.nats.purge("RETRY").await, 1);
        self.down.next().await;
        self.nats.message("RECEIPTS", &format!("receipts.a.delivered.{id}")).await;
    }

    /// What was delivered stays delivered: the second search begins after the first has looked at all of it.
    async fn nothing_comes_again(&mut self) {
        self.lose_another("first").await;
        self.lose_another("second").await;
        eventually("both to be counted", async || (self.repaired().await >= 2.0).then_some(())).await;
        assert_eq!((self.repaired().await, self.crm.unread()), (2.0, 0), "what was delivered was sent again");
        assert_eq!(self.down.unread(), 0);
    }

    async fn replaced(&self, stream: &str) -> f64 {
        self.hookbridge.metric(&format!("hookbridge_streams_replaced_total{{stream=\"{stream}\"}}")).await
    }
}

#[tokio::test]
async fn a_deleted_receipts_stream_sends_nothing_again() {
    let mut shop = Shop::open(Receiver::start().await).await;
    shop.deliver(1).await;
    shop.nats.delete("RECEIPTS").await;
    // Its receipt is not taken, and so the stream is made again.
    shop.publish("crm", "after").await;
    shop.crm.next().await;
    eventually("RECEIPTS to be made again", async || shop.nats.has_stream("RECEIPTS").await.then_some(())).await;
    shop.nats.message("RECEIPTS", "receipts.a.delivered.after").await;
    shop.nothing_comes_again().await;
    assert_eq!(shop.replaced("RECEIPTS").await, 1.0);
}

/// What was cut off tells that deliveries have ended; what is left of them, that they wait.
#[tokio::test]
async fn receipts_that_were_cut_off_send_nothing_again() {
    let failing = Receiver::scripted((0..DONE).map(|_| Reply::Status(503))).await;
    let mut shop = Shop::open(failing).await;
    shop.deliver(2).await;
    // In an orderly way: otherwise it may forget acks, and what comes again and has no receipt is made again.
    shop.nats.signal("TERM");
    eventually("the connection to be lost", async || {
        (shop.hookbridge.admin("/readyz").await.status != 200).then_some(())
    })
    .await;
    shop.nats.kill();
    shop.nats.cut("RECEIPTS", 60);
    shop.nats.run_again().await;
    shop.hookbridge.ready().await;
    let delivered = async || {
        let receipts = shop.nats.subjects("RECEIPTS").await;
        receipts.iter().filter(|receipt| receipt.starts_with("receipts.a.delivered.")).count()
    };
    assert!(delivered().await < DONE, "the cut took nothing away");
    shop.nothing_comes_again().await;
    assert_eq!(shop.replaced("RECEIPTS").await, 1.0);
}

/// The receipt of a retry is given up meanwhile, since the next attempt waits for it.
#[tokio::test]
async fn that_a_delivery_has_ended_is_told_after_receipts_were_full_for_long() {
    let mut shop = Shop::open(Receiver::start().await).await;
    let mut full = shop.nats.jetstream().get_stream("RECEIPTS").await.unwrap().get_info().await.unwrap().config;
    let whole = full.clone();
    (full.max_bytes, full.discard) = (1, DiscardPolicy::New);
    shop.nats.jetstream().update_stream(&full).await.unwrap();
    shop.publish("crm", "done").await;
    shop.crm.next().await;
    shop.down.otherwise(Reply::Status(503));
    shop.publish("down", "waits").await;
    shop.down.next().await;
    eventually("the receipt of the retry to be given up", async || {
        (shop.hookbridge.metric("hookbridge_egress_receipts_lost_total").await >= 1.0).then_some(())
    })
    .await;
    shop.nats.jetstream().update_stream(&whole).await.unwrap();
    shop.nats.message("RECEIPTS", "receipts.a.delivered.done").await;
    assert_eq!(shop.crm.unread(), 0, "it was sent again");
}
