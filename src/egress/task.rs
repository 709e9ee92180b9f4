//! Updates of tasks: from an agent's message to the task's state, and on to its callback.
//!
//! Only the courier moves states. A move is written together with the sequence of the message that caused it, before
//! anything is told of it: the same message again is a repeat, and goes on to its callback. So a crash between state
//! and callback loses neither. [`telling`] keeps the callbacks in their order.

mod telling;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue};
use serde::Serialize;
use tokio::sync::Mutex;

use super::destination::Destination;
use super::intake::{self, Message, Original, Target};
use super::pointer::Why;
use super::reason::{Reason, Refusal};
use super::receipt::{Receipt, Status as Outcome};
use super::replay::Replayed;
use super::route::{self, Route};
use super::standing::{Standing, Subject};
use super::turns::Turn;
use super::worker::{Answer, Job, Worker};
use crate::broker::{Outgoing, PublishError, Received};
use crate::config::StreamKind;
use crate::event::headers::Headers;
use crate::event::{name, subject};
use crate::task::{self, Applied, CAUSE, Cause, DEADLINE, Record, Status, TASK_ID, Update, a2a};
use crate::telemetry::metrics::{HeldLabels, StatusLabels};
pub(super) use telling::{Call, NotItsTurn};

/// How often a move is tried while others change the record.
const TRIES: u32 = 20;
/// How far the clocks of gateway and server may be apart, at least and at most.
const CLOCKS: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));
/// The shortest and the longest time that an update is put off because of others of its task.
const PUT_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// What a message of OUTBOX is to the lanes of tasks.
pub(super) enum Lane {
    /// It is about no task.
    None,
    /// Its place among the updates of its task.
    Turn(Turn),
    /// There is no place for it now.
    Full,
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
    /// The place of a message among the updates of its task. Asked for as messages come, so that what one pull brings
    /// is applied in its order.
    pub(super) fn lane(&self, received: &Received) -> Lane {
        let names_one = received.headers.get(TASK_ID).is_some()
            || memchr::memmem::find(&received.payload, b"\"task_id\"").is_some();
        let message = names_one.then(|| intake::understand(&self.received(received)).ok()).flatten();
        let Some(message) = message else { return Lane::None };
        match &message.target {
            Target::Task(task_id) => self.turn(&message.agent, task_id).map_or(Lane::Full, Lane::Turn),
            _ => Lane::None,
        }
    }

    /// The next place in a task's lane. An agent that has no part in the task has a lane of its own for it.
    fn turn(&self, agent: &str, task_id: &str) -> Option<Turn> {
        self.turns.take(&format!("{agent}.{}", subject::token(task_id)))
    }

