//! Log lines: for people on a terminal, JSON elsewhere.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use anyhow::Context;
use tracing_subscriber::filter::FilterExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::traces::{self, Tracing};
use crate::clock::unix_seconds;
use crate::config::{LogFormat, Telemetry};

/// Sets up logs and, where configured, traces for the whole process. What is returned must live as long.
pub(crate) fn init(telemetry: &Telemetry) -> anyhow::Result<Option<Tracing>> {
    let tracing = telemetry.otlp.as_ref().map(|url| Tracing::new(url, &telemetry.service_name)).transpose()?;
    let json = match telemetry.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let lines = if json {
        lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
    } else {
        lines.with_ansi(std::io::stderr().is_terminal()).boxed()
    };
    // The NATS client logs every failed attempt to connect, a wrong password even as an error; what matters of
    // that is said once, by the broker.
    let asked = format!("async_nats=off,{}", telemetry.log);
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(wanted) => EnvFilter::try_new(wanted).context(EnvFilter::DEFAULT_ENV)?,
        Err(_) => EnvFilter::try_new(asked)?,
    };
    let no_spans = tracing_subscriber::filter::filter_fn(|metadata| metadata.target() != traces::TARGET);
    let logs = tracing_subscriber::registry().with(lines.with_filter(filter.and(no_spans)));
    // Spans are for traces only: without a collector they cost nothing. An absent layer would, and the client
    // library's own events with it: what has no filter wants everything.
    match &tracing {
        Some(tracing) => logs.with(tracing.layer()).try_init()?,
        None => logs.try_init()?,
    }
    Ok(tracing)
}

/// A log line that somebody outside can cause: at most one a second, and how many were left out.
#[derive(Default)]
pub(crate) struct Seldom {
    second: AtomicU64,
    left_out: AtomicU64,
}

impl Seldom {
    /// Whether to log now; if so, how many lines were left out since the last one.
    pub(crate) fn pass(&self, now: SystemTime) -> Option<u64> {
        let now = unix_seconds(now);
        if self.second.swap(now, Ordering::Relaxed) == now {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.left_out.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_lines_in_one_second_one_is_logged_and_the_others_counted() {
        let (seldom, at) =
            (Seldom::default(), |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds));
        assert_eq!(seldom.pass(at(1)), Some(0));
        assert_eq!((seldom.pass(at(1)), seldom.pass(at(1))), (None, None));
        assert_eq!(seldom.pass(at(2)), Some(2));
    }
}
