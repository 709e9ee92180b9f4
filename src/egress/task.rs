//! Updates of tasks: from an agent's message to the task's state, and on to its callback.
//!
//! Only the courier moves states. A move is written together with the sequence of the message that caused it, before
//! anything is told of it: the same message again is a repeat, and goes on to its callback. So a crash between state
//! and callback loses neither. [`telling`] keeps the callbacks in their order, [`put_off`] what one task takes up within
//! bounds; [`news`] tell NATS of moves, and a [`deadline`] is an update that Hookbridge says itself.

mod deadline;
mod news;
mod put_off;
mod telling;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue};
use tokio::sync::Mutex;

use super::destination::Destination;
use super::intake::{self, Message, Original, Target};
use super::pointer::Why;
use super::reason::{Reason, Refusal};
use super::receipt::{Receipt, Status as Outcome};
use super::replay::Replayed;
use super::route::{self, Route};
use super::turns::Turn;
use super::worker::{Answer, Job, Worker};
use crate::broker::{PublishError, Received};
use crate::event::{name, subject};
use crate::task::{self, Applied, CAUSE, Cause, Record, Status, TASK_ID, Update, a2a};
use crate::telemetry::metrics::StatusLabels;
pub(super) use telling::{Call, NotItsTurn};

/// How often a move is tried while others change the record.
const TRIES: u32 = 20;
/// How far the clocks of gateway and server may be apart, at least and at most.
const CLOCKS: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));
/// What a message of OUTBOX is to the tasks, as it comes.
pub(super) enum Arrived {
    /// It is about no task.
    Other,
    /// Its place among the updates of its task.
    Turn(Turn),
    /// There is no place for it now.
    Full,
}

/// The attempt at a callback that comes next, and why it waited.
#[derive(Clone, Copy)]
pub(super) struct Next {
    pub(super) attempt: u32,
    pub(super) held: Option<Why>,
}

/// What there is of a task.
enum Found {
    /// Its state, and the revision by which that can be changed.
    Task(Box<Record>, u64),
    None,
    /// Something that Hookbridge did not write.
    Unreadable,
    /// NATS did not say.
    Unknown,
}

/// What an update has led to.
enum Led {
    /// To a callback, or to a reason why there is none.
    To(Route),
    /// To a move that the client does not want to hear of.
    Untold,
    /// NATS did not say.
    Unknown,
}

impl Worker {
    /// The place of a message among the updates of its task. Asked for as messages come, so that what one pull brings
    /// is applied in its order.
    pub(super) fn arrived(&self, received: &Received) -> Arrived {
        let names_one = received.headers.get(TASK_ID).is_some()
            || memchr::memmem::find(&received.payload, b"\"task_id\"").is_some();
        let message = names_one.then(|| intake::understand(&self.received(received)).ok()).flatten();
        let Some(message) = message else { return Arrived::Other };
        match &message.target {
            Target::Task(task_id) => self.turn(&message.agent, task_id).map_or(Arrived::Full, Arrived::Turn),
            _ => Arrived::Other,
        }
    }

    /// The next place in a task's lane. An agent that has no part in the task has a lane of its own for it.
    fn turn(&self, agent: &str, task_id: &str) -> Option<Turn> {
        self.turns.take(&format!("{agent}.{}", subject::token(task_id)))
    }

    /// Deals with an update of a task.
    pub(super) async fn update(
        &self,
        received: &Received,
        original: &Original,
        mut message: Message,
        arrived: Arrived,
        next: Next,
        in_doubt: bool,
    ) -> Answer {
        let Next { attempt, held } = next;
        let turn = match (arrived, &message.target) {
            (Arrived::Turn(turn), _) => Some(turn),
            (Arrived::Other, Target::Task(task_id)) => self.turn(&message.agent, task_id),
            _ => None,
        };
        let Some(mut turn) = turn else { return self.put_off_update(original, &message, attempt).await };
        if held == Some(Why::Turn) && self.was_cancelled(original, &message, attempt).await {
            return Answer::Ack;
        }
        turn.wait_to_apply().await;
        // After an attempt, or held by anything but its turn, it is known that everybody was told.
        let again = attempt == 1 && matches!(held, None | Some(Why::Turn));
        let led = self.lead(original, &mut message, again).await;
        turn.applied();
        match led {
            Led::Unknown => Answer::Again,
            Led::Untold => {
                self.tell_untold(original, &message).await;
                Answer::Ack
            }
            Led::To(route) => {
                let (original, message, route) = (original, &message, &route);
                let turn = Mutex::new(turn);
                let (turn, received) = (Some(&turn), Some(received));
                let job = Job { original, message, route, attempt, held, in_line: false, turn, received };
                self.work(&job, in_doubt).await
            }
        }
    }

