//! Sending requests as strangers do.

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
