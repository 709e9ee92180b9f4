//! What senders are told: one variant per row of the answer table.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{HeaderName, StatusCode};
use serde::Serialize;

use super::peer_rate::TooSoon;
use crate::broker::PublishError;
use crate::signature::Rejection;

/// When to come again after 429: there is room again as soon as other requests are answered.
const BUSY_SECONDS: HeaderValue = HeaderValue::from_static("1");
/// When to come again after 503: a restart of NATS takes about so long.
const NOT_STORED_SECONDS: HeaderValue = HeaderValue::from_static("5");

/// The stream has the event.
#[derive(Debug, Serialize)]
pub(super) struct Accepted {
    pub(super) id: String,
    pub(super) duplicate: bool,
}

impl IntoResponse for Accepted {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).unwrap_or_default();
        (StatusCode::ACCEPTED, [(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
    }
}

/// Why a webhook was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiveError {
    #[error("there is no such source")]
    NoSource,
    #[error("only POST is taken here")]
    Method,
    #[error("your address may not send to this source")]
    Network,
    #[error("headers are larger than {limit} bytes")]
    HeadersTooLarge { limit: usize },
    #[error("body is larger than {limit} bytes")]
    BodyTooLarge { limit: usize },
    /// As large as it may be by itself, and too large with its headers for the server.
    #[error("body is larger than {limit} bytes")]
    EventTooLarge { limit: usize },
    #[error("content encoding is not supported: send the body as it is")]
    ContentEncoding,
    #[error("too many requests at once")]
    Busy,
    #[error("too many requests from your address that prove nothing")]
    PeerRate(TooSoon),
    #[error("body did not arrive in time")]
    TooSlow,
    #[error("body broke off")]
    BrokenOff,
    /// The body says only that; the log and a counter say which.
    #[error("signature missing or wrong")]
    Rejected(#[from] Rejection),
    #[error("too many requests to this source")]
    SourceRate(TooSoon),
    #[error("too many requests to this source at once")]
    SourceBusy,
    #[error("event not stored")]
    NotStored(#[from] PublishError),
}

impl ReceiveError {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::NoSource => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Network => StatusCode::FORBIDDEN,
            Self::HeadersTooLarge { .. } | Self::BodyTooLarge { .. } | Self::EventTooLarge { .. } => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            Self::ContentEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Busy | Self::PeerRate(_) | Self::SourceRate(_) | Self::SourceBusy => StatusCode::TOO_MANY_REQUESTS,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::BrokenOff => StatusCode::BAD_REQUEST,
            Self::Rejected(_) => StatusCode::UNAUTHORIZED,
            // So that the sender tries again.
            Self::NotStored(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The word for metrics.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::NoSource => "no-source",
            Self::Method => "method",
            Self::Network => "forbidden-network",
            Self::HeadersTooLarge { .. } | Self::BodyTooLarge { .. } | Self::EventTooLarge { .. } => "too-large",
            Self::ContentEncoding => "content-encoding",
            Self::Busy => "too-many",
            Self::PeerRate(_) => "peer-rate",
            Self::SourceRate(_) => "source-rate",
            Self::SourceBusy => "source-busy",
            Self::TooSlow => "too-slow",
            Self::BrokenOff => "broken-off",
            Self::Rejected(_) => "rejected",
            Self::NotStored(_) => "not-stored",
        }
    }

    /// Whether the whole request had been read when this was found.
    fn is_after_the_body(&self) -> bool {
        matches!(
            self,
            Self::Rejected(_)
                | Self::SourceRate(_)
                | Self::SourceBusy
                | Self::EventTooLarge { .. }
                | Self::NotStored(_)
        )
    }

    /// Whether the sender is charged for it: he did not prove himself, and nobody kept him from it.
    pub(super) fn is_charged(&self) -> bool {
        match self {
            Self::NoSource | Self::Method | Self::Network => true,
            Self::HeadersTooLarge { .. } | Self::BodyTooLarge { .. } | Self::ContentEncoding => true,
            Self::TooSlow | Self::BrokenOff | Self::Rejected(_) => true,
            Self::Busy | Self::PeerRate(_) => false,
            // These have proved themselves.
            Self::SourceRate(_) | Self::SourceBusy | Self::EventTooLarge { .. } | Self::NotStored(_) => false,
        }
    }

    fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        match self {
            Self::Method => Some((ALLOW, HeaderValue::from_static("POST"))),
            Self::Busy | Self::SourceBusy => Some((RETRY_AFTER, BUSY_SECONDS)),
            Self::PeerRate(wait) | Self::SourceRate(wait) => Some((RETRY_AFTER, wait.seconds.into())),
            Self::NotStored(_) => Some((RETRY_AFTER, NOT_STORED_SECONDS)),
            _ => None,
        }
    }
}

/// RFC 9457.
#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: String,
}

impl ReceiveError {
    /// The answer as problem details.
    pub(super) fn response(&self) -> Response {
        let status = self.status();
        let title = status.canonical_reason().unwrap_or_default();
        let problem = Problem { r#type: "about:blank", title, status: status.as_u16(), detail: self.to_string() };
        let mut response = Response::new(Body::from(serde_json::to_vec(&problem).unwrap_or_default()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.extend(self.header());
        if !self.is_after_the_body() {
            // The rest of the request is not read.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
