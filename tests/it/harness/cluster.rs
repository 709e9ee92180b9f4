//! Three nats-servers as one JetStream cluster, and what can happen to each of them.
//!
//! Clients and routes go through proxies of the tests' own, so that a server can be cut off without closing a
//! connection. Only one cluster runs at a time: three servers and the processes under test are enough for a small
//! machine.

use std::time::Duration;

use async_nats::jetstream::consumer;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};

use super::proxy::Proxy;
use super::{DEADLINE, Nats, eventually, free_port, within};

/// The servers' names, which are also what a leader is called.
pub(crate) const NAMES: [&str; 3] = ["n1", "n2", "n3"];

/// Which test has a cluster now.
static TURN: Mutex<()> = Mutex::const_new(());

/// A cluster of three. Ends with the test.
pub(crate) struct Cluster {
    /// The servers; each can be asked, killed, paused and started like one that is alone.
    pub(crate) nodes: [Nats; 3],
    /// In front of each server's client port.
    clients: [Proxy; 3],
    /// The way from each server to each other one; none to itself.
    routes: Vec<(usize, usize, Proxy)>,
    monitors: [u16; 3],
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Three servers that have agreed on a leader, each of which knows the two others.
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    /// The same with further settings of each server.
    pub(crate) async fn start_with(settings: &str) -> Self {
        let turn = TURN.lock().await;
        let (listening, monitors) = (NAMES.map(|_| free_port()), NAMES.map(|_| free_port()));
        let mut routes = Vec::new();
        for from in 0..NAMES.len() {
            for to in (0..NAMES.len()).filter(|to| *to != from) {
                routes.push((from, to, Proxy::start(listening[to]).await));
            }
        }
        let mut nodes = Vec::new();
        for (index, name) in NAMES.iter().enumerate() {
            let ways = routes.iter().filter(|(from, ..)| *from == index);
            let ways: Vec<_> = ways.map(|(.., way)| format!("\"nats://127.0.0.1:{}\"", way.port())).collect();
            // What is advertised is a closed port: the ways that are configured are the only ones.
            let text = format!(
                "server_name: {name}\nhttp: 127.0.0.1:{}\nmax_payload: 8MB\n\
                 lame_duck_duration: 30s\nlame_duck_grace_period: 1s\n\
                 cluster {{ name: tests, listen: \"127.0.0.1:{}\", routes: [{}], no_advertise: true, \
                 advertise: \"127.0.0.1:1\" }}\n{settings}",
                monitors[index],
                listening[index],
                ways.join(", "),
            );
            nodes.push(Nats::absent(&text).await);
        }
        let Ok(mut nodes) = <[Nats; 3]>::try_from(nodes) else { unreachable!("there are three names") };
        nodes.iter_mut().for_each(Nats::run);
        let mut clients = Vec::new();
        for node in &nodes {
            clients.push(Proxy::start(node.port()).await);
        }
        let Ok(clients) = <[Proxy; 3]>::try_from(clients) else { unreachable!("there are three nodes") };
        let cluster = Self { nodes, clients, routes, monitors, _turn: turn };
        cluster.whole().await;
        cluster
    }

    /// Waits until there is a leader that sees both others as up to date.
    pub(crate) async fn whole(&self) {
        self.meta_leader().await;
    }

    /// What a server's monitoring page says; none while the server is not there.
    pub(crate) async fn monitor(&self, index: usize, path: &str) -> Option<Value> {
        let port = self.monitors[index];
        // By hand: the harness' client takes a server that is not there, or dies meanwhile, for a failed test.
        let asked = async {
            let mut socket = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
            socket.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.ok()?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.ok()?;
            serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
        };
        // One that stands still takes the connection and says nothing.
        tokio::time::timeout(Duration::from_secs(1), asked).await.ok()?
    }

    /// The index of the server that leads the cluster; waits for one that sees both others.
    pub(crate) async fn meta_leader(&self) -> usize {
        eventually("the cluster to be whole", async || {
            for (index, name) in NAMES.iter().enumerate() {
                let page = self.monitor(index, "/jsz").await.unwrap_or_default();
                let meta = &page["meta_cluster"];
                let replicas = meta["replicas"].as_array().map_or(&[][..], Vec::as_slice);
                let current = replicas.iter().filter(|replica| replica["current"] == true).count();
                if meta["leader"] == *name && current == NAMES.len() - 1 {
                    return Some(index);
                }
            }
            None
        })
        .await
    }

