//! Updates that wait in RETRY before they are applied, because so many of their task are in hand.

use std::time::Duration;

use super::super::intake::{Message, Original};
use super::super::pointer::{Why, update_token};
use super::super::reason::{Reason, Refusal};
use super::super::route::Route;
use super::super::standing::{Standing, Subject};
use super::super::worker::{Answer, Job, Worker};
use crate::telemetry::metrics::HeldLabels;

/// The shortest and the longest time that an update is put off because of others of its task.
const PUT_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

impl Worker {
    /// Ends an update that somebody cancelled while it was put off, before it moves anything.
    pub(super) async fn was_cancelled(&self, original: &Original, message: &Message, attempt: u32) -> bool {
        let route = put_off_route(message);
        let (agent, delivery_id, sequence) = (&message.agent, &message.id, original.sequence);
        let token = route.token.as_deref().unwrap_or_default();
        let asked = Subject { token, url: "", agent, delivery_id, sequence };
        let Standing::Cancelled(detail) = self.standings.standing(asked) else { return false };
        let (held, in_line, turn) = (None, false, None);
        let job = Job { original, message, route: &route, attempt, held, in_line, turn, received: None };
        self.cancel(&job, "cancelled", detail).await;
        true
    }

    /// Lets an update wait in the stream: so many of its task are in hand that more would take the place of others.
    /// The older it is the longer, so that a flood of them does not go round and round.
    pub(super) async fn put_off_update(&self, original: &Original, message: &Message, attempt: u32) -> Answer {
        let route = put_off_route(message);
        let (held, in_line, turn) = (Some(Why::Turn), false, None);
        let job = Job { original, message, route: &route, attempt, held, in_line, turn, received: None };
        let now = self.clock.now();
        let age = now.duration_since(original.stored).unwrap_or_default().clamp(PUT_OFF.0, PUT_OFF.1);
        self.schedule(&job, attempt, held, now + age.mul_f64(0.5 + rand::random::<f64>())).await;
        let labels = HeldLabels { destination: "task".to_owned(), why: Why::Turn.as_str() };
        self.metrics.held.get_or_create(&labels).inc();
        if let Some(more) = self.said_put_off.pass(now) {
            tracing::info!(
                agent.name = message.agent,
                log.left_out = more,
                "An update of {} is put off: as many of its task as may be are in hand",
                message.agent
            );
        }
        Answer::Ack
    }
}

/// The route of an update that is put off: where it goes is not known before it is applied.
fn put_off_route(message: &Message) -> Route {
    let token = Some(update_token(&message.agent));
    Route { token, ..Route::nowhere(message.id.clone(), Refusal::new(Reason::Unroutable, "it was put off")) }
}
