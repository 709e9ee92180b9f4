//! Gateways and couriers over a cluster, the traffic that they carry, and what became of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::jetstream;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::harness::{
    Cluster, Configuration, DEADLINE, Ended, Program, Witness, eventually, post, request, run, sign, within,
};

/// How long an agent waits for the ack of a publish before it publishes again.
const ACK_WITHIN: Duration = Duration::from_secs(3);
/// How long a client or an agent waits before it sends again.
const AGAIN: Duration = Duration::from_millis(100);
/// How long to wait before the streams are read again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A cluster, processes that use it, and the receiver of what they deliver.
pub(crate) struct Fleet {
    pub(crate) cluster: Cluster,
    pub(crate) witness: Witness,
    pub(crate) gateways: Vec<Program>,
    pub(crate) couriers: Vec<Program>,
    urls: Vec<String>,
    /// How many times traffic was sent: each time has ids of its own.
    runs: AtomicUsize,
}

/// Items a second.
#[derive(Clone, Copy, Default)]
pub(crate) struct Rates {
    pub(crate) webhooks: u32,
    pub(crate) deliveries: u32,
    pub(crate) tasks: u32,
}

/// Traffic that goes on until it is stopped. Each item is sent again until it is taken.
pub(crate) struct Traffic {
    stop: CancellationToken,
    items: TaskTracker,
    started: [Arc<AtomicUsize>; 3],
    refused: Arc<AtomicUsize>,
    run: usize,
    begun: std::time::Instant,
}

/// What was sent and taken.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// What tells its ids from those of other traffic.
    pub(crate) run: usize,
    pub(crate) webhooks: usize,
    pub(crate) deliveries: usize,
    pub(crate) tasks: usize,
    /// Requests that a gateway answered with anything but 2xx; each was sent again.
    pub(crate) refused: usize,
    pub(crate) took: Duration,
}

/// What became of it.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    pub(crate) sent: Sent,
    pub(crate) webhooks_lost: usize,
    pub(crate) webhooks_doubled: usize,
    /// Never requested from the receiver.
    pub(crate) deliveries_lost: usize,
    /// Requests beyond the first for the same delivery, callbacks included.
    pub(crate) requests_doubled: usize,
    /// Deliveries without a terminal receipt.
    pub(crate) receipts_missing: usize,
    /// Tasks whose end was not told.
    pub(crate) ends_lost: usize,
    pub(crate) dead_letters: usize,
    /// `hookbridge_egress_receipts_lost_total` of all couriers.
    pub(crate) receipts_given_up: usize,
    /// Messages that OUTBOX's durable gave out more than once.
    pub(crate) redelivered: usize,
}

impl Fleet {
    /// What every process of a fleet is configured with, beside the servers.
    pub(crate) fn text(witness: &Witness) -> String {
        format!(
            r#"
            [telemetry]
            log = "warn,hookbridge::app=info"
            [agents.planner]
            [callbacks]
            allow = ["{0}"]
            secrets = ["plain:callback secret"]
            [clients.shop]
            token = "plain:shop-token"
            [endpoints.crm]
            url = "{0}crm"
            signatures = []
            {1}
            "#,
            witness.url("/"),
            sign::SOURCES,
        )
    }

    /// So many gateways and couriers, all ready, each with all servers and three replicas.
    pub(crate) async fn start(gateways: usize, couriers: usize) -> Self {
        let mut fleet = Self::without_processes(Duration::ZERO).await;
        let text = Self::text(&fleet.witness);
        for index in 0..gateways {
            let section = fleet.cluster.section(index, 3);
            fleet.add("gateway", &format!("{text}{section}"));
        }
        for index in 0..couriers {
            let section = fleet.cluster.section(index, 3);
            fleet.add("courier", &format!("{text}{section}"));
        }
        fleet.ready().await;
        fleet
    }