    /// A server that runs and is not paused: what the test itself asks.
    pub(crate) fn nats(&self) -> &Nats {
        self.nodes.iter().find(|node| node.is_running()).expect("a server that runs")
    }

    /// A client that may use every server and soon leaves one that is silent: what an agent would have.
    pub(crate) async fn client(&self) -> async_nats::Client {
        let urls: Vec<_> = self.nodes.iter().map(Nats::url).collect();
        let options = async_nats::ConnectOptions::new().retry_on_initial_connect();
        within("a client", options.ping_interval(Duration::from_secs(1)).connect(urls)).await.unwrap()
    }

    /// The index of a server by its name.
    #[track_caller]
    pub(crate) fn index(name: &str) -> usize {
        NAMES.iter().position(|known| *known == name).unwrap_or_else(|| panic!("no server {name:?}"))
    }

    /// The URL of one server, through its proxy.
    pub(crate) fn url(&self, index: usize) -> String {
        format!("nats://127.0.0.1:{}", self.clients[index].port())
    }

    /// What is added to a configuration text so that Hookbridge uses all servers, this one first, with so many
    /// replicas.
    pub(crate) fn section(&self, first: usize, replicas: usize) -> String {
        let urls: Vec<_> = (0..NAMES.len()).map(|index| self.url((first + index) % NAMES.len())).collect();
        format!("\n[nats]\nurl = {urls:?}\nreplicas = {replicas}\n")
    }

    /// The same for a Hookbridge that knows one server only.
    pub(crate) fn pinned(&self, index: usize) -> String {
        format!("\n[nats]\nurl = {:?}\nreplicas = 3\n", self.url(index))
    }

    /// Lets a server's clients hear nothing from now on; with `routes`, the other servers neither. Nothing is closed.
    pub(crate) fn cut_off(&self, index: usize, routes: bool) {
        self.clients[index].silence();
        if routes {
            self.routes_of(index).for_each(Proxy::silence);
        }
    }

    /// Undoes [`Self::cut_off`], [`Self::slow_down`] and [`Self::lag`].
    pub(crate) fn reconnect(&self, index: usize) {
        self.clients[index].resume();
        self.routes_of(index).for_each(Proxy::resume);
    }

    /// Delays whatever a server hears from the others and says to them.
    pub(crate) fn slow_down(&self, index: usize, delay: Duration) {
        self.routes_of(index).for_each(|way| way.delay(delay));
    }

    /// Delays what is replicated to and from a server, and nothing else: its state is old by this much.
    pub(crate) fn lag(&self, index: usize, delay: Duration) {
        self.routes_of(index).for_each(|way| way.delay_replication(delay));
    }

    fn routes_of(&self, index: usize) -> impl Iterator<Item = &Proxy> {
        self.routes.iter().filter(move |(from, to, _)| *from == index || *to == index).map(|(.., way)| way)
    }

