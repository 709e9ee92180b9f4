//! The composition root: a configuration in, running parts out. The only file that names every part.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

use crate::broker::{Broker, Burial, ClusterNotes, Links, Need, Plan, Problem, Role};
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::egress::{Courier, Registry, UnreadableRecorder};
use crate::lifecycle::Lifecycle;
use crate::listener::{self, Listener, Observer};
use crate::secret::{KeyError, KeyRing, Reload, Secret, SecretRef};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{LeaderLabels, ReasonLabels, RequestLabels};
use crate::{admin, descriptors, ingress};

/// Connections that the admin listener serves at once.
const ADMIN_CONNECTIONS: usize = 64;
/// The most bytes of an admin request's headers.
const ADMIN_MAX_HEADERS: usize = 16 * 1024;
/// How long the last parts may take to end.
const LAST_WITHIN: Duration = Duration::from_secs(2);
/// How long an admin request's headers may take.
const ADMIN_HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an admin connection may be idle.
const ADMIN_IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// How long a starting gateway waits for NATS before it starts accepting connections anyway, and answers 503.
const LISTEN_WITHIN: Duration = Duration::from_secs(5);

/// Which roles a process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roles {
    /// Gateway and courier.
    Both,
    /// HTTP to NATS only.
    Gateway,
    /// NATS to HTTP only.
    Courier,
}

/// What a start can be told beside the configuration.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Change streams and durables that differ from the configuration.
    pub update_streams: bool,
    /// The clock; another one than the wall clock is for tests.
    pub clock: Clock,
    /// What stands at addresses that sources name (certificates, key sets, confirmations), instead of asking there;
    /// for tests.
    pub documents: Vec<(Url, Vec<u8>)>,
}

/// A running process.
pub struct App {
    lifecycle: Lifecycle,
    links: Links,
    secrets: Vec<Arc<dyn Reload>>,
    gateway: Option<SocketAddr>,
    /// Becomes cancelled when the gateway starts accepting connections.
    listening: CancellationToken,
    admin: SocketAddr,
    failed: Failure,
    /// Ends what stays up while the roles drain: the links to NATS, the admin pages.
    last: CancellationToken,
    beside: TaskTracker,
    grace: Duration,
}

/// What made the process stop by itself.
type Failure = Arc<Mutex<Option<anyhow::Error>>>;

/// How long to wait before a courier whose NATS client broke gets a new one.
const NEW_CLIENT_AFTER: Duration = Duration::from_secs(1);

impl App {
    /// Starts the roles. NATS need not be there; the addresses are taken when this returns. The admin pages answer at
    /// once; the gateway starts accepting connections when NATS is ready, or after five seconds: a load balancer that
    /// finds the port open sends requests, and they would be answered 503.
    ///
    /// Each role has a connection of its own: what an agent publishes can break the courier's, never the
    /// gateway's.
    pub async fn start(config: &Config, roles: Roles, options: Options) -> anyhow::Result<Self> {
        for warning in config::warnings(config) {
            tracing::warn!("{warning}");
        }
        let (metrics, links) = (Metrics::new(), Links::default());
        let (lifecycle, last, beside) = (Lifecycle::default(), CancellationToken::new(), TaskTracker::new());
        let (failed, mut secrets) = (Failure::default(), Vec::<Arc<dyn Reload>>::new());
        let plan = Plan::new(config, options.update_streams);

        let admin = Listener::bind(config.admin.listen, admin_limits()).context("admin.listen")?.with_spare();
        let admin_address = admin.address()?;
        let token = admin_token(config)?;
        secrets.extend(token.clone().map(|token| token as Arc<dyn Reload>));

        let grace = config.shutdown_grace;
        let (gateway, listening, admin_at) = (None, CancellationToken::new(), admin_address);
        let mut app =
            Self { lifecycle, links, secrets, gateway, listening, admin: admin_at, failed, last, beside, grace };
        if roles != Roles::Courier {
            let deliveries = if roles == Roles::Both { 2 * config.egress.concurrency } else { 0 };
            let connections = connections(config.gateway.max_connections, deliveries);
            app.start_gateway(config, &options, &plan, &metrics, connections).await?;
        } else {
            app.listening.cancel();
        }
        if roles != Roles::Gateway {
            app.start_courier(config, &options, plan, &metrics)?;
        }
        tracing::info!(server.address = %admin_address, "Admin listens on http://{admin_address}");
        let (notes, leaderless) = (ClusterNotes::default(), metrics.streams_without_leader.clone());
        let count = move |stream: &str, lost: bool| {
            leaderless.get_or_create(&LeaderLabels { stream: stream.to_owned() }).set(lost.into());
        };
        app.beside.spawn(notes.clone().watch(app.links.clone(), count, app.last.clone()));
        let admin_pages = admin::router(app.links.clone(), notes, metrics, token, app.steps());
        app.beside.spawn(admin.run(admin_pages, app.last.clone()));
        Ok(app)
    }

