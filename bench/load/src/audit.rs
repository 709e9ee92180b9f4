//! Which webhooks a stream holds: every one that was sent, and each once?
//!
//! A count alone could not tell a lost one from one that was stored and not answered because the sender had gone.

use std::collections::HashSet;

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::{self, Message};
use futures_util::StreamExt;
use serde::Serialize;

use crate::Failure;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    nats: String,
    #[arg(long, default_value = "EVENTS")]
    stream: String,
    /// The number at the end of the first id that was sent
    #[arg(long)]
    first: u64,
    /// And of the last
    #[arg(long)]
    last: u64,
    /// The last that must be there: later ones may have been on their way when the sender left
    #[arg(long)]
    sure: u64,
    /// Numbers that are multiples of this were not used
    #[arg(long)]
    without: Option<u64>,
}

#[derive(Serialize)]
struct Report {
    messages: u64,
    distinct: usize,
    doubled: u64,
    /// Messages without an id of ours.
    strange: u64,
    /// Numbers up to `sure` that are not there, and some of them.
    missing: usize,
    examples: Vec<u64>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let jetstream = jetstream::new(async_nats::connect(&arguments.nats).await?);
    let mut stream = jetstream.get_stream(&arguments.stream).await?;
    let messages = stream.info().await?.state.messages;
    let all = pull::OrderedConfig { headers_only: true, deliver_policy: DeliverPolicy::All, ..Default::default() };
    let mut stored = stream.create_consumer(all).await?.messages().await?.take(messages as usize);
    let (mut numbers, mut doubled, mut strange) = (HashSet::with_capacity(messages as usize), 0, 0);
    while let Some(message) = stored.next().await {
        match number(&message?) {
            Some(number) if numbers.insert(number) => {}
            Some(_) => doubled += 1,
            None => strange += 1,
        }
    }
    let used = |number: &u64| arguments.without.is_none_or(|without| !number.is_multiple_of(without));
    strange += numbers.extract_if(|number| !(arguments.first..=arguments.last).contains(number)).count() as u64;
    let missing = (arguments.first..=arguments.sure).filter(used).filter(|number| !numbers.contains(number));
    let examples = missing.clone().take(20).collect();
    let report = Report { messages, distinct: numbers.len(), doubled, strange, missing: missing.count(), examples };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// An id is `…-<number>`.
fn number(message: &Message) -> Option<u64> {
    message.headers.as_ref()?.get("Nats-Msg-Id")?.as_str().rsplit('-').next()?.parse().ok()
}