    /// Ends a server with a signal, such as `TERM` or `USR2` (lame duck), and waits until it is gone.
    pub(crate) async fn terminate(&mut self, index: usize, signal: &str) {
        self.nodes[index].signal(signal);
        within("the server to end", async {
            while !self.nodes[index].has_ended() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    /// Asks the servers' JetStream, until it answers without an error.
    pub(crate) async fn ask(&self, subject: &str, body: Value) -> Value {
        let payload = Bytes::from(if body.is_null() { String::new() } else { body.to_string() });
        let ask = async || {
            let answer = self.nats().request(subject, payload.clone()).await?;
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            answer.get("error").is_none().then_some(answer)
        };
        eventually(subject, ask).await
    }

    /// The name of a stream's leader, if it has one.
    pub(crate) async fn leader(&self, stream: &str) -> Option<String> {
        let answer = self.nats().request(&format!("$JS.API.STREAM.INFO.{stream}"), Bytes::new()).await?;
        leader_of(&serde_json::from_slice(&answer).unwrap())
    }

    /// The name of a durable's leader, if it has one.
    pub(crate) async fn consumer_leader(&self, stream: &str, durable: &str) -> Option<String> {
        let subject = format!("$JS.API.CONSUMER.INFO.{stream}.{durable}");
        leader_of(&serde_json::from_slice(&self.nats().request(&subject, Bytes::new()).await?).unwrap())
    }

    /// The name of the Raft group of a stream.
    pub(crate) async fn raft_group(&self, stream: &str) -> String {
        let info = self.ask(&format!("$JS.API.STREAM.INFO.{stream}"), Value::Null).await;
        info["cluster"]["raft_group"].as_str().unwrap().to_owned()
    }

    /// Gives a durable a number of replicas of its own.
    pub(crate) async fn set_replicas(&self, stream: &str, durable: &str, replicas: usize) {
        let mut config =
            self.ask(&format!("$JS.API.CONSUMER.INFO.{stream}.{durable}"), Value::Null).await["config"].take();
        config["num_replicas"] = replicas.into();
        let update = json!({"stream_name": stream, "config": config, "action": "update"});
        self.ask(&format!("$JS.API.CONSUMER.DURABLE.CREATE.{stream}.{durable}"), update).await;
    }

    /// Makes a server the leader of a stream.
    pub(crate) async fn lead(&self, stream: &str, index: usize) {
        let name = NAMES[index];
        let step_down = format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}");
        let led = async || {
            if self.leader(stream).await.as_deref() == Some(name) {
                return Some(());
            }
            let preferred = json!({"placement": {"preferred": name}}).to_string();
            self.nats().request(&step_down, preferred.into()).await;
            None
        };
        eventually(&format!("{name} to lead {stream}"), led).await;
    }

    /// Makes a server the leader of a durable.
    pub(crate) async fn lead_consumer(&self, stream: &str, durable: &str, index: usize) {
        let name = NAMES[index];
        let step_down = format!("$JS.API.CONSUMER.LEADER.STEPDOWN.{stream}.{durable}");
        let led = async || {
            if self.consumer_leader(stream, durable).await.as_deref() == Some(name) {
                return Some(());
            }
            let preferred = json!({"placement": {"preferred": name}}).to_string();
            self.nats().request(&step_down, preferred.into()).await;
            None
        };
        eventually(&format!("{name} to lead {durable} on {stream}"), led).await;
    }

    /// What the server says of a durable; waits until it can.
    pub(crate) async fn consumer(&self, stream: &str, durable: &str) -> consumer::Info {
        eventually(durable, async || self.nats().consumer(stream, durable).await).await
    }

    /// The version of the servers.
    pub(crate) async fn version(&self) -> String {
        let page = eventually("a server's version", async || self.monitor(0, "/varz").await).await;
        page["version"].as_str().unwrap().to_owned()
    }

    /// Which server has a connection of this name; waits for one.
    pub(crate) async fn server_of(&self, connection: &str) -> usize {
        self.server_of_but(connection, NAMES.len()).await
    }

    /// The same, but for one server that does not count.
    pub(crate) async fn server_of_but(&self, connection: &str, but: usize) -> usize {
        let server = async || {
            for index in (0..NAMES.len()).filter(|index| *index != but) {
                let page = self.monitor(index, "/connz").await.unwrap_or_default();
                let connections = page["connections"].as_array().map_or(&[][..], Vec::as_slice);
                if connections.iter().any(|each| each["name"] == connection) {
                    return Some(index);
                }
            }
            None
        };
        eventually(connection, server).await
    }

    /// Waits until every stream and durable has a leader and replicas that are up to date.
    pub(crate) async fn settled(&self) {
        self.whole().await;
        let end = tokio::time::Instant::now() + DEADLINE;
        loop {
            let mut pages = Vec::new();
            for index in 0..NAMES.len() {
                pages.push(self.monitor(index, "/healthz").await);
            }
            if pages.iter().all(|page| page.as_ref().is_some_and(|page| page["status"] == "ok")) {
                return;
            }
            assert!(tokio::time::Instant::now() < end, "waited {DEADLINE:?} for every server to be healthy: {pages:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn leader_of(info: &Value) -> Option<String> {
    info["cluster"]["leader"].as_str().filter(|leader| !leader.is_empty()).map(str::to_owned)
}