    async fn start_gateway(
        &mut self,
        config: &Config,
        options: &Options,
        plan: &Plan,
        metrics: &Metrics,
        connections: usize,
    ) -> anyhow::Result<()> {
        let sources = ingress::sources(config, metrics).map_err(|(name, error)| anyhow!("{name}: {error}"))?;
        self.secrets.extend(ingress::secrets(&sources));
        let clients = ingress::Clients::new(config).map_err(|(name, error)| anyhow!("{name}: {error}"))?;
        self.secrets.extend(clients.secrets());
        let limits = ingress::limits(config, connections);
        let reserved = Listener::reserve(config.gateway.listen, limits).context("gateway.listen")?;
        let address = reserved.address()?;
        self.gateway = Some(address);
        let observer = observer(metrics);
        let needs = Need::of_gateway(!config.clients.is_empty());
        let published = plan.clone().publishing(config.largest_body() + config::HEADER_ROOM).needing(needs);
        let (broker, supervisor) = Broker::connect(&config.nats, published, "gateway").await.context("nats")?;
        self.links.set(Role::Gateway, broker.clone());
        let (supervised, failed) = (supervisor.run(self.last.clone()), self.failed.clone());
        let draining = self.lifecycle.clone();
        self.beside.spawn(async move {
            if let Err(problem) = supervised.await {
                fail(&failed, problem.into());
                draining.drain();
            }
        });
        let keys = ingress::keys(config, options.clock.clone(), &options.documents)?;
        let quarantine = ingress::Quarantine::new(&config.gateway, broker.clone());
        let kept = quarantine.clone();
        let (clock, metrics, stop) = (options.clock.clone(), metrics.clone(), self.lifecycle.draining());
        let (publisher, gatherer) = ingress::publisher(config, broker.clone(), metrics.clone(), clock.clone());
        let served = CancellationToken::new();
        if let Some(gatherer) = gatherer {
            self.lifecycle.spawn(gatherer.run(served.clone()));
        }
        let link = broker.clone();
        let parts = ingress::Parts { broker, publisher, sources, clients, keys, quarantine, clock, metrics, stop };
        let router = ingress::router(config, parts);
        let (listening, failed) = (self.listening.clone(), self.failed.clone());
        let (leave, stop) = (self.lifecycle.leaving(), self.lifecycle.draining());
        self.lifecycle.spawn(async move {
            if is_time_to_listen(link, &leave, &stop).await {
                match reserved.listen().context("gateway.listen") {
                    Ok(listener) => {
                        tracing::info!(server.address = %address, "Gateway listens on http://{address}/hooks/<source>");
                        listening.cancel();
                        listener.observed_by(observer).leaving_at(leave).run(router, stop).await;
                    }
                    Err(error) => fail(&failed, error),
                }
            }
            // Nobody is left who could publish.
            served.cancel();
            kept.finish().await;
        });
        Ok(())
    }

