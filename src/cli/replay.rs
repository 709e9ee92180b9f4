//! `hookbridge replay`: stored events, published again on purpose.
//!
//! The duplicate window is there so that a delivery which a sender repeats is stored once. Here it is an operator
//! who repeats, and wants his agents to see the event again: so the message is the same in everything but its
//! `Nats-Msg-Id`, which is new. `ce-id` stays, and two headers say what it is, so that an agent can tell.

use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::{ArgGroup, Args};
use percent_encoding::percent_decode_str;

use super::moment::{Moment, go_on, range};
use super::{Common, Usage, say, visible};
use crate::broker::{Broker, Glimpse, Names, Outgoing, StoredMessage, Visitor};
use crate::clock::{Clock, rfc3339};
use crate::config::StreamKind;
use crate::event::{Headers, Name, id, subject};

/// How long to wait for NATS and for the stream's answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most events that are held in mind at once.
const MOST: u64 = 100_000;
/// What stands between the original message id and what makes it new.
const MARK: &str = ":replay:";
const REPLAY_OF: &str = "Hookbridge-Replay-Of";
const REPLAYED_AT: &str = "Hookbridge-Replayed-At";

/// What `--help` ends with.
const MANUAL: &str = "\
Events are named by one of: --sequence; --source and --id; --subject and --since.

Each is published on its subject again, with its body and headers, a Nats-Msg-Id that is new, and the headers \
Hookbridge-Replay-Of (the sequence) and Hookbridge-Replayed-At. ce-id stays as it is: an agent that remembers what \
it has done by ce-id knows the event, and may leave it alone. Every consumer whose filter takes the subject receives \
it. One line is printed for each, with the old and the new sequence.

More than one event is replayed only with --yes; without it they are listed, nothing is replayed, and the exit code \
is 1. Replays are not replayed again together with what they repeat: only when --sequence names one, or --id one \
whose original is gone.";

#[derive(Args)]
#[command(after_help = MANUAL, group(ArgGroup::new("events").required(true).args(["sequence", "id", "subject"])))]
pub(super) struct Arguments {
    /// The event at this sequence of EVENTS.
    #[arg(long, value_name = "N")]
    sequence: Option<u64>,
    /// The source of the event that --id names.
    #[arg(long, value_name = "NAME", requires = "id", conflicts_with_all = ["sequence", "subject"])]
    source: Option<Name>,
    /// The delivery id, as the provider gave it or as the gateway answered it.
    #[arg(long, value_name = "DELIVERY_ID", requires = "source")]
    id: Option<String>,
    /// All events on a subject, with `*` for one token and a last `>` for the rest, for example `events.github.>`.
    #[arg(long, value_name = "SUBJECT", requires = "since")]
    subject: Option<String>,
    /// Stored at this time or later: `2h` ago, or `2026-01-31T12:00:00Z`.
    #[arg(long, value_name = "TIME", requires = "subject", conflicts_with_all = ["sequence", "id"])]
    since: Option<Moment>,
    /// Stored before this time [default: now].
    #[arg(long, value_name = "TIME", requires = "subject", conflicts_with_all = ["sequence", "id"])]
    until: Option<Moment>,
    /// The most events to replay. Where more match, it stops there and says how to go on, with exit code 1.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=MOST))]
    limit: u64,
    /// Print what would be replayed, and replay nothing.
    #[arg(long)]
    dry_run: bool,
    /// Replay them, however many.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    common: Common,
}

/// Which events are meant.
#[derive(Debug)]
enum Wanted {
    Sequence(u64),
    Id { source: Name, id: String },
    Stored { subject: String, since: SystemTime, until: SystemTime },
}

impl Wanted {
    fn of(arguments: &Arguments, now: SystemTime) -> Result<Self, Usage> {
        if let Some(sequence) = arguments.sequence {
            return Ok(Self::Sequence(sequence));
        }
        if let (Some(source), Some(given)) = (&arguments.source, &arguments.id) {
            let id = id::provider(given).ok_or_else(|| Usage::Other("--id is empty".to_owned()))?;
            return Ok(Self::Id { source: source.clone(), id });
        }
        let (Some(subject), Some(since)) = (&arguments.subject, arguments.since) else {
            return Err(Usage::Other("no event is named".to_owned()));
        };
        if !subject::is_pattern(subject) || !subject.starts_with("events.") {
            return Err(Usage::Other(format!("`{subject}` is not a pattern over `events.…` subjects")));
        }
        let (since, until) = range(since, arguments.until, now)?;
        Ok(Self::Stored { subject: subject.clone(), since, until })
    }

