//! For tests: a server on loopback that answers as told, and a guard that lets it be reached.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use super::guard::Guard;
use crate::config::Egress;

/// What a server says to a request's head; nothing means that it never answers.
type Answer = dyn Fn(&str) -> Option<String> + Send + Sync;

/// A server that answers every connection once.
pub(super) struct Server {
    port: u16,
    requests: Arc<AtomicUsize>,
    _serving: AbortOnDropHandle<()>,
}

impl Server {
    pub(super) async fn start(answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::<AtomicUsize>::default();
        let serving = tokio::spawn(serve(listener, Arc::new(answer), requests.clone()));
        Self { port, requests, _serving: AbortOnDropHandle::new(serving) }
    }

    pub(super) fn url(&self, path: &str) -> Url {
        format!("http://127.0.0.1:{}{path}", self.port).parse().unwrap()
    }

    /// How many requests came.
    pub(super) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn serve(listener: TcpListener, answer: Arc<Answer>, requests: Arc<AtomicUsize>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(connection(stream, answer.clone(), requests.clone()));
    }
}

async fn connection(mut stream: TcpStream, answer: Arc<Answer>, requests: Arc<AtomicUsize>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    requests.fetch_add(1, Ordering::SeqCst);
    match answer(&String::from_utf8_lossy(&head)) {
        // The client may have gone by then, which is its own affair.
        Some(answer) => drop(stream.write_all(answer.as_bytes()).await),
        None => drop(stream.read_u8().await),
    }
}

/// A whole answer with this status line and body.
pub(super) fn answer(status: &str, body: &str) -> Option<String> {
    let length = body.len();
    Some(format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"))
}

/// A guard that lets loopback be reached, also without TLS.
pub(super) fn guard() -> Guard {
    let allow_networks = vec!["127.0.0.0/8".parse().unwrap()];
    Guard::new(&Egress { allow_networks, allow_http: true, ..Egress::default() })
}
