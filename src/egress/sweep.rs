//! Taking off what waits, after something was said about it.
//!
//! The word comes first, and every attempt asks for it; the sweep only lets come sooner what would end when it is due.
//! Every courier sweeps, each delivery ends once, and one whose courier dies is brought forward by another.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::pointer::{self, Pointer, Why};
use super::reason::{Reason, Refusal};
use super::receipt::{Receipt, Status};
use super::standing::{Standing, Subject, Sweep, cancel_key};
use super::worker::{Job, Worker};
use crate::broker::ReadError;

/// How long to wait before a sweep that failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// How far apart deliveries come to a destination that was resumed.
const APART: Duration = Duration::from_millis(2);

impl Worker {
    /// Sweeps at start, since another process may have stopped in the middle, and after every change.
    pub(super) async fn sweep_changed(&self, stop: &CancellationToken) {
        loop {
            for sweep in self.standings.sweeps() {
                let Some(swept) = stop.run_until_cancelled(self.sweep(&sweep)).await else { return };
                if let Err(error) = swept {
                    tracing::debug!("A sweep of RETRY has to wait: {error}");
                    if stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
                        return;
                    }
                    self.standings.again(sweep);
                }
            }
            if stop.run_until_cancelled(self.standings.changed.notified()).await.is_none() {
                return;
            }
        }
    }

    async fn sweep(&self, sweep: &Sweep) -> Result<(), ReadError> {
        match sweep {
            Sweep::Settle(token) => self.settle(&pointer::all_waiting(token), |_| true).await,
            Sweep::Resume(token) => {
                let url = self.registry.url_of(token).map(String::from).unwrap_or_default();
                let subject = Subject { token, url: &url, agent: "", delivery_id: "", sequence: u64::MAX };
                let still = || self.standings.standing(subject) == Standing::Open;
                self.release(token, |why| why == Why::Paused, APART, still).await
            }
            Sweep::Cancel { agent, delivery_id } => {
                for waiting in pointer::waiting_of(delivery_id) {
                    self.settle(&waiting, |pointer| pointer.agent == *agent).await?;
                }
                // By now no message of OUTBOX can be meant any more.
                let marked = self.standings.marked_at(agent, delivery_id);
                let age = marked.and_then(|at| self.clock.now().duration_since(at).ok());
                if age.zip(self.registry.kept_for()).is_some_and(|(age, kept_for)| age > kept_for) {
                    self.forget_mark(agent, delivery_id).await;
                }
                Ok(())
            }
        }
    }

    /// Lets what waits on these subjects and may not go on come now: whoever gets it ends it. A delivery that is due
    /// has one courier; one that waits would be found, and ended, by every courier that sweeps.
    async fn settle(&self, waiting: &str, concerns: impl Fn(&Pointer) -> bool) -> Result<(), ReadError> {
        let may_not_go_on = |pointer: &Pointer| {
            let url = self.registry.url_of(&pointer.token).map(String::from).unwrap_or_default();
            let (agent, delivery_id) = (pointer.agent.as_str(), pointer.delivery_id.as_str());
            let subject = Subject { token: &pointer.token, url: &url, agent, delivery_id, sequence: pointer.sequence };
            !matches!(self.standings.standing(subject), Standing::Open | Standing::Paused)
        };
        let meant = |pointer: &Pointer| concerns(pointer) && may_not_go_on(pointer);
        self.bring(waiting, meant, Duration::ZERO, || true).await
    }

    /// Ends a delivery in hand that is not to be made: `cancelled`, or `superseded`.
    pub(super) async fn cancel(&self, job: &Job<'_>, reason: &'static str, detail: String) {
        let receipt = Receipt {
            agent: &job.message.agent,
            message_id: &job.message.id,
            delivery_id: &job.route.delivery_id,
            destination: &job.route.public_name,
            status: Status::Cancelled,
            attempt: job.attempt - 1,
            http_status: None,
            failure: None,
            reason: Some(reason),
            detail: Some(detail),
            duration: None,
            next_attempt: None,
            response: None,
            at: self.clock.now(),
            about: job.original.about(),
        };
        self.ledger.receipt(&receipt, None).await;
        self.metrics.cancelled.inc();
        tracing::info!(
            agent.name = job.message.agent,
            delivery.id = job.route.delivery_id,
            "Delivery {} is {reason}",
            job.route.delivery_id
        );
        self.forget_mark(&job.message.agent, &job.route.delivery_id).await;
    }

    /// The mark on one delivery has done its work.
    pub(super) async fn forget_mark(&self, agent: &str, delivery_id: &str) {
        if self.standings.is_marked(agent, delivery_id)
            && let Err(error) = Box::pin(self.broker.forget_endpoint(&cancel_key(agent, delivery_id))).await
        {
            tracing::debug!("The mark on {delivery_id} stays: {error}");
        }
    }
}

/// Why a delivery to a disabled destination is dead.
pub(super) fn disabled(destination: &str, reason: &str) -> Refusal {
    Refusal::new(Reason::EndpointDisabled, format!("`{destination}` is disabled: {reason}"))
}
