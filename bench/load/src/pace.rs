//! Requests at a constant rate, whatever the answers do.
//!
//! When each is due is fixed beforehand, and its latency counts from then: one that finds no connection free waits for
//! one, and that wait is part of what a sender would see (no coordinated omission). The clock is a timerfd, since
//! tokio's own timers round to milliseconds.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use serde::Serialize;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

use crate::Failure;
use crate::webhook::{Answer, Connection, Target, Webhook, now_nanos};

/// The longest that anybody waits for an answer.
const GIVE_UP: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Requests a second
    #[arg(long)]
    rate: u32,
    /// For how long
    #[arg(long)]
    seconds: f64,
    /// Seconds before them that count for no latency
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Kept connections
    #[arg(long, default_value_t = 64)]
    connections: usize,
}

/// A request that is due.
struct Due {
    at: Instant,
    /// Says when it was due, to whoever sees the webhook's id at the end of its way; not while warming up.
    id: String,
    timed: bool,
}

/// What is printed.
#[derive(Serialize)]
struct Report {
    sent: u64,
    statuses: BTreeMap<u16, u64>,
    duplicates: u64,
    /// Requests that were not answered at all.
    failed: u64,
    seconds: f64,
    /// From when a request was due until its answer was read.
    latency_ms: Spread,
    /// From when it was due until a connection took it: what the sender itself, or a lack of connections, adds.
    wait_ms: Spread,
}

/// The usual words about many durations.
#[derive(Serialize)]
pub(crate) struct Spread {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

/// Durations in µs.
pub(crate) struct Times(Histogram<u64>);

struct Tally {
    statuses: BTreeMap<u16, u64>,
    duplicates: u64,
    failed: u64,
    latency: Times,
    wait: Times,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let warm_up = (f64::from(arguments.rate) * arguments.warm_up) as u64;
    let count = warm_up + (f64::from(arguments.rate) * arguments.seconds) as u64;
    let webhook = arguments.target.webhook()?;
    let tally = Arc::new(Mutex::new(Tally::new()?));
    // Room for all, so that the clock never waits.
    let (sender, receiver) = mpsc::channel(count.max(1) as usize);
    let receiver = Arc::new(Mutex::new(receiver));
    let mut senders = Vec::with_capacity(arguments.connections);
    for _ in 0..arguments.connections {
        let connection = arguments.target.connect().await?;
        let (target, webhook) = (arguments.target.clone(), webhook.clone());
        senders.push(tokio::spawn(work(target, connection, webhook, receiver.clone(), tally.clone())));
    }
    let begun = Instant::now();
    keep_time(warm_up, count, arguments.rate, sender).await?;
    for worker in senders {
        worker.await?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let tally = tally.lock().await;
    let report = Report {
        sent: count,
        statuses: tally.statuses.clone(),
        duplicates: tally.duplicates,
        failed: tally.failed,
        seconds,
        latency_ms: tally.latency.spread(),
        wait_ms: tally.wait.spread(),
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Hands over each request when it is due.
async fn keep_time(warm_up: u64, count: u64, rate: u32, sender: mpsc::Sender<Due>) -> Result<(), Failure> {
    let timer = timer()?;
    let (first, first_nanos) = (Instant::now(), now_nanos());
    for number in 0..count {
        let offset = Duration::from_nanos(number * 1_000_000_000 / u64::from(rate));
        let at = first + offset;
        let left = at.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            sleep(&timer, left).await?;
        }
        let timed = number >= warm_up;
        let nanos = if timed { first_nanos + offset.as_nanos() as u64 } else { 0 };
        sender
            .try_send(Due { at, id: format!("bench-{nanos}-{number}"), timed })
            .map_err(|_| "nobody sends any more")?;
    }
    Ok(())
}

#[expect(
    deprecated,
    reason = "its successor is unsafe, for types that close their file themselves; an `OwnedFd` does not"
)]
fn timer() -> Result<AsyncFd<OwnedFd>, Failure> {
    Ok(AsyncFd::new(timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?)?)
}

async fn sleep(timer: &AsyncFd<OwnedFd>, left: Duration) -> Result<(), Failure> {
    let value = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
    let once = Itimerspec { it_interval: Timespec::default(), it_value: value };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
    // Setting it again takes back that it was readable, so nobody has to read it.
    timer.readable().await?.clear_ready();
    Ok(())
}

/// One connection: takes what is due, and sends it.
async fn work(
    target: Target,
    mut connection: Connection,
    webhook: Webhook,
    receiver: Arc<Mutex<mpsc::Receiver<Due>>>,
    tally: Arc<Mutex<Tally>>,
) {
    loop {
        let Some(due) = receiver.lock().await.recv().await else { return };
        let wait = due.at.elapsed();
        let answer = timeout(GIVE_UP, connection.send(&webhook, &due.id)).await;
        let (took, failed) = (due.at.elapsed(), !matches!(answer, Ok(Ok(_))));
        let mut tally = tally.lock().await;
        tally.count(answer.ok().and_then(Result::ok));
        if due.timed {
            tally.wait.add(wait);
            tally.latency.add(took);
        }
        drop(tally);
        if failed && let Ok(another) = target.connect().await {
            connection = another;
        }
    }
}

impl Tally {
    fn new() -> Result<Self, Failure> {
        let (latency, wait) = (Times::new()?, Times::new()?);
        Ok(Self { statuses: BTreeMap::new(), duplicates: 0, failed: 0, latency, wait })
    }

    fn count(&mut self, answer: Option<Answer>) {
        match answer {
            Some(answer) => {
                *self.statuses.entry(answer.status).or_default() += 1;
                self.duplicates += u64::from(answer.duplicate);
            }
            None => self.failed += 1,
        }
    }
}

impl Times {
    pub(crate) fn new() -> Result<Self, Failure> {
        Ok(Self(Histogram::new_with_bounds(1, 120_000_000, 3)?))
    }

    pub(crate) fn add(&mut self, time: Duration) {
        self.0.saturating_record(time.as_micros() as u64);
    }

    pub(crate) fn spread(&self) -> Spread {
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / 1000.0;
        let (mean, max) = (self.0.mean() / 1000.0, self.0.max() as f64 / 1000.0);
        Spread { mean, p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max }
    }
}
