//! Which waiting messages go out next, and how. Pure: [`mod@super::publisher`] acts on it.
//!
//! A batch costs the server a fixed sum, about that of a dozen single messages on a disk that is synced always, and
//! is refused as a whole if the stream knows the id of one message in it. So few go out one by one, and so does what
//! may well be a repeat. Where many are repeats that nobody here could know, batches get smaller, down to none.

use std::collections::{HashSet, VecDeque};
use std::mem;
use std::time::Duration;

/// The most messages that go out in one round. The server takes 1,000 in a batch.
pub(super) const MOST_MESSAGES: usize = 512;
/// The most bytes of them, unless a single one is larger. The server holds them until the batch is complete.
pub(super) const MOST_BYTES: usize = 4 * 1024 * 1024;
/// Rounds on their way at once, of those that others wait for.
const ROUNDS: usize = 2;
/// Rounds on their way at once in all.
const ALL_ROUNDS: usize = 16;
/// How long others wait for the end of a round. One that takes longer is stuck, perhaps with a single message that
/// gets no answer, and must not hold up everybody.
pub(super) const WAITED_FOR: Duration = Duration::from_millis(100);
/// Fewer than these are faster one by one.
const FEWEST: usize = 16;
/// How many repeats a batch may be expected to hold: more than half of them are taken then.
const EXPECTED_REPEATS: f64 = 0.5;
/// Over how many of the last messages the share of repeats is taken.
const OBSERVED: f64 = 512.0;
/// How many messages wait because their ids are on their way; what is over goes out beside them, by itself.
const MOST_HELD: usize = 64;
/// How many batches of a round are halved. One repeat among the most messages takes six.
const HALVED: usize = 8;
/// How many ids of stored messages are remembered, at least; twice as many at most. 8 bytes each, and what the set
/// itself takes.
const REMEMBERED: usize = 64 * 1024;

/// What waits to be published.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    /// Stands for the message's id. Two ids with the same one are merely not put into one batch.
    pub(super) key: u64,
    /// The bytes of the message, those that a batch adds included.
    pub(super) bytes: usize,
    pub(super) message: T,
}

/// Messages that go out together if there are several in a part, and by themselves if there is one.
#[derive(Debug)]
pub(super) struct Round<T> {
    pub(super) parts: Vec<Vec<Waiting<T>>>,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Stored,
    /// It was stored before.
    Repeat,
    /// Not stored, or nobody knows.
    Lost,
}

/// The ids that make a message a repeat, as far as this process can know.
#[derive(Debug, Default)]
pub(super) struct Known {
    in_flight: HashSet<u64>,
    stored: HashSet<u64>,
    stored_before: HashSet<u64>,
    /// The share of repeats among those whose ids were not known here.
    repeats: f64,
}

impl Known {
    /// A message is on its way no longer.
    pub(super) fn ended(&mut self, key: u64, ended: Ended) {
        self.in_flight.remove(&key);
        if ended == Ended::Lost || self.is_stored(key) {
            return;
        }
        self.repeats += (f64::from(u8::from(ended == Ended::Repeat)) - self.repeats) / OBSERVED;
        if self.stored.len() == REMEMBERED {
            self.stored_before = mem::take(&mut self.stored);
        }
        self.stored.insert(key);
    }

    /// How many messages may be in one batch now.
    fn most_together(&self) -> usize {
        let most = EXPECTED_REPEATS / self.repeats.max(f64::MIN_POSITIVE);
        (1..=MOST_MESSAGES).rev().find(|size| *size as f64 <= most).unwrap_or(1)
    }

    fn is_stored(&self, key: u64) -> bool {
        self.stored.contains(&key) || self.stored_before.contains(&key)
    }
}

/// Whether another round goes out beside those that are on their way, of which some are [waited for](WAITED_FOR).
/// What waits for the end of one goes out in fewer and larger batches, so only a full one goes out beside it.
pub(super) fn is_due(on_their_way: usize, waited_for: usize, waiting: usize) -> bool {
    on_their_way < ALL_ROUNDS && (waited_for == 0 || (waited_for < ROUNDS && waiting >= MOST_MESSAGES))
}

