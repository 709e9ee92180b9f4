//! An HTTP/1.1 listener with every limit set: connections, header time, idle time, header size, and an end.
//!
//! The gateway, the admin pages and the demo share it. Two kinds of bad requests never reach a handler: headers
//! that are too slow, and too large for the HTTP library. They are answered here.
//!
//! A listener ends in two steps. While it *leaves*, it still takes connections and requests, and every answer says
//! `Connection: close`. When it *stops*, it closes its port, after it has taken what the operating system has
//! accepted for it, and finishes the requests that have arrived.

mod connection;
mod flow;
mod idle;
mod socket;
mod spare;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use rustix::io::Errno;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use connection::{Connection, Shared};
use spare::Spare;

/// The smallest read buffer that the HTTP library takes.
const MIN_BUFFER: usize = 8192;
/// Connections that the operating system accepts for a listener before the listener takes them.
const BACKLOG: u32 = 1024;
/// How long to wait when the operating system has no connection to give, for example out of file descriptors.
const AFTER_ACCEPT_ERROR: Duration = Duration::from_millis(100);
/// How often such errors are logged.
const SAY_ACCEPT_ERRORS_EVERY: Duration = Duration::from_secs(60);

/// The limits of a listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections open at once. For one more, the one that has been idle longest is closed.
    pub(crate) connections: usize,
    /// How long the headers of a request may take to arrive, from their first byte.
    pub(crate) header_timeout: Duration,
    /// How long a connection may be idle, before its first request and between two.
    pub(crate) idle_timeout: Duration,
    /// How long an idle connection stays open after the port was closed, for a request that is already on its way.
    pub(crate) drain_idle: Duration,
    /// The most bytes that are held of a request's headers.
    pub(crate) max_headers: usize,
}

/// Who opened the connection that a request came on; every request has it as an extension.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Who wants to know what happens on a listener.
#[derive(Clone)]
pub(crate) struct Observer {
    /// Called with 1 for a connection that opens, with -1 for one that closes.
    pub(crate) connections: Arc<dyn Fn(i64) + Send + Sync>,
    /// Called with a word for every answer that the listener gives by itself.
    pub(crate) answered: Arc<dyn Fn(&'static str) + Send + Sync>,
    /// Called with the reason for every idle connection that the listener closes: `idle`, `max-connections` or
    /// `shutdown`.
    pub(crate) closed: Arc<dyn Fn(&'static str) + Send + Sync>,
    /// Called for every connection that could not be accepted.
    pub(crate) failed: Arc<dyn Fn() + Send + Sync>,
}

impl Default for Observer {
    fn default() -> Self {
        Self {
            connections: Arc::new(|_| ()),
            answered: Arc::new(|_| ()),
            closed: Arc::new(|_| ()),
            failed: Arc::new(|| ()),
        }
    }
}

/// An address that is bound but not yet listening.
pub(crate) struct Reserved {
    socket: TcpSocket,
    limits: Limits,
}

impl Reserved {
    /// The address that it will listen on.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Starts accepting connections. Fails if another process is already listening on this address.
    pub(crate) fn listen(self) -> io::Result<Listener> {
        let address = self.address()?;
        let socket = self.socket.listen(BACKLOG).map_err(explain(address))?;
        let (observer, leave) = (Observer::default(), CancellationToken::new());
        Ok(Listener { socket, limits: self.limits, observer, leave, spare: None })
    }
}

/// A bound listener.
pub(crate) struct Listener {
    socket: TcpListener,
    limits: Limits,
    observer: Observer,
    leave: CancellationToken,
    spare: Option<Arc<Spare>>,
}

fn explain(address: SocketAddr) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
}

impl Listener {
    /// Binds an address without listening on it. Port 0 takes a free one.
    pub(crate) fn reserve(address: SocketAddr, limits: Limits) -> io::Result<Reserved> {
        let bound = || {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // What is left of the last process' connections does not keep the next one out.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            Ok(socket)
        };
        Ok(Reserved { socket: bound().map_err(explain(address))?, limits })
    }