    /// A cluster and a receiver whose answers take this long.
    pub(crate) async fn without_processes(takes: Duration) -> Self {
        let (cluster, witness) = (Cluster::start().await, Witness::start_slow(|_, _, _| 204, takes).await);
        Self {
            cluster,
            witness,
            gateways: Vec::new(),
            couriers: Vec::new(),
            urls: Vec::new(),
            runs: AtomicUsize::new(0),
        }
    }

    /// Starts one more process: `gateway` or `courier`.
    pub(crate) fn add(&mut self, role: &str, text: &str) {
        self.add_with(role, &[], text);
    }

    /// The same with further arguments.
    pub(crate) fn add_with(&mut self, role: &str, more: &[&str], text: &str) {
        let program = Configuration::new(text).start(&[&[role], more].concat());
        if role == "gateway" { self.gateways.push(program) } else { self.couriers.push(program) }
    }

    /// Waits until every process is ready and the servers are settled.
    pub(crate) async fn ready(&mut self) {
        self.processes_ready().await;
        let mut urls = Vec::new();
        for program in &self.gateways {
            urls.push(program.gateway().await);
        }
        self.urls = urls;
        self.cluster.settled().await;
    }

    /// Waits until every process is ready, whatever the servers are.
    pub(crate) async fn processes_ready(&self) {
        for program in self.gateways.iter().chain(&self.couriers) {
            program.ready().await;
        }
    }

    /// What `check --online` says of the fleet's configuration with so many replicas.
    pub(crate) async fn check(&self, replicas: usize) -> Ended {
        let section = self.cluster.section(0, replicas);
        self.check_text(&format!("{}{section}", Self::text(&self.witness))).await
    }

    /// What `check --online` says of a configuration.
    pub(crate) async fn check_text(&self, text: &str) -> Ended {
        run(&mut Configuration::new(text).hookbridge(&["check", "--online"])).await
    }

    /// The status of a signed webhook that the gateway of this index gets.
    pub(crate) async fn webhook(&self, gateway: usize, id: &str) -> u16 {
        webhook(&self.urls[gateway], id).await
    }

    /// What `/readyz` of a process says.
    pub(crate) async fn readyz(program: &Program) -> (u16, String) {
        let page = request("GET", &format!("{}/readyz", program.admin().await), &[], "").await;
        (page.status.as_u16(), page.text())
    }

    /// Begins to send.
    pub(crate) async fn traffic(&self, rates: Rates) -> Traffic {
        let traffic = Traffic {
            stop: CancellationToken::new(),
            items: TaskTracker::new(),
            started: Default::default(),
            refused: Arc::default(),
            run: self.runs.fetch_add(1, Ordering::Relaxed),
            begun: std::time::Instant::now(),
        };
        let (run, agent) = (traffic.run, jetstream::new(self.cluster.client().await));
        let (urls, refused) = (self.urls.clone(), traffic.refused.clone());
        traffic.each(0, rates.webhooks, move |number| {
            let (urls, refused) = (urls.clone(), refused.clone());
            async move {
                for try_ in 0.. {
                    if webhook(&urls[(number + try_) % urls.len()], &format!("w-{run}-{number}")).await < 300 {
                        return;
                    }
                    refused.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(AGAIN).await;
                }
            }
        });
        let jetstream = agent.clone();
        traffic.each(1, rates.deliveries, move |number| {
            let jetstream = jetstream.clone();
            async move { publish(&jetstream, &format!("m-{run}-{number}"), Some("crm"), "{}".to_owned()).await }
        });
        let (urls, refused, callback) = (self.urls.clone(), traffic.refused.clone(), self.witness.url("/cb"));
        traffic.each(2, rates.tasks, move |number| {
            let (urls, refused, callback) = (urls.clone(), refused.clone(), callback.clone());
            let jetstream = agent.clone();
            async move {
                let task = json!({"task_id": format!("t-{run}-{number}"), "callback_url": callback, "prompt": "do it"});
                for try_ in 0.. {
                    let url = format!("{}/agents/planner/tasks", urls[(number + try_) % urls.len()]);
                    if post(&url, &[("authorization", "Bearer shop-token")], task.to_string()).await.status == 202 {
                        break;
                    }
                    refused.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(AGAIN).await;
                }
                for status in ["working", "completed"] {
                    let update = json!({"task_id": format!("t-{run}-{number}"), "status": status});
                    publish(&jetstream, &format!("t-{run}-{number}-{status}"), None, update.to_string()).await;
                }
            }
        });
        traffic
    }

