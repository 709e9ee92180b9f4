//! `hookbridge deliveries`

use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};

use super::endpoints::visit;
use super::{Common, Usage, say, visible};
use crate::egress::control::{self, Cancelled, Waiting};
use crate::event::Name;

#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Subcommand)]
enum Command {
    /// What waits in RETRY.
    List {
        /// Only what waits for this endpoint.
        #[arg(long)]
        endpoint: Option<Name>,
        /// The most to print.
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Cancels one delivery that has not ended.
    Cancel {
        /// The agent that published the message.
        #[arg(long)]
        agent: Name,
        /// The delivery id, as it stands in the receipts.
        #[arg(long, value_name = "DELIVERY_ID")]
        delivery: String,
        /// Why, for whoever reads the receipt.
        #[arg(long, default_value = "by an operator")]
        reason: String,
        /// How long to wait for a courier to do it.
        #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
        wait: Duration,
    },
}

/// Lists or cancels.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = arguments.common.load_or_default()?;
    let control = visit(&config).await?;
    match arguments.command {
        Command::List { endpoint, limit, json } => {
            let token = endpoint.as_ref().map(control::of_endpoint);
            let show = |waiting: Waiting| say(&visible(&if json { as_json(&waiting) } else { as_line(&waiting) }));
            control.waiting(token.as_deref(), limit, show).await
        }
        Command::Cancel { agent, delivery, reason, wait } => {
            let is_id = (1..=80).contains(&delivery.len())
                && delivery.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
            if !is_id {
                bail!(Usage::Other("--delivery is not a delivery id: A-Z a-z 0-9 _ -".to_owned()));
            }
            match control.cancel(&agent, &delivery, &reason, wait).await? {
                Cancelled::Now => say(&format!("delivery {delivery} is cancelled")),
                Cancelled::Ended(how) => bail!("delivery {delivery} had ended before: {how}"),
                Cancelled::Marked => {
                    say(&format!("delivery {delivery} does not wait now; the courier that meets it will cancel it"))
                }
            }
            Ok(())
        }
    }
}

fn as_json(waiting: &Waiting) -> String {
    let Waiting { agent, delivery_id, destination, attempt, held, due } = waiting;
    serde_json::json!({"agent": agent, "delivery": delivery_id, "destination": destination, "attempt": attempt,
        "held": held, "due": due})
    .to_string()
}

fn as_line(waiting: &Waiting) -> String {
    let held = waiting.held.map_or(String::new(), |held| format!(", {held}"));
    format!(
        "{:<32} agent {:<12} to {:<24} attempt {} due {}{held}",
        waiting.delivery_id, waiting.agent, waiting.destination, waiting.attempt, waiting.due
    )
}