    /// Why nothing was found.
    fn nothing(&self) -> String {
        match self {
            Self::Sequence(sequence) => format!("there is no event at sequence {sequence} of EVENTS"),
            Self::Id { source, id } => format!("EVENTS has no event `{id}` of `{source}`, or no longer"),
            Self::Stored { subject, since, until } => {
                format!("EVENTS has no event on {subject} from {} until {}", rfc3339(*since), rfc3339(*until))
            }
        }
    }
}

/// What matches, and the first one that is too many.
struct Found {
    events: Vec<Glimpse>,
    next: Option<Glimpse>,
}

/// Finds the events, shows or replays them.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = arguments.common.load_or_default()?;
    let clock = Clock::default();
    let wanted = Wanted::of(&arguments, clock.now())?;
    let names = Names::new(config.nats.prefix.clone());
    let visitor = Broker::visit(&config.nats, names, PATIENCE).await?;
    let limit = usize::try_from(arguments.limit).unwrap_or(usize::MAX);
    let Found { events, next } = find(&visitor, &wanted, limit).await?;
    let many = events.len() > 1 || next.is_some();
    if arguments.dry_run || (many && !arguments.yes) {
        events.iter().for_each(|event| say(&format!("would replay {}", line(event))));
        let count = if next.is_some() { format!("more than {limit}") } else { events.len().to_string() };
        if !arguments.dry_run {
            bail!("nothing was replayed: {count} events match; to replay them add --yes");
        }
        if next.is_some() {
            say(&format!("and more: {count} events match"));
        }
        return Ok(());
    }
    for (done, event) in events.iter().enumerate() {
        let replayed = replay(&visitor, event, clock.now()).await;
        let sequence = replayed.with_context(|| {
            format!("{done} of {} replayed, then stopped at sequence {}", events.len(), event.sequence)
        })?;
        say(&format!("replayed {} as {sequence}", line(event)));
    }
    if let Some(next) = next {
        bail!("stopped at --limit {limit}: {}", how_to_go_on(&wanted, &next));
    }
    Ok(())
}

fn line(event: &Glimpse) -> String {
    let id = event.headers.get("ce-id").unwrap_or_default();
    format!("{}  {}  {}  {}", event.sequence, rfc3339(event.stored), visible(&event.subject), visible(id))
}

fn how_to_go_on(wanted: &Wanted, next: &Glimpse) -> String {
    match wanted {
        Wanted::Stored { .. } => go_on(next.sequence, next.stored),
        Wanted::Sequence(_) | Wanted::Id { .. } => "more match; raise it".to_owned(),
    }
}

/// The events that are wanted, originals before replays; at least one.
async fn find(visitor: &Visitor, wanted: &Wanted, limit: usize) -> anyhow::Result<Found> {
    let (subject, since, until) = match wanted {
        Wanted::Sequence(sequence) => return at(visitor, *sequence).await,
        Wanted::Id { source, .. } => (format!("events.{source}.>"), None, None),
        Wanted::Stored { subject, since, until } => (subject.clone(), Some(*since), Some(*until)),
    };
    let (mut found, mut replay) = (Found { events: Vec::new(), next: None }, None);
    let seen = |event: Glimpse| {
        if until.is_some_and(|until| event.stored >= until) {
            return false;
        }
        let Some(id) = event.headers.get("ce-id") else { return true };
        if let Wanted::Id { id: wanted, .. } = wanted
            && percent_decode_str(id).decode_utf8_lossy() != wanted.as_str()
        {
            return true;
        }
        if event.headers.get(REPLAY_OF).is_some() {
            replay = Some(event);
        } else if found.events.len() < limit {
            found.events.push(event);
        } else {
            found.next = Some(event);
        }
        found.next.is_none()
    };
    visitor.look_back(StreamKind::Events, &subject, since, seen).await?;
    if found.events.is_empty() && matches!(wanted, Wanted::Id { .. }) {
        found.events.extend(replay);
    }
    if found.events.is_empty() {
        bail!(wanted.nothing());
    }
    Ok(found)
}

async fn at(visitor: &Visitor, sequence: u64) -> anyhow::Result<Found> {
    let Some(message) = visitor.message(StreamKind::Events, sequence).await? else {
        let nothing = Wanted::Sequence(sequence).nothing();
        match visitor.sequences(StreamKind::Events).await? {
            Some((first, last)) => bail!("{nothing}, which has {first} to {last}"),
            None => bail!("{nothing}, which is empty"),
        }
    };
    if message.headers.get("ce-id").is_none() {
        bail!("message {sequence} on {} is not an event: it has no `ce-id`", visible(&message.subject));
    }
    let StoredMessage { subject, sequence, stored, headers, .. } = message;
    Ok(Found { events: vec![Glimpse { subject, sequence, stored, headers }], next: None })
}

