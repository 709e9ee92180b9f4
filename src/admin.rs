//! Health and metrics of this process.

use std::sync::Arc;

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

/// What the pages read.
struct Admin {
    links: Links,
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
        if let Some(link) = self.links.state() {
            return Some(link.to_string());
        }
        (!self.steps.listening.is_cancelled()).then(|| "the gateway does not listen yet".to_owned())
    }
}

/// `/livez`: the process runs. `/readyz`: NATS can be used. `/metrics`: for Prometheus.
pub(crate) fn router(links: Links, metrics: Metrics, token: Option<Arc<KeyRing<Secret>>>, steps: Steps) -> Router {
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_page))
        .with_state(Arc::new(Admin { links, metrics, token, steps }))
}

async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    match admin.not_ready() {
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
    admin.metrics.nats_ready.set(admin.not_ready().is_none().into());
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
