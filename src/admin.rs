//! Health and metrics of this process.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use subtle::ConstantTimeEq;
use tokio_util::sync::CancellationToken;

use crate::broker::{Broker, ClusterNotes, Counts, Links, TASKS_STREAM};
use crate::secret::{KeyRing, Secret};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{AssetLabels, PullLabels, StreamLabels};

/// What the pages read.
struct Admin {
    links: Links,
    notes: ClusterNotes,
    metrics: Metrics,
    token: Option<Arc<KeyRing<Secret>>>,
    steps: Steps,
}

/// The steps of the process' life that its readiness depends on, beside NATS.
#[derive(Clone)]
pub(crate) struct Steps {
    /// Becomes cancelled when the gateway lets connections in; is so from the start where there is no gateway.
    pub(crate) listening: CancellationToken,
    /// Becomes cancelled when the process is asked to stop.
    pub(crate) leaving: CancellationToken,
    /// Becomes cancelled when it finishes what it holds.
    pub(crate) draining: CancellationToken,
}

impl Admin {
    /// Why the process should get no work now, if there is a reason.
    fn not_ready(&self) -> Option<String> {
        if self.steps.draining.is_cancelled() {
            return Some("draining".to_owned());
        }
        if self.steps.leaving.is_cancelled() {
            return Some("shutting down".to_owned());
        }
        if let Some(trouble) = self.links.trouble() {
            return Some(trouble);
        }
        (!self.steps.listening.is_cancelled()).then(|| "the gateway does not listen yet".to_owned())
    }
}

/// `/livez`: the process runs. `/readyz`: NATS stores what the roles need, and the process takes work. `/metrics`: for
/// Prometheus.
pub(crate) fn router(
    links: Links,
    notes: ClusterNotes,
    metrics: Metrics,
    token: Option<Arc<KeyRing<Secret>>>,
    steps: Steps,
) -> Router {
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_page))
        .with_state(Arc::new(Admin { links, notes, metrics, token, steps }))
}

async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    let notes: String = admin.notes.lines().iter().map(|line| format!("note: {line}\n")).collect();
    match admin.not_ready() {
        None => (StatusCode::OK, format!("ready\n{notes}")).into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n{notes}")).into_response(),
    }
}

async fn metrics_page(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    if let Some(token) = &admin.token
        && !is_bearer(&headers, token)
    {
        let challenge = [(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))];
        return (StatusCode::UNAUTHORIZED, challenge, "this page needs the admin token\n").into_response();
    }
    admin.metrics.nats_ready.set(admin.not_ready().is_none().into());
    for (stream, count) in admin.links.replacements() {
        admin.metrics.streams_replaced.get_or_create(&StreamLabels { stream }).inner().store(count, Ordering::Relaxed);
    }
    let brokers = admin.links.all();
    let unconfirmed = brokers.iter().map(Broker::unconfirmed_for).max().unwrap_or_default();
    admin.metrics.nats_unconfirmed_seconds.set(i64::try_from(unconfirmed.as_secs()).unwrap_or(i64::MAX));
    if let Some(broker) = brokers.first() {
        show_counts(&admin.metrics, broker.counts());
    }
    let content_type = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    match admin.metrics.encode() {
        Ok(page) => ([(CONTENT_TYPE, content_type)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// Takes over what the links have counted. The counts only grow, and so do the counters.
fn show_counts(metrics: &Metrics, counts: &Counts) {
    for ((stream, reason), count) in counts.pulls_interrupted() {
        let counter = metrics.pulls_interrupted.get_or_create(&PullLabels { stream: stream.name(), reason });
        counter.inner().fetch_max(count, Ordering::Relaxed);
    }
    let removed = counts.task_records_removed();
    if removed > 0 {
        let labels = StreamLabels { stream: TASKS_STREAM };
        metrics.unreadable.get_or_create(&labels).inner().fetch_max(removed, Ordering::Relaxed);
    }
    for (asset, count) in counts.all_made_again() {
        metrics.made_again.get_or_create(&AssetLabels { asset }).inner().fetch_max(count, Ordering::Relaxed);
    }
}

fn is_bearer(headers: &HeaderMap, token: &KeyRing<Secret>) -> bool {
    let given = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    given.is_some_and(|given| token.keys().iter().any(|token| bool::from(token.expose().ct_eq(given))))
}