/// Replays one event; the sequence of what the stream has now.
async fn replay(visitor: &Visitor, event: &Glimpse, now: SystemTime) -> anyhow::Result<u64> {
    let message = visitor.message(StreamKind::Events, event.sequence).await?;
    let message = message.with_context(|| Wanted::Sequence(event.sequence).nothing())?;
    let again = again(&message, rand::random(), now);
    let stored = visitor.store(StreamKind::Events, &again, PATIENCE).await?;
    if stored.duplicate {
        bail!("the stream calls it a duplicate of {}, and has not stored it", stored.sequence);
    }
    Ok(stored.sequence)
}

/// The message that an event is replayed with.
///
/// Headers that NATS reads are left behind: they were about the first publish.
fn again(event: &StoredMessage, random: u64, now: SystemTime) -> Outgoing {
    let ours = |name: &str| {
        name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-"))
            || [REPLAY_OF, REPLAYED_AT].iter().any(|own| own.eq_ignore_ascii_case(name))
    };
    let kept = event.headers.clone().into_iter().filter(|(name, _)| !ours(name));
    let mut headers: Headers = kept.collect();
    headers.push(REPLAY_OF, event.sequence.to_string());
    headers.push(REPLAYED_AT, rfc3339(now));
    let message_id = Some(format!("{}{MARK}{random:016x}", original_id(&event.headers)));
    Outgoing { subject: event.subject.clone(), headers, payload: event.payload.clone(), message_id }
}

/// The message id that the event had at first, also if this is a replay of it.
fn original_id(headers: &Headers) -> &str {
    let whole = headers.get("Nats-Msg-Id").or_else(|| headers.get("ce-id")).unwrap_or_default();
    match headers.get(REPLAY_OF) {
        Some(_) => whole.rsplit_once(MARK).map_or(whole, |(original, _)| original),
        None => whole,
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn event(headers: &[(&'static str, &str)]) -> StoredMessage {
        StoredMessage {
            subject: "events.github.push".to_owned(),
            sequence: 7,
            stored: UNIX_EPOCH,
            headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).to_owned())).collect(),
            payload: "{}".into(),
        }
    }

    #[test]
    fn a_replay_is_the_same_message_under_a_new_id() {
        let stored = event(&[
            ("ce-id", "d-1"),
            ("Nats-Msg-Id", "github:d-1"),
            ("nats-expected-last-sequence", "6"),
            ("http-x", "1"),
        ]);
        let replay = again(&stored, 0xab, UNIX_EPOCH);
        assert_eq!((&replay.subject[..], &replay.payload[..]), ("events.github.push", &b"{}"[..]));
        assert_eq!(replay.message_id.as_deref(), Some("github:d-1:replay:00000000000000ab"));
        let headers: Vec<_> = replay.headers.iter().collect();
        let at = "1970-01-01T00:00:00.000Z";
        assert_eq!(headers, [("ce-id", "d-1"), ("http-x", "1"), (REPLAY_OF, "7"), (REPLAYED_AT, at)]);
    }

    #[test]
    fn a_replay_of_a_replay_names_what_it_repeats_and_its_id_does_not_grow() {
        let stored = event(&[
            ("ce-id", "a:replay:b"),
            ("Nats-Msg-Id", "github:a:replay:b:replay:01"),
            ("Hookbridge-Replay-Of", "3"),
            ("Hookbridge-Replayed-At", "then"),
        ]);
        let replay = again(&stored, 2, UNIX_EPOCH);
        assert_eq!(replay.message_id.as_deref(), Some("github:a:replay:b:replay:0000000000000002"));
        assert_eq!(replay.headers.all(REPLAY_OF).collect::<Vec<_>>(), ["7"]);
        assert_eq!(replay.headers.all(REPLAYED_AT).count(), 1);
        let original = event(&[("ce-id", "a:replay:b"), ("Nats-Msg-Id", "github:a:replay:b")]);
        assert!(again(&original, 2, UNIX_EPOCH).message_id.unwrap().starts_with("github:a:replay:b:replay:"));
        assert!(again(&event(&[("ce-id", "x")]), 2, UNIX_EPOCH).message_id.unwrap().starts_with("x:replay:"));
    }
}
