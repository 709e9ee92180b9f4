//! The gate before every attempt: so that one destination never harms another.
//!
//! Each destination has a breaker, a rate and a number of places, decided in this process. What may not begin now is
//! told when to come again, and goes back to the stream; nothing waits here for longer than a moment.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::breaker::{Breaker, Change, Health, Opened, Verdict};
use super::holds::{Holds, held_as};
use super::load::{Admission, LINE, Load};
use super::pace::{Later, Pace};
use super::pointer::Why;
use super::retry::Policy;
use crate::clock::Clock;

/// Destinations that are remembered; beyond it, those that rest are forgotten.
const REMEMBERED: usize = 20_000;
/// How far apart deliveries come back to a destination that failed.
const APART_AFTER_FAILURE: Duration = Duration::from_millis(5);
/// The longest that another courier's word is heeded.
const LONGEST_TOLD: Duration = Duration::from_secs(600);
/// The longest that anybody stands in line, whatever was expected.
const LINE_ENDS: Duration = LINE.saturating_mul(4);

/// All gates of a courier. Cheap to clone.
#[derive(Clone)]
pub(super) struct Gates {
    gates: Arc<Mutex<HashMap<String, Arc<Gate>>>>,
    in_flight: Arc<AtomicUsize>,
    /// From so many attempts in flight on, places are scarce.
    scarce_from: usize,
    clock: Clock,
    news: Arc<News>,
    holds: Holds,
}

/// What others have to hear of.
#[derive(Default)]
pub(super) struct News {
    /// Breakers that changed since they were last told.
    changes: Mutex<HashMap<String, Change>>,
    pub(super) changed: Notify,
    /// Destinations whose waiting deliveries may come now.
    released: Mutex<Vec<String>>,
    pub(super) release: Notify,
}

/// The gate of one destination.
struct Gate {
    token: String,
    most: usize,
    places: Arc<Semaphore>,
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    breaker: Breaker,
    pace: Pace,
    load: Load,
}

/// An attempt that may go out. Says how it ended, or, dropped, that nobody knows.
pub(super) struct Pass {
    gates: Gates,
    gate: Arc<Gate>,
    ended: bool,
    _place: OwnedSemaphorePermit,
}

/// Why an attempt may not begin, and when to ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotNow {
    pub(super) why: Why,
    pub(super) until: SystemTime,
}

impl Gates {
    /// Gates for a courier with so many slots.
    pub(super) fn new(slots: usize, clock: Clock) -> Self {
        let (gates, in_flight, news) = (Arc::default(), Arc::default(), Arc::default());
        Self { gates, in_flight, scarce_from: slots / 2, clock, news, holds: Holds::default() }
    }

    /// Asks for an attempt to the destination of this token, of a message of this agent. `held` is why the delivery
    /// waited before; `remembers` says whether it will bring what it is told now when it comes again.
    pub(super) async fn pass(
        &self,
        token: &str,
        agent: &str,
        policy: &Policy,
        held: Option<Why>,
        remembers: bool,
    ) -> Result<Pass, NotNow> {
        let gate = self.gate(token, policy);
        let has_breaker = policy.breaker.is_some();
        let held_as = held_as(token, agent);
        self.ask_holds(&held_as, &gate, policy)?;
        let place = self.place(&gate, has_breaker).await?;
        // Those before it in line may have been asked to wait.
        self.ask_holds(&held_as, &gate, policy)?;
        let now = self.clock.now();
        let mut inside = gate.inside();
        if has_breaker {
            gate.ask_breaker(&mut inside, now)?;
        }
        if let (Some(rate), false) = (policy.rate, held == Some(Why::Rate)) {
            inside.pace.take(rate, remembers, now).map_err(|later| match later {
                Later::Paid(until) => NotNow { why: Why::Rate, until },
                Later::Unpaid(until) => NotNow { why: Why::Busy, until: spread(now, until) },
            })?;
        }
        if has_breaker {
            // It was asked: this takes the place of the probe, if it is one.
            inside.breaker.may_begin(now, policy.timeout);
        }
        inside.load.begins(now);
        drop(inside);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Ok(Pass { gates: self.clone(), gate, ended: false, _place: place })
    }

    fn ask_holds(&self, held_as: &str, gate: &Gate, policy: &Policy) -> Result<(), NotNow> {
        let now = self.clock.now();
        let apart = || gate.inside().load.each(gate.most, now).max(APART_AFTER_FAILURE);
        match self.holds.wait(held_as, policy.max_retry_after, apart, now) {
            Some(until) => Err(NotNow { why: Why::RetryAfter, until }),
            None => Ok(()),
        }
    }

    /// What destinations have asked for.
    pub(super) fn holds(&self) -> &Holds {
        &self.holds
    }

    /// Lets come what waits for a destination without need.
    pub(super) fn release(&self, token: &str) {
        self.news.released.lock().unwrap_or_else(PoisonError::into_inner).push(token.to_owned());
        self.news.release.notify_one();
    }

    /// A place among those in flight, at once or after a moment in line.
    async fn place(&self, gate: &Arc<Gate>, has_breaker: bool) -> Result<OwnedSemaphorePermit, NotNow> {
        let pressed = self.in_flight.load(Ordering::Relaxed) > self.scarce_from;
        let now = self.clock.now();
        {
            let mut inside = gate.inside();
            if has_breaker {
                gate.ask_breaker(&mut inside, now)?;
            }
            match inside.load.admit(gate.most, pressed, now) {
                Admission::Wait => return Err(gate.busy(&mut inside, now)),
                Admission::Begin => {
                    if let Ok(place) = gate.places.clone().try_acquire_owned() {
                        return Ok(place);
                    }
                    inside.load.lines_up();
                }
                Admission::StandInLine => inside.load.lines_up(),
            }
        }
        let line = Line(gate);
        let place = tokio::time::timeout(LINE_ENDS, gate.places.clone().acquire_owned()).await;
        drop(line);
        match place {
            Ok(Ok(place)) => Ok(place),
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => Err(gate.busy(&mut gate.inside(), self.clock.now())),
        }
    }

