//! `hookbridge tail`

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::{Common, complain, say, visible};
use crate::broker::{Broker, Names, Seen};
use crate::lifecycle::Signals;

/// How long to wait for NATS.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(super) struct Arguments {
    /// A subject, with `*` for one token and a last `>` for the rest, for example `events.>`.
    subject: String,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    /// Begin with what the stream has kept, instead of with what comes from now on.
    #[arg(long)]
    all: bool,
    /// Stop after so many messages.
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    #[command(flatten)]
    common: Common,
}

#[derive(Serialize)]
struct Line<'a> {
    subject: &'a str,
    headers: Vec<(&'a str, &'a str)>,
    /// The body as text, or, where it is not UTF-8, `body_base64`.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

/// Prints every message until interrupted.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = arguments.common.load_or_default()?;
    let names = Names::new(config.nats.prefix.clone());
    let visitor = Broker::visit(&config.nats, names, PATIENCE).await?;
    let mut signals = Signals::listen()?;
    let mut left = arguments.count.unwrap_or(usize::MAX);
    let begun = || complain(&format!("watching {}", arguments.subject));
    let mut print = |seen: &Seen| {
        if arguments.json {
            print_json(seen)
        } else {
            print_text(seen)
        }
        left -= 1;
        left > 0
    };
    if arguments.count == Some(0) {
        return Ok(());
    }
    tokio::select! {
        watched = visitor.watch_subject(&arguments.subject, arguments.all, begun, &mut print) => watched,
        () = signals.stop(|| ()) => Ok(()),
    }
}

fn print_json(seen: &Seen) {
    let text = std::str::from_utf8(&seen.payload).ok();
    let line = Line {
        subject: &seen.subject,
        headers: seen.headers.iter().collect(),
        body: text,
        body_base64: text.is_none().then(|| data_encoding::BASE64.encode(&seen.payload)),
    };
    say(&serde_json::to_string(&line).unwrap_or_default());
}

fn print_text(seen: &Seen) {
    say(&format!("── {}", seen.subject));
    for (name, value) in seen.headers.iter() {
        say(&format!("   {name}: {}", visible(value)));
    }
    match std::str::from_utf8(&seen.payload) {
        Ok("") => {}
        Ok(text) => say(&visible(text)),
        Err(_) => say(&format!("({} bytes that are not UTF-8)", seen.payload.len())),
    }
}
