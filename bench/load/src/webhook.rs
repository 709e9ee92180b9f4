//! Genuine GitHub webhooks over kept connections.
//!
//! Written by hand on a socket: an HTTP client costs twice as much for each, on the cores that are measured.

use std::io;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Failure;

/// One body and its signature, which is the same whatever the delivery id.
#[derive(Clone)]
pub(crate) struct Webhook {
    /// A request up to its delivery id.
    head: String,
    /// And from there on.
    tail: String,
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
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// What was answered.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) duplicate: bool,
}

impl Target {
    /// The webhook that all requests carry.
    pub(crate) fn webhook(&self) -> Result<Webhook, Failure> {
        let pad = "x".repeat(self.bytes.saturating_sub(r#"{"pad":""}"#.len()));
        let body = format!(r#"{{"pad":"{pad}"}}"#);
        let mut mac = Hmac::<Sha256>::new_from_slice(self.secret.as_bytes())?;
        mac.update(body.as_bytes());
        let signature = HEXLOWER.encode(&mac.finalize().into_bytes());
        let head = format!(
            "POST /hooks/github HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nX-GitHub-Event: push\r\n\
             X-Hub-Signature-256: sha256={signature}\r\nContent-Length: {}\r\nX-GitHub-Delivery: ",
            body.len()
        );
        Ok(Webhook { head, tail: format!("\r\n\r\n{body}") })
    }

    /// Opens a connection.
    pub(crate) async fn connect(&self) -> io::Result<Connection> {
        let stream = TcpStream::connect(self.to).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, buffer: Vec::new() })
    }
}

impl Connection {
    /// Sends the webhook as the delivery `id`, and reads the answer to its end.
    pub(crate) async fn send(&mut self, webhook: &Webhook, id: &str) -> Result<Answer, Failure> {
        self.buffer.clear();
        for part in [&webhook.head, id, &webhook.tail] {
            self.buffer.extend_from_slice(part.as_bytes());
        }
        self.stream.write_all(&self.buffer).await?;
        self.buffer.clear();
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err("the connection was closed".into());
            }
            if let Some(answer) = whole(&self.buffer)? {
                return Ok(answer);
            }
        }
    }

    /// Whether the other side has closed it.
    pub(crate) fn is_closed(&self) -> bool {
        match self.stream.try_read(&mut [0]) {
            Ok(read) => read == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

/// The answer, once it is there to its last byte.
fn whole(bytes: &[u8]) -> Result<Option<Answer>, Failure> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut answer = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = answer.parse(bytes)? else { return Ok(None) };
    let length = answer.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length =
        length.map_or(Ok(0), |length| std::str::from_utf8(length.value).unwrap_or_default().parse::<usize>())?;
    let Some(body) = bytes.get(head..head + length) else { return Ok(None) };
    let duplicate = body.windows(16).any(|part| part == br#""duplicate":true"#);
    Ok(Some(Answer { status: answer.code.unwrap_or_default(), duplicate }))
}

/// Nanoseconds since 1970, which every process on this machine counts alike.
pub(crate) fn now_nanos() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
