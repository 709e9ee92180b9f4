//! Updates of tasks: from an agent's message to the task's state, and on to its callback.
//!
//! Only the courier moves states. A move is written together with the sequence of the message that caused it, before
//! anything is told of it: the same message again is a repeat, and goes on to its callback. So a crash between state
//! and callback loses neither.
//!
//! A task's callbacks keep their order. In this process its lane sees to it ([`super::turns`]); what another courier
//! may have on its way is found in the receipts. What waits is never waited for: it is superseded.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue};
use serde::Serialize;
use tokio::sync::Mutex;

use super::destination::Destination;
use super::intake::{self, Message, Original, Target};
use super::pointer::{Pointer, Why};
use super::reason::{Reason, Refusal};
use super::receipt::{self, Receipt, Status as Outcome};
use super::replay::Replayed;
use super::route::{self, Route};
use super::turns::Turn;
use super::worker::{Answer, Job, Worker};
use crate::broker::{Outgoing, PublishError, Received};
use crate::clock::rfc3339;
use crate::config::StreamKind;
use crate::event::headers::Headers;
use crate::event::{name, subject};
use crate::task::{self, Applied, CAUSE, Cause, DEADLINE, Record, Status, TASK_ID, Update, a2a};
use crate::telemetry::metrics::StatusLabels;

/// How long a callback waits for the one before it, in memory.
const LINE: Duration = Duration::from_millis(250);
/// How long it then waits in the stream.
const AGAIN: Duration = Duration::from_secs(1);
/// What clocks may differ, and what an attempt may take beside its timeout.
const SLACK: Duration = Duration::from_secs(2);
/// How often a move is tried while others change the record.
const TRIES: u32 = 20;

/// What there is to know of a task's callback before it is sent.
pub(super) struct Call {
    record: Arc<Record>,
    /// The message that caused the move; of a replay, that of the original.
    sequence: u64,
}

/// What an update has led to.
pub(super) enum Led {
    /// To a callback, or to a reason why there is none.
    To(Route),
    /// To a move that the client does not want to hear of.
    Untold,
    /// NATS did not say.
    Unknown,
}

/// What agents and orchestrators hear of a move, on `tasks.<agent>.<task id>.state`.
#[derive(Serialize)]
struct Told<'a> {
    task_id: &'a str,
    agent: &'a str,
    status: Status,
    at: &'a str,
    /// The outbox message that caused it.
    sequence: u64,
}

/// What the agent hears of a task that it need not finish, on `tasks.<agent>.<task id>.cancel`.
#[derive(Serialize)]
struct CalledOff<'a> {
    task_id: &'a str,
    status: Status,
    /// `client` or `deadline`.
    cause: &'a str,
}

impl Worker {
    /// The lane of the task that a message is about, if it is about one. Asked for each message in the order of the
    /// stream.
    pub(super) fn turn(&self, received: &Received) -> Option<Turn> {
        let names_one = received.headers.get(TASK_ID).is_some()
            || (received.payload.first() == Some(&b'{')
                && memchr::memmem::find(&received.payload, b"\"task_id\"").is_some());
        let message = names_one.then(|| intake::understand(&self.received(received)).ok()).flatten()?;
        match message.target {
            Target::Task(task_id) if name::is_token(&task_id) => Some(self.turns.take(&task_id)),
            _ => None,
        }
    }