    /// Applies an update, and finds its callback. What it is to send becomes the message's body.
    /// `again`: where it repeats a move, everybody is told of that once more.
    async fn lead(&self, original: &Original, message: &mut Message, again: bool) -> Led {
        let Target::Task(task_id) = &message.target else { return Led::Unknown };
        let task_id = task_id.clone();
        let refuse = |reason, detail: String| Led::To(Route::nowhere(message.id.clone(), Refusal::new(reason, detail)));
        let no_such = format!("there is no task `{}`", subject::token(&task_id));
        if !name::is_token(&task_id) {
            return refuse(Reason::Unroutable, no_such);
        }
        let update = Update::read(&task_id, &message.body);
        for _ in 0..TRIES {
            let (record, revision) = match self.find(&task_id).await {
                Found::Task(record, revision) => (*record, revision),
                Found::None => return refuse(Reason::Unroutable, no_such),
                Found::Unreadable => {
                    return refuse(Reason::Malformed, format!("the state of task `{task_id}` cannot be read"));
                }
                Found::Unknown => return Led::Unknown,
            };
            let update = match &update {
                Ok(update) => update,
                Err(wrong) => return refuse(Reason::Malformed, wrong.clone()),
            };
            let made = humantime::parse_rfc3339(&record.created_at).unwrap_or(SystemTime::UNIX_EPOCH);
            if original.stored + self.clocks() < made {
                return refuse(Reason::Unroutable, format!("was said before task `{task_id}` was made"));
            }
            let Some(sequence) = said_first(original, message, update, &record) else {
                let detail = "what it repeats is no longer part of the task's history".to_owned();
                return Led::To(Route::superseded(&message.id, detail));
            };
            let cause = Cause { agent: &message.agent, sequence, delivery: &message.id, now: self.clock.now() };
            let mut tell = true;
            let (record, lease) = match record.apply(update, cause) {
                Applied::Moved(next) => match self.moved(revision, &record, *next, original).await {
                    Ok(Some(moved)) => moved,
                    Ok(None) => continue,
                    Err(PublishError::TooLarge) => {
                        return refuse(Reason::TooLarge, format!("the state of task `{task_id}` has no room for it"));
                    }
                    Err(error) => {
                        tracing::warn!("An update of task {task_id} has to wait: {error}");
                        return Led::Unknown;
                    }
                },
                Applied::Repeat => {
                    // Older news after newer would be the last word.
                    tell = again && record.sequence == sequence;
                    (record, None)
                }
                Applied::Superseded => {
                    return Led::To(Route::superseded(&message.id, "the task has moved on by a later update".into()));
                }
                Applied::NotYours => {
                    return refuse(Reason::Forbidden, format!("task `{task_id}` is held by another agent"));
                }
                // Calling off, the deadline, and an agent's answer to either may come when it is over.
                Applied::Illegal(why) if original.headers.get(CAUSE).is_some() || both_canceled(&record, update) => {
                    return Led::To(Route::superseded(&message.id, why));
                }
                Applied::Illegal(why) => return refuse(Reason::Illegal, why),
            };
            if tell {
                self.forget_deadline(&record).await;
                self.tell_move(&record, sequence, original).await;
            }
            if !record.wants(update.status) {
                return Led::Untold;
            }
            return Led::To(self.callback(original, message, update, record, sequence, lease));
        }
        tracing::warn!(
            task.id = task_id,
            "An update of task {task_id} has to wait: others change its state all the time"
        );
        Led::Unknown
    }

    /// How far clocks may be apart. An earlier task of the same id was forgotten longer ago than that.
    fn clocks(&self) -> Duration {
        (self.task_retention / 2).clamp(CLOCKS.0, CLOCKS.1)
    }

    /// Looks a task up.
    async fn find(&self, task_id: &str) -> Found {
        match self.broker.task(task_id).await {
            Ok(Some(kept)) => match serde_json::from_slice(&kept.value) {
                Ok(record) => Found::Task(record, kept.revision),
                Err(error) => {
                    tracing::error!(
                        task.id = task_id,
                        "The state of task {task_id} is none that Hookbridge writes, so somebody else can write the \
                         bucket of tasks: {error}"
                    );
                    Found::Unreadable
                }
            },
            Ok(None) => Found::None,
            Err(error) => {
                tracing::warn!("What is said of task {task_id} has to wait: {error}");
                Found::Unknown
            }
        }
    }

