//! `hookbridge supervise`: a child that does not outlive its parent.
//!
//! The parent holds the other end of standard input. When the parent is gone, however it went, that end closes,
//! and the child is stopped. This needs no help from the operating system beyond pipes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use crate::lifecycle::Signals;

/// How long the child may take to stop by itself.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Args)]
pub(super) struct Arguments {
    /// A file that is locked for as long as the command runs, even if it should outlive us.
    #[arg(long)]
    lock: Option<PathBuf>,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs the command until it ends, or until standard input closes.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Some((program, rest)) = arguments.command.split_first() else { bail!("nothing to run") };
    // Whoever stops the supervisor stops the child; the signals themselves are for the parent to act on.
    let mut signals = Signals::listen()?;
    let mut child = Command::new(program)
        .args(rest)
        .stdin(lock(arguments.lock.as_deref())?)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let status = tokio::select! {
        status = child.wait() => status?,
        () = parent_gone() => stop(&mut child).await?,
        () = signals.stop(|| ()) => stop(&mut child).await?,
    };
    if !status.success() {
        bail!("{program} ended: {status}");
    }
    Ok(())
}

/// The child's standard input: the locked file, so that the lock goes where the child goes.
fn lock(path: Option<&Path>) -> anyhow::Result<Stdio> {
    let Some(path) = path else { return Ok(Stdio::null()) };
    let file = File::options().create(true).truncate(false).read(true).write(true).open(path)?;
    file.try_lock().with_context(|| format!("{} is in use by another nats-server", path.display()))?;
    Ok(file.into())
}

/// Returns when nobody holds the other end of standard input.
async fn parent_gone() {
    let mut input = tokio::io::stdin();
    let mut byte = [0];
    while matches!(input.read(&mut byte).await, Ok(1)) {}
}

/// Asks the child to stop, and makes it if it does not.
async fn stop(child: &mut Child) -> anyhow::Result<ExitStatus> {
    if let Some(id) = child.id() {
        // There is no safe call for this in the standard library. Where there is no `kill`, it is made to stop.
        drop(Command::new("kill").arg(id.to_string()).status().await);
    }
    if let Ok(status) = tokio::time::timeout(GRACE, child.wait()).await {
        return Ok(status?);
    }
    child.kill().await?;
    Ok(child.wait().await?)
}
