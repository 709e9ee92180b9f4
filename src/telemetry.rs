//! Logs, metrics and traces, from the first day.
//!
//! None of them ever holds a body or a secret. Metrics are always on; traces only where a collector is named.

pub(crate) mod logs;
pub(crate) mod metrics;
pub(crate) mod traces;

pub(crate) use metrics::Metrics;
