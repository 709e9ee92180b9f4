//! `kill -9` of the courier and of nats-server, at every step of a delivery.
//!
//! Whatever dies and whenever: each outbox message ends in exactly one of delivered, dead, cancelled and waiting; what
//! is delivered was received with its own id and body; what was received more often than it had to be was in flight
//! at a kill; and an ordered endpoint sees the order of the stream.
//!
//! The size is set by `KILLS_MESSAGES` and `KILLS`; `KILLS_PER_SECOND` spreads the messages, and `KILLS_APART_MS` puts
//! every kill so long after the beginning of its part of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use async_nats::jetstream;
use futures_util::StreamExt;

use crate::harness::{Configuration, Message, Nats, Program, Seen, Witness, within};

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Courier,
    Server,
}

/// When: right after the so-manieth of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// The server gave out messages.
    Pulled,
    /// Requests arrived, and none was answered.
    Arrived,
    /// Requests were answered.
    Answered,
    /// A receipt was written.
    Receipt,
    /// A next attempt was scheduled.
    Scheduled,
    /// A fan-out was split.
    Split,
    /// A dead letter was written.
    Buried,
    /// A message was acked.
    Acked,
}

const MOMENTS: [Moment; 8] = [
    Moment::Arrived,
    Moment::Receipt,
    Moment::Pulled,
    Moment::Scheduled,
    Moment::Answered,
    Moment::Split,
    Moment::Acked,
    Moment::Buried,
];

/// What kind of message the one of a number is, and so what must become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Healthy,
    /// Delivered at the second attempt.
    Flaky,
    /// Dead after the third.
    Failing,
    /// Waits for an hour after the first.
    Later,
    /// Two deliveries, of which one is flaky.
    Fan,
    /// Now and then flaky.
    Ordered,
    /// More of them than may begin at once.
    Rated,
    /// Nobody wants it.
    Unroutable,
}

impl Kind {
    fn of(number: usize) -> Self {
        // By turns, so that every part of a run has all of them.
        match number * 7 % 50 {
            0..=21 => Self::Healthy,
            22..=29 => Self::Flaky,
            30..=32 => Self::Failing,
            33..=34 => Self::Later,
            35..=40 => Self::Fan,
            41..=43 => Self::Ordered,
            44..=47 => Self::Rated,
            _ => Self::Unroutable,
        }
    }

    fn subject(self) -> &'static str {
        match self {
            Self::Fan => "outbox.a.fan.out",
            // An agent of its own, so that the line sees nothing else.
            Self::Ordered => "outbox.o",
            _ => "outbox.a",
        }
    }

    /// The endpoint that is named; none where the subject says it.
    fn endpoint(self) -> Option<&'static str> {
        match self {
            Self::Healthy => Some("healthy"),
            Self::Flaky => Some("flaky"),
            Self::Failing => Some("failing"),
            Self::Later => Some("later"),
            Self::Fan => None,
            Self::Ordered => Some("ordered"),
            Self::Rated => Some("rated"),
            Self::Unroutable => Some("nobody"),
        }
    }

    /// How each of its deliveries ends.
    fn ends(self) -> &'static [End] {
        match self {
            Self::Healthy | Self::Flaky | Self::Ordered | Self::Rated => &[End::Delivered],
            Self::Failing | Self::Unroutable => &[End::Dead],
            Self::Later => &[End::Waiting],
            Self::Fan => &[End::Delivered, End::Delivered],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Delivered,
    Dead,
    Cancelled,
    Waiting,
}

fn id(number: usize) -> String {
    format!("m-{number}")
}

fn number(id: &str) -> usize {
    id.strip_prefix("m-").and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("a webhook-id {id:?}"))
}

fn body(number: usize) -> String {
    format!("{{\"number\":{number},\"text\":\"{}\"}}", "body ".repeat(number % 20))
}

/// How often a delivery to this endpoint is attempted when nobody dies.
fn attempts(endpoint: &str, id: &str) -> usize {
    match endpoint {
        "flaky" | "fan-b" => 2,
        "ordered" if number(id).is_multiple_of(8) => 2,
        "failing" => 3,
        _ => 1,
    }
}

fn answers(endpoint: &str, id: &str, nth: usize) -> u16 {
    match endpoint {
        "failing" | "later" => 500,
        _ if nth < attempts(endpoint, id) => 503,
        _ => 204,
    }
}

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// A kill that was done. What was sent before it had arrived by its end.
struct Kill {
    victim: Victim,
    moment: Moment,
    begun: SystemTime,
    ended: SystemTime,
}

