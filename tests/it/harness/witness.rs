//! An HTTP server that remembers every request, and can hold its answers back.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::receiver::read;
use super::within;

/// The status for a request, by its path, its `webhook-id` and how many have come with both.
pub(crate) type Answers = fn(&str, &str, usize) -> u16;

/// A request that arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The path without its slash.
    pub(crate) endpoint: String,
    /// The `webhook-id`.
    pub(crate) id: String,
    pub(crate) body: Bytes,
    pub(crate) at: SystemTime,
}

/// A server on loopback for many thousands of requests.
pub(crate) struct Witness {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

struct Shared {
    answers: Answers,
    takes: Duration,
    seen: Mutex<Vec<Seen>>,
    times: Mutex<HashMap<(String, String), usize>>,
    arrived: watch::Sender<usize>,
    answered: watch::Sender<usize>,
    open: watch::Sender<usize>,
    held: watch::Sender<bool>,
}

impl Witness {
    pub(crate) async fn start(answers: Answers) -> Self {
        Self::start_slow(answers, Duration::ZERO).await
    }

    /// The same, with answers that take this long.
    pub(crate) async fn start_slow(answers: Answers, takes: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            answers,
            takes,
            seen: Mutex::default(),
            times: Mutex::default(),
            arrived: watch::Sender::new(0),
            answered: watch::Sender::new(0),
            open: watch::Sender::new(0),
            held: watch::Sender::new(false),
        });
        let server = tokio::spawn(accept(listener, shared.clone()));
        Self { address, shared, server }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Every request so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// Answers nobody until it is released.
    pub(crate) fn hold(&self) {
        self.shared.held.send_replace(true);
    }

    /// Answers everybody that was held.
    pub(crate) fn release(&self) {
        self.shared.held.send_replace(false);
    }

    /// How many requests arrived and how many were answered; changes with every one.
    pub(crate) fn arrived(&self) -> watch::Receiver<usize> {
        self.shared.arrived.subscribe()
    }

    /// How many requests were answered.
    pub(crate) fn answered(&self) -> watch::Receiver<usize> {
        self.shared.answered.subscribe()
    }

    /// Waits until nobody is connected.
    pub(crate) async fn alone(&self) {
        let mut open = self.shared.open.subscribe();
        within("every connection to end", open.wait_for(|open| *open == 0)).await.unwrap();
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        shared.open.send_modify(|open| *open += 1);
        let shared = shared.clone();
        connections.spawn(async move {
            drop(serve(stream, &shared).await);
            shared.open.send_modify(|open| *open -= 1);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    while let Some(request) = read(&mut stream).await {
        let (endpoint, id) = (request.path[1..].to_owned(), request.header("webhook-id").to_owned());
        let nth = {
            let mut times = shared.times.lock().unwrap();
            let times = times.entry((endpoint.clone(), id.clone())).or_default();
            *times += 1;
            *times
        };
        let status = (shared.answers)(&endpoint, &id, nth);
        let seen = Seen { endpoint, id, body: request.body, at: SystemTime::now() };
        shared.seen.lock().unwrap().push(seen);
        shared.arrived.send_modify(|arrived| *arrived += 1);
        if !shared.takes.is_zero() {
            tokio::time::sleep(shared.takes).await;
        }
        // The sender lives as long as what it is part of.
        drop(shared.held.subscribe().wait_for(|held| !held).await);
        let length = if status == 204 { "" } else { "content-length: 0\r\n" };
        stream.write_all(format!("HTTP/1.1 {status} Status\r\n{length}\r\n").as_bytes()).await?;
        shared.answered.send_modify(|answered| *answered += 1);
    }
    Ok(())
}