    fn start_courier(
        &mut self,
        config: &Config,
        options: &Options,
        plan: Plan,
        metrics: &Metrics,
    ) -> anyhow::Result<()> {
        let registry = Registry::new(config).map_err(|(name, error)| anyhow!("{name}: {error}"))?;
        self.secrets.extend(registry.secrets());
        let runner = CourierRunner {
            config: config.clone(),
            plan: plan
                .burying(Burial::new(Arc::new(UnreadableRecorder::new(metrics.clone()))))
                .needing(Need::of_courier()),
            registry: Arc::new(registry),
            clock: options.clock.clone(),
            metrics: metrics.clone(),
            links: self.links.clone(),
        };
        let (failed, stop, last) = (self.failed.clone(), self.lifecycle.draining(), self.last.clone());
        self.lifecycle.spawn(async move {
            if let Err(error) = runner.run(stop, last).await {
                fail(&failed, error);
            }
        });
        Ok(())
    }

    /// The handle to NATS, for the demo that runs beside the roles.
    pub(crate) fn broker(&self) -> Option<Broker> {
        self.links.all().into_iter().next()
    }

    /// Where the gateway listens, if this process has that role.
    pub fn gateway(&self) -> Option<SocketAddr> {
        self.gateway
    }

    /// Where health and metrics are.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Waits until every role can use NATS, and the gateway lets senders in.
    pub async fn ready(&self) {
        self.links.ready().await;
        self.listening.cancelled().await;
    }

    fn steps(&self) -> admin::Steps {
        let (leaving, draining) = (self.lifecycle.leaving(), self.lifecycle.draining());
        admin::Steps { listening: self.listening.clone(), leaving, draining }
    }

    /// Says that the process is about to stop: it is not ready any more, and every answer ends its connection.
    /// Everything else goes on until [`App::stop`].
    pub fn leave(&self) {
        self.lifecycle.leave();
    }

    /// Waits until the process has a reason to stop by itself: a part that ended.
    pub async fn ended(&self) {
        self.lifecycle.draining().cancelled().await;
    }

    /// Runs another part for as long as the roles run.
    pub(crate) fn run_beside<F: Future<Output = ()> + Send + 'static>(
        &self,
        part: impl FnOnce(CancellationToken) -> F,
    ) {
        self.lifecycle.spawn(part(self.lifecycle.draining()));
    }

    /// Reads all secrets again. Where one cannot be read, those of its source or destination stay as they were.
    pub fn reload(&self) {
        let (mut read, mut failed) = (0, 0);
        for secrets in &self.secrets {
            match secrets.reload() {
                Ok(count) => read += count,
                Err(error) => {
                    failed += 1;
                    tracing::error!("A secret was not read again and stays as it was: {error}");
                }
            }
        }
        tracing::info!("Secrets read again: {read}; failed: {failed}");
    }

    /// Stops taking, finishes what is held, and gives up after `shutdown_grace`.
    ///
    /// The error is what made the process stop, if anything did.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.lifecycle.drain();
        if !self.lifecycle.drained(self.grace).await {
            tracing::warn!("Stopped before everything was finished; what is left comes again from the streams");
        }
        for broker in self.links.all() {
            broker.close().await;
        }
        self.last.cancel();
        self.beside.close();
        if tokio::time::timeout(LAST_WITHIN, self.beside.wait()).await.is_err() {
            tracing::debug!("Somebody holds on to an admin page");
        }
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        failed.map_or(Ok(()), Err)
    }
}

fn fail(failed: &Failure, error: anyhow::Error) {
    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
}

/// The outbound role over as many NATS clients as it takes: one that an agent's message broke is replaced.
struct CourierRunner {
    config: Config,
    plan: Plan,
    registry: Arc<Registry>,
    clock: Clock,
    metrics: Metrics,
    links: Links,
}

