//! `hookbridge deliveries`

use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use url::Url;

use super::endpoints::visit;
use super::{Common, complain, say, visible};
use crate::broker::Visitor;
use crate::clock::{Clock, rfc3339};
use crate::config::StreamKind;
use crate::egress::control::{self, Cancelled, Waiting};
use crate::egress::{Delivered, Found, Repair, RepairPage, Repaired, inquire};
use crate::event::{Name, name};

/// The most deliveries that are listed at once.
const MOST: usize = 10_000;

/// What `deliveries redeliver --help` ends with.
const MANUAL: &str = "\
The message is published to OUTBOX again as it is there, and goes to the one destination of this delivery, under the \
same webhook-id and with all its attempts. Its receipt must still be in RECEIPTS, and the message in OUTBOX. What is \
dead is sent again with `hookbridge dead replay`.";

/// What `deliveries repair --help` ends with.
const REPAIR: &str = "\
Runs the check immediately that couriers run every `egress.repair_every`, and includes what is due later. A delivery \
counts as lost if its last receipt says that it waits, OUTBOX has acked it, and RETRY has no message for it. If OUTBOX \
no longer has its message either, a dead letter without a body is written. Nothing is sent twice, even if several \
processes run this check at the same time. Deliveries that waited before RECEIPTS was created are not known and not \
repaired.";

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
        #[arg(long, value_name = "NAME")]
        endpoint: Option<Name>,
        /// Only callbacks to this URL's scheme, host and port.
        #[arg(long, value_name = "URL", conflicts_with = "endpoint")]
        callback: Option<Url>,
        /// Only deliveries of this agent.
        #[arg(long, value_name = "NAME")]
        agent: Option<Name>,
        /// The most to print. Where there may be more, the last words say how to go on.
        #[arg(long, default_value_t = 100, value_parser = limit)]
        limit: usize,
        /// Go on behind this place in RETRY.
        #[arg(long, value_name = "PLACE", default_value_t = 0)]
        after: u64,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Sends a webhook again that was delivered.
    #[command(after_help = MANUAL)]
    Redeliver {
        /// The agent that sent it.
        #[arg(long, value_name = "NAME")]
        agent: Name,
        /// The delivery id, as the receipt has it.
        #[arg(long, value_name = "DELIVERY_ID", value_parser = delivery_id)]
        delivery: String,
    },
    /// Reschedules deliveries and task deadlines that are missing from RETRY.
    #[command(after_help = REPAIR)]
    Repair {
        /// Only print what would be done.
        #[arg(long)]
        dry_run: bool,
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
        #[arg(long, value_name = "DELIVERY_ID", value_parser = delivery_id)]
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
        Command::Repair { dry_run, json } => repair(control.visitor(), dry_run, json).await,
        Command::Redeliver { agent, delivery } => redeliver(control.visitor(), &agent, &delivery).await,
        Command::List { endpoint, callback, agent, limit, after, json } => {
            let token = endpoint.as_ref().map(control::of_endpoint);
            let token = token.or_else(|| callback.as_ref().map(control::of_callback));
            let show = |waiting: Waiting| say(&visible(&if json { as_json(&waiting) } else { as_line(&waiting) }));
            if let Some(place) = control.waiting(token.as_deref(), agent.as_ref(), after, limit, show).await? {
                complain(&format!("there may be more: go on with --after {place}"));
            }
            Ok(())
        }
        Command::Cancel { agent, delivery, reason, wait } => {
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

async fn repair(visitor: &Visitor, dry_run: bool, json: bool) -> anyhow::Result<()> {
    let now = Clock::default().now();
    let repair = Repair { visitor, now, overdue: None, dry_run, untold: None };
    let mut count = 0_usize;
    let mut show = |page: &RepairPage| {
        for repaired in &page.repaired {
            count += 1;
            say(&visible(&if json {
                repaired_as_json(repaired, dry_run)
            } else {
                repaired_as_line(repaired, dry_run)
            }));
        }
    };
    let mut from = Some(1);
    while let Some(place) = from {
        let page = repair.deliveries(place).await.context("cannot compare RECEIPTS with RETRY")?;
        show(&page);
        from = page.next;
    }
    from = Some(1);
    while let Some(place) = from {
        let page = repair.deadlines(place).await.context("cannot check task deadlines")?;
        show(&page);
        from = page.next;
    }
    if !json {
        complain(&match (count, dry_run) {
            (0, _) => "no lost deliveries or deadlines found".to_owned(),
            (count, true) => format!("{count} would be repaired (dry run)"),
            (count, false) => format!("{count} repaired"),
        });
    }
    Ok(())
}

fn repaired_as_json(repaired: &Repaired, dry_run: bool) -> String {
    let what = repaired.as_str();
    match repaired {
        Repaired::Rescheduled { agent, delivery_id, attempt, due } => serde_json::json!({"outcome": what,
            "agent": agent, "delivery": delivery_id, "attempt": attempt, "due": rfc3339(*due), "dry_run": dry_run}),
        Repaired::Dead { agent, delivery_id } => {
            serde_json::json!({"outcome": what, "agent": agent, "delivery": delivery_id, "dry_run": dry_run})
        }
        Repaired::Deadline { agent, task_id, due } => serde_json::json!({"outcome": what, "agent": agent,
            "task_id": task_id, "due": rfc3339(*due), "dry_run": dry_run}),
    }
    .to_string()
}

fn repaired_as_line(repaired: &Repaired, dry_run: bool) -> String {
    let verb = if dry_run { "would be" } else { "was" };
    match repaired {
        Repaired::Rescheduled { agent, delivery_id, attempt, due } => {
            format!(
                "delivery {delivery_id} of agent {agent}: attempt {attempt} {verb} rescheduled for {}",
                rfc3339(*due)
            )
        }
        Repaired::Dead { agent, delivery_id } => {
            format!(
                "delivery {delivery_id} of agent {agent} {verb} dead-lettered (expired): OUTBOX no longer has its \
                 message either"
            )
        }
        Repaired::Deadline { agent, task_id, due } => {
            format!("task {task_id} of agent {agent}: its deadline {verb} rescheduled for {}", rfc3339(*due))
        }
    }
}

async fn redeliver(visitor: &Visitor, agent: &Name, delivery: &str) -> anyhow::Result<()> {
    match inquire(visitor, agent.as_str(), delivery).await? {
        Found::Delivered(delivered) => {
            let sequence = again(visitor, &delivered).await?;
            say(&format!("redelivered {} of {agent}, delivery {delivery}, as {sequence}", delivered.sequence));
            Ok(())
        }
        Found::Unknown => bail!("RECEIPTS has no receipt of delivery `{delivery}` of agent `{agent}`, or no longer"),
        Found::Open => bail!("delivery `{delivery}` has not ended: it is still being tried, or waits"),
        Found::Dead => bail!(
            "delivery `{delivery}` is dead; send it again with: hookbridge dead replay --agent {agent} --delivery \
             {delivery}"
        ),
        Found::Cancelled => bail!("delivery `{delivery}` was cancelled, and never delivered"),
    }
}

async fn again(visitor: &Visitor, delivered: &Delivered) -> anyhow::Result<u64> {
    let sequence = delivered.sequence;
    let original = visitor.message(StreamKind::Outbox, sequence).await?;
    let original = original.with_context(|| {
        format!("its message, sequence {sequence} of OUTBOX, is no longer there: the agent has to publish it anew")
    })?;
    let run = format!("{:016x}", rand::random::<u64>());
    let again = delivered.again(&original, &run).with_context(|| {
        format!("sequence {sequence} of OUTBOX is another message now: OUTBOX was made anew since the delivery")
    })?;
    again.publish(visitor, Clock::default().now()).await
}

/// At least one, and no more than a person reads.
fn limit(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|limit| (1..=MOST).contains(limit)).ok_or_else(|| format!("use 1 to {MOST}"))
}

/// A delivery id, as it stands in subjects.
fn delivery_id(text: &str) -> Result<String, String> {
    if text.is_empty() || !text.bytes().all(name::is_token_byte) {
        return Err("a delivery id has A-Z a-z 0-9 _ - only".to_owned());
    }
    Ok(text.to_owned())
}
