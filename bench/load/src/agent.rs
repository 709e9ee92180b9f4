//! The smallest agent: takes events from its durable, has a webhook sent for each, and acks when that is stored.

use std::sync::Arc;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{Context, Message, context::ContextBuilder};
use futures_util::StreamExt;
use tokio::sync::Semaphore;

use crate::Failure;

/// Events in hand at once.
const SLOTS: usize = 512;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    nats: String,
    /// Its name, which is also its durable's
    #[arg(long, default_value = "bench")]
    name: String,
    /// Where its answers go
    #[arg(long)]
    endpoint: String,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = async_nats::connect(&arguments.nats).await?;
    let jetstream = ContextBuilder::new().max_ack_inflight(2 * SLOTS).backpressure_on_inflight(true).build(client);
    let stream = jetstream.get_stream("EVENTS").await?;
    // Hookbridge has made it; the floor does not know agents.
    let durable = pull::Config { durable_name: Some(arguments.name.clone()), ..pull::Config::default() };
    let consumer = stream.get_or_create_consumer(&arguments.name, durable).await?;
    let mut events = consumer.stream().max_messages_per_batch(SLOTS).messages().await?;
    let slots = Arc::new(Semaphore::new(SLOTS));
    let subject: Arc<str> = format!("outbox.{}", arguments.name).into();
    let endpoint: Arc<str> = arguments.endpoint.into();
    println!("{{\"ready\":true}}");
    while let Some(event) = events.next().await {
        let (event, slot) = (event?, slots.clone().acquire_owned().await?);
        let (jetstream, subject, endpoint) = (jetstream.clone(), subject.clone(), endpoint.clone());
        tokio::spawn(async move {
            if let Err(error) = answer(&jetstream, &subject, &endpoint, &event).await {
                eprintln!("an event was not answered: {error}");
            }
            drop(slot);
        });
    }
    Ok(())
}

async fn answer(jetstream: &Context, subject: &str, endpoint: &str, event: &Message) -> Result<(), Failure> {
    let id = event.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id")).ok_or("no id")?.as_str();
    // Hookbridge puts the source before the delivery id.
    let id = id.rsplit(':').next().unwrap_or(id);
    let mut headers = HeaderMap::new();
    headers.insert("Hookbridge-Endpoint", endpoint);
    let message = PublishMessage::build().headers(headers).message_id(id).payload(event.payload.clone());
    jetstream.send_publish(subject.to_owned(), message).await?.await?;
    event.ack().await
}