    /// Listens on an address. Port 0 takes a free one.
    pub(crate) fn bind(address: SocketAddr, limits: Limits) -> io::Result<Self> {
        Self::reserve(address, limits)?.listen()
    }

    /// Tells an observer what happens.
    pub(crate) fn observed_by(mut self, observer: Observer) -> Self {
        self.observer = observer;
        self
    }

    /// Says `Connection: close` in every answer from when this is cancelled.
    pub(crate) fn leaving_at(mut self, leave: CancellationToken) -> Self {
        self.leave = leave;
        self
    }

    /// Keeps a file descriptor in reserve: one request at a time is answered even if the process has none left.
    pub(crate) fn with_spare(mut self) -> Self {
        self.spare = Some(Arc::default());
        self
    }

    /// The address that it listens on.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until stopped, then finishes the requests that are under way.
    pub(crate) async fn run(self, router: Router, stop: CancellationToken) {
        let Self { socket, limits, observer, leave, spare } = self;
        let mut builder = http1::Builder::new();
        builder
            // How long headers may take is measured by the connection, which knows when they began.
            .header_read_timeout(None)
            .max_header_size(limits.max_headers)
            .max_buf_size(limits.max_headers.max(MIN_BUFFER))
            // A sender that has said all it has to say still gets its answer.
            .half_close(true)
            // One write for head and body.
            .writev(false);
        let shared = Shared { limits, builder, observer, idle: Arc::default(), leaving: AtomicBool::new(false) };
        let (ends, closing) = watch::channel(());
        let acceptor = Acceptor { shared: Arc::new(shared), router, closing, connections: TaskTracker::new(), spare };

        let announced = async {
            leave.cancelled().await;
            acceptor.shared.leaving.store(true, Ordering::Relaxed);
            stop.cancelled().await;
        };
        // Accepting ends at the stop, announcing never before.
        tokio::join!(stop.run_until_cancelled(announced), acceptor.accept(&socket, &stop));
        acceptor.shared.leaving.store(true, Ordering::Relaxed);
        if let Err(error) = acceptor.close(socket).await {
            tracing::warn!(error = %error, "Some connections waiting on the port were not accepted before it closed: {error}");
        }
        ends.send_replace(());
        acceptor.connections.close();
        acceptor.connections.wait().await;
    }
}

/// Accepts connections.
struct Acceptor {
    shared: Arc<Shared>,
    router: Router,
    closing: watch::Receiver<()>,
    connections: TaskTracker,
    spare: Option<Arc<Spare>>,
}

impl Acceptor {
    /// Takes connections until stopped.
    async fn accept(&self, socket: &TcpListener, stop: &CancellationToken) {
        let places = Arc::new(Semaphore::new(self.shared.limits.connections));
        let (mut said, mut is_spare) = (Said::default(), false);
        while let Some(accepted) = stop.run_until_cancelled(socket.accept()).await {
            match accepted {
                Ok((stream, peer)) => {
                    // It waits here, and further ones in the operating system's queue.
                    let place = self.place(&places, stop).await;
                    if !is_spare && let Some(spare) = &self.spare {
                        spare.restore();
                    }
                    self.serve(stream, peer, place, std::mem::take(&mut is_spare));
                }
                Err(error) => {
                    (self.shared.observer.failed)();
                    said.say(&error);
                    if is_out_of_descriptors(&error) {
                        if self.shared.idle.close_longest().await {
                            continue;
                        }
                        if self.spare.as_ref().is_some_and(|spare| spare.take()) {
                            is_spare = true;
                            continue;
                        }
                    }
                    stop.run_until_cancelled(tokio::time::sleep(AFTER_ACCEPT_ERROR)).await;
                }
            }
        }
    }

