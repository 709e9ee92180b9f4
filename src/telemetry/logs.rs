//! Log lines: for people on a terminal, JSON elsewhere.

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::traces::{self, Tracing};
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
    // The NATS client logs every failed attempt to connect; what matters of that is said once, by the broker.
    let asked = format!("async_nats=warn,{}", telemetry.log);
    let filter = EnvFilter::try_from_default_env().or_else(|_| EnvFilter::try_new(asked))?;
    // Spans are for traces only: without a collector they cost nothing.
    let no_spans = tracing_subscriber::filter::filter_fn(|metadata| metadata.target() != traces::TARGET);
    tracing_subscriber::registry()
        .with(lines.with_filter(filter).with_filter(no_spans))
        .with(tracing.as_ref().map(Tracing::layer))
        .try_init()?;
    Ok(tracing)
}
