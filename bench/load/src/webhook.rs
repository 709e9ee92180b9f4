//! Genuine GitHub webhooks over kept connections.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use sha2::Sha256;
use tokio::net::TcpStream;

use crate::Failure;

/// One body and its signature, which is the same whatever the delivery id.
#[derive(Clone)]
pub(crate) struct Webhook {
    body: Bytes,
    signature: HeaderValue,
}

/// Where they go, and what they are.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Target {
    /// The gateway's address
    #[arg(long)]
    to: SocketAddr,
    /// The source's secret
    #[arg(long, default_value = "s3cret")]
    secret: String,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024)]
    bytes: usize,
}

/// A kept connection.
pub(crate) struct Connection(SendRequest<Full<Bytes>>);

/// What was answered.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) duplicate: bool,
}

impl Target {
    /// The webhook that all requests carry.
    pub(crate) fn webhook(&self) -> Result<Webhook, Failure> {
        let pad = "x".repeat(self.bytes.saturating_sub(r#"{"pad":""}"#.len()));
        let body = Bytes::from(format!(r#"{{"pad":"{pad}"}}"#));
        let mut mac = Hmac::<Sha256>::new_from_slice(self.secret.as_bytes())?;
        mac.update(&body);
        let signature = format!("sha256={}", HEXLOWER.encode(&mac.finalize().into_bytes()));
        Ok(Webhook { body, signature: signature.try_into()? })
    }

    /// Opens a connection.
    pub(crate) async fn connect(&self) -> Result<Connection, Failure> {
        let stream = TcpStream::connect(self.to).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Connection(sender))
    }
}

impl Connection {
    /// Sends the webhook as the delivery `id`, and reads the answer to its end.
    pub(crate) async fn send(&mut self, webhook: &Webhook, id: &str) -> Result<Answer, Failure> {
        let request = Request::post("/hooks/github")
            .header(HOST, HeaderValue::from_static("bench"))
            .header("content-type", HeaderValue::from_static("application/json"))
            .header("x-github-event", HeaderValue::from_static("push"))
            .header("x-github-delivery", id)
            .header("x-hub-signature-256", &webhook.signature)
            .body(Full::new(webhook.body.clone()))?;
        self.0.ready().await?;
        let answer = self.0.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        let duplicate = body.windows(16).any(|part| part == br#""duplicate":true"#);
        Ok(Answer { status, duplicate })
    }

    /// Whether the other side has closed it.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// Nanoseconds since 1970, which every process on this machine counts alike.
pub(crate) fn now_nanos() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