    /// Waits for a place, and closes idle connections for it. None when stopped: what was accepted is served.
    async fn place(&self, places: &Arc<Semaphore>, stop: &CancellationToken) -> Option<OwnedSemaphorePermit> {
        loop {
            if let Ok(place) = places.clone().try_acquire_owned() {
                return Some(place);
            }
            if self.shared.idle.close_longest().await {
                continue;
            }
            tokio::select! {
                place = places.clone().acquire_owned() => return place.ok(),
                () = self.shared.idle.changed() => {}
                () = stop.cancelled() => return None,
            }
        }
    }

    fn serve(&self, stream: TcpStream, peer: SocketAddr, place: Option<OwnedSemaphorePermit>, is_spare: bool) {
        let (shared, spare) = (self.shared.clone(), self.spare.clone());
        let (router, closing) = (self.router.clone(), self.closing.clone());
        let open = Open::new(shared.observer.connections.clone());
        let connection = Connection { peer, router, shared, closing, once: is_spare };
        self.connections.spawn(async move {
            let asked = connection.serve(stream).await;
            drop((open, place));
            // Whoever asked for the place finds it free.
            drop(asked);
            if let Some(spare) = spare.filter(|_| is_spare) {
                spare.restore();
            }
        });
    }

    /// Closes the port, and takes every connection that the operating system has accepted for it.
    async fn close(&self, socket: TcpListener) -> io::Result<()> {
        let socket = socket.into_std()?;
        refuse_more(&socket);
        // Without that refusal more could come all the time.
        for _ in 0..2 * BACKLOG {
            match socket.accept() {
                Ok((stream, peer)) => {
                    stream.set_nonblocking(true)?;
                    self.serve(TcpStream::from_std(stream)?, peer, None, false);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if is_out_of_descriptors(&error) => {
                    if !self.shared.idle.close_longest().await {
                        return Err(error);
                    }
                }
                // A sender that has gone again.
                Err(_) => {}
            }
        }
        Ok(())
    }
}

/// Makes the operating system ignore who knocks at a port that is about to be closed: otherwise connections are
/// accepted between the last one that is taken and the close, and reset. A sender that is ignored knocks again a
/// second later, and is refused.
fn refuse_more(socket: &std::net::TcpListener) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        /// The instruction "return a constant" of a packet filter. The constant is how many bytes pass.
        const RETURN: u16 = 0x06;
        let nothing = socket2::SockFilter::new(RETURN, 0, 0, 0);
        if let Err(error) = socket2::SockRef::from(socket).attach_filter(&[nothing]) {
            tracing::debug!("Connections may be reset at the end: {error}");
        }
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = socket;
}

/// Whether the process, or the machine, has no file descriptor left.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// What was said about connections that could not be accepted.
#[derive(Default)]
struct Said {
    last: Option<Instant>,
    left_out: u64,
}

impl Said {
    fn say(&mut self, error: &io::Error) {
        if self.last.is_some_and(|last| last.elapsed() < SAY_ACCEPT_ERRORS_EVERY) {
            self.left_out += 1;
            return;
        }
        self.last = Some(Instant::now());
        let left_out = std::mem::take(&mut self.left_out);
        if is_out_of_descriptors(error) {
            tracing::warn!(
                error = %error,
                failures.unlogged = left_out,
                "Could not accept a connection: {error}; raise the open-file limit (LimitNOFILE, ulimit -n) or lower \
                 gateway.max_connections"
            );
        } else {
            tracing::warn!(error = %error, failures.unlogged = left_out, "Could not accept a connection: {error}");
        }
    }
}

/// Counts a connection for as long as it lives, however it ends.
struct Open(Arc<dyn Fn(i64) + Send + Sync>);

impl Open {
    fn new(connections: Arc<dyn Fn(i64) + Send + Sync>) -> Self {
        connections(1);
        Self(connections)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        (self.0)(-1);
    }
}