    /// Waits until everything has ended, or for a limited time, and counts.
    pub(crate) async fn count(&self, sent: Sent) -> Counted {
        let mut counted = self.count_now(&sent).await;
        let end = tokio::time::Instant::now() + DEADLINE;
        while !counted.is_complete() && tokio::time::Instant::now() < end {
            tokio::time::sleep(LOOK_AGAIN).await;
            counted = self.count_now(&sent).await;
        }
        Counted { sent, ..counted }
    }

    async fn count_now(&self, sent: &Sent) -> Counted {
        let (mut counted, run) = (Counted::default(), sent.run);
        let nats = self.cluster.nats();
        let mut stored = BTreeMap::<String, usize>::new();
        for (event, _) in nats.all("EVENTS").await {
            *stored.entry(event.header("ce-id").unwrap().to_owned()).or_default() += 1;
        }
        counted.webhooks_lost = (0..sent.webhooks).filter(|id| !stored.contains_key(&format!("w-{run}-{id}"))).count();
        counted.webhooks_doubled = stored.values().map(|times| times - 1).sum();

        let (mut requests, mut told) = (BTreeMap::<(String, String), usize>::new(), BTreeSet::new());
        for seen in self.witness.seen() {
            if seen.endpoint == "cb" {
                let body: Value = serde_json::from_slice(&seen.body).unwrap();
                if body["status"] == "completed" {
                    told.insert(body["task_id"].as_str().unwrap().to_owned());
                }
            }
            *requests.entry((seen.endpoint, seen.id)).or_default() += 1;
        }
        let requested = |id: &usize| requests.contains_key(&("crm".to_owned(), format!("m-{run}-{id}")));
        counted.deliveries_lost = (0..sent.deliveries).filter(|id| !requested(id)).count();
        counted.requests_doubled = requests.values().map(|times| times - 1).sum();
        counted.ends_lost = (0..sent.tasks).filter(|id| !told.contains(&format!("t-{run}-{id}"))).count();

        let ended = ["delivered", "dead", "cancelled"];
        let mut receipts = BTreeSet::new();
        for (receipt, _) in nats.all("RECEIPTS").await {
            let receipt = receipt.json();
            if ended.iter().any(|outcome| receipt["outcome"] == *outcome) {
                receipts.insert(receipt["message"].as_str().unwrap_or_default().to_owned());
            }
        }
        let deliveries = (0..sent.deliveries).map(|id| format!("m-{run}-{id}"));
        let ends = (0..sent.tasks).map(|id| format!("t-{run}-{id}-completed"));
        counted.receipts_missing = deliveries.chain(ends).filter(|id| !receipts.contains(id)).count();
        counted.dead_letters = usize::try_from(nats.count("DEAD").await).unwrap();
        for courier in &self.couriers {
            counted.receipts_given_up += courier.metric("hookbridge_egress_receipts_lost_total").await as usize;
        }
        let durable = self.cluster.consumer("OUTBOX", "courier").await;
        let again = durable.delivered.consumer_sequence.saturating_sub(durable.delivered.stream_sequence);
        counted.redelivered = usize::try_from(again).unwrap();
        counted
    }

    /// What all processes complain of.
    pub(crate) fn complaints(&self) -> String {
        let all = self.gateways.iter().chain(&self.couriers);
        all.map(Program::stderr).collect::<Vec<_>>().join("\n")
    }
}

