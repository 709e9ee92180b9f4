//! What is written down of a task, and how an update changes it.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use url::Url;

use super::a2a::PushConfig;
use super::{Status, Update};
use crate::clock::rfc3339;

/// The most bytes of an update that are kept in the record; the rest stays in the agent's message.
const INLINE: usize = 8 * 1024;
/// The most moves that are kept; of those between, the oldest are left out.
const MAX_HISTORY: usize = 64;
/// The fields of an update that the record shows.
pub(crate) const SHOWN: [&str; 4] = ["progress", "message", "result", "error"];

/// Where a client wants to hear of its task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Callback {
    pub(crate) url: Url,
    /// The states that it wants to hear of.
    pub(crate) on: Vec<Status>,
    /// Present where it wants them in the shape of A2A.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) push: Option<PushConfig>,
}

/// A move of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step {
    /// Which move it is; the first, by which the task came to be, is 0. What is left out of a long history leaves a gap.
    pub(crate) number: u64,
    pub(crate) status: Status,
    pub(crate) at: String,
    /// The outbox message that caused it; 0 for the first.
    pub(crate) sequence: u64,
    /// The delivery of its callback, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) delivery: Option<String>,
}

/// Who is telling the client something now, and until when nobody else may.
///
/// Written before an attempt, so that of all couriers together one tells at a time, and nobody tells what is old news.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Telling {
    /// The outbox message whose callback it is, and its delivery.
    pub(crate) sequence: u64,
    pub(crate) delivery: String,
    pub(crate) attempt: u32,
    pub(crate) until: String,
}

impl Telling {
    /// Whether its time is over.
    pub(crate) fn is_over(&self, now: SystemTime) -> bool {
        humantime::parse_rfc3339(&self.until).is_ok_and(|until| until < now)
    }
}

/// All that is known of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) task_id: String,
    pub(crate) agent: String,
    pub(crate) client: String,
    pub(crate) status: Status,
    pub(crate) created_at: String,
    pub(crate) updated_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) deadline: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) callback: Option<Callback>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) metadata: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) context_id: Option<String>,
    /// The SHA-256 of the request, by which a repeat is known.
    pub(crate) request: String,
    /// The outbox message that moved it last; 0 for none.
    pub(crate) sequence: u64,
    /// `progress`, `message`, `result` and `error` as the agent said them last.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(crate) said: Map<String, Value>,
    /// Whether what was said last is too large to be kept here: it is in OUTBOX, at `sequence`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) large: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) telling: Option<Telling>,
    /// The moves, in the order in which they were made.
    pub(crate) history: Vec<Step>,
}

/// Where an update comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cause<'a> {
    pub(crate) agent: &'a str,
    /// Its place in OUTBOX.
    pub(crate) sequence: u64,
    /// The id that its callback would have.
    pub(crate) delivery: &'a str,
    pub(crate) now: SystemTime,
}

/// What an update does to a task.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Applied {
    /// The task moves, once this record is written.
    Moved(Box<Record>),
    /// It has moved the task before.
    Repeat,
    /// A later update was there first: it says nothing any more.
    Superseded,
    /// Another agent holds the task.
    NotYours,
    /// The task cannot move there.
    Illegal(String),
}

impl Record {
    /// What an update does, by the rules of the states.
    pub(crate) fn apply(&self, update: &Update, cause: Cause<'_>) -> Applied {
        if self.agent != cause.agent {
            return Applied::NotYours;
        }
        if self.step(cause.sequence).is_some() {
            return Applied::Repeat;
        }
        // What ends a task ends it whenever it comes; what does not is old news after a later word.
        let is_late = self.history.iter().any(|step| step.sequence > cause.sequence);
        if is_late && !update.status.is_terminal() {
            return Applied::Superseded;
        }
        if !self.status.may_become(update.status) {
            let (task, is, next) = (&self.task_id, self.status, update.status);
            return Applied::Illegal(format!("task `{task}` is {is} and cannot become {next}"));
        }
        let (said, large) = said(update);
        let at = rfc3339(cause.now);
        let delivery = self.wants(update.status).then(|| cause.delivery.to_owned());
        let (status, sequence) = (update.status, cause.sequence);
        let mut history = self.history.clone();
        if history.len() >= MAX_HISTORY {
            // How it began stays, and of the rest what the client hears of.
            let untold = history.iter().skip(1).position(|step| step.delivery.is_none());
            history.remove(1 + untold.unwrap_or(0));
        }
        let number = history.last().map_or(0, |step| step.number + 1);
        history.push(Step { number, status, at: at.clone(), sequence, delivery });
        Applied::Moved(Box::new(Self { status, updated_at: at, sequence, said, large, history, ..self.clone() }))
    }

