//! What can happen to a cluster, each as long as the caller asks for.

use std::time::Instant;

use futures_util::StreamExt;

use super::fleet::{Counted, Fleet, Sent, publish};
use crate::harness::within;

/// So many outbox messages at once, without waiting for an ack before the next is sent.
pub(crate) async fn burst(messages: usize, couriers: usize) -> Counted {
    let fleet = Fleet::start(1, couriers).await;
    let agent = async_nats::jetstream::new(fleet.cluster.client().await);
    let begun = Instant::now();
    let published = futures_util::stream::iter(0..messages).for_each_concurrent(1000, |number| {
        let agent = &agent;
        async move { publish(agent, &format!("m-{number}"), Some("crm"), "{}".to_owned()).await }
    });
    within("the burst to be stored", published).await;
    let sent = Sent { deliveries: messages, took: begun.elapsed(), ..Sent::default() };
    let counted = fleet.count(sent).await;
    counted.assert_whole(&fleet);
    counted
}