/// A server, a receiver, and the courier that is killed.
struct Stage {
    nats: Nats,
    witness: Witness,
    configuration: Configuration,
    courier: Option<Program>,
    kills: Vec<Kill>,
    /// The stream sequences of the ordered messages.
    ordered: BTreeMap<u64, String>,
    /// How many messages there are in all.
    messages: usize,
}

impl Stage {
    async fn set(messages: usize) -> Self {
        let (nats, witness) = (Nats::start().await, Witness::start(answers).await);
        let endpoint = |name: &str, more: &str| {
            let url = witness.url(&format!("/{name}"));
            format!("[endpoints.{name}]\nurl = \"{url}\"\nsignatures = []\n{more}\n")
        };
        let rate = format!("rate = \"{}/s burst 5\"", messages.div_ceil(30));
        let text = [
            "[telemetry]\nlog = \"error,hookbridge::app=info\"\n".to_owned(),
            "[egress]\ntimeout = \"30s\"\nbreaker = \"none\"\nretry = [\"200ms\", \"300ms\"]\n".to_owned(),
            endpoint("healthy", ""),
            endpoint("flaky", "retry = [\"300ms\", \"300ms\", \"300ms\", \"300ms\"]"),
            endpoint("failing", ""),
            endpoint("later", "retry = [\"1h\"]"),
            endpoint("fan-a", "subjects = [\"outbox.*.fan.>\"]"),
            endpoint("fan-b", "subjects = [\"outbox.*.fan.>\"]"),
            endpoint("ordered", "ordered = true\nagents = [\"o\"]\nretry = [\"50ms\", \"50ms\", \"50ms\", \"50ms\"]"),
            endpoint("rated", &rate),
        ];
        let configuration = Configuration::new(&text.concat());
        Self { nats, witness, configuration, courier: None, kills: Vec::new(), ordered: BTreeMap::new(), messages }
    }

    /// Publishes the messages of these numbers, as agents that do not give up do.
    fn publish(&self, numbers: std::ops::Range<usize>) -> impl Future<Output = Vec<(u64, String)>> + use<> {
        let (jetstream, per_second) = (self.nats.jetstream(), setting("KILLS_PER_SECOND", 0) as u32);
        async move {
            // Ticks that were missed are made up for.
            let pace = (per_second > 0).then(|| tokio::time::interval(Duration::from_secs(1) / per_second));
            let numbers = futures_util::stream::unfold((numbers, pace), async |(mut numbers, mut pace)| {
                if let Some(pace) = &mut pace {
                    pace.tick().await;
                }
                Some((numbers.next()?, (numbers, pace)))
            });
            let published = numbers
                .map(|number| within("a message to be stored", publish(jetstream.clone(), number)))
                .buffer_unordered(64);
            published.collect::<Vec<_>>().await.into_iter().flatten().collect()
        }
    }

    /// Publishes a part of the messages, and kills somebody at a moment of their deliveries.
    async fn kill(&mut self, victim: Victim, moment: Moment, nth: usize, numbers: std::ops::Range<usize>) {
        let publishing = tokio::spawn(self.publish(numbers));
        let published = if moment == Moment::Pulled && self.courier.is_none() && setting("KILLS_PER_SECOND", 0) == 0 {
            // There is to be something to pull from the beginning.
            let published = publishing.await.unwrap();
            let pulled = self.pulled().await;
            self.courier = Some(self.configuration.courier(&self.nats));
            self.wait_for_pull(pulled).await;
            let killed = self.strike(victim, moment).await;
            self.kills.push(killed);
            published
        } else {
            if self.courier.is_none() {
                self.courier = Some(self.configuration.courier(&self.nats));
            }
            tokio::time::sleep(Duration::from_millis(setting("KILLS_APART_MS", 0) as u64)).await;
            self.wait_for(moment, nth).await;
            let killed = self.strike(victim, moment).await;
            self.kills.push(killed);
            publishing.await.unwrap()
        };
        self.ordered.extend(published);
    }

    async fn strike(&mut self, victim: Victim, moment: Moment) -> Kill {
        let begun = SystemTime::now();
        match victim {
            Victim::Courier => {
                self.courier.take().unwrap().kill().await;
                self.witness.release();
                // Then all that it had sent has been read.
                self.witness.alone().await;
            }
            Victim::Server => {
                self.nats.kill();
                self.witness.release();
                self.nats.run_again().await;
            }
        }
        Kill { victim, moment, begun, ended: SystemTime::now() }
    }