    /// Writes a move, and with it, where nobody else tells the client something now, that this courier does.
    async fn moved(
        &self,
        revision: u64,
        before: &Record,
        mut next: Record,
        original: &Original,
    ) -> Result<Option<(Record, Option<SystemTime>)>, PublishError> {
        let lease = match next.step(original.sequence).and_then(|step| step.delivery.clone()) {
            Some(delivery) => self.lease_if_free(before, original.sequence, &delivery, 1).await,
            None => None,
        };
        next.telling = lease.as_ref().map(|lease| lease.telling.clone()).or(next.telling);
        if self.write_record(&next, revision).await?.is_none() {
            return Ok(None);
        }
        self.metrics.task_moves.get_or_create(&StatusLabels { status: next.status.as_str() }).inc();
        if let Some(lease) = &lease {
            self.supersede(&next, lease).await;
        }
        Ok(Some((next, lease.map(|lease| lease.until))))
    }

    /// Writes a record in the place of the one with this revision. `None`: somebody else wrote it meanwhile.
    async fn write_record(&self, record: &Record, revision: u64) -> Result<Option<u64>, PublishError> {
        let ends = record.status.is_terminal().then_some(self.task_retention);
        // Texts, numbers and nothing else: this always serializes.
        let value = serde_json::to_vec(record).unwrap_or_default().into();
        self.broker.write_task(&record.task_id, value, revision, ends).await
    }

    /// The callback of a move.
    fn callback(
        &self,
        original: &Original,
        message: &mut Message,
        update: &Update,
        record: Record,
        sequence: u64,
        lease: Option<SystemTime>,
    ) -> Route {
        let Some(callback) = &record.callback else {
            return Route::nowhere(message.id.clone(), Refusal::new(Reason::Unroutable, "the task has no callback"));
        };
        let Some(policy) = self.registry.now().callbacks_of(&record.client) else {
            let detail = format!("client `{}` is no longer in the configuration", record.client);
            return Route::nowhere(message.id.clone(), Refusal::new(Reason::Forbidden, detail));
        };
        let headers = callback.push.as_ref().map(|push| Arc::new(push_headers(push)));
        let url = Box::new(callback.url.clone());
        let checked = route::may_reach(&policy, &self.guard, &url);
        let destination = Destination::Callback { url, policy, headers };
        if callback.push.is_some() {
            let at = record.step(sequence).and_then(|step| humantime::parse_rfc3339(&step.at).ok());
            let shaped = a2a::Update {
                task_id: &record.task_id,
                status: update.status.as_str(),
                at: at.unwrap_or(original.stored),
                message_id: &message.id,
                body: &update.body,
                context_id: record.context_id.as_deref(),
            };
            message.body = a2a::body(&shaped).into();
            message.content_type = HeaderValue::from_static(a2a::CONTENT_TYPE);
        } else {
            message.body = task::callback_body(&record.task_id, update, &message.body);
        }
        let call = Some(Call { record: Box::new(record), sequence, lease });
        Route { call, ..Route::new(message.id.clone(), &destination, checked) }
    }

    /// The receipt of an update that moved its task and is told to nobody.
    async fn tell_untold(&self, original: &Original, message: &Message) {
        let receipt = Receipt {
            agent: &message.agent,
            message_id: &message.id,
            delivery_id: &message.id,
            destination: "",
            status: Outcome::Delivered,
            attempt: 0,
            http_status: None,
            failure: None,
            reason: Some("no-callback"),
            detail: Some("the task has moved; its client did not ask to be called back".to_owned()),
            duration: None,
            next_attempt: None,
            at: self.clock.now(),
            about: original.about(),
            response: None,
        };
        self.ledger.receipt(&receipt, message.trace.as_ref()).await;
    }
}

/// The message that said this first: a replay repeats what moved the task when it was said. None for a replay of what
/// a long history has left out, which must not move the task back.
fn said_first(original: &Original, message: &Message, update: &Update, record: &Record) -> Option<u64> {
    if Replayed::read(&original.headers).is_none() {
        return Some(original.sequence);
    }
    let is_it = |step: &&task::Step| step.delivery.as_ref() == Some(&message.id) && step.status == update.status;
    match record.history.iter().find(is_it) {
        Some(step) => Some(step.sequence),
        None => {
            let moves = update.status.is_terminal() || record.sequence == 0;
            (moves || record.step(original.sequence).is_some()).then_some(original.sequence)
        }
    }
}

/// An agent that is told of a cancel may well answer that the task is canceled.
fn both_canceled(record: &Record, update: &Update) -> bool {
    (record.status, update.status) == (Status::Canceled, Status::Canceled)
}

fn push_headers(push: &a2a::PushConfig) -> HeaderMap {
    let header = |(name, value): (&'static str, String)| {
        let mut value = HeaderValue::from_str(&value).ok()?;
        value.set_sensitive(true);
        Some((http::HeaderName::from_static(name), value))
    };
    a2a::headers(push).into_iter().filter_map(header).collect()
}
