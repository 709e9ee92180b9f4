//! `hookbridge serve`, `gateway` and `courier`

use clap::Args;

use super::Common;
use crate::app::{App, Options, Roles};
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
    let options = Options { update_streams: arguments.update_streams, ..Options::default() };
    let app = App::start(&config, roles, options).await?;
    tokio::select! {
        () = signals.stop(|| app.reload()) => tracing::info!("Stopping: finishing what is held"),
        () = app.ended() => {}
    }
    let stopped = tokio::select! {
        stopped = app.stop() => stopped,
        () = signals.stop(|| ()) => Err(anyhow::anyhow!("stopped at once by a second signal")),
    };
    if let Some(tracing) = tracing {
        tracing.shutdown();
    }
    stopped
}
