//! `hookbridge dev`: everything in one command, to look and to try.

use std::fs::{File, TryLockError};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use tokio::process::{Child, ChildStdin, Command};
use tokio_util::sync::CancellationToken;

use super::{Common, Usage, complain, say};
use crate::app::{App, Options, Roles};
use crate::config::{self, Config};
use crate::demo;
use crate::descriptors;
use crate::lifecycle::Signals;
use crate::listener::{Limits, Listener};

/// The configuration that is compiled in.
pub(super) const BUILTIN: (&str, &str) = ("config/dev.toml", include_str!("../../config/dev.toml"));

/// The port that NATS clients try first.
const NATS_PORT: u16 = 4222;
/// How long NATS may take to be usable: a large data folder is read first.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long to wait before a nats-server that ended is started again.
const START_AGAIN: Duration = Duration::from_secs(2);

#[derive(Args)]
pub(super) struct Arguments {
    /// The nats-server program [default: .tools/nats-server, then nats-server on the PATH].
    #[arg(long, value_name = "PATH", env = "NATS_SERVER")]
    nats_server: Option<PathBuf>,
    /// The folder for NATS' data, kept from one run to the next.
    #[arg(long, value_name = "FOLDER", default_value = ".hookbridge")]
    data: PathBuf,
    /// The port for NATS [default: 4222, or a free one if that is taken].
    #[arg(long, value_name = "PORT")]
    nats_port: Option<u16>,
    #[command(flatten)]
    common: Common,
}

/// Runs until a signal.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut layers = arguments.common.layers(Some(BUILTIN));
    if arguments.common.nats.is_some() {
        bail!(Usage::Other("`dev` starts its own NATS; for an existing one use `hookbridge serve`".to_owned()));
    }
    let server = find_server(arguments.nats_server.as_deref())?;
    let folder = data_folder(&arguments.data)?;
    let port = port(arguments.nats_port)?;
    layers.flags.push(("nats.url", format!("nats://127.0.0.1:{port}")));
    let config = config::load(&layers).map_err(Usage::from)?;
    let tracing = super::telemetry(&config)?;

    descriptors::raise();
    let mut signals = Signals::listen()?;
    let stop_server = CancellationToken::new();
    let server = Server::start(server, &folder, port).await?;
    let pid = server.child.id();
    let supervised = tokio::spawn(server.supervise(stop_server.clone()));
    let outcome = serve(&config, &mut signals, &folder, port).await;
    tracing::debug!("Stopping nats-server (supervisor {pid:?})");
    stop_server.cancel();
    drop(supervised.await);
    if let Some(tracing) = tracing {
        tracing.shutdown();
    }
    outcome
}

async fn serve(config: &Config, signals: &mut Signals, folder: &Path, port: u16) -> anyhow::Result<()> {
    let lines: demo::Say = Arc::new(say);
    let app = App::start(config, Roles::Both, Options::default()).await?;
    let endpoint = demo_endpoint(config, lines.clone(), &app).await?;
    if let Some(broker) = app.broker() {
        app.run_beside(|stop| demo::agent(broker, lines, stop));
    }
    tokio::select! {
        () = app.ready() => {}
        () = app.ended() => {
            app.stop().await?;
            bail!("a part ended before NATS was ready");
        }
        () = signals.any() => return app.stop().await,
        () = tokio::time::sleep(READY_WITHIN) => {
            bail!("NATS was not ready within {READY_WITHIN:?}; its log is {}", folder.join("nats-server.log").display());
        }
    }
    welcome(&app, folder, port, endpoint);
    let asked = tokio::select! {
        () = signals.any() => true,
        () = app.ended() => false,
    };
    say("\nstopping");
    tokio::select! {
        stopped = app.stop() => stopped?,
        () = signals.any() => bail!("stopped at once by a second signal"),
    }
    if asked { Ok(()) } else { bail!("a part of the process ended by itself; the log says which") }
}

async fn demo_endpoint(config: &Config, lines: demo::Say, app: &App) -> anyhow::Result<Option<SocketAddr>> {
    let Some(endpoint) = config.endpoints.get(demo::NAME) else { return Ok(None) };
    let addresses = endpoint.url.socket_addrs(|| None).context("endpoints.demo.url")?;
    let Some(address) = addresses.first().copied().filter(|address| address.ip().is_loopback()) else {
        return Ok(None);
    };
    let limits = Limits {
        connections: 64,
        header_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(75),
        drain_idle: Duration::ZERO,
        max_headers: 16 * 1024,
    };
    let listener = Listener::bind(address, limits).context("endpoints.demo.url")?;
    let router = demo::endpoint(endpoint, lines)?;
    app.run_beside(|stop| listener.run(router, stop));
    Ok(Some(address))
}

