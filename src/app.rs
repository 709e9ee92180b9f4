//! The composition root: a configuration in, running parts out. The only file that names every part.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::{Broker, Plan, Problem};
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::egress::{Courier, Destinations};
use crate::lifecycle::Lifecycle;
use crate::listener::{self, Listener, Observer};
use crate::secret::{KeyRing, Reload};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::RequestLabels;
use crate::{admin, ingress};

/// Connections that the admin listener serves at once.
const ADMIN_CONNECTIONS: usize = 64;
/// The most bytes of an admin request's headers.
const ADMIN_MAX_HEADERS: usize = 16 * 1024;
/// How long an admin request's headers may take.
const ADMIN_HEADER_TIMEOUT: Duration = Duration::from_secs(5);

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
}

/// A running process.
pub struct App {
    lifecycle: Lifecycle,
    broker: Broker,
    secrets: Vec<Arc<dyn Reload>>,
    gateway: Option<SocketAddr>,
    admin: SocketAddr,
    failed: Arc<Mutex<Option<Problem>>>,
    /// Ends the admin pages, which stay up while the roles drain.
    last: CancellationToken,
    beside: TaskTracker,
    grace: Duration,
}

impl App {
    /// Starts the roles. NATS need not be there; the addresses are bound when this returns.
    pub async fn start(config: &Config, roles: Roles, options: Options) -> anyhow::Result<Self> {
        for warning in config::warnings(config) {
            tracing::warn!("{warning}");
        }
        let (lifecycle, metrics) = (Lifecycle::default(), Metrics::new());
        let mut secrets: Vec<Arc<dyn Reload>> = Vec::new();
        let plan = Plan::new(config, options.update_streams);
        let (broker, supervisor) = Broker::connect(&config.nats, plan).await.context("nats")?;

        let admin = Listener::bind(config.admin.listen, admin_limits()).await.context("admin.listen")?;
        let admin_address = admin.address()?;
        let token = config.admin.token.clone();
        let token =
            token.map(|token| KeyRing::load(vec![token], |secret| Ok(secret.clone()))).transpose()?.map(Arc::new);
        secrets.extend(token.clone().map(|token| token as Arc<dyn Reload>));
        let admin_pages = admin::router(broker.clone(), metrics.clone(), token, lifecycle.draining());

        let mut gateway = None;
        if roles != Roles::Courier {
            let sources = ingress::sources(config).map_err(|(name, error)| anyhow!("{name}: {error}"))?;
            secrets.extend(ingress::secrets(&sources));
            let listener =
                Listener::bind(config.gateway.listen, ingress::limits(config)).await.context("gateway.listen")?;
            let address = listener.address()?;
            gateway = Some(address);
            let listener = listener.observed_by(observer(&metrics));
            let router = ingress::router(config, broker.clone(), sources, options.clock.clone(), metrics.clone());
            tracing::info!(server.address = %address, "Gateway listens on http://{address}/hooks/<source>");
            lifecycle.spawn(listener.run(router, lifecycle.draining()));
        }
        if roles != Roles::Gateway {
            let destinations = Destinations::new(config).map_err(|(name, error)| anyhow!("{name}: {error}"))?;
            secrets.extend(destinations.secrets());
            let destinations = Arc::new(destinations);
            let courier = Courier::new(config, broker.clone(), destinations, options.clock.clone(), metrics.clone())?;
            lifecycle.spawn(courier.run(lifecycle.draining()));
        }
        tracing::info!(server.address = %admin_address, "Admin listens on http://{admin_address}");
        // The admin pages and the link stay up while the roles drain: an operator wants to watch.
        let (last, beside) = (CancellationToken::new(), TaskTracker::new());
        let failed = Arc::new(Mutex::new(None));
        beside.spawn(admin.run(admin_pages, last.clone()));
        beside.spawn(last.clone().run_until_cancelled_owned(watch_link(broker.clone(), metrics)));
        lifecycle.spawn({
            let (failed, stop) = (failed.clone(), lifecycle.draining());
            async move {
                if let Err(problem) = supervisor.run(stop).await {
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem);
                }
            }
        });
        let grace = config.shutdown_grace;
        Ok(Self { lifecycle, broker, secrets, gateway, admin: admin_address, failed, last, beside, grace })
    }

    /// The handle to NATS, for the demo that runs beside the roles.
    pub(crate) fn broker(&self) -> &Broker {
        &self.broker
    }

    /// Where the gateway listens, if this process has that role.
    pub fn gateway(&self) -> Option<SocketAddr> {
        self.gateway
    }

    /// Where health and metrics are.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Waits until NATS can be used.
    pub async fn ready(&self) {
        self.broker.ready().await;
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

    /// Reads all secrets again. One that cannot be read stays as it was.
    pub fn reload(&self) {
        let failed = self.secrets.iter().filter_map(|secret| secret.reload().err()).inspect(|error| {
            tracing::error!("A secret was not read again and stays as it was: {error}");
        });
        let failed = failed.count();
        tracing::info!("Read {} secrets again, {failed} failed", self.secrets.len());
    }

    /// Stops taking, finishes what is held, and gives up after `shutdown_grace`.
    ///
    /// The error is what made the process stop, if anything did.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.lifecycle.drain();
        if !self.lifecycle.drained(self.grace).await {
            tracing::warn!("Stopped before everything was finished; what is left comes again from the streams");
        }
        self.broker.close().await;
        self.last.cancel();
        self.beside.close();
        if tokio::time::timeout(ADMIN_HEADER_TIMEOUT, self.beside.wait()).await.is_err() {
            tracing::debug!("Somebody holds on to an admin page");
        }
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        failed.map_or(Ok(()), |problem| Err(problem.into()))
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
    Observer { connections: Arc::new(connections), answered: Arc::new(answered) }
}

fn admin_limits() -> listener::Limits {
    listener::Limits {
        connections: ADMIN_CONNECTIONS,
        header_timeout: ADMIN_HEADER_TIMEOUT,
        max_headers: ADMIN_MAX_HEADERS,
    }
}

/// Keeps the gauge of the link.
async fn watch_link(broker: Broker, metrics: Metrics) {
    let mut link = broker.watch();
    loop {
        let ready = link.borrow_and_update().ready().is_some();
        if ready {
            metrics.nats_connections.inc();
        }
        metrics.nats_ready.set(ready.into());
        if link.changed().await.is_err() {
            return;
        }
    }
}
