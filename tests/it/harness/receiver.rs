//! An HTTP server that receives deliveries, and behaves as the test says.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};

use super::within;

/// What to do with a request.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// Answer with this status.
    Status(u16),
    /// Answer with this status and header line.
    With(u16, &'static str),
    /// Answer 200 with this body.
    Body(String),
    /// Answer with just this.
    Raw(String),
    /// Answer with just this and close the connection.
    RawThenClose(String),
    /// Never answer.
    Hang,
    /// Answer 204 when the test releases it.
    Hold,
    /// Answer 200 with this body when the test releases it.
    HoldBody(String),
    /// Close the connection without an answer.
    Close,
    /// Answer 200 and a body without end.
    Endless,
    /// Answer 200 and a byte of the body, then nothing more.
    Stall,
    /// Answer with what is no HTTP.
    Garbage,
}

/// A request that arrived.
#[derive(Debug)]
pub(crate) struct Delivered {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) at: Instant,
}

impl Delivered {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// A server on loopback. What is not scripted is answered 204, unless the test says otherwise.
pub(crate) struct Receiver {
    address: SocketAddr,
    script: Arc<Mutex<VecDeque<Reply>>>,
    otherwise: Arc<Mutex<Reply>>,
    arrived: mpsc::Receiver<Delivered>,
    connections: Arc<AtomicUsize>,
    released: Arc<Notify>,
    server: tokio::task::JoinHandle<()>,
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        Self::scripted([]).await
    }

    /// Answers the first requests as scripted.
    pub(crate) async fn scripted(replies: impl IntoIterator<Item = Reply>) -> Self {
        Self::listening(TcpListener::bind("127.0.0.1:0").await.unwrap(), replies)
    }

    /// At this address and port.
    pub(crate) async fn at(address: &str) -> Self {
        Self::listening(TcpListener::bind(address).await.unwrap(), [])
    }

    fn listening(listener: TcpListener, replies: impl IntoIterator<Item = Reply>) -> Self {
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(replies.into_iter().collect::<VecDeque<_>>()));
        let (tell, arrived) = mpsc::channel(10_000);
        let connections = Arc::<AtomicUsize>::default();
        let released = Arc::<Notify>::default();
        let otherwise = Arc::new(Mutex::new(Reply::Status(204)));
        let (script_, otherwise_) = (script.clone(), otherwise.clone());
        let state = State { script: script_, otherwise: otherwise_, tell, released: released.clone() };
        let server = tokio::spawn(accept(listener, state, connections.clone()));
        Self { address, script, otherwise, arrived, connections, released, server }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Adds to the script.
    pub(crate) fn then(&self, reply: Reply) {
        self.script.lock().unwrap().push_back(reply);
    }

    /// What every request is answered from now on that is not scripted.
    pub(crate) fn otherwise(&self, reply: Reply) {
        *self.otherwise.lock().unwrap() = reply;
    }

    /// The next request; waits for it.
    pub(crate) async fn next(&mut self) -> Delivered {
        within("a delivery", self.arrived.recv()).await.unwrap()
    }

    /// The next request, if one has arrived.
    pub(crate) fn arrived(&mut self) -> Option<Delivered> {
        self.arrived.try_recv().ok()
    }

    /// Lets a held request have its answer.
    pub(crate) fn release(&self) {
        self.released.notify_one();
    }

    /// How many connections were made.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The requests that have arrived and were not looked at.
    pub(crate) fn unread(&mut self) -> usize {
        std::iter::from_fn(|| self.arrived.try_recv().ok()).count()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// What every connection needs.
#[derive(Clone)]
struct State {
    script: Arc<Mutex<VecDeque<Reply>>>,
    otherwise: Arc<Mutex<Reply>>,
    tell: mpsc::Sender<Delivered>,
    released: Arc<Notify>,
}

async fn accept(listener: TcpListener, state: State, count: Arc<AtomicUsize>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        count.fetch_add(1, Ordering::Relaxed);
        connections.spawn(serve(stream, state.clone()));
    }
}

/// Serves one connection, by hand: a test wants to misbehave in ways that no server library offers.
async fn serve(mut stream: TcpStream, state: State) {
    while let Some(delivered) = read(&mut stream).await {
        let reply = state.script.lock().unwrap().pop_front();
        let reply = reply.unwrap_or_else(|| state.otherwise.lock().unwrap().clone());
        drop(state.tell.send(delivered).await);
        let written = match reply {
            Reply::Body(body) => with_body(&mut stream, &body).await,
            Reply::HoldBody(body) => {
                state.released.notified().await;
                with_body(&mut stream, &body).await
            }
            Reply::Raw(text) => stream.write_all(text.as_bytes()).await,
            Reply::RawThenClose(text) => {
                drop(stream.write_all(text.as_bytes()).await);
                return;
            }
            Reply::Status(status) => answer(&mut stream, status, "").await,
            Reply::With(status, header) => answer(&mut stream, status, &format!("{header}\r\n")).await,
            Reply::Hang => std::future::pending().await,
            Reply::Hold => {
                state.released.notified().await;
                answer(&mut stream, 204, "").await
            }
            Reply::Close => return,
            Reply::Garbage => stream.write_all(b"\x16\x03\x01 this is not HTTP\r\n\r\n").await,
            Reply::Endless => endless(&mut stream).await,
            Reply::Stall => {
                drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nx").await);
                std::future::pending().await
            }
        };
        if written.is_err() {
            return;
        }
    }
}

async fn answer(stream: &mut TcpStream, status: u16, header: &str) -> std::io::Result<()> {
    let length = if status == 204 { "" } else { "content-length: 0\r\n" };
    stream.write_all(format!("HTTP/1.1 {status} Status\r\n{length}{header}\r\n").as_bytes()).await
}

async fn with_body(stream: &mut TcpStream, body: &str) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await
}

/// 2 GB, unless the other side has enough of it.
async fn endless(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2147483648\r\n\r\n").await?;
    let block = vec![b'x'; 1 << 20];
    for _ in 0..2048 {
        stream.write_all(&block).await?;
    }
    Ok(())
}

/// The first byte of every TLS connection.
const TLS_HANDSHAKE: u8 = 0x16;

/// Reads one request; `None` when none comes.
pub(super) async fn read(stream: &mut TcpStream) -> Option<Delivered> {
    let mut bytes = Vec::new();
    let end = loop {
        if bytes.first() == Some(&TLS_HANDSHAKE) {
            // Somebody wants TLS, and this server has none.
            drop(stream.write_all(b"no TLS here").await);
            return None;
        }
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let at = Instant::now();
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.lines();
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        headers.append(name.parse::<http::HeaderName>().ok()?, value.trim().parse().ok()?);
    }
    let length: usize = match headers.get("content-length") {
        Some(length) => length.to_str().ok()?.parse().ok()?,
        None => 0,
    };
    while bytes.len() < end + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    Some(Delivered { path, headers, body: Bytes::copy_from_slice(&bytes[end..end + length]), at })
}
