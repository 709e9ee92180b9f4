//! The smallest program that takes a webhook into JetStream: check the HMAC, publish, wait for the ack, answer.
//!
//! It is what the libraries themselves cost, so it has none of what makes a gateway: no limits, no metrics, no
//! headers but the message id. usage: floor-in NATS_URL LISTEN SECRET [REPLICAS]

use std::time::Duration;

use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, Context, context::ContextBuilder, stream};
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::serve::ListenerExt;
use bytes::Bytes;
use data_encoding::HEXLOWER_PERMISSIVE;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Clone)]
struct Gateway {
    jetstream: Context,
    key: Hmac<Sha256>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [nats, listen, secret, replicas @ ..] = arguments.as_slice() else {
        return Err("usage: floor-in NATS_URL LISTEN SECRET [REPLICAS]".into());
    };
    let client = async_nats::connect(nats).await?;
    let jetstream = ContextBuilder::new().max_ack_inflight(65_536).backpressure_on_inflight(true).build(client);
    jetstream.get_or_create_stream(events(replicas.first().map_or(Ok(1), |count| count.parse())?)).await?;
    let gateway = Gateway { jetstream, key: Hmac::new_from_slice(secret.as_bytes())? };
    let router =
        Router::new().route("/hooks/github", post(receive)).layer(DefaultBodyLimit::max(8 << 20)).with_state(gateway);
    let listener = tokio::net::TcpListener::bind(listen).await?.tap_io(|stream| drop(stream.set_nodelay(true)));
    Ok(axum::serve(listener, router).await?)
}

/// As Hookbridge has it.
fn events(num_replicas: usize) -> stream::Config {
    stream::Config {
        name: "EVENTS".to_owned(),
        subjects: vec!["events.>".to_owned()],
        max_age: Duration::from_secs(7 * 24 * 3600),
        duplicate_window: Duration::from_secs(72 * 3600),
        num_replicas,
        ..stream::Config::default()
    }
}

async fn receive(State(gateway): State<Gateway>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let signature = headers.get("x-hub-signature-256").and_then(|value| value.as_bytes().strip_prefix(b"sha256="));
    let id = headers.get("x-github-delivery").and_then(|value| value.to_str().ok());
    let (Some(signature), Some(id)) = (signature, id) else { return StatusCode::UNAUTHORIZED };
    if !gateway.is_genuine(signature, &body) {
        return StatusCode::UNAUTHORIZED;
    }
    match gateway.publish(id, body).await {
        Ok(_) => StatusCode::ACCEPTED,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

impl Gateway {
    fn is_genuine(&self, signature: &[u8], body: &[u8]) -> bool {
        let mut claimed = [0; 32];
        if signature.len() != 64 || HEXLOWER_PERMISSIVE.decode_mut(signature, &mut claimed).is_err() {
            return false;
        }
        let mut mac = self.key.clone();
        mac.update(body);
        mac.verify_slice(&claimed).is_ok()
    }

    async fn publish(
        &self,
        id: &str,
        body: Bytes,
    ) -> Result<jetstream::publish::PublishAck, jetstream::context::PublishError> {
        let message = PublishMessage::build().payload(body).message_id(id);
        self.jetstream.send_publish("events.github.push", message).await?.await
    }
}