/// Takes what goes out next, in its order. `largest` is the most bytes that a message in a batch may have.
///
/// A few messages whose ids are on their way stay: each is a repeat if that one is stored, and takes its place if not.
pub(super) fn next<T>(waiting: &mut VecDeque<Waiting<T>>, known: &mut Known, largest: usize) -> Option<Round<T>> {
    let (mut together, mut alone, mut later, mut bytes) = (Vec::new(), Vec::new(), VecDeque::new(), 0);
    while let Some(candidate) = waiting.pop_front() {
        let count = together.len() + alone.len();
        if count == MOST_MESSAGES || (count > 0 && bytes + candidate.bytes > MOST_BYTES) {
            waiting.push_front(candidate);
            break;
        }
        let is_stored = known.is_stored(candidate.key);
        let is_on_its_way = !is_stored && !known.in_flight.insert(candidate.key);
        if is_on_its_way && later.len() < MOST_HELD {
            later.push_back(candidate);
            continue;
        }
        bytes += candidate.bytes;
        if is_stored || is_on_its_way || candidate.bytes > largest {
            alone.push(vec![candidate]);
        } else {
            together.push(candidate);
        }
    }
    later.append(waiting);
    *waiting = later;
    let parts: Vec<_> = in_parts(together, known.most_together()).into_iter().chain(alone).collect();
    (!parts.is_empty()).then_some(Round { parts })
}

/// Takes a batch apart that was refused for a repeat, when so many of its round were before: halves, or single messages
/// where a half is too few for a batch, or where there are so many repeats that looking for them takes longer.
pub(super) fn split<T>(batch: Vec<Waiting<T>>, refused_before: usize) -> Vec<Vec<Waiting<T>>> {
    let half = if refused_before < HALVED { batch.len().div_ceil(2) } else { 1 };
    in_parts(batch, half)
}

/// Parts of so many messages where that is worth it, and each of the others by itself.
fn in_parts<T>(mut messages: Vec<Waiting<T>>, most: usize) -> Vec<Vec<Waiting<T>>> {
    let mut parts = Vec::new();
    while most >= FEWEST && messages.len() >= FEWEST {
        let rest = messages.split_off(most.min(messages.len()));
        parts.push(messages);
        messages = rest;
    }
    parts.extend(one_by_one(messages));
    parts
}

