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

use crate::broker::{Broker, Counts, Links};
use crate::secret::{KeyRing, Secret};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{AssetLabels, PullLabels, StreamLabels};

/// What the pages read.
struct Admin {
    links: Links,
    metrics: Metrics,
    token: Option<Arc<KeyRing<Secret>>>,
    draining: CancellationToken,
}

/// `/livez`: the process runs. `/readyz`: NATS stores what the roles need. `/metrics`: for Prometheus.
pub(crate) fn router(
    links: Links,
    metrics: Metrics,
    token: Option<Arc<KeyRing<Secret>>>,
    draining: CancellationToken,
) -> Router {
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_page))
        .with_state(Arc::new(Admin { links, metrics, token, draining }))
}

async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    if admin.draining.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    match admin.links.trouble() {
        None => (StatusCode::OK, "ready\n").into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn metrics_page(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    if let Some(token) = &admin.token
        && !is_bearer(&headers, token)
    {
        let challenge = [(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))];
        return (StatusCode::UNAUTHORIZED, challenge, "this page needs the admin token\n").into_response();
    }
    admin.metrics.nats_ready.set(admin.links.trouble().is_none().into());
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
    for (asset, count) in counts.all_made_again() {
        metrics.made_again.get_or_create(&AssetLabels { asset }).inner().fetch_max(count, Ordering::Relaxed);
    }
}

fn is_bearer(headers: &HeaderMap, token: &KeyRing<Secret>) -> bool {
    let given = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    given.is_some_and(|given| token.keys().iter().any(|token| bool::from(token.expose().ct_eq(given))))
}
