//! `hookbridge publish`

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

use super::{Common, Usage, say};
use crate::broker::{Broker, Names};
use crate::event::Headers;

/// How long to wait for NATS and for the stream's answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most bytes that are read from standard input.
const MAX_INPUT: u64 = 64 * 1024 * 1024;

#[derive(Args)]
pub(super) struct Arguments {
    /// The subject, for example `outbox.planner`.
    subject: String,
    /// The body; `-` reads standard input [default: empty].
    body: Option<String>,
    /// A header, `Name: value`, written exactly so; may be repeated.
    #[arg(long = "header", short = 'H', value_name = "HEADER")]
    headers: Vec<String>,
    #[command(flatten)]
    common: Common,
}

/// Publishes one message and prints the stream's answer.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = arguments.common.load_or_default()?;
    let mut headers = Headers::default();
    for header in &arguments.headers {
        let (name, value) =
            header.split_once(':').ok_or_else(|| Usage::Other(format!("`{header}` is not `Name: value`")))?;
        let (name, value) = (name.trim(), value.trim());
        if !crate::broker::can_carry(name, value) {
            bail!(Usage::Other(format!("NATS cannot carry the header `{header}`")));
        }
        headers.push(name.to_owned(), value);
    }
    let body = match arguments.body.as_deref() {
        Some("-") => {
            let mut bytes = Vec::new();
            std::io::stdin().take(MAX_INPUT).read_to_end(&mut bytes).context("standard input")?;
            bytes
        }
        Some(text) => text.as_bytes().to_vec(),
        None => Vec::new(),
    };
    let names = Names::new(config.nats.prefix.clone());
    let client = Broker::visit(&config.nats, names, PATIENCE).await?;
    let Some(ack) = client.publish_once(&arguments.subject, headers, body.into(), PATIENCE).await? else {
        bail!("no stream takes subject `{}`: the message was published and nobody keeps it", arguments.subject);
    };
    say(&ack);
    Ok(())
}
