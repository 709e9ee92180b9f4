//! A receiver that means no good, or is broken in ways that look like it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::receiver::read;

/// One thing that is done on a connection. After the last one the connection is closed.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Read one request.
    Request,
    /// Read whatever comes first, a TLS greeting for example.
    Anything,
    /// Write these bytes.
    Say(Vec<u8>),
    /// Write these bytes one by one, so far apart.
    Trickle(Vec<u8>, Duration),
    /// Write these bytes again and again until the other side has enough of it.
    Forever(Vec<u8>),
    /// Do nothing until the other side goes away.
    Hang,
    /// Break the connection off: what is not yet sent is lost, and the other side is told so.
    Reset,
}

/// A server on loopback that plays a script on each connection.
pub(crate) struct Hostile {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    server: tokio::task::JoinHandle<()>,
}

impl Hostile {
    /// Plays this script on every connection.
    pub(crate) async fn playing(script: Vec<Act>) -> Self {
        Self::playing_each(vec![script]).await
    }

    /// Plays the first script on the first connection, and so on; the last one on all that follow.
    pub(crate) async fn playing_each(scripts: Vec<Vec<Act>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, open) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let server = tokio::spawn(accept(listener, scripts, accepted.clone(), open.clone()));
        Self { address, accepted, open, server }
    }

    pub(crate) fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}/", self.address)
    }

    /// How many connections were made.
    pub(crate) fn connections(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// How many connections are open.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn accept(listener: TcpListener, scripts: Vec<Vec<Act>>, accepted: Arc<AtomicUsize>, open: Arc<AtomicUsize>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let number = accepted.fetch_add(1, Ordering::Relaxed);
        open.fetch_add(1, Ordering::Relaxed);
        let (script, open) = (scripts[number.min(scripts.len() - 1)].clone(), open.clone());
        connections.spawn(async move {
            // How it ended is the other side's story.
            drop(play(stream, script).await);
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn play(mut stream: TcpStream, script: Vec<Act>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    for act in script {
        match act {
            Act::Request => drop(read(&mut stream).await),
            Act::Anything => drop(stream.read(&mut [0; 4096]).await?),
            Act::Say(bytes) => stream.write_all(&bytes).await?,
            Act::Trickle(bytes, apart) => {
                let mut pace = tokio::time::interval(apart);
                for byte in bytes {
                    pace.tick().await;
                    stream.write_all(&[byte]).await?;
                }
            }
            Act::Forever(bytes) => {
                let block = bytes.repeat(8192 / bytes.len() + 1);
                loop {
                    stream.write_all(&block).await?;
                }
            }
            Act::Hang => while stream.read(&mut [0; 4096]).await? > 0 {},
            Act::Reset => return stream.set_zero_linger(),
        }
    }
    Ok(())
}
