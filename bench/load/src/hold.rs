//! Many connections, each open and used once.

use futures_util::StreamExt;
use futures_util::stream;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::Failure;
use crate::webhook::{Connection, Target, Webhook};

/// Connections that are opened at once: no more than any listener's queue takes.
const AT_ONCE: usize = 64;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// How many
    #[arg(long)]
    connections: usize,
}

#[derive(Serialize)]
struct Report {
    asked: usize,
    /// Webhooks that were answered 202.
    accepted: usize,
    /// Connections that are open now.
    open: usize,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let (mut stop, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let webhook = arguments.target.webhook()?;
    let opened = stream::iter(0..arguments.connections).map(|number| open(&arguments.target, &webhook, number));
    let held: Vec<_> = opened.buffer_unordered(AT_ONCE).filter_map(async |held| held).collect().await;
    report(&arguments, &held)?;
    tokio::select! {
        _ = stop.recv() => {}
        _ = interrupt.recv() => {}
    }
    report(&arguments, &held)
}

async fn open(target: &Target, webhook: &Webhook, number: usize) -> Option<Connection> {
    let mut connection = target.connect().await.ok()?;
    let answer = connection.send(webhook, &format!("held-{number}")).await.ok()?;
    (answer.status == 202).then_some(connection)
}

fn report(arguments: &Arguments, held: &[Connection]) -> Result<(), Failure> {
    let open = held.iter().filter(|connection| !connection.is_closed()).count();
    let report = Report { asked: arguments.connections, accepted: held.len(), open };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
