//! The command line: one file per command.
//!
//! Exit codes: 0 fine, 1 a run-time failure, 2 bad usage or configuration (`check`: 1).

mod check;
mod dead;
mod deliveries;
mod dev;
mod endpoints;
mod explain;
mod moment;
mod presets;
mod publish;
mod ready;
mod replay;
mod send;
mod serve;
mod supervise;
mod tail;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::app::Roles;
use crate::config::{self, Config, Layers, Mistakes};
use crate::telemetry::logs;
use crate::telemetry::traces::Tracing;

/// The bridge between HTTP webhooks and AI agents on NATS.
#[derive(Parser)]
#[command(name = "hookbridge", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Try everything: starts a nats-server of its own, both roles and a demo agent.
    Dev(dev::Arguments),
    /// Both roles against an existing NATS.
    Serve(serve::Arguments),
    /// The inbound role: HTTP to NATS.
    Gateway(serve::Arguments),
    /// The outbound role: NATS to HTTP.
    Courier(serve::Arguments),
    /// Validates the configuration and prints what it means.
    Check(check::Arguments),
    /// Signs a sample webhook as the provider would and posts it to a source.
    Send(Box<send::Arguments>),
    /// Watches subjects: headers and body of every message.
    Tail(tail::Arguments),
    /// Publishes one message and prints what the stream answered.
    Publish(publish::Arguments),
    /// Publishes stored events again, on purpose: agents receive them as new messages.
    Replay(replay::Arguments),
    /// Endpoints: what is said about them, and those that come and go at run time.
    Endpoints(endpoints::Arguments),
    /// Deliveries: what waits, cancelling, and delivering again.
    Deliveries(deliveries::Arguments),
    /// Looks at dead letters, and sends them again.
    #[command(subcommand)]
    Dead(dead::Action),
    /// Asks a running process whether it is ready: for health checks of containers.
    Ready(ready::Arguments),
    /// Keeps a child process only as long as its own parent lives.
    #[command(hide = true)]
    Supervise(supervise::Arguments),
}

/// What every command takes.
#[derive(Args, Clone, Debug, Default)]
struct Common {
    /// A configuration file; several may be given, later ones win. Without any: config/hookbridge.toml, or what
    /// is built in for `dev`.
    #[arg(long = "config", value_name = "FILE", global = true)]
    files: Vec<PathBuf>,
    /// The NATS server, instead of the configured one.
    #[arg(long, value_name = "URL", global = true)]
    nats: Option<String>,
}

/// Bad usage or configuration: exit code 2.
#[derive(Debug, thiserror::Error)]
enum Usage {
    #[error("{0}")]
    Configuration(#[from] Mistakes),
    #[error("error: {0}")]
    Other(String),
}

impl Common {
    fn load(&self) -> Result<Config, Usage> {
        Ok(config::load(&self.layers(None))?)
    }

    fn layers(&self, builtin: Option<(&'static str, &'static str)>) -> Layers {
        let flags = self.nats.iter().map(|url| ("nats.url", url.clone())).collect();
        Layers { builtin, files: self.files.clone(), flags }
    }

    /// The configuration for a command that only needs NATS: without a file, the defaults do.
    fn load_or_default(&self) -> Result<Config, Usage> {
        self.load_or(("defaults", ""))
    }

    /// The configuration, or a built-in one where no file is named and the default one is not there.
    fn load_or(&self, builtin: (&'static str, &'static str)) -> Result<Config, Usage> {
        let none_there = self.files.is_empty() && !PathBuf::from(config::DEFAULT_FILE).is_file();
        Ok(config::load(&self.layers(none_there.then_some(builtin)))?)
    }
}

/// Parses the arguments, runs the command, and says how it went.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors to the parser, and fine to us. Nobody can be told if this fails.
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&error.into()),
    };
    let code = runtime.block_on(run(cli.command));
    // What still runs was told to stop and had its time.
    runtime.shutdown_background();
    code
}

async fn run(command: Command) -> ExitCode {
    let done = match command {
        Command::Dev(arguments) => dev::run(arguments).await,
        Command::Serve(arguments) => serve::run(arguments, Roles::Both).await,
        Command::Gateway(arguments) => serve::run(arguments, Roles::Gateway).await,
        Command::Courier(arguments) => serve::run(arguments, Roles::Courier).await,
        Command::Check(arguments) => return check::run(arguments).await,
        Command::Send(arguments) => send::run(*arguments).await,
        Command::Tail(arguments) => tail::run(arguments).await,
        Command::Publish(arguments) => publish::run(arguments).await,
        Command::Replay(arguments) => replay::run(arguments).await,
        Command::Endpoints(arguments) => endpoints::run(arguments).await,
        Command::Deliveries(arguments) => deliveries::run(arguments).await,
        Command::Dead(action) => dead::run(action).await,
        Command::Ready(arguments) => ready::run(arguments).await,
        Command::Supervise(arguments) => supervise::run(arguments).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(usage) = error.downcast_ref::<Usage>() {
        complain(&usage.to_string());
        return ExitCode::from(2);
    }
    complain(&format!("error: {error:#}"));
    ExitCode::FAILURE
}

/// A line for the person at the terminal. If nobody reads it, nobody is told.
fn say(line: &str) {
    drop(writeln!(std::io::stdout().lock(), "{line}"));
}

/// A line on standard error.
fn complain(line: &str) {
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}

/// What comes from outside must not steer the terminal.
fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// Sets up logs and traces for a process that stays.
fn telemetry(config: &Config) -> anyhow::Result<Option<Tracing>> {
    logs::init(&config.telemetry)
}
