//! The smallest program that sends what JetStream holds as signed webhooks: pull, sign, POST, ack.
//!
//! It is what the libraries themselves cost, so it has none of what makes a courier: no receipts, no retries, no
//! limits for each destination. What fails is not acked. usage: floor-out NATS_URL RECEIVER_URL SECRET [CONCURRENCY]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::{self, Message, stream};
use bytes::Bytes;
use data_encoding::BASE64;
use futures_util::StreamExt;
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use sha2::Sha256;
use tokio::sync::Semaphore;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone)]
struct Courier {
    client: Client<HttpConnector, Full<Bytes>>,
    url: Arc<str>,
    key: Hmac<Sha256>,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [nats, url, secret, concurrency @ ..] = arguments.as_slice() else {
        return Err("usage: floor-out NATS_URL RECEIVER_URL SECRET [CONCURRENCY]".into());
    };
    let concurrency = concurrency.first().map_or(Ok(1024), |count| count.parse())?;
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let courier =
        Courier { client, url: url.trim_end_matches('/').into(), key: Hmac::new_from_slice(secret.as_bytes())? };
    let jetstream = jetstream::new(async_nats::connect(nats).await?);
    let stream = jetstream.get_or_create_stream(outbox()).await?;
    let consumer = stream.get_or_create_consumer("courier", durable()).await?;
    let mut messages = consumer.stream().max_messages_per_batch(concurrency).messages().await?;
    let slots = Arc::new(Semaphore::new(concurrency));
    while let Some(message) = messages.next().await {
        let (courier, message, slot) = (courier.clone(), message?, slots.clone().acquire_owned().await?);
        tokio::spawn(async move {
            if let Err(error) = courier.deliver(message).await {
                eprintln!("a delivery failed: {error}");
            }
            drop(slot);
        });
    }
    Ok(())
}

/// As Hookbridge has it.
fn outbox() -> stream::Config {
    stream::Config {
        name: "OUTBOX".to_owned(),
        subjects: vec!["outbox.>".to_owned()],
        max_age: Duration::from_secs(7 * 24 * 3600),
        duplicate_window: Duration::from_secs(2 * 3600),
        ..stream::Config::default()
    }
}

/// As Hookbridge has it.
fn durable() -> pull::Config {
    pull::Config {
        durable_name: Some("courier".to_owned()),
        filter_subject: "outbox.>".to_owned(),
        max_ack_pending: 65_536,
        ..pull::Config::default()
    }
}

impl Courier {
    /// One message to the path that is named like its endpoint.
    async fn deliver(&self, message: Message) -> Result<(), Failure> {
        let headers = message.headers.as_ref().ok_or("no headers")?;
        let id = headers.get("Nats-Msg-Id").ok_or("no id")?.as_str();
        let endpoint = headers.get("Hookbridge-Endpoint").ok_or("no endpoint")?.as_str();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs().to_string();
        let mut mac = self.key.clone();
        for part in [id.as_bytes(), b".", now.as_bytes(), b".", &message.payload] {
            mac.update(part);
        }
        let request = Request::post(format!("{}/{endpoint}", self.url))
            .header("webhook-id", id)
            .header("webhook-timestamp", &now)
            .header("webhook-signature", format!("v1,{}", BASE64.encode(&mac.finalize().into_bytes())))
            .header("content-type", "application/json")
            .body(Full::new(message.payload.clone()))?;
        let answer = self.client.request(request).await?;
        if !answer.status().is_success() {
            return Err(answer.status().as_str().into());
        }
        // Read to its end, so that the connection can be used again.
        answer.into_body().collect().await?;
        message.ack().await
    }
}