    /// The move that an outbox message caused.
    pub(crate) fn step(&self, sequence: u64) -> Option<&Step> {
        self.history.iter().find(|step| step.sequence == sequence && sequence > 0)
    }

    /// Whether the callback of an outbox message says nothing any more: the client hears, or has heard, of a later
    /// move. What ends a task is never left out.
    pub(crate) fn is_superseded(&self, sequence: u64) -> bool {
        // What a long history has left out has had many after it.
        let Some(step) = self.step(sequence) else { return true };
        let ends = step.status.is_terminal();
        let after = self.history.iter().skip_while(|step| step.sequence != sequence).skip(1);
        !ends && after.into_iter().any(|step| step.delivery.is_some())
    }

    /// Whether the client wants to hear of this state.
    pub(crate) fn wants(&self, status: Status) -> bool {
        self.callback.as_ref().is_some_and(|callback| callback.on.contains(&status))
    }
}

/// The fields of an update that the record shows, if there is room for them.
fn said(update: &Update) -> (Map<String, Value>, bool) {
    let said: Map<String, Value> =
        SHOWN.into_iter().filter_map(|name| Some((name.to_owned(), update.field(name)?.clone()))).collect();
    // Counting costs less than it seems: what is large is so in one text or list.
    let bytes = serde_json::to_vec(&said).map_or(0, |written| written.len());
    if bytes <= INLINE { (said, false) } else { (Map::new(), true) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn record(on: &[Status]) -> Record {
        let step = Step { number: 0, status: Status::Submitted, at: rfc3339(NOW), sequence: 0, delivery: None };
        Record {
            task_id: "t-1".to_owned(),
            agent: "planner".to_owned(),
            client: "shop".to_owned(),
            status: Status::Submitted,
            created_at: rfc3339(NOW),
            updated_at: rfc3339(NOW),
            deadline: None,
            callback: Some(Callback { url: "https://a.example/".parse().unwrap(), on: on.to_vec(), push: None }),
            metadata: None,
            context_id: None,
            request: String::new(),
            sequence: 0,
            said: Map::new(),
            large: false,
            telling: None,
            history: vec![step],
        }
    }

    fn update(status: Status) -> Update {
        Update { status, body: Map::new() }
    }

    fn cause(sequence: u64) -> Cause<'static> {
        Cause { agent: "planner", sequence, delivery: "m-1", now: NOW }
    }

    fn moved(record: &Record, status: Status, sequence: u64) -> Record {
        match record.apply(&update(status), cause(sequence)) {
            Applied::Moved(record) => *record,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_record_reads_back_as_it_is_written() {
        let record = moved(&record(&Status::ALL), Status::Working, 3);
        assert_eq!(serde_json::from_slice::<Record>(&serde_json::to_vec(&record).unwrap()).unwrap(), record);
    }

    #[test]
    fn an_update_moves_the_task_once_and_only_for_its_own_agent() {
        let working = moved(&record(&[Status::Completed]), Status::Working, 3);
        assert_eq!(
            (working.status, working.sequence, working.step(3).unwrap().delivery.as_deref()),
            (Status::Working, 3, None)
        );
        assert_eq!(working.apply(&update(Status::Working), cause(3)), Applied::Repeat);
        let other = Cause { agent: "thief", ..cause(4) };
        assert_eq!(working.apply(&update(Status::Completed), other), Applied::NotYours);
        let completed = moved(&working, Status::Completed, 5);
        assert_eq!(completed.step(5).unwrap().delivery.as_deref(), Some("m-1"));
        assert_eq!(completed.apply(&update(Status::Working), cause(4)), Applied::Superseded);
        // What ends it may have been said before what was heard first.
        let late = moved(&moved(&working, Status::Working, 6), Status::Failed, 4);
        assert_eq!((late.status, late.sequence, late.is_superseded(6)), (Status::Failed, 4, false));
        assert_eq!(completed.apply(&update(Status::Completed), cause(5)), Applied::Repeat);
        let Applied::Illegal(why) = completed.apply(&update(Status::Failed), cause(6)) else { panic!() };
        assert_eq!(why, "task `t-1` is completed and cannot become failed");
    }

    #[test]
    fn a_callback_is_superseded_by_a_later_one_unless_it_ends_the_task() {
        let working = moved(&record(&Status::ALL[1..]), Status::Working, 3);
        assert!(!working.is_superseded(3));
        let completed = moved(&working, Status::Completed, 5);
        assert!(completed.is_superseded(3) && !completed.is_superseded(5));
        let untold = moved(&moved(&record(&[Status::Working]), Status::Working, 3), Status::Completed, 5);
        assert!(!untold.is_superseded(3), "the client does not hear of the later move");
    }

    #[test]
    fn what_is_said_is_kept_if_it_is_small_and_left_in_its_message_if_not() {
        let says = |text: String| {
            let body = serde_json::json!({"status": "working", "message": text, "other": 1});
            let update = Update::read("t-1", &serde_json::to_vec(&body).unwrap()).unwrap();
            match record(&[]).apply(&update, cause(3)) {
                Applied::Moved(record) => (record.said.keys().cloned().collect::<Vec<_>>(), record.large),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(says("half".to_owned()), (vec!["message".to_owned()], false));
        assert_eq!(says("x".repeat(INLINE)), (vec![], true));
    }

    #[test]
    fn a_long_history_keeps_its_beginning_and_its_end() {
        let mut record = record(&[]);
        for sequence in 1..=200 {
            record = moved(&record, Status::Working, sequence);
        }
        assert_eq!(record.history.len(), MAX_HISTORY);
        assert_eq!((record.history[0].number, record.history[MAX_HISTORY - 1].number), (0, 200));
        assert_eq!(
            record.apply(&update(Status::Working), cause(2)),
            Applied::Superseded,
            "forgotten, and not done again"
        );
    }

    proptest! {
        /// Whatever arrives in whatever order and however often: every move is legal, nothing follows an end, and the
        /// end is told exactly under the message that caused it.
        #[test]
        fn no_sequence_of_messages_leaves_the_legal_graph_or_loses_the_terminal_callback(
            messages in proptest::collection::vec((1_u64..20, any::<bool>()), 0..60), shift in 0_usize..8
        ) {
            let mut record = record(&Status::ALL[1..]);
            let mut ended = None;
            for (sequence, ours) in messages {
                // A message says the same however often it comes.
                let status = Status::ALL[(sequence as usize * 3 + shift) % 8];
                let agent = if ours { "planner" } else { "thief" };
                match record.apply(&update(status), Cause { agent, ..cause(sequence) }) {
                    Applied::Moved(next) => {
                        prop_assert!(ours && record.status.may_become(next.status) && ended.is_none());
                        if next.status.is_terminal() {
                            ended = Some(sequence);
                        }
                        record = *next;
                    }
                    // Whatever ends it ends it, in whatever order it comes.
                    Applied::Superseded => prop_assert!(ended.is_some() || !status.is_terminal()),
                    Applied::Repeat => prop_assert!(record.step(sequence).is_some_and(|step| step.status == status)),
                    _ => {}
                }
                if let Some(end) = ended {
                    let step = record.step(end).unwrap();
                    prop_assert!(record.status == step.status && step.delivery.is_some() && !record.is_superseded(end));
                }
            }
        }
    }
}