impl Traffic {
    /// Starts `send` with a number that counts up, so many times a second.
    fn each<F>(&self, kind: usize, per_second: u32, send: impl Fn(usize) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if per_second == 0 {
            return;
        }
        let (stop, items, started) = (self.stop.clone(), self.items.clone(), self.started[kind].clone());
        self.items.spawn(async move {
            let mut pace = tokio::time::interval(Duration::from_secs(1) / per_second);
            while stop.run_until_cancelled(pace.tick()).await.is_some() {
                items.spawn(send(started.fetch_add(1, Ordering::Relaxed)));
            }
        });
    }

    /// Waits until this many of a kind have been sent for the first time.
    pub(crate) async fn reaches(&self, kind: Kind, count: usize) {
        let started = &self.started[kind as usize];
        eventually("the traffic", async || (started.load(Ordering::Relaxed) >= count).then_some(())).await;
    }

    /// Waits until this many more have been.
    pub(crate) async fn for_another(&self, kind: Kind, count: usize) {
        self.reaches(kind, self.started[kind as usize].load(Ordering::Relaxed) + count).await;
    }

    /// Sends nothing new, and waits until everything was taken.
    pub(crate) async fn stop(self) -> Sent {
        self.stop.cancel();
        self.items.close();
        within("everything to be taken", self.items.wait()).await;
        let [webhooks, deliveries, tasks] = self.started.map(|started| started.load(Ordering::Relaxed));
        let refused = self.refused.load(Ordering::Relaxed);
        Sent { run: self.run, webhooks, deliveries, tasks, refused, took: self.begun.elapsed() }
    }
}

/// A kind of traffic.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Webhooks,
    Deliveries,
    Tasks,
}

impl Counted {
    /// Whether everything that was sent has ended.
    fn is_complete(&self) -> bool {
        self.webhooks_lost + self.deliveries_lost + self.ends_lost + self.receipts_missing == 0
    }

    /// Nothing lost, nothing doubled, nothing dead.
    #[track_caller]
    pub(crate) fn assert_whole(&self, fleet: &Fleet) {
        let wrong = self.webhooks_lost
            + self.webhooks_doubled
            + self.deliveries_lost
            + self.requests_doubled
            + self.receipts_missing
            + self.ends_lost
            + self.dead_letters
            + self.receipts_given_up;
        assert_eq!(wrong, 0, "{self}\n{}", fleet.complaints());
    }
}

impl fmt::Display for Counted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sent { webhooks, deliveries, tasks, refused, took, .. } = &self.sent;
        write!(
            formatter,
            "{webhooks} webhooks ({} lost, {} doubled), {deliveries} deliveries ({} lost), {tasks} tasks ({} ends lost), \
             {} requests doubled, {} receipts missing, {} receipts given up, {} dead letters, {} redelivered, \
             {refused} answers 503, {took:.1?}",
            self.webhooks_lost,
            self.webhooks_doubled,
            self.deliveries_lost,
            self.ends_lost,
            self.requests_doubled,
            self.receipts_missing,
            self.receipts_given_up,
            self.dead_letters,
            self.redelivered,
        )
    }
}

async fn webhook(url: &str, id: &str) -> u16 {
    let signature = sign::hex("s3cret", b"{}");
    post(&format!("{url}/hooks/github"), &sign::github(&signature, "push", id), "{}").await.status.as_u16()
}

/// Publishes to OUTBOX as an agent that does not give up.
pub(crate) async fn publish(jetstream: &jetstream::Context, id: &str, endpoint: Option<&str>, body: String) {
    loop {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", id);
        if let Some(endpoint) = endpoint {
            headers.insert("Hookbridge-Endpoint", endpoint);
        }
        let stored = async {
            jetstream.publish_with_headers("outbox.planner", headers, body.clone().into()).await.ok()?.await.ok()
        };
        if let Ok(Some(_)) = tokio::time::timeout(ACK_WITHIN, stored).await {
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}
