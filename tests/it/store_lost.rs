//! A store that is emptied, restored, truncated or deleted while Hookbridge runs: nothing old acks anything new, and
//! nobody is accused of forgery.

use crate::harness::{Hookbridge, Nats, Receiver, Reply, eventually};

/// An endpoint whose attempts last until the test lets them end, and one for what is published afterwards.
struct Shop {
    nats: Nats,
    before: Receiver,
    after: Receiver,
    hookbridge: Hookbridge,
}

/// How many deliveries are in progress when the store is lost, and before them.
const OLD: usize = 5;
const DONE: usize = 10;
/// How many messages are published afterwards.
const NEW: usize = 25;

impl Shop {
    async fn open() -> Self {
        let (nats, before, after) = (Nats::start().await, Receiver::start().await, Receiver::start().await);
        let text = format!(
            r#"
            [egress]
            timeout = "90s"
            retry = ["1h"]
            [endpoints.before]
            url = "{}"
            signatures = []
            [endpoints.after]
            url = "{}"
            signatures = []
            "#,
            before.url("/"),
            after.url("/")
        );
        let hookbridge = Hookbridge::start(&nats, &text).await;
        Self { nats, before, after, hookbridge }
    }

    async fn publish(&self, endpoint: &str, id: &str) {
        self.nats.publish("outbox.a", &[("Hookbridge-Endpoint", endpoint), ("Nats-Msg-Id", id)], "{}").await;
    }

    /// Some deliveries that are done, then some that are in progress.
    async fn begin(&mut self) {
        for number in 0..DONE {
            self.publish("before", &format!("done-{number}")).await;
        }
        self.nats.messages("RECEIPTS", "receipts.a.delivered.*", DONE).await;
        for _ in 0..DONE {
            self.before.next().await;
        }
        self.before.otherwise(Reply::Hold);
        for number in 0..OLD {
            self.publish("before", &format!("old-{number}")).await;
        }
        for _ in 0..OLD {
            self.before.next().await;
        }
    }

    /// Publishes what is new, and waits until all of it is in progress.
    async fn publish_new(&mut self) {
        self.after.otherwise(Reply::Hold);
        for number in 0..NEW {
            self.publish("after", &format!("new-{number}")).await;
        }
        for _ in 0..NEW {
            self.after.next().await;
        }
    }

    async fn replaced(&self, stream: &str) -> f64 {
        self.hookbridge.metric(&format!("hookbridge_streams_replaced_total{{stream=\"{stream}\"}}")).await
    }

    /// Lets a receiver answer until so many deliveries are in progress.
    async fn in_progress(&self, held: &Receiver, count: usize) {
        eventually("so many deliveries to be in progress", async || {
            held.release();
            (self.hookbridge.metric("hookbridge_egress_deliveries").await == count as f64).then_some(())
        })
        .await;
    }

    /// Lets the old attempts end: no new message is acked by them. Then lets the new ones end, too.
    async fn old_acks_nothing_new(&mut self) {
        self.in_progress(&self.before, NEW).await;
        let courier = self.nats.consumer("OUTBOX", "courier").await.unwrap();
        assert_eq!(courier.num_ack_pending, NEW, "{courier:?}");
        self.everything_ends().await;
    }

    /// Lets everything end: once each, and all of it acked.
    async fn everything_ends(&mut self) {
        self.in_progress(&self.before, NEW).await;
        self.in_progress(&self.after, 0).await;
        for number in 0..NEW {
            self.nats.message("RECEIPTS", &format!("receipts.a.delivered.new-{number}")).await;
        }
        for number in 0..OLD {
            self.nats.message("RECEIPTS", &format!("receipts.a.delivered.old-{number}")).await;
        }
        eventually("everything to be acked", async || {
            let courier = self.nats.consumer("OUTBOX", "courier").await?;
            (courier.num_ack_pending == 0 && courier.num_pending == 0).then_some(())
        })
        .await;
        assert_eq!((self.before.unread(), self.after.unread()), (0, 0), "something was delivered twice");
        assert_eq!(self.hookbridge.metric("hookbridge_egress_retries_forged_total").await, 0.0);
    }

    async fn is_there_again(&self, stream: &str) {
        eventually("the streams to be made again", async || {
            self.nats.has_stream(stream).await.then_some(())?;
            self.nats.consumer(stream, "courier").await.map(drop)
        })
        .await;
        self.hookbridge.ready().await;
    }
}

#[tokio::test]
async fn an_emptied_store_loses_no_new_message() {
    let mut shop = Shop::open().await;
    shop.begin().await;
    shop.nats.kill();
    shop.nats.empty();
    shop.nats.run_again().await;
    shop.is_there_again("OUTBOX").await;
    shop.publish_new().await;
    shop.old_acks_nothing_new().await;
    for stream in ["OUTBOX", "RETRY", "EVENTS", "RECEIPTS", "DEAD", "TASKS", "KV_hookbridge_endpoints"] {
        assert_eq!(shop.replaced(stream).await, 1.0, "{stream}");
    }
}

#[tokio::test]
async fn a_deleted_outbox_loses_no_new_message() {
    let mut shop = Shop::open().await;
    shop.begin().await;
    shop.nats.delete("OUTBOX").await;
    shop.is_there_again("OUTBOX").await;
    shop.publish_new().await;
    shop.old_acks_nothing_new().await;
    assert_eq!((shop.replaced("OUTBOX").await, shop.replaced("RETRY").await), (1.0, 0.0));
}

#[tokio::test]
async fn a_restored_backup_loses_no_new_message() {
    let mut shop = Shop::open().await;
    shop.nats.kill();
    let backup = shop.nats.back_up();
    shop.nats.run_again().await;
    shop.hookbridge.ready().await;
    shop.begin().await;
    shop.nats.kill();
    shop.nats.restore(&backup);
    shop.nats.run_again().await;
    shop.is_there_again("OUTBOX").await;
    shop.publish_new().await;
    shop.old_acks_nothing_new().await;
    assert_eq!(shop.replaced("OUTBOX").await, 1.0);
}

/// The store is the same: what was in progress is acked over the new connection, and does not come again.
#[tokio::test]
async fn a_mere_restart_of_nats_acks_what_was_in_progress() {
    let mut shop = Shop::open().await;
    shop.begin().await;
    shop.nats.kill();
    shop.nats.run_again().await;
    shop.hookbridge.ready().await;
    shop.publish_new().await;
    // A server that was killed may have forgotten acks; what is done with is then found in the receipts.
    shop.everything_ends().await;
    for stream in ["OUTBOX", "RETRY", "RECEIPTS"] {
        assert_eq!(shop.replaced(stream).await, 0.0, "{stream}");
    }
}