    /// Deals with an update of a task.
    pub(super) async fn update(
        &self,
        original: &Original,
        mut message: Message,
        lane: Lane,
        attempt: u32,
        held: Option<Why>,
        in_doubt: bool,
    ) -> Answer {
        let turn = match (lane, &message.target) {
            (Lane::Turn(turn), _) => Some(turn),
            (Lane::None, Target::Task(task_id)) => self.turn(&message.agent, task_id),
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
                let job = Job { original, message, route, attempt, held, in_line: false, turn: Some(&turn) };
                self.work(&job, in_doubt).await
            }
        }
    }

    /// Ends an update that somebody cancelled while it was put off, before it moves anything.
    async fn was_cancelled(&self, original: &Original, message: &Message, attempt: u32) -> bool {
        let route = put_off_route(message);
        let (agent, delivery_id, sequence) = (&message.agent, &message.id, original.sequence);
        let token = route.token.as_deref().unwrap_or_default();
        let asked = Subject { token, url: "", agent, delivery_id, sequence };
        let Standing::Cancelled(detail) = self.standings.standing(asked) else { return false };
        let (held, in_line, turn) = (None, false, None);
        let job = Job { original, message, route: &route, attempt, held, in_line, turn };
        self.cancel(&job, "cancelled", detail).await;
        true
    }

    /// Lets an update wait in the stream: so many of its task are in hand that more would take the place of others.
    /// The older it is the longer, so that a flood of them does not go round and round.
    async fn put_off_update(&self, original: &Original, message: &Message, attempt: u32) -> Answer {
        let route = put_off_route(message);
        let (held, in_line, turn) = (Some(Why::Turn), false, None);
        let job = Job { original, message, route: &route, attempt, held, in_line, turn };
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
            // A replay repeats what moved the task when it was first said.
            let said_before = record
                .history
                .iter()
                .find(|step| step.delivery.as_ref() == Some(&message.id) && step.status == update.status);
            let is_replay = Replayed::read(&original.headers).is_some();
            let is_lost = said_before.is_none() && record.step(original.sequence).is_none();
            if is_replay && is_lost && !update.status.is_terminal() && record.sequence > 0 {
                let detail = "what it repeats is no longer part of the task's history".to_owned();
                return Led::To(Route::superseded(&message.id, detail));
            }
            let replayed = said_before.filter(|_| is_replay);
            let sequence = replayed.map_or(original.sequence, |step| step.sequence);
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
            if tell && record.status.is_terminal() && record.deadline.is_some() {
                self.forget_deadline(&record).await;
            }
            if tell {
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

    /// Tells everybody on NATS of a move. Said again within two minutes, the stream knows it by its id.
    async fn tell_move(&self, record: &Record, sequence: u64, original: &Original) {
        let Some(step) = record.step(sequence) else { return };
        let Record { task_id, agent, .. } = record;
        let told = Told { task_id, agent, status: step.status, at: &step.at, sequence };
        self.tell_on_tasks(task::state_subject(agent, task_id), format!("{task_id}:{sequence}:state"), &told).await;
        let cause = original.headers.get(CAUSE).filter(|cause| ["client", "deadline"].contains(cause));
        if let Some(cause) = cause.filter(|_| step.status.is_terminal()) {
            let called_off = CalledOff { task_id, status: step.status, cause };
            let message_id = format!("{task_id}:{sequence}:cancel");
            self.tell_on_tasks(task::cancel_subject(agent, task_id), message_id, &called_off).await;
        }
    }

    async fn tell_on_tasks(&self, subject: String, message_id: String, said: &impl Serialize) {
        let mut headers = Headers::default();
        headers.push("content-type", "application/json");
        let payload = serde_json::to_vec(said).unwrap_or_default().into();
        self.ledger.news(&Outgoing { subject, headers, payload, message_id: Some(message_id) }).await;
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
        let record = match self.find(task_id).await {
            Found::Task(record, _) => record,
            Found::None => return Answer::Ack,
            Found::Unreadable => return Answer::Terminate,
            Found::Unknown => return Answer::Again,
        };
        let due = received.headers.get(DEADLINE).unwrap_or_default();
        if received.subject != task::deadline_due_on(&record.agent, task_id) {
            return self.forged(received, "it is no deadline of any task");
        }
        if record.deadline.as_deref() != Some(due) {
            tracing::debug!("Left a deadline of task {task_id} that is none any more, {due}");
            return Answer::Ack;
        }
        // By the server's clock, which is the one that let it go.
        if humantime::parse_rfc3339(due).is_ok_and(|due| received.stored < due) {
            return self.forged(received, "its time has not come");
        }
        if record.status.is_terminal() {
            return Answer::Ack;
        }
        let message = format!("there was no result by the deadline, {due}");
        let error = serde_json::json!({"code": "deadline-exceeded", "message": message});
        let body = serde_json::json!({"task_id": task_id, "status": Status::Failed, "error": error});
        // Nobody can know this id before, and publish under it. A second one would find the task ended.
        let message_id = format!("deadline-{task_id}-{:032x}", rand::random::<u128>());
        let (subject, headers) = task::own_update(&record.agent, task_id, "deadline");
        let payload = body.to_string().into();
        let outgoing = Outgoing { subject, headers, payload, message_id: Some(message_id) };
        tracing::info!(task.id = task_id, agent.name = record.agent, "Task {task_id} has passed its deadline, {due}");
        match self.ledger.write(&outgoing).await {
            Ok(()) => Answer::Ack,
            Err(_) => Answer::Again,
        }
    }

    /// Takes off the deadline of a task that has ended: it may be a year away. Left behind, it changes nothing.
    async fn forget_deadline(&self, record: &Record) {
        let waits_on = task::deadline_waits_on(&record.agent, &record.task_id);
        if let Ok(Some(waiting)) = self.broker.last(StreamKind::Retry, &waits_on).await
            && waiting.headers.get(DEADLINE) == record.deadline.as_deref()
            && let Err(error) = self.broker.remove(StreamKind::Retry, waiting.sequence).await
        {
            tracing::debug!("The deadline of task {} stays until it is due: {error}", record.task_id);
        }
    }
}

/// The route of an update that is put off: where it goes is not known before it is applied.
fn put_off_route(message: &Message) -> Route {
    let token = Some(format!("u_{}", message.agent));
    Route { token, ..Route::nowhere(message.id.clone(), Refusal::new(Reason::Unroutable, "it was put off")) }
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