fn welcome(app: &App, folder: &Path, port: u16, endpoint: Option<SocketAddr>) {
    let gateway = app.gateway().map(|address| address.to_string()).unwrap_or_default();
    let endpoint = endpoint.map_or("none".to_owned(), |address| format!("http://{address}/"));
    say(&format!(
        r#"
Hookbridge is running.
  gateway   http://{gateway}/hooks/<source>      sources: demo, github, standard
  NATS      nats://127.0.0.1:{port}              data in {folder}
  admin     http://{admin}/readyz  /metrics
  endpoint  {endpoint}                  the demo agent's answers arrive there

Try in another terminal:

1. Send a signed webhook; the demo agent answers it, and the answer comes back as a signed callback:

   body='{{"type":"order.created","order":42}}'
   curl -i http://{gateway}/hooks/demo -H 'content-type: application/json' -d "$body" \
     -H "X-Signature: sha256=$(printf %s "$body" | openssl dgst -sha256 -hmac demo-secret -r | cut -d' ' -f1)"

2. Be an agent: publish to an outbox and have it sent as a signed webhook:

   {program} publish --nats nats://127.0.0.1:{port} outbox.me '{{"endpoint":"demo","payload":{{"hello":"world"}}}}'

3. Delegate a task, and ask what became of it; each step is also called back:

   curl -i http://{gateway}/agents/demo/tasks -H 'authorization: Bearer demo-token' \
     -d '{{"task_id":"t-1","callback_url":"{endpoint}","prompt":"think"}}'
   curl -s http://{gateway}/tasks/t-1 -H 'authorization: Bearer demo-token'

4. See everything that passed, receipts included:

   {program} tail --nats nats://127.0.0.1:{port} --all 'receipts.>'

Ctrl-C stops everything.
"#,
        folder = folder.display(),
        admin = app.admin(),
        program = std::env::args().next().unwrap_or_else(|| "hookbridge".to_owned()),
    ));
}

/// A nats-server of our own, behind a supervisor that ends it when we are gone.
struct Server {
    program: PathBuf,
    folder: PathBuf,
    child: Child,
    /// The end of the pipe that keeps the supervisor running. Waiting for a child closes its pipe, so it is
    /// kept apart.
    leash: Option<ChildStdin>,
}

impl Server {
    async fn start(program: PathBuf, folder: &Path, port: u16) -> anyhow::Result<Self> {
        let store = serde_json::to_string(&folder.join("jetstream")).context("the data folder's name is not text")?;
        let settings = format!(
            "# Written by `hookbridge dev`.\nlisten: 127.0.0.1:{port}\nmax_payload: 8MB\njetstream {{ store_dir: {store} }}\n"
        );
        std::fs::write(folder.join("nats.conf"), settings).with_context(|| folder.display().to_string())?;
        let mut child = spawn(&program, folder)?;
        let leash = child.stdin.take();
        Ok(Self { program, folder: folder.to_owned(), child, leash })
    }

    /// Keeps the server running until told to stop.
    async fn supervise(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => {
                    // The supervisor stops the server when its standard input closes.
                    drop(self.leash.take());
                    drop(self.child.wait().await);
                    return;
                }
                _ = self.child.wait() => {
                    let log = self.folder.join("nats-server.log");
                    complain(&format!("nats-server ended and is started again; its log is {}", log.display()));
                }
            }
            if stop.run_until_cancelled(tokio::time::sleep(START_AGAIN)).await.is_none() {
                return;
            }
            match spawn(&self.program, &self.folder) {
                Ok(child) => {
                    self.child = child;
                    self.leash = self.child.stdin.take();
                }
                Err(error) => return complain(&format!("nats-server cannot be started again: {error:#}")),
            }
        }
    }
}

fn spawn(program: &Path, folder: &Path) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(folder.join("nats-server.log"))?;
    Command::new(std::env::current_exe()?)
        .arg("supervise")
        .arg("--lock")
        .arg(folder.join("lock"))
        .arg(program)
        .arg("-c")
        .arg(folder.join("nats.conf"))
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C goes to every process of the terminal's group; the server has to outlive the drain.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}

fn find_server(given: Option<&Path>) -> Result<PathBuf, Usage> {
    if let Some(path) = given {
        let missing = || Usage::Other(format!("there is no nats-server at {}", path.display()));
        return path.canonicalize().map_err(|_| missing());
    }
    let name = Path::new("nats-server");
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::iter::once(PathBuf::from(".tools")).chain(std::env::split_paths(&on_path).collect::<Vec<_>>());
    let found = places.map(|place| place.join(name)).find(|path| path.is_file());
    found.and_then(|path| path.canonicalize().ok()).ok_or_else(|| {
        let advice = "`make tools` brings one into .tools/; or install it, or name it with --nats-server";
        Usage::Other(format!("there is no nats-server here: {advice}"))
    })
}

/// The data folder, once no other nats-server writes into it. The supervisor keeps it so.
fn data_folder(folder: &Path) -> anyhow::Result<PathBuf> {
    let name = || folder.display().to_string();
    std::fs::create_dir_all(folder).with_context(name)?;
    let folder = folder.canonicalize().with_context(name)?;
    let lock = File::create(folder.join("lock")).with_context(name)?;
    match lock.try_lock() {
        Ok(()) => Ok(folder),
        Err(TryLockError::WouldBlock) => {
            bail!("another nats-server uses {}; stop it, or name another folder with --data", folder.display())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(name),
    }
}

/// The wished port, the usual one, or a free one.
fn port(wished: Option<u16>) -> anyhow::Result<u16> {
    let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|socket| socket.local_addr());
    if let Some(port) = wished {
        return Ok(is_free(port).with_context(|| format!("port {port} for NATS"))?.port());
    }
    match is_free(NATS_PORT) {
        Ok(address) => Ok(address.port()),
        Err(_) => {
            let port = is_free(0).context("no free port for NATS")?.port();
            complain(&format!("port {NATS_PORT} is taken; NATS gets {port}"));
            Ok(port)
        }
    }
}