    /// Takes over what another courier found out about a destination.
    pub(super) fn told(&self, token: &str, opened: Option<Opened>) {
        let gates = self.all();
        // Nobody's word holds anything up for longer than a breaker would.
        let latest = self.clock.now() + LONGEST_TOLD;
        let opened = opened.map(|opened| Opened { until: opened.until.min(latest), ..opened });
        match (gates.get(token), opened) {
            (Some(gate), opened) => gate.inside().breaker.adopt(opened),
            (None, Some(opened)) => {
                drop(gates);
                let gate = Arc::new(Gate::new(token, 1));
                gate.inside().breaker.adopt(Some(opened));
                let mut gates = self.all();
                if gates.len() < REMEMBERED {
                    gates.entry(token.to_owned()).or_insert(gate);
                }
            }
            (None, None) => {}
        }
    }

    /// The breakers that changed since this was last asked.
    pub(super) fn changes(&self) -> HashMap<String, Change> {
        std::mem::take(&mut self.news.changes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The destinations whose waiting deliveries may come, since this was last asked.
    pub(super) fn released(&self) -> Vec<String> {
        std::mem::take(&mut self.news.released.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn news(&self) -> &News {
        &self.news
    }

    /// Whether a destination is left alone now.
    pub(super) fn is_open(&self, token: &str) -> bool {
        self.all().get(token).is_some_and(|gate| gate.inside().breaker.opened().is_some())
    }

    /// How long a destination needs for each attempt, as far as is known.
    pub(super) fn each(&self, token: &str) -> Duration {
        let now = self.clock.now();
        self.all().get(token).map_or(Duration::ZERO, |gate| gate.inside().load.each(gate.most, now))
    }

    fn gate(&self, token: &str, policy: &Policy) -> Arc<Gate> {
        let mut gates = self.all();
        match gates.get(token) {
            Some(gate) if gate.most == policy.max_concurrent => return gate.clone(),
            // Another configuration: the breaker stays, the places are new.
            Some(gate) => {
                let changed = Gate::new(token, policy.max_concurrent);
                changed.inside().breaker.adopt(gate.inside().breaker.opened());
                let changed = Arc::new(changed);
                gates.insert(token.to_owned(), changed.clone());
                return changed;
            }
            None => {}
        }
        if gates.len() >= REMEMBERED {
            let now = self.clock.now();
            gates.retain(|_, gate| !gate.is_idle(now));
        }
        let gate = Arc::new(Gate::new(token, policy.max_concurrent));
        gates.insert(token.to_owned(), gate.clone());
        gate
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Arc<Gate>>> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gate {
    fn new(token: &str, most: usize) -> Self {
        let places = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        Self { token: token.to_owned(), most, places, inside: Mutex::default() }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask_breaker(&self, inside: &mut Inside, now: SystemTime) -> Result<(), NotNow> {
        match inside.breaker.asks(now) {
            Verdict::Begin => Ok(()),
            Verdict::Wait(earliest) => {
                let until = inside.load.give(earliest, APART_AFTER_FAILURE, now, rand::random());
                Err(NotNow { why: Why::Breaker, until })
            }
        }
    }

    fn busy(&self, inside: &mut Inside, now: SystemTime) -> NotNow {
        let each = inside.load.each(self.most, now);
        let until = inside.load.give(now + LINE, each, now, rand::random());
        NotNow { why: Why::Busy, until }
    }

    fn is_idle(&self, now: SystemTime) -> bool {
        let inside = self.inside();
        inside.load.is_idle(now) && inside.breaker.opened().is_none()
    }
}

impl Pass {
    /// Says how the attempt ended.
    pub(super) fn ended(mut self, policy: &Policy, health: Health, took: Duration) {
        self.ended = true;
        let now = self.gates.clock.now();
        let (change, has_room) = {
            let mut inside = self.gate.inside();
            inside.load.ends(Some(took), now);
            let change = policy.breaker.and_then(|breaker| inside.breaker.ended(&breaker, health, now));
            let open = inside.breaker.opened().is_some();
            (change, !open && inside.load.has_room(self.gate.most, now))
        };
        let (news, token) = (&self.gates.news, &self.gate.token);
        if let Some(change) = change {
            news.changes.lock().unwrap_or_else(PoisonError::into_inner).insert(token.clone(), change);
            news.changed.notify_one();
        }
        if has_room || change == Some(Change::Closed) {
            self.gates.release(token);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gates.in_flight.fetch_sub(1, Ordering::Relaxed);
        if !self.ended {
            self.gate.inside().load.ends(None, self.gates.clock.now());
        }
    }
}

/// Some moment in the second half of a wait, so that those who were told the same do not come together.
fn spread(now: SystemTime, until: SystemTime) -> SystemTime {
    now + until.duration_since(now).unwrap_or_default().mul_f64(0.5 + 0.5 * rand::random::<f64>())
}

/// Somebody stands in line, until this is dropped.
struct Line<'a>(&'a Arc<Gate>);

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.0.inside().load.leaves_line();
    }
}
