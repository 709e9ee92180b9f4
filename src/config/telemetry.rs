//! `[telemetry]`

use serde::Deserialize;
use url::Url;

/// Logs and traces. Metrics are on the admin listener.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// What is logged: `error`, `warn`, `info`, `debug`, or directives such as `info,hookbridge=debug`.
    /// The environment variable `RUST_LOG` wins.
    pub log: String,
    /// How it is logged.
    pub format: LogFormat,
    /// Where traces go, OTLP over HTTP with protobuf, for example `http://collector:4318`. Off unless set.
    pub otlp: Option<Url>,
    /// The service name in traces.
    pub service_name: String,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { log: "info".to_owned(), format: LogFormat::Auto, otlp: None, service_name: "hookbridge".to_owned() }
    }
}