    /// How many messages the server has given out so far.
    async fn pulled(&self) -> u64 {
        self.nats.consumer("OUTBOX", "courier").await.map_or(0, |info| info.delivered.consumer_sequence)
    }

    async fn wait_for_pull(&self, before: u64) {
        within("a pull", async {
            while self.pulled().await <= before {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    async fn wait_for(&self, moment: Moment, nth: usize) {
        let subject = match moment {
            Moment::Pulled => return self.wait_for_pull(self.pulled().await + nth as u64).await,
            Moment::Arrived | Moment::Answered => {
                let mut count = self.witness.answered();
                if moment == Moment::Arrived {
                    count = self.witness.arrived();
                    self.witness.hold();
                }
                let from = *count.borrow();
                within("requests", count.wait_for(|count| *count >= from + nth)).await.unwrap();
                return;
            }
            Moment::Receipt => "receipts.>",
            Moment::Scheduled => "retry.at.>",
            Moment::Split => "retry.due.>",
            Moment::Buried => "dead.>",
            Moment::Acked => "$JS.ACK.>",
        };
        let heard = self.nats.listen(subject).await;
        let heard = within(subject, heard.take(nth).count()).await;
        assert_eq!(heard, nth, "{subject}");
    }

    /// Waits until nothing happens any more but what waits for an hour.
    async fn settle(&mut self) {
        if self.courier.is_none() {
            self.courier = Some(self.configuration.courier(&self.nats));
        }
        let waiting = (0..self.messages).filter(|number| Kind::of(*number) == Kind::Later).count();
        // What was in flight at a kill comes again after the ack wait of 30 s, at worst twice.
        let deadline = Duration::from_secs(90) + Duration::from_millis(10) * u32::try_from(self.messages).unwrap();
        let settled = tokio::time::timeout(deadline, async {
            let mut pace = tokio::time::interval(Duration::from_millis(100));
            while !(self.idle("OUTBOX", "courier").await
                && self.idle("OUTBOX", "ordered_ordered").await
                && self.idle("RETRY", "courier").await
                && (self.nats.count("RETRY").await == waiting as u64
                    || waiting_in_retry(&self.nats).await.len() == waiting))
            {
                pace.tick().await;
            }
        });
        if settled.await.is_err() {
            let left = ["OUTBOX courier", "OUTBOX ordered_ordered", "RETRY courier"].map(async |durable: &str| {
                let (stream, name) = durable.split_once(' ').unwrap();
                format!("{durable}: {:?}\n", self.nats.consumer(stream, name).await)
            });
            let left = futures_util::future::join_all(left).await.concat();
            let retry = self.nats.retries().await;
            let is_later = |pointer: &Message| pointer.header("Hookbridge-Destination") == Some("later");
            let is_waiting = |pointer: &Message| pointer.subject.starts_with("retry.at.") && is_later(pointer);
            let (later, other): (Vec<_>, Vec<_>) = retry.into_iter().partition(|(_, pointer)| is_waiting(pointer));
            let later: Vec<_> = later.iter().map(|(_, pointer)| pointer.header("Hookbridge-Message-Id")).collect();
            let expected = (0..self.messages).filter(|number| Kind::of(*number) == Kind::Later).map(id);
            let missing: Vec<_> = expected.filter(|id| !later.contains(&Some(id))).collect();
            let count = self.nats.count("RETRY").await;
            let retry = format!("{count} messages, {} later, without {missing:?}, and {other:#?}", later.len());
            let courier = self.courier.take().unwrap();
            panic!("not settled after {deadline:?}; RETRY has {retry}\n{left}{}", courier.stderr());
        }
    }

    async fn idle(&self, stream: &str, durable: &str) -> bool {
        let info = self.nats.consumer(stream, durable).await;
        info.is_some_and(|info| info.num_pending == 0 && info.num_ack_pending == 0)
    }

    /// Holds everything that is promised against what the streams and the receiver know.
    async fn judge(&self) -> Figures {
        let books = Books::read(&self.nats).await;
        let mut requests = HashMap::<(String, String), Vec<Seen>>::new();
        for seen in self.witness.seen() {
            assert_eq!(seen.body, body(number(&seen.id)), "the body of {} at {}", seen.id, seen.endpoint);
            requests.entry((seen.id.clone(), seen.endpoint.clone())).or_default().push(seen);
        }
        for number in 0..self.messages {
            self.judge_message(number, &books, &requests);
        }
        self.judge_order(&requests);
        let mut figures = Figures {
            deliveries: books.ends.len(),
            requests: requests.values().map(Vec::len).sum(),
            again: 0,
            in_flight: 0,
        };
        for (delivery, seen) in &requests {
            let receipts = books.receipts.get(delivery).map_or(&[][..], Vec::as_slice);
            let in_flight = self.kills.iter().filter(|kill| kill.met(seen, receipts)).count();
            let again = seen.len().saturating_sub(attempts(&delivery.1, &delivery.0));
            assert!(again == 0 || in_flight > 0, "{delivery:?} came {again} times too often and met no kill: {seen:?}");
            figures.again += again;
            figures.in_flight += in_flight;
        }
        figures
    }

    /// Each message ends as its kind does, each delivery in exactly one way, and what is delivered was received.
    fn judge_message(&self, number: usize, books: &Books, requests: &HashMap<(String, String), Vec<Seen>>) {
        let (kind, id) = (Kind::of(number), id(number));
        let deliveries = books.deliveries.get(&id).unwrap_or_else(|| panic!("nothing became of {id}, {kind:?}"));
        let mut ends = Vec::<End>::new();
        for delivery in deliveries {
            let found = &books.ends[delivery];
            assert_eq!(found.len(), 1, "{delivery} of {id}, {kind:?}, ended as {found:?}");
            ends.extend(found);
        }
        assert_eq!(ends, kind.ends(), "{id}, {kind:?}");
        let expected: &[&str] = match kind {
            Kind::Fan => &["fan-a", "fan-b"],
            Kind::Unroutable => &[],
            _ => &[kind.endpoint().unwrap()],
        };
        for endpoint in expected {
            let seen = requests.get(&(id.clone(), (*endpoint).to_owned())).map_or(0, Vec::len);
            assert!(seen >= attempts(endpoint, &id), "{id} came {seen} times to {endpoint}");
        }
    }

    fn judge_order(&self, requests: &HashMap<(String, String), Vec<Seen>>) {
        let first = |id: &String| requests[&(id.clone(), "ordered".to_owned())][0].at;
        let arrived: Vec<_> = self.ordered.values().map(|id| (first(id), id)).collect();
        let wrong = arrived.windows(2).find(|pair| pair[0].0 > pair[1].0);
        assert_eq!(wrong, None, "out of the stream's order");
    }

    /// What the courier complains of when it is made to stop: it has worked to the end.
    async fn leave(self) {
        let courier = self.courier.unwrap();
        courier.signal("TERM").await;
        courier.ended().await.assert_code(0);
    }
}

impl Kill {
    /// Whether a delivery was in flight: its last request before the end of the kill had not been written down.
    fn met(&self, seen: &[Seen], receipts: &[SystemTime]) -> bool {
        let last = seen.iter().map(|seen| seen.at).filter(|at| *at <= self.ended).max();
        last.is_some_and(|last| !receipts.iter().any(|at| (last..self.begun).contains(at)))
    }
}

async fn publish(jetstream: jetstream::Context, number: usize) -> Option<(u64, String)> {
    let (kind, id) = (Kind::of(number), id(number));
    loop {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", id.as_str());
        if let Some(endpoint) = kind.endpoint() {
            headers.insert("Hookbridge-Endpoint", endpoint);
        }
        let stored = async {
            let sent = jetstream.publish_with_headers(kind.subject(), headers, body(number).into()).await.ok()?;
            sent.await.ok()
        };
        if let Ok(Some(ack)) = tokio::time::timeout(Duration::from_secs(3), stored).await {
            return (kind == Kind::Ordered).then_some((ack.sequence, id));
        }
        tokio::task::yield_now().await;
    }
}

/// What waits in RETRY. A server that was killed may have kept that a message was acked and forgotten to take it out of
/// the work queue; nobody gets such a message any more, and it is nobody's delivery.
async fn waiting_in_retry(nats: &Nats) -> Vec<Message> {
    let acked = nats.consumer("RETRY", "courier").await.map_or(0, |info| info.ack_floor.stream_sequence);
    let left = |(sequence, message): &(u64, Message)| *sequence > acked || !message.subject.starts_with("retry.due.");
    nats.retries().await.into_iter().filter(left).map(|(_, message)| message).collect()
}

/// What the streams say.
#[derive(Default)]
struct Books {
    /// The deliveries of each message.
    deliveries: HashMap<String, BTreeSet<String>>,
    /// How each delivery ended.
    ends: HashMap<String, BTreeSet<End>>,
    /// When something was written about each message and endpoint.
    receipts: HashMap<(String, String), Vec<SystemTime>>,
}

impl Books {
    async fn read(nats: &Nats) -> Self {
        let mut books = Self::default();
        for (receipt, stored) in nats.all("RECEIPTS").await {
            let said = receipt.json();
            let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
            books.receipts.entry((text("message"), text("destination"))).or_default().push(stored);
            let end = match text("outcome").as_str() {
                "delivered" => End::Delivered,
                "dead" => End::Dead,
                "cancelled" => End::Cancelled,
                _ => continue,
            };
            books.add(text("message"), text("delivery"), end);
        }
        let header = |message: &Message, name: &str| message.header(name).unwrap().to_owned();
        let mut waiting = BTreeSet::new();
        for pointer in waiting_in_retry(nats).await {
            let delivery = header(&pointer, "Hookbridge-Delivery-Id");
            assert!(waiting.insert(delivery.clone()), "{delivery} waits twice");
            books.add(header(&pointer, "Hookbridge-Message-Id"), delivery, End::Waiting);
        }
        let letters = nats.all("DEAD").await;
        let dead: BTreeSet<_> = letters.iter().map(|(letter, _)| header(letter, "Hookbridge-Delivery-Id")).collect();
        let told =
            books.ends.iter().filter(|(_, ends)| ends.contains(&End::Dead)).map(|(delivery, _)| delivery.clone());
        assert_eq!(dead, told.collect(), "dead letters and dead receipts");
        books
    }

    fn add(&mut self, message: String, delivery: String, end: End) {
        self.deliveries.entry(message).or_default().insert(delivery.clone());
        self.ends.entry(delivery).or_default().insert(end);
    }
}

/// What came of a run.
#[derive(Debug)]
struct Figures {
    deliveries: usize,
    requests: usize,
    /// Requests beyond those that there are when nobody dies.
    again: usize,
    /// Deliveries in flight, over all kills.
    in_flight: usize,
}

/// Runs all messages past so many kills, of each victim in turn.
async fn run(victims: &[Victim], kills: usize) -> Figures {
    let mut stage = Stage::set(setting("KILLS_MESSAGES", 3000)).await;
    let kills = if victims.is_empty() { 0 } else { setting("KILLS", kills) };
    let begun = SystemTime::now();
    for kill in 0..kills {
        let part = stage.messages * kill / kills..stage.messages * (kill + 1) / kills;
        let (victim, moment) = (victims[kill % victims.len()], MOMENTS[kill / victims.len() % MOMENTS.len()]);
        // A part has few dead letters.
        let nth = if moment == Moment::Buried { 1 + kill % 3 } else { 1 + kill * 5 % 13 };
        stage.kill(victim, moment, nth, part).await;
    }
    if kills == 0 {
        stage.courier = Some(stage.configuration.courier(&stage.nats));
        let ordered = stage.publish(0..stage.messages).await;
        stage.ordered.extend(ordered);
    }
    let killing = begun.elapsed().unwrap();
    stage.settle().await;
    let figures = stage.judge().await;
    tell(&figures, &stage.kills, killing, begun.elapsed().unwrap());
    stage.leave().await;
    figures
}

#[expect(clippy::print_stderr, reason = "for whoever runs it by hand, with --nocapture")]
fn tell(figures: &Figures, kills: &[Kill], killing: Duration, took: Duration) {
    let Figures { deliveries, requests, again, in_flight } = figures;
    let mut moments = BTreeMap::<Moment, usize>::new();
    kills.iter().for_each(|kill| *moments.entry(kill.moment).or_default() += 1);
    let couriers = kills.iter().filter(|kill| kill.victim == Victim::Courier).count();
    eprintln!(
        "{deliveries} deliveries, {requests} requests, {couriers} couriers and {} servers killed {moments:?}: {again} \
         requests again ({:.3} % of deliveries), {in_flight} in flight at kills; {killing:.1?} of {took:.1?} with kills",
        kills.len() - couriers,
        *again as f64 * 100.0 / *deliveries as f64,
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_kill_every_attempt_is_made_exactly_once() {
    let figures = run(&[], 0).await;
    assert_eq!(figures.again, 0, "{figures:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_courier_killed_at_every_step_loses_nothing_and_repeats_only_what_was_in_flight() {
    let figures = run(&[Victim::Courier], 24).await;
    assert!(figures.again <= figures.in_flight, "{figures:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_at_every_step_loses_nothing_and_repeats_only_what_was_in_flight() {
    let figures = run(&[Victim::Server], 20).await;
    assert!(figures.again <= figures.in_flight, "{figures:?}");
}
