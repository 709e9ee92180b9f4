//! What senders are told: one variant per row of the answer table.

use axum::body::Body;
use axum::response::Response;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{HeaderName, Method, StatusCode};
use serde::Serialize;

use super::peer_rate::TooSoon;
use crate::broker::PublishError;
use crate::signature::profile::Answer;
use crate::signature::{Refusal, Rejection};

/// When to come again after 429: there is room again as soon as other requests are answered.
const BUSY_SECONDS: HeaderValue = HeaderValue::from_static("1");
/// When to come again after 503: a restart of NATS takes about so long.
const NOT_STORED_SECONDS: HeaderValue = HeaderValue::from_static("5");

/// The stream has what was to be stored.
#[derive(Debug, Serialize)]
pub(super) struct Accepted {
    pub(super) id: String,
    pub(super) duplicate: bool,
    /// How many events a body was taken apart into.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) events: Option<usize>,
    /// Nothing was stored, because the source does not want this type.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) filtered: bool,
}

impl Accepted {
    /// The answer, as the provider wants it.
    pub(super) fn response(&self, wanted: Option<&Answer>) -> Response {
        let status =
            wanted.and_then(|wanted| StatusCode::from_u16(wanted.status?).ok()).unwrap_or(StatusCode::ACCEPTED);
        if status == StatusCode::NO_CONTENT {
            return text_response(status, String::new());
        }
        if let Some(text) = wanted.and_then(|wanted| wanted.text.clone()) {
            return text_response(status, text);
        }
        let body = match wanted.and_then(|wanted| wanted.json.as_ref()) {
            Some(json) => serde_json::to_vec(json),
            None => serde_json::to_vec(self),
        };
        let mut response = Response::new(Body::from(body.unwrap_or_default()));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// An empty body has no type.
fn text_response(status: StatusCode, text: String) -> Response {
    let plain = (CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    let typed = Some(plain).filter(|_| !text.is_empty());
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().extend(typed);
    response
}

/// Why a webhook was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiveError {
    #[error("there is no such source")]
    NoSource,
    #[error("only {} is taken here", methods(.allowed))]
    Method { allowed: Vec<Method> },
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
    #[error("content type is not taken here")]
    ContentType,
    #[error("a list of more than {limit} items is not taken apart")]
    TooManyItems { limit: usize },
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
    /// A handshake that cannot be answered as it is.
    #[error("{0}")]
    Handshake(Refusal),
    /// A secret that is known is not replaced.
    #[error("the handshake is over: there is a secret already")]
    Captured,
    #[error("too many requests to this source")]
    SourceRate(TooSoon),
    #[error("too many requests to this source at once")]
    SourceBusy,
    #[error("event not stored")]
    NotStored(#[from] PublishError),
    /// Ours to mend: a key, a confirmation or a captured secret.
    #[error("not possible now")]
    NotNow(String),
    /// A key at an address that the request names cannot be had.
    #[error("not possible now")]
    NoKey(String),
}

fn methods(allowed: &[Method]) -> String {
    allowed.iter().map(Method::as_str).collect::<Vec<_>>().join(", ")
}

impl ReceiveError {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::NoSource => StatusCode::NOT_FOUND,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Network | Self::Captured | Self::Handshake(Refusal::Token) => StatusCode::FORBIDDEN,
            Self::HeadersTooLarge { .. } | Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::EventTooLarge { .. } | Self::TooManyItems { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::ContentEncoding | Self::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Busy | Self::PeerRate(_) | Self::SourceRate(_) | Self::SourceBusy => StatusCode::TOO_MANY_REQUESTS,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::BrokenOff | Self::Handshake(Refusal::Unusable(_)) => StatusCode::BAD_REQUEST,
            Self::Rejected(_) => StatusCode::UNAUTHORIZED,
            // So that the sender tries again.
            Self::NotStored(_) | Self::NotNow(_) | Self::NoKey(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The word for metrics.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::NoSource => "no-source",
            Self::Method { .. } => "method",
            Self::Network => "forbidden-network",
            Self::HeadersTooLarge { .. } | Self::BodyTooLarge { .. } | Self::EventTooLarge { .. } => "too-large",
            Self::TooManyItems { .. } => "too-many-items",
            Self::ContentEncoding => "content-encoding",
            Self::ContentType => "content-type",
            Self::Busy => "too-many",
            Self::PeerRate(_) => "peer-rate",
            Self::SourceRate(_) => "source-rate",
            Self::SourceBusy => "source-busy",
            Self::TooSlow => "too-slow",
            Self::BrokenOff => "broken-off",
            Self::Rejected(_) => "rejected",
            Self::Handshake(_) | Self::Captured => "handshake-refused",
            Self::NotStored(_) => "not-stored",
            Self::NotNow(_) | Self::NoKey(_) => "not-now",
        }
    }

    /// Whether the whole request had been read when this was found.
    fn is_after_the_body(&self) -> bool {
        match self {
            Self::Rejected(_) | Self::Handshake(_) | Self::Captured | Self::ContentType | Self::TooManyItems { .. } => {
                true
            }
            Self::SourceRate(_) | Self::SourceBusy | Self::EventTooLarge { .. } => true,
            Self::NotStored(_) | Self::NotNow(_) | Self::NoKey(_) => true,
            Self::NoSource | Self::Method { .. } | Self::Network | Self::HeadersTooLarge { .. } => false,
            Self::BodyTooLarge { .. } | Self::ContentEncoding | Self::Busy | Self::PeerRate(_) => false,
            Self::TooSlow | Self::BrokenOff => false,
        }
    }

    /// Whether the sender is charged for it: he did not prove himself, and nobody kept him from it.
    pub(super) fn is_charged(&self) -> bool {
        match self {
            Self::NoSource | Self::Method { .. } | Self::Network => true,
            Self::HeadersTooLarge { .. } | Self::BodyTooLarge { .. } | Self::ContentEncoding => true,
            Self::ContentType | Self::TooSlow | Self::BrokenOff | Self::Rejected(_) => true,
            Self::Handshake(_) | Self::Captured | Self::NoKey(_) => true,
            Self::Busy | Self::PeerRate(_) => false,
            // These have proved themselves, or it is for us to mend.
            Self::SourceRate(_) | Self::SourceBusy | Self::EventTooLarge { .. } | Self::TooManyItems { .. } => false,
            Self::NotStored(_) | Self::NotNow(_) => false,
        }
    }

    fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        match self {
            Self::Method { allowed } => Some((ALLOW, HeaderValue::try_from(methods(allowed)).ok()?)),
            Self::Busy | Self::SourceBusy => Some((RETRY_AFTER, BUSY_SECONDS)),
            Self::PeerRate(wait) | Self::SourceRate(wait) => Some((RETRY_AFTER, wait.seconds.into())),
            Self::NotStored(_) | Self::NotNow(_) | Self::NoKey(_) => Some((RETRY_AFTER, NOT_STORED_SECONDS)),
            _ => None,
        }
    }
}

/// An answer that says what is wrong (RFC 9457).
pub(super) fn problem(status: StatusCode, detail: String) -> Response {
    let title = status.canonical_reason().unwrap_or_default();
    let problem = Problem { r#type: "about:blank", title, status: status.as_u16(), detail };
    let mut response = Response::new(Body::from(serde_json::to_vec(&problem).unwrap_or_default()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
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
    /// The answer: problem details, or what the provider wants to read instead.
    pub(super) fn response(&self, wanted: Option<&Answer>) -> Response {
        let status = self.status();
        if let (Self::Rejected(_), Some(text)) = (self, wanted.and_then(|wanted| wanted.rejected_text.clone())) {
            return text_response(status, text);
        }
        let mut response = problem(status, self.to_string());
        let headers = response.headers_mut();
        headers.extend(self.header());
        if !self.is_after_the_body() {
            // The rest of the request is not read.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