impl CourierRunner {
    async fn run(self, stop: CancellationToken, last: CancellationToken) -> anyhow::Result<()> {
        let mut before = None::<Broker>;
        while !stop.is_cancelled() {
            let (broker, supervisor) =
                Broker::connect(&self.config.nats, self.plan.clone(), "courier").await.context("nats")?;
            self.links.set(Role::Courier, broker.clone());
            if let Some(before) = before.replace(broker.clone()) {
                before.succeed(broker.clone());
            }
            let (registry, clock, metrics) = (self.registry.clone(), self.clock.clone(), self.metrics.clone());
            let courier = Courier::new(&self.config, broker, registry, clock, metrics)?;
            // A courier whose client broke takes nothing more; what it has in hand it writes down over the next one.
            let (stopped, supervised) = (stop.child_token(), supervisor.run(last.clone()));
            tokio::select! {
                () = courier.run(stopped.clone()) => return Ok(()),
                ended = supervised => match ended {
                    Ok(()) => return Ok(()),
                    Err(Problem::ClientGone) => tracing::error!("{}; getting a new one", Problem::ClientGone),
                    Err(problem) => return Err(problem.into()),
                },
            }
            stopped.cancel();
            stop.run_until_cancelled(tokio::time::sleep(NEW_CLIENT_AFTER)).await;
        }
        Ok(())
    }
}

/// Counts what the gateway's listener sees and answers by itself.
fn observer(metrics: &Metrics) -> Observer {
    let (connections, requests) = (metrics.connections.clone(), metrics.requests.clone());
    let answered = move |outcome| {
        requests.get_or_create(&RequestLabels { source: String::new(), outcome }).inc();
    };
    let connections = move |change| {
        connections.inc_by(change);
    };
    let (idle_closed, failures) = (metrics.idle_closed.clone(), metrics.accept_failures.clone());
    let closed = move |reason| {
        idle_closed.get_or_create(&ReasonLabels { reason }).inc();
    };
    let failed = move || {
        failures.inc();
    };
    Observer {
        connections: Arc::new(connections),
        answered: Arc::new(answered),
        closed: Arc::new(closed),
        failed: Arc::new(failed),
    }
}

/// Waits until a starting gateway is to start accepting connections. `false` when the process stops before.
async fn is_time_to_listen(link: Broker, leave: &CancellationToken, stop: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = leave.cancelled() => false,
        () = stop.cancelled() => false,
        ready = tokio::time::timeout(LISTEN_WITHIN, link.ready()) => {
            if ready.is_err() {
                let state = link.link();
                tracing::warn!(
                    nats.state = %state,
                    "NATS was not ready within {LISTEN_WITHIN:?} ({state}): the gateway starts listening, and answers 503 until NATS is ready"
                );
            }
            true
        }
    }
}

/// How many connections the gateway may have open, beside so many deliveries, with the files that this process may
/// open.
fn connections(wanted: usize, deliveries: usize) -> usize {
    let Some(limit) = descriptors::limit() else { return wanted };
    let share = descriptors::share(limit, wanted, deliveries);
    if share.connections < wanted {
        tracing::warn!(
            connections.configured = wanted,
            connections.used = share.connections,
            descriptors.limit = limit,
            descriptors.reserved = share.reserved,
            "gateway.max_connections is {wanted}, but the open-file limit of {limit} allows only {}, since {} \
             descriptors are reserved for NATS, the admin listener and deliveries; raise the hard open-file limit \
             (LimitNOFILE, ulimit -n), or lower gateway.max_connections",
            share.connections,
            share.reserved
        );
    }
    share.connections
}

fn admin_token(config: &Config) -> Result<Option<Arc<KeyRing<Secret>>>, KeyError> {
    let load = |token: &SecretRef| KeyRing::load(vec![token.clone()], |secret| Ok(secret.clone())).map(Arc::new);
    config.admin.token.as_ref().map(load).transpose()
}

fn admin_limits() -> listener::Limits {
    listener::Limits {
        connections: ADMIN_CONNECTIONS,
        header_timeout: ADMIN_HEADER_TIMEOUT,
        idle_timeout: ADMIN_IDLE_TIMEOUT,
        drain_idle: Duration::ZERO,
        max_headers: ADMIN_MAX_HEADERS,
    }
}
