//! A running Hookbridge, in the test's own process.

use hookbridge::app::{App, Options, Roles};
use hookbridge::clock::Clock;
use hookbridge::config::{self, Config, Layers};

use tokio::net::TcpStream;

use super::{Answer, Nats, eventually, post, request, within};

/// A process, started from a configuration text as an operator would write it.
pub(crate) struct Hookbridge {
    app: App,
}

/// What every test has unless it says otherwise: loopback, free ports, short waits.
pub(super) const BASE: &str = r#"
shutdown_grace = "5s"
[gateway]
listen = "127.0.0.1:0"
[admin]
listen = "127.0.0.1:0"
[egress]
timeout = "2s"
retry = ["100ms", "100ms"]
allow_http = true
allow_networks = ["127.0.0.0/8"]
"#;

fn load(text: &str, flags: Vec<(&'static str, String)>) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let (base, own) = (folder.path().join("base.toml"), folder.path().join("test.toml"));
    std::fs::write(&base, BASE).unwrap();
    std::fs::write(&own, text).unwrap();
    let layers = Layers { files: vec![base, own], flags, builtin: None };
    config::load(&layers).map_err(|mistakes| mistakes.to_string())
}

/// What `check` would say about a configuration that cannot work.
#[track_caller]
pub(crate) fn mistakes(text: &str) -> String {
    load(text, Vec::new()).expect_err("this configuration was taken")
}

impl Hookbridge {
    /// Both roles, ready.
    pub(crate) async fn start(nats: &Nats, text: &str) -> Self {
        Self::start_as(nats, Roles::Both, text).await
    }

    /// Some roles, ready.
    pub(crate) async fn start_as(nats: &Nats, roles: Roles, text: &str) -> Self {
        let hookbridge = Self::start_without_nats(nats, roles, text).await;
        within("Hookbridge to be ready", hookbridge.app.ready()).await;
        hookbridge
    }

    /// Some roles, whether or not NATS is there.
    pub(crate) async fn start_without_nats(nats: &Nats, roles: Roles, text: &str) -> Self {
        Self::start_with(nats, roles, text, Options::default()).await
    }

    /// The gateway, ready, at a time that the test sets.
    pub(crate) async fn start_at(nats: &Nats, clock: &Clock, text: &str) -> Self {
        let options = Options { clock: clock.clone(), ..Options::default() };
        let hookbridge = Self::start_with(nats, Roles::Gateway, text, options).await;
        hookbridge.ready().await;
        hookbridge
    }

    /// Some roles, whether or not NATS is there, with further options.
    pub(crate) async fn start_with(nats: &Nats, roles: Roles, text: &str, options: Options) -> Self {
        let config = load(text, vec![("nats.url", nats.url())]).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        Self { app: App::start(&config, roles, options).await.unwrap() }
    }

    /// Some roles, whether or not NATS is there, where the text says which servers to use.
    pub(crate) async fn start_from(text: &str, roles: Roles, options: Options) -> Self {
        let config = load(text, Vec::new()).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        Self { app: App::start(&config, roles, options).await.unwrap() }
    }

    /// The URL of a path on the gateway.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.app.gateway().unwrap())
    }

    /// Posts to a path on the gateway.
    pub(crate) async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl Into<bytes::Bytes>) -> Answer {
        post(&self.url(path), headers, body).await
    }

    /// Waits until the gateway lets senders in.
    pub(crate) async fn listens(&self) {
        let address = self.app.gateway().unwrap();
        let connected = async || TcpStream::connect(address).await.ok();
        eventually("the gateway to listen", connected).await;
    }

    /// What an admin page says.
    pub(crate) async fn admin(&self, path: &str) -> Answer {
        request("GET", &format!("http://{}{path}", self.app.admin()), &[], "").await
    }

    /// The value of a metric, by the whole text before its value.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let page = self.admin("/metrics").await.text();
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// How many requests of a source came to this.
    pub(crate) async fn counted(&self, source: &str, outcome: &str) -> f64 {
        self.metric(&format!("hookbridge_ingress_requests_total{{source=\"{source}\",outcome=\"{outcome}\"}}")).await
    }

    /// How many requests of a source were not genuine for this reason.
    pub(crate) async fn rejected(&self, source: &str, reason: &str) -> f64 {
        self.metric(&format!("hookbridge_ingress_rejections_total{{source=\"{source}\",reason=\"{reason}\"}}")).await
    }

    /// Reads the secrets again, as SIGHUP does.
    pub(crate) fn reload(&self) {
        self.app.reload();
    }

    /// Waits until NATS can be used.
    pub(crate) async fn ready(&self) {
        within("Hookbridge to be ready", self.app.ready()).await;
    }

    /// Waits until the process stops by itself, and says why.
    pub(crate) async fn ended(self) -> anyhow::Result<()> {
        within("Hookbridge to end", self.app.ended()).await;
        self.app.stop().await
    }

    /// Drains and stops.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        within("Hookbridge to stop", self.app.stop()).await
    }
}
