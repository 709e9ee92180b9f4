//! `hookbridge dead`: what was given up, and once more.
//!
//! A dead letter is replayed by publishing its message to OUTBOX again (see `egress::replay`). The letter stays
//! where it is unless `--remove` says otherwise, so a second run replays it a second time: that is for the operator
//! to decide, and what he may not know, that the replay died too, is decided here: its letter stands for both.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::{ArgGroup, Args, Subcommand};
use governor::Quota;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use super::moment::{Moment, go_on, range};
use super::{Common, Usage, complain, say, visible};
use crate::broker::{Broker, Names, Visitor};
use crate::clock::{Clock, rfc3339};
use crate::config::{Rate, StreamKind};
use crate::egress::{Buried, Origin};
use crate::event::{Name, name};

/// How long to wait for NATS.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most dead letters that are held in mind at once.
const MOST: u64 = 100_000;

/// How many dead letters of one delivery are taken out together.
const MOST_REPLAYS: usize = 1000;

/// What `dead replay --help` ends with.
const MANUAL: &str = "\
Dead letters are named by --sequence, or by any of --agent, --destination, --delivery, --reason, --since and --until.

Each is published to OUTBOX again, with its body and headers, and is a new delivery with all its attempts. The \
webhook-id stays the same, and a message that went to several endpoints goes to the one whose delivery was given up. \
A receipt `retrying` with reason `replayed` tells the agent. One line is printed for each, with the sequence in DEAD \
and the new one in OUTBOX.

More than one is replayed only with --yes; without it they are listed, nothing is replayed, and the exit code is 1. \
Dead letters stay in DEAD, and a second run replays them again, unless --remove takes each out once its replay is \
stored, with those of which it stands for a replay. Of a delivery whose replay died too, only the last dead letter counts. A dead letter without body or headers \
cannot be replayed: it is named with the reason, the others are replayed, and the exit code is 1.";

#[derive(Subcommand)]
pub(super) enum Action {
    /// Lists dead letters, oldest first.
    List(List),
    /// Sends dead letters again, on purpose.
    Replay(Replay),
}

#[derive(Args)]
pub(super) struct List {
    #[command(flatten)]
    filter: Filter,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
#[command(after_help = MANUAL, group(ArgGroup::new("letters").required(true).multiple(true)
    .args(["sequence", "agent", "destination", "delivery", "reason", "since", "until"])))]
pub(super) struct Replay {
    /// The dead letter at this sequence of DEAD.
    #[arg(long, value_name = "N",
        conflicts_with_all = ["agent", "destination", "delivery", "reason", "since", "until"])]
    sequence: Option<u64>,
    #[command(flatten)]
    filter: Filter,
    /// How many are replayed in a time, evenly: so many a second (`50/s`), minute or hour.
    #[arg(long, value_name = "RATE", default_value = "50/s")]
    rate: Rate,
    /// Print what would be replayed, and replay nothing.
    #[arg(long)]
    dry_run: bool,
    /// Replay them, however many.
    #[arg(long)]
    yes: bool,
    /// Take each dead letter out of DEAD once its replay is stored.
    #[arg(long)]
    remove: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Filter {
    /// Of this agent.
    #[arg(long, value_name = "NAME")]
    agent: Option<Name>,
    /// To this endpoint or URL, as the dead letter names it.
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,
    /// Of this delivery.
    #[arg(long, value_name = "ID")]
    delivery: Option<String>,
    /// Given up for this reason, for example `exhausted` or `unroutable`.
    #[arg(long, value_name = "WORD")]
    reason: Option<String>,
    /// Given up at this time or later: `2h` ago, or `2026-01-31T12:00:00Z`.
    #[arg(long, value_name = "TIME")]
    since: Option<Moment>,
    /// Given up before this time [default: now].
    #[arg(long, value_name = "TIME")]
    until: Option<Moment>,
    /// The most dead letters. Where more match, it stops there and says how to go on.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=MOST))]
    limit: u64,
}

/// What matches, and the first one that is too many.
struct Found {
    letters: Vec<Buried>,
    next: Option<Buried>,
}

pub(super) async fn run(action: Action) -> anyhow::Result<()> {
    match action {
        Action::List(arguments) => list(arguments).await,
        Action::Replay(arguments) => replay(arguments).await,
    }
}

async fn list(arguments: List) -> anyhow::Result<()> {
    let Found { letters, next } = {
        let now = Clock::default().now();
        arguments.filter.subject()?;
        arguments.filter.times(now)?;
        arguments.filter.find(&visit(&arguments.common).await?, now).await?
    };
    for letter in &letters {
        say(&if arguments.json { in_json(letter) } else { line(letter) });
    }
    match next {
        Some(next) => {
            complain(&format!("stopped at --limit {}: {}", arguments.filter.limit, go_on(next.sequence, next.stored)));
        }
        None if letters.is_empty() => complain("no dead letter matches"),
        None => {}
    }
    Ok(())
}

