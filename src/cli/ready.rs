//! `hookbridge ready`

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use url::Url;

use super::send::{self, Answer};

#[derive(Args)]
pub(super) struct Arguments {
    /// The page to ask.
    #[arg(long, default_value = "http://127.0.0.1:9090/readyz")]
    url: Url,
}

/// Fails unless the process says that it is ready.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let request = http::Request::get(arguments.url.as_str()).body(bytes::Bytes::new())?;
    let Answer { status, body } = send::exchange(request, Duration::from_secs(3))
        .await
        .with_context(|| format!("{} does not answer", arguments.url))?;
    if !status.is_success() {
        bail!("{}", String::from_utf8_lossy(&body).trim());
    }
    super::say(String::from_utf8_lossy(&body).trim());
    Ok(())
}