/// Each message by itself.
pub(super) fn one_by_one<T>(messages: Vec<Waiting<T>>) -> Vec<Vec<Waiting<T>>> {
    messages.into_iter().map(|message| vec![message]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGEST: usize = 1024 * 1024;

    fn message(key: u64, bytes: usize) -> Waiting<()> {
        Waiting { key, bytes, message: () }
    }

    fn waiting(keys: impl IntoIterator<Item = u64>) -> VecDeque<Waiting<()>> {
        keys.into_iter().map(|key| message(key, 1000)).collect()
    }

    fn keys(parts: &[Vec<Waiting<()>>]) -> Vec<Vec<u64>> {
        parts.iter().map(|part| part.iter().map(|message| message.key).collect()).collect()
    }

    /// The parts of the next round.
    fn next_keys(queue: &mut VecDeque<Waiting<()>>, known: &mut Known) -> Vec<Vec<u64>> {
        next(queue, known, LARGEST).map_or(Vec::new(), |round| keys(&round.parts))
    }

    #[test]
    fn few_go_out_one_by_one_and_many_together() {
        let (mut one, mut few, mut many) = (waiting([1]), waiting(0..FEWEST as u64 - 1), waiting(0..FEWEST as u64));
        assert_eq!(next_keys(&mut one, &mut Known::default()), [[1]]);
        assert_eq!(next_keys(&mut few, &mut Known::default()).len(), FEWEST - 1);
        let all: Vec<u64> = (0..FEWEST as u64).collect();
        assert_eq!(next_keys(&mut many, &mut Known::default()), [all]);
        assert!(next(&mut many, &mut Known::default(), LARGEST).is_none());
    }

    #[test]
    fn who_comes_alone_goes_out_at_once_and_a_full_round_beside_another() {
        assert!(is_due(0, 0, 1));
        assert!(!is_due(1, 1, 1) && !is_due(1, 1, MOST_MESSAGES - 1));
        assert!(is_due(1, 1, MOST_MESSAGES));
        assert!(!is_due(ROUNDS, ROUNDS, 10 * MOST_MESSAGES));
    }

    #[test]
    fn nobody_waits_for_a_round_that_is_stuck_and_stuck_ones_have_a_limit() {
        assert!(is_due(1, 0, 1) && is_due(ALL_ROUNDS - 1, 0, 1));
        assert!(!is_due(ALL_ROUNDS, 0, 10 * MOST_MESSAGES));
    }

    #[test]
    fn copies_of_what_is_on_its_way_keep_nobody_else_from_being_looked_at() {
        let (mut queue, mut known) = (waiting([7]), Known::default());
        next_keys(&mut queue, &mut known);
        queue.extend(waiting([7; MOST_HELD + 3].into_iter().chain([8])));
        let parts = next_keys(&mut queue, &mut known);
        assert_eq!(parts, [[8], [7], [7], [7]]);
        assert_eq!(queue.len(), MOST_HELD);
    }

    #[test]
    fn a_round_has_limits_and_what_is_over_keeps_its_place() {
        let mut queue = waiting(0..MOST_MESSAGES as u64 + 5);
        assert_eq!(next_keys(&mut queue, &mut Known::default())[0].len(), MOST_MESSAGES);
        assert_eq!(queue.front().unwrap().key, MOST_MESSAGES as u64);

        let mut queue: VecDeque<_> = (0..40).map(|key| message(key, MOST_BYTES / 20)).collect();
        assert_eq!(next_keys(&mut queue, &mut Known::default())[0].len(), 20);
        assert_eq!(queue.len(), 20);

        let mut queue: VecDeque<_> = (0..2).map(|key| message(key, MOST_BYTES + 1)).collect();
        assert_eq!(next_keys(&mut queue, &mut Known::default()), [[0]]);
    }

    #[test]
    fn what_is_too_large_for_a_batch_goes_out_by_itself_beside_it() {
        let mut queue = waiting(0..20);
        queue.push_front(message(99, LARGEST + 1));
        let parts = next_keys(&mut queue, &mut Known::default());
        assert_eq!((parts.len(), parts[0].len(), &parts[1]), (2, 20, &vec![99]));
    }

    #[test]
    fn repeats_of_what_is_on_its_way_wait_and_then_go_out_each_by_itself() {
        let (mut queue, mut known) = (waiting((0..20).chain([7, 7])), Known::default());
        assert_eq!(next_keys(&mut queue, &mut known), [(0..20).collect::<Vec<_>>()]);
        assert!(next(&mut queue, &mut known, LARGEST).is_none());
        queue.extend(waiting(100..120));
        assert_eq!(next_keys(&mut queue, &mut known), [(100..120).collect::<Vec<_>>()]);

        (0..20).for_each(|key| known.ended(key, Ended::Stored));
        queue.extend(waiting(200..220));
        let parts = next_keys(&mut queue, &mut known);
        assert_eq!(parts, [(200..220).collect::<Vec<_>>(), vec![7], vec![7]]);
    }

    #[test]
    fn what_was_not_stored_is_no_repeat() {
        let (mut queue, mut known) = (waiting(0..20), Known::default());
        next_keys(&mut queue, &mut known);
        (0..20).for_each(|key| known.ended(key, Ended::Lost));
        assert_eq!(next_keys(&mut waiting(0..20), &mut known).len(), 1);
    }

    #[test]
    fn ids_are_remembered_up_to_a_limit_and_the_oldest_are_forgotten_first() {
        let mut known = Known::default();
        (0..3 * REMEMBERED as u64).for_each(|key| known.ended(key, Ended::Stored));
        assert!(known.is_stored(2 * REMEMBERED as u64) && known.is_stored(REMEMBERED as u64));
        assert!(!known.is_stored(0));
        assert!(known.stored.len() + known.stored_before.len() <= 2 * REMEMBERED);
    }

    #[test]
    fn a_refused_batch_is_halved_down_to_single_messages() {
        let mut sizes = Vec::new();
        let mut parts = vec![waiting(0..256).into_iter().collect::<Vec<_>>()];
        while parts.len() < 256 {
            parts = parts.into_iter().flat_map(|part| split(part, 0)).collect();
            sizes.push(parts[0].len());
        }
        assert_eq!(sizes, [128, 64, 32, 16, 1]);
        assert_eq!(keys(&parts).concat(), (0..256).collect::<Vec<u64>>());
    }

    #[test]
    fn looking_for_repeats_has_an_end() {
        let batch = || waiting(0..256).into_iter().collect::<Vec<_>>();
        assert_eq!(split(batch(), HALVED - 1).len(), 2);
        assert_eq!(split(batch(), HALVED).len(), 256);
    }

    #[test]
    fn batches_are_smaller_where_many_are_repeats_that_nobody_knew_and_recover() {
        let (mut known, mut keys) = (Known::default(), 0..);
        let mut see = |known: &mut Known, count: usize, repeat: &dyn Fn(usize) -> bool| {
            for number in 0..count {
                let ended = if repeat(number) { Ended::Repeat } else { Ended::Stored };
                known.ended(keys.next().unwrap(), ended);
            }
            known.most_together()
        };
        assert_eq!(known.most_together(), MOST_MESSAGES);
        assert_eq!(see(&mut known, 1, &|_| true), 256);
        assert!(see(&mut known, 512, &|number| number % 10 == 0) < FEWEST);
        assert_eq!(next(&mut waiting(1_000_000..1_000_100), &mut known, LARGEST).unwrap().parts.len(), 100);
        assert_eq!(see(&mut known, 4096, &|_| false), MOST_MESSAGES);
        // What is known to be a repeat says nothing about the others.
        (0..1000).for_each(|_| known.ended(1, Ended::Repeat));
        assert_eq!(known.most_together(), MOST_MESSAGES);
    }
}