    /// Deals with an update of a task.
    pub(super) async fn update(
        &self,
        original: &Original,
        mut message: Message,
        mut turn: Turn,
        attempt: u32,
        held: Option<Why>,
        in_doubt: bool,
    ) -> Answer {
        turn.wait_to_apply().await;
        let led = self.lead(original, &mut message).await;
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
                let job = Job { original, message, route, attempt, held, in_line: false, turn: Some(&turn) };
                self.work(&job, in_doubt).await
            }
        }
    }

    /// Applies an update, and finds its callback. What it is to send becomes the message's body.
    pub(super) async fn lead(&self, original: &Original, message: &mut Message) -> Led {
        let Target::Task(task_id) = &message.target else { return Led::Unknown };
        let task_id = task_id.clone();
        let refuse = |reason, detail: String| Led::To(Route::nowhere(message.id.clone(), Refusal::new(reason, detail)));
        let no_such = format!("there is no task `{}`", subject::token(&task_id));
        if !name::is_token(&task_id) {
            return refuse(Reason::Unroutable, no_such);
        }
        let update = match Update::read(&task_id, &message.body) {
            Ok(update) => update,
            Err(wrong) => return refuse(Reason::Malformed, wrong),
        };
        for _ in 0..TRIES {
            let kept = match self.broker.task(&task_id).await {
                Ok(Some(kept)) => kept,
                Ok(None) => return refuse(Reason::Unroutable, no_such),
                Err(error) => {
                    tracing::warn!("An update of task {task_id} has to wait: {error}");
                    return Led::Unknown;
                }
            };
            let Ok(record) = serde_json::from_slice::<Record>(&kept.value) else {
                return refuse(Reason::Malformed, format!("the state of task `{task_id}` cannot be read"));
            };
            // A replay repeats what moved the task when it was first said.
            let said_before = record.history.iter().find(|step| step.delivery.as_ref() == Some(&message.id));
            let replayed = said_before.filter(|_| Replayed::read(&original.headers).is_some());
            let sequence = replayed.map_or(original.sequence, |step| step.sequence);
            let (agent, delivery, now) = (&message.agent, &message.id, self.clock.now());
            let cause = Cause { agent, sequence, delivery, by: &self.process, now };
            let record = match record.apply(&update, cause) {
                Applied::Moved(next) => {
                    let ends = next.status.is_terminal().then_some(self.task_retention);
                    let Ok(value) = serde_json::to_vec(&next) else { return Led::Unknown };
                    match self.broker.write_task(&task_id, value.into(), kept.revision, ends).await {
                        Ok(Some(_)) => {}
                        Ok(None) => continue,
                        Err(PublishError::TooLarge) => {
                            return refuse(
                                Reason::TooLarge,
                                format!("the state of task `{task_id}` has no room for it"),
                            );
                        }
                        Err(error) => {
                            tracing::warn!("An update of task {task_id} has to wait: {error}");
                            return Led::Unknown;
                        }
                    }
                    self.metrics.task_moves.get_or_create(&StatusLabels { status: next.status.as_str() }).inc();
                    *next
                }
                Applied::Repeat => record,
                Applied::Superseded => {
                    let detail = format!("task `{task_id}` has moved on by a later update");
                    return Led::To(Route {
                        superseded: Some(detail),
                        ..Route::nowhere(message.id.clone(), Refusal::new(Reason::Illegal, ""))
                    });
                }
                Applied::NotYours => {
                    return refuse(Reason::Forbidden, format!("task `{task_id}` is held by another agent"));
                }
                Applied::Illegal(why) => return refuse(Reason::Illegal, why),
            };
            self.tell_move(&record, sequence, original).await;
            let Some(callback) = record.callback.as_ref().filter(|_| record.wants(update.status)) else {
                return Led::Untold;
            };
            let policy = self.registry.now().callbacks_of(&record.client);
            let headers = callback.push.as_ref().map(|push| Arc::new(push_headers(push)));
            let destination =
                Destination::Callback { url: Box::new(callback.url.clone()), policy: policy.clone(), headers };
            let checked = route::may_reach(&policy, &self.guard, &callback.url);
            match &callback.push {
                Some(_) => {
                    let at = record
                        .step(sequence)
                        .and_then(|step| humantime::parse_rfc3339(&step.at).ok())
                        .unwrap_or(original.stored);
                    let shaped = a2a::Update {
                        task_id: &task_id,
                        status: update.status.as_str(),
                        at,
                        message_id: &message.id,
                        body: &update.body,
                        context_id: record.context_id.as_deref(),
                    };
                    message.body = a2a::body(&shaped).into();
                    message.content_type = HeaderValue::from_static(a2a::CONTENT_TYPE);
                }
                None => message.body = task::callback_body(&task_id, &update, &message.body),
            }
            let call = Call { record: Arc::new(record), sequence };
            return Led::To(Route { call: Some(call), ..Route::new(message.id.clone(), &destination, checked) });
        }
        Led::Unknown
    }

    /// Whether a task's callback may be sent now, as far as its order goes.
    ///
    /// Returns why not: it says nothing any more, or what is before it may still be on its way.
    pub(super) async fn in_turn(&self, job: &Job<'_>) -> Result<(), NotItsTurn> {
        let (Some(call), Some(turn)) = (&job.route.call, &job.turn) else { return Ok(()) };
        if call.record.is_superseded(call.sequence) {
            let detail = format!("task `{}` has moved on, and its client hears of that", call.record.task_id);
            return Err(NotItsTurn::Superseded(detail));
        }
        let now = self.clock.now();
        if !turn.lock().await.wait_to_tell(LINE).await {
            return Err(NotItsTurn::NotYet(now + AGAIN));
        }
        let Some(before) = call.record.told_before(call.sequence) else { return Ok(()) };
        let delivery = before.delivery.as_deref().unwrap_or_default();
        let every = receipt::every_subject(&job.message.agent, delivery);
        let told = match self.broker.last(StreamKind::Receipts, &every).await {
            Ok(told) => told.filter(|told| receipt::about(told) == Some(before.sequence)),
            Err(error) => {
                tracing::warn!("A callback of task {} has to wait: {error}", call.record.task_id);
                return Err(NotItsTurn::NotYet(now + AGAIN));
            }
        };
        let longest = job.route.destination.as_ref().map_or(Duration::ZERO, |to| to.policy().timeout) + SLACK;
        // When it may have begun, if it is on its way elsewhere.
        let begun = match told.as_ref().map(|told| receipt::due_of(told, before.sequence)) {
            // It has ended.
            Some(None) => return Ok(()),
            Some(Some(due)) if due > now => {
                self.supersede(job, delivery).await;
                return Ok(());
            }
            Some(Some(due)) => due,
            // Nothing before this is on its way here: the lane was waited for.
            None if before.by == self.process => return Ok(()),
            None => humantime::parse_rfc3339(&before.at).unwrap_or(SystemTime::UNIX_EPOCH),
        };
        if now > begun + longest { Ok(()) } else { Err(NotItsTurn::NotYet(now + AGAIN)) }
    }

    /// Lets a callback that waits and says nothing any more come now: whoever gets it ends it.
    async fn supersede(&self, job: &Job<'_>, delivery: &str) {
        let Some(token) = &job.route.token else { return };
        let waiting = self.broker.last(StreamKind::Retry, &format!("retry.at.{token}.{delivery}")).await;
        if let Ok(Some(waiting)) = waiting
            && let Some(pointer) = Pointer::read(&waiting.headers)
            && let Err(error) = self.bring_forward(&waiting, &pointer, self.clock.now()).await
        {
            tracing::debug!("A callback that says nothing any more waits until it is due: {error}");
        }
    }

    /// Tells everybody on NATS of a move. Said again, the stream knows it by its id.
    async fn tell_move(&self, record: &Record, sequence: u64, original: &Original) {
        let Some(step) = record.step(sequence) else { return };
        let Record { task_id, agent, .. } = record;
        let told = Told { task_id, agent, status: step.status, at: &step.at, sequence };
        self.tell_on_tasks(task::state_subject(agent, task_id), format!("{task_id}:{sequence}:state"), &told).await;
        if let Some(cause) = original.headers.get(CAUSE) {
            let called_off = CalledOff { task_id, status: step.status, cause };
            let message_id = format!("{task_id}:{sequence}:cancel");
            self.tell_on_tasks(task::cancel_subject(agent, task_id), message_id, &called_off).await;
        }
    }

    async fn tell_on_tasks(&self, subject: String, message_id: String, said: &impl Serialize) {
        let mut headers = Headers::default();
        headers.push("content-type", "application/json");
        let payload = serde_json::to_vec(said).unwrap_or_default().into();
        // A few hundred bytes: a server that takes no such message takes none at all.
        drop(self.ledger.write(&Outgoing { subject, headers, payload, message_id: Some(message_id) }).await);
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
            sequence: original.sequence,
            response: None,
        };
        self.ledger.receipt(&receipt, message.trace.as_ref()).await;
    }

    /// Deals with a deadline that has come: a task that has not ended by then has failed.
    ///
    /// It is said in OUTBOX, where it goes the way of every update.
    pub(super) async fn deadline(&self, received: &Received, task_id: &str) -> Answer {
        let kept = match self.broker.task(task_id).await {
            Ok(Some(kept)) => kept,
            Ok(None) => return Answer::Ack,
            Err(error) => {
                tracing::warn!("The deadline of task {task_id} has to wait: {error}");
                return Answer::Again;
            }
        };
        let Ok(record) = serde_json::from_slice::<Record>(&kept.value) else { return Answer::Again };
        let due = received.headers.get(DEADLINE);
        let at = due.and_then(|due| humantime::parse_rfc3339(due).ok());
        let expected = format!("retry.due.{}.{task_id}", task::deadline_token(&record.agent));
        if due.is_none() || due != record.deadline.as_deref() || received.subject != expected {
            return self.forged(received, "it is no deadline of any task");
        }
        if record.status.is_terminal() {
            return Answer::Ack;
        }
        if at.is_some_and(|at| self.clock.now() + SLACK < at) {
            return self.forged(received, "its time has not come");
        }
        let message = format!("there was no result by the deadline, {}", due.unwrap_or_default());
        let error = serde_json::json!({"code": "deadline-exceeded", "message": message});
        let body = serde_json::json!({"task_id": task_id, "status": Status::Failed, "error": error});
        // Nobody can know this id before, and publish under it.
        let message_id = format!("deadline-{task_id}-{}-{}", received.sequence, rfc3339(received.stored));
        let (subject, headers) = task::own_update(&record.agent, task_id, "deadline");
        let payload = body.to_string().into();
        let outgoing = Outgoing { subject, headers, payload, message_id: Some(message_id) };
        match self.ledger.write(&outgoing).await {
            Ok(()) => Answer::Ack,
            Err(_) => Answer::Again,
        }
    }
}

/// Why a callback is not sent now.
pub(super) enum NotItsTurn {
    Superseded(String),
    NotYet(SystemTime),
}

fn push_headers(push: &a2a::PushConfig) -> HeaderMap {
    let header = |(name, value): (&'static str, String)| {
        let mut value = HeaderValue::from_str(&value).ok()?;
        value.set_sensitive(true);
        Some((http::HeaderName::from_static(name), value))
    };
    a2a::headers(push).into_iter().filter_map(header).collect()
}
