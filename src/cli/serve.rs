//! `hookbridge serve`, `gateway` and `courier`

use anyhow::bail;
use clap::Args;

use super::Common;
use crate::app::{App, Options, Roles};
use crate::descriptors;
use crate::lifecycle::Signals;

#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Change streams and durables that differ from the configuration, instead of refusing to start.
    #[arg(long)]
    update_streams: bool,
}

/// Runs until a signal, or until a part ends by itself.
pub(super) async fn run(arguments: Arguments, roles: Roles) -> anyhow::Result<()> {
    let config = arguments.common.load()?;
    let tracing = super::telemetry(&config)?;
    let mut signals = Signals::listen()?;
    // After the logs, which say if it fails, and before the first connection.
    descriptors::raise();
    let options = Options { update_streams: arguments.update_streams, ..Options::default() };
    let app = App::start(&config, roles, options).await?;
    let asked = tokio::select! {
        () = signals.stop(|| app.reload()) => true,
        () = app.ended() => false,
    };
    let delay = config.shutdown_delay;
    if asked && !delay.is_zero() {
        tracing::info!(
            delay_ms = delay.as_millis() as u64,
            "Shutting down in {delay:?}; still serving, reported as not ready"
        );
        app.leave();
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = signals.stop(|| app.reload()) => tracing::info!("Second signal: skipping the rest of shutdown_delay"),
            () = app.ended() => {}
        }
    }
    tracing::info!("Stopping: finishing what is held");
    let stopped = tokio::select! {
        stopped = app.stop() => stopped,
        // What waits for the collector is not waited for either.
        () = signals.stop(|| ()) => bail!("stopped at once by a second signal"),
    };
    if let Some(tracing) = tracing {
        tracing.shutdown();
    }
    stopped?;
    if asked { Ok(()) } else { bail!("a part of the process ended by itself; the log says which") }
}
