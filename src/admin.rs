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

use crate::broker::Links;
use crate::secret::{KeyRing, Secret};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::StreamLabels;

/// What the pages read.
struct Admin {
    links: Links,
    metrics: Metrics,
    token: Option<Arc<KeyRing<Secret>>>,
    draining: CancellationToken,
}

/// `/livez`: the process runs. `/readyz`: NATS can be used. `/metrics`: for Prometheus.
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
    match admin.links.state() {
        None => (StatusCode::OK, "ready\n").into_response(),
        Some(link) => (StatusCode::SERVICE_UNAVAILABLE, format!("{link}\n")).into_response(),
    }
}

async fn metrics_page(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    if let Some(token) = &admin.token
        && !is_bearer(&headers, token)
    {
        let challenge = [(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))];
        return (StatusCode::UNAUTHORIZED, challenge, "this page needs the admin token\n").into_response();
    }
    admin.metrics.nats_ready.set(admin.links.state().is_none().into());
    for (stream, count) in admin.links.replacements() {
        admin.metrics.streams_replaced.get_or_create(&StreamLabels { stream }).inner().store(count, Ordering::Relaxed);
    }
    let content_type = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    match admin.metrics.encode() {
        Ok(page) => ([(CONTENT_TYPE, content_type)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

fn is_bearer(headers: &HeaderMap, token: &KeyRing<Secret>) -> bool {
    let given = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    given.is_some_and(|given| token.keys().iter().any(|token| bool::from(token.expose().ct_eq(given))))
}
