//! A TCP proxy between a client and a server, with the faults of a network: it can fall silent without closing a
//! connection, and delay what it forwards.
//!
//! Between two nats-servers it can also delay replication alone: the servers talk Raft over a connection of the system
//! account, and carry what clients publish and are answered over others. Then a follower's state is old by a known
//! time, while everything else is quick.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::free_port;

/// What happens to the bytes of every connection, old and new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Forwarded at once.
    Forward,
    /// Forwarded, each read of up to 64 KiB this much later.
    Delay(Duration),
    /// The same, but only on connections of the system account.
    DelayReplication(Duration),
    /// Held: connections stay open and are still accepted, but nothing passes, not even a close.
    Silent,
}

/// A proxy on loopback for one port. Ends with the test.
pub(crate) struct Proxy {
    port: u16,
    mode: watch::Sender<Mode>,
    server: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// Forwards to this port of loopback.
    pub(crate) async fn start(target: u16) -> Self {
        let port = free_port();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let (mode, watched) = watch::channel(Mode::Forward);
        let server = tokio::spawn(accept(listener, target, watched));
        Self { port, mode, server }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Forwards nothing from now on, and closes nothing.
    pub(crate) fn silence(&self) {
        self.mode.send_replace(Mode::Silent);
    }

    /// Forwards everything this much later from now on.
    pub(crate) fn delay(&self, delay: Duration) {
        self.mode.send_replace(Mode::Delay(delay));
    }

    /// Forwards what belongs to the system account this much later from now on.
    pub(crate) fn delay_replication(&self, delay: Duration) {
        self.mode.send_replace(Mode::DelayReplication(delay));
    }

    /// Forwards at once again, first what was held.
    pub(crate) fn resume(&self) {
        self.mode.send_replace(Mode::Forward);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn accept(listener: TcpListener, target: u16, mode: watch::Receiver<Mode>) {
    // Aborted together with this task.
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(serve(client, target, mode.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(client: TcpStream, target: u16, mut mode: watch::Receiver<Mode>) {
    drop(mode.wait_for(|mode| *mode != Mode::Silent).await);
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else { return };
    if client.set_nodelay(true).is_err() || server.set_nodelay(true).is_err() {
        return;
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let replicates = Arc::<AtomicBool>::default();
    // Whichever side closes first ends both.
    tokio::select! {
        () = forward(from_client, to_server, mode.clone(), &replicates) => {}
        () = forward(from_server, to_client, mode, &replicates) => {}
    }
}

/// How a server introduces a connection of the system account to the other one.
const SYSTEM_ACCOUNT: &[u8] = br#""route_account":"$SYS""#;

async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    replicates: &AtomicBool,
) {
    let mut bytes = vec![0; 64 * 1024];
    let mut introduced = false;
    loop {
        let read = from.read(&mut bytes).await.unwrap_or(0);
        if !introduced {
            // Introductions are the first thing that either side says.
            introduced = true;
            if bytes[..read].windows(SYSTEM_ACCOUNT.len()).any(|window| window == SYSTEM_ACCOUNT) {
                replicates.store(true, Ordering::Relaxed);
            }
        }
        let Ok(mode) = mode.wait_for(|mode| *mode != Mode::Silent).await.map(|mode| *mode) else { return };
        match mode {
            Mode::Delay(delay) => tokio::time::sleep(delay).await,
            Mode::DelayReplication(delay) if replicates.load(Ordering::Relaxed) => tokio::time::sleep(delay).await,
            Mode::DelayReplication(_) | Mode::Forward | Mode::Silent => {}
        }
        if read == 0 || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
