//! Sending requests as strangers do.

use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::within;

/// What was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Checks the status, and that an error is a problem document that says the same.
    #[track_caller]
    pub(crate) fn assert_status(&self, expected: u16) -> &Self {
        assert_eq!(self.status.as_u16(), expected, "{}", self.text());
        if expected >= 400 {
            assert_eq!(self.header("content-type"), "application/problem+json");
            assert_eq!(self.json()["status"], expected);
        }
        self
    }
}

/// Makes a request.
pub(crate) async fn request(method: &str, url: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
    send(method, url, headers, body).await
}

/// Posts a body.
pub(crate) async fn post(url: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
    request("POST", url, headers, body).await
}

/// Makes a request whose headers are the bytes of these texts, whatever they are.
pub(crate) async fn send(method: &str, url: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, value.as_bytes());
    }
    let client = Client::builder(TokioExecutor::new()).build_http();
    let answer = within("an answer", client.request(request.body(Full::new(body.into())).unwrap())).await.unwrap();
    let (parts, body) = answer.into_parts();
    let body = within("the answer's body", body.collect()).await.unwrap().to_bytes();
    Answer { status: parts.status, headers: parts.headers, body }
}

/// A connection that is kept for several requests, byte by byte as the sender writes them.
pub(crate) struct Wire(TcpStream);

/// A whole request to a source `open` that takes everything, and an event that no other is a repeat of.
pub(crate) fn webhook() -> String {
    static SENT: AtomicU32 = AtomicU32::new(0);
    let body = format!("{:08}", SENT.fetch_add(1, Ordering::Relaxed));
    format!("POST /hooks/open HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

impl Wire {
    /// Connects to the server of a URL; none if it refuses.
    pub(crate) async fn try_connect(url: &str) -> Option<Self> {
        let address = url.strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned();
        within("a connection", TcpStream::connect(address)).await.ok().map(Self)
    }

    pub(crate) async fn connect(url: &str) -> Self {
        Self::try_connect(url).await.unwrap_or_else(|| panic!("{url} refuses connections"))
    }

    pub(crate) async fn write(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// The next answer, head and body; none if the connection ends before its first byte.
    pub(crate) async fn answer(&mut self) -> Option<String> {
        let (mut text, mut byte) = (String::new(), [0]);
        loop {
            match within("an answer", self.0.read(&mut byte)).await {
                Ok(count) if count > 0 => text.push(char::from(byte[0])),
                _ if text.is_empty() => return None,
                ended => panic!("{ended:?} in the middle of {text}"),
            }
            if let Some((head, body)) = text.split_once("\r\n\r\n")
                && body.len() >= length(head)
            {
                return Some(text);
            }
        }
    }

    /// Sends a request that is taken, and returns the answer.
    pub(crate) async fn post(&mut self) -> String {
        self.write(&webhook()).await;
        let answer = self.answer().await.expect("the connection ended instead of an answer");
        assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
        answer
    }

    /// Whether nothing comes, and the connection does not end, for so long.
    pub(crate) async fn is_silent_for(&mut self, time: std::time::Duration) -> bool {
        tokio::time::timeout(time, self.0.read(&mut [0])).await.is_err()
    }

    /// Waits until the server ends the connection in an orderly way, without another byte.
    pub(crate) async fn assert_ends(&mut self) {
        let end = within("the connection to end", self.0.read(&mut [0])).await;
        assert!(matches!(end, Ok(0)), "{end:?} instead of the end");
    }
}

/// The length of an answer's body.
fn length(head: &str) -> usize {
    let value = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    value.map_or(0, |value| value.parse().unwrap())
}

/// Writes bytes to a server and reads all that it answers until it closes.
pub(crate) async fn send_raw(url: &str, bytes: &[u8]) -> String {
    let address = url.strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is an end as good as any.
    drop(within("the server to close", stream.read_to_end(&mut answer)).await);
    String::from_utf8_lossy(&answer).into_owned()
}