async fn replay(arguments: Replay) -> anyhow::Result<()> {
    let clock = Clock::default();
    arguments.filter.subject()?;
    arguments.filter.times(clock.now())?;
    let visitor = visit(&arguments.common).await?;
    let Found { letters, next } = match arguments.sequence {
        Some(sequence) => Found { letters: vec![at(&visitor, sequence).await?], next: None },
        None => arguments.filter.find(&visitor, clock.now()).await?,
    };
    if letters.is_empty() {
        bail!("no dead letter matches");
    }
    if arguments.dry_run || ((letters.len() > 1 || next.is_some()) && !arguments.yes) {
        return show(&arguments, &letters, next.as_ref());
    }
    let refused = replay_all(&visitor, &letters, &arguments, &clock).await?;
    if let Some(next) = next {
        let not = if refused > 0 { format!("{refused} were not replayed; ") } else { String::new() };
        bail!("{not}stopped at --limit {}: {}", arguments.filter.limit, go_on(next.sequence, next.stored));
    }
    if refused > 0 {
        bail!("{refused} of {} were not replayed", letters.len());
    }
    Ok(())
}

/// Says what would be done. It is an error where it was to be done.
fn show(arguments: &Replay, letters: &[Buried], next: Option<&Buried>) -> anyhow::Result<()> {
    for letter in letters {
        // Its line says so where it cannot be.
        let would = if letter.unrepeatable().is_some() { "cannot replay" } else { "would replay" };
        say(&format!("{would} {}", line(letter)));
    }
    let limit = arguments.filter.limit;
    let count = if next.is_some() { format!("more than {limit}") } else { letters.len().to_string() };
    if !arguments.dry_run {
        bail!("nothing was replayed: {count} dead letters match; to replay them add --yes");
    }
    if next.is_some() {
        say(&format!("and more: {count} dead letters match"));
    }
    Ok(())
}

/// Replays one after the other. How many could not be replayed.
async fn replay_all(visitor: &Visitor, letters: &[Buried], arguments: &Replay, clock: &Clock) -> anyhow::Result<usize> {
    let run = format!("{:016x}", rand::random::<u64>());
    let mut pace = interval(Quota::replenish_interval(&arguments.rate.quota()));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut refused = 0;
    for (index, letter) in letters.iter().enumerate() {
        pace.tick().await;
        let stopped = || {
            let (done, all) = (index - refused, letters.len());
            format!("{done} of {all} replayed, then stopped at sequence {}", letter.sequence)
        };
        match once(visitor, letter, &run, clock.now()).await.with_context(stopped)? {
            Ok(sequence) => {
                say(&format!("replayed {} as {sequence}", line(letter)));
                if arguments.remove {
                    let removed = remove(visitor, letter).await;
                    removed.with_context(|| format!("it is replayed as {sequence}, but still a dead letter"))?;
                }
            }
            Err(why) => {
                complain(&format!("not replayed: {}: {why}", letter.sequence));
                refused += 1;
            }
        }
    }
    Ok(refused)
}

/// Replays one letter: its sequence in OUTBOX, or why it cannot be replayed.
async fn once(visitor: &Visitor, letter: &Buried, run: &str, now: SystemTime) -> anyhow::Result<Result<u64, String>> {
    if let Some(why) = letter.unrepeatable() {
        return Ok(Err(why.to_string()));
    }
    let Some(whole) = visitor.message(StreamKind::Dead, letter.sequence).await? else {
        return Ok(Err("it is no longer in DEAD".to_owned()));
    };
    match letter.again(&whole, run) {
        Ok(again) => Ok(Ok(again.publish(visitor, now).await?)),
        Err(why) => Ok(Err(why.to_string())),
    }
}

/// Takes a letter out of DEAD, and before it those that it stands for: else they would be found again.
async fn remove(visitor: &Visitor, letter: &Buried) -> anyhow::Result<()> {
    let mut chain = vec![letter.clone()];
    while let Some(first) = chain.last()
        && chain.len() < MOST_REPLAYS
        && let Some(Origin::Dead(sequence)) = first.repeats
        && let Some(message) = visitor.message(StreamKind::Dead, sequence).await?
        && let Some(earlier) = Buried::read(&message.subject, sequence, message.stored, &message.headers)
        && first.is_after(&earlier)
    {
        chain.push(earlier);
    }
    for letter in chain.iter().rev() {
        visitor.remove(StreamKind::Dead, letter.sequence).await?;
    }
    Ok(())
}

async fn visit(common: &Common) -> anyhow::Result<Visitor> {
    let config = common.load_or_default()?;
    Broker::visit(&config.nats, Names::new(config.nats.prefix.clone()), PATIENCE).await
}

