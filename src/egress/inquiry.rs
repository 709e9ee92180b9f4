//! How a delivery stands, as its receipts tell: for somebody who asks from outside, on a visit.

use std::time::SystemTime;

use serde::Deserialize;

use super::receipt::{self, Status};
use super::replay::{Again, Delivery, Origin, is_outbox_of};
use crate::broker::{StoredMessage, Visitor};
use crate::config::StreamKind;

/// How the last message of a delivery id stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// No receipt tells of it, or none any more.
    Unknown,
    /// It has not ended.
    Open,
    Delivered(Delivered),
    Dead,
    Cancelled,
}

/// A delivery that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivered {
    agent: String,
    delivery_id: String,
    message_id: String,
    destination: String,
    /// When its receipt was written.
    told: SystemTime,
    /// Where its message is, or was, in OUTBOX.
    pub(crate) sequence: u64,
}

/// What a receipt says of the delivery itself.
#[derive(Deserialize)]
struct Body {
    message: String,
    destination: Option<String>,
}

/// Asks the receipts.
pub(crate) async fn inquire(visitor: &Visitor, agent: &str, delivery_id: &str) -> anyhow::Result<Found> {
    let last = async |status| {
        let subject = receipt::subject(agent, status, delivery_id);
        let receipt = visitor.last(StreamKind::Receipts, &subject).await?;
        anyhow::Ok(receipt.and_then(|receipt| Some((receipt::about(&receipt)?, status, receipt))))
    };
    let mut all = Vec::new();
    for status in Status::TERMINAL.into_iter().chain([Status::Retrying]) {
        all.extend(last(status).await?);
    }
    // A receipt of waiting may be written after the one of the end: where both tell of one message, it has ended.
    let newest = all.into_iter().max_by_key(|(sequence, status, _)| (*sequence, *status != Status::Retrying));
    let Some((sequence, status, receipt)) = newest else { return Ok(Found::Unknown) };
    Ok(match status {
        Status::Retrying => Found::Open,
        Status::Dead => Found::Dead,
        Status::Cancelled => Found::Cancelled,
        Status::Delivered => {
            let body: Body = serde_json::from_slice(&receipt.payload)?;
            let (agent, delivery_id) = (agent.to_owned(), delivery_id.to_owned());
            let destination = body.destination.unwrap_or_default();
            let (message_id, told) = (body.message, receipt.stored);
            Found::Delivered(Delivered { agent, delivery_id, message_id, destination, told, sequence })
        }
    })
}

impl Delivered {
    /// The same delivery once more, of the message as it is in OUTBOX; none if that is not the one that was delivered,
    /// because it is another agent's or younger than the receipt.
    pub(crate) fn again(&self, original: &StoredMessage, run: &str) -> Option<Again<'_>> {
        if !is_outbox_of(&self.agent, &original.subject) || original.stored > self.told {
            return None;
        }
        let delivery = Delivery {
            agent: &self.agent,
            message_id: &self.message_id,
            delivery_id: &self.delivery_id,
            destination: &self.destination,
        };
        Some(Again::new(Origin::Outbox(self.sequence), delivery, &original.subject, original, run))
    }
}
