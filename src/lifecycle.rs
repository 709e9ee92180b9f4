//! Starting, draining and stopping.
//!
//! The first SIGTERM or SIGINT makes the process leave: it says that it is not ready, and goes on for
//! `shutdown_delay`, or until another signal. Then it drains: every part stops taking and finishes what it holds.
//! After `shutdown_grace`, or at the next signal, what is left is dropped; the streams still have it.

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// The parts of a running process and the steps to their end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lifecycle {
    leave: CancellationToken,
    drain: CancellationToken,
    parts: TaskTracker,
}

impl Lifecycle {
    /// Becomes cancelled when the process is asked to stop, some time before draining begins.
    pub(crate) fn leaving(&self) -> CancellationToken {
        self.leave.clone()
    }

    /// Says that the process is about to drain.
    pub(crate) fn leave(&self) {
        self.leave.cancel();
    }

    /// Becomes cancelled when draining begins.
    pub(crate) fn draining(&self) -> CancellationToken {
        self.drain.clone()
    }

    /// Runs a part. A part that ends, for whatever reason, begins the drain: half a process helps nobody.
    pub(crate) fn spawn(&self, part: impl Future<Output = ()> + Send + 'static) {
        let last_word: DropGuard = self.drain.clone().drop_guard();
        self.parts.spawn(async move {
            part.await;
            drop(last_word);
        });
    }

    /// Begins the drain.
    pub(crate) fn drain(&self) {
        self.drain.cancel();
    }

    /// Waits for every part to end. `false` when `grace` ran out first.
    pub(crate) async fn drained(&self, grace: Duration) -> bool {
        self.parts.close();
        tokio::time::timeout(grace, self.parts.wait()).await.is_ok()
    }
}

/// The signals that a process listens to, taken over from the start so that none is missed.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Takes over SIGTERM, SIGINT and SIGHUP.
    pub(crate) fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for any of them: for what runs at a terminal, whose end is the end.
    pub(crate) async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }

    /// Waits for SIGTERM or SIGINT, and calls `on_hangup` for every SIGHUP meanwhile.
    pub(crate) async fn stop(&mut self, mut on_hangup: impl FnMut()) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => on_hangup(),
            }
        }
    }
}