async fn at(visitor: &Visitor, sequence: u64) -> anyhow::Result<Buried> {
    let Some(message) = visitor.message(StreamKind::Dead, sequence).await? else {
        let nothing = format!("there is no dead letter at sequence {sequence} of DEAD");
        match visitor.sequences(StreamKind::Dead).await? {
            Some((first, last)) => bail!("{nothing}, which has {first} to {last}"),
            None => bail!("{nothing}, which is empty"),
        }
    };
    Buried::read(&message.subject, sequence, message.stored, &message.headers).with_context(|| {
        format!("message {sequence} on {} is not a dead letter that Hookbridge wrote", visible(&message.subject))
    })
}

impl Filter {
    /// The subjects on which such letters are.
    fn subject(&self) -> Result<String, Usage> {
        let delivery = self.delivery.as_deref().unwrap_or("*");
        if self.delivery.as_ref().is_some_and(|id| id.is_empty() || !id.bytes().all(name::is_token_byte)) {
            let delivery = visible(delivery);
            return Err(Usage::Other(format!("`{delivery}` is not a delivery id: it has A-Z a-z 0-9 _ - only")));
        }
        Ok(format!("dead.{}.{delivery}", self.agent.as_ref().map_or("*", Name::as_str)))
    }

    fn times(&self, now: SystemTime) -> Result<(Option<SystemTime>, SystemTime), Usage> {
        match self.since {
            Some(since) => range(since, self.until, now).map(|(since, until)| (Some(since), until)),
            None => Ok((None, self.until.map_or(now, |until| until.time(now)))),
        }
    }

    fn takes(&self, letter: &Buried) -> bool {
        let is = |wanted: &Option<String>, text: &str| wanted.as_ref().is_none_or(|wanted| wanted == text);
        is(&self.destination, &letter.destination) && is(&self.reason, &letter.reason)
    }

    async fn find(&self, visitor: &Visitor, now: SystemTime) -> anyhow::Result<Found> {
        let (subject, (since, until)) = (self.subject()?, self.times(now)?);
        let mut found = BTreeMap::new();
        let seen = |glimpse: crate::broker::Glimpse| {
            if self.until.is_some() && glimpse.stored >= until {
                return false;
            }
            let letter = Buried::read(&glimpse.subject, glimpse.sequence, glimpse.stored, &glimpse.headers);
            let Some(letter) = letter else { return true };
            forget_earlier(&mut found, &letter);
            if self.takes(&letter) {
                found.insert(letter.sequence, letter);
            }
            // One more than any limit.
            found.len() as u64 <= MOST
        };
        visitor.look_back(StreamKind::Dead, &subject, since, seen).await?;
        let mut letters = found.into_values();
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        Ok(Found { letters: letters.by_ref().take(limit).collect(), next: letters.next() })
    }
}

/// The letter of a replay stands for the one that was replayed.
fn forget_earlier(found: &mut BTreeMap<u64, Buried>, letter: &Buried) {
    if let Some(Origin::Dead(earlier)) = letter.repeats
        && found.get(&earlier).is_some_and(|earlier| letter.is_after(earlier))
    {
        found.remove(&earlier);
    }
}

fn line(letter: &Buried) -> String {
    let Buried { sequence, agent, delivery_id, attempts, .. } = letter;
    let destination = if letter.destination.is_empty() { "nobody" } else { &letter.destination };
    let attempts = if *attempts == 1 { "1 attempt".to_owned() } else { format!("{attempts} attempts") };
    let mut line = format!(
        "{sequence}  {}  {agent}  {delivery_id}  to {}  {}  {attempts}  {}",
        rfc3339(letter.stored),
        one_line(destination),
        one_line(&letter.reason),
        one_line(&letter.detail)
    );
    if let Some(why) = letter.unrepeatable() {
        line.push_str(&format!("  (cannot be replayed: {why})"));
    }
    line
}

fn in_json(letter: &Buried) -> String {
    let cannot = letter.unrepeatable().map(|why| why.to_string());
    json!({
        "sequence": letter.sequence,
        "at": rfc3339(letter.stored),
        "agent": letter.agent,
        "message": letter.message_id,
        "delivery": letter.delivery_id,
        "destination": Some(one_line(&letter.destination)).filter(|name| !name.is_empty()),
        "reason": one_line(&letter.reason),
        "attempts": letter.attempts,
        "detail": one_line(&letter.detail),
        "replay_of": letter.repeats.map(|origin| origin.to_string()),
        "cannot_be_replayed": cannot,
    })
    .to_string()
}

/// One letter is one line, whoever wrote it.
fn one_line(text: &str) -> String {
    visible(text).replace(['\n', '\t'], " ")
}
