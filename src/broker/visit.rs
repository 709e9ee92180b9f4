//! Visits: one-off connections of the command line, which prepare nothing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use async_nats::jetstream::{self, consumer};
use async_nats::{Client, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt;

use super::connect::{Broker, options};
use super::history::LOSS_SHOWS_WITHIN;
use super::provision::{self, Plan};
use super::side::Side;
use super::{Names, StoredMessage, from_nats, to_nats};
use crate::config::Nats;
use crate::event::Headers;

/// How long the server may take to have read what was sent.
const SETTLE_WITHIN: Duration = Duration::from_secs(5);

/// A short connection to NATS.
pub(crate) struct Visitor {
    pub(super) client: Client,
    pub(super) jetstream: jetstream::Context,
    pub(super) names: Names,
    /// For pages of a stream, in which there may be a message that ends a connection.
    pub(super) side: Arc<Side>,
    /// The role's broker that it belongs to; none on the command line.
    pub(super) broker: Option<Broker>,
}

/// A message that passed by.
#[derive(Debug)]
pub(crate) struct Seen {
    /// The subject, without a configured prefix.
    pub(crate) subject: String,
    pub(crate) headers: Headers,
    pub(crate) payload: Bytes,
}

/// What a server says of itself.
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) version: String,
    /// Whether it is part of a cluster.
    pub(crate) clustered: bool,
    pub(crate) new_enough: bool,
    pub(crate) max_payload: usize,
}

impl Broker {
    /// Connects for a short time. Unlike the roles, this needs the server to be there.
    pub(crate) async fn visit(nats: &Nats, names: Names, patience: Duration) -> anyhow::Result<Visitor> {
        let connect = options(nats)?.name("hookbridge-cli").connect(nats.url.as_slice().to_vec());
        let unreachable = || format!("NATS cannot be reached at {}", nats.url.public().join(", "));
        let client =
            tokio::time::timeout(patience, connect).await.with_context(unreachable)?.with_context(unreachable)?;
        let jetstream = jetstream::new(client.clone());
        Ok(Visitor { client, jetstream, names, side: Side::new(nats, "cli"), broker: None })
    }
}

/// Whether a stream's answer is an error.
fn is_refusal(answer: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(answer).is_ok_and(|answer| answer.get("error").is_some())
}

impl Visitor {
    /// Publishes, and waits for the answer of the stream that takes the subject; `None` when there is none.
    pub(crate) async fn publish_once(
        &self,
        subject: &str,
        headers: Headers,
        payload: Bytes,
        patience: Duration,
    ) -> anyhow::Result<Option<String>> {
        let request = async_nats::Request::new().payload(payload).timeout(Some(patience));
        let request = if headers.is_empty() { request } else { request.headers(to_nats(&headers)) };
        match self.client.send_request(self.names.subject(subject), request).await {
            Ok(answer) if is_refusal(&answer.payload) => {
                bail!("the stream refused the message: {}", String::from_utf8_lossy(&answer.payload))
            }
            Ok(answer) if answer.status == Some(StatusCode::NO_RESPONDERS) => Ok(None),
            Ok(answer) => Ok(Some(String::from_utf8_lossy(&answer.payload).into_owned())),
            Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => Ok(None),
            Err(error) => Err(error).context("the stream did not answer"),
        }
    }

    /// Calls `begun` once the server has been asked, then `seen` for every message on a subject until it returns
    /// `false`.
    pub(crate) async fn watch_subject(
        &self,
        subject: &str,
        from_the_start: bool,
        begun: impl FnOnce(),
        seen: &mut impl FnMut(&Seen) -> bool,
    ) -> anyhow::Result<()> {
        let subject = self.names.subject(subject);
        if from_the_start {
            return self.watch_stream(subject, begun, seen).await;
        }
        let mut messages = self.client.subscribe(subject).await?;
        self.settle().await?;
        begun();
        while let Some(message) = messages.next().await {
            if !seen(&self.seen(&message)) {
                return Ok(());
            }
        }
        bail!("the connection to NATS ended")
    }

    /// Waits until the server has read everything that was sent so far. Flushing only brings it on its way, and what
    /// somebody else publishes meanwhile could overtake a subscription; a message to oneself cannot.
    async fn settle(&self) -> anyhow::Result<()> {
        let inbox = self.client.new_inbox();
        let mut own = self.client.subscribe(inbox.clone()).await?;
        self.client.publish(inbox, Bytes::new()).await?;
        self.client.flush().await?;
        let back = tokio::time::timeout(SETTLE_WITHIN, own.next()).await.context("NATS does not answer")?;
        back.map(|_| ()).context("the connection to NATS ended")
    }

    async fn watch_stream(
        &self,
        subject: String,
        begun: impl FnOnce(),
        seen: &mut impl FnMut(&Seen) -> bool,
    ) -> anyhow::Result<()> {
        let name = self.jetstream.stream_by_subject(&subject).await.context("no stream takes this subject")?;
        let (mut begun, mut from) = (Some(begun), 0);
        loop {
            // Over the connection that a message may end. Where it did, what comes next is read message by message.
            let side = self.side.client().await.map_err(anyhow::Error::msg)?;
            let mut lost = std::pin::pin!(side.lost());
            let stream = jetstream::new(side.client.clone()).get_stream_no_info(&name).await?;
            let watching = async {
                let deliver_policy = match from {
                    0 => consumer::DeliverPolicy::All,
                    start_sequence => consumer::DeliverPolicy::ByStartSequence { start_sequence },
                };
                let filter_subject = subject.clone();
                let ordered = consumer::pull::OrderedConfig { filter_subject, deliver_policy, ..Default::default() };
                let mut messages = stream.create_consumer(ordered).await?.messages().await?;
                if let Some(begun) = begun.take() {
                    begun();
                }
                while let Some(message) = messages.next().await {
                    let message = message?;
                    from = message.info().map_err(anyhow::Error::msg)?.stream_sequence + 1;
                    if !seen(&self.seen(&message)) {
                        return Ok(());
                    }
                }
                bail!("the connection to NATS ended")
            };
            let (watched, is_lost) = tokio::select! {
                watched = watching => (watched, false),
                () = &mut lost => (Err(anyhow::Error::msg("the connection to NATS was lost")), true),
            };
            // A client that has died fails before it is known to have.
            if watched.is_ok() || !(is_lost || tokio::time::timeout(LOSS_SHOWS_WITHIN, lost).await.is_ok()) {
                return watched;
            }
            for record in self.one_by_one(&name, &subject, from).await?.0 {
                from = record.sequence + 1;
                let StoredMessage { subject, headers, payload, .. } = record.into_stored(&self.names);
                if !seen(&Seen { subject, headers, payload }) {
                    return Ok(());
                }
            }
        }
    }

    fn seen(&self, message: &async_nats::Message) -> Seen {
        Seen {
            subject: self.names.strip(&message.subject).to_owned(),
            headers: message.headers.as_ref().map(from_nats).unwrap_or_default(),
            payload: message.payload.clone(),
        }
    }

    /// What the server says of itself.
    pub(crate) fn server(&self) -> Server {
        let info = self.client.server_info();
        let new_enough = super::connect::is_new_enough(&info.version);
        let clustered = info.cluster.is_some();
        Server { name: info.server_name, version: info.version, clustered, new_enough, max_payload: info.max_payload }
    }

    /// How the server's streams, durables and buckets differ from the plan. Changes nothing.
    pub(crate) async fn compare(&self, plan: &Plan) -> anyhow::Result<Vec<String>> {
        Ok(provision::differences(&self.jetstream, plan).await?)
    }
}
